"""Runs on the toy engine, and on tiny models.

- make_options: function(algorithm="bbt", **changes) -> resolved Options of a small run
- start: function(folder, options, engine=None, control=None, parts=None, origins=None) -> Result
- model_folder: function(kind="roberta") -> folder of a tiny model with its tokenizer
- tuned: function(algorithm="bbt", kind="roberta", **changes) -> folder of a finished run of a second, made once
- small: function(**changes) -> options of a run on it, for an empty current folder
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bbt_fast.tuner.artifacts.folder import RunFolder
from bbt_fast.tuner.artifacts.result import Result
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.control import Control
from bbt_fast.tuner.run.progress import Silent
from bbt_fast.tuner.run.setup import CUTS
from bbt_fast.tuner.run.single import Parts, Run
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import Preset
from bbt_fast.tuner.tune import tune

LAYERS = 3


@pytest.fixture
def make_options() -> Callable[..., Options]:
    """A function that makes the options of a small run: 12 generations of 8, development scores every 2."""

    def make(algorithm: str = "bbt", **changes: Any) -> Options:
        small = {
            "budget": 96,
            "popsize": 8,
            "intrinsic_dim": 6,
            "eval_every": 16,
            "sigma": 1.0,
            "alpha": 1.0,
            "batch_size": 20,
        }
        options = Options(task_name="toy", algorithm=algorithm, **{**small, **changes})
        return resolve(options, Preset())

    return make


@pytest.fixture
def start(toy_engine: Callable[..., Any], toy_parts: Callable[..., Parts]) -> Callable[..., Result]:
    """A function that begins or goes on with a run in a folder."""

    def run(
        path: Path,
        options: Options,
        engine: Any = None,
        control: Control | None = None,
        parts: Parts | None = None,
        origins: Tensor | None = None,
    ) -> Result:
        cuts = CUTS[options.algorithm]
        engine = engine or toy_engine(cuts, LAYERS)
        zeros = torch.zeros(1 if cuts == "input" else LAYERS, engine.n_prompt_tokens, engine.hidden_size)
        folder = RunFolder(path)
        control = control or Control()
        control.stop_files.append(folder.stop)
        with folder.claim():
            folder.check(options)
            folder.begin(options)
            it = Run(
                options, "toy", ("cold", "warm"), "accuracy", engine, parts or toy_parts(),
                zeros if origins is None else origins,
            )  # fmt: skip
            return it.execute(folder, control, Silent())

    return run


@pytest.fixture(scope="session")
def model_folder(
    make_model: Callable[..., Any], make_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """A function that saves a tiny random model with its tokenizer."""

    def make(kind: str = "roberta") -> str:
        folder = tmp_path_factory.getbasetemp() / f"model-{kind}"
        if not folder.exists():
            tokenizer = make_tokenizer({"roberta": "bpe", "bert": "wordpiece"}[kind])
            make_model(kind, vocab_size=len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def tuned(model_folder: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that tunes a prompt for a tiny model, once for the same arguments; do not change the folder."""
    folders: dict[str, Path] = {}

    def make(algorithm: str = "bbt", kind: str = "roberta", **changes: Any) -> Path:
        options = {
            "model_name": model_folder(kind), "algorithm": algorithm, "engine": "torch", "precision": "fp32",
            "device": "cpu", "popsize": 4, "budget": 24, "eval_every": 8, "n_prompt_tokens": 5, "intrinsic_dim": 10,
            "k_shot": 4, "max_test_examples": 30, "plots": False,
        }  # fmt: skip
        key = f"{algorithm}-{kind}-{sorted(changes.items())}"
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("tuned") / "run"
            tune(**(options | changes), output_dir=str(folders[key]))
        return folders[key]

    return make


@pytest.fixture
def small(
    model_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """A function that makes the options of a run of a second: the demo's sentences, a tiny model, an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(**changes: Any) -> dict[str, Any]:
        options = {
            "model_name": model_folder(), "engine": "torch", "precision": "fp32", "device": "cpu", "popsize": 4,
            "budget": 24, "eval_every": 8, "n_prompt_tokens": 5, "intrinsic_dim": 10, "k_shot": 4,
            "max_test_examples": 12, "plots": False,
        }  # fmt: skip
        return options | changes

    return make
