"""Several runs side by side: who belongs together, what the table says, and a page that asks nobody for anything."""

from __future__ import annotations

import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bbt_fast import tune_seeds
from bbt_fast.export.errors import ArtifactError, UsageError
from bbt_fast.tuner.artifacts.result import read_result
from bbt_fast.tuner.cli.main import main
from bbt_fast.tuner.report.curves import find_runs
from bbt_fast.tuner.report.groups import group_runs, rows
from bbt_fast.tuner.report.page import report_page
from bbt_fast.tuner.report.svg import Series, line_chart, nice_ticks

OUTSIDE = ("src", "href", "action", "data", "poster", "srcset", "xlink:href", "formaction")


@pytest.fixture
def runs(tmp_path, make_options, start):
    """A folder of runs: two seeds of BBT, one of BBTv2, and one of BBT with another sigma that is not finished."""
    for name, options in {
        "one": make_options(seed=1), "two": make_options(seed=2), "deep": make_options("bbtv2"),
        "more/cut": make_options(sigma=0.5),
    }.items():  # fmt: skip
        start(tmp_path / "runs" / name, options)
    (tmp_path / "runs" / "more" / "cut" / "result.json").unlink()
    return tmp_path / "runs"


def test_runs_that_differ_in_the_seed_alone_are_one_row(runs):
    groups = group_runs(find_runs([runs]))
    labels = {group.label: [run.path.name for run in group.runs] for group in groups}
    assert labels == {"bbt, sigma 1": ["one", "two"], "bbtv2, sigma 1": ["deep"], "bbt, sigma 0.5": ["cut"]}
    assert [group.unfinished for group in groups if group.label == "bbt, sigma 0.5"] == [1]


def test_the_table_has_mean_and_deviation_over_the_seeds(runs):
    header, *lines = rows(group_runs(find_runs([runs])))
    (row,) = [dict(zip(header, line, strict=True)) for line in lines if line[0] == "bbt, sigma 1"]
    results = [read_result(runs / name) for name in ("one", "two")]
    tests = [100 * result.tuned.test for result in results]
    assert row["runs"] == "2"
    assert row["test"] == f"{statistics.fmean(tests):.1f} ± {statistics.stdev(tests):.1f}"
    assert row["evals/s"] == f"{statistics.fmean(result.evals_per_s for result in results):.1f}"
    (cut,) = [dict(zip(header, line, strict=True)) for line in lines if line[0] == "bbt, sigma 0.5"]
    assert cut["runs"] == "1 (1 unfinished)"
    assert {cut[name] for name in header[2:]} == {"-"}
    (deep,) = [dict(zip(header, line, strict=True)) for line in lines if line[0] == "bbtv2, sigma 1"]
    assert deep["test"] == f"{100 * read_result(runs / 'deep').tuned.test:.1f}"


def test_a_run_is_taken_once_however_it_is_given(runs):
    assert [run.path.name for run in find_runs([runs / "two", runs, runs / "two"])] == ["two", "deep", "cut", "one"]


