"""Build TensorRT for RTX plans of every family's graphs, for a GPU that need not be in this machine.

    python benchmarks/plans.py                                     all families, precisions, modes and cuts, RTX 3090
    python benchmarks/plans.py --families bert t5 --precisions fp16 --gpu "RTX 4090"

The models are small and have random weights. Their attention heads have size 64, as in most real models: the builder
has no fused kernel for some other sizes. The table has three results. "fused": every attention layer of the model
reaches TensorRT as an attention layer, and the builder fuses each. "in parts": the builder succeeds only if it may
split attention into products and a softmax. "products": the model itself computes attention as products. The script
writes a JSON record and the table.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

from tqdm import tqdm
from transformers import PreTrainedModel

from bbt_fast.benchmarks.harness.output import markdown, publish
from bbt_fast.benchmarks.harness.record import RESULTS, record_of
from bbt_fast.benchmarks.harness.tiny import tiny_model
from bbt_fast.engine import tensorrt as driver
from bbt_fast.engine.ahead import AheadEngine, load_ahead
from bbt_fast.engine.tensorrt import PRECISIONS
from bbt_fast.export import tensorrt
from bbt_fast.export.bindings import Gpu, gpu_named
from bbt_fast.export.cache import cache_folder
from bbt_fast.export.errors import DeviceError
from bbt_fast.export.families import FAMILIES
from bbt_fast.export.model import Cuts
from bbt_fast.export.prompts import Mode

N_PROMPT_TOKENS = 5
HEADS_OF_64 = {"hidden_size": 256, "head_dim": 64, "d_kv": 64}


@dataclass(frozen=True)
class Network:
    """The network that TensorRT's parser builds from a graph."""

    inputs: frozenset[str]
    outputs: tuple[str, ...]
    attentions: int
    """The number of attention layers."""
    attends_by: str
    """How attention knows the bounds of texts: lengths, masks (or biases), or nothing."""


@contextmanager
def watched(*, fused: bool) -> Iterator[list[Network]]:
    """Collect the networks that TensorRT's parser builds, and build each plan without the cache.

    Args:
        fused: whether the builder must not split attention into products and a softmax.
    """
    seen: list[Network] = []
    parse = tensorrt._network

    def look(builder: Any, path: Path, by_lengths: bool) -> Any:
        network = parse(builder, path, by_lengths)
        found = list(tensorrt.attentions(network))
        for attention in found:
            attention.decomposable = not fused
        masked = any(attention.mask is not None for attention in found)
        seen.append(
            Network(
                frozenset(network.get_input(index).name for index in range(network.num_inputs)),
                tuple(network.get_output(index).name for index in range(network.num_outputs)),
                len(found),
                "lengths" if by_lengths else "masks" if masked else "nothing",
            )
        )
        return network

    with tempfile.TemporaryDirectory() as folder:

        def build(key: Any, make: Callable[[Path], None]) -> Path:
            del key
            entry = Path(folder) / f"plan-{len(seen)}"
            entry.mkdir()
            make(entry)
            return entry

        with (
            patch.object(tensorrt, "_network", look),
            patch.object(tensorrt, "entry", build),
            patch.object(driver, "write_record", lambda *_: None),  # a failure here must not disable lengths elsewhere
        ):
            yield seen


def build(
    model: PreTrainedModel, gpu: Gpu, mode: Mode, cuts: Cuts, precision: str, *, fused: bool
) -> tuple[AheadEngine, list[Network]]:
    """Build a model's plans for one candidate.

    Raises:
        DeviceError: if TensorRT refuses a graph.
    """
    with watched(fused=fused) as networks:
        engine = load_ahead(model, gpu, mode=mode, n_prompt_tokens=N_PROMPT_TOKENS, cuts=cuts, precision=precision)
    return engine, networks


def whole(engine: AheadEngine, networks: Sequence[Network]) -> bool:
    """Say whether every attention layer of the model reached TensorRT as an attention layer."""
    (stages,) = engine._runners
    return all(network.attentions == stage.n_attentions for stage, network in zip(stages, networks, strict=True))


def row(model: PreTrainedModel, gpu: Gpu, mode: Mode, cuts: Cuts, precision: str) -> dict[str, Any]:
    """Return the result for a model's plans: fused, in parts, products, or refused."""
    reasons: list[str] = []
    for fused in (True, False):
        began = time.perf_counter()
        try:
            engine, networks = build(model, gpu, mode, cuts, precision, fused=fused)
        except DeviceError as error:
            reasons.append(str(error).splitlines()[0].replace(f"{cache_folder()}{os.sep}", ""))
            continue
        return {
            "status": "products" if not whole(engine, networks) else "fused" if fused else "in parts",
            "plans": len(networks),
            "attentions": sum(network.attentions for network in networks),
            "by": sorted({network.attends_by for network in networks if network.attentions}),
            "seconds": time.perf_counter() - began,
            "reasons": reasons,
        }
    return {"status": "refused", "reasons": reasons}


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown: a row per model type, a column per precision."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    by: dict[str, set[str]] = defaultdict(set)
    for row in record["rows"]:
        found[row["model_type"]][row["precision"]].append(row["status"])
        by[row["model_type"]] |= set(row.get("by", ()))
    precisions = list(dict.fromkeys(row["precision"] for row in record["rows"]))
    most = max(len(cases) for columns in found.values() for cases in columns.values())
    rows = [
        [f"`{kind}`", *(", ".join(sorted(set(some))) for some in (*map(columns.__getitem__, precisions), by[kind]))]
        for kind, columns in found.items()
    ]
    lines = [
        f"Plans for {record['gpu']}, {most} of each (modes and cuts), built by TensorRT for RTX {record['tensorrt']} "
        f"without a GPU; commit {record['environment']['commit']}.",
        "",
        *markdown(("`model_type`", *precisions, "attention is told"), "l", rows),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, print the table and write the record."""
    known = [kind for family in FAMILIES for kind in family.model_types]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=known, default=known, metavar="TYPE", help="model types")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--modes", nargs="+", choices=get_args(Mode), default=get_args(Mode))
    parser.add_argument("--cuts", nargs="+", choices=get_args(Cuts), default=get_args(Cuts))
    parser.add_argument("--gpu", default="RTX 3090", help="a card, or a compute capability such as sm86")
    parser.add_argument("--output", type=Path, default=RESULTS / "plans-sm86.json", help="the record")
    args = parser.parse_args(arguments)
    gpu = gpu_named(args.gpu)
    logging.getLogger("bbt_fast").setLevel(logging.CRITICAL)  # the record names refused graphs
    rows = []
    for kind in tqdm(args.families, desc="families"):
        model = tiny_model(next(family for family in FAMILIES if kind in family.model_types), kind, **HEADS_OF_64)
        for precision, mode, cuts in product(args.precisions, args.modes, args.cuts):
            case = {"model_type": kind, "precision": precision, "mode": mode, "cuts": cuts}
            rows.append(case | row(model, gpu, mode, cuts, precision))
    version = tensorrt.tensorrt_version().removeprefix("rtx-")
    record = record_of("plans", "cpu", 1, gpu=str(gpu), tensorrt=version, rows=rows)
    print(publish(record, args.output, table))


if __name__ == "__main__":
    main()
