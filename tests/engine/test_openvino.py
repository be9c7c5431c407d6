"""OpenVINO in bf16, the instruction sets it asks for, and memory that is shared and not copied."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, cpu, load_engine, openvino
from bbt_fast.engine.loading import prospects
from bbt_fast.engine.openvino import _compiled
from bbt_fast.export.errors import ArtifactError, DeviceError

pytest.importorskip("openvino")
N_PROMPT_TOKENS = 5
KIND = ("layerType", "runtimePrecision")
needs_bf16 = pytest.mark.skipif(not cpu.has_bf16(), reason="needs a CPU with bf16 instructions, not hidden from oneDNN")


@needs_bf16
@pytest.mark.parametrize("cuts", ["input", "layers"])
@pytest.mark.parametrize("mode", ["add", "cat"])
def test_bf16_answers_nearly_as_fp32_does_and_not_as_exactly(
    mode: str,
    cuts: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    prompts = make_prompts(roberta, 8, N_PROMPT_TOKENS)
    examples = make_examples(roberta, mode, N_PROMPT_TOKENS)
    answers = {}
    for name, precision in (("torch", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
        loaded = load_engine(
            name, roberta, mode=mode, n_prompt_tokens=N_PROMPT_TOKENS, cuts=cuts, precision=precision, device="cpu"
        )
        answers[name, precision] = loaded.open(examples).evaluate(prompts)
    spread = float(answers["torch", "fp32"].std())
    fp32, bf16 = (
        float((answers["openvino", precision] - answers["torch", "fp32"]).abs().mean()) / spread
        for precision in ("fp32", "bf16")
    )
    assert fp32 < 1e-5
    assert 1e-4 < bf16 < 0.05  # below that it would be fp32 under another name


@needs_bf16
@pytest.mark.parametrize("cuts", ["input", "layers"])
def test_in_bf16_the_sum_over_the_layers_and_the_logits_stay_exact(
    cuts: str, roberta: PreTrainedModel, make_examples: Callable[..., Examples]
) -> None:
    loaded = load_engine("openvino", roberta, n_prompt_tokens=N_PROMPT_TOKENS, cuts=cuts, precision="bf16")
    loaded.open(make_examples(roberta, "add", N_PROMPT_TOKENS))
    kinds: Counter[tuple[str, str]] = Counter()
    for path in loaded.artifacts:
        graph = _compiled(path, "bf16", answers=path == loaded.artifacts[-1]).get_runtime_model()
        kinds.update(tuple(str(node.get_rt_info()[what].value) for what in KIND) for node in graph.get_ops())
    layers = roberta.config.num_hidden_layers
    assert kinds["MVN", "bf16"] == 0 < 2 * layers <= kinds["MVN", "f32"]
    assert kinds["MatMul", "f32"] > 0  # with the label words; attention's own may be bf16, or part of a larger kernel
    assert kinds["MatMul", "bf16"] <= 2 * layers
    assert kinds["FullyConnected", "f32"] == 0 < 4 * layers < kinds["FullyConnected", "bf16"]


def test_the_rate_of_bf16_is_measured_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {torch.float32: 0.010, torch.bfloat16: 0.004}
    clock = [0.0]

    def product(a: Tensor, b: Tensor) -> Tensor:
        clock[0] += times[a.dtype]
        return a

    monkeypatch.setattr(cpu, "linear", product)
    monkeypatch.setattr(cpu.time, "perf_counter", lambda: clock[0])
    assert cpu.bf16_speedup.__wrapped__() == pytest.approx(2.5)


def test_bf16_pays_only_where_it_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 1.9)
    assert cpu.bf16_fault() is None
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 1.0)
    assert "at 1.0 times its rate in fp32" in str(cpu.bf16_fault())


@pytest.mark.parametrize(
    ("limit", "there"),
    [("AVX2", False), ("avx512_core_vnni", False), ("AVX512_CORE_BF16", True), ("ALL", True), (None, True)],
)
def test_instructions_that_onednn_may_not_use_do_not_count(
    limit: str | None, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    monkeypatch.delenv(cpu.LIMIT, raising=False)
    if limit is not None:
        monkeypatch.setenv(cpu.LIMIT, limit)
    assert cpu.has_bf16() == there


def test_a_cpu_that_reports_nothing_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "get_capabilities", dict)
    assert not cpu.has_bf16()
    assert cpu.instruction_sets() == ()
    assert cpu.cpu_kind() == "cpu"


def test_bf16_is_refused_where_openvino_would_emulate_it(
    roberta: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 1.9)
    with pytest.raises(
        DeviceError, match=r"'openvino' cannot compute in bf16 here: this CPU has no bf16 .* Give another"
    ):
        load_engine("openvino", roberta, n_prompt_tokens=N_PROMPT_TOKENS, device="cpu", precision="bf16")
    assert load_engine("openvino", roberta, n_prompt_tokens=N_PROMPT_TOKENS, device="cpu").precision == "fp32"
    faults = {str(choice): fault for choice, fault in prospects("auto", "cpu")}
    assert "emulate" in str(faults["openvino in bf16"])
    assert faults["openvino in fp32"] is None


def test_a_population_is_read_and_answered_in_place(
    roberta: PreTrainedModel, make_examples: Callable[..., Examples], make_prompts: Callable[..., Tensor]
) -> None:
    loaded = load_engine("openvino", roberta, n_prompt_tokens=N_PROMPT_TOKENS, precision="fp32")
    session = loaded.open(make_examples(roberta, "add", N_PROMPT_TOKENS))
    kept = session.evaluate(make_prompts(roberta, 4, N_PROMPT_TOKENS))
    copy = kept.clone()
    session.evaluate(make_prompts(roberta, 4, N_PROMPT_TOKENS, seed=1))
    assert torch.equal(kept, copy)  # an answer's memory is the caller's own, not the runtime's


@needs_bf16
def test_a_full_disk_of_temporary_files_is_an_error_that_names_the_way_out(
    roberta: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(openvino.tempfile, "TemporaryDirectory", full)
    with pytest.raises(ArtifactError, match=r"No space left on device.*set TMPDIR"):
        load_engine("openvino", roberta, n_prompt_tokens=N_PROMPT_TOKENS, precision="bf16")
