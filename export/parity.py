"""The parity gate: an artifact is compared with PyTorch fp32 before it is used."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .errors import ParityError
from .examples import Examples
from .model import StagedModel
from .precision import Precision

POPULATION = 16
"""Candidates in the gate's population."""


@dataclass(frozen=True)
class Parity:
    """How one artifact's answers to a random population differ from the reference's."""

    max_logit_difference: float
    mean_loss_error: float
    """Mean absolute difference of the candidates' losses, in nats."""
    loss_spread: float
    """Standard deviation of the reference losses over the population, in nats."""
    spearman: float
    """Rank correlation of the losses: ranks are all that CMA-ES reads."""

    def require(self, precision: Precision, artifact: str) -> None:
        """Refuse an artifact that is not faithful enough to search with.

        Raises:
            ParityError: with the figures and the way out.
        """
        limit = precision.max_loss_error * self.loss_spread
        if self.spearman >= precision.min_spearman and self.mean_loss_error <= limit:
            return
        raise ParityError(
            f"{artifact} disagrees with PyTorch fp32 on a random population: largest logit difference "
            f"{self.max_logit_difference:.2e}, mean loss error {self.mean_loss_error:.2e} (at most {limit:.2e} for "
            f"{precision.name}), Spearman {self.spearman:.3f} (at least {precision.min_spearman}). It would mislead "
            "the search and is not used. Try --precision fp32 or --engine torch, and update the driver and the runtime."
        )

    @classmethod
    def from_dict(cls, figures: Any) -> Parity | None:
        """Return the figures that as_dict() gave, or None for anything else."""
        names = {f.name for f in fields(cls)}
        if not isinstance(figures, dict) or set(figures) != names:
            return None
        if not all(isinstance(value, float) for value in figures.values()):
            return None
        return cls(**figures)

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def compare(reference: Tensor, logits: Tensor, labels: Tensor) -> Parity:
    """Compare answers [P, N, C] with the reference's, on the cross-entropy of labels [N].

    A NaN or infinite answer compares as infinitely wrong.
    """
    reference, logits = reference.double().cpu(), logits.double().cpu()
    expected, found = _losses(reference, labels), _losses(logits, labels)
    if not bool(torch.isfinite(logits).all()):
        return Parity(float("inf"), float("inf"), float(expected.std()), 0.0)
    return Parity(
        float((reference - logits).abs().max()),
        float((expected - found).abs().mean()),
        float(expected.std()),
        spearman(expected, found),
    )


def spearman(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation of two vectors without ties."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def probe(staged: StagedModel, seed: int = 0) -> tuple[Examples, Tensor, Tensor]:
    """Make the gate's examples, labels [N] and prompts [P, L or 1, n, H], random but always the same.

    The texts are short, of three lengths; prompts have the scale of the word embeddings, as the search's first
    population has.
    """
    generator = torch.Generator().manual_seed(seed)
    placeholders = staged.n_prompt_tokens if staged.mode == "add" else 0
    lengths = torch.tensor([9, 12, 12, 15]) + placeholders
    vocabulary = staged.word_embeddings.shape[0]
    ids = torch.randint(vocabulary // 10, vocabulary, (len(lengths), int(lengths.max())), generator=generator)
    ids[:, : staged.family.prompt_start + placeholders] = ids[0, 0]  # as a search's examples, all texts begin alike
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    words = torch.randperm(vocabulary, generator=generator)[:3]
    position, decoder_ids = lengths - 3, None
    if staged.family.kind == "decoder":
        position = lengths - 1
    elif staged.family.kind == "seq2seq" and staged.family.decoder_inputs is None:
        position, decoder_ids = torch.ones_like(lengths), ids[:, :2]
    examples = Examples(ids, mask, position, words, decoder_ids)
    shape = (POPULATION, staged.n_stages, staged.n_prompt_tokens, staged.hidden_size)
    prompts = torch.randn(shape, generator=generator) * float(staged.word_embeddings.float().std())
    return examples, torch.arange(len(lengths)) % 3, prompts


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    population = logits.shape[0]
    flat = cross_entropy(logits.flatten(0, 1), labels.repeat(population), reduction="none")
    return flat.view(population, -1).mean(dim=1)
