"""Texts that the server tokenizes: with a packaged task for the scorer, with the prompt's task for the classifier."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from bbt_fast.engine.wire import Message
from bbt_fast.export.errors import ShapeError, UsageError
from bbt_fast.tuner.data.columns import cleaned
from bbt_fast.tuner.data.encoding import TextEncoder
from bbt_fast.tuner.data.splits import Row
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.tasks.task import load_task, task_names
from bbt_fast.tuner.use.classifier import Classifier

from .errors import RefusedError
from .limits import Limits
from .reading import class_labels, parameter
from .scorer import Answer, Scorer

CLASSIFIER = "classifier"


class TaskTexts:
    """Registers texts for the scorer."""

    def __init__(self, scorer: Scorer, model_name: str, limits: Limits) -> None:
        """Take the scorer and the model of the tokenizer."""
        self._scorer, self._limits = scorer, limits

        @lru_cache(maxsize=16)
        def encoder(task: str, mode: str, n_prompt_tokens: int) -> TextEncoder:
            options = Options.of(
                task_name=task, model_name=model_name, cat_or_add=mode, n_prompt_tokens=n_prompt_tokens
            )
            return Setup(options, load_task(task)).encoder

        self._encoder = encoder

    def __call__(self, owner: str, graph: str, message: Message) -> Answer:
        """Register `texts` [N] or [N, 2] of the parameter `task`, with `labels` [N], which losses require."""
        engine, task = self._scorer.engine(graph), parameter(message, "task", str, "")
        if task not in task_names():  # a packaged one only: any other name could open a file
            raise UsageError(f"task must be one of {', '.join(task_names())}.")
        encoder = self._encoder(task, engine.mode, engine.n_prompt_tokens)
        encoded = encoder.encode(_rows(message, encoder.task, self._limits), quiet=True)
        labels = class_labels(message, len(encoded.labels), len(encoder.task.labels))
        answer = self._scorer.register(owner, graph, encoded.examples, labels)
        return Answer({}, {**answer.parameters, "truncated": encoded.truncated})


class TextClassifier:
    """Answers a tuned prompt."""

    def __init__(self, classifier: Classifier, limits: Limits) -> None:
        """Take the classifier."""
        self._classifier, self._limits = classifier, limits

    def metadata(self) -> dict[str, Any]:
        """Return the model metadata of the protocol."""
        task = self._classifier.config.task
        size, classes = len(task.texts), len(task.labels)
        return {
            "name": CLASSIFIER,
            "versions": ["1"],
            "platform": "bbt-fast",
            "inputs": [{"name": "texts", "datatype": "BYTES", "shape": [-1] if size == 1 else [-1, size]}],
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
                {"name": "score", "datatype": "FP32", "shape": [-1]},
                {"name": "scores", "datatype": "FP32", "shape": [-1, classes]},
            ],
            "parameters": {
                "task": task.name,
                "labels": list(task.labels),
                "base_model": self._classifier.config.base_model,
            },
        }

    def infer(self, message: Message) -> Answer:
        """Classify `texts` [N] or [N, 2]: their labels [N], the labels' probabilities [N], and all classes' [N, C]."""
        rows = _rows(message, self._classifier.config.task, self._limits)
        found = self._classifier([row.texts for row in rows])
        return Answer(
            {
                "label": np.array([one["label"] for one in found], dtype=object),
                "score": np.array([one["score"] for one in found], dtype=np.float32),
                "scores": np.array([list(one["scores"].values()) for one in found], dtype=np.float32),
            },
            {},
        )


def _rows(message: Message, task: Any, limits: Limits) -> list[Row]:
    """Return a request's texts as rows of a task."""
    texts, size = message.tensors.get("texts"), len(task.texts)
    if texts is None or texts.dtype != object or texts.shape[1:] not in ((), (size,))[size > 1 :]:
        shape = "[N]" if size == 1 else f"[N, {size}]"
        raise ShapeError(f"texts must be BYTES {shape}.")
    if not 0 < len(texts) <= limits.max_texts:
        raise RefusedError(413, "usage", f"{len(texts)} texts; 1 to {limits.max_texts} at a time are allowed.")
    parts = texts.reshape(len(texts), -1).tolist()
    return [cleaned(task, Row(one[0], one[1] if size > 1 else None, 0)) for one in parts]
