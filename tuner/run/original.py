"""The projections as a process of the original implementation draws them, for ``--streams original``.

There the matrix A comes from PyTorch's one generator, after the model: its layers were born with random values, and
given random values again, before the checkpoint's were loaded. In BBTv2 each layer's is scaled by the hidden states of
the padded batch, at the very first evaluation, which has the first candidate's prompt in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...engine.embeddings import clipped_spread
from ...engine.reference import ModuleRunner
from ...export.errors import UsageError
from ...export.examples import Examples
from ...export.model import StagedModel
from ..input.options import Options
from ..search.generation import Array
from ..search.projection import Projection, normal_scale

DRAWN = (nn.Linear, nn.Embedding, Conv1D)
"""The layers that are born with random values."""
BLOCK = 16
"""PyTorch draws normal numbers in blocks of so many, and the last block whole again where it is not full."""
CHUNK = 2**22
FURTHER: dict[str, Callable[[Any], int]] = {
    "bert": lambda model: 0,
    "gpt2": lambda model: 0,
    "roberta": lambda model: _normal(model.base_model.embeddings.position_embeddings),
    "electra": lambda model: int(model.config.vocab_size),
}
"""By model type, random numbers of its birth that today's model does not have: RoBERTa's positions are born twice, and
ELECTRA's head with a bias."""


def projections(
    model: Any, options: Options, examples: Examples, origins: Tensor, spread: float, first: Array, device: torch.device
) -> list[Projection]:
    """Draw the projection of every layer.

    Args:
        model: the frozen model, in fp32.
        options: resolved.
        examples: the training examples.
        origins: p0, [1 or L, n, H].
        spread: of the word embeddings.
        first: the first candidate, [d].
        device: where the matrices shall live.

    Raises:
        UsageError: if it is not known what the original draws for this model.
    """
    assert options.alpha is not None
    assert options.sigma is not None
    dim, normal = options.intrinsic_dim, options.random_proj == "normal"
    generator = born(model, options.seed)
    shape = (origins[0].numel(), dim)
    matrices = [nn.init.kaiming_uniform_(torch.empty(shape), math.sqrt(5), generator=generator) for _ in origins]
    if normal:
        scale = normal_scale(spread, dim, options.alpha, options.sigma)
        matrices[0].normal_(0.0, scale, generator=generator)
        prompt = Projection(matrices[0], origins[0].cpu().float())(first[None])[0]
        spreads = batch_spreads(model, options, examples, prompt) if len(origins) > 1 else []
        for matrix, its in zip(matrices[1:], spreads, strict=True):
            matrix.normal_(0.0, normal_scale(its, dim, options.alpha, options.sigma), generator=generator)
    return [
        Projection(matrix.to(device), origin.to(device, torch.float32))
        for matrix, origin in zip(matrices, origins, strict=True)
    ]


def born(model: Any, seed: int) -> torch.Generator:
    """Return PyTorch's generator as it is once the original has made its model.

    Raises:
        UsageError: if that is not known for this kind of model.
    """
    kind = model.config.model_type
    if kind not in FURTHER:
        raise UsageError(
            f"streams original knows how the original draws for {', '.join(FURTHER)}, and this model is of type "
            f"{kind}. Give --streams own, which draws other numbers of the same distribution."
        )
    generator = torch.Generator().manual_seed(seed)
    left = draws(model) + FURTHER[kind](model)
    while left:
        part = min(left, CHUNK)
        torch.empty(part).uniform_(generator=generator)
        left -= part
    return generator


def draws(model: Any) -> int:
    """Return how many random numbers the birth of a model takes.

    Each layer is born with random values; then all within the model's head are drawn again, once for the encoder and
    once for the whole.
    """
    head = model.get_output_embeddings()
    every, inner = (
        [layer for layer in part.modules() if isinstance(layer, DRAWN)] for part in (model, model.base_model)
    )
    biases = sum(
        layer.bias.numel()
        for layer in every
        if isinstance(layer, nn.Linear) and layer is not head and layer.bias is not None
    )
    uniform = sum(layer.weight.numel() for layer in every if isinstance(layer, nn.Linear))
    others = sum(_normal(layer) for layer in every if not isinstance(layer, nn.Linear))
    return uniform + biases + others + sum(map(_normal, every)) + sum(map(_normal, inner))


def _normal(layer: Any) -> int:
    """Return how many random numbers a layer's normal weights take."""
    size = layer.weight.numel()
    return int(size + (BLOCK if size % BLOCK else 0))


@torch.no_grad()
def batch_spreads(model: Any, options: Options, examples: Examples, prompt: Tensor) -> list[float]:
    """Return how far the values spread that enter the layers 1 to L - 1, padding counted, with a prompt at layer 0.

    Args:
        model: the frozen model.
        options: of the run.
        examples: the training examples, padded to the longest.
        prompt: [n, H].
    """
    staged = StagedModel(model, options.cat_or_add, options.n_prompt_tokens, "layers")
    encoded = staged.encode(examples.to(model.device))
    runner, hidden = ModuleRunner(encoded.stages), encoded.hidden
    found = []
    given = prompt[None].to(model.device)
    for layer in range(staged.n_stages - 1):
        hidden = runner(layer, hidden, given, encoded.tensors)
        given = torch.zeros_like(given)
        found.append(clipped_spread(hidden))
    return found
