"""Options, the flags made from them, presets, and configuration files."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from bbt_fast.export.errors import DataError, UsageError
from bbt_fast.export.prompts import MODES
from bbt_fast.tuner.cli.arguments import GROUPS, Parser, add_options, helps
from bbt_fast.tuner.cli.tune import read_config_file
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.driver import ALGORITHMS
from bbt_fast.tuner.run.setup import CUTS
from bbt_fast.tuner.search.losses import LOSSES
from bbt_fast.tuner.search.projection import NONE, PROJECTIONS
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import Preset

NAMES = [field.name for field in fields(Options)]
ORIGINAL_FLAGS = """model_name task_name n_prompt_tokens intrinsic_dim k_shot batch_size budget popsize bound sigma
alpha print_every eval_every device alg random_proj seed loss_type cat_or_add inference_framework onnx_model_path"""
TAKES = {
    "task_name": "sst2", "data_dir": "d", "column_mapping": "text=t", "model_name": "m", "init_text": "t",
    "init_from": "f", "engine": "ort", "onnx_model_path": "o", "precision": "fp32", "device": "cpu",
    "output_dir": "o", "resume": "r", "seeds": "8,13", "cat_or_add": "cat", "algorithm": "bbtv2", "alg": "CMA",
    "random_proj": "uniform", "loss_type": "hinge", "inference_framework": "pt", "target_metric": "0.5",
    "keep": "mean", "optimizer": "snes",
}  # fmt: skip


def parse(*flags: str) -> argparse.Namespace:
    """Parse flags as the command line does."""
    parser = Parser()
    add_options(parser)
    return parser.parse_args(flags)


@pytest.mark.parametrize(
    ("field", "table"),
    [("loss_type", LOSSES), ("random_proj", [*PROJECTIONS, NONE]), ("algorithm", ALGORITHMS), ("cat_or_add", MODES)],
)
def test_choices_are_the_rows_of_the_tables(field, table):
    hint = get_type_hints(Options)[field]
    literals = [hint, *get_args(hint)]
    assert set(table) in [set(get_args(literal)) for literal in literals]


def test_every_algorithm_has_its_cuts():
    assert CUTS.keys() == ALGORITHMS.keys()


def test_every_option_has_a_group_and_a_help_text():
    assert [name for name in NAMES if name in GROUPS] == list(GROUPS)
    assert NAMES[0] in GROUPS
    assert all(len(helps()[name]) > 10 for name in NAMES)


@pytest.mark.parametrize("name", ORIGINAL_FLAGS.split())
def test_the_originals_flags_are_there_with_underscores_and_with_dashes(name):
    value = TAKES.get(name, "70")
    for flag in (f"--{name}", f"--{name.replace('_', '-')}"):
        options = Options.of(**vars(parse(flag, value)))
        assert str(getattr(options, name)) in (value, f"{value}.0")


def test_the_originals_defaults_are_kept():
    options = Options()
    assert (options.n_prompt_tokens, options.intrinsic_dim, options.k_shot, options.popsize) == (50, 500, 16, 20)
    assert (options.eval_every, options.print_every, options.random_proj, options.seed) == (100, 50, "normal", 42)
    assert options.bound == 0
    assert parse("--parallel").parallel is True


def test_flags_that_were_not_given_say_nothing():
    assert vars(parse("--budget", "100")) == {"budget": "100"}


def test_a_shortened_or_unknown_flag_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match=r"unrecognized arguments: --budgt 5\. Did you mean '--budget'\?"):
        parse("--budgt", "5")
    with pytest.raises(UsageError, match="expected one argument"):
        parse("--budget")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": "many"}, "budget is 'many', but must be a whole number"),
        ({"budget": 10.5}, "budget is 10.5, but must be a whole number"),
        ({"seed": True}, "seed is True, but must be a whole number"),
        ({"sigma": "x"}, "sigma is 'x', but must be a number"),
        ({"sigma": 0}, "sigma is 0.0, but must be above 0"),
        ({"alpha": float("nan")}, "alpha is nan, but must be above 0"),
        ({"bound": -1}, "bound is -1.0, but must be at least 0"),
        ({"k_shot": 0}, "k_shot is 0, but must be at least 1"),
        ({"seed": 2**32}, "seed is 4294967296, but must be at least 0 and at most 4294967295"),
        ({"seeds": "8,x"}, "seeds is 'x', but must be a whole number"),
        ({"seeds": 8}, "seeds is 8, but must be whole numbers separated by commas"),
        ({"seeds": "8,13,8"}, "has the same seed twice"),
        ({"projection_from": ()}, "projection_from is (), but must be texts separated by commas"),
        ({"projection_from": "a,"}, "projection_from is '', but must be text"),
        ({"projection_from": "a", "random_proj": "uniform"}, "projection_from needs random_proj normal"),
        ({"projection_from": "a", "preset": "original"}, "projection_from needs random_proj normal"),
        ({"target_metric": 80}, "target_metric is 80.0, but must be at least 0 and at most 1"),
        ({"loss_type": "hing"}, "must be one of ce, hinge, perf, ce-smooth, ce-entropy. Did you mean 'hinge'"),
        ({"random_proj": "none"}, "too large for the optimizer cma: take --optimizer sep-cma or snes"),
        ({"alg": "DE"}, "alg is 'DE', but must be 'CMA'"),
        ({"cat_or_add": "mul"}, "cat_or_add is 'mul', but must be one of add, cat"),
        ({"parallel": "maybe"}, "parallel is 'maybe', but must be true or false"),
        ({"parallel": False}, "parallel cannot be switched off"),
        ({"model_name": ""}, "model_name is '', but must be text"),
        ({"budget": 19}, "budget 19 is less than one generation of 20 candidates"),
        ({"popsize": 0, "budget": 21}, "budget 21 is less than one generation of 22 candidates"),
        ({"popsize": 3}, "popsize is 3, but must be at least 4, or 0"),
        ({"popsize": -20}, "popsize is -20, but must be at least 4, or 0"),
        ({"init_text": "hello"}, "init_text needs --cat_or_add cat"),
        ({"init_text": "hello", "init_from": "r", "cat_or_add": "cat"}, "give one of init_text and init_from"),
        ({"inference_framework": "pt", "engine": "ort"}, "inference_framework pt is the engine torch, but"),
        ({"engine": "remote"}, "the engine remote needs --url"),
        ({"url": "http://a"}, "--url needs --engine remote"),
        ({"engine": "remote", "url": "http://a", "onnx_model_path": "b"}, "omit it with --engine remote"),
        ({"engine": "remote", "url": "http://a", "workers": 2}, "omit --workers with --engine remote"),
        ({"workers": 2, "device": "cuda:1"}, "each of the --workers gets a GPU of its own: use --device cuda"),
        ({"ray_address": "auto"}, "ray_address needs --workers"),
        ({"seeds": "8,13", "push_to_hub": "a/b"}, "push_to_hub uploads the prompt of one run: omit --seeds"),
        ({"random_proj": "none", "optimizer": "snes", "embeddings": 2}, "random_proj none has no matrix"),
        ({"streams": "original", "embeddings": 2}, "streams original draws the matrices of one embedding"),
        ({"streams": "original", "engine": "remote", "url": "http://a"}, "streams original needs the model on this"),
        ({"n_prompt_token": 5}, "there is no option 'n_prompt_token'. Did you mean 'n_prompt_tokens'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(values, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Options.of(**values)


def test_values_from_flags_files_and_python_mean_the_same():
    expected = Options(budget=100, sigma=0.5, seeds=(8, 13), projection_from=("a", "b"), plots=False)
    texts = {"budget": "100", "sigma": "0.5", "seeds": "8,13", "projection_from": "a,b", "plots": "false"}
    assert Options.of(**texts) == expected
    assert Options.of(budget=100.0, sigma=0.5, seeds=[8, 13], projection_from=["a", "b"], plots=False) == expected


def test_popsize_zero_takes_the_rule_of_cma_es():
    assert Options(popsize=0, intrinsic_dim=500).generation_size == 22
    assert Options(popsize=12).generation_size == 12


@pytest.mark.parametrize(("framework", "engine"), [("pt", "torch"), ("ort", "ort")])
def test_the_originals_frameworks_are_engines(framework, engine):
    assert Options(inference_framework=framework).engine_name == engine
    assert Options(inference_framework=framework, engine=engine).engine_name == engine


@pytest.mark.parametrize(("algorithm", "published"), [("bbt", 1.0), ("bbtv2", 0.2)])
def test_the_published_defaults_of_the_algorithms(algorithm, published):
    options = resolve(Options(algorithm=algorithm, task_name="sst2"), Preset())
    assert (options.sigma, options.alpha) == (published, published)
    assert (options.budget, options.loss_type, options.model_name) == (8000, "ce", "roberta-large")


def test_a_tasks_preset_stands_above_the_defaults_and_below_the_user():
    preset = Preset(loss_type="hinge", budget=20000, sigma=0.7)
    options = resolve(Options(task_name="x", alpha=3.0, loss_type="perf"), preset)
    assert (options.loss_type, options.budget, options.sigma, options.alpha) == ("perf", 20000, 0.7, 3.0)


def test_a_preset_that_is_less_than_a_generation_of_the_users_popsize_is_refused():
    with pytest.raises(UsageError, match="budget 100 is less than one generation of 200 candidates"):
        resolve(Options(popsize=200), Preset(budget=100))


def test_the_demo_runs_on_its_own_model():
    assert resolve(Options(), Preset()).model_name == "demo"


def test_files_and_folders_are_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data", "model", "demo"):
        Path(name).mkdir()
    options = resolve(Options(data_dir="data", model_name="model", task_name="own.yaml"), Preset())
    assert options.data_dir == str(tmp_path / "data")
    assert options.model_name == str(tmp_path / "model")
    assert options.task_name == str(tmp_path / "own.yaml")
    assert resolve(Options(model_name="demo"), Preset()).model_name == "demo"
    assert resolve(Options(model_name="org/model"), Preset()).model_name == "org/model"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_config_file_gives_options(tmp_path):
    file = write(tmp_path / "c.yaml", "task_name: sst2\nbudget: 400\nseeds: [8, 13]\nplots: false\nsigma: 0.5\n")
    read = Options.of(**read_config_file(file))
    assert read == Options(task_name="sst2", budget=400, seeds=(8, 13), plots=False, sigma=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task_name: sst2\nbudgt: 400\n", "line 2: budgt is no option. Did you mean 'budget'"),
        ("task_name: sst2\n\nbudget: lots\n", "line 3: budget is 'lots', but must be a whole number"),
        ("task_name: sst2\nseeds:\n- 8\n- -1\n", "line 3: seeds is -1, but must be at least 0"),
        ("- a\n- b\n", "line 1: the file must be a mapping"),
        ("budget: {a: 1}\n", "line 1: budget must be a list"),
        ("budget: [\n", "line 2: this is not YAML"),
    ],
)
def test_a_mistake_in_a_config_file_is_shown_with_its_line(text, message, tmp_path):
    with pytest.raises(DataError, match=re.escape(message)):
        read_config_file(write(tmp_path / "c.yaml", text))


def test_options_come_back_from_yaml_as_they_were(tmp_path):
    options = resolve(Options(task_name="sst2", seeds=(1, 2), max_time=3.5, algorithm="bbtv2"), Preset())
    known = {name: value for name, value in options.as_dict().items() if value is not None}
    file = write(tmp_path / "c.yaml", yaml.safe_dump(known))
    assert Options.of(**read_config_file(file)) == options
