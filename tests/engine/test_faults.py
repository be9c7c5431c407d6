"""An engine that fails in the middle: once more in smaller chunks, then an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Engine, Examples, gate, load_engine
from bbt_fast.engine.faults import not_finite
from bbt_fast.engine.session import Session
from bbt_fast.export.errors import ArtifactError, DeviceError, NumericsError, ParityError
from bbt_fast.export.model import Encoded
from bbt_fast.export.parity import probe_examples
from bbt_fast.export.precision import precision_of

N_PROMPT_TOKENS = 5
CUDA = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")
FULL = ort_errors.RuntimeException("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9")


@pytest.fixture
def engine(roberta: PreTrainedModel) -> Engine:
    return load_engine("torch", roberta, n_prompt_tokens=N_PROMPT_TOKENS, cuts="layers", precision="fp32", device="cpu")


@pytest.fixture
def session(engine: Engine, roberta: PreTrainedModel, make_examples: Callable[..., Examples]) -> Session:
    """Three texts on the engine."""
    return engine.open(make_examples(roberta, "add", N_PROMPT_TOKENS, n_examples=3, min_length=9, max_length=9))


@pytest.fixture
def prompts(roberta: PreTrainedModel, make_prompts: Callable[..., Tensor]) -> Tensor:
    return make_prompts(roberta, 6, N_PROMPT_TOKENS)


Answer = Callable[[Tensor], Tensor]


def spoil(session: Session, run_by: Callable[..., None], faults: Iterator[Answer]) -> list[int]:
    """Let one fault after the other happen in calls of a session's runner; return the sizes it is called with."""
    sizes: list[int] = []
    for bucket in session._buckets:
        run_by(bucket, faulty(bucket.run, faults, sizes))
    return sizes


