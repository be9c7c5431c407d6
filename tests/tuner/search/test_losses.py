"""The losses and metrics, against plain loops over one example at a time."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from bbt_fast.tuner.input.options import LossType
from bbt_fast.tuner.search.losses import LOSSES
from bbt_fast.tuner.search.metrics import METRICS, accuracy, f1


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


def ce(row: list[float], label: int) -> float:
    return math.log(sum(math.exp(value) for value in row)) - row[label]


def hinge(row: list[float], label: int) -> float:
    return sum(max(0.0, 2.0 + value - row[label]) for i, value in enumerate(row) if i != label)


def ce_smooth(row: list[float], label: int) -> float:
    """Cross entropy with label smoothing."""
    return 0.9 * ce(row, label) + 0.1 * sum(ce(row, i) for i in range(3)) / 3


def ce_entropy(row: list[float], label: int) -> float:
    """Cross entropy with a confidence penalty."""
    return ce(row, label) - 0.3 * sum(math.exp(-ce(row, i)) * ce(row, i) for i in range(3))


PLAIN = {"ce": ce, "hinge": hinge, "ce-smooth": ce_smooth, "ce-entropy": ce_entropy}


@pytest.mark.parametrize(("name", "one"), PLAIN.items())
def test_a_loss_is_the_mean_over_the_examples(name, one, logits):
    expected = [sum(one(r, int(c)) for r, c in zip(p, LABELS, strict=True)) / 6 for p in logits.tolist()]
    assert LOSSES[name](logits, LABELS, accuracy).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_perf_loss_is_minus_the_metric(logits):
    assert torch.equal(LOSSES["perf"](logits, LABELS, accuracy), -accuracy(logits, LABELS))


@pytest.mark.parametrize("name", LOSSES)
def test_a_candidates_loss_does_not_depend_on_its_neighbours(name, logits):
    together = LOSSES[name](logits, LABELS, accuracy)
    assert together.shape == (4,)
    alone = torch.cat([LOSSES[name](row[None], LABELS, accuracy) for row in logits])
    assert torch.allclose(together, alone, atol=1e-6)


def test_every_loss_has_a_plain_twin_and_is_an_option():
    assert set(LOSSES) == {*PLAIN, "perf"} == set(get_args(LossType))


@pytest.mark.parametrize("name", ["ce-smooth", "ce-entropy"])
def test_a_regularised_loss_has_its_bottom_where_an_answer_is_sure_but_not_too_sure(name):
    logits = torch.stack([torch.tensor([[gap, 0.0]]) for gap in (0.0, 3.0, 12.0)])
    losses = LOSSES[name](logits, torch.tensor([0]), accuracy).tolist()
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]
    assert LOSSES["ce"](logits, torch.tensor([0]), accuracy).tolist()[2] < 1e-4


def test_hinge_is_zero_once_every_wrong_label_is_two_below():
    logits = torch.tensor([[[3.0, 1.0, 0.5]], [[3.0, 1.5, 0.5]]])
    assert LOSSES["hinge"](logits, torch.tensor([0]), accuracy).tolist() == pytest.approx([0.0, 0.5])


def test_accuracy_counts_the_highest_logit(logits):
    expected = [(p.argmax(1) == LABELS).sum().item() / 6 for p in logits]
    assert accuracy(logits, LABELS).tolist() == pytest.approx(expected)


def two_classes(*predictions: list[int]) -> Tensor:
    """Logits of predictions between two classes."""
    return torch.nn.functional.one_hot(torch.tensor(predictions), 2).float()


def test_f1_scores_class_one():
    labels = torch.tensor([1, 1, 1, 0])
    found = f1(two_classes([1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]), labels)
    # precision 2/3 and recall 2/3; precision 3/4 and recall 1; nothing found
    assert found.tolist() == pytest.approx([2 / 3, 6 / 7, 0.0])


def test_f1_is_zero_where_class_one_never_occurs():
    assert f1(two_classes([0, 0]), torch.tensor([0, 0])).tolist() == [0.0]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_scores_a_population_at_once(name, logits):
    found = METRICS[name](logits[..., :2], LABELS % 2)
    assert found.shape == (4,)
    assert found.dtype is torch.float64
    assert bool(((found >= 0) & (found <= 1)).all())
