"""The objects that the seeds of one command share: the task, the model, its tokenizer, and the engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor

from ...engine import load_engine
from ...export.errors import MissingExtraError, UsageError
from ...export.families import family_of
from ...export.loading import NO_CODE, reason
from ...export.model import Cuts, load_config, load_model
from ..artifacts.files import digest
from ..artifacts.prompt_config import PromptConfig
from ..data.encoding import Encoded, TextEncoder, longest_sequence
from ..data.splits import Row, Splits, load_splits, parse_column_mapping
from ..demo import MODEL_DIR
from ..input.options import Options
from ..search.objective import answer
from ..tasks.presets import DEMO
from ..tasks.task import Task
from ..tasks.word_choice import calibration, with_chosen_words
from ..tasks.wording import worded
from .single import Parts

CUTS: dict[str, Cuts] = {"bbt": "input", "bbtv2": "layers"}
"""The cuts that each algorithm needs."""
AUTO: Final = "auto"
KEY_VARIABLE = "BBT_FAST_API_KEY"
logger = logging.getLogger(__name__)


class Setup:
    """Loads each object once, on first use."""

    def __init__(self, options: Options, task: Task) -> None:
        """Take resolved options and their task."""
        self.options, given = options, options.label_words
        task = worded(task, options.wording, options.cat_or_add)
        self.task = task if given is None or given == AUTO else replace(task, use_words=given)
        self._test: tuple[list[Row], Encoded] | None = None

    def splits(self, seed: int) -> Splits:
        """Load the task's data and draw a seed's few-shot examples.

        Raises:
            DataError: if the data are missing, malformed or too few.
        """
        options = self.options
        return load_splits(
            self.task,
            data_dir=options.data_dir,
            k_shot=options.k_shot,
            seed=seed,
            column_mapping=parse_column_mapping(options.column_mapping) if options.column_mapping else None,
            max_test_examples=options.max_test_examples,
            fits=self.encoder.fits if options.long_texts == "drop" else None,
        )

    @cached_property
    def config(self) -> transformers.PreTrainedConfig:
        """The model's configuration, without its weights.

        Raises:
            UsageError: if there is no model of that name.
        """
        return load_config(self._source)

    @cached_property
    def model(self) -> transformers.PreTrainedModel:
        """The frozen model.

        Raises:
            UsageError: if there is no model of that name.
        """
        return load_model(self._source, self.options.allow_pickle)

    @property
    def _answering(self) -> transformers.PreTrainedConfig:
        """The configuration of the loaded model: some checkpoints (CPT) hold another than their config.json names."""
        return self.config if family_of(self.config).otherwise is None else self.model.config

    @cached_property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The model's tokenizer.

        Raises:
            UsageError: if it has none.
        """
        try:
            return _shared(transformers.AutoTokenizer.from_pretrained(self._source, **NO_CODE))
        except Exception as error:  # `tokenizers` raises plain exceptions over damaged files
            raise UsageError(
                f"the model {self._source!r} has no tokenizer that can be loaded ({reason(error)}). Put its tokenizer "
                "files beside its config.json."
            ) from error

    @cached_property
    def encoder(self) -> TextEncoder:
        """Writes the task's texts the way the model reads them.

        Raises:
            UsageError: if the task does not fit the tokenizer.
        """
        return self._encoder(self.task)

    def _encoder(self, task: Task, label_bias: Sequence[float] = ()) -> TextEncoder:
        options, family = self.options, family_of(self._answering)
        return TextEncoder(
            self.tokenizer,
            task,
            family.kind,
            options.cat_or_add,
            options.n_prompt_tokens,
            family.prompt_start,
            longest_sequence(self._answering, self.tokenizer),
            label_bias,
        )

    def encode(self, splits: Splits) -> Parts:
        """Encode a seed's data.

        Raises:
            UsageError: if template and prompt leave no room for a text.
        """
        if self._test is None or self._test[0] != splits.test:  # each few-shot folder has its own test file
            self._test = splits.test, self.encoder.encode(splits.test)
        train = self.encoder.encode(splits.train, templates=self.options.templates)
        return Parts(train, self.encoder.encode(splits.dev), self._test[1])

    def adapted(self, engine: Any, parts: Parts, origins: Tensor) -> tuple[TextEncoder, Parts]:
        """Return the encoder and a seed's data with the label words of ``--label_words`` and ``--calibrate``.

        The model answers the training texts, in the task's own template, once before the search.

        Args:
            engine: loaded.
            parts: encoded.
            origins: p0, [1 or L, n, H].
        """
        options, encoder = self.options, self.encoder
        if options.label_words != AUTO and not options.calibrate:
            return encoder, parts
        own = torch.arange(len(parts.train.labels) // options.templates)
        rows = torch.tensor(encoder.label_words.rows)
        if options.label_words == AUTO:
            rows = torch.arange(min(len(self.tokenizer), self._answering.vocab_size))
        texts = replace(parts.train.examples.select(own), label_token_ids=rows, label_classes=None)
        logits = answer(engine.open(texts), origins[None].to(engine.device))[0].cpu()
        labels = parts.train.labels[own]
        if options.label_words == AUTO:
            task = with_chosen_words(self.task, encoder.kind, self.tokenizer, logits, labels)
            for label, chosen in zip(task.labels, task.words(encoder.kind), strict=True):
                logger.info("label words of %s: %s", label, ", ".join(chosen))
            encoder = self._encoder(task)
            logits = logits[:, encoder.label_words.rows]
        if options.calibrate:
            encoder = self._encoder(encoder.task, calibration(logits, labels))
        words = encoder.label_words
        return encoder, Parts(*(part.relabelled(words) for part in (parts.train, parts.dev, parts.test)))

    def load_engine(self, pinned: dict[str, str]) -> Any:
        """Load the engine.

        Args:
            pinned: the engine, precision and device of an interrupted run; they replace "auto".

        Raises:
            BbtFastError: if it is not installed, lacks the precision, or its graphs fail the parity gate.
        """
        options = self.options
        asked = {"name": options.engine_name, "precision": options.precision, "device": options.device}
        asked = {key: pinned.get(key, value) if value == AUTO else value for key, value in asked.items()}
        name, device = asked["name"], asked["device"]
        wanted: dict[str, Any] = {
            "mode": options.cat_or_add,
            "n_prompt_tokens": options.n_prompt_tokens,
            "cuts": CUTS[options.algorithm],
            "precision": asked["precision"],
        }
        if name == "remote":
            return self._remote(wanted)
        if options.onnx_model_path:
            wanted["onnx_model_path"] = options.onnx_model_path
        if options.workers is None:
            return load_engine(name, self.model, device=device, **wanted)
        require_ray()
        from ...engine.workers import load_workers

        wanted |= {"ray_address": options.ray_address, "allow_pickle": options.allow_pickle}
        return load_workers(name, self._source, workers=options.workers, device=device, **wanted)

    def _remote(self, wanted: dict[str, Any]) -> Any:
        """Request a graph from the server; refuse a model that does not fit the tokenizer here."""
        if find_spec("httpx2") is None:
            raise MissingExtraError("the engine 'remote' needs httpx2: `pip install 'bbt-fast[remote]'`.")
        from ...engine.remote import load_remote

        options, config = self.options, self._answering
        engine = load_remote(str(options.url), read_key(options.api_key), **wanted)
        own = {"model_type": config.model_type, "vocabulary": config.vocab_size, "hidden_size": config.hidden_size}
        different = [f"{k} is {engine.facts[k]} there and {v} here" for k, v in own.items() if engine.facts[k] != v]
        if different:
            raise UsageError(
                f"{options.url} has another model than --model_name {options.model_name}: {', '.join(different)}."
            )
        return engine

    def prompt_config(self, options: Options, encoder: TextEncoder, embeddings: str) -> PromptConfig:
        """Return the description of a prompt that ``bbt_config.json`` holds.

        Args:
            options: one seed's.
            encoder: with the label words of the run.
            embeddings: the digest of the model's word embeddings.
        """
        return PromptConfig(
            base_model=str(options.model_name),
            base_model_revision=getattr(self.config, "_commit_hash", None),
            embeddings=embeddings,
            algorithm=options.algorithm,
            cat_or_add=options.cat_or_add,
            n_prompt_tokens=options.n_prompt_tokens,
            k_shot=options.k_shot,
            seed=options.seed,
            kind=encoder.kind,
            label_bias=encoder.label_words.bias or None,
            task=encoder.task,
        )

    @property
    def _source(self) -> str:
        name = str(self.options.model_name)
        return str(MODEL_DIR) if name == DEMO else name


def require_ray() -> None:
    """Check the requirement of ``--workers``.

    Raises:
        MissingExtraError: if Ray is not installed.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("--workers needs ray, which is not installed: `pip install 'bbt-fast[ray]'`.")


def read_key(file: str | None) -> str | None:
    """Return the key for a server, from a file or from the environment.

    Raises:
        UsageError: if the file is unreadable or does not hold exactly one key.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE)
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api_key {file} cannot be read ({getattr(error, 'strerror', error)}).") from None
    if not key or len(key.split()) > 1:
        raise UsageError(f"--api_key {file} must hold one key and nothing else: write only the key into it.")
    return key


_tokenizers: dict[str, transformers.PreTrainedTokenizerBase] = {}
_TOKENIZERS = 4


def _shared(fresh: transformers.PreTrainedTokenizerBase) -> transformers.PreTrainedTokenizerBase:
    """Return an earlier tokenizer with the same content, if this process has one.

    tokenizers 0.23 never frees the word cache of a BPE model that has encoded texts, so a process would otherwise grow
    by a third of a megabyte per run.
    """
    if not fresh.is_fast:
        return fresh
    content = digest(fresh.backend_tokenizer.to_str().encode(), repr(fresh.init_kwargs).encode())
    if content not in _tokenizers and len(_tokenizers) >= _TOKENIZERS:
        del _tokenizers[next(iter(_tokenizers))]
    return _tokenizers.setdefault(content, fresh)
