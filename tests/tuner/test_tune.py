"""From options to a result, on tiny models: every engine, mode and algorithm, several seeds, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bbt_fast
from bbt_fast import Options, tune, tune_seeds
from bbt_fast.export.errors import ArtifactError, BbtFastError, DataError, MissingExtraError, UsageError
from bbt_fast.tuner.artifacts.prompt import read_prompt, save_prompt
from bbt_fast.tuner.run.control import RunInterruptedError
from bbt_fast.tuner.run.driver import Search
from bbt_fast.tuner.run.single import Run

ENGINES = ("torch", "ort")
ALGORITHMS = ("bbt", "bbtv2")
POPSIZE, LAYERS = 4, 3  # as the fixture ``small`` has them


def generations(folder):
    """The generations in a run's journal."""
    records = [json.loads(line) for line in (Path(folder) / "journal.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "generation"]


@pytest.mark.parametrize(
    ("kind", "mode", "algorithm"),
    [
        ("roberta", "add", "bbt"),
        ("roberta", "add", "bbtv2"),
        pytest.param("roberta", "cat", "bbtv2", marks=pytest.mark.slow),
        pytest.param("bert", "cat", "bbt", marks=pytest.mark.slow),
        pytest.param("bert", "add", "bbtv2", marks=pytest.mark.slow),
    ],
)
def test_engines_follow_the_same_trajectory(kind, mode, algorithm, small, model_folder):
    runs = {}
    for engine in ENGINES:
        options = small(engine=engine, cat_or_add=mode, algorithm=algorithm, model_name=model_folder(kind))
        runs[engine] = tune(**options, output_dir=engine)
        assert runs[engine].engine == engine
        assert (runs[engine].mode, runs[engine].algorithm, runs[engine].evaluations) == (mode, algorithm, 24)
    torch_run, ort_run = (generations(engine) for engine in ENGINES)
    for one, other in zip(torch_run, ort_run, strict=True):
        assert one["candidates"] == other["candidates"]
        assert one["fitness"] == pytest.approx(other["fitness"], abs=1e-4)
    prompts = [read_prompt(Path(engine))[0] for engine in ENGINES]
    assert prompts[0].shape == (1 if algorithm == "bbt" else LAYERS, 5, 32)
    assert runs["torch"].tuned == runs["ort"].tuned
    assert runs["torch"].zero_shot == runs["ort"].zero_shot
    assert runs["ort"].parity


def test_the_api_takes_options_names_and_both(small):
    changes = small(budget=8)
    one = tune(**changes, output_dir="a")
    other = tune(Options(**changes), output_dir="b")
    assert one.tuned == other.tuned
    assert (one.output_dir, other.output_dir) == (Path("a"), Path("b"))


def test_runs_without_an_output_dir_get_folders_of_their_own(small):
    folders = [tune(**small(budget=8)).output_dir for _ in range(2)]
    assert [str(folder) for folder in folders] == ["runs/demo-bbt-seed42", "runs/demo-bbt-seed42-2"]
    assert all((folder / "result.json").exists() for folder in folders)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_killed_run_is_resumed_by_name_or_by_the_same_command(algorithm, small, monkeypatch):
    options = small(algorithm=algorithm)
    whole = tune(**options, output_dir="whole")
    taken = Search._take

    def cut(self, generation, log, replayed):
        if generation.index == 3:
            raise RuntimeError("power cut")
        return taken(self, generation, log, replayed)

    for folder in ("by-name", "by-command"):
        with monkeypatch.context() as patch:
            patch.setattr(Search, "_take", cut)
            with pytest.raises(RuntimeError, match="power cut"):
                tune(**options, output_dir=folder)
    assert len(generations("by-name")) == 4
    resumed = [tune(resume="by-name"), tune(**options, output_dir="by-command")]
    for folder, result in zip(("by-name", "by-command"), resumed, strict=True):
        assert (Path(folder) / "journal.jsonl").read_bytes() == Path("whole/journal.jsonl").read_bytes()
        assert (Path(folder) / "prompt.safetensors").read_bytes() == Path("whole/prompt.safetensors").read_bytes()
        assert (result.tuned, result.zero_shot) == (whole.tuned, whole.zero_shot)


def test_a_run_is_resumed_on_the_engine_it_was_begun_with(small, monkeypatch):
    options = small(engine="ort", precision="auto", device="auto")

    def cut(self, *args):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_tested", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            tune(**options, output_dir="r")
    config = json.loads(Path("r/config.json").read_text())
    assert config["engine"] == "ort"
    header = json.loads(Path("r/journal.jsonl").read_text().splitlines()[0])
    loaded = []
    from bbt_fast.tuner.run import setup

    real = setup.load_engine
    monkeypatch.setattr(setup, "load_engine", lambda name, *a, **k: loaded.append((name, k)) or real(name, *a, **k))
    assert tune(resume="r").precision == header["precision"]
    assert loaded[0][1]["precision"] == header["precision"] != "auto"
    assert loaded[0][1]["device"] == header["device"] != "auto"


def test_an_early_end_leaves_a_run_to_resume(small, monkeypatch):
    options = small()
    taken = Search._take

    def stop(self, generation, log, replayed):
        if generation.index == 2:
            (self._folder.path / "stop").touch()
        return taken(self, generation, log, replayed)

    going_on = r"after 12 evaluations.*Resume with: bbt-fast tune --resume r$"
    with monkeypatch.context() as patch:
        patch.setattr(Search, "_take", stop)
        with pytest.raises(RunInterruptedError, match=going_on):
            tune(**options, output_dir="r")
    assert tune(resume="r").evaluations == 24
    assert not Path("r/stop").exists()


def test_limits_end_a_run_that_is_then_tested(small):
    result = tune(**small(max_time=1e-6), output_dir="r")
    assert (result.stopped_by, result.evaluations) == ("max_time", POPSIZE)
    result = tune(**small(target_metric=0.0), output_dir="t")
    assert (result.stopped_by, result.evaluations) == ("target_metric", 8)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_several_seeds_share_an_engine_and_end_in_a_table(algorithm, small, monkeypatch):
    from bbt_fast.tuner.run import setup

    loads = []
    real = setup.load_engine
    monkeypatch.setattr(setup, "load_engine", lambda *a, **k: loads.append(a) or real(*a, **k))
    result = tune_seeds(**small(algorithm=algorithm), seeds=(8, 13), output_dir="r")
    assert len(loads) == 1
    assert [one.seed for one in result.results] == [8, 13]
    for one in result.results:
        alone = tune(**small(algorithm=algorithm, seed=one.seed))
        assert (alone.tuned, alone.zero_shot) == (one.tuned, one.zero_shot)
    tests = [one.tuned.test for one in result.results]
    assert result.spreads["test"].mean == pytest.approx(statistics.fmean(tests))
    assert result.spreads["test"].std == pytest.approx(statistics.stdev(tests))
    written = json.loads(Path("r/result.json").read_text())
    assert written["seeds"] == [8, 13]
    assert written["mean"]["test"] == result.spreads["test"].mean
    assert written["ensemble"] == result.ensemble
    assert 0 <= result.ensemble <= 1


def test_several_seeds_go_on_where_they_were(small, monkeypatch):
    options = small(seeds=(8, 13, 42))
    whole = tune_seeds(**options, output_dir="whole")
    execute = Run.execute

    def cut(self, *args):
        if self.options.seed == 13:
            raise RuntimeError("power cut")
        return execute(self, *args)

    monkeypatch.setattr(Run, "execute", cut)
    with pytest.raises(RuntimeError, match="power cut"):
        tune_seeds(**options, output_dir="r")
    searched = []
    monkeypatch.setattr(Run, "execute", lambda self, *args: searched.append(self.options.seed) or execute(self, *args))
    result = tune_seeds(resume="r")
    assert searched == [13, 42]
    assert [one.tuned for one in result.results] == [one.tuned for one in whole.results]


def test_one_call_runs_one_seed_and_the_other_several(small):
    with pytest.raises(UsageError, match=r"tune\(\) runs one seed; for several call tune_seeds\(seeds=\(1, 2\)"):
        tune(**small(seeds=(1, 2)))
    with pytest.raises(UsageError, match="needs seeds, such as"):
        tune_seeds(**small())


def test_a_search_starts_from_a_text_a_file_or_a_run(small):
    first = tune(**small(cat_or_add="cat"), output_dir="first")
    from_run = tune(**small(cat_or_add="cat", init_from="first", alpha=1e-9), output_dir="run")
    assert from_run.zero_shot.test == first.tuned.test
    assert torch.allclose(read_prompt(Path("run"))[0], read_prompt(Path("first"))[0], atol=1e-5)
    save_prompt(Path("p.safetensors"), read_prompt(Path("first"))[0][0], {})
    from_file = tune(**small(cat_or_add="cat", init_from="p.safetensors", alpha=1e-9), output_dir="file")
    assert from_file.tuned == from_run.tuned
    text = tune(**small(cat_or_add="cat", init_text="It was great", alpha=1e-9), output_dir="text")
    assert text.mode == "cat"
    prompt = read_prompt(Path("text"))[0][0]
    assert not torch.allclose(prompt, torch.zeros_like(prompt), atol=1e-3)


@pytest.mark.parametrize("algorithm", ["bbt", "bbtv2"])
def test_a_projection_is_turned_towards_the_prompts_of_earlier_runs(algorithm, small):
    options = small(algorithm=algorithm, budget=24)
    tune_seeds(**options, seeds=(8, 13), output_dir="earlier")
    tune(**options, output_dir="plain")
    result = tune(**options, projection_from="earlier", output_dir="turned")
    prompts = {name: read_prompt(Path(name))[0].flatten(1) for name in ("plain", "turned")}
    earlier = torch.stack([read_prompt(Path(f"earlier/seed-{seed}"))[0].flatten(1) for seed in (8, 13)], dim=2)
    basis = torch.linalg.qr(earlier).Q
    along = {name: (basis.mT @ p[..., None]).norm() / p.norm() for name, p in prompts.items()}
    assert along["turned"] > 2 * along["plain"]
    Path("turned/result.json").unlink()
    again = tune(**options, projection_from=["earlier/seed-13", "earlier/seed-8"], output_dir="same")
    assert again.tuned == result.tuned
    save_prompt(Path("earlier/seed-8/prompt.safetensors"), read_prompt(Path("earlier/seed-13"))[0], {})
    with pytest.raises(ArtifactError, match=r"journal\.jsonl cannot be resumed: earlier was .* and is now"):
        tune(resume="turned")
    deeper = {"bbt": "bbtv2", "bbtv2": "bbt"}[algorithm]
    with pytest.raises(DataError, match=r"seed-13 holds prompts \[.*\] .*, but this run needs \[.*\]: layers, prompt"):
        tune(**small(algorithm=deeper, budget=24, projection_from="earlier"), output_dir="other")


def test_an_ensemble_of_one_prompt_is_that_prompt(small):
    result = tune_seeds(**small(), seeds=(8,), output_dir="r")
    assert result.ensemble == result.results[0].tuned.test
    assert result.spreads["test"].std == 0


# What is refused, and that it is refused before anything is left behind.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_name": "no/such-model"}, UsageError, "no model 'no/such-model'"),
        ({"task_name": "sst-3"}, UsageError, "unknown task 'sst-3'"),
        ({"engine": "tensorflow"}, UsageError, "there is no engine 'tensorflow'"),
        ({"precision": "int4"}, UsageError, "precision is 'int4'"),
        ({"engine": "ort", "precision": "bf16"}, UsageError, "engine 'ort' cannot compute in bf16 on cpu"),
        ({"device": "tpu"}, UsageError, "device is 'tpu'|not on 'tpu'"),
        ({"k_shot": 5000}, DataError, "each class needs 10000 examples"),
        (
            {"algorithm": "bbtv2", "budget": 11},
            UsageError,
            "budget 11 is below one round: 4 candidates .* 3 layers are 12",
        ),
        ({"data_dir": "nowhere"}, DataError, "nowhere"),
        ({"init_from": "nowhere"}, DataError, "there is no prompt in .*nowhere"),
        ({"projection_from": "nowhere"}, DataError, "there is no prompt in .*nowhere"),
        ({"n_prompt_tokens": 126}, UsageError, "Shorten the template or lower --n_prompt_tokens"),
        ({"column_mapping": "text"}, UsageError, "column_mapping|column"),
        ({"onnx_model_path": "nowhere.onnx", "engine": "ort"}, ArtifactError, "onnx_model_path .*nowhere.onnx"),
    ],
)
def test_what_cannot_be_run_leaves_nothing_behind(changes, error, message, small):
    with pytest.raises(error, match=message):
        tune(**small(**changes), output_dir="r")
    assert [path.name for path in Path().iterdir()] == []


