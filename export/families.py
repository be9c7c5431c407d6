"""The model families, one row each: what differs between architectures.

Everything else is recorded from the unmodified `transformers` model (see ``recording.py`` and ``stages.py``).
docs/adding-a-model.md explains a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from .cpt import CPT, load_cpt
from .errors import UsageError
from .parts import (
    BartEntrance,
    Gpt2Entrance,
    albert_layers,
    bart_label_rows,
    deberta_head,
    deberta_label_rows,
    label_rows,
    load_deberta_v3,
    shifted_right,
    t5_label_rows,
)

Kind = Literal["masked", "seq2seq", "decoder"]
Loader = Callable[[Any, Any, dict[str, Any]], tuple[PreTrainedModel, dict[str, Any]]]


@dataclass(frozen=True)
class Family:
    """Where prompts enter a model, and where its answer is read."""

    name: str
    model_types: tuple[str, ...]
    """``config.model_type`` of the supported checkpoints."""
    kind: Kind
    """The training objective; it determines the head and the answer position."""
    layers: str | Callable[[Any], list[str]]
    """Path of the list of layers that prompts enter (the encoder's), or a function that returns the layers' paths."""
    embeddings: tuple[str, ...]
    """Paths of the modules that embed tokens, the last first: the output of the first that exists enters the layers."""
    head: tuple[str, ...] | Callable[[Any], tuple[str, ...]]
    """Paths of the modules between the last layer and the vocabulary matrix, in order."""
    prompt_start: int = 1
    """Position of the first prompt token in add mode: 1 after a leading special token, 0 without one."""
    entrance: Callable[[nn.Module], nn.Module] | None = None
    """Builds the module between the token embeddings, where a prompt at the input joins, and the first layer. It takes
    embeddings [B, S, H] and positions [1, S]. None if a prompt at the input joins the first layer's input."""
    label_rows: Callable[[Any, Tensor], tuple[Tensor, Tensor | None]] = label_rows
    """Returns the vocabulary matrix's rows [C, E] and biases [C] for token ids [C]."""
    chained: bool = False
    """Whether a layer returns more than hidden states, such as T5's position biases for the next layer."""
    decoder_layers: str = ""
    """Encoder-decoder models: path of the decoder's layers."""
    decoder_inputs: Callable[[Any, Tensor], Tensor] | None = None
    """Encoder-decoder models: derives the decoder's tokens from the text's, both [N, S], if the model has a rule."""
    encoder_head: tuple[str, ...] = ()
    """Encoder-decoder models: modules between the encoder's last layer and the decoder, in order."""
    otherwise: Loader | None = None
    """Loads checkpoints whose weights do not match their `transformers` class."""


FAMILIES: tuple[Family, ...] = (
    Family(
        "RoBERTa", ("roberta", "xlm-roberta"), "masked", "roberta.encoder.layer", ("roberta.embeddings",), ("lm_head",)
    ),
    Family("BERT", ("bert",), "masked", "bert.encoder.layer", ("bert.embeddings",), ("cls.predictions.transform",)),
    Family(
        "ELECTRA generator",
        ("electra",),
        "masked",
        "electra.encoder.layer",
        ("electra.embeddings_project", "electra.embeddings"),
        ("generator_predictions",),
    ),
    Family(
        "ALBERT",
        ("albert",),
        "masked",
        albert_layers,
        ("albert.encoder.embedding_hidden_mapping_in", "albert.embeddings"),
        ("predictions.dense", "predictions.activation", "predictions.LayerNorm"),
    ),
    Family(
        "DistilBERT",
        ("distilbert",),
        "masked",
        "distilbert.transformer.layer",
        ("distilbert.embeddings",),
        ("vocab_transform", "activation", "vocab_layer_norm"),
    ),
    Family(
        "ModernBERT", ("modernbert",), "masked", "model.layers", ("model.embeddings",), ("model.final_norm", "head")
    ),
    Family(
        "DeBERTa v2 and v3",
        ("deberta-v2",),
        "masked",
        "deberta.encoder.layer",
        ("deberta.embeddings",),
        deberta_head,
        chained=True,
        label_rows=deberta_label_rows,
        otherwise=load_deberta_v3,
    ),
    Family("CPT", (CPT,), "masked", "bert.encoder.layer", ("bert.embeddings",), ()),
    Family(
        "BART",
        ("bart",),
        "seq2seq",
        "model.encoder.layers",
        ("model.encoder.layernorm_embedding",),
        (),
        entrance=BartEntrance,
        label_rows=bart_label_rows,
        decoder_layers="model.decoder.layers",
        decoder_inputs=shifted_right,
        otherwise=load_cpt,
    ),
    Family(
        "T5",
        ("t5",),
        "seq2seq",
        "encoder.block",
        ("encoder.embed_tokens",),
        ("decoder.final_layer_norm",),
        prompt_start=0,
        label_rows=t5_label_rows,
        chained=True,
        decoder_layers="decoder.block",
        encoder_head=("encoder.final_layer_norm",),
    ),
    Family(
        "GPT-2",
        ("gpt2",),
        "decoder",
        "transformer.h",
        ("transformer.drop",),
        ("transformer.ln_f",),
        prompt_start=0,
        entrance=Gpt2Entrance,
    ),
    Family(
        "Llama and Mistral", ("llama", "mistral"), "decoder", "model.layers", ("model.embed_tokens",), ("model.norm",)
    ),
    Family(
        "Qwen",
        ("qwen2", "qwen3"),
        "decoder",
        "model.layers",
        ("model.embed_tokens",),
        ("model.norm",),
        prompt_start=0,  # its tokenizer puts no special token before a text
    ),
)


AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm")
"""Model types that count positions from the padding token's id + 1, and so take that many tokens fewer."""


def positions(config: Any) -> float:
    """Return the number of tokens for which a `transformers` configuration has positions; infinite without a limit."""
    most = getattr(config, "max_position_embeddings", None)
    if not most:
        return math.inf
    return float(most - (config.pad_token_id + 1 if config.model_type in AFTER_PADDING else 0))


def family_of(model: Any) -> Family:
    """Return the family of a model or of a `transformers` configuration.

    Raises:
        UsageError: if FAMILIES has no row for its ``model_type``.
    """
    config = getattr(model, "config", model)
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(sorted(t for f in FAMILIES for t in f.model_types))
    raise UsageError(
        f"model type {config.model_type!r} is not supported; the supported types are: {known}. "
        "docs/adding-a-model.md shows how to add one."
    )
