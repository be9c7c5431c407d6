"""``--preset original`` does what the original implementation was recorded doing (``original/README.md``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import cma
import numpy as np
import pytest
import torch

from bbt_fast.export.errors import UsageError
from bbt_fast.export.model import load_model
from bbt_fast.tuner.artifacts.prompt import read_prompt
from bbt_fast.tuner.artifacts.result import Result
from bbt_fast.tuner.demo import rows
from bbt_fast.tuner.input.options import PRESETS, Options
from bbt_fast.tuner.run import original
from bbt_fast.tuner.run.driver import Search, start_evolutions
from bbt_fast.tuner.run.single import Parts, Run
from bbt_fast.tuner.search.generation import Generation
from bbt_fast.tuner.search.projection import Projection
from bbt_fast.tuner.tune import tune

RECORDED = Path(__file__).parent / "original"
ROW_STEP, COORDINATE_STEP = 37, 16
"""What the recordings keep of a matrix's rows and of a prompt's coordinates."""
GIVEN: dict[str, Any] = {
    "preset": "original", "task_name": "sst2", "model_name": "demo", "engine": "torch", "device": "cpu",
    "n_prompt_tokens": 5, "intrinsic_dim": 20, "k_shot": 4, "popsize": 8, "eval_every": 20, "seed": 42, "plots": False,
}  # fmt: skip
OWN = {"bbt": {"budget": 96, "sigma": 1.0, "alpha": 1.0}, "bbtv2": {"budget": 144, "sigma": 0.2, "alpha": 0.2}}
BORN = {"bert": 18304, "roberta": 18944, "electra": 17168, "gpt2": 17472}
"""Random numbers that the original's classes drew when they made the golden models."""


def write_data(folder: Path) -> None:
    """Write SST-2's files with rows of the demo, and texts of more than 512 tokens among them."""
    for name, split, size, places in (("train", "train", 200, (3, 50, 120)), ("test", "test", 40, (5,))):
        its = rows(split)
        found = [{"sentence": row["text"], "label": row["label"]} for row in its[:size]]
        for place in places:
            long = " ".join(str(row["text"]) for row in its[size : size + 60])
            found.insert(place, {"sentence": long, "label": place % 2})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


ROUND = 1
"""Generations of a layer before pycma decomposes its covariance."""
PARTED = "on this CPU the last bits of a nearly round covariance turn pycma's axes otherwise than where it was recorded"


@pytest.fixture(scope="module", params=OWN)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with the preset: its result, and what it drew, asked and was told."""
    folder = tmp_path_factory.mktemp(request.param)
    write_data(folder)
    seen: dict[str, Any] = {"algorithm": request.param, "generations": []}

    def projections(run: Run, session: Any) -> Any:
        draw = drawn(run, session)
        seen["parts"], seen["projections"] = run.parts, draw(0, run.origins)
        return draw

    def take(search: Search, generation: Generation, *rest: Any) -> Any:
        seen["generations"].append(generation)
        return took(search, generation, *rest)

    drawn, took = Run._drawn_from, Search._take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_drawn_from", projections)
        patch.setattr(Search, "_take", take)
        options = Options.of(
            **GIVEN, **OWN[request.param], algorithm=request.param, data_dir=str(folder), output_dir=str(folder / "run")
        )
        seen["result"] = tune(options)
    return seen


@pytest.fixture
def recorded(ran: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What the original did with the same flags."""
    return dict(np.load(RECORDED / f"{ran['algorithm']}.npz"))


def parted(ran: dict[str, Any], recorded: dict[str, Any]) -> bool:
    """Tell whether the candidates part from the recorded ones, and check that only axes differ where they first do.

    Then a candidate is as far from the mean as the recorded one, in whatever direction.
    """
    candidates = [generation.candidates for generation in ran["generations"]]
    pairs = zip(candidates, recorded["candidates"], strict=True)
    apart = next((at for at, pair in enumerate(pairs) if not np.allclose(*pair, atol=1e-6)), None)
    if apart is None:
        return False
    before = apart - len(ran["projections"])  # the layer's last generation
    assert before >= 0, "the first generation differs"
    told, fitness = recorded["candidates"][before], recorded["fitness"][before]
    weights = cma.CMAEvolutionStrategy(
        told.shape[1] * [0], 1, {"popsize": len(told), "verbose": -9}
    ).sp.weights.positive_weights
    mean = weights @ told[fitness.argsort()[: len(weights)]]
    one, other = (np.linalg.norm(x[apart] - mean, axis=1) for x in (recorded["candidates"], candidates))
    np.testing.assert_allclose(other, one, rtol=1e-3)
    return True


