"""Runs in processes of their own, which can be killed, and what a run must come to all the same.

- nursery: function(options, cache, **what) -> {"status", "message"}; see nursery.py for what can be asked for
- model: folder of a tiny model with its tokenizer, of the embedded demo's kind
- options: function(**changes) -> options of a run of a second on it
- traces: function(cache), which puts the exporter's traces of the model into a cache: a graph then takes no time
- damages: (name, function(path)) pairs: files truncated, with a bit flipped, emptied and removed
- figures: function(folder) -> all that a run's result must not depend on interruptions in
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bbt_fast import tune
from bbt_fast.export.cache import cache_folder
from bbt_fast.export.traces import FILE as TRACE
from bbt_fast.tuner.artifacts.files import CHECKSUM
from bbt_fast.tuner.artifacts.result import MEASURED

NURSERY = Path(__file__).with_name("nursery.py")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that starts a run in a process of its own and returns how that ended."""
    log = (tmp_path_factory.mktemp("nursery") / "log").open("w+")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(NURSERY)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(options: dict[str, Any], cache: Path, **what: Any) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"options": options, "cache": str(cache), **what}
        print(json.dumps(request), file=process.stdin, flush=True)
        line = process.stdout.readline()
        assert line, Path(log.name).read_text()
        answer: dict[str, Any] = json.loads(line)
        return answer

    yield ask
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    log.close()


@pytest.fixture(scope="session")
def model(
    make_model: Callable[..., Any], make_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A folder with a tiny random model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer("bpe")
    make_model("roberta", vocab_size=len(tokenizer), **SIZES).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def options(model: str) -> Callable[..., dict[str, Any]]:
    """A function that makes the options of a run of a second."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "task_name": "demo", "model_name": model, "engine": "torch", "precision": "fp32", "device": "cpu",
            "popsize": 4, "budget": 48, "eval_every": 8, "n_prompt_tokens": 3, "intrinsic_dim": 10, "k_shot": 4,
            "max_test_examples": 12, "plots": False,
        } | changes  # fmt: skip

    return make


@pytest.fixture(scope="session")
def traces(options: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """A function that copies the traces of a run into a cache."""
    kept = cache_folder()
    tune(**options(engine="ort", budget=8), output_dir=str(tmp_path_factory.mktemp("traced") / "run"))

    def copy(cache: Path) -> None:
        for trace in kept.glob(f"*/{TRACE}"):
            shutil.copytree(trace.parent, cache / trace.parent.name)

    return copy


def truncated(share: float) -> Callable[[Path], None]:
    """Damage: the file ends after this share of it."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def flipped(share: float, bit: int) -> Callable[[Path], None]:
    """Damage: a bit of the byte at this share of the file is flipped."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 1 << bit
        path.write_bytes(content)

    return damage


@pytest.fixture(scope="session")
def damages() -> Callable[[int], dict[str, Callable[[Path], Any]]]:
    """A function that draws damages: so many truncations and bit flips, and a file emptied and removed."""

    def draw(n: int) -> dict[str, Callable[[Path], Any]]:
        generator = random.Random(n)
        found: dict[str, Callable[[Path], Any]] = {
            "emptied": lambda path: path.write_bytes(b""),
            "removed": lambda path: path.unlink(),
        }
        for _ in range(n):
            share, bit = generator.random(), generator.randrange(8)
            found |= {
                f"truncated at {share:.3f}": truncated(share),
                f"bit {bit} flipped at {share:.3f}": flipped(share, bit),
            }
        return found

    return draw


@pytest.fixture(scope="session")
def figures() -> Callable[[Path], tuple[Any, ...]]:
    """A function that returns what must be the same of a run that was interrupted and of one that was not."""

    def read(folder: Path) -> tuple[Any, ...]:
        result = json.loads((folder / "result.json").read_text())
        kept = {name: value for name, value in result.items() if name not in (*MEASURED, CHECKSUM)}
        return kept, (folder / "prompt.safetensors").read_bytes(), (folder / "journal.jsonl").read_bytes()

    return read
