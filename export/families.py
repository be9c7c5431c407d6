"""The model families: what differs between architectures, one row each.

Everything else is read from the unmodified `transformers` model when it runs (see ``stages.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .errors import UsageError

Kind = Literal["masked", "seq2seq", "decoder"]


@dataclass(frozen=True)
class Family:
    """Where prompts enter a model and where its answer is read."""

    name: str
    model_types: tuple[str, ...]
    """``config.model_type`` of the checkpoints this row serves."""
    kind: Kind
    """What the model was trained to do, hence which head it has and where it answers."""
    layers: str
    """Path of the list of layers that prompts enter."""
    embeddings: str
    """Path of the module whose output is the text's side of the input prompt."""
    head: tuple[str, ...]
    """Modules between the last layer and the vocabulary matrix, in order."""
    prompt_start: int = 1
    """Position of the first prompt token in add mode: 1 after a leading special token, 0 without one."""


FAMILIES: tuple[Family, ...] = (
    Family(
        "RoBERTa", ("roberta", "xlm-roberta"), "masked", "roberta.encoder.layer", "roberta.embeddings", ("lm_head",)
    ),
    Family("BERT", ("bert",), "masked", "bert.encoder.layer", "bert.embeddings", ("cls.predictions.transform",)),
)


def family_of(model: Any) -> Family:
    """Return the row of a model or of a `transformers` configuration.

    Raises:
        UsageError: if the table has no row for its ``model_type``.
    """
    config = getattr(model, "config", model)
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(sorted(t for f in FAMILIES for t in f.model_types))
    raise UsageError(
        f"model type {config.model_type!r} is not supported; these are: {known}. "
        "docs/adding-a-model.md shows how to add a row for another one."
    )
