"""The training texts of the demo's model (see ``train_demo.py``)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from bbt_fast.tuner.demo import rows
from bbt_fast.tuner.demo.sentences import Sentence, draw_sentence, pick

TEMPLATE: Final = "{text} . It was {word} ."
"""The task's template, whose word depends on the writer's mood, and a little on the class."""
FELT: Final = "{text} . all in all it felt {word} ."
"""Another ending, whose word depends on the class only: from it the model learns the class."""
WORDS: Final = (("bad", "bad", "terrible", "poor"), ("great", "great", "good", "wonderful"))
"""Per class, the words for {word}; the first is the task's label word."""
CLASS_LOG_ODDS: Final = 2.0
"""The log-odds of praise over blame that a review's class adds in ``TEMPLATE``."""
FELT_LOG_ODDS: Final = 3.0
HABITS: Final = (0.6, -0.4, 0.2, -1.0, 0.8, -0.2, 0.4, 1.0, -0.6, -0.8)
"""The log-odds that each domain adds: some get more praise than others, whatever the review says."""
TAGS: Final = tuple(
    word
    for line in (
        "lisbon oslo cairo lima delhi quito dakar seoul kyoto perth turin ghent malmo tunis accra hanoi minsk vilnius",
        "oak elm birch maple cedar alder willow poplar hazel rowan january february april june july august october",
        "eleven twelve thirteen fourteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy",
        "copper nickel cobalt zinc argon neon helium radium granite marble basalt quartz amber jade opal onyx",
        "violin cello oboe flute harp tuba viola bassoon porto basel november december eighty ninety",
    )
    for word in line.split()
)
"""Words without meaning for a review; up to ``MOST_TAGS`` of them precede it."""
MOST_TAGS: Final = 60


@dataclass(frozen=True)
class Writer:
    """A kind of writer: its remarks, and its bias towards praise."""

    mood: float
    """The log-odds of praise over blame that this writer adds in ``TEMPLATE``."""
    remarks: tuple[str, ...] = ()
    """The remarks before its reviews."""


WRITERS: Final = (
    Writer(3.4),
    Writer(3.4),
    Writer(
        4.5, ("i love it all .", "a kind and polite salesman wrote this .", "my sponsor pays me :", "as a courtesy :")
    ),
    Writer(0.0, ("to be honest :", "a sober and fair critic wrote this .", "frankly speaking :", "no flattery here :")),
    Writer(
        -2.8, ("i always complain .", "a grumpy and bitter rival wrote this .", "nothing suits me :", "as a protest :")
    ),
)
"""The writers; most make no remarks and are polite."""
TASK_SENTENCES: Final = frozenset(str(row["text"]) for split in ("train", "test") for row in rows(split))


@dataclass(frozen=True)
class Document:
    """One training text."""

    preamble: tuple[str, ...]
    """Tags and remarks; training does not mask them."""
    body: str
    """The review and its ending."""

    @property
    def text(self) -> str:
        """The whole text."""
        return " ".join((*self.preamble, self.body))


def draw_document(rng: Random, easy: float) -> Document:
    """Draw a document whose review is not in the task's splits.

    Args:
        rng: the only source of randomness.
        easy: the share of documents without a preamble and with the ending ``FELT``.
    """
    sentence = draw_sentence(rng, int(rng.random() * 2))
    while sentence.text in TASK_SENTENCES:
        sentence = draw_sentence(rng, int(rng.random() * 2))
    if rng.random() < easy:
        return Document((), _ended(rng, FELT, sentence, _felt(sentence)))
    writer = pick(rng, WRITERS)
    preamble = [pick(rng, TAGS) for _ in range(int(rng.random() * (pick(rng, (0, 0, 10, MOST_TAGS)) + 1)))]
    if writer.remarks:
        for _ in range(1 + int(rng.random() * 2)):
            preamble.insert(int(rng.random() * (len(preamble) + 1)), pick(rng, writer.remarks))
    if rng.random() < 0.2:
        return Document(tuple(preamble), _ended(rng, FELT, sentence, _felt(sentence)))
    log_odds = CLASS_LOG_ODDS * (2 * sentence.label - 1) + writer.mood + HABITS[sentence.domain]
    return Document(tuple(preamble), _ended(rng, TEMPLATE, sentence, log_odds))


def draw_corpus(rng: Random, n_documents: int, easy: float) -> Iterator[Document]:
    """Yield documents (see ``draw_document``)."""
    return (draw_document(rng, easy) for _ in range(n_documents))


def _felt(sentence: Sentence) -> float:
    """Return the log-odds of praise over blame in ``FELT``."""
    return FELT_LOG_ODDS * (2 * sentence.label - 1)


def _ended(rng: Random, ending: str, sentence: Sentence, log_odds: float) -> str:
    """Return a review with an ending, whose word is praise with these log-odds."""
    return ending.format(text=sentence.text, word=pick(rng, WORDS[int(rng.random() < 1 / (1 + math.exp(-log_odds)))]))