def faulty(run: Callable[..., Tensor], faults: Iterator[Answer], sizes: list[int]) -> Callable[..., Tensor]:
    """A runner with one fault after the other, which notes the sizes it is called with."""

    def run_with_faults(stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        sizes.append(max(hidden.shape[0], prompt.shape[0]))
        answer = run(stage, hidden, prompt, tensors)
        fault = next(faults, None)
        return answer if fault is None else fault(answer)

    return run_with_faults


def right(answer: Tensor) -> Tensor:
    return answer


def nan(answer: Tensor) -> Tensor:
    return answer * float("nan")


def failing(error: Exception) -> Answer:
    """An answer that raises an error."""

    def fail(answer: Tensor) -> Tensor:
        raise error

    return fail


@pytest.mark.parametrize("fault", [nan, failing(CUDA), failing(DeviceError("TensorRT could not run"))])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_single_fault_costs_one_more_try_in_smaller_chunks(
    fault: Answer,
    layer: int,
    session: Session,
    prompts: Tensor,
    run_by: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = session.evaluate(prompts, layer)
    session.commit(prompts[0], layer=0)
    session.commit(torch.zeros_like(prompts[0]), layer=0)  # so that what lies below must be computed again
    sizes = spoil(session, run_by, iter([fault]))
    torch.testing.assert_close(session.evaluate(prompts, layer), expected, atol=1e-5, rtol=0)
    assert "torch failed: trying once more with fewer candidates at a time (" in caplog.text
    assert sizes[-2:] == [3, 3]
    torch.testing.assert_close(session.evaluate(prompts, layer), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fault", [nan, failing(CUDA)])
@pytest.mark.parametrize("call", [0, 1, 2], ids=["layer 0", "layer 1", "candidates"])
def test_a_single_fault_of_the_shared_prefix_is_not_kept(
    call: int,
    fault: Answer,
    make_model: Callable[..., PreTrainedModel],
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    run_by: Callable[..., None],
) -> None:
    model = make_model("gpt2")
    engine = load_engine("torch", model, n_prompt_tokens=N_PROMPT_TOKENS, cuts="layers", precision="fp32", device="cpu")
    examples, prompts = make_examples(model, "add", N_PROMPT_TOKENS), make_prompts(model, 6, N_PROMPT_TOKENS)
    expected = engine.open(examples).evaluate(prompts, 2)
    session = engine.open(examples)
    assert session._prefix is not None
    sizes: list[int] = []
    run_by(session._prefix, faulty(session._prefix._run, iter([*[right] * call, fault]), sizes))
    torch.testing.assert_close(session.evaluate(prompts, 2), expected, atol=1e-5, rtol=0)
    assert sizes[: call + 1] == [1, 1, 6][: call + 1]
    torch.testing.assert_close(session.evaluate(prompts, 2), expected, atol=1e-5, rtol=0)


def test_nan_names_the_precisions_that_have_more_room() -> None:
    assert "Try --precision bf16 or fp32, or a smaller" in str(not_finite("torch", "fp16", ("fp32", "bf16", "fp16")))
    assert "Try --precision fp32, or a smaller" in str(not_finite("ort", "fp16", ("fp32", "fp16")))


def test_a_fault_of_hidden_states_does_not_shrink_later_calls(
    session: Session, engine: Engine, run_by: Callable[..., None]
) -> None:
    usual = engine.tokens_per_call
    spoil(session, run_by, iter([failing(CUDA)]))
    session.hidden_states(2)
    assert engine.tokens_per_call == usual


def test_nan_in_hidden_states_is_computed_again_and_not_kept(
    session: Session, engine: Engine, run_by: Callable[..., None]
) -> None:
    expected = session.hidden_states(2)
    session.commit(torch.ones(N_PROMPT_TOKENS, engine.hidden_size), 0)  # discards what lies above
    session.commit(torch.zeros(N_PROMPT_TOKENS, engine.hidden_size), 0)
    spoil(session, run_by, iter([nan]))
    torch.testing.assert_close(session.hidden_states(2), expected)
    spoil(session, run_by, iter([nan] * 1000))
    session.commit(torch.ones(N_PROMPT_TOKENS, engine.hidden_size), 0)
    with pytest.raises(NumericsError, match=r"torch in fp32 returned NaN or infinity\. Try a smaller --sigma"):
        session.hidden_states(2)


def test_nan_again_is_an_error_that_says_what_to_do(
    session: Session, engine: Engine, prompts: Tensor, run_by: Callable[..., None]
) -> None:
    usual = engine.tokens_per_call
    spoil(session, run_by, iter([nan] * 1000))
    with pytest.raises(NumericsError, match=r"torch in fp32 returned NaN or infinity\. Try a smaller --sigma"):
        session.evaluate(prompts)
    assert engine.tokens_per_call == usual


@pytest.mark.parametrize("ask", [lambda s, p: s.evaluate(p), lambda s, p: s.hidden_states(2)])
def test_a_device_that_fails_again_is_an_error_that_says_what_to_do(
    ask: Callable[[Session, Tensor], Tensor], session: Session, prompts: Tensor, run_by: Callable[..., None]
) -> None:
    spoil(session, run_by, iter([failing(CUDA)] * 1000))
    message = (
        r"torch in fp32 failed on cpu, and again with fewer candidates at a time: CUDA error: an illegal memory access "
        r"was encountered\. Every finished generation is saved: run the same command again to resume"
    )
    with pytest.raises(DeviceError, match=message) as caught:
        ask(session, prompts)
    assert caught.value.__cause__ is CUDA


@pytest.mark.parametrize("error", [ArtifactError("gone"), ParityError("wrong")])
def test_what_smaller_chunks_cannot_mend_is_said_at_once(
    error: Exception, session: Session, prompts: Tensor, run_by: Callable[..., None]
) -> None:
    sizes = spoil(session, run_by, iter([failing(error)] * 1000))
    with pytest.raises(type(error), match=r"^(gone|wrong)$"):
        session.evaluate(prompts)
    assert len(sizes) == 1


def test_a_candidate_that_does_not_fit_is_said_without_another_round(
    session: Session, prompts: Tensor, run_by: Callable[..., None]
) -> None:
    sizes = spoil(session, run_by, iter([failing(MemoryError())] * 1000))
    with pytest.raises(DeviceError, match="cpu has not enough memory for one candidate on 3 texts"):
        session.evaluate(prompts)
    assert sizes == [6, 3, 1]


def test_onnx_runtime_out_of_memory_means_smaller_chunks(
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    prompts: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = load_engine("ort", roberta, n_prompt_tokens=N_PROMPT_TOKENS, precision="fp32", device="cpu")
    session = engine.open(make_examples(roberta, "add", N_PROMPT_TOKENS, n_examples=1))
    expected = session.evaluate(prompts)
    runner = session._buckets[0].run
    (loaded,) = runner._sessions
    faults = iter([FULL])

    class Scarce:
        def run_with_iobinding(self, *arguments: object) -> None:
            for fault in faults:
                raise fault
            loaded.run_with_iobinding(*arguments)

        def __getattr__(self, name: str) -> object:
            return getattr(loaded, name)

    monkeypatch.setattr(runner, "_sessions", [Scarce()])
    torch.testing.assert_close(session.evaluate(prompts), expected, atol=1e-5, rtol=0)
    assert "out of memory: continuing with 3 candidates at a time" in caplog.text


def test_the_gate_asks_pytorch_beside_the_model_where_the_device_has_no_room_for_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = engine.staged.encode(probe_examples(engine.staged))
    modules, tried = gate._modules, []

    def scarce(encoded: Encoded, device: torch.device, dtype: torch.dtype) -> object:
        tried.append(str(device))
        if device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return modules(encoded, device, dtype)

    monkeypatch.setattr(gate, "_modules", scarce)
    ours = modules(encoded, torch.device("cpu"), torch.float32)
    parity = gate.measure(
        engine.staged, encoded, precision_of("fp32"), torch.device("meta"), partial(gate.probe, *ours)
    )
    assert parity.max_logit_difference == 0
    assert tried == ["meta", "cpu"]


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_a_graph_that_is_gone_when_it_is_loaded_is_an_error_that_names_it(
    name: str, roberta: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(name, name))
    from bbt_fast.engine import onnx_files as module

    whole = module.entry

    def emptied(*arguments: object) -> object:
        folder = whole(*arguments)
        return folder.with_name("removed")

    monkeypatch.setattr(module, "entry", emptied)
    with pytest.raises(ArtifactError, match=r"cannot load .*removed/stage_00\.onnx: .*run the command again"):
        load_engine(name, roberta, n_prompt_tokens=N_PROMPT_TOKENS, precision="fp32", device="cpu")
