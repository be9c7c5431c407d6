"""Task files: what they must hold, and what is said about mistakes in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bbt_fast.export.errors import BbtFastError, DataError, UsageError
from bbt_fast.tuner.tasks.task import FIELDS, KINDS, TASKS_DIR, Task, load_task, read_task, task_names
from bbt_fast.tuner.tasks.template import problem_of, text_names
from bbt_fast.tuner.tasks.wording import ORIGINAL, worded

PAPERS = {
    "sst2": ("{text} . It was {mask} .", "bad great"),
    "yelp_polarity": ("{text} . It was {mask} .", "bad great"),
    "ag_news": ("{mask} News: {text}", "World Sports Business Tech"),
    "dbpedia_14": (
        "[ Category: {mask} ] {text}",
        "Company Education Artist Athlete Office Transportation Building Natural Village Animal Plant Album Film "
        "Written",
    ),
    "mrpc": ("{text_a} ? {mask} , {text_b}", "No Yes"),
    "rte": ("{text_a} ? {mask} , {text_b}", "Yes No"),
    "snli": ("{text_a} ? {mask} , {text_b}", "Yes Maybe No"),
    "trec": ("{mask} : {text}", "Expression Entity Description Human Location Number"),
    "subj": ("{text} This is {mask} .", "objective subjective"),
}
CHINESE = ["chnsent", "lcqmc", "thucnews", "amazon", "bq", "cmnli", "ocnli", "ccpm", "tnews", "c3"]
PAIRS = ["mrpc", "rte", "snli", "lcqmc", "bq", "cmnli", "ocnli"]
VALID = """\
name: mine
labels: [bad, good]
templates:
  masked: "{text} It is {mask}"
label_words:
  masked: [bad, good]
