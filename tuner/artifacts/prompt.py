"""prompt.safetensors: a tuned prompt, [1 or L, n, H] float32, with a description in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...export.errors import ArtifactError, DataError
from .files import CHECKSUM, digest, write_whole
from .pickled_prompt import SUFFIXES, read_pickled

KEY = "prompt"
METADATA = "bbt_fast"
SHAPES = "[n, H] or [L, n, H]"
FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes that a prompt file may have, by their names in the safetensors format."""


def save_prompt(path: Path, prompts: Tensor, about: dict[str, Any]) -> None:
    """Write prompts [1 or L, n, H] and their description; equal contents give equal bytes.

    Raises:
        ArtifactError: if the file cannot be written.
    """
    prompts = prompts.detach().cpu().float().contiguous()
    # A single entry, since safetensors does not keep the order of several.
    header = {METADATA: json.dumps({**about, CHECKSUM: _digest(prompts, about)}, sort_keys=True)}
    write_whole(path, save({KEY: prompts}, metadata=header))


def read_prompt(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the prompts [1 or L, n, H] of a run's folder or a safetensors file, and their description.

    A file of another program may hold one tensor under any name, [n, H] or [L, n, H]; its description is empty. So is
    that of a pickled prompt (see ``read_pickled``).

    Raises:
        DataError: if the file does not exist or holds no prompt.
        ArtifactError: if it is damaged.
    """
    if path.is_dir():
        path = path / "prompt.safetensors"
    if not path.exists():
        raise DataError(f"there is no prompt in {path}: give the folder of a run or a safetensors file.")
    if path.suffix in SUFFIXES:
        return _checked(path, read_pickled(path)), {}
    try:
        with safe_open(path, framework="pt") as file:
            name = _only_prompt(path, file)
            prompts = file.get_tensor(name).float()
            about = dict(json.loads((file.metadata() or {}).get(METADATA, "{}")))
    except DataError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file: {error}.") from error
    if about and (name != KEY or about.pop(CHECKSUM, None) != _digest(prompts, about)):
        raise ArtifactError(f"{path} is damaged: its checksum does not match its contents.")
    return _checked(path, prompts), about


def _checked(path: Path, prompts: Tensor) -> Tensor:
    """Return prompts [n, H] or [L, n, H] as [1 or L, n, H]; refuse NaN and infinity."""
    if not bool(torch.isfinite(prompts).all()):
        raise DataError(f"{path} holds NaN or infinite values.")
    return prompts.reshape(-1, *prompts.shape[-2:])


def _only_prompt(path: Path, file: Any) -> str:
    """Return the name of a file's prompt, after a check of the header, before any tensor is loaded."""
    names = list(file.keys())
    name = KEY if KEY in names else names[0] if len(names) == 1 else None
    if name is None:
        raise DataError(f"{path} holds tensors {', '.join(names)}, but a prompt is one float tensor {SHAPES}.")
    part = file.get_slice(name)
    shape, kind = list(part.get_shape()), part.get_dtype()
    if len(shape) not in (2, 3) or 0 in shape or kind not in FLOATS:
        raise DataError(f"{path} holds a {kind} tensor {shape}, but a prompt is one float tensor {SHAPES}.")
    return name


def _digest(prompts: Tensor, about: dict[str, Any]) -> str:
    values = prompts.contiguous().numpy().tobytes()
    return digest(values, json.dumps([list(prompts.shape), about], sort_keys=True).encode())
