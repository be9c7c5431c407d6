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
from bbt_fast.tuner.demo import MODEL_DIR

FOLDER = Path("onnx_models")
POPULATION = 20
REPEATS = 5


@dataclass(frozen=True)
class Artifact:
    """One exported chain of graphs."""

    name: str
    files: tuple[Path, ...]
    engine: Engine
    """The chain, loaded; its parity gate has passed."""


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
    add(
        "--batch_size",
        type=int,
        default=32,
        help="texts in the timed batch, as k_shot x classes in a run (default: 32)",
    )
    add(
        "--max_seq_len",
        type=int,
        default=100,
        help="tokens per text in the timed batch, prompt included (default: 100)",
    )
    add("--n_prompt_tokens", type=int, default=50, help="length of the soft prompt (default: 50)")
    add("--prompt_embed_dim", type=int, help="the model's hidden size, checked if given")
    add("--cat_or_add", choices=("add", "cat"), default="add", help="how the prompt joins the text (default: add)")
    add("--deep", action="store_true", help="one graph per layer, for BBTv2; the names below are then folders")
    add("--exported_model_name", default="exported_model", help="name in ./onnx_models (default: exported_model)")
    add("--optimized_model_name", default="optimized_model", help="name in ./onnx_models (default: optimized_model)")
    add("--engine", choices=("ort", "trt"), default="ort", help="what to write graphs for (default: ort)")
    add("--gpu", help="with --engine trt: the card to build for, which need not be here: sm86, or RTX 3090, ...")
    add("--precision", default="auto", help="fp32 or fp16 (default: fp16 on CUDA, else fp32)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if it can be used)")
    return parser


def _export(args: argparse.Namespace) -> list[Artifact]:
    """Write the exported and the optimized graphs; both pass the parity gate when they are loaded."""
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
    """Load the engine that the options ask for, on graphs of its own or on those at a path."""
    engine = load_engine(
        args.engine,
        args.model_name,
        mode=args.cat_or_add,
        n_prompt_tokens=args.n_prompt_tokens,
        cuts="layers" if args.deep else "input",
        precision=args.precision,
        device=args.device,
        onnx_model_path=path,
        ablate=("prefix",) if args.engine == "ort" else (),  # a user's graphs are one chain
    )
    if args.prompt_embed_dim not in (None, engine.hidden_size):
        raise UsageError(
            f"--prompt_embed_dim is {args.prompt_embed_dim}, but {args.model_name} has hidden size "
            f"{engine.hidden_size}. Leave the option out to take the model's."
        )
    return engine


def _load_ahead(args: argparse.Namespace) -> Engine:
    """Return an engine that builds for a card that is not here."""
    return load_ahead(
        load_model(args.model_name),
        gpu_named(args.gpu),
        mode=args.cat_or_add,
        n_prompt_tokens=args.n_prompt_tokens,
        cuts="layers" if args.deep else "input",
        precision=args.precision,
    )


def _write_plans(args: argparse.Namespace) -> str:
    """Build what a search on the timed batch runs, write the plans with their manifest, and say how they do."""
    engine = _load(args) if args.gpu is None else _load_ahead(args)
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
        return f"{len(plans)} plans, {engine.precision} for {args.gpu}, are in {folder}; the card compares them"
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
    """Draw random texts, all of one length, that end with the token the answer is read at."""
    text = length - engine.n_prompt_tokens if engine.mode == "cat" else length
    least = 2 + (engine.n_prompt_tokens if engine.mode == "add" else 0)
    if text < least or batch_size < 1:
        raise UsageError(
            f"--max_seq_len {length} leaves no room for a text beside {engine.n_prompt_tokens} prompt tokens, or "
            f"--batch_size {batch_size} is no batch. Give at least {engine.n_prompt_tokens + 2} tokens and one text."
        )
    ids = torch.randint(len(engine.word_embeddings), (batch_size, text), generator=torch.Generator().manual_seed(0))
    return Examples(ids, torch.ones_like(ids), torch.full((batch_size,), text - 1), torch.tensor([5, 6]))


def _measure(artifacts: list[Artifact], examples: Examples) -> dict[str, list[float]]:
    """Time a generation on each artifact in turn: seconds, by artifact."""
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
    flag = "--algorithm bbtv2 " if args.deep else ""
    target = artifacts[1].files[0].parent if args.deep else artifacts[1].files[0]
    print(f"\nbbt-fast --engine ort {flag}--cat_or_add {engine.mode} --onnx_model_path {target}")


def _megabytes(files: tuple[Path, ...]) -> float:
    return sum(part.stat().st_size for file in files for part in file.parent.glob(f"{file.name}*")) / 1e6


if __name__ == "__main__":
    sys.exit(main())