def test_a_missing_extra_is_named_with_the_command_that_installs_it(small, monkeypatch):
    from bbt_fast.engine import loading

    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install"):
        tune(**small(engine="ort"), output_dir="r")
    assert not Path("r").exists()


def test_a_word_of_several_tokens_is_shown_with_its_pieces(small):
    Path("own.yaml").write_text("labels: [a, b]\ntemplates: '{text} It was {mask} .'\nlabel_words: [bad, zyxwvutsrq]\n")
    Path("data").mkdir()
    for name in ("train", "test"):
        Path(f"data/{name}.jsonl").write_text('{"text": "x", "label": 0}\n{"text": "y", "label": 1}\n' * 10)
    with pytest.raises(UsageError, match=r"'zyxwvutsrq' is \d+ tokens"):
        tune(**small(task_name="own.yaml", data_dir="data"), output_dir="r")
    assert not Path("r").exists()


def test_a_long_text_is_truncated_and_counted(small, caplog):
    Path("data").mkdir()
    rows = [{"text": "dull " * 300 if i == 0 else "good film", "label": i % 2} for i in range(20)]
    for name in ("train", "test"):
        Path(f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING):
        result = tune(**small(task_name="sst2", data_dir="data", max_test_examples=None), output_dir="r")
    assert "1 of 20 texts are longer" in caplog.text
    assert result.examples["truncated"] >= 1


