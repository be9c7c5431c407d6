"""The start of a search: p0, and the prompts of earlier runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...export.errors import DataError, UsageError
from ..artifacts.folder import members
from ..artifacts.prompt import read_prompt
from ..input.options import Options


def initial_prompts(options: Options, engine: Any, tokenizer: Any) -> Tensor:
    """Return p0, [1 or L, n, H] float32: one for BBT, one per layer for BBTv2.

    Args:
        options: ``init_from`` or ``init_text`` selects p0; without them it is zero.
        engine: the engine that will take the prompts.
        tokenizer: turns ``init_text`` into tokens.

    Raises:
        DataError: if a file's prompts do not fit the model.
        UsageError: if the text has no tokens, or the model's embeddings are not as wide as a prompt.
    """
    layers = 1 if engine.cuts == "input" else engine.n_layers
    prompts = torch.zeros(layers, engine.n_prompt_tokens, engine.hidden_size)
    if options.init_from is not None:
        path = Path(options.init_from)
        found, about = read_prompt(path)
        _check_shape(path, found, prompts.shape, {1, layers}, about)
        prompts[: len(found)] = found
    elif options.init_text is not None:
        prompts[0] = _from_text(options.init_text, engine, tokenizer)
    return prompts


def earlier_prompts(options: Options, shape: torch.Size | None = None) -> list[Tensor]:
    """Return the prompts of the runs in ``projection_from``, each [1 or L, n, H].

    Args:
        options: without ``projection_from`` there are none.
        shape: the required shape, that of this run's p0; None for any.

    Raises:
        DataError: if a folder holds no prompt, or one of another shape.
        ArtifactError: if a prompt is damaged.
    """
    found = []
    for run in (run for folder in options.projection_from or () for run in members(Path(folder))):
        prompts, about = read_prompt(run)
        if shape is not None:
            _check_shape(run, prompts, shape, {shape[0]}, about)
        found.append(prompts)
    return found


def _check_shape(path: Path, prompts: Tensor, shape: torch.Size, layers: set[int], about: dict[str, Any]) -> None:
    if len(prompts) not in layers or prompts.shape[1:] != shape[1:]:
        model = f" (made for {about['model']})" if "model" in about else ""
        raise DataError(
            f"{path} holds prompts {list(prompts.shape)}{model}, but this run needs {list(shape)}: layers, prompt "
            "tokens, hidden size. Set --n_prompt_tokens and the model to those of that run."
        )


def _from_text(text: str, engine: Any, tokenizer: Any) -> Tensor:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError(f"init_text {text!r} has no tokens in this model's vocabulary.")
    if engine.embeddings.width != engine.hidden_size:
        raise UsageError(
            f"init_text cannot be used with this model: its embeddings are {engine.embeddings.width} wide and its "
            f"prompts {engine.hidden_size}. Use --init_from."
        )
    repeated = (ids * (engine.n_prompt_tokens // len(ids) + 1))[: engine.n_prompt_tokens]
    rows: Tensor = engine.embeddings.rows(repeated)
    return rows
