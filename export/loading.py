"""Load models from the hub or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from .errors import UsageError
from .families import Kind, family_of

AUTO_CLASSES: dict[Kind, str] = {
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "decoder": "AutoModelForCausalLM",
}


NO_CODE = {"trust_remote_code": False}
"""Never run a model's own code, and never ask the user for permission."""


def load_config(source: str | Path) -> PreTrainedConfig:
    """Load a model's configuration from the hub or a folder.

    Raises:
        UsageError: if there is no such model.
    """
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(source, **NO_CODE)
    except Exception as error:  # `transformers` raises many types for damaged files
        raise UsageError(
            f"no model {str(source)!r}: it is neither a folder with a config.json nor a hub model that can be "
            f"reached ({reason(error)}). Give a folder, or check the id and the network."
        ) from error
    return config


def load_model(source: str | Path | PreTrainedModel, allow_pickle: bool = False) -> PreTrainedModel:
    """Load a model from the hub or a folder, or take a loaded one; switch it to fp32 and to evaluation mode.

    Args:
        source: a hub id, a folder, or a model.
        allow_pickle: load pickle files if there are no safetensors files.

    Raises:
        UsageError: if the model does not exist, its architecture is not supported, its files are damaged, or weights
            are missing.
    """
    model: Any = source if isinstance(source, PreTrainedModel) else _from_checkpoint(source, allow_pickle)
    family_of(model)
    loaded: PreTrainedModel = model.float().eval().requires_grad_(False)
    return loaded


def reason(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no further information')}"


def _from_checkpoint(source: str | Path, allow_pickle: bool) -> Any:
    config = load_config(source)
    family = family_of(config)
    auto: Any = getattr(transformers, AUTO_CLASSES[family.kind])
    how = NO_CODE | {
        "use_safetensors": None if allow_pickle else True,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    try:
        model, info = auto.from_pretrained(source, **how)
        missing = _missing(info)
        if missing and family.otherwise is not None:
            model, info = family.otherwise(source, config, how)
            missing = _missing(info)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the weights of {str(source)!r} cannot be loaded ({reason(error)}). They must be complete safetensors "
            "files that match config.json. --allow_pickle also loads pytorch_model.bin; use it only for sources that "
            "you trust."
        ) from error
    if missing:
        raise UsageError(
            f"the checkpoint {str(source)!r} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]}, "
            "...), so its answers would be random. Use a checkpoint with a language-model head (for ELECTRA, the "
            "generator)."
        )
    return model


def _missing(info: dict[str, Any]) -> list[str]:
    """Return the weights that the checkpoint lacks or has in another shape."""
    return sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
