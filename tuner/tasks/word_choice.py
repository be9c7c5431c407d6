"""Label words that a model's own answers to the training examples suggest.

Before anything is tuned the model says, for each training text, how likely every word of the vocabulary is where the
answer stands. Words that it finds likelier for one class than for others are added to the class's own. To choose by
likelihood ratio is from PETAL (Schick et al. 2020), to tune a prompt for such words from BBT-RGB (Sun et al. 2024).
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
"""Of the vocabulary, a class's words are sought among so many: those that are likeliest for its texts."""
CHOSEN = 3
"""Words that a class gets beside its own."""


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


def _ranked(logits: Tensor, labels: Tensor, label: int) -> list[int]:
    """Return the tokens that are likeliest for a class's texts and likelier than for any other's, the best first.

    A token is as good as its mean log-probability for the class's texts is above the mean over the other classes'.
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
    """Yield the words of those tokens that are whole words, and are found again by their spelling."""
    for token in tokens:
        word = str(tokenizer.decode([token])).strip()
        if word.isalpha() and word_token(tokenizer, task, word, spaced) == token:
            yield word
