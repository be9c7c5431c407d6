"""The parity gate: compare an artifact with PyTorch fp32 before it is used."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .errors import ParityError
from .examples import Examples
from .model import StagedModel
from .precision import Precision

POPULATION = 16
"""Candidates in the gate's population."""
WORDS = 8
"""Label words of the gate's texts."""
ROUNDING = torch.finfo(torch.float32).eps
"""The rounding error of a loss in fp32, in nats."""
LEAST_SPREAD = 0.02
"""The spread of losses, in nats, below which rounding may decide their ranks. With prompts at the scale of the word
embeddings, losses of a small trained model spread by 0.025, those of an untrained large model by a tenth of that."""
LEAST_ORDER = 0.5
"""The rank correlation, at the scale of the word embeddings, below which wider prompts are no excuse: a search starts
at that scale."""

logger = logging.getLogger(__name__)

Answer = Callable[[Tensor], Tensor]
"""Maps prompts [P, L or 1, n, H] to logits [P, N, C]."""


@dataclass(frozen=True)
class Parity:
    """The differences between an artifact's answers to a random population and the reference's."""

    max_logit_difference: float
    mean_loss_error: float
    """Mean absolute difference of a loss, in nats."""
    loss_spread: float
    """Standard deviation of the reference's losses over the population, in nats."""
    spearman: float
    """Rank correlation of the losses over the population; CMA-ES reads only ranks."""

    def require(self, precision: Precision, artifact: str) -> None:
        """Check that an artifact is accurate enough for a search.

        Raises:
            ParityError: if it is not.
        """
        if self.suits(precision):
            return
        limit = self._limit(precision)
        other = "" if precision.name == "fp32" else "--precision fp32 or "
        raise ParityError(
            f"{artifact} disagrees with PyTorch fp32 on a random population: largest logit difference "
            f"{self.max_logit_difference:.2e}, mean loss error {self.mean_loss_error:.2e} (at most {limit:.2e} for "
            f"{precision.name}, as losses spread by {self.loss_spread:.2e}), Spearman {self.spearman:.3f} (at least "
            f"{precision.min_spearman}). It would mislead the search and is not used. Try {other}--engine torch, and "
            "update the driver and the runtime."
        )

    def suits(self, precision: Precision) -> bool:
        """Return whether the figures meet the thresholds of a precision."""
        return self.spearman >= precision.min_spearman and self.mean_loss_error <= self._limit(precision)

    def _limit(self, precision: Precision) -> float:
        return max(precision.max_loss_error * self.loss_spread, ROUNDING)

    @classmethod
    def from_dict(cls, figures: Any) -> Parity | None:
        """Return the figures of an as_dict(), or None for any other value."""
        names = {f.name for f in fields(cls)}
        if not isinstance(figures, dict) or set(figures) != names:
            return None
        if not all(isinstance(value, float) for value in figures.values()):
            return None
        return cls(**figures)

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def compare(reference: Tensor, logits: Tensor) -> Parity:
    """Compare logits [P, N, C] with the reference's by the loss of each text for each label word.

    Losses are not averaged over texts: the rank correlation of one value per candidate would be too noisy.
    """
    reference, logits = reference.double().cpu(), logits.double().cpu()
    return compare_losses(_losses(reference), _losses(logits), float((reference - logits).abs().max()))


def compare_losses(expected: Tensor, found: Tensor, max_logit_difference: float) -> Parity:
    """Compare losses [P, M], M per candidate, with the reference's.

    A search compares candidates with each other, so spread and ranks are computed after subtracting each column's mean.
    A NaN or infinite loss gives an infinite error.
    """
    varying = _varying(expected)
    if not bool(torch.isfinite(found).all()):
        return Parity(float("inf"), float("inf"), float(varying.std()), 0.0)
    return Parity(
        max_logit_difference,
        float((expected - found).abs().mean()),
        float(varying.std()),
        spearman(varying.flatten(), _varying(found).flatten()),
    )


