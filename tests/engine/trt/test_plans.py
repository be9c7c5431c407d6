"""The TensorRT engine on the fake TensorRT: which plans it builds, checks and runs, and its errors if one fails."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, Session, plans
from bbt_fast.engine.plans import Plan, Scratch
from bbt_fast.engine.profiles import exact_profile
from bbt_fast.engine.tensorrt import TensorRtEngine
from bbt_fast.export.cache import MANIFEST, file_digest, read_json
from bbt_fast.export.errors import ArtifactError, DeviceError, ParityError
from bbt_fast.export.tensorrt import plan_from_onnx

N_PROMPT_TOKENS = 5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_graphs_of_other_number_formats_become_plans_that_pass_the_gate(
    precision: str,
    load: Callable[..., TensorRtEngine],
    examples: Examples,
    prompts: Callable[..., Tensor],
    reference: Callable[..., Session],
) -> None:
    engine = load(precision=precision)
    logits = engine.open(examples).evaluate(prompts(6))
    error = float((logits - reference(examples).evaluate(prompts(6))).abs().max())
    assert 1e-5 < error < 0.1  # below that it would be fp32 under another name
    assert engine.parity["spearman"] > 0.9


@pytest.mark.slow
def test_one_candidate_needs_one_plan_per_stage_whatever_the_texts(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    prompts: Callable[..., Tensor],
    reference: Callable[..., Session],
) -> None:
    engine = load("layers")
    plans = engine.artifacts
    for n_examples, length in ((1, 4), (7, 20), (40, 12)):  # more than 32 examples are answered in parts
        texts = make_examples(roberta, "add", N_PROMPT_TOKENS, n_examples, min_length=4, max_length=length)
        logits = engine.open(texts).evaluate(prompts(1), 1)
        expected = reference(texts, "layers").evaluate(prompts(1), 1)
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    # Texts without padding have no mask and texts of several lengths have one: two chains of three stages.
    assert len(engine.artifacts) <= 2 * engine.n_layers
    assert set(plans) <= set(engine.artifacts)


def test_longer_texts_and_more_label_words_get_a_wider_plan(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    prompts: Callable[..., Tensor],
    reference: Callable[..., Session],
) -> None:
    engine = load()
    ids = torch.randint(5, 100, (2, 120), generator=torch.Generator().manual_seed(0))
    texts = Examples(ids, torch.ones_like(ids), torch.tensor([119, 119]), torch.arange(100))
    before = len(fake.builds)
    logits = engine.open(texts).evaluate(prompts(1))
    torch.testing.assert_close(logits, reference(texts).evaluate(prompts(1)), atol=2e-5, rtol=0)
    assert fake.builds[-1]["shapes"]["label_rows"][2][0] == 128
    assert len(fake.builds) - before <= 2


def test_a_population_runs_on_plans_for_exactly_its_shapes(
    fake: ModuleType, load: Callable[..., TensorRtEngine], examples: Examples, prompts: Callable[..., Tensor]
) -> None:
    engine = load("layers")
    session = engine.open(examples)
    before = len(engine.artifacts)
    session.evaluate(prompts(4), 1)
    session.evaluate(prompts(4, seed=1), 1)
    assert len(engine.artifacts) == before + 2  # 1 state and 4 prompts enter layer 1; 4 states and 1 prompt, layer 2
    session.evaluate(prompts(3), 1)
    assert len(engine.artifacts) == before + 4


def test_all_that_a_search_needs_can_be_built_beforehand(
    fake: ModuleType, load: Callable[..., TensorRtEngine], examples: Examples, prompts: Callable[..., Tensor]
) -> None:
    load("layers").prepare(examples, 6)
    fake.builds.clear()
    engine = load("layers")
    session = engine.open(examples)
    for layer in range(engine.n_layers):
        session.evaluate(prompts(6), layer)
        session.commit(prompts(1)[0], layer)
    assert fake.builds == []


def test_a_populations_plan_must_pass_the_gate_when_it_is_built(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    examples: Examples,
    prompts: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    reference: Callable[..., Session],
) -> None:
    engine = load("layers")
    session = engine.open(examples)
    fake.faults.add("wrong")
    for _ in range(2):  # it is not remembered as good
        with pytest.raises(ParityError, match=r"stage 1 for shapes \[1, 4, 17, 32\] and \[7, 5, 32\], disagrees with"):
            session.evaluate(prompts(7), 1)
    fake.faults.clear()
    logits = session.evaluate(prompts(7), 1)
    torch.testing.assert_close(logits, reference(examples, "layers").evaluate(prompts(7), 1), atol=2e-5, rtol=0)
    monkeypatch.setattr("bbt_fast.engine.tensorrt.measure_stage", lambda *_: pytest.fail("it was measured before"))
    assert torch.equal(load("layers").open(examples).evaluate(prompts(7), 1), logits)


def test_the_plans_for_one_candidate_are_gated_once_and_again_when_they_are_rebuilt(
    load: Callable[..., TensorRtEngine], own_cache: Callable[[TensorRtEngine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache(load())
    measured = []
    measure = TensorRtEngine._measure
    monkeypatch.setattr(TensorRtEngine, "_measure", lambda *given: measured.append(1) or measure(*given))
    engine = load()
    figures, already = engine.parity, len(measured)
    assert load().parity == figures
    assert len(measured) == already
    engine.artifacts[0].write_bytes(b"damaged")
    load()
    assert len(measured) == already + 1


def test_cuda_graphs_replay_what_the_plans_answer(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    examples: Examples,
    prompts: Callable[..., Tensor],
) -> None:
    plain = load("layers").open(examples)
    engine = load("layers", include=["graph"])
    replayed = engine.open(examples)
    for turn in range(3):
        for layer in range(engine.n_layers):
            given = prompts(4, seed=10 * turn + layer)
            answers = [session.evaluate(given, layer) for session in (plain, replayed)]
            assert torch.equal(*answers)
            for session in (plain, replayed):
                session.commit(given[0], layer)
            again = replayed.evaluate(prompts(4, seed=99), layer)
            assert torch.equal(answers[0], answers[1])  # an answer is not the memory that the next replay writes
            assert torch.equal(plain.evaluate(prompts(4, seed=99), layer), again)
    assert engine.queue.captured == 2 * engine.n_layers - 1  # each layer, and the way up to each but the first


def test_cuda_graphs_that_cannot_be_captured_are_given_up(
    load: Callable[..., TensorRtEngine],
    examples: Examples,
    prompts: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(work: Callable[[], Tensor]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = load(include=["graph"])
    session = engine.open(examples)
    monkeypatch.setattr(engine.queue, "capture", fails)
    first = session.evaluate(prompts(4))
    for _ in range(2):
        assert torch.equal(session.evaluate(prompts(4)), first)
    assert caplog.text.count("CUDA graphs fail on Fake_GPU-sm86: continuing without (operation not permitted") == 1


def test_tensors_at_addresses_that_tensorrt_does_not_take_are_copied(
    load: Callable[..., TensorRtEngine],
    examples: Examples,
    prompts: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    reference: Callable[..., Session],
) -> None:
    odd = torch.zeros(65)[1:]
    assert plans._aligned(odd).data_ptr() != odd.data_ptr()
    copied = []
    monkeypatch.setattr(plans, "_aligned", lambda tensor: copied.append(tensor) or tensor.clone())  # as if all were odd
    session = load("layers").open(examples)
    copied.clear()
    found = session.evaluate(prompts(4), 1)
    names = {"hidden", "prompt", "answer_position", "label_rows", "label_bias"}
    assert len(copied) >= len(names) + 2  # all inputs and outputs of two stages
    torch.testing.assert_close(found, reference(examples, "layers").evaluate(prompts(4), 1), atol=2e-5, rtol=0)


def test_a_tensorrt_that_is_too_old_says_what_it_lacks(fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert TensorRtEngine.cuda_fault() is None
    monkeypatch.delattr(fake.IAttention, "key_value_lengths")
    assert "no attention by lengths; upgrade it: `pip install 'bbt-fast[trt]' -U`" in str(TensorRtEngine.cuda_fault())


def test_a_plan_that_cannot_be_run_here_is_built_again_and_says_why(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    own_cache: Callable[[TensorRtEngine], None],
    examples: Examples,
    prompts: Callable[..., Tensor],
    reference: Callable[..., Session],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own_cache(load())
    plan, *_ = load().artifacts
    plan.write_bytes(b"of another version")
    whole = plan.with_name(MANIFEST)
    manifest = read_json(whole)
    manifest["files"][plan.name] = file_digest(plan)
    whole.write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.setattr(
        "bbt_fast.engine.tensorrt.plan_fault",
        lambda path: "version mismatch" if path.read_bytes() == b"of another version" else None,
    )
    engine = load()
    assert "cannot run here (version mismatch): rebuilding it" in caplog.text
    assert plan.read_bytes() != b"of another version"
    logits = engine.open(examples).evaluate(prompts(1))
    torch.testing.assert_close(logits, reference(examples).evaluate(prompts(1)), atol=2e-5, rtol=0)


def test_a_driver_that_is_too_old_is_said(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    own_cache: Callable[[TensorRtEngine], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    own_cache(load())
    monkeypatch.setattr(fake, "Builder", refuses)
    with pytest.raises(DeviceError, match=r"does not start: .* Update the driver"):
        load()


def test_a_generation_never_waits_for_the_device(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    examples: Examples,
    prompts: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = load("layers")
    session = engine.open(examples)
    session.evaluate(prompts(4), 1)
    bucket = session._buckets[0]
    chain = [prompts(4), session._zero]

    def waits(*_: object, **__: object) -> object:
        raise AssertionError("this reads the device's memory")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "to"):
        monkeypatch.setattr(Tensor, name, waits)
    with torch.inference_mode():
        logits = engine.run_chain(bucket.run, 1, bucket.entering, chain, bucket.encoded.tensors)
    assert logits.shape == (4, 4, 3)


def test_a_population_for_which_there_is_no_memory_is_run_in_smaller_chunks(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    examples: Examples,
    prompts: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    reference: Callable[..., Session],
) -> None:
    session = load().open(examples)
    run = Plan.run

    def scarce(plan: Plan, inputs: dict[str, Tensor], output: Tensor, stream: int) -> None:
        if len(output) > 2:
            plan._context._refuse("Error Code 2: OutOfMemory (Requested size was 137438953472 bytes.)")
            plan._require(False, "run")
        run(plan, inputs, output, stream)

    monkeypatch.setattr(Plan, "run", scarce)
    expected = reference(examples).evaluate(prompts(5))
    torch.testing.assert_close(session.evaluate(prompts(5)), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("execute", r"could not run in the plan .*plan.engine: Error Code 1: Cuda Runtime \(an illegal memory access"),
        ("address", "could not take the address of hidden in the plan"),
    ],
)
def test_every_return_value_is_checked(
    fault: str,
    message: str,
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    examples: Examples,
    prompts: Callable[..., Tensor],
) -> None:
    session = load().open(examples)
    fake.faults.add(fault)
    with pytest.raises(DeviceError, match=message):
        session.evaluate(prompts(1))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("load", ArtifactError, "cannot load the plan .*: the plan was built by another version. Delete"),
        ("context", DeviceError, "cannot prepare the plan"),
    ],
)
def test_a_plan_that_does_not_load_is_an_error(
    fault: str, error: type[Exception], message: str, fake: ModuleType, load: Callable[..., TensorRtEngine]
) -> None:
    fake.faults.add(fault)
    with pytest.raises(error, match=message):
        load()


def test_tensors_that_a_plan_does_not_take_are_refused(
    fake: ModuleType, load: Callable[..., TensorRtEngine], roberta: PreTrainedModel
) -> None:
    engine = load("layers")
    runner = next(iter(engine._runners.values()))
    inputs = {"hidden": torch.zeros(1, 2, 8, 32), "prompt": torch.zeros(3, 5, 32)}
    for name in runner._stages[0].names:
        inputs[name] = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    plan = Plan(plan_from_onnx(runner.files.paths[0], exact_profile(inputs), engine.queue.gpu), Scratch(engine.device))
    output = torch.empty(3, 2, 8, 32)
    plan.run(inputs, output, 1)
    with pytest.raises(DeviceError, match=r"hidden must be contiguous torch\.float32, not torch\.float16"):
        plan.run(inputs | {"hidden": inputs["hidden"].half()}, output, 1)
    with pytest.raises(DeviceError, match=r"could not take prompt of shape \[4, 5, 32\] in .*outside the profile"):
        plan.run(inputs | {"prompt": torch.zeros(4, 5, 32)}, output, 1)
    with pytest.raises(DeviceError, match=r"could not return \[3, 2, 9, 32\], but \[3, 2, 8, 32\],"):
        plan.run(inputs, torch.empty(3, 2, 9, 32), 1)


def test_activation_memory_is_shared_and_grows(
    fake: ModuleType, load: Callable[..., TensorRtEngine], examples: Examples, prompts: Callable[..., Tensor]
) -> None:
    engine = load("layers")
    session = engine.open(examples)
    session.evaluate(prompts(4), 0)
    small = engine.scratch.block.numel()
    for size in (small, 2 * small):
        engine.scratch.reserve(size)
        assert engine.scratch.block.numel() == size
        fake.runs.clear()
        session.evaluate(prompts(4), 0)
        assert fake.runs == [engine.scratch.block.data_ptr()] * engine.n_layers  # every plan is told of a new block


def test_kernels_are_logged(load: Callable[..., TensorRtEngine], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "bbt_fast.engine.tensorrt")
    load()
    assert re.search(r"plan.engine:\n.*scaled_dot_product_attention", caplog.text, re.S)


def test_the_script_writes_plans_and_what_they_were_built_for(
    fake: ModuleType,
    roberta: PreTrainedModel,
    export_script: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export_script(roberta, "--engine=trt", "--precision=fp32") == 0
    folder = tmp_path / "onnx_models" / "exported_model_trt"
    manifest = read_json(folder / MANIFEST)
    assert {path.name for path in folder.glob("*.engine")} == set(manifest["plans"])
    for name, about in manifest["plans"].items():
        assert about["files"]["plan.engine"] == file_digest(folder / name)
        assert about["key"]["gpu"] == "Fake GPU"
    assert manifest["parity"]["spearman"] > 0.99
    assert re.search(r"[\d.]+ milliseconds a generation \(20 candidates x 3 texts x 12 tokens", capsys.readouterr().out)
