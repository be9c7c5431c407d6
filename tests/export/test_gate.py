"""The parity gate tells a wrong engine from prompts that hardly change a model's losses."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForMaskedLM

from bbt_fast.engine import base
from bbt_fast.engine.base import Engine
from bbt_fast.engine.pytorch import TorchEngine
from bbt_fast.engine.reference import ModuleRunner
from bbt_fast.engine.runner import Runner
from bbt_fast.engine.savings import Savings
from bbt_fast.export import parity
from bbt_fast.export.errors import ParityError
from bbt_fast.export.model import Encoded, StagedModel
from bbt_fast.export.parity import LEAST_ORDER, LEAST_SPREAD, Parity, judge
from bbt_fast.export.precision import PRECISIONS

EPSILON = 1e-5


@pytest.fixture(scope="module")
def untrained() -> StagedModel:
    """A model whose prompts move losses as little beside fp16's rounding as those of an untrained RoBERTa-large do."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=500,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        initializer_range=0.04,
        layer_norm_eps=EPSILON,
    )
    return StagedModel(RobertaForMaskedLM(config).eval().requires_grad_(False), "add", 5, "input")


class Altered(TorchEngine):
    """PyTorch's modules in the engine's format, changed before they run, behind the gate in fp32 too."""

    _gated = Engine._gated

    def __init__(self, staged: StagedModel, precision: str, alter: Callable[[nn.Module], Runner | None]) -> None:
        super().__init__(staged, precision, torch.device("cpu"), Savings.on("cpu", ["buckets"]))
        self.alter = alter

    def _load(self, encoded: Encoded) -> Runner:
        stages = nn.ModuleList(copy.deepcopy(encoded.stages)).to(self.dtype)
        return self.alter(stages) or ModuleRunner(tuple(stages))  # type: ignore[arg-type]


def nothing(stages: nn.Module) -> None:
    """Leave it right."""


def tanh_gelu(stages: nn.Module) -> None:
    """Replace GELU by its tanh approximation."""
    for module in list(stages.modules()):
        for name, part in module.named_children():
            if "gelu" in type(part).__name__.lower():
                setattr(module, name, nn.GELU(approximate="tanh"))


def wide_epsilon(stages: nn.Module) -> None:
    """Multiply the epsilon of each LayerNorm by 1000."""
    for module in stages.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == EPSILON
            module.eps *= 1e3


class Unmasked(ModuleRunner):
    """Lets texts see their padding."""

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        (name,) = (name for name in tensors if "mask" in name)
        return super().__call__(stage, hidden, prompt, tensors | {name: torch.ones_like(tensors[name])})


def no_mask(stages: nn.Module) -> Runner:
    """Run the stages without their mask."""
    return Unmasked(tuple(stages))  # type: ignore[arg-type]


