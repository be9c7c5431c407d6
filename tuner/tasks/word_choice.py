"""Label words chosen (``--label_words auto``) and calibrated by the model's answers to the training examples.

Before tuning, the model scores every word of the vocabulary as the answer to each training text. Words with a higher
probability for one class than for any other join the words of that class. The choice by likelihood ratio is from PETAL
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

LIKELY = 1000
"""Number of candidates: the tokens with the highest probability for the texts of any class."""
CHOSEN = 3
"""Words that a class gets besides its own."""
STEADY = 0.3
"""Added to the standard deviation in the denominator of a score, so that a token does not win because its
log-probability happens to be the same for 16 texts (s0 in Tusher et al. 2001)."""


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


def calibration(logits: Tensor, labels: Tensor) -> list[float]:
    """Return biases that make all label words equally likely over the training texts, [W].

    A model finds some words more likely than others, whatever the text is. A word's bias is minus the mean of its
    logit, over the classes' means. Zhao et al. 2021 calibrate classes on a text without content; the training texts
    have the content of the task. Biases are rounded to hundredths, so that a resumed run gets the same ones.

    Args:
        logits: of the label words, [N, W], before tuning.
        labels: the classes, [N]; each must occur.
    """
    return [round(-mean, 2) for mean in _class_means(logits, labels).mean(dim=0).tolist()]


def _class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Return the means over each class's texts, [C, W], of values [N, W]."""
    return torch.stack([values[labels == c].mean(dim=0) for c in range(int(labels.max()) + 1)])


def _ranked(logits: Tensor, labels: Tensor, label: int) -> list[int]:
    """Return the likely tokens that have a higher mean log-probability for a class than for any other, best first.

    A token's score is the distance between the means of this class and of the nearest other one, in standard deviations
    within a class.
    """
    logs = logits.log_softmax(dim=1)
    means = _class_means(logs, labels)
    spread = _class_means((logs - means[labels]).square(), labels).sqrt().mean(dim=0)
    nearest = torch.cat([means[:label], means[label + 1 :]]).amax(dim=0)
    scores = (means[label] - nearest) / (spread + STEADY)
    likely = means.amax(dim=0).topk(min(LIKELY, means.shape[1])).indices.sort().values
    ahead = likely[scores[likely] > 0]
    ranked: list[int] = ahead[scores[ahead].argsort(descending=True, stable=True)].tolist()
    return ranked


def _words(tokenizer: PreTrainedTokenizerBase, task: Task, tokens: Iterable[int], spaced: bool) -> Iterator[str]:
    """Yield the words of those tokens that are whole words and whose spelling encodes back to the token."""
    for token in tokens:
        word = str(tokenizer.decode([token])).strip()
        if word.isalpha() and word_token(tokenizer, task, word, spaced) == token:
            yield word
