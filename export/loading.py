"""Loading models, whole."""

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
"""Code that lies beside a model is never run, nor is the user asked whether it may."""


def load_config(source: str | Path) -> PreTrainedConfig:
    """Load a model's configuration, without its weights, from the hub or a folder.

    Raises:
        UsageError: if there is no such model.
    """
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(source, **NO_CODE)
    except Exception as error:  # over damaged files `transformers` raises whatever comes up
        raise UsageError(
            f"no model {str(source)!r}: it is neither a folder with a config.json nor a hub model that can be "
            f"reached ({reason(error)}). Give a folder, or check the id and the network."
        ) from error
    return config


def load_model(source: str | Path | PreTrainedModel, allow_pickle: bool = False) -> PreTrainedModel:
    """Load a model in fp32 from the hub or a folder; a loaded one is put into evaluation mode.

    Args:
        source: a hub id, a folder, or a model.
        allow_pickle: also take weights from pickle files, where there are no safetensors.

    Raises:
        UsageError: if there is no such model, its architecture is not supported, its files are damaged, or its
            checkpoint lacks weights that the answer needs.
    """
    model: Any = source if isinstance(source, PreTrainedModel) else _from_checkpoint(source, allow_pickle)
    family_of(model)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def reason(error: BaseException) -> str:
    """Return an error's type and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no more is known')}"


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
            f"the weights of {str(source)!r} cannot be loaded ({reason(error)}). They must be safetensors files, whole "
            "and made for its config.json; --allow_pickle also takes pytorch_model.bin, which only a source that you "
            "trust should make you do."
        ) from error
    if missing:
        raise UsageError(
            f"the checkpoint {str(source)!r} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]}, "
            "...), so its answers would be random. Take one that was saved with its language-model head (of ELECTRA "
            "the generator)."
        )
    return model


def _missing(info: dict[str, Any]) -> list[str]:
    """Return the weights that a model had to make up: those that its checkpoint lacks or has in another shape."""
    return sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
