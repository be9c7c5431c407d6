"""Feed damaged files to every reader of user files and of files of earlier runs.

    python scripts/fuzz.py --inputs 10000

A reader may raise only ``BbtFastError``, which the user sees as a message, not as a traceback. Inputs are random bytes,
and valid files with parts cut, flipped, repeated, or replaced by pieces of such files. The script stops at the first
input that breaks a reader, and shrinks it. tests/tuner/test_fuzz.py runs a few inputs per target.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow.parquet
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from bbt_fast.export.cache import MANIFEST, entry, read_record, write_record
from bbt_fast.export.errors import BbtFastError
from bbt_fast.tuner.artifacts.files import write_json
from bbt_fast.tuner.artifacts.folder import read_config, recorded_engine
from bbt_fast.tuner.artifacts.journal import Journal
from bbt_fast.tuner.artifacts.metrics_log import MetricsLog
from bbt_fast.tuner.artifacts.prompt import read_prompt, save_prompt
from bbt_fast.tuner.artifacts.prompt_config import PROMPT_CONFIG, PromptConfig, read_prompt_config
from bbt_fast.tuner.artifacts.result import Result, read_result
from bbt_fast.tuner.cli.tune import read_config_file
from bbt_fast.tuner.data.splits import load_splits
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.tasks.task import TASKS_DIR, load_task

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """A kind of file, and its reader."""

    name: str
    """The name of the file, which is alone in its folder."""
    read: Read
    """Reads the file in a folder."""
    valid: Callable[[Path], None]
    """Writes a valid file to a path."""
    pieces: tuple[str, ...] = ()
    """The pieces that replace parts of a valid file."""
    sign: Callable[[Path, dict[str, object]], None] | None = None
    """Writes any values as a file with valid checksums, so that the reader gets to the values."""
    names: tuple[str, ...] = ()
    """The names of such values."""

    @cache  # noqa: B019 - one entry per target
    def whole(self) -> bytes:
        """Return the bytes of a valid file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.name
            self.valid(path)
            return path.read_bytes()


JSON = ("null", "[]", "{}", "-1", "1e999", "NaN", '"\\ud800"', "9" * 400, "[" * 3000, "true", '""', ",", "\n", "\0")
YAML = (
    "[", "{", "&a", "*a", "!!python/name:os.system ", "- ", ": ", "\n", "'", "{mask}", "\t", "<<: ", "|", "0x1F", "~",
)  # fmt: skip
TABLE = ('"', ",", "\t", "\n", "\r", "\0", "\ufeff", "label", "text", "-1", "1e9", "é")
ROWS = [{"text": f"a sentence about {i}", "label": i % 2} for i in range(6)]
RECORD: dict[str, object] = {"kind": "start", "engine": "torch", "precision": "fp32", "device": "cpu"}


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
"""The values of JSON."""


def read_data(folder: Path) -> object:
    """Read the file in a folder as a run reads its data; the file serves as both splits."""
    (path,) = folder.iterdir()
    (folder / f"test{path.suffix}").write_bytes(path.read_bytes())
    return load_splits(load_task("demo"), data_dir=folder, k_shot=1, seed=1)


def write_table(path: Path) -> None:
    """Write rows as a table whose delimiter follows from the suffix."""
    lines = ("text,label", *(f"{row['text']},{row['label']}" for row in ROWS))
    path.write_text("\n".join(lines).replace(",", "\t" if path.suffix == ".tsv" else ",") + "\n", encoding="utf-8")


