"""The command line: the same path as the API, one message and exit code 2 for mistakes, a summary at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bbt_fast import tune
from bbt_fast.tuner.cli.main import main


def flags(options):
    """Options as flags of the command line."""
    switches = [f"--{'' if value else 'no-'}{name}" for name, value in options.items() if isinstance(value, bool)]
    known = {name: value for name, value in options.items() if not isinstance(value, bool)}
    return switches + [part for name, value in known.items() for part in (f"--{name}", str(value))]


def test_a_run_prints_its_summary_and_nothing_else(small, capsys):
    assert main([*flags(small()), "--output-dir", "r"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    result = json.loads(Path("r/result.json").read_text())
    assert re.match(r"demo, .*model-roberta: bbt in add mode, torch fp32 on cpu, seed 42$", lines[0])
    assert lines[2].split() == ["accuracy", "zero-shot", "tuned"]
    percent = {name: f"{100 * result['tuned'][name]:.1f}" for name in ("train", "dev", "test")}
    assert lines[3].split() == ["train", percent["train"], "%"]
    assert lines[5].split()[3:] == [percent["test"], "%"]
    assert lines[5].split()[1] == f"{100 * result['zero_shot']['test']:.1f}"
    assert lines[7].startswith("24 evaluations in ")
    assert lines[8].startswith("run: r ")
    assert "eval/s" not in printed.err, "a live line where there is no terminal"


def test_flags_mean_what_the_api_means(small):
    changes = {"algorithm": "bbtv2", "seed": 7, "loss_type": "hinge", "sigma": 0.5, "bound": 2.0}
    assert main(["tune", *flags(small(**changes)), "--output_dir", "cli"]) == 0
    tune(**small(**changes), output_dir="api")
    assert Path("cli/journal.jsonl").read_bytes() == Path("api/journal.jsonl").read_bytes()
    assert Path("cli/config.json").read_bytes() == Path("api/config.json").read_bytes()


def test_flags_override_the_config_file(small, capsys):
    Path("c.yaml").write_text(yaml.safe_dump(small(seed=1, budget=8)))
    assert main(["--config", "c.yaml", "--seed", "2", "--output_dir", "r"]) == 0
    config = json.loads(Path("r/config.json").read_text())
    assert (config["seed"], config["budget"]) == (2, 8)


def test_the_printed_config_makes_the_same_run(small, capsys):
    assert main([*flags(small()), "--print-config"]) == 0
    Path("c.yaml").write_text(capsys.readouterr().out)
    assert not Path("runs").exists()
    assert main(["--config", "c.yaml", "--output_dir", "a"]) == 0
    assert main([*flags(small()), "--output_dir", "b"]) == 0
    assert Path("a/journal.jsonl").read_bytes() == Path("b/journal.jsonl").read_bytes()


def test_several_seeds_end_in_one_table(small, capsys):
    assert main([*flags(small(seeds="8,13")), "--output_dir", "r"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:7]] == ["8", "13", "mean", "std"]
    assert lines[8].startswith("ensemble of the 2 prompts on test: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "many"], "budget is 'many', but must be a whole number"),
        (["--engine", "nope"], "there is no engine 'nope'"),
        (["--task_name", "nope"], "unknown task 'nope'"),
        (["--flag", "x"], "unrecognized arguments: --flag x"),
        (["--config", "nowhere.yaml"], r"cannot read nowhere\.yaml"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["--resume", "nowhere"], "nowhere holds no run"),
        (["--resume"], r"--resume needs the folder of an unfinished run\. There is none below \./runs\."),
        (["--model_name", "/nosuch", "--task_name", "sst2"], "no model '/nosuch'"),
        (["--n_prompt_tokens", "100000"], "100000 tokens leaves no room for a text: this model takes [0-9]+ tokens in"),
        (["export", "--budget", "5"], "unrecognized arguments: --budget 5. `bbt-fast"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, message, small, capsys):
    assert main([*flags(small()), *arguments] if arguments[0].startswith("-") else arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.match(f"bbt-fast: .*{message}", printed.err.splitlines()[-1])
    assert "Traceback" not in printed.err
    assert [path.name for path in Path().iterdir()] == []


@pytest.mark.parametrize(
    ("command", "said"),
    [("tune", "interrupted before the search began; nothing is lost."), ("tasks", "interrupted.")],
)
def test_an_interrupted_command_says_that_nothing_is_lost_only_if_it_tunes(command, said, monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bbt_fast.tuner.cli.{command}.run", interrupted)
    assert main([command]) == 130
    assert capsys.readouterr().err == f"bbt-fast: {said}\n"


def test_resume_without_a_folder_offers_the_last_unfinished_run(small, capsys):
    for name in ("older", "newer", "finished"):
        assert main([*flags(small()), "--output_dir", f"runs/{name}"]) == 0
    for age, name in enumerate(("newer", "older")):
        Path("runs", name, "result.json").unlink()
        for path in Path("runs", name).rglob("*"):
            os.utime(path, (1e9 - age, 1e9 - age))
    Path("runs/baked").mkdir()
    Path("runs/baked/config.json").write_text('{"model_type": "roberta"}')
    capsys.readouterr()
    assert main(["--resume"]) == 2
    offer = f"bbt-fast tune --resume {Path('runs', 'newer')}"
    assert capsys.readouterr().err.strip().endswith(offer)


def test_a_file_in_the_place_of_the_runs_folder_is_said_to_be_one(small, capsys):
    Path("taken").write_text("mine")
    assert main([*flags(small()), "--output_dir", "taken"]) == 2
    assert "taken cannot be a run's folder, as taken is a file" in capsys.readouterr().err
    assert main([*flags(small()), "--output_dir", "taken/below"]) == 2
    assert "Choose another --output_dir" in capsys.readouterr().err
    assert Path("taken").read_text() == "mine"


@pytest.mark.parametrize("engine", ["torch", "ort"])
def test_export_builds_and_checks_what_a_run_takes(engine, small, capsys):
    options = {name: small()[name] for name in ("model_name", "n_prompt_tokens", "precision", "device")}
    assert main(["export", *flags(options), "--engine", engine]) == 0
    out = capsys.readouterr().out
    assert "add mode, 5 prompt tokens, cuts at input" in out
    assert ("parity with PyTorch fp32:" in out) == (engine == "ort")
    assert os.environ["BBT_FAST_CACHE"] in out


def test_doctor_names_engines_hardware_and_what_auto_takes(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for expected in ("torch", "onnxruntime", "instruction sets", "engine auto, fastest first", "parity gate"):
        assert expected in out
    assert re.search(r"^  trt +.*(installed|pip install 'bbt-fast\[trt\]')", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("there", "gpus", "said"),
    [
        (False, 0, "ray is not installed: `pip install 'bbt-fast[ray]'`"),
        (True, 0, "ray 2.60; up to 3 here, a CPU thread each; on other machines with --ray_address"),
        (True, 2, "ray 2.60; up to 2 here, a GPU each; on other machines with --ray_address"),
    ],
)
def test_doctor_says_how_many_workers_there_is_room_for(there, gpus, said, monkeypatch):
    from bbt_fast.tuner.cli import diagnosis

    monkeypatch.setattr(diagnosis, "find_spec", lambda name: object() if there else None)
    monkeypatch.setattr(diagnosis, "version", lambda name: "2.60")
    monkeypatch.setattr(diagnosis.torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(diagnosis.torch, "get_num_threads", lambda: 3)
    assert diagnosis._workers() == {"--workers": said}


def test_doctor_sees_two_onnx_runtimes(monkeypatch):
    from bbt_fast.tuner.cli import diagnosis

    found = {"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}
    monkeypatch.setattr(diagnosis, "versions", lambda: dict(found))
    assert "PROBLEM: onnxruntime and onnxruntime-gpu overwrite" in diagnosis.diagnosis()["versions"]["onnxruntime"]
    del found["onnxruntime"]
    assert "PROBLEM" not in str(diagnosis.diagnosis()["versions"])


@pytest.mark.parametrize(
    "arguments", [["--help"], ["tune", "--help"], ["export", "-h"], ["doctor", "-h"], ["--version"]]
)
def test_help_ends_well(arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert "bbt-fast" in capsys.readouterr().out


def test_help_does_not_wait_for_pytorch():
    code = "from bbt_fast.tuner.cli.main import make_parser; make_parser('tune')"
    code = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def start_process(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bbt_fast.tuner.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_generations(folder, n, process):
    """Wait until a run's journal has n generations."""
    for _ in range(1200):
        if (folder / "journal.jsonl").exists() and (folder / "journal.jsonl").read_bytes().count(b"generation") >= n:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("the run did not get anywhere in a minute")


@pytest.mark.slow
def test_a_signal_ends_after_the_generation_and_says_how_to_go_on(small):
    process = start_process([*flags(small(budget=200_000)), "--output_dir", "r"])
    wait_for_generations(Path("r"), 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    last = err.splitlines()[-1]
    assert re.match(r"bbt-fast: stopped by SIGTERM after \d+ evaluations\..*bbt-fast tune --resume r$", last)
    assert Path("r/prompt.safetensors").exists()
    lines = Path("r/journal.jsonl").read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)


@pytest.mark.slow
def test_a_reader_that_has_read_enough_gets_no_traceback():
    command = [sys.executable, "-m", "bbt_fast.tuner.cli", "tasks"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_parallel_says_what_the_budget_counts_here_and_in_the_original(small, caplog):
    caplog.set_level("WARNING", logger="bbt_fast")
    given = [*flags(small(budget=40)), "--print-config"]
    assert main(given) == 0
    assert "--parallel" not in caplog.text
    assert main([*given, "--parallel"]) == 0
    assert "--budget 40 is 40 evaluations, 10 generations of 4" in caplog.text
    assert "multiply them by 4 (--budget 160)" in caplog.text
