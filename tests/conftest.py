"""Shared fixtures. Ask for them by name; nothing here is imported by a test.

    repo_root       Path of the checkout.
    shared_file     function(*parts) -> Path below the folder ``shared`` beside the checkout (golden, data, models);
                    skips the test if that one is missing.
    golden_file     function(family, *name) -> Path of a tiny model or its answers: those of the original implementation
                    in ``shared`` if they are there, else those in tests/goldens (scripts/make_goldens.py).
    make_model      function(kind="roberta", seed=0, **config) -> tiny random masked language model, eval mode, frozen.
                    kind is a key of ``TINY_MODELS`` below; config overrides any field of the transformers config.
    roberta, bert   ``make_model("roberta")``, ``make_model("bert")``, made once per run: do not change their weights.
    make_examples   function(model, mode="add", n_prompt_tokens=5, n_examples=6, n_classes=3, min_length=4,
                    max_length=20, prompt_start=1, seed=0) -> random ``Examples``: [CLS], n placeholders (add mode),
                    text, [MASK], [SEP]; min_length and max_length bound the number of text tokens.
    make_prompts    function(model, n_candidates=4, n_prompt_tokens=5, scale=0.5, seed=0) -> [P, n, H] float32.
    export_script   function(model, *flags) -> exit status of scripts/export_and_optimize.py in an empty folder.
    fake_tensorrt   the module tests/fake_tensorrt/tensorrt.py in TensorRT's place: `load_engine("trt", device="cpu")`
                    computes with ONNX Runtime while this fixture lasts (the tests of one file).
    fake            the same module for one test, without builds or faults of other tests.

No test reaches the network (``HF_HUB_OFFLINE``) or the user's own cache: ``XDG_CACHE_HOME`` and ``BBT_FAST_CACHE``
point to a folder that lasts for the test run, so artifacts built by one test serve the next. BBT_FAST_TESTS_CACHE names
one that keeps the exporter's traces for later runs.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

# Read when huggingface_hub is imported, hence before it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Tiny models gain nothing from threads, and lose much when processes share the cores; read when numpy and torch load.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from bbt_fast.export.examples import Examples

REPO_ROOT = Path(__file__).resolve().parent.parent
# How long an example takes says how busy the machine is, not whether the code is right; fixtures here keep no state.
# The examples are the same each time in .ci/run, so that a failure is of the change, and others on a person's machine.
CHECKS_LEFT_OUT = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("ours", deadline=None, suppress_health_check=CHECKS_LEFT_OUT, derandomize="CI" in os.environ)
settings.load_profile("ours")
FIRST_TEXT_TOKEN = 5
SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-5,  # every test's, so that they share traces
    "max_position_embeddings": 130,
    # Far above the usual 0.02: logits that hardly depend on the input would let a wrong engine pass.
    "initializer_range": 0.2,
}
TINY_MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "roberta": ("RobertaForMaskedLM", {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}),
    "bert": ("BertForMaskedLM", {"pad_token_id": 0}),
    "gpt2": ("GPT2LMHeadModel", {"pad_token_id": 0, "n_inner": 64}),
}


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a cache folder of its own, which parallel workers share."""
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker inherits it
        cache = tempfile.TemporaryDirectory(prefix="bbt-fast-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ["XDG_CACHE_HOME"] = cache.name
        os.environ["BBT_FAST_CACHE"] = str(Path(cache.name) / "bbt-fast")
        if "BBT_FAST_TESTS_CACHE" in os.environ:
            own, kept = Path(cache.name) / "bbt-fast", Path(os.environ["BBT_FAST_TESTS_CACHE"])
            copy_traces(kept, own)
            config.add_cleanup(lambda: copy_traces(own, kept))
    if config.getoption("numprocesses", None):
        return  # the workers run the tests; this process need not import what they do
    import torch
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    import bbt_fast.engine  # noqa: F401

    # Each export parses the source of 500 operators anew, a fifth of its time, for a table that is always the same.
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

    # The libraries' own objects live as long as the process, and are not worth looking through again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    torch.set_num_threads(1)


def copy_traces(source: Path, target: Path) -> None:
    """Copy the traces that a cache holds and another lacks; graphs and plans are for the tests to build."""
    for trace in source.glob("*/trace.onnx"):
        if not (target / trace.parent.name).exists():
            shutil.copytree(trace.parent, target / trace.parent.name)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout's folder."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_file() -> Callable[..., Path]:
    """A function that finds a file below ``shared``, or skips the test."""

    def find(*parts: str) -> Path:
        path = REPO_ROOT.parent.joinpath("shared", *parts)
        if not path.exists():
            pytest.skip(f"needs {Path('..', 'shared', *parts)}, which is not beside this checkout")
        return path

    return find


@pytest.fixture(scope="session")
def golden_file() -> Callable[..., Path]:
    """A function that finds a tiny model and its answers."""
    original = REPO_ROOT.parent / "shared" / "golden"
    goldens = original if original.exists() else REPO_ROOT / "tests" / "goldens"
    return goldens.joinpath


@pytest.fixture
def export_script(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs scripts/export_and_optimize.py on a model in an empty folder, where the test then stands."""
    main = runpy.run_path(str(repo_root / "scripts" / "export_and_optimize.py"))["main"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("coloredlogs.install", lambda **_: None)

    def run(model: PreTrainedModel, *flags: str) -> int:
        model.save_pretrained("model")
        usual = ["--model_name=model", "--n_prompt_tokens=5", "--batch_size=3", "--max_seq_len=12", "--device=cpu"]
        code: int = main([*usual, *flags])
        return code

    return run


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """A function that makes a tiny random language model."""

    def make(kind: str = "roberta", seed: int = 0, **config: Any) -> PreTrainedModel:
        import torch
        import transformers

        name, special = TINY_MODELS[kind]
        model_class = getattr(transformers, name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = model_class(model_class.config_class(**{**SMALL, **special, **config}))
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def roberta(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The tiny RoBERTa that all tests share."""
    return make_model("roberta")


@pytest.fixture(scope="session")
def bert(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The tiny BERT that all tests share."""
    return make_model("bert")


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., Examples]:
    """A function that draws random examples of different lengths."""
    import torch

    from bbt_fast.export.examples import Examples

    def make(
        model: PreTrainedModel,
        mode: str = "add",
        n_prompt_tokens: int = 5,
        n_examples: int = 6,
        n_classes: int = 3,
        min_length: int = 4,
        max_length: int = 20,
        prompt_start: int = 1,
        seed: int = 0,
    ) -> Examples:
        generator = torch.Generator().manual_seed(seed)
        vocabulary, pad = model.config.vocab_size, model.config.pad_token_id
        first, last, mask = 2, 3, vocabulary - 1

        def draw(low: int, high: int, size: int) -> list[int]:
            return torch.randint(low, high, (size,), generator=generator).tolist()

        rows, answers = [], []
        for length in draw(min_length, max_length + 1, n_examples):
            row = [first, *draw(FIRST_TEXT_TOKEN, mask, length), mask, last]
            if mode == "add":
                row[prompt_start:prompt_start] = [FIRST_TEXT_TOKEN] * n_prompt_tokens
            answers.append(len(row) - 2)
            rows.append(row)
        longest = max(map(len, rows))
        return Examples(
            input_ids=torch.tensor([row + [pad] * (longest - len(row)) for row in rows]),
            attention_mask=torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
            answer_position=torch.tensor(answers),
            label_token_ids=torch.randperm(mask - FIRST_TEXT_TOKEN, generator=generator)[:n_classes] + FIRST_TEXT_TOKEN,
        )

    return make


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., Tensor]:
    """A function that draws random soft prompts, one per candidate."""
    import torch

    def make(
        model: PreTrainedModel, n_candidates: int = 4, n_prompt_tokens: int = 5, scale: float = 0.5, seed: int = 0
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(n_candidates, n_prompt_tokens, model.config.hidden_size, generator=generator)

    return make


@functools.cache
def load_fake_tensorrt() -> ModuleType:
    """Load the fake once per process: its objects meet again in caches that outlive the fixture."""
    path = REPO_ROOT / "tests" / "fake_tensorrt" / "tensorrt.py"
    spec = importlib.util.spec_from_file_location("tensorrt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CpuQueue:
    """A fake of bbt_fast.engine.cuda.Queue, without a GPU: the work runs at once, in order."""

    handle = 1

    def __init__(self, device: torch.device) -> None:
        from bbt_fast.export.bindings import Gpu

        self.gpu = Gpu("Fake GPU", (8, 6))
        self.captured = 0

    def use(self) -> nullcontext[None]:
        return nullcontext()

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Replay by doing the work again on the same input tensors; no memory is shared, unlike in a CUDA graph."""
        self.captured += 1
        output = work()
        return lambda: output.copy_(work()), output


@pytest.fixture(scope="module")
def fake_tensorrt() -> Iterator[ModuleType]:
    """The fake TensorRT, and an engine "trt" that runs it on the CPU."""
    from bbt_fast.export.bindings import CLASSIC

    with pytest.MonkeyPatch.context() as patch:
        fake = load_fake_tensorrt()
        patch.setitem(sys.modules, "tensorrt", fake)
        patch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
        patch.setattr("bbt_fast.export.bindings.trt.package", CLASSIC)
        from bbt_fast.engine.tensorrt import TensorRtEngine

        patch.setattr(TensorRtEngine, "precisions", {"cpu": ("fp32", "fp16", "bf16")})
        patch.setattr(TensorRtEngine, "bucket_overhead", {"cpu": 8})
        patch.setattr(TensorRtEngine, "_new_queue", lambda engine: CpuQueue(engine.device))
        yield fake


@pytest.fixture
def fake(fake_tensorrt: ModuleType) -> Iterator[ModuleType]:
    """The fake TensorRT, without builds or faults of other tests."""
    fake_tensorrt.builds.clear()
    fake_tensorrt.runs.clear()
    yield fake_tensorrt
    fake_tensorrt.faults.clear()
