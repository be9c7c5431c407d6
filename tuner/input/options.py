"""The options of a run: one dataclass that the command line, YAML files and the Python API share.

Names and meanings are those of the original implementation wherever it has the option. ``None`` means "decide from the
task and the algorithm"; ``tasks/presets.py`` does that in one place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from ...export.errors import UsageError
from .coerce import Range, coerce, suggest

Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, open_low=True)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
LossType = Literal["ce", "hinge", "perf", "ce-smooth", "ce-entropy"]
FRAMEWORKS = {"pt": "torch", "ort": "ort"}
"""The original's names of the engines."""
PRESETS: dict[str, dict[str, Any]] = {
    "original": {
        "wording": "original",
        "long_texts": "drop",
        "optimizer": "pycma",
        "streams": "original",
        "select": "due",
        "precision": "fp32",
    },
    "recommended": {"label_words": "auto", "calibrate": True, "patience": 500},
}
"""The options that each preset sets. docs/original.md explains the first preset, docs/search.md measures the second."""
SMALLEST_POPSIZE = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that a run depends on.

    Raises:
        UsageError: if a value is unknown, of the wrong type or outside its range.
    """

    preset: Literal["original", "recommended"] | None = None
    """original: behave like the original implementation (docs/original.md). recommended: choose and calibrate the label
    words, and stop when the development set no longer improves (docs/search.md). Options that you give override it."""

    task_name: str = "demo"
    """A task's name (`bbt-fast tasks` lists them) or the path of your own task.yaml."""
    data_dir: str | None = None
    """Folder with the task's data (train.jsonl and test.jsonl, or csv, tsv, parquet); without it
    the data come from the hub."""
    column_mapping: str | None = None
    """Names of the columns in your files: text=sentence,label=class."""
    max_test_examples: Count | None = None
    """Test on at most this many examples; by default on all."""
    k_shot: Count = 16
    """Examples per class for training, and the same number for development."""
    wording: Literal["own", "original"] = "own"
    """original: use the original implementation's templates and label words."""
    long_texts: Literal["cut", "drop"] = "cut"
    """cut: truncate texts that are too long; drop: leave them out, also of the test set."""
    templates: Count = 1
    """Write each training text in this many of the task's templates; a candidate's loss is the mean over them."""

    label_words: Literal["first", "all", "auto"] | None = None
    """Which label words stand for a class: the first that is one token; all of them; or auto, all of them and words
    that the model predicts for the training examples. The task sets the default, usually first."""

    calibrate: bool = False
    """Make the label words equally likely over the training examples before tuning, by a bias on their logits."""

    model_name: str | None = None
    """Hub id or folder of the frozen model; by default roberta-large, and the demo's own model for the demo."""
    allow_pickle: bool = False
    """Load weights from a pickle file (pytorch_model.bin) if the model has no safetensors."""
    cat_or_add: Literal["add", "cat"] = "add"
    """add: add the prompt to n placeholder tokens; cat: concatenate it before the text."""
    n_prompt_tokens: Count = 50
    """Length of the soft prompt, n."""
    init_text: str | None = None
    """Start from the embeddings of this text (cat only), repeated or truncated to n tokens."""
    init_from: str | None = None
    """Start from the prompt in an earlier run's folder, a safetensors file, or the original's .pt file."""

    algorithm: Literal["bbt", "bbtv2"] = "bbt"
    """bbt: one prompt at the input; bbtv2: one at every layer."""
    alg: Literal["CMA"] = "CMA"
    """The original's flag, with its only value; see --optimizer."""
    optimizer: Literal["cma", "sep-cma", "snes", "pycma", "cma-local"] = "cma"
    """cma: CMA-ES as published; sep-cma: CMA-ES with a diagonal covariance; snes: a separable natural evolution
    strategy with mirrored candidates; pycma: the package that the original uses, with its own stop criteria for bbt;
    cma-local: CMA-ES for three quarters of the budget, then a local search around the best candidate."""
    streams: Literal["own", "original"] = "own"
    """own: a random stream for each layer's matrix A and search; original: PyTorch's and NumPy's generators, used in
    the order of the original, with BBTv2's matrices scaled by the padded batch that contains the first candidate."""
    intrinsic_dim: Annotated[int, Range(2)] = 500
    """Length of the searched vector z, d."""
    random_proj: Literal["normal", "uniform", "none"] = "normal"
    """Distribution of the fixed random matrix A that maps z to a prompt; none: search all n x H numbers of the prompt
    itself, with --optimizer sep-cma or snes."""
    projection_from: tuple[str, ...] | None = None
    """Turn the random matrix A towards the prompts of earlier runs on this model: their folders, separated by commas; a
    folder of --seeds stands for all its seeds."""
    embeddings: Count = 1
    """Search with this many random matrices A in turn, each from the best prompt so far."""
    budget: Count | None = None
    """Total candidate evaluations ("API calls"); the task sets the default, usually 8000."""
    popsize: int = 20
    """Candidates per generation; 0 for CMA-ES' own rule, 4 + 3 ln d."""
    sigma: Positive | None = None
    """Initial step size of CMA-ES; by default 1 for bbt, 0.2 for bbtv2."""
    alpha: Positive | None = None
    """Scale of the projection, in standard deviations of the embeddings; by default 1 for bbt, 0.2 for bbtv2."""
    bound: Annotated[float, Range(0)] = 0.0
    """Keep each coordinate of z in [-bound, bound]; 0 for no bounds."""
    loss_type: LossType | None = None
    """Loss to minimise: ce (cross entropy), hinge (margin 2), perf (minus the metric); against overfitting ce-smooth
    (labels smoothed by 0.1) and ce-entropy (minus 0.3 times the answers' entropy). The task sets the default, usually
    ce."""
    keep: Literal["best", "mean"] = "best"
    """Which prompt a search returns: the best candidate so far, or the mean of the optimizer's distribution."""
    select: Literal["best", "due"] = "best"
    """Which prompt is scored on the development set every eval_every evaluations. best: the best so far on the training
    examples; ties go to the lower loss. due: the candidate at that evaluation; ties go to the first."""
    seed: Seed = 42
    """Fixes the few-shot examples, the projection and the search."""
    seeds: tuple[Seed, ...] | None = None
    """Run several seeds (the papers use 8,13,42,50,60) and report mean, standard deviation and the test metric of the
    ensemble of all prompts."""

    engine: str = "auto"
    """Runtime for the model: torch, ort (ONNX Runtime), another one listed by `bbt-fast doctor`, or auto; remote uses
    --url."""
    url: str | None = None
    """Address of `bbt-fast serve`, for --engine remote: https://host:8000."""
    api_key: str | None = None
    """File with the key for --url; the default is the environment variable BBT_FAST_API_KEY."""
    inference_framework: Literal["pt", "ort"] | None = None
    """The original's name for --engine: pt is torch."""
    onnx_model_path: str | None = None
    """A graph written by scripts/export_and_optimize.py, to use instead of a fresh export."""
    precision: str = "auto"
    """fp32, bf16, fp16, fp16-fast, fp8, or auto: the engine's first precision that is fast on this device."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    workers: Count | None = None
    """Share each generation among this many processes of a Ray cluster, each with a GPU or a part of the CPU; with
    --seeds each process runs whole seeds."""
    ray_address: str | None = None
    """Ray cluster for --workers: auto, or host:port of its head; by default a new cluster on this machine."""
    batch_size: Count = 512
    """Test texts per batch."""
    parallel: bool = True
    """Evaluate a population in one batch; always on. The budget counts evaluations, not generations."""

    eval_every: Count = 100
    """Evaluations between two scores on the development set."""
    print_every: Count = 50
    """Evaluations between two updates of the progress line."""
    max_time: Positive | None = None
    """Stop the search (of each seed) after this many seconds, and test the best prompt."""
    target_metric: Annotated[float, Range(0, 1)] | None = None
    """Stop the search when the development metric reaches this value, between 0 and 1."""
    patience: Count | None = None
    """Stop the search after this many evaluations without a better prompt on the development set."""
    plots: bool = True
    """Draw the plots of a finished run into its folder."""
    report_to: str | None = None
    """Report the curves to tensorboard (event files in the run's folder), wandb, or tensorboard,wandb."""
    output_dir: str | None = None
    """Folder of the run; an unfinished run in it continues. By default a new folder in ./runs."""
    resume: str | None = None
    """Continue the unfinished run in this folder with its own options."""
    push_to_hub: str | None = None
    """Upload the finished prompt to the Hugging Face hub under this id (user/name)."""

    def __post_init__(self) -> None:
        """Convert the values of files and flags to the types of the fields, and check them."""
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            object.__setattr__(self, field.name, coerce(field.name, getattr(self, field.name), hints[field.name]))
        if conflicts := [*self._engine_conflicts(), *self._search_conflicts()]:
            raise UsageError(conflicts[0])

    @classmethod
    def of(cls, **values: Any) -> Options:
        """Return options with the names and values that a user wrote.

        Raises:
            UsageError: if a name is no option, or a value is not valid.
        """
        values = PRESETS.get(values.get("preset") or "", {}) | values
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(
                    f"there is no option {name!r}.{suggest(name, known)} `bbt-fast tune --help` lists them."
                )
        return cls(**values)

    @property
    def generation_size(self) -> int:
        """Candidates per generation; if popsize is 0, by CMA-ES' own rule (Hansen 2016, eq. 48)."""
        return self.popsize or 4 + int(3 * math.log(self.intrinsic_dim))

    @property
    def engine_name(self) -> str:
        """The engine's own name, also where inference_framework names it."""
        return FRAMEWORKS[self.inference_framework] if self.inference_framework else self.engine

    def changed(self, **values: Any) -> Options:
        """Return a copy with some values replaced."""
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """Return all values in the types of JSON and YAML."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}

    def written(self) -> dict[str, Any]:
        """Return the values that differ from the defaults and the preset's, and the preset's name."""
        default = {f.name: f.default for f in fields(self)} | PRESETS.get(self.preset or "", {})
        return {name: value for name in default if (value := getattr(self, name)) != default[name]}

    def _engine_conflicts(self) -> Iterator[str]:
        """Yield a message for each combination of engine options that cannot run."""
        engine, framework = self.engine, self.inference_framework
        if framework is not None and engine not in ("auto", self.engine_name):
            yield f"inference_framework {framework} is the engine {self.engine_name}, but engine is {engine}: give one."
        if (engine == "remote") != (self.url is not None):
            yield "the engine remote needs --url, and --url needs --engine remote: give both or neither."
        if engine == "remote" and self.onnx_model_path:
            yield "onnx_model_path is a graph for an engine on this machine: omit it with --engine remote."
        if engine == "remote" and self.workers is not None:
            yield "each worker loads the model itself: omit --workers with --engine remote."
        if self.workers is not None and ":" in self.device:
            yield f"device is {self.device}, but each of the --workers gets a GPU of its own: use --device cuda."
        if self.ray_address is not None and self.workers is None:
            yield "ray_address needs --workers: give both or neither."
        if not self.parallel:
            yield "parallel cannot be switched off: a population is always evaluated in one batch."

    def _search_conflicts(self) -> Iterator[str]:
        """Yield a message for each combination of search options that cannot run."""
        size, random_proj, original = self.generation_size, self.random_proj, self.streams == "original"
        if self.budget is not None and self.budget < size:
            yield (
                f"budget {self.budget} is less than one generation of {size} candidates (popsize): raise the budget or "
                "lower the popsize."
            )
        if size < SMALLEST_POPSIZE:
            yield f"popsize is {self.popsize}, but must be at least {SMALLEST_POPSIZE}, or 0 for CMA-ES' own rule."
        if self.seeds and self.push_to_hub:
            yield (
                "push_to_hub uploads the prompt of one run: omit --seeds, or upload a seed's folder afterwards "
                "(`bbt-fast push`)."
            )
        if random_proj == "none" and self.optimizer not in ("sep-cma", "snes"):
            yield (
                "random_proj none searches all n x H numbers of a prompt, whose covariance is too large for the "
                f"optimizer {self.optimizer}: take --optimizer sep-cma or snes."
            )
        if random_proj == "none" and self.embeddings > 1:
            yield "embeddings draws several matrices, but random_proj none has no matrix: omit one of the two."
        if self.projection_from is not None and (random_proj != "normal" or original):
            yield "projection_from needs random_proj normal and streams own: omit the other options."
        if original and self.embeddings > 1:
            yield "streams original draws the matrices of one embedding: omit --embeddings."
        if original and (self.engine == "remote" or random_proj == "none"):
            yield "streams original needs the model on this machine, and a random_proj that is not none."
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            yield f"seeds {self.seeds} has the same seed twice: give each seed once."
        if self.init_text is not None and self.cat_or_add == "add":
            yield "init_text needs --cat_or_add cat: in add mode a prompt starts at 0, added to placeholder tokens."
        if self.init_text is not None and self.init_from is not None:
            yield "give one of init_text and init_from."