def test_rounding_is_not_taken_for_a_fault_where_prompts_hardly_matter(
    untrained: StagedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Altered(untrained, "fp16", nothing)
    engine.check_parity()
    assert engine.parity["spearman"] > 0.99
    assert "hardly change this model's losses" in caplog.text
    monkeypatch.setattr(parity, "LEAST_SPREAD", 0.0)  # never on wider prompts: as the gate was
    with pytest.raises(ParityError, match="torch in fp16 on cpu disagrees with PyTorch fp32") as caught:
        Altered(untrained, "fp16", nothing).check_parity()
    narrow = re.search(r"Spearman ([\d.]+) \(at least ([\d.]+)\)", str(caught.value))
    assert narrow is not None
    assert LEAST_ORDER < float(narrow[1]) < float(narrow[2]) == PRECISIONS["fp16"].min_spearman


def test_figures_are_measured_again_by_other_engine_code(
    untrained: StagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, measured = Altered(untrained, "fp32", nothing), []

    def measure() -> Parity:
        measured.append(Parity(0.0, 0.0, 1.0, 1.0))
        return measured[-1]

    copies = [shutil.copytree(Path(base.__file__).parent, tmp_path / name) for name in ("first", "same", "edited")]
    gate = copies[-1] / "gate.py"
    gate.write_text(gate.read_text() + "edited = True\n")
    counts = []
    for sources in (*copies, copies[-1]):
        monkeypatch.setattr(base, "__file__", str(sources / "base.py"))
        engine.accept(tmp_path / "parity.json", measure)
        counts.append(len(measured))
    assert counts == [1, 1, 2, 2]


@pytest.mark.parametrize("wrong", [tanh_gelu, wide_epsilon, no_mask])
def test_a_small_fault_is_refused_in_fp32(wrong: Callable[[nn.Module], Runner | None], untrained: StagedModel) -> None:
    with pytest.raises(ParityError, match="torch in fp32 on cpu disagrees with PyTorch fp32"):
        Altered(untrained, "fp32", wrong).check_parity()
    Altered(untrained, "fp32", nothing).check_parity()


@pytest.mark.parametrize("wrong", [wide_epsilon, no_mask])
def test_a_fault_larger_than_rounding_is_refused_in_fp16(
    wrong: Callable[[nn.Module], Runner | None], untrained: StagedModel
) -> None:
    with pytest.raises(ParityError, match="torch in fp16 on cpu disagrees with PyTorch fp32"):
        Altered(untrained, "fp16", wrong).check_parity()


LOOSE, PROMPTS = PRECISIONS["fp16"], torch.randn(16, 1, 1, 6, generator=torch.Generator().manual_seed(0))


def answers(error: float, *, shared: float = 0.0, gain: float = 1e-3) -> Callable[[Tensor], Tensor]:
    """Logits [P, 1, 6] in proportion to the prompts, with an error of each, and one that all candidates share."""
    noise = torch.randn(16, 1, 6, generator=torch.Generator().manual_seed(1))
    return lambda prompts: gain * prompts[:, 0] + error * noise + shared * torch.linspace(-1, 1, 6)


def judged(found: Callable[[Tensor], Tensor], widest: float = 1e3, gain: float = 1e-3, error: float = 5e-4) -> Parity:
    """The gate's figures for a graph with these answers; the format's own rounding is ``error``."""
    exact, rounded = answers(0, gain=gain), answers(-error, gain=gain)
    return judge(PROMPTS, widest, LOOSE, exact, found, rounded)


def test_wider_prompts_are_as_wide_as_it_takes() -> None:
    found = judged(answers(5e-4))
    assert found.suits(LOOSE)
    assert LEAST_SPREAD <= found.loss_spread < 3 * LEAST_SPREAD


def test_prompts_are_never_wider_than_what_they_join() -> None:
    assert judged(answers(5e-4), widest=2).loss_spread == pytest.approx(
        2 * judged(answers(5e-4), 1).loss_spread, rel=0.1
    )


def test_an_error_beyond_the_formats_is_judged_on_narrow_prompts() -> None:
    alike, beyond = judged(answers(5e-4, shared=5e-4)), judged(answers(5e-4, shared=5e-3))
    assert alike.suits(LOOSE)
    assert not beyond.suits(LOOSE)
    assert beyond.loss_spread < LEAST_SPREAD


@pytest.mark.parametrize(("gain", "error"), [(1e-3, 5e-3), (1.0, 0.5)])
def test_chance_ranks_and_losses_that_differ_enough_are_not_measured_again(gain: float, error: float) -> None:
    narrow = judged(answers(error, gain=gain), widest=1, gain=gain, error=error)
    assert judged(answers(error, gain=gain), gain=gain, error=error) == narrow
    assert not narrow.suits(LOOSE)


def test_a_format_that_overflows_excuses_nothing() -> None:
    exact, found = answers(0), answers(5e-4)
    overflow: Callable[[Tensor], Tensor] = lambda prompts: torch.full((16, 1, 6), torch.inf)  # noqa: E731
    assert not judge(PROMPTS, 1e3, LOOSE, exact, found, overflow).suits(LOOSE)
