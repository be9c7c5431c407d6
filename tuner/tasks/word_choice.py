"""What a model's answers to the training texts, before tuning, say about label words: better ones, and their bias.

Before tuning, the model gives the probability of every word of the vocabulary at the answer's place of each training
text. Words that are likelier for the texts of one class than for those of any other are added to the class's own. To
choose words by their likelihood ratio is from PETAL (Schick et al. 2020), to tune a prompt for such words from BBT-RGB
(Sun et al. 2024).
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
"""The words are chosen among so many of the vocabulary: those that are likeliest for any class's texts."""
CHOSEN = 3
"""Words that a class gets beside its own."""
STEADY = 0.3
"""Added to the standard deviation that a difference is divided by, so that a word whose log-probability happens to be
the same for 16 texts does not win for that reason (as s0 in Tusher et al. 2001)."""


def with_chosen_words(
    task: Task, kind: Kind, tokenizer: PreTrainedTokenizerBase, logits: Tensor, labels: Tensor
) -> Task:
    """Return a task whose classes have words that suit a model beside their own, and use them all.

    Args:
        task: the task.
        kind: the model's kind.
        tokenizer: the model's.
        logits: of the whole vocabulary, [N, V], before tuning.
        labels: the classes, [N]; each occurs.
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
    """Return what makes each label word as likely as any other over the training texts: its bias, [W].

    A model finds some words likelier than others whatever the text is. The bias of a word is minus the mean of its
    logit, in which every class counts alike. Zhao et al. 2021 calibrate classes on a text without content; the training
    texts have the content of the task. Rounded to hundredths, so that a resumed run finds the same.

    Args:
        logits: of the label words, [N, W], before tuning.
        labels: the classes, [N]; each occurs.
    """
    return [round(-mean, 2) for mean in _class_means(logits, labels).mean(dim=0).tolist()]


def _class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over each class's texts, [C, W], of values [N, W]."""
    return torch.stack([values[labels == c].mean(dim=0) for c in range(int(labels.max()) + 1)])


def _ranked(logits: Tensor, labels: Tensor, label: int) -> list[int]:
    """Return the likely tokens that are likelier for a class's texts than for any other's, the best first.

    A token's score is the distance of its mean log-probability for the class's texts from that for the nearest other
    class's, in standard deviations within a class.
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
    """Yield the words of those tokens that are whole words, and are found again by their spelling."""
    for token in tokens:
        word = str(tokenizer.decode([token])).strip()
        if word.isalpha() and word_token(tokenizer, task, word, spaced) == token:
            yield word