def test_a_finished_run_is_not_run_over(small):
    tune(**small(budget=8), output_dir="r")
    before = Path("r/result.json").read_bytes()
    for options in (small(budget=8), small(budget=12)):
        with pytest.raises(ArtifactError, match="r already holds a finished run"):
            tune(**options, output_dir="r")
    with pytest.raises(ArtifactError, match="r already holds a finished run"):
        tune(resume="r")
    assert Path("r/result.json").read_bytes() == before


def test_an_unfinished_run_is_not_taken_for_another(small):
    tune(**small(budget=8), output_dir="r")
    Path("r/result.json").unlink()
    with pytest.raises(ArtifactError, match=r"another run: budget was 8 and is now 40\. .*--resume r"):
        tune(**small(budget=40), output_dir="r")
    with pytest.raises(UsageError, match="is 40, but the run in r was started with 8; --resume cannot change it"):
        tune(resume="r", budget=40)
    assert tune(resume="r", max_time=500, batch_size=3).evaluations == 8


def test_a_run_whose_model_has_changed_keeps_its_description(small, model_folder, make_model):
    shutil.copytree(model_folder(), "model")
    tune(**small(budget=8, model_name="model"), output_dir="r")
    Path("r/result.json").unlink()
    before = Path("r/bbt_config.json").read_bytes()
    vocabulary = json.loads(Path("model/config.json").read_text())["vocab_size"]
    make_model("roberta", seed=1, vocab_size=vocabulary).save_pretrained("model")
    with pytest.raises(ArtifactError, match=r"journal\.jsonl cannot be resumed: embeddings was .* and is now"):
        tune(resume="r")
    assert Path("r/bbt_config.json").read_bytes() == before