def _losses(logits: Tensor) -> Tensor:
    """Return the loss of each text for each label word: logits [P, N, C] -> [P, N * C]."""
    return -logits.double().cpu().log_softmax(dim=2).flatten(1)


def _varying(losses: Tensor) -> Tensor:
    """Subtract the columns' means from losses [P, M]."""
    return losses - losses.mean(dim=0)


def judge(
    prompts: Tensor, widest: float, precision: Precision, reference: Answer, found: Answer, rounded: Answer
) -> Parity:
    """Compare an artifact with the reference; measure again on wider prompts if these hardly change the losses.

    If losses differ by less than the precision resolves, their ranks are random although the artifact is correct. Then
    the comparison is repeated with wider prompts, up to the scale of the hidden states that they join. Wider prompts
    would hide an error that all candidates share, so the error must also be comparable to PyTorch's own error in this
    precision, on the same prompts.

    Args:
        prompts: [P, L or 1, n, H], at the scale of the word embeddings.
        widest: the largest factor by which prompts may be scaled.
        precision: the precision.
        reference: PyTorch in fp32.
        found: the artifact.
        rounded: PyTorch in this precision.
    """
    parity = compare(reference(prompts), found(prompts))
    if parity.suits(precision) or parity.loss_spread >= LEAST_SPREAD or parity.spearman < LEAST_ORDER:
        return parity
    scale, spread = 1.0, parity.loss_spread
    while spread < LEAST_SPREAD and scale < widest:
        scale = min(widest, scale * max(2.0, LEAST_SPREAD / max(spread, ROUNDING)))
        expected = reference(prompts * scale)
        spread = float(_varying(_losses(expected)).std())
    if scale == 1:
        return parity
    wide = compare(expected, found(prompts * scale))
    rounding = compare(expected, rounded(prompts * scale)).mean_loss_error
    limit = max(precision.max_rounding * rounding, ROUNDING)
    if not wide.suits(precision) or not wide.mean_loss_error <= limit < math.inf:
        return parity
    logger.warning(
        "prompts at the scale of the word embeddings hardly change this model's losses (by %.1e, Spearman %.3f): the "
        "parity gate uses prompts %.0f times as wide, and the first ranks of a search in %s may be random",
        parity.loss_spread, parity.spearman, scale, precision.name,
    )  # fmt: skip
    return wide


def spearman(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation of two vectors without ties."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def probe_examples(staged: StagedModel) -> Examples:
    """Return the gate's texts and label words, random with a fixed seed.

    The texts are short and have three lengths. Several have the shortest, so that its bucket has enough to compare.
    """
    generator = torch.Generator().manual_seed(0)
    placeholders = staged.n_prompt_tokens if staged.mode == "add" else 0
    lengths = torch.tensor([9, 9, 9, 9, 12, 15]) + placeholders
    vocabulary = staged.word_embeddings.shape[0]
    ids = torch.randint(vocabulary // 10, vocabulary, (len(lengths), int(lengths.max())), generator=generator)
    ids[:, : staged.family.prompt_start + placeholders] = ids[0, 0]  # all texts begin alike, as in a search
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    words = torch.randperm(vocabulary, generator=generator)[:WORDS]
    return asked(staged, ids, mask, lengths - (1 if staged.family.kind == "decoder" else 3), words)


def asked(staged: StagedModel, ids: Tensor, mask: Tensor, position: Tensor, words: Tensor) -> Examples:
    """Return random texts as examples; an encoder-decoder model without a rule for it begins its answer with them."""
    if staged.family.kind != "seq2seq" or staged.family.decoder_inputs is not None:
        return Examples(ids, mask, position, words)
    return Examples(ids, mask, torch.ones_like(position), words, ids[:, :2])


def probe_prompts(staged: StagedModel) -> Tensor:
    """Return the gate's prompts [P, L or 1, n, H], random with a fixed seed, at the scale of the word embeddings."""
    shape = (POPULATION, staged.n_stages, staged.n_prompt_tokens, staged.hidden_size)
    spread = float(staged.word_embeddings.float().std())
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * spread
