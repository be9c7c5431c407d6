"""Synthetic reviews in English, drawn from a small grammar: the demo's two-class task.

Label 1 is praise and label 0 is blame. About a third of the sentences are hard: they contain words of the other class
("hardly dull", "although the view was lovely , the bed was damp").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final, TypeVar

from ...export.errors import UsageError
from .words import ADJECTIVES, CLOSINGS, DEGREES, DOMAINS, FEELINGS, NEUTRAL_VERBS, OCCASIONS, PEOPLE, VERBS

T = TypeVar("T")

SPLIT_SIZES: Final = {"train": 2000, "test": 500}
SEED: Final = 2022
N_WORDS: Final = range(6, 37)
"""Permitted numbers of words in a sentence; nearly every word is one token."""

# "{symbol}" expands to the sentence's own class, "{not symbol}" to the other one.
GRAMMAR: Final[dict[str, tuple[str, ...]]] = {
    "sentence": (*5 * ("{plain}",), "{contrast}"),
    "plain": (
        "{opinion} in this {name}",
        "{opinion} and {opinion}",
        "about this {name} : {opinion} , {opinion} and {opinion}",
        "we tried this {name} {occasion} and {opinion}",
        "{aside} {occasion} , and {opinion}",
        "{opinion} in the {name} , while {aside}",
        "{opinion} , so {closing}",
        "{aside} {occasion} ; {opinion} , {opinion} , and {closing}",
    ),
    "contrast": (
        "although {not opinion} , {opinion}",
        "{not opinion} , but {opinion}",
        "{opinion} , even though {not opinion}",
        "despite the {not adjective} {aspect} of this {name} , {opinion}",
        "although {not opinion} , {opinion} , and {closing}",
    ),
    "opinion": (*7 * ("{direct}",), "{denial}"),
    "direct": (
        "the {aspect} was {adjective}",
        "the {aspect} was {degree} {adjective}",
        "the {aspect} was {adjective} and {adjective}",
        "i found the {aspect} {degree} {adjective}",
        "i {verb} the {aspect}",
        "everybody {verb} the {adjective} {aspect}",
        "the {aspect} left me {feeling}",
        "the {adjective} {aspect} left us {feeling}",
    ),
    "denial": (
        "the {aspect} was not {not adjective}",
        "the {aspect} was never {not adjective}",
        "the {aspect} was hardly {not adjective}",
        "nothing about the {aspect} was {not adjective}",
        "nobody could call the {aspect} {not adjective}",
        "i did not find the {aspect} {not adjective}",
    ),
    "adjective": ("{general_adjective}", "{domain_adjective}"),
    "aside": ("{person} {did}",),
}
_SYMBOL = re.compile(r"\{(not )?(\w+)\}")


@dataclass(frozen=True)
class Sentence:
    """One review with its label and domain."""

    text: str
    label: int
    """1 for praise, 0 for blame."""
    domain: int
    """Index of the reviewed domain in ``DOMAINS``."""


def pick(rng: Random, options: Sequence[T]) -> T:
    """Draw one option, the same in every Python version (``Random.choice`` does not guarantee that)."""
    return options[int(rng.random() * len(options))]


def draw_sentence(rng: Random, label: int) -> Sentence:
    """Draw one sentence of a class.

    Args:
        rng: the source of randomness.
        label: 1 for praise, 0 for blame.
    """
    while True:
        domain = int(rng.random() * len(DOMAINS))
        text = _expand(rng, "sentence", domain, label)
        if len(text.split()) in N_WORDS:
            return Sentence(text, label, domain)


def rows(split: str) -> list[dict[str, str | int]]:
    """Return a split of the demo's task: the same balanced rows at every call.

    Args:
        split: "train" (2000 rows, the pool of few-shot examples) or "test" (500 rows, none in "train").

    Returns:
        Rows with the keys ``text`` and ``label`` (0 is blame, 1 is praise), in random order.

    Raises:
        UsageError: if there is no such split.
    """
    if split not in SPLIT_SIZES:
        raise UsageError(f"the demo has no split {split!r}; its splits are {', '.join(SPLIT_SIZES)}.")
    return [{"text": sentence.text, "label": sentence.label} for sentence in _splits()[split]]


@cache
def _splits() -> dict[str, tuple[Sentence, ...]]:
    """Draw all splits from one stream, without repeated sentences."""
    rng = Random(SEED)
    seen: set[str] = set()
    splits = {}
    for split, size in SPLIT_SIZES.items():
        sentences: list[Sentence] = []
        counts = [0, 0]
        while len(sentences) < size:
            sentence = draw_sentence(rng, int(rng.random() * 2))
            if sentence.text not in seen and counts[sentence.label] < size // 2:
                seen.add(sentence.text)
                counts[sentence.label] += 1
                sentences.append(sentence)
        splits[split] = tuple(sentences)
    return splits


def _expand(rng: Random, symbol: str, domain: int, label: int) -> str:
    """Draw one expansion of a symbol and, from left to right, of the symbols in it."""
    options = GRAMMAR[symbol] if symbol in GRAMMAR else _words(symbol, domain, label)

    def fill(match: re.Match[str]) -> str:
        return _expand(rng, match[2], domain, 1 - label if match[1] else label)

    return _SYMBOL.sub(fill, pick(rng, options))


def _words(symbol: str, domain: int, label: int) -> tuple[str, ...]:
    """Return the words of a lexicon symbol."""
    return {
        "name": DOMAINS[domain].names,
        "aspect": DOMAINS[domain].aspects,
        "domain_adjective": (DOMAINS[domain].bad, DOMAINS[domain].good)[label],
        "general_adjective": ADJECTIVES[label],
        "verb": VERBS[label],
        "feeling": FEELINGS[label],
        "closing": CLOSINGS[label],
        "degree": DEGREES,
        "occasion": OCCASIONS,
        "person": PEOPLE,
        "did": NEUTRAL_VERBS,
    }[symbol]
