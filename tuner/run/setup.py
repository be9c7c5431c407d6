"""What the seeds of one command share: the task, the model, its tokenizer, and the engine."""

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
"""Where each algorithm's prompts enter."""
AUTO: Final = "auto"
KEY_VARIABLE = "BBT_FAST_API_KEY"
logger = logging.getLogger(__name__)


class Setup:
    """Loads each thing once, and in an order that finds mistakes before time is spent."""

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
        """The model's configuration, which is read long before its weights are.

        Raises:
            UsageError: if there is no model of that name.
        """
        return load_config(self._source)

    @cached_property
    def model(self) -> transformers.PreTrainedModel:
        """The frozen model.

        Raises:
            UsageError: if there is none of that name.
        """
        return load_model(self._source, self.options.allow_pickle)

    @property
    def _answering(self) -> transformers.PreTrainedConfig:
        """The configuration of what answers: some checkpoints (CPT) hold another model than their config.json names."""
        return self.config if family_of(self.config).otherwise is None else self.model.config

    @cached_property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The model's tokenizer.

        Raises:
            UsageError: if it has none.
        """
        try:
            found: transformers.PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                self._source, **NO_CODE
            )
        except Exception as error:  # the tokenizers' library raises plain exceptions over damaged files
            raise UsageError(
                f"the model {self._source!r} has no tokenizer that can be loaded ({reason(error)}). Put its tokenizer "
                "files beside its config.json."
            ) from error
        return _shared(found)

    @cached_property
    def encoder(self) -> TextEncoder:
        """Writes the task's texts the way the model reads them.

        Raises:
            UsageError: if task and tokenizer do not go together.
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
        if self._test is None or self._test[0] != splits.test:  # few-shot folders have a test file each
            self._test = splits.test, self.encoder.encode(splits.test)
        train = self.encoder.encode(splits.train, templates=self.options.templates)
        return Parts(train, self.encoder.encode(splits.dev), self._test[1])

    def adapted(self, engine: Any, parts: Parts, origins: Tensor) -> tuple[TextEncoder, Parts]:
        """Return an encoder and a seed's data with the label words, and their calibration, that the options ask for.

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
            pinned: the engine, precision and device that an interrupted run was started with; they stand in for "auto".

        Raises:
            BbtFastError: if it is not installed, cannot do the precision, or its graphs are not faithful.
        """
        options = self.options
        asked = {"name": options.engine_name, "precision": options.precision, "device": options.device}
        asked = {key: pinned.get(key, value) if value == "auto" else value for key, value in asked.items()}
        if asked["name"] == "remote":
            return self._remote(asked["precision"])
        wanted: dict[str, Any] = {
            "mode": options.cat_or_add,
            "n_prompt_tokens": options.n_prompt_tokens,
            "cuts": CUTS[options.algorithm],
            "precision": asked["precision"],
            "device": asked["device"],
        }
        if options.onnx_model_path:
            wanted["onnx_model_path"] = options.onnx_model_path
        if options.workers is None:
            return load_engine(asked["name"], self.model, **wanted)
        require_ray()
        from ...engine.workers import load_workers

        return load_workers(
            asked["name"],
            self._source,
            workers=options.workers,
            ray_address=options.ray_address,
            allow_pickle=options.allow_pickle,
            **wanted,
        )

    def _remote(self, precision: str) -> Any:
        """Ask the server for a graph, and make sure that its model is the one whose tokenizer is used here.

        Raises:
            MissingExtraError: if there is no HTTP client.
            UsageError: if it has another model, or computes in another precision.
        """
        if find_spec("httpx2") is None:
            raise MissingExtraError("the engine 'remote' needs httpx2: `pip install 'bbt-fast[remote]'`.")
        from ...engine.remote import load_remote

        options, config = self.options, self._answering
        engine = load_remote(
            str(options.url),
            read_key(options.api_key),
            mode=options.cat_or_add,
            n_prompt_tokens=options.n_prompt_tokens,
            cuts=CUTS[options.algorithm],
            precision=precision,
        )
        own = {"model_type": config.model_type, "vocabulary": config.vocab_size, "hidden_size": config.hidden_size}
        different = [f"{k} is {engine.facts[k]} there and {v} here" for k, v in own.items() if engine.facts[k] != v]
        if different:
            raise UsageError(
                f"{options.url} has another model than --model_name {options.model_name}: {', '.join(different)}."
            )
        return engine

    def prompt_config(self, options: Options, encoder: TextEncoder, embeddings: str) -> PromptConfig:
        """Return what the prompt of a run with these options belongs to.

        Args:
            options: of one seed.
            encoder: with the label words that are used.
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
    """Make sure that workers can be had.

    Raises:
        MissingExtraError: if Ray is not installed.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("--workers needs ray, which is not installed: `pip install 'bbt-fast[ray]'`.")


def read_key(file: str | None) -> str | None:
    """Return the key for a server, from a file or from the environment.

    Raises:
        UsageError: if the file cannot be read or is empty.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE)
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api_key {file} cannot be read ({getattr(error, 'strerror', error)}).") from None
    if not key or len(key.split()) > 1:
        raise UsageError(f"--api_key {file} must hold one key and nothing else.")
    return key


_tokenizers: dict[str, transformers.PreTrainedTokenizerBase] = {}
_TOKENIZERS = 4


def _shared(fresh: transformers.PreTrainedTokenizerBase) -> transformers.PreTrainedTokenizerBase:
    """Return an earlier tokenizer with the same content, if this process has one.

    A tokenizer that has encoded texts is not freed whole (tokenizers 0.23 keeps what a BPE model remembers of words),
    so a process that runs many times would grow by a third of a megabyte each time.
    """
    if not fresh.is_fast:
        return fresh
    content = digest(fresh.backend_tokenizer.to_str().encode(), repr(fresh.init_kwargs).encode())
    if content not in _tokenizers and len(_tokenizers) >= _TOKENIZERS:
        del _tokenizers[next(iter(_tokenizers))]
    return _tokenizers.setdefault(content, fresh)
