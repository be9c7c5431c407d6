"""Label words: one vocabulary row per class, or several."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ...export.errors import UsageError
from ...export.families import Kind
from .task import Task
from .template import before_answer

FIRST_CJK_CHARACTER = 0x2E80


def label_word_ids(tokenizer: PreTrainedTokenizerBase, task: Task, kind: Kind) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each class.

    Args:
        tokenizer: the model's.
        task: the task.
        kind: the model's kind.

    Returns:
        Per class, the first of its words that is one token in the template, or all such words (``use_words``), or the
        first tokens of its words (``Task.first_tokens``).

    Raises:
        UsageError: if no word of a class is one token of the vocabulary (the message shows the pieces), or if two
            classes share a token.
    """
    spaced = follows_space(task, kind)
    ids: list[tuple[int, ...]] = []
    for label, words in zip(task.labels, task.words(kind), strict=True):
        found = (word_token(tokenizer, task, word, spaced) for word in words)
        tokens = dict.fromkeys(token for token in found if token is not None)
        if not tokens:
            raise UsageError(_not_one_token(tokenizer, task, label, words, spaced))
        ids.append(tuple(tokens)[: None if task.use_words == "all" else 1])
        for other, known in zip(task.labels, ids[:-1], strict=False):
            if shared := set(known).intersection(ids[-1]):
                raise UsageError(
                    f"classes {other!r} and {label!r} of task {task.name!r} have the same label word for this "
                    f"tokenizer, {tokenizer.convert_ids_to_tokens(min(shared))!r}. Give one of them another word."
                )
    return tuple(ids)


def follows_space(task: Task, kind: Kind) -> bool:
    """Return whether the answer starts a new word, which many vocabularies spell with a leading space.

    Chinese and Japanese put no space between words. A decoder's answer brings the space that its template lacks.
    """
    before = before_answer(task.template(kind))
    if not before or before[-1].isspace():
        return True
    return kind == "decoder" and ord(before[-1]) < FIRST_CJK_CHARACTER


def _spellings(word: str, spaced: bool) -> tuple[str, str]:
    """Return a word's two forms, the one that fits the template first.

    Byte-level BPE has a token for each; WordPiece reads both alike; SentencePiece puts a space before either.
    """
    return (" " + word, word) if spaced else (word, " " + word)


def word_token(tokenizer: PreTrainedTokenizerBase, task: Task, word: str, spaced: bool) -> int | None:
    """Return the token of a word that is one token, else None; for ``Task.first_tokens``, its first token."""
    if task.first_tokens:
        first: int = tokenizer.encode(word, add_special_tokens=False)[0]
        return first
    for form in _spellings(word, spaced):
        ids: list[int] = tokenizer.encode(form, add_special_tokens=False)
        if form == word and len(ids) > 1 and not str(tokenizer.decode(ids[:1])).strip():
            ids = ids[1:]  # drop SentencePiece's separate space, as before Chinese words
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
    return None


def _not_one_token(
    tokenizer: PreTrainedTokenizerBase, task: Task, label: str, words: tuple[str, ...], spaced: bool
) -> str:
    """Return the message about a class without a usable word."""
    found = []
    for word in words:
        pieces = tokenizer.tokenize(_spellings(word, spaced)[0])
        unknown = tokenizer.unk_token in pieces
        what = "not in the vocabulary" if unknown else f"{len(pieces)} tokens ({', '.join(map(repr, pieces))})"
        found.append(f"{word!r} is {what}")
    return (
        f"class {label!r} of task {task.name!r} has no label word of one token for this tokenizer: "
        f"{'; '.join(found)}. Put a word of one token under `label_words` in a task file of your own (docs/tasks.md)."
    )