def write_parquet(path: Path) -> None:
    """Write rows as Parquet."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_jsonl(path: Path) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def read_journal(folder: Path) -> None:
    """Read a journal and extend it, as a resumed run does."""
    recorded_engine(folder)
    sign_journal(folder / "journal.jsonl", RECORD)


def write_journal(path: Path) -> None:
    """Write a short journal."""
    for record in (RECORD, {"kind": "generation", "layer": 0, "candidates": "0", "fitness": [0.5, 1e-310, -0.0]}):
        sign_journal(path, record)


def sign_journal(path: Path, values: dict[str, object]) -> None:
    """Append a record to a journal."""
    with closing(Journal(path)) as journal:
        journal.append(values)


def read_metrics(folder: Path) -> None:
    """Read curves and extend them."""
    with closing(MetricsLog(folder / "metrics.jsonl")) as log:
        log.known(0)
        log.append({"generation": 0, "seconds": 1.0})


def write_metrics(path: Path) -> None:
    """Write short curves."""
    for generation in range(3):
        sign_metrics(path, {"generation": generation, "loss": 0.5, "seconds": 0.1})


def sign_metrics(path: Path, values: dict[str, object]) -> None:
    """Append a line to curves."""
    with closing(MetricsLog(path)) as log:
        log.append({"generation": 0, **values})


def cache_entry(cache: Path) -> Path:
    """Return an entry of a cache, which is built if it is missing or damaged."""
    os.environ["BBT_FAST_CACHE"] = str(cache)
    return entry({"model": "fuzz"}, lambda folder: (folder / "graph").write_bytes(b"graph") and None)


def read_manifest(folder: Path) -> None:
    """Ask for a cache entry that has the manifest in a folder."""
    (cache_entry(folder / "cache") / MANIFEST).write_bytes((folder / MANIFEST).read_bytes())
    if (cache_entry(folder / "cache") / "graph").read_bytes() != b"graph":
        raise AssertionError("the cache returned a damaged entry")


def write_manifest(path: Path) -> None:
    """Write the manifest of that entry."""
    with tempfile.TemporaryDirectory() as folder:
        path.write_bytes((cache_entry(Path(folder)) / MANIFEST).read_bytes())


def write_prompt_config(path: Path) -> None:
    """Write the configuration of a prompt for the demo."""
    PromptConfig("demo", None, "0", "bbt", "add", 50, 16, 42, "masked", load_task("demo")).write(path.parent)


def write_prompt(path: Path) -> None:
    """Write a prompt."""
    save_prompt(path, torch.arange(12.0).reshape(2, 3, 2), {"model": "m", "seed": 42})


def json_target(name: str, read: Read, valid: Callable[[Path], None], kind: type[Any], *more: str) -> Target:
    """Return the target of a JSON file with the fields of a dataclass, and more."""
    return Target(name, read, valid, JSON, write_json, (*more, *(field.name for field in fields(kind))))


TARGETS: Mapping[str, Target] = {
    "task": Target(
        "task.yaml",
        lambda folder: load_task(folder / "task.yaml"),
        lambda path: path.write_bytes((TASKS_DIR / "sst2.yaml").read_bytes()) and None,
        YAML,
    ),
    "options": Target(
        "options.yaml",
        lambda folder: Options.of(**read_config_file(folder / "options.yaml")),
        lambda path: path.write_text("task_name: demo\nbudget: 200\nseeds: [1, 2]\nsigma: 0.5\n") and None,
        (*YAML, "budget", "1e400", "-0", "yes", "seeds"),
    ),
    **{suffix: Target(f"train.{suffix}", read_data, write_table, TABLE) for suffix in ("csv", "tsv")},
    "parquet": Target("train.parquet", read_data, write_parquet, TABLE),
    "jsonl": Target("train.jsonl", read_data, write_jsonl, (*JSON, "text", "label", '"text": 3')),
    "journal": Target("journal.jsonl", read_journal, write_journal, JSON, sign_journal, tuple(RECORD)),
    "metrics": Target("metrics.jsonl", read_metrics, write_metrics, JSON, sign_metrics, ("loss", "seconds")),
    "config": json_target("config.json", read_config, lambda path: write_json(path, Options().as_dict()), Options),
    "prompt_config": json_target(PROMPT_CONFIG, read_prompt_config, write_prompt_config, PromptConfig, "format"),
    "result": json_target(
        "result.json", read_result, lambda path: write_json(path, {"model": "m", "seconds": {}}), Result
    ),
    "prompt": Target(
        "prompt.safetensors",
        read_prompt,
        write_prompt,
        (*JSON, "F64", "BF16", '"shape":[9,9]'),
        lambda path, values: save_prompt(path, torch.ones(2, 2), values),
        ("model", "seed"),
    ),
    "manifest": Target(MANIFEST, read_manifest, write_manifest, (*JSON, "../x", '"files": {"..": "0"}')),
    "parity": Target(
        "parity.json",
        lambda folder: read_record(folder / "parity.json"),
        lambda path: write_record(path, {"spearman": 1.0}),
        JSON,
    ),
}


def signed(target: Target, values: dict[str, object]) -> bytes:
    """Return a file of these values with valid checksums."""
    assert target.sign is not None
    with tempfile.TemporaryDirectory() as folder:
        target.sign(Path(folder) / target.name, values)
        return (Path(folder) / target.name).read_bytes()


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """Draw a file: a valid one with one to four changes, one of other values, or random bytes."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=300))
    if kind < 4 and target.sign is not None:
        return signed(target, draw(st.dictionaries(st.sampled_from((*target.names, "x")), VALUES, max_size=6)))
    content = bytearray(target.whole())
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.sampled_from((0, 1, 2, 5, 20, 200))))
        new = draw(
            st.one_of(
                st.sampled_from(("", *target.pieces)).map(lambda text: text.encode("utf-8", "surrogatepass")),
                st.binary(max_size=8),
                st.just(bytes(content[begin:end]) * 2),
                st.sampled_from([bytes(byte ^ 1 << bit for byte in content[begin : begin + 1]) for bit in range(8)]),
            )
        )
        content[begin:end] = new
    return bytes(content)


def feed(target: Target, content: bytes) -> bool:
    """Let a target read a file; return whether it refused it. Errors other than BbtFastError pass through."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / target.name).write_bytes(content)
        try:
            target.read(Path(folder))
        except BbtFastError as error:
            if not str(error).strip():
                raise AssertionError("an error without a message") from error
            return True
    return False


def run(name: str, inputs: int, *, seed: int | None = None) -> tuple[int, int]:
    """Feed a target a number of inputs, which are always the same without a seed.

    Returns:
        The numbers of read and of refused inputs.
    """
    target, counts = TARGETS[name], [0, 0]

    @settings(
        max_examples=inputs, derandomize=seed is None, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(content=damaged(target))
    def read_or_refuse(content: bytes) -> None:
        counts[feed(target, content)] += 1

    (read_or_refuse if seed is None else seeded(seed)(read_or_refuse))()
    return counts[0], counts[1]


def main(argv: list[str] | None = None) -> int:
    """Run all targets, and print the numbers of read and refused inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="total, shared between the targets")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    parser.add_argument("--only", choices=TARGETS, help="one target")
    options = parser.parse_args(argv)
    logging.disable()  # readers warn of each damaged file
    names = [options.only] if options.only else list(TARGETS)
    each, total = -(-options.inputs // len(names)), 0
    for name in names:
        began = time.perf_counter()
        read, refused = run(name, each, seed=options.seed)
        total += read + refused
        print(f"{name:10} {read:6} read  {refused:6} refused  {time.perf_counter() - began:6.1f} s", flush=True)
    print(f"{total} inputs, and no error but BbtFastError")
    return 0


if __name__ == "__main__":
    sys.exit(main())
