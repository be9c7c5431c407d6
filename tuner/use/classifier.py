"""Tuned prompts as a classifier: ``load(run)(texts) -> labels and scores``; several runs form an ensemble."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypedDict

import torch
from torch import Tensor

from ...export.ensemble import pooled
from ...export.errors import ArtifactError, UsageError
from ...export.loading import reason
from ...export.words import LabelWords
from ..artifacts.folder import CONFIG, PROMPT, members, read_config
from ..artifacts.prompt import read_prompt
from ..artifacts.prompt_config import PROMPT_CONFIG, PromptConfig, read_prompt_config
from ..data.columns import Row, cleaned, parse_column_mapping
from ..data.encoding import Encoded, TextEncoder
from ..data.splits import load_test_rows
from ..input.options import Options
from ..run.setup import Setup
from ..run.single import test_logits
from ..search.losses import LOSSES
from ..search.metrics import METRICS
from ..search.objective import Yardstick
from ..tasks.label_words import label_word_ids

SHARED: Final = (PROMPT, PROMPT_CONFIG, "README.md")
"""The files of a shared prompt."""
SAME: Final = ("embeddings", "kind", "task", "algorithm", "cat_or_add", "n_prompt_tokens")
"""Fields that must agree among the prompts of an ensemble."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class Prediction(TypedDict):
    """The prediction for one text, in the shape of `transformers`' text-classification pipeline."""

    label: str
    score: float
    """The label's probability among the classes."""
    scores: dict[str, float]
    """The probability of every class, in the task's order."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a classifier on labelled texts."""

    metric: str
    value: float
    loss: float
    """Mean cross entropy, in nats."""
    examples: int
    truncated: int
    """The number of truncated texts."""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


class Classifier:
    """A frozen model with a tuned prompt, or with several whose answers are averaged; ``load`` returns one."""

    def __init__(
        self, config: PromptConfig, encoder: TextEncoder, engine: Any, prompts: Tensor, words: Sequence[LabelWords],
        folder: Path, batch_size: int,
    ) -> None:  # fmt: skip
        """Bind the parts.

        Args:
            config: the prompts' description.
            encoder: encodes texts for the model.
            engine: loaded.
            prompts: [K, 1 or L, n, H].
            words: the label words of each prompt, [K].
            folder: the first prompt's.
            batch_size: texts in a batch.
        """
        self.config, self.encoder, self.engine, self.prompts = config, encoder, engine, prompts
        self.words, self.folder, self.batch_size = tuple(words), folder, batch_size

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return self.config.task.labels

    def __call__(self, texts: Any) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: one text or a list of texts; for a task about pairs, one tuple (first, second) or a list of tuples.
                As in `transformers`, a text or a pair may also be {"text": first, "text_pair": second}.

        Returns:
            One prediction per text, in order.

        Raises:
            UsageError: if these are not texts of the task's form.
        """
        task = self.config.task
        rows = [cleaned(task, row) for row in rows_of(task.texts, texts)]
        if not rows:
            return []
        probabilities = self.logits(self.encoder.encode(rows)).softmax(dim=1).tolist()
        found = []
        for row in probabilities:
            best = max(range(len(row)), key=row.__getitem__)
            scores = dict(zip(self.labels, row, strict=True))
            found.append(Prediction(label=self.labels[best], score=row[best], scores=scores))
        return found

    def logits(self, encoded: Encoded) -> Tensor:
        """Return the label words' logits [N, C] of encoded texts; for several prompts, the mean log-probabilities."""
        answers = []
        for words in dict.fromkeys(self.words):
            its = [k for k, other in enumerate(self.words) if other == words]
            texts = encoded.relabelled(words)
            answers.append(test_logits(self.engine, texts, self.prompts[its], self.batch_size, lambda: None))
        return pooled(torch.cat(answers))

    def evaluate(
        self,
        data_dir: str | Path | None = None,
        *,
        column_mapping: str | None = None,
        max_test_examples: int | None = None,
    ) -> Evaluation:
        """Score the classifier on the test data of its task, as the end of a run does.

        Args:
            data_dir: folder with a test file; None for the run's own test data or, failing that, the task's.
            column_mapping: the names of your file's columns, such as text=sentence,label=class.
            max_test_examples: use at most this many examples.

        Raises:
            UsageError: if there are no data.
            DataError: if they are malformed.
        """
        task, given = self.config.task, {"data_dir": data_dir, "column_mapping": column_mapping}
        fits = None
        if data_dir is None and (self.folder / CONFIG).exists():
            own = read_config(self.folder)
            given = {name: value or getattr(own, name) for name, value in given.items()}
            max_test_examples = max_test_examples or own.max_test_examples
            fits = self.encoder.fits if own.long_texts == "drop" else None
        mapping, where = given["column_mapping"], given["data_dir"]
        rows = load_test_rows(
            task,
            data_dir=where,
            k_shot=self.config.k_shot,
            seed=self.config.seed,
            column_mapping=parse_column_mapping(str(mapping)) if mapping else None,
            max_test_examples=max_test_examples,
            fits=fits,
        )
        encoded = self.encoder.encode(rows)
        yardstick = Yardstick(LOSSES["ce"], METRICS[task.metric])
        loss, metric = yardstick(self.logits(encoded)[None], encoded.labels)
        return Evaluation(task.metric, float(metric[0]), float(loss[0]), len(rows), encoded.truncated)


