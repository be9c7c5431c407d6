"""``--label_words auto``: label words chosen by the model's answers to the training examples.

Before tuning, the model scores every word of the vocabulary as the answer to each training text. Words with a higher
probability for one class than for the others join the words of that class. The choice by likelihood ratio is from PETAL
(Schick et al. 2020), the tuning with such words from BBT-RGB (Sun et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...export.families import Kind
from .label_words import follows_space, label_word_ids, word_token
from .task import Task

LIKELY = 100
"""Number of candidates per class: the tokens with the highest probability for its texts."""
CHOSEN = 3
"""Words that a class gets besides its own."""


def with_chosen_words(
    task: Task, kind: Kind, tokenizer: PreTrainedTokenizerBase, logits: Tensor, labels: Tensor
) -> Task:
    """Return a task whose classes also have words chosen for a model, and use all of them.

    Args:
        task: the task.
        kind: the model's kind.
        tokenizer: the model's.
        logits: of the whole vocabulary, [N, V], before tuning.
        labels: the classes, [N]; each must occur.
    """
    together = replace(task, use_words="all")
    taken = {token for tokens in label_word_ids(tokenizer, together, kind) for token in tokens}
    spaced = follows_space(task, kind)
    words = []
    for label, own in enumerate(task.words(kind)):
        ranked = [token for token in _ranked(logits, labels, label) if token not in taken]
        words.append((*own, *islice(_words(tokenizer, task, ranked, spaced), CHOSEN)))
    return replace(together, label_words={**task.label_words, kind: tuple(words)})


def _ranked(logits: Tensor, labels: Tensor, label: int) -> list[int]:
    """Return a class's likely tokens that no other class makes likelier, best first.

    The rank is the mean log-probability for the class's texts minus the mean over the other classes.
    """
    logs = logits.log_softmax(dim=1)
    means = torch.stack([logs[labels == c].mean(dim=0) for c in range(int(labels.max()) + 1)])
    likely = means[label].topk(min(LIKELY, means.shape[1])).indices
    ahead = likely[means[:, likely].argmax(dim=0) == label]
    others = (means.sum(dim=0) - means[label]) / (len(means) - 1)
    order = (means[label] - others)[ahead].argsort(descending=True, stable=True)
    ranked: list[int] = ahead[order].tolist()
    return ranked


def _words(tokenizer: PreTrainedTokenizerBase, task: Task, tokens: Iterable[int], spaced: bool) -> Iterator[str]:
    """Yield the words of those tokens that are whole words and whose spelling encodes back to the token."""
    for token in tokens:
        word = str(tokenizer.decode([token])).strip()
        if word.isalpha() and word_token(tokenizer, task, word, spaced) == token:
            yield word
