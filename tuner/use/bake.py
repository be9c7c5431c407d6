"""Bakes tuned prompts and their model into one folder that runs without PyTorch and `transformers`."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from ...engine.ort import run_file
from ...export.classifier import Classifier as Graph
from ...export.classifier import write_classifier
from ...export.errors import ParityError, UsageError
from ...export.precision import precision_of
from ..artifacts.files import unwritable
from ..artifacts.model_card import baked_card, base_title
from ..data.encoding import NO_TOKEN, pad_id
from .baked_tokenizer import BakedTokenizer, bake_tokenizer, encode_rows, probe_rows
from .classifier import Classifier
from .triton import write_repository

GRAPH = "model.onnx"
TOLERANCE = {"fp32": 1e-4, "fp16": 0.05}
"""Largest difference of a logit from PyTorch's in fp32, relative to the largest logit."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baked:
    """A baked folder."""

    folder: Path
    difference: float
    """Largest difference of a logit from PyTorch's in fp32 over the compared texts."""
    texts: int
    """The number of compared texts."""
    prefixes: tuple[str, ...]
    """The strings that a caller must put before each text; almost always empty."""


def bake(classifier: Classifier, out: Path, *, precision: str = "fp32", triton: bool = False) -> Baked:
    """Write a classifier as one ONNX file with its tokenizer and configuration, and compare its answers.

    Args:
        classifier: loaded on the engine "torch" in fp32 on the CPU, the reference of the comparison.
        out: a new or empty folder.
        precision: fp32 or fp16.
        triton: also write a Triton model repository, in the folder "triton".

    Raises:
        UsageError: if the model, the task's template or the precision cannot be baked, or the folder is not empty.
        ParityError: if the file's answers differ from PyTorch's.
        ArtifactError: if the folder is not writable.
    """
    if precision not in TOLERANCE:
        raise UsageError(f"precision is {precision!r}, but must be one of {', '.join(TOLERANCE)} for a baked file.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty: choose another --out.")
    encoder = classifier.encoder
    tokenizer = bake_tokenizer(encoder)
    mask_id = None if encoder.mask_id == NO_TOKEN else encoder.mask_id
    dtype = precision_of(precision).dtype
    words = classifier.words if len(set(classifier.words)) > 1 else classifier.words[:1]
    graph = Graph(classifier.engine.staged, classifier.prompts, words, mask_id, dtype)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            write_classifier(graph, folder / GRAPH, tokenizer.shortest, tokenizer.longest)
            difference, texts = _checked(classifier, tokenizer, folder / GRAPH, precision)
            _write_rest(classifier, tokenizer, folder, precision)
            if triton:
                name = f"{classifier.config.task.name}-{classifier.config.algorithm}"
                write_repository(folder / GRAPH, folder / "triton", name, classifier.labels)
            if out.exists():
                out.rmdir()
            os.replace(folder, out)
    except OSError as error:
        raise unwritable(out, error) from error
    return Baked(out, difference, texts, tokenizer.prefixes)


def _checked(classifier: Classifier, tokenizer: BakedTokenizer, path: Path, precision: str) -> tuple[float, int]:
    """Compare the file's answers with PyTorch's, for all texts at once and for one; refuse a file that differs."""
    rows = probe_rows(classifier.encoder)
    expected = classifier.logits(classifier.encoder.encode(rows, quiet=True))
    try:
        found = answer(path, tokenizer, rows)
        alone = answer(path, tokenizer, rows[:1])
    except RuntimeError as error:
        raise ParityError(
            f"ONNX Runtime cannot run this model as one graph: {error}. Use `bbt-fast predict`."
        ) from error
    difference = max(float((found - expected).abs().max()), float((alone - expected[:1]).abs().max()))
    limit = TOLERANCE[precision] * max(1.0, float(expected.abs().max()))
    if not difference <= limit:
        raise ParityError(
            f"the baked file disagrees with PyTorch in fp32: a logit differs by {difference:.2e} (at most {limit:.2e} "
            f"for {precision}). The file was deleted. Try --precision fp32, or use `bbt-fast predict`."
        )
    logger.info("the file agrees with PyTorch fp32 on %d texts: largest logit difference %.1e", len(rows), difference)
    return difference, len(rows)


def answer(path: Path, tokenizer: BakedTokenizer, rows: list[Any]) -> Tensor:
    """Return a baked file's logits [N, C] for rows of raw texts."""
    encodings = encode_rows(tokenizer, rows, padded=True)
    inputs = {
        "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
        "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64),
    }
    return torch.from_numpy(run_file(path, inputs)[0])


def _write_rest(classifier: Classifier, tokenizer: BakedTokenizer, folder: Path, precision: str) -> None:
    """Write the tokenizer, the configuration and a README beside the graph."""
    known = classifier.encoder.tokenizer
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": tokenizer.longest,
            "pad_token": known.convert_ids_to_tokens(pad_id(known)),
            "padding_side": "right",
            "truncation_side": "right",
        },
    )
    _write_json(folder / "config.json", _config(classifier, tokenizer, precision))
    text = baked_card(classifier.config, len(classifier.prompts), tokenizer.prefixes)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _config(classifier: Classifier, tokenizer: BakedTokenizer, precision: str) -> dict[str, Any]:
    """Return the configuration of a sequence classifier: the base model's, with classes."""
    base = classifier.engine.staged.model.config
    prompt = classifier.config
    architecture: str | None = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(base.model_type)
    return {
        **{name: value for name, value in base.to_dict().items() if name != "_name_or_path"},
        "architectures": [architecture] if architecture else [],
        "id2label": {str(i): label for i, label in enumerate(classifier.labels)},
        "label2id": {label: i for i, label in enumerate(classifier.labels)},
        "problem_type": "single_label_classification",
        "bbt_fast": {
            "base_model": base_title(prompt),
            "task": prompt.task.name,
            "template": prompt.task.template(prompt.kind),
            "algorithm": prompt.algorithm,
            "cat_or_add": prompt.cat_or_add,
            "prompts": len(classifier.prompts),
            "precision": precision,
            "text_prefixes": list(tokenizer.prefixes),
        },
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
