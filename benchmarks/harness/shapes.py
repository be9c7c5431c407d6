"""Model shapes by name, with random weights, on which the time of a forward pass does not depend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from bbt_fast.export.errors import UsageError
from bbt_fast.export.families import family_of
from bbt_fast.export.model import load_model
from bbt_fast.tuner.demo import MODEL_DIR


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    positions: int
    model_class: type[Any] = RobertaForMaskedLM
    config_class: type[Any] = RobertaConfig


SHAPES: dict[str, Shape] = {
    "toy": Shape(2, 32, 4, 200, 514),
    "toy-gpt2": Shape(2, 32, 4, 200, 514, GPT2LMHeadModel, GPT2Config),
    "minilm": Shape(12, 384, 12, 30522, 512, BertForMaskedLM, BertConfig),
    "roberta-base": Shape(12, 768, 12, 50265, 514),
    "roberta-large": Shape(24, 1024, 16, 50265, 514),
    "gpt2": Shape(12, 768, 12, 50257, 1024, GPT2LMHeadModel, GPT2Config),
}


PROMPTABLE = ("bert", "roberta", "xlm-roberta", "gpt2")
"""The model types that the PyTorch baselines can prompt."""
WIDTH = 1.5
"""Standard deviation of the random weights, times sqrt(H)."""
EMBEDDING_SPREAD = 0.5
"""Standard deviation of the random word embeddings, and so of the prompts."""


def make_model(name: str, seed: int = 0) -> PreTrainedModel:
    """Create a model of a shape with random weights, or load one from a folder or the hub; fp32, eval, frozen.

    "minilm:6" is the shape with 6 layers.

    The weights have a larger deviation than for training, so that a prompt changes the logits as in a trained model.
    With the usual 0.02 all candidates have nearly the same loss, which no reduced precision can rank.

    Raises:
        UsageError: if there is no such model, or the baselines cannot prompt it.
    """
    if name == "demo":
        return load_model(MODEL_DIR)
    name, _, layers = name.partition(":")
    if name not in SHAPES:
        model = load_model(Path(name) if Path(name).exists() else name)
        if model.config.model_type not in PROMPTABLE:
            raise UsageError(
                f"{name} is a {family_of(model).name}, whose layers and head the PyTorch baselines do not know. Give a "
                f"model of type {', '.join(PROMPTABLE)}."
            )
        return model
    shape = SHAPES[name]
    config = shape.config_class(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=int(layers or shape.layers),
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=shape.positions,
        initializer_range=WIDTH / shape.hidden**0.5,
        pad_token_id=1 if shape.config_class is RobertaConfig else 0,
        bos_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = shape.model_class(config)
    words = model.get_input_embeddings().weight.data
    words *= EMBEDDING_SPREAD / words.std()
    return load_model(model)