def test_the_command_prints_the_table_and_writes_the_page(runs, tmp_path, capsys):
    assert main(["report", str(runs), "--out", str(tmp_path / "page.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["options", "runs", "test", "dev"]
    assert len(lines) == 1 + 3 + 3
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_command_draws_plots_again(runs, capsys):
    assert main(["report", str(runs / "one"), "--plots"]) == 0
    assert len(list((runs / "one" / "plots").glob("*.png"))) == 3
    assert "one/plots/search.png" in capsys.readouterr().out


def test_several_seeds_of_one_command_are_their_runs(small):
    tune_seeds(**small(seeds=(8, 13)), output_dir="r")
    (group,) = group_runs(find_runs([Path("r")]))
    assert [run.options.seed for run in group.runs] == [8, 13]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere holds no run of bbt-fast"), ([], "the following arguments are required: DIR")],
)
def test_what_holds_no_run_is_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_result_is_said_and_not_shown(runs):
    path = runs / "one" / "result.json"
    path.write_text(path.read_text().replace("toy", "boy"))
    with pytest.raises(ArtifactError, match=r"result\.json is missing or damaged"):
        find_runs([runs])


def test_a_model_s_folder_among_the_runs_is_passed_over(runs):
    names = [run.path.name for run in find_runs([runs])]
    (runs / "baked").mkdir()
    (runs / "baked" / "config.json").write_text('{"model_type": "roberta"}')
    assert [run.path.name for run in find_runs([runs])] == names
    with pytest.raises(UsageError, match="baked holds no run of bbt-fast"):
        find_runs([runs / "baked"])


@pytest.mark.parametrize("change", [lambda text: text.replace("toy", "boy"), lambda text: text[:-20], lambda _: ""])
def test_a_damaged_configuration_of_a_run_is_said(change, runs):
    path = runs / "one" / "config.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ArtifactError, match=r"one/config\.json is missing or damaged"):
        find_runs([runs])


def test_curves_with_a_torn_line_are_shown_as_far_as_they_go(runs):
    path = runs / "one" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    (run,) = find_runs([runs / "one"])
    assert run.evaluations == 88


class Page(HTMLParser):
    """What a page refers to, and what it says."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.open, self.words, self.style = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in OUTSIDE]
        self.style += " ".join(value for name, value in attrs if name == "style")
        if tag not in ("meta", "link", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)


def test_the_page_is_well_formed_and_asks_nobody_for_anything(runs):
    text = report_page(group_runs(find_runs([runs])))
    page = Page(text)
    assert page.open == []
    assert page.references == ["data:,"]
    assert not {"script", "iframe", "object", "embed", "img", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|@font-face|https?:", page.style)
    assert "http" not in text
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in page.style
    assert re.search(r"@media \(max-width", page.style)


def test_the_page_has_the_figures_of_every_run(runs):
    words = " ".join(Page(report_page(group_runs(find_runs([runs])))).words)
    for name in ("one", "two", "deep"):
        result = json.loads((runs / name / "result.json").read_text())
        assert (
            f"{100 * result['zero_shot']['test']:.1f} % untuned, {100 * result['tuned']['test']:.1f} % tuned" in words
        )
        assert f"96 evaluations in {result['seconds']['tune']:.1f} s" in words
        assert f"{result['queries']['z_up_bytes']} bytes as z" in words
    assert "unfinished, 96 evaluations" in words


def test_the_page_s_curves_are_the_runs(runs):
    text = report_page(group_runs(find_runs([runs / "deep"])))
    titles = re.findall(r"<polyline [^>]*><title>([^<]*)</title>", text)
    assert titles.count("layer 2") == 2  # step size and axis ratio
    assert titles.count("bbtv2, seed 42") == 2  # loss and development metric, in the comparison
    assert "<details open>" in text


def test_names_cannot_break_out_of_the_page(tmp_path, make_options, start):
    folder = tmp_path / "<b>&\"'"
    start(folder, make_options(model_name="<script>alert(1)</script>"))
    page = Page(report_page(group_runs(find_runs([folder]))))
    assert "script" not in page.tags
    assert any("<b>&\"'" in words for words in page.words)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
        (0.23, 0.56, [0.2, 0.3, 0.4, 0.5, 0.6]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [2.8, 2.9, 3.0, 3.1, 3.2]),
        (0, 0, [-0.06, -0.04, -0.02, 0, 0.02, 0.04, 0.06]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_a_long_curve_is_thinned_but_keeps_its_end():
    points = [(i, float(i)) for i in range(5000)]
    (drawn,) = re.findall(r'points="([^"]*)"', line_chart("x", [Series("a", points, 0)]))
    pairs = [tuple(map(float, pair.split(","))) for pair in drawn.split()]
    assert 200 < len(pairs) <= 400
    assert pairs[-1] == pytest.approx((620.0, 14.0), abs=0.5)


def test_a_chart_without_points_is_left_out():
    assert line_chart("x", [Series("a", [], 0)]) == ""
