"""``--streams original``: the projections as the original implementation draws them.

There PyTorch's global generator draws the matrix A after the model, whose layers it has initialized twice before the
checkpoint is loaded. In BBTv2 the scale of each layer's A comes from the hidden states of the padded batch in the first
evaluation, with the first candidate's prompt in it.
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
"""The layers that PyTorch initializes with random values."""
BLOCK = 16
"""PyTorch draws normal numbers in blocks of this size, and redraws a whole last block if it is not full."""
CHUNK = 2**22
FURTHER: dict[str, Callable[[Any], int]] = {
    "bert": lambda model: 0,
    "gpt2": lambda model: 0,
    "roberta": lambda model: _normal(model.base_model.embeddings.position_embeddings),
    "electra": lambda model: int(model.config.vocab_size),
}
"""By model type, random numbers that the original draws besides ours: it initializes RoBERTa's positions twice, and
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
        device: the device of the matrices.

    Raises:
        UsageError: if the draws of the original are unknown for this model.
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
    """Return PyTorch's generator in its state after the original has initialized its model.

    Raises:
        UsageError: if that state is unknown for this type of model.
    """
    kind = model.config.model_type
    if kind not in FURTHER:
        raise UsageError(
            f"streams is original, which supports {', '.join(FURTHER)}, but this model is of type {kind}. Give "
            "--streams own, which draws other numbers of the same distribution."
        )
    generator = torch.Generator().manual_seed(seed)
    left = draws(model) + FURTHER[kind](model)
    while left:
        part = min(left, CHUNK)
        torch.empty(part).uniform_(generator=generator)
        left -= part
    return generator


def draws(model: Any) -> int:
    """Return how many random numbers the initialization of a model takes.

    PyTorch initializes each layer; then `transformers` draws all layers again, once for the encoder and once for the
    whole model.
    """
    head = model.get_output_embeddings()
    every, inner = (
        [layer for layer in part.modules() if isinstance(layer, DRAWN)] for part in (model, model.base_model)
    )
    total = sum(map(_normal, every)) + sum(map(_normal, inner))
    for layer in every:
        if isinstance(layer, nn.Linear):
            total += layer.weight.numel()
            total += layer.bias.numel() if layer is not head and layer.bias is not None else 0
        else:
            total += _normal(layer)
    return total


def _normal(layer: Any) -> int:
    """Return how many random numbers a layer's normal weights take."""
    size = layer.weight.numel()
    return int(size + (BLOCK if size % BLOCK else 0))


@torch.no_grad()
def batch_spreads(model: Any, options: Options, examples: Examples, prompt: Tensor) -> list[float]:
    """Return the spread of the values that enter the layers 1 to L - 1, padding included, with a prompt at layer 0.

    Args:
        model: the frozen model.
        options: the run's.
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