columns: {text: review}
hub: {id: me/mine, train: train, test: test}
preset: {loss_type: hinge, budget: 100, sigma: 0.5, alpha: 2}
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a task file."""

    def write(content: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_the_tasks_are_those_of_the_papers_and_the_demo() -> None:
    assert set(task_names()) == {*PAPERS, *CHINESE, "demo"}


@pytest.mark.parametrize("name", task_names())
def test_every_packaged_task_serves_all_model_kinds(name: str) -> None:
    task = load_task(name)
    assert task.path == TASKS_DIR / f"{name}.yaml"
    assert set(task.templates) == set(task.label_words) == set(KINDS)
    for kind in KINDS:
        assert len(task.words(kind)) == len(task.labels)


@pytest.mark.parametrize("name", [*PAPERS, "demo"])
def test_english_tasks_have_their_template_in_four_wordings(name: str) -> None:
    task = load_task(name)
    for kind in ("masked", "seq2seq"):
        wordings = task.wordings(kind, 4)
        assert wordings[0] == task.template(kind)
        assert len(set(wordings)) == 4
    with pytest.raises(UsageError, match=f"templates is 9, but task '{name}' has 4 for masked models"):
        task.wordings("masked", 9)


@pytest.mark.parametrize("name", PAPERS)
def test_english_templates_and_label_words_are_the_papers(name: str) -> None:
    template, words = PAPERS[name]
    task = load_task(name)
    assert task.template("masked") == template
    assert [alternatives[0] for alternatives in task.words("masked")] == words.split()


@pytest.mark.parametrize("name", CHINESE)
def test_a_chinese_task_falls_back_on_first_characters_as_the_original_does(name: str) -> None:
    for alternatives in load_task(name).words("masked"):
        assert alternatives[-1] == alternatives[0][0]


@pytest.mark.parametrize("name", task_names())
def test_presets_are_hinge_for_pairs_and_budgets_for_dbpedia_and_the_demo(name: str) -> None:
    preset = load_task(name).preset
    assert preset.loss_type == ("hinge" if name in PAIRS else None)
    assert preset.budget == {"dbpedia_14": 20_000, "demo": 1000}.get(name)


def test_only_mrpc_is_scored_by_f1() -> None:
    assert [name for name in task_names() if load_task(name).metric == "f1"] == ["mrpc"]


@pytest.mark.parametrize("name", [*PAPERS, *CHINESE])
def test_hub_ids_name_their_owner(name: str) -> None:
    hub = load_task(name).hub
    if hub is None:
        assert name in ("thucnews", "ccpm")
    else:
        assert re.fullmatch(r"[\w-]+/[\w-]+", hub.id)
        assert min(hub.rows.values()) > 0


@pytest.mark.parametrize(("alias", "name"), [("SST-2", "sst2"), ("agnews", "ag_news"), ("yelpp", "yelp_polarity")])
def test_the_original_s_names_and_capitals_are_understood(alias: str, name: str) -> None:
    assert load_task(alias) is load_task(name)


def test_an_unknown_task_is_refused_with_the_names_and_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'ss2'\. Did you mean 'sst2'\? The tasks are ag_news, .*yelp"):
        load_task("ss2")


def test_a_task_file_may_leave_out_all_but_three_fields(task_file: Callable[[str], Path]) -> None:
    task = load_task(task_file('labels: [a, b]\ntemplates: "{text_a} {mask} {text_b}"\nlabel_words: [No, Yes]\n'))
    assert task.name == "mine"
    assert task.texts == ("text_a", "text_b")
    assert task.words("seq2seq") == (("No",), ("Yes",))
    assert (task.hub, task.metric, task.preset.budget) == (None, "accuracy", None)


def test_every_field_of_a_task_file_is_read(task_file: Callable[[str], Path]) -> None:
    task = load_task(task_file(VALID))
    assert task.hub is not None
    assert (task.name, task.labels, task.columns) == ("mine", ("bad", "good"), {"text": "review"})
    assert (task.hub.id, task.hub.config, task.hub.train) == ("me/mine", None, "train")
    assert vars(task.preset) == {"loss_type": "hinge", "budget": 100, "sigma": 0.5, "alpha": 2.0}


def test_a_kind_without_a_template_is_named_when_it_is_asked_for(task_file: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match=r"'mine' has no template for decoder models, only for masked"):
        load_task(task_file(VALID)).template("decoder")


def test_the_task_files_in_the_docs_are_whole(repo_root: Path, task_file: Callable[[str], Path]) -> None:
    page = (repo_root / "docs" / "tasks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) == 2
    assert all(len(block.splitlines()) < 15 for block in blocks)
    assert [load_task(task_file(block)).texts for block in blocks] == [("text",), ("text_a", "text_b")]


def test_the_docs_describe_every_field(repo_root: Path) -> None:
    page = (repo_root / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(FIELDS)


MISTAKES = [
    ("labels: [bad, good]", "labels: [bad]", 2, "labels needs at least two classes"),
    ("labels: [bad, good]", "labels: [bad, bad]", 2, r"labels\[1\] is 'bad', which the list already holds"),
    ("labels: [bad, good]", "labels: bad", 2, "labels must be a list"),
    ("labels: [bad, good]", "lables: [bad, good]", 2, "unknown key 'lables'; the keys are name, aliases, labels"),
    ("labels: [bad, good]\n", "", 1, "the file lacks the key 'labels'"),
    ("labels: [bad, good]", "labels: [bad, good]\nlabels: [a, b]", 3, "has the key 'labels' twice"),
    ("name: mine", "name:", 1, "name is empty"),
    ("is {mask}", "is", 4, r"templates.masked must hold {mask} exactly once"),
    ("{text} It", "{sentence} It", 4, r"must hold {text} once, or {text_a} and {text_b}"),
    ("{text} It", "{text It", 4, "cannot be read"),
    ("{text} It", "{text!r} It", 4, "more than a name in its braces"),
    ('masked: "', 'maskd: "', 4, "unknown key 'maskd'; the keys are masked, seq2seq, decoder"),
    (
        '"{text} It is {mask}"',
        '"{text} It is {mask}"\n  decoder: "{text} It is {mask}"',
        5,
        "templates.decoder must end where the answer begins",
    ),
    (
        '"{text} It is {mask}"',
        '"{text} It is {mask}"\n  seq2seq: "{text_a} {mask} {text_b}"',
        5,
        "must hold the same texts as the first template: text",
    ),
    ("masked: [bad, good]", "seq2seq: [bad, good]", 6, "must name the same model kinds; masked is only in one"),
    ("masked: [bad, good]", "masked: [bad]", 6, "1 entries for 2 classes: 'good' has no label word"),
    ("masked: [bad, good]", "masked: [bad, good, great]", 6, "3 entries, but there are 2 classes"),
    ("masked: [bad, good]", "masked: [bad, {a: b}]", 6, r"label_words.masked\[1\] must be a list"),
    ("{text: review}", "{txt: review}", 7, "unknown key 'txt'; the keys are text, text_a, text_b, label"),
    ("{text: review}", '{text: "{a"}', 7, "columns.text cannot be read"),
    ("columns:", "use_words: some\ncolumns:", 7, "use_words is 'some'; it must be one of first, all"),
    ("columns:", 'more_templates: {decoder: ["{text} is"]}\ncolumns:', 7, "has wordings for decoder models, which"),
    (
        "columns:",
        'more_templates:\n  masked: ["{text_a} {mask} {text_b}"]\ncolumns:',
        8,
        r"more_templates.masked\[0\] must hold the same texts as the first template: text",
    ),
    ("columns:", 'more_templates: {masked: ["{text}"]}\ncolumns:', 7, "must hold {mask} exactly once"),
    ("id: me/mine, ", "", 8, "hub lacks the key 'id'"),
    ("loss_type: hinge", "loss_type: square", 9, "is 'square'; it must be one of ce, hinge, perf"),
    ("budget: 100", "budget: many", 9, "preset.budget is 'many', but must be a number"),
    ("budget: 100", "budget: 2.5", 9, "preset.budget is 2.5, but must be a whole number"),
    ("sigma: 0.5", "sigma: -1", 9, "preset.sigma is -1.0, but must be above 0"),
    ("alpha: 2", "alpha: .inf", 9, "alpha is '.inf', but must be a number"),
    ("preset: {loss", "metric: f2\npreset: {loss", 9, "metric is 'f2'; it must be one of accuracy, f1"),
    ("hub: {id", "hub: [id", 8, "this is not YAML"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_a_mistake_is_reported_with_its_line(
    task_file: Callable[[str], Path], old: str, new: str, line: int, message: str
) -> None:
    assert VALID.count(old) == 1
    with pytest.raises(DataError, match=rf"mine\.yaml, line {line}: .*{message}"):
        load_task(task_file(VALID.replace(old, new)))


def test_f1_needs_two_classes(task_file: Callable[[str], Path]) -> None:
    content = 'labels: [a, b, c]\nmetric: f1\ntemplates: "{text} {mask}"\nlabel_words: [x, y, z]\n'
    with pytest.raises(DataError, match=r"line 2: metric is f1, which is defined for two classes here"):
        load_task(task_file(content))


def test_yes_and_no_stay_words(task_file: Callable[[str], Path]) -> None:
    task = load_task(task_file('labels: [no, yes]\ntemplates: "{text} {mask}"\nlabel_words: [No, Yes]\n'))
    assert task.labels == ("no", "yes")
    assert task.words("masked") == (("No",), ("Yes",))


def test_a_missing_or_empty_task_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*mine\.yaml: No such file"):
        load_task(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_bytes(b"# nothing\n")
    with pytest.raises(DataError, match=r"mine\.yaml is empty"):
        load_task(tmp_path / "mine.yaml")


def read_or_refuse(path: Path, content: bytes) -> Task | None:
    """Read a task file of any bytes: a task, or None after a BbtFastError."""
    path.write_bytes(content)
    try:
        return read_task(path)
    except BbtFastError:
        return None


@settings(max_examples=100)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))))
def test_whatever_a_task_file_holds_only_our_errors_come_out(tmp_path: Path, content: bytes) -> None:
    read_or_refuse(tmp_path / "mine.yaml", content)


PIECES = ["[", "{", "}", "&a", "*a", "!!python/name:os.system", "- ", ": ", "\n", "'", "{mask}", "\t", "0"]


@settings(max_examples=100)
@given(position=st.integers(0, len(VALID)), length=st.integers(0, 20), piece=st.sampled_from(PIECES))
def test_a_damaged_task_file_is_read_or_refused(tmp_path: Path, position: int, length: int, piece: str) -> None:
    damaged = VALID[:position] + piece + VALID[position + length :]
    task = read_or_refuse(tmp_path / "mine.yaml", damaged.encode())
    assert task is None or len(task.words("masked")) == len(task.labels)


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("labels: " + "[" * 5_000, encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.yaml is not YAML that can be read: RecursionError"):
        read_task(tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", yaml.safe_load(ORIGINAL.read_text(encoding="utf-8")))
def test_the_originals_wording_changes_templates_and_label_words_alone(name: str) -> None:
    task = load_task(name)
    assert worded(task, "own", "add") is task
    added, joined = worded(task, "original", "add"), worded(task, "original", "cat")
    assert added.first_tokens
    assert added.templates != task.templates
    for found in (added, joined):
        assert replace(found, templates=task.templates, label_words=task.label_words, first_tokens=False) == task
        for kind, template in found.templates.items():
            assert problem_of(template, kind) is None
            assert text_names(template) == task.texts
            assert len(found.words(kind)) == len(task.labels)
    assert joined.templates["masked"] == task.templates["masked"]


def test_a_users_task_of_a_packaged_name_keeps_its_template(task_file: Callable[[str], Path]) -> None:
    task = load_task(task_file('name: sst2\nlabels: [a, b]\ntemplates: "{text} {mask}"\nlabel_words: [x, y]\n'))
    assert worded(task, "original", "add").templates == task.templates
