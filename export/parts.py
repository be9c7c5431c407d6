"""Code for single families that a row of ``families.py`` refers to."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import UsageError


class Gpt2Entrance(nn.Module):
    """GPT-2: adds position embeddings to the token embeddings and the prompt."""

    def __init__(self, model: Any) -> None:
        """Take the position embeddings."""
        super().__init__()
        self.positions = model.transformer.wpe

    def forward(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Return the first layer's input for [B, S, H] at positions [1, S]."""
        out: Tensor = embedded + self.positions(positions)
        return out


class BartEntrance(nn.Module):
    """BART: adds position embeddings to the token embeddings and the prompt, then normalizes."""

    def __init__(self, model: Any) -> None:
        """Take the encoder's position embeddings and LayerNorm."""
        super().__init__()
        self.positions = model.model.encoder.embed_positions
        self.norm = model.model.encoder.layernorm_embedding

    def forward(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Return the first layer's input for [B, S, H] at positions [1, S]."""
        out: Tensor = self.norm(embedded + self.positions(positions, position_ids=positions[0]))
        return out


def albert_layers(model: Any) -> list[str]:
    """Return the paths of ALBERT's layers, which share their weights within a group."""
    config = model.config
    return [
        f"albert.encoder.albert_layer_groups.{i * config.num_hidden_groups // config.num_hidden_layers}"
        f".albert_layers.{inner}"
        for i in range(config.num_hidden_layers)
        for inner in range(config.inner_group_num)
    ]


def deberta_head(model: Any) -> tuple[str, ...]:
    """Return DeBERTa's head: that of the authors' checkpoints, or the legacy head of `transformers`."""
    if model.legacy:
        return ("cls.predictions.transform",)
    return tuple(f"lm_predictions.lm_head.{part}" for part in ("dense", "transform_act_fn", "LayerNorm"))


def load_deberta_v3(source: Any, config: Any, how: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a DeBERTa with the head of the authors' checkpoints, which their configuration does not mention.

    Raises:
        UsageError: if this version of `transformers` cannot load that head.
    """
    config.legacy = False
    auto: Any = transformers.AutoModelForMaskedLM
    try:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = auto.from_pretrained(source, config=config, **how)
    except AttributeError as error:  # tied weights, before 5.20
        raise UsageError(
            f"transformers {transformers.__version__} cannot load the head of this DeBERTa ({error}). It needs version "
            "5.20 or later: `pip install -U transformers`."
        ) from error
    return loaded


def label_rows(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the output embeddings' rows and biases."""
    output = model.get_output_embeddings()
    bias = getattr(output, "bias", None)
    return output.weight[ids], None if bias is None else bias[ids]


def bart_label_rows(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return BART's rows and its separate biases."""
    return model.lm_head.weight[ids], model.final_logits_bias[0, ids]


def t5_label_rows(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return T5's rows; if T5 scales the decoder's output, the rows are scaled instead."""
    scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
    return model.lm_head.weight[ids] * scale, None


def deberta_label_rows(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return DeBERTa's word embeddings as rows, and the head's biases."""
    if model.legacy:
        return label_rows(model, ids)
    return model.deberta.embeddings.word_embeddings.weight[ids], model.lm_predictions.lm_head.bias[ids]


def shifted_right(model: Any, ids: Tensor) -> Tensor:
    """Return BART's decoder tokens: the text, shifted right by one position."""
    shifted: Tensor = model.prepare_decoder_input_ids_from_labels(labels=ids)
    return shifted