def test_a_folder_with_other_files_is_not_written_into(small):
    Path("r").mkdir()
    Path("r/thesis.tex").touch()
    with pytest.raises(ArtifactError, match=r"r holds 'thesis\.tex', but no run of bbt-fast"):
        tune(**small(), output_dir="r")
    assert [path.name for path in Path("r").iterdir()] == ["thesis.tex"]


def test_the_folder_of_a_model_is_not_that_of_a_run(small, model_folder):
    folder = model_folder()
    with pytest.raises(ArtifactError, match=r"holds 'config\.json', but no run of bbt-fast"):
        tune(**small(), output_dir=str(folder))
    with pytest.raises(UsageError, match=r"holds no run of bbt-fast: it has no config\.json of one"):
        tune(resume=str(folder))


def test_there_must_be_a_run_to_resume(small):
    with pytest.raises(UsageError, match=r"r holds no run of bbt-fast: it has no config\.json"):
        tune(resume="r")


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"seed": 7}', b"\x00" * 100])
def test_a_damaged_configuration_is_refused_by_name(damage, small):
    tune(**small(budget=8), output_dir="r")
    Path("r/result.json").unlink()
    Path("r/config.json").write_bytes(damage)
    for call in (lambda: tune(resume="r"), lambda: tune(**small(budget=8), output_dir="r")):
        with pytest.raises(ArtifactError, match=r"r/config\.json is missing or damaged"):
            call()


HOLD = "import filelock, sys; l = filelock.FileLock(sys.argv[1]); l.acquire(); print('held', flush=True); input()"


def test_two_processes_cannot_write_one_run(small):
    tune(**small(budget=8), output_dir="r")
    Path("r/result.json").unlink()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "r/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ArtifactError, match="another process is running in r"):
            tune(resume="r")
        other.kill()  # the lock dies with its process
    assert tune(resume="r").evaluations == 8


def test_importing_the_package_loads_no_library_and_its_names_are_listed():
    probe = "import sys, bbt_fast; dir(bbt_fast); print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert "bbt_fast" in loaded
    assert not {"numpy", "torch", "transformers", "onnx"} & set(loaded)
    assert set(bbt_fast.__all__) <= set(dir(bbt_fast))
    with pytest.raises(AttributeError, match="has no attribute 'tun'"):
        _ = bbt_fast.tun
    assert issubclass(UsageError, BbtFastError)