def load(
    source: str | Path | Sequence[str | Path],
    *,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    model_name: str | None = None,
    allow_pickle: bool = False,
    batch_size: int = 512,
) -> Classifier:
    """Load the tuned prompt of a run and its model.

    Several prompts form an ensemble: one batch answers every text with each prompt, and the log-probabilities of the
    classes are averaged.

    Args:
        source: a run's folder, or the hub id of a shared prompt; or several. The folder of a finished command with
            ``seeds`` means all its seeds.
        engine: the engine: torch, ort, ..., or auto.
        precision: as the option of a run, or auto.
        device: cpu, cuda, cuda:1, or auto.
        model_name: the location of the base model, if it has moved since the run.
        allow_pickle: also load its weights from pickle files if there are no safetensors.
        batch_size: texts in a batch; texts are sorted by length first.

    Raises:
        UsageError: if there is no tuned prompt, an argument is unknown, or the prompts do not form an ensemble.
        ArtifactError: if a file is damaged, or the base model differs from the run's.
        BbtFastError: if the engine or the model cannot be loaded.
    """
    sources = [source] if isinstance(source, (str, Path)) else source
    folders = [folder for each in sources for folder in members(local_folder(each))]
    if not folders:
        raise UsageError("there is no prompt to load: give the folder of a run, or several.")
    configs = [read_prompt_config(folder) for folder in folders]
    config = _common(list(zip(folders, configs, strict=True)))
    prompts = [read_prompt(folder)[0] for folder in folders]
    options = Options.of(
        task_name=config.task.name,
        model_name=model_name or config.base_model,
        allow_pickle=allow_pickle,
        algorithm=config.algorithm,
        cat_or_add=config.cat_or_add,
        n_prompt_tokens=config.n_prompt_tokens,
        engine=engine,
        precision=precision,
        device=device,
        batch_size=batch_size,
    )
    setup = Setup(options, config.task)
    encoder = setup.encoder
    loaded = setup.load_engine({})
    if loaded.embeddings.digest != config.embeddings:
        revision = f" at revision {config.base_model_revision}" if config.base_model_revision else ""
        raise ArtifactError(
            f"the prompt in {folders[0]} was tuned on {config.base_model}{revision}, but {options.model_name} is "
            "another model: its word embeddings differ. Give the right one with --model_name."
        )
    shape = (loaded.n_layers if config.algorithm == "bbtv2" else 1, loaded.n_prompt_tokens, loaded.hidden_size)
    for folder, prompt in zip(folders, prompts, strict=True):
        if prompt.shape != shape:
            raise ArtifactError(f"{folder / PROMPT} is {list(prompt.shape)}, but the model takes {list(shape)}.")
    words = [LabelWords(label_word_ids(setup.tokenizer, own.task, own.kind), own.label_bias or ()) for own in configs]
    for folder, own in zip(folders, words, strict=True):
        if own.bias and len(own.bias) != len(own.rows):
            raise ArtifactError(
                f"{folder / PROMPT_CONFIG} is damaged: label_bias has {len(own.bias)} numbers for {len(own.rows)} "
                "label words. Download the prompt again, or tune it again."
            )
    stacked = torch.stack(prompts).to(loaded.device)
    return Classifier(config, encoder, loaded, stacked, words, folders[0], batch_size)


def _common(members: Sequence[tuple[Path, PromptConfig]]) -> PromptConfig:
    """Return the description of an ensemble's prompts; refuse prompts that differ in a field of ``SAME``."""
    first, config = members[0]
    for folder, other in members[1:]:
        for name in SAME:
            if _compared(other, name) != _compared(config, name):
                here, there = _shown(config, name), _shown(other, name)
                raise UsageError(
                    f"{first} and {folder} do not form an ensemble: {here} in the first, {there} in the second. Give "
                    "prompts of one task, model and shape."
                )
    return config


def _compared(config: PromptConfig, name: str) -> Any:
    """Return one of ``SAME``; each prompt may have its own label words."""
    return replace(config.task, label_words={}, use_words="first") if name == "task" else getattr(config, name)


def _shown(config: PromptConfig, name: str) -> str:
    """Return a field of ``SAME`` for a message."""
    if name == "embeddings":
        return f"base model {config.base_model} (embeddings {config.embeddings[:8]})"
    if name == "task":
        task, kind = config.task, config.kind
        return f"task {task.name!r} with template {task.template(kind)!r}"
    return f"{name} {getattr(config, name)!r}"


def local_folder(source: str | Path) -> Path:
    """Return a folder, or the download of a shared prompt.

    Raises:
        UsageError: if there is neither such a folder nor such a prompt on the hub.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if not _REPOSITORY.fullmatch(str(source)):
        raise UsageError(f"there is no folder {source}: give that of a run, or the hub id (user/name) of a prompt.")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=list(SHARED)))
    except Exception as error:  # the hub's client raises dozens of types
        raise UsageError(
            f"{source} is neither a folder nor a reachable prompt on the hub ({reason(error)}). Check the name and the "
            "network, and log in with `hf auth login` for a private one."
        ) from error


def rows_of(names: Sequence[str], texts: Any) -> list[Row]:
    """Return texts, or pairs of them, as rows.

    Args:
        names: the names of the task's texts, one or two.
        texts: see ``Classifier.__call__``.

    Raises:
        UsageError: if these are not texts of the task's form.
    """
    if isinstance(texts, (str, Mapping, tuple)):
        texts = [texts]
    return [_row(names, item) for item in texts]


def _row(names: Sequence[str], item: Any) -> Row:
    if isinstance(item, Mapping):
        keys = ("text", "text_pair")[: len(names)]
        item = tuple(item[key] for key in keys) if set(item) == set(keys) else item
    parts = (item,) if isinstance(item, str) else item
    if not isinstance(parts, (tuple, list)) or len(parts) != len(names) or not all(isinstance(p, str) for p in parts):
        wanted = "one text" if len(names) == 1 else "a pair of texts, (first, second)"
        raise UsageError(f"the task classifies {wanted}, but was given {item!r:.80}.")
    return Row(parts[0], parts[1] if len(parts) > 1 else None, 0)
