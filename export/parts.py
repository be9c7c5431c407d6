"""What single families do differently and a path cannot say; the rows of ``families.py`` point here."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import UsageError


class Gpt2Entrance(nn.Module):
    """GPT-2: position embeddings are added to token embeddings and prompt."""

    def __init__(self, model: Any) -> None:
        """Take the position embeddings."""
        super().__init__()
        self.positions = model.transformer.wpe

    def forward(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Return what enters the first layer for [B, S, H] at positions [1, S]."""
        out: Tensor = embedded + self.positions(positions)
        return out


class BartEntrance(nn.Module):
    """BART: position embeddings are added to token embeddings and prompt, then the sum is normalised."""

    def __init__(self, model: Any) -> None:
        """Take the encoder's position embeddings and LayerNorm."""
        super().__init__()
        self.positions = model.model.encoder.embed_positions
        self.norm = model.model.encoder.layernorm_embedding

    def forward(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Return what enters the first layer for [B, S, H] at positions [1, S]."""
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
    """Return DeBERTa's head: that of its authors' checkpoints, or the one `transformers` had at first (legacy)."""
    if model.legacy:
        return ("cls.predictions.transform",)
    return tuple(f"lm_predictions.lm_head.{part}" for part in ("dense", "transform_act_fn", "LayerNorm"))


def load_deberta_v3(source: Any, config: Any, how: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a DeBERTa with the head of its authors' checkpoints, whose configuration does not name it.

    Raises:
        UsageError: if this version of `transformers` cannot.
    """
    config.legacy = False
    auto: Any = transformers.AutoModelForMaskedLM
    try:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = auto.from_pretrained(source, config=config, **how)
    except AttributeError as error:  # its tied weights, before 5.20
        raise UsageError(
            f"transformers {transformers.__version__} cannot load the head of this DeBERTa ({error}); version 5.20 "
            "can: `pip install -U transformers`."
        ) from error
    return loaded


def label_rows(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the output embeddings' rows and biases."""
    output = model.get_output_embeddings()
    bias = getattr(output, "bias", None)
    return output.weight[ids], None if bias is None else bias[ids]


def bart_label_rows(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return BART's rows, and its biases, which stand apart."""
    return model.lm_head.weight[ids], model.final_logits_bias[0, ids]


def t5_label_rows(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return T5's rows, scaled as it scales its decoder's output where they are its word embeddings too."""
    scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
    return model.lm_head.weight[ids] * scale, None


def deberta_label_rows(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return DeBERTa's rows: its word embeddings, with the head's biases."""
    if model.legacy:
        return label_rows(model, ids)
    return model.deberta.embeddings.word_embeddings.weight[ids], model.lm_predictions.lm_head.bias[ids]


def shifted_right(model: Any, ids: Tensor) -> Tensor:
    """Return BART's decoder tokens: the text's, one position later."""
    shifted: Tensor = model.prepare_decoder_input_ids_from_labels(labels=ids)
    return shifted
