"""A tuned prompt, loaded and used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import bbt_fast
from bbt_fast.export.errors import ArtifactError, UsageError
from bbt_fast.tuner.artifacts.prompt import read_prompt, save_prompt
from bbt_fast.tuner.artifacts.prompt_config import PROMPT_CONFIG, read_prompt_config
from bbt_fast.tuner.artifacts.result import read_result
from bbt_fast.tuner.cli.main import main
from bbt_fast.tuner.data.columns import Row
from bbt_fast.tuner.demo import rows
from bbt_fast.tuner.tune import tune, tune_seeds
from bbt_fast.tuner.use.classifier import rows_of
from bbt_fast.tuner.use.push import push

TEXTS = [str(row["text"]) for row in rows("test")[:12]]


def loaded(folder: Path | list[Path], **changes: Any) -> bbt_fast.Classifier:
    """A classifier on PyTorch in fp32, unless changed."""
    return bbt_fast.load(folder, **({"engine": "torch", "precision": "fp32", "device": "cpu"} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("algorithm", "kind", "changes"),
    [
        ("bbt", "roberta", {}),
        ("bbtv2", "bert", {}),
        ("bbt", "bert", {"label_words": "auto", "templates": 2, "calibrate": True}),
        ("bbtv2", "roberta", {"label_words": "auto"}),
    ],
)
def test_evaluate_gives_the_run_s_own_test_metric(algorithm, kind, changes, tuned):
    folder = tuned(algorithm, kind, **changes)
    result, classifier = read_result(folder), loaded(folder)
    assert len(classifier.encoder.label_words.rows) == (8 if changes else 2)
    found = classifier.evaluate()
    assert (found.metric, found.value) == (result.metric, result.tuned.test)
    assert (found.examples, found.truncated) == (30, result.examples["truncated"])


def test_evaluate_leaves_out_the_texts_that_the_run_left_out(small):
    Path("data").mkdir()
    texts = [str(row["text"]) for row in rows("train")[:40]]
    texts[5] = texts[9] = "dull " * 300
    own = "".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(texts))
    for name in ("train", "test"):
        Path(f"data/{name}.jsonl").write_text(own)
    options = small(task_name="sst2", data_dir="data", long_texts="drop", max_test_examples=None, budget=4)
    result, classifier = tune(**options, output_dir="r"), loaded(Path("r"))
    found = classifier.evaluate()
    assert (found.examples, found.truncated, found.value) == (38, 0, result.tuned.test)
    assert classifier.evaluate(max_test_examples=39).examples == 38
    given = classifier.evaluate("data")  # a file of one's own is scored in full
    assert (given.examples, given.truncated) == (40, 2)


def test_predictions_have_the_pipeline_s_shape_and_keep_the_order(tuned):
    classifier = loaded(tuned())
    classifier.batch_size = 5
    answers = classifier(TEXTS)
    assert len(answers) == len(TEXTS)
    assert len({round(answer["score"], 6) for answer in answers}) > 1
    for text, answer in zip(TEXTS, answers, strict=True):
        assert set(answer) == {"label", "score", "scores"}
        assert list(answer["scores"]) == list(classifier.labels)
        assert sum(answer["scores"].values()) == pytest.approx(1)
        assert answer["score"] == answer["scores"][answer["label"]] == max(answer["scores"].values())
        (alone,) = classifier(f"  {text} ")
        assert alone["scores"] == pytest.approx(answer["scores"], abs=1e-5)
    assert classifier([]) == []


def test_another_engine_answers_alike(tuned):
    expected = loaded(tuned())(TEXTS)
    found = loaded(tuned(), engine="ort")(TEXTS)
    for a, b in zip(expected, found, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)


def test_texts_and_pairs_come_in_the_shapes_that_transformers_takes():
    assert rows_of(["text"], "a") == rows_of(["text"], {"text": "a"}) == rows_of(["text"], ["a"]) == [Row("a", None, 0)]
    pair = [Row("a", "b", 0)]
    names = ["text_a", "text_b"]
    assert rows_of(names, ("a", "b")) == rows_of(names, [("a", "b")]) == rows_of(names, [["a", "b"]]) == pair
    assert rows_of(names, {"text": "a", "text_pair": "b"}) == pair


@pytest.mark.parametrize("item", ["a", 3, {"text": "a"}, ("a", "b", "c"), ("a", None)])
def test_what_is_no_pair_is_refused(item):
    with pytest.raises(UsageError, match=r"classifies a pair of texts, \(first, second\), but was given"):
        rows_of(["text_a", "text_b"], [item])


def test_a_prompt_is_used_with_its_own_model_only(tuned, model_folder, make_model, make_tokenizer, tmp_path):
    other = tmp_path / "other"
    tokenizer = make_tokenizer("bpe")
    make_model("roberta", seed=1, vocab_size=len(tokenizer)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    assert loaded(tuned(), model_name=model_folder())
    with pytest.raises(
        ArtifactError, match=r"was tuned on .*, but .*other is another model: its word embeddings differ"
    ):
        loaded(tuned(), model_name=str(other))


def test_pickled_weights_answer_only_where_the_user_says_so(tuned, model_folder, tmp_path, lines):
    pickled = shutil.copytree(model_folder(), tmp_path / "model")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="--allow_pickle also loads"):
        loaded(tuned(), model_name=str(pickled))
    (expected,) = loaded(tuned())(TEXTS[:1])
    (found,) = loaded(tuned(), model_name=str(pickled), allow_pickle=True)(TEXTS[:1])
    assert found["label"] == expected["label"]
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    on = ["--run", str(tuned()), "--engine", "torch", "--device", "cpu", "--model_name", str(pickled)]
    assert lines("predict", *on, "--allow_pickle", TEXTS[0])[0].startswith(f"{expected['label']}\t")


def test_a_prompt_of_another_shape_is_refused(tuned, tmp_path):
    copy = shutil.copytree(tuned(), tmp_path / "copy")
    prompts, about = read_prompt(copy)
    save_prompt(copy / "prompt.safetensors", prompts[:, :3], about)
    with pytest.raises(ArtifactError, match=r"is \[1, 3, 32\], but the model takes \[1, 5, 32\]"):
        loaded(copy)


def test_a_folder_without_a_prompt_or_a_damaged_one_is_refused(tuned, tmp_path):
    with pytest.raises(UsageError, match=r"holds no tuned prompt: it has no bbt_config.json; give the folder of a run"):
        loaded(tmp_path)
    with pytest.raises(UsageError, match=r"there is no folder .*none"):
        loaded(tmp_path / "none")
    copy = shutil.copytree(tuned(), tmp_path / "copy")
    (copy / PROMPT_CONFIG).write_text((copy / PROMPT_CONFIG).read_text().replace("great", "bad"))
    with pytest.raises(ArtifactError, match="is missing or damaged: its checksum does not match"):
        loaded(copy)


def test_the_folder_of_seeds_that_are_not_finished_names_one_to_take(small, tmp_path):
    tune_seeds(**small(seeds=(8, 13), budget=4), output_dir="both")
    assert loaded(Path("both/seed-8"))("a film")
    Path("both/result.json").unlink()
    with pytest.raises(UsageError, match=r"give one of its seeds, such as .*both.*seed-13"):
        loaded(Path("both"))


@pytest.mark.parametrize("algorithm", ["bbt", "bbtv2"])
def test_several_prompts_answer_with_the_mean_of_their_log_probabilities(algorithm, tuned):
    runs = [tuned(algorithm), tuned(algorithm, seed=7)]
    alone = torch.tensor([[list(a["scores"].values()) for a in loaded(run)(TEXTS)] for run in runs])
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)
    together = bbt_fast.load(runs, engine="torch", precision="fp32", device="cpu")(TEXTS)
    expected = alone.log().mean(0).softmax(1)
    found = torch.tensor([list(answer["scores"].values()) for answer in together])
    assert torch.allclose(found, expected, atol=1e-4)
    assert all(answer["score"] == max(answer["scores"].values()) for answer in together)


def test_one_population_answers_for_all_prompts_at_input(tuned, monkeypatch):
    classifier = loaded([tuned(), tuned(seed=7)])
    asked: list[int] = []
    opened = classifier.engine.open

    def spy(examples: Any) -> Any:
        session = opened(examples)
        evaluate = session.evaluate
        session.evaluate = lambda prompts, layer=0: asked.append(len(prompts)) or evaluate(prompts, layer)
        return session

    monkeypatch.setattr(classifier.engine, "open", spy)
    classifier(TEXTS)
    assert asked == [2]


def test_the_folder_of_finished_seeds_is_their_ensemble(small, tmp_path):
    result = tune_seeds(**small(seeds=(8, 13), budget=8), output_dir="both")
    classifier = loaded(Path("both"))
    assert len(classifier.prompts) == 2
    assert classifier.evaluate().value == result.ensemble


def test_prompts_with_label_words_of_their_own_are_an_ensemble(small, tmp_path):
    result = tune_seeds(**small(seeds=(8, 13), budget=8, label_words="auto", calibrate=True), output_dir="both")
    classifier = loaded(Path("both"))
    assert len(set(classifier.words)) == 2
    assert classifier.evaluate().value == result.ensemble
    each = [loaded(Path("both") / f"seed-{seed}") for seed in (8, 13)]
    logs = [torch.tensor([list(answer["scores"].values()) for answer in one(TEXTS)]).log() for one in each]
    expected = torch.stack(logs).mean(dim=0).softmax(dim=1)
    for answer, row in zip(classifier(TEXTS), expected.tolist(), strict=True):
        assert list(answer["scores"].values()) == pytest.approx(row, abs=1e-5)


def test_a_bias_for_other_words_than_the_task_s_is_refused(tuned, tmp_path):
    copy = shutil.copytree(tuned(), tmp_path / "copy")
    replace(read_prompt_config(copy), label_bias=(0.5, 0.25, 0.0)).write(copy)
    with pytest.raises(ArtifactError, match="label_bias has 3 numbers for 2 label words"):
        loaded(copy)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"algorithm": "bbtv2"}, "algorithm 'bbt' in the first, algorithm 'bbtv2' in the second"),
        ({"cat_or_add": "cat"}, "cat_or_add 'add' in the first, cat_or_add 'cat' in the second"),
        ({"n_prompt_tokens": 4}, "n_prompt_tokens 5 in the first, n_prompt_tokens 4 in the second"),
        ({"kind": "bert"}, r"base model .*model-roberta \(embeddings .*model-bert \(embeddings"),
    ],
)
def test_prompts_that_do_not_fit_together_are_refused(other, message, tuned):
    with pytest.raises(UsageError, match=f"do not form an ensemble: {message}"):
        loaded([tuned(), tuned(**other)])


def test_prompts_of_another_task_are_refused_with_both_templates(tuned, small, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\nlabels: [negative, positive]\ntemplates: '{text} So {mask} .'\nlabel_words: [bad, great]\n"
    )
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split)[:60]))
    tune(**small(task_name=str(own), data_dir=str(data), budget=4), output_dir="own")
    with pytest.raises(
        UsageError, match=r"task 'demo' with template .* in the first, task 'own' with template '.* So "
    ):
        loaded([tuned(), Path("own")])
    with pytest.raises(UsageError, match="there is no prompt to load"):
        loaded([])


def test_a_task_of_one_s_own_travels_with_its_prompt(small, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\nlabels: [bad one, good one]\ntemplates: '{text} It was {mask} .'\nlabel_words: [bad, great]\n"
    )
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split)[:100]))
    result = tune(**small(task_name=str(own), data_dir=str(data), budget=4), output_dir="run")
    own.unlink()
    classifier = loaded(Path("run"))
    assert classifier.config.task.labels == ("bad one", "good one")
    assert classifier(TEXTS[0])[0]["label"] in classifier.labels
    assert classifier.evaluate().value == result.tuned.test
    (data / "train.jsonl").unlink()  # a test file is enough
    assert classifier.evaluate(data).examples == 100


class Hub:
    """A folder in the place of the hub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private: dict[str, bool] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private[repo_id] = private

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> huggingface_hub.CommitInfo:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        address = f"https://huggingface.co/{repo_id}/commit/1"
        return huggingface_hub.CommitInfo(
            commit_url=address, commit_message=commit_message, commit_description="", oid="1"
        )

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        if not (self.folder / repo_id).exists():
            raise OSError("no such repository")
        return str(self.folder / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that is a folder, in the place of the real one."""
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_pushed_prompt_is_loaded_by_its_hub_id(hub, tuned, model_folder):
    where = push(tuned(), "somebody/prompt", base_model="somebody/roberta", private=True)
    assert where == "https://huggingface.co/somebody/prompt/commit/1"
    assert hub.private == {"somebody/prompt": True}
    shared = hub.folder / "somebody/prompt"
    assert sorted(path.name for path in shared.iterdir()) == ["README.md", PROMPT_CONFIG, "prompt.safetensors"]
    assert str(model_folder()) not in "".join(path.read_text(errors="ignore") for path in shared.iterdir())
    assert read_prompt_config(shared).base_model == "somebody/roberta"
    classifier = loaded("somebody/prompt", model_name=model_folder())  # type: ignore[arg-type]
    for found, expected in zip(classifier(TEXTS), loaded(tuned())(TEXTS), strict=True):
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    with pytest.raises(UsageError, match="somebody/else is neither a folder nor a reachable prompt on the hub"):
        loaded("somebody/else")  # type: ignore[arg-type]


def test_a_prompt_for_a_model_that_nobody_else_has_is_not_pushed(hub, tuned, small):
    with pytest.raises(UsageError, match="is a folder of this machine, but a shared prompt needs"):
        push(tuned(), "somebody/prompt")
    with pytest.raises(UsageError, match="is a folder of this machine, but a shared prompt needs"):
        tune(**small(push_to_hub="somebody/prompt"))


def test_tune_pushes_at_its_end_and_a_hub_that_refuses_undoes_nothing(hub, small, monkeypatch, caplog):
    options = small(model_name="demo", budget=4, push_to_hub="somebody/demo")
    tune(**options, output_dir="first")
    assert (hub.folder / "somebody/demo/prompt.safetensors").exists()

    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(hub, "create_repo", refuse)
    result = tune(**options, output_dir="second")
    assert read_result(Path("second")).tuned == result.tuned
    assert "bbt-fast push --run second somebody/demo" in caplog.text


def test_the_card_says_what_the_prompt_is(tuned):
    text = (tuned("bbtv2") / "README.md").read_text()
    head = ModelCard(text).data.to_dict()
    assert head["pipeline_tag"] == "text-classification"
    result = read_result(tuned("bbtv2"))
    for fact in (
        "BBTv2",
        "| seed | 42 |",
        "`{text} . It was {mask} .`",
        "negative: bad",
        f"{result.tuned.test:.4f}",
        "bbt_fast.load(",
    ):
        assert fact in text
    assert "base_model" not in head  # a folder is no address


@pytest.fixture
def lines(capsys, monkeypatch):
    """A function that runs a command and returns the lines of its output."""

    def run(*words: str) -> list[str]:
        assert main(list(words)) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_predict_and_evaluate_on_the_command_line(tuned, lines, tmp_path, monkeypatch):
    on = ["--run", str(tuned()), "--engine", "torch", "--precision", "fp32", "--device", "cpu"]
    expected = loaded(tuned())(TEXTS)
    assert lines("predict", *on, *TEXTS) == [
        f"{answer['label']}\t{answer['score']:.4f}\t{text}" for text, answer in zip(TEXTS, expected, strict=True)
    ]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    found = [json.loads(line) for line in lines("predict", *on, "--file", str(file), "--json")]
    assert found == [{"text": text, **answer} for text, answer in zip(TEXTS, expected, strict=True)]
    value = read_result(tuned()).tuned.test
    assert json.loads(lines("evaluate", *on, "--json")[0])["value"] == value
    assert lines("evaluate", *on)[0].startswith(f"accuracy {value:.4f}, loss ")


def test_predict_takes_several_runs(tuned, lines):
    runs = [tuned(), tuned(seed=7)]
    on = [word for run in runs for word in ("--run", str(run))]
    expected = loaded(runs)(TEXTS)
    assert lines("predict", *on, "--engine", "torch", "--precision", "fp32", "--device", "cpu", *TEXTS) == [
        f"{answer['label']}\t{answer['score']:.4f}\t{text}" for text, answer in zip(TEXTS, expected, strict=True)
    ]


def test_mistakes_on_the_command_line_are_sentences(tuned, tmp_path, capsys):
    run = ["predict", "--run", str(tuned()), "--engine", "torch", "--device", "cpu"]
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for words, message in (
        ([*run, "a", "--file", "b"], "both texts and --file are given"),
        ([*run, "--file", str(tmp_path / "none")], "cannot read"),
        ([*run, "--file", str(empty)], "there are no texts in"),
        (["predict", "a"], "the following arguments are required: --run"),
        (["push", "--run", str(tmp_path), "a/b"], "holds no tuned prompt"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_the_prompts_of_all_layers_are_used(tuned, tmp_path):
    copy = shutil.copytree(tuned("bbtv2"), tmp_path / "copy")
    prompts, about = read_prompt(copy)
    prompts[-1] += 1
    save_prompt(copy / "prompt.safetensors", prompts, about)
    change = torch.tensor(
        [a["score"] - b["score"] for a, b in zip(loaded(copy)(TEXTS), loaded(tuned("bbtv2"))(TEXTS), strict=True)]
    )
    assert float(change.abs().max()) > 1e-4