def test_it_draws_the_same_examples_and_reads_the_same_tokens(ran: dict[str, Any], recorded: dict[str, Any]) -> None:
    parts: Parts = ran["parts"]
    for name in ("train", "dev"):
        examples = getattr(parts, name).examples
        np.testing.assert_array_equal(examples.input_ids, recorded[f"{name}_ids"])
        np.testing.assert_array_equal(examples.answer_position, recorded[f"{name}_answer"])
    assert len(parts.test.labels) == recorded["n_test"]


def test_it_draws_the_same_matrices(ran: dict[str, Any], recorded: dict[str, Any]) -> None:
    drawn: list[Projection] = ran["projections"]
    matrices = np.stack([projection.matrix[::ROW_STEP].numpy() for projection in drawn])
    np.testing.assert_allclose(matrices, recorded["matrix_rows"], rtol=1e-6, atol=1e-7)


def test_it_asks_about_the_same_candidates_and_finds_the_same_losses(
    ran: dict[str, Any], recorded: dict[str, Any]
) -> None:
    generations: list[Generation] = ran["generations"]
    assert len(generations) == len(recorded["candidates"])
    first = ROUND * len(ran["projections"])
    candidates, fitness = [g.candidates for g in generations], [g.scores.fitness for g in generations]
    np.testing.assert_allclose(candidates[:first], recorded["candidates"][:first], atol=1e-9)
    np.testing.assert_allclose(fitness[:first], recorded["fitness"][:first], atol=1e-5)
    if parted(ran, recorded):
        pytest.skip(PARTED)
    np.testing.assert_allclose(fitness, recorded["fitness"], atol=1e-5)


def test_it_keeps_the_same_prompt(ran: dict[str, Any], recorded: dict[str, Any]) -> None:
    result: Result = ran["result"]
    assert result.queries.dev == len(recorded["dev_scores"])
    if parted(ran, recorded):
        pytest.skip(PARTED)
    assert result.tuned.dev == pytest.approx(recorded["dev_scores"][-1, -1], abs=1e-3)
    assert result.tuned.test == pytest.approx(float(recorded["test"]))
    prompts = read_prompt(Path(result.output_dir))[0]
    if ran["algorithm"] == "bbt":
        kept = ran["projections"][0](recorded["kept"][None])
    else:
        prompts, kept = prompts[:, :, ::COORDINATE_STEP], torch.from_numpy(recorded["kept"])
    torch.testing.assert_close(prompts, kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["cma", "cma-local"])
def test_the_layers_draw_in_turn_from_the_stream_that_they_share(
    optimizer: str, make_options: Callable[..., Options], at_once: Executor
) -> None:
    options = make_options("bbtv2", streams="original", optimizer=optimizer)
    drawn = []
    for aside in (None, at_once):
        evolutions = start_evolutions(options, 60, 3, 2, aside)
        drawn.append([evolution.ask().candidates for evolution in evolutions])
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("family", BORN)
def test_it_knows_how_many_random_numbers_the_originals_model_took(family: str, repo_root: Path) -> None:
    model = load_model(str(repo_root / "tests" / "goldens" / family))
    expected = torch.Generator().manual_seed(7)
    torch.empty(BORN[family]).uniform_(generator=expected)
    torch.testing.assert_close(original.born(model, 7).get_state(), expected.get_state())


def test_a_model_whose_birth_is_not_known_is_refused(repo_root: Path) -> None:
    with pytest.raises(UsageError, match=r"this model is of type t5\. Give --streams own"):
        original.born(load_model(str(repo_root / "tests" / "goldens" / "t5")), 7)


def test_a_preset_sets_what_is_not_given() -> None:
    assert Options.of(preset="original").select == "due"
    assert (Options.of(preset="recommended").label_words, Options.of(preset="recommended").calibrate) == ("auto", True)
    own = Options.of(preset="original", precision="bf16", select="best")
    assert [name for name, value in PRESETS["original"].items() if getattr(own, name) != value] == [
        "select", "precision"
    ]  # fmt: skip
    assert own.written() == {"preset": "original", "precision": "bf16", "select": "best"}
    assert Options.of(**own.written()) == own
    with pytest.raises(UsageError, match="preset"):
        Options.of(preset="orignal")
