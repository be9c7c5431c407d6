"""The methods that black-box tuning is compared with, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bbt_fast.benchmarks.methods import weights
from bbt_fast.benchmarks.methods.features import BiLstm, answer_states
from bbt_fast.benchmarks.methods.in_context import alternating, before_texts
from bbt_fast.benchmarks.methods.method import Case
from bbt_fast.benchmarks.methods.prompt_tuning import SoftPrompt
from bbt_fast.benchmarks.methods.prompting import in_batches, label_logits
from bbt_fast.benchmarks.methods.run import figures, figures_apart
from bbt_fast.benchmarks.methods.sentence import texts
from bbt_fast.benchmarks.methods.table import METHODS, grid
from bbt_fast.benchmarks.methods.training import train
from bbt_fast.engine import load_engine
from bbt_fast.export.errors import UsageError
from bbt_fast.export.model import Cuts, StagedModel
from bbt_fast.tuner.data.splits import Row
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.search.objective import answer
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import Preset

SMALL: dict[str, Any] = {
    "engine": "torch", "precision": "fp32", "device": "cpu", "k_shot": 4, "max_test_examples": 12, "seed": 8,
    "n_prompt_tokens": 5, "intrinsic_dim": 10, "popsize": 4, "budget": 24, "plots": False,
}  # fmt: skip
PROMPTS = {"prompt-tuning", "p-tuning-v2", "bbt", "bbtv2"}
"""The methods that the mode makes a difference to."""
STEP = {"lr": 1e-2, "batch_size": 4, "epochs": 2, "patience": 2, "rank": 2, "bottleneck": 4}


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """A function that makes a case of the demo."""

    def make(**setting: Any) -> Case:
        return Case(resolve(Options(**SMALL), Preset()), STEP | setting)

    return make


def test_the_head_runs_at_the_answer_alone_and_answers_as_the_stock_model(
    roberta: PreTrainedModel, make_examples: Callable[..., Any]
) -> None:
    examples = make_examples(roberta, mode="cat")
    model: Any = roberta
    whole = model(input_ids=examples.input_ids, attention_mask=examples.attention_mask).logits
    expected = whole[torch.arange(len(examples)), examples.answer_position][:, examples.label_token_ids]
    torch.testing.assert_close(label_logits(roberta, examples), expected)
    torch.testing.assert_close(in_batches(examples, lambda some: label_logits(roberta, some), 40), expected)


def test_features_are_what_the_last_layer_says_at_the_answer(
    roberta: PreTrainedModel, make_examples: Callable[..., Any]
) -> None:
    examples = make_examples(roberta, mode="cat")
    model: Any = roberta
    logits = model.lm_head(answer_states(roberta, examples))[:, examples.label_token_ids]
    torch.testing.assert_close(logits, label_logits(roberta, examples))


def test_an_lstm_over_the_tokens_does_not_read_padding() -> None:
    reader, states = BiLstm(8, 2).eval(), torch.randn(2, 5, 8)
    padded = torch.cat([states, torch.full((2, 3, 8), 9.0)], dim=1)
    lengths = torch.tensor([5, 3])
    torch.testing.assert_close(reader(padded, lengths), reader(states, lengths))
    assert not torch.allclose(reader(states, lengths)[1], reader(states, torch.tensor([5, 5]))[1])


@pytest.mark.parametrize("mode", ["add", "cat"])
@pytest.mark.parametrize("cuts", ["input", "layers"])
def test_a_prompt_that_gradients_train_stands_where_a_search_puts_it(
    make_model: Callable[..., PreTrainedModel], make_examples: Callable[..., Any], cuts: Cuts, mode: Any
) -> None:
    model = make_model("roberta", seed=3)
    examples = make_examples(model, mode=mode)
    prompt = SoftPrompt(StagedModel(model, mode, 5, cuts))
    with torch.no_grad():
        prompt.values.copy_(0.5 * torch.randn(prompt.values.shape, generator=torch.Generator().manual_seed(1)))
    engine = load_engine("torch", model, mode=mode, n_prompt_tokens=5, cuts=cuts, precision="fp32", device="cpu")
    expected = answer(engine.open(examples), prompt.values.detach()[None])[0]
    logits = prompt(examples)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    logits.sum().backward()
    assert prompt.values.grad is not None
    assert bool((prompt.values.grad.flatten(1).norm(dim=1) > 0).all())
    assert [name for name, _ in prompt.named_parameters()] == ["values"]


def test_a_concatenated_prompt_begins_with_tokens_that_differ(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("roberta", seed=3)
    assert not SoftPrompt(StagedModel(model, "add", 5, "input")).values.any()
    assert len(SoftPrompt(StagedModel(model, "cat", 5, "input")).values[0].unique(dim=0)) == 5


def changed(case: Case, fit: Callable[[Case], Any]) -> tuple[set[str], Any]:
    """Return the names of the weights that a method changed, and what it leaves."""
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    fitted = fit(case)
    after = case.model.state_dict()
    return {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}, fitted


def test_bitfit_trains_biases_and_nothing_else(make_case: Callable[..., Case]) -> None:
    names, fitted = changed(make_case(), weights.bitfit)
    assert names
    assert {name.split(".")[-1] for name in names} == {"bias"}
    assert fitted.notes["trained_parameters"] < 20_000


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_what_is_added_is_trained_and_the_model_stays_as_it_was(make_case: Callable[..., Case], method: str) -> None:
    case = make_case()
    names, fitted = changed(case, getattr(weights, method))
    assert not names
    assert 0 < fitted.notes["trained_parameters"] < 0.2 * sum(p.numel() for p in case.model.parameters())
    assert fitted.notes["kept_epoch"] > 0


def test_training_keeps_the_best_epoch_and_ends_without_a_better_one(make_case: Callable[..., Case]) -> None:
    case = make_case(lr=0.1, epochs=50, patience=3)
    labels = {part: case.labels(part) for part in ("train", "dev")}
    head = nn.Linear(2, 2)

    def logits(part: str, rows: Tensor | None = None) -> Tensor:
        classes = labels[part] if rows is None else labels[part][rows]
        sign = 1 if part == "train" else -1  # the more is learned, the worse is the development set
        return head(sign * nn.functional.one_hot(classes, 2).float())  # type: ignore[no-any-return]

    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    notes = train(case, head, lambda rows: logits("train", rows), lambda part: logits(part).detach())
    assert (notes["epochs"], notes["kept_epoch"]) == (3, 0)
    assert not head.weight.any()


def test_demonstrations_alternate_and_stand_before_the_text(
    roberta: PreTrainedModel, make_examples: Callable[..., Any]
) -> None:
    rows = [Row(str(number), None, number % 2) for number in range(6)]
    ordered = alternating(rows, seed=1)
    assert sorted(row.label for row in ordered[:2]) == sorted(row.label for row in ordered[4:]) == [0, 1]
    assert alternating(rows, seed=1) == ordered
    examples = make_examples(roberta, mode="cat", n_examples=2)
    longer = before_texts(examples, [[7, 8], []], 1, 0)
    assert longer.input_ids[0, :4].tolist() == [examples.input_ids[0, 0], 7, 8, examples.input_ids[0, 1]]
    assert longer.lengths.tolist() == [int(examples.lengths[0]) + 2, int(examples.lengths[1])]
    mask = examples.input_ids[torch.arange(2), examples.answer_position]
    assert torch.equal(longer.input_ids[torch.arange(2), longer.answer_position], mask)


def test_a_sentence_encoder_reads_the_texts_of_a_pair_as_one() -> None:
    assert texts([Row("a", None, 0), Row("b", "c", 1)], "[SEP]") == ["a", "b [SEP] c"]


def test_a_grid_is_every_combination_beside_what_is_fixed() -> None:
    assert grid({"a": 1}, b=(2, 3), c=(4,)) == ({"a": 1, "b": 2, "c": 4}, {"a": 1, "b": 3, "c": 4})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "cat_or_add"),
    [*((method, "add") for method in METHODS), *((method, "cat") for method in METHODS if method in PROMPTS)],
)
def test_every_method_runs_through(method: str, cat_or_add: str, tmp_path: Path) -> None:
    options = Options(**SMALL | {"budget": 48, "cat_or_add": cat_or_add, "output_dir": str(tmp_path / "run")})
    found = figures(method, options, METHODS[method].grid[0], test=True, max_epochs=1)
    assert 0 <= found["test"] <= 1
    assert (found["user_mib"] is None) + (found["server_mib"] is None) <= 1
    assert found["metric"] == "accuracy"


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_figures_and_lets_errors_through(tmp_path: Path) -> None:
    options = Options(**SMALL | {"output_dir": str(tmp_path / "run")})
    apart, here = (run("feature-linear", options, {"C": 1.0}, test=True) for run in (figures_apart, figures))
    assert {name: apart[name] for name in ("dev", "test")} == {name: here[name] for name in ("dev", "test")}
    with pytest.raises(UsageError, match="unknown task 'sts2'"):
        figures_apart("manual-prompt", options.changed(task_name="sts2"), {}, test=True)


def test_a_batch_takes_as_many_texts_as_fit_in_its_tokens(
    roberta: PreTrainedModel, make_examples: Callable[..., Any]
) -> None:
    seen = []

    def answer(some: Any) -> Tensor:
        seen.append(some.input_ids.shape)
        return some.lengths[:, None]

    examples = make_examples(roberta, mode="cat", n_examples=9)
    found = in_batches(examples, answer, 40)
    assert found[:, 0].tolist() == examples.lengths.tolist()
    assert len(seen) > 1
    assert all(texts * length <= 40 or texts == 1 for texts, length in seen)
    assert sum(texts for texts, _ in seen) == 9
