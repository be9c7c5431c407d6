#!/usr/bin/env python
"""Export a model's graph, optimize it with ONNX Runtime, and compare the two.

The script writes both graphs to ./onnx_models/. It prints their agreement with PyTorch fp32, nodes, size and speed.
`bbt-fast --engine ort --onnx_model_path FILE` runs such a graph; give it the same model, mode and prompt length.
Without options the script uses the embedded demo model and needs no internet access.

--engine trt builds TensorRT plans for the timed batch instead, and writes them with a manifest. --gpu builds them for
the GPU of another machine and does not run them.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coloredlogs
import onnx_ir as ir
import torch
from tqdm import tqdm

from bbt_fast.engine import Engine, Examples, load_engine
from bbt_fast.engine.ahead import load_ahead
from bbt_fast.engine.ort import optimize_onnx
from bbt_fast.export.bindings import gpu_named
from bbt_fast.export.cache import MANIFEST, read_json, write_json
from bbt_fast.export.errors import BbtFastError, UsageError
from bbt_fast.export.graphs import node_counts, save_graph
from bbt_fast.export.loading import load_model
from bbt_fast.export.parity import asked
from bbt_fast.tuner.demo import MODEL_DIR

FOLDER = Path("onnx_models")
POPULATION = 20
REPEATS = 5


@dataclass(frozen=True)
class Artifact:
    """An exported chain of graphs."""

    name: str
    files: tuple[Path, ...]
    engine: Engine
    """The loaded chain, which has passed the parity gate."""


def main(argv: list[str] | None = None) -> int:
    """Export, optimize, compare and time; return the exit status."""
    args = _parser().parse_args(argv)
    coloredlogs.install(level="INFO", logger=logging.getLogger("bbt_fast"), fmt="%(message)s")
    try:
        if args.gpu is not None and args.engine != "trt":
            raise UsageError("--gpu is for --engine trt: ONNX graphs run on every GPU.")
        if args.engine == "trt":
            print(_write_plans(args))
            return 0
        artifacts = _export(args)
        examples = _examples(artifacts[0].engine, args.batch_size, args.max_seq_len)
        times = _measure(artifacts, examples)
    except BbtFastError as error:
        print(f"export_and_optimize: {error}", file=sys.stderr)
        return 2
    _report(artifacts, times, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name", default=str(MODEL_DIR), help="hub id or folder (default: the embedded demo model)")
    add("--batch_size", type=int, default=32, help="texts in the timed batch: a run has k_shot x classes (default: 32)")
    add("--max_seq_len", type=int, default=100, help="tokens per text in the timed batch, with prompt (default: 100)")
    add("--n_prompt_tokens", type=int, default=50, help="length of the soft prompt (default: 50)")
    add("--prompt_embed_dim", type=int, help="the model's hidden size, checked if given")
    add("--cat_or_add", choices=("add", "cat"), default="add", help="how the prompt joins the text (default: add)")
    add("--deep", action="store_true", help="one graph per layer, for BBTv2; the names below are then folders")
    add("--exported_model_name", default="exported_model", help="name in ./onnx_models (default: exported_model)")
    add("--optimized_model_name", default="optimized_model", help="name in ./onnx_models (default: optimized_model)")
    add("--engine", choices=("ort", "trt"), default="ort", help="the engine of the graphs (default: ort)")
    add("--gpu", help="with --engine trt: build for this card, which can be elsewhere: sm86, RTX 3090, ...")
    add("--precision", default="auto", help="fp32 or fp16 (default: fp16 on CUDA, else fp32)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if it can be used)")
    return parser


def _export(args: argparse.Namespace) -> list[Artifact]:
    """Write the exported and the optimized graphs; each passes the parity gate when it loads."""
    built = _load(args)
    artifacts = []
    sources = built.artifacts
    for label, name in (("exported", args.exported_model_name), ("optimized", args.optimized_model_name)):
        target = FOLDER / (name if args.deep or name.endswith(".onnx") else f"{name}.onnx")
        files = tuple(target / path.name for path in sources) if args.deep else (target,)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for source, file in zip(sources, files, strict=True):
            if label == "exported":
                save_graph(ir.load(source), file)
            else:
                optimize_onnx(source, file, built.device)
        artifacts.append(Artifact(label, files, _load(args, target)))
    return artifacts


def _load(args: argparse.Namespace, path: Path | None = None) -> Engine:
    """Load the engine that the options ask for, on its own graphs or on those at a path."""
    shape: dict[str, Any] = {
        "mode": args.cat_or_add, "n_prompt_tokens": args.n_prompt_tokens, "precision": args.precision,
        "cuts": "layers" if args.deep else "input",
    }  # fmt: skip
    if args.gpu is not None:
        engine: Engine = load_ahead(load_model(args.model_name), gpu_named(args.gpu), **shape)
    else:
        ablate = ("prefix", "packing") if args.engine == "ort" else ()  # a user's graphs are one chain, of padded texts
        shape |= {"device": args.device, "onnx_model_path": path, "ablate": ablate}
        engine = load_engine(args.engine, args.model_name, **shape)
    if args.prompt_embed_dim not in (None, engine.hidden_size):
        raise UsageError(
            f"--prompt_embed_dim is {args.prompt_embed_dim}, but {args.model_name} has hidden size "
            f"{engine.hidden_size}. Leave the option out to take the model's."
        )
    return engine


def _write_plans(args: argparse.Namespace) -> str:
    """Build the plans of a search on the timed batch, write them with a manifest, and return a summary."""
    engine = _load(args)
    examples = _examples(engine, args.batch_size, args.max_seq_len)
    engine.prepare(examples, POPULATION)
    folder = FOLDER / f"{args.exported_model_name}_trt"
    folder.mkdir(parents=True, exist_ok=True)
    plans = {}
    for number, path in enumerate(engine.artifacts):
        name = f"plan_{number:02d}.engine"
        shutil.copyfile(path, folder / name)
        plans[name] = read_json(path.with_name(MANIFEST))
    write_json(folder / MANIFEST, {"parity": engine.parity, "plans": plans})
    if args.gpu is not None:
        return f"{len(plans)} plans, {engine.precision} for {args.gpu}, are in {folder}; the card runs the parity gate"
    times = _measure([Artifact("plans", engine.artifacts, engine)], examples)["plans"]
    return "\n".join(
        [
            f"{len(plans)} plans, {engine.precision} on {engine.device}, are in {folder}",
            f"Spearman of a random population's losses with PyTorch fp32's: {engine.parity['spearman']:.4f}",
            f"{1e3 * statistics.median(times):.1f} milliseconds a generation ({POPULATION} candidates x "
            f"{args.batch_size} texts x {args.max_seq_len} tokens, median of {REPEATS})",
        ]
    )


def _examples(engine: Engine, batch_size: int, length: int) -> Examples:
    """Draw random texts of one length, with the answer at their last token."""
    text = length - engine.n_prompt_tokens if engine.mode == "cat" else length
    least = 2 + (engine.n_prompt_tokens if engine.mode == "add" else 0)
    if text < least or batch_size < 1:
        raise UsageError(
            f"--max_seq_len {length} has no room for a text beside {engine.n_prompt_tokens} prompt tokens, or "
            f"--batch_size {batch_size} is no batch. Give at least {engine.n_prompt_tokens + 2} tokens and one text."
        )
    ids = torch.randint(len(engine.word_embeddings), (batch_size, text), generator=torch.Generator().manual_seed(0))
    answers, words = torch.full((batch_size,), text - 1), torch.tensor([5, 6])
    return asked(engine.staged, ids, torch.ones_like(ids), answers, words)


def _measure(artifacts: list[Artifact], examples: Examples) -> dict[str, list[float]]:
    """Time a generation on each artifact in turn; return the seconds by artifact."""
    engine = artifacts[0].engine
    prompts = torch.randn(
        POPULATION, engine.n_prompt_tokens, engine.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    sessions = {artifact.name: artifact.engine.open(examples) for artifact in artifacts}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for repeat in tqdm(range(REPEATS + 1), desc="timing", unit="round", disable=None, leave=False):
        for name, session in sessions.items():
            began = time.perf_counter()
            session.evaluate(prompts).cpu()
            if repeat:  # the first warms up
                times[name].append(time.perf_counter() - began)
    return times


def _report(artifacts: list[Artifact], times: dict[str, list[float]], args: argparse.Namespace) -> None:
    engine = artifacts[0].engine
    print(
        f"\n{args.model_name}, {engine.mode}, {engine.precision} on {engine.device}; {POPULATION} candidates x "
        f"{args.batch_size} texts x {args.max_seq_len} tokens, median of {REPEATS}"
    )
    rows = [("", *(artifact.name for artifact in artifacts))]
    figures = [artifact.engine.parity for artifact in artifacts]
    rows.append(("largest logit difference to PyTorch fp32", *(f"{f['max_logit_difference']:.1e}" for f in figures)))
    rows.append(("Spearman of a random population's losses", *(f"{f['spearman']:.4f}" for f in figures)))
    counts = [sum((node_counts(path) for path in artifact.files), Counter[str]()) for artifact in artifacts]
    rows.append(("nodes", *(str(count.total()) for count in counts)))
    for operator in sorted(set().union(*counts), key=lambda name: (-counts[0][name], name)):
        if counts[0][operator] != counts[1][operator] or operator == "Attention":
            rows.append((f"  {operator}", *(str(count[operator]) for count in counts)))
    rows.append(("size, MB", *(f"{_megabytes(artifact.files):.1f}" for artifact in artifacts)))
    medians = [statistics.median(times[artifact.name]) for artifact in artifacts]
    rows.append(("milliseconds a generation", *(f"{1e3 * median:.1f}" for median in medians)))
    rows.append(("evaluations a second", *(f"{POPULATION / median:.1f}" for median in medians)))
    for label, *values in rows:
        print(f"{label:<42}" + "".join(f"{value:>14}" for value in values))
    target = artifacts[1].files[0].parent if args.deep else artifacts[1].files[0]
    flags = {
        "algorithm": "bbtv2" if args.deep else "bbt", "model_name": args.model_name, "cat_or_add": engine.mode,
        "n_prompt_tokens": engine.n_prompt_tokens, "precision": engine.precision, "onnx_model_path": target,
    }  # fmt: skip
    print(f"\nbbt-fast --engine ort {' '.join(f'--{name} {value}' for name, value in flags.items())}")


def _megabytes(files: tuple[Path, ...]) -> float:
    return sum(part.stat().st_size for file in files for part in file.parent.glob(f"{file.name}*")) / 1e6


if __name__ == "__main__":
    sys.exit(main())
