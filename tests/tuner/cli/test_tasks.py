"""``bbt-fast tasks``: what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bbt_fast.tuner.cli.main import FAILED, main
from bbt_fast.tuner.tasks.task import task_names


@pytest.fixture
def model_dir(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel], make_tokenizer: Callable[[str], PreTrainedTokenizerFast]
) -> Path:
    """A folder with a configuration and a tokenizer, but no weights."""
    make_model("bert").config.save_pretrained(tmp_path / "model")
    make_tokenizer("wordpiece").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_list_has_every_task_with_template_label_words_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    printed = capsys.readouterr().out
    blocks = dict(block.split(":", 1) for block in printed.split("\n\n"))
    assert [name.split()[0] for name in blocks] == list(task_names())
    assert blocks["mrpc"].splitlines() == [
        " 2 classes, f1, 3,668 train, 408 test, loss_type hinge",
        "    {text_a} ? {mask} , {text_b}",
        "    No, Yes",
    ]
    assert "budget 20000" in blocks["dbpedia_14 (dbpedia)"]


def test_the_list_can_be_that_of_another_model_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--kind", "decoder"]) == 0
    assert "{text} . The sentiment is\n    negative/bad/terrible, positive/good/great" in capsys.readouterr().out


def test_an_example_is_shown_with_positions_and_ids(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show", "sst2", "--model-name", str(model_dir), "--n-prompt-tokens", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"task sst2, BERT model {model_dir}, add mode"
    assert "prompt positions: 1 to 5, added to the placeholder tokens there" in lines
    (answer,) = [line for line in lines if line.startswith("answer position")]
    position = int(answer.split()[2])
    tokens = [line.split() for line in lines[lines.index("") + 1 :]]
    assert tokens[0][0::2] == ["0", "[CLS]"]
    assert tokens[2] == ["...", "...", "(5", "placeholder", "tokens)"]
    assert [token[2] for token in tokens if token[0] == str(position)] == ["[MASK]"]
    assert int(tokens[-1][0]) == position + 2


def test_in_cat_mode_the_prompt_stands_before_the_text(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show", "mrpc", "--model_name", str(model_dir), "--cat_or_add", "cat"]) == 0
    printed = capsys.readouterr().out
    assert "prompt positions: 50 tokens before position 0" in printed
    assert "placeholder" not in printed
    assert "text_b: a second text" in printed


def test_with_data_the_example_is_a_training_example(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("sentence,label\n" + "so dull,negative\nso great,positive\n" * 2)
    given = ["--model_name", str(model_dir), "--data_dir", str(tmp_path), "--k_shot", "1"]
    assert main(["tasks", "show", "sst2", *given]) == 0
    printed = capsys.readouterr().out
    assert ("text: so dull\nclass: negative" in printed) != ("text: so great\nclass: positive" in printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "sst3"], "unknown task 'sst3'. Did you mean 'sst2'?"),
        (["show", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["show", "sst2", "--model_name", "no/model"], "no model 'no/model'"),
        (["--kind", "masks"], "invalid choice: 'masks'"),
    ],
)
def test_mistakes_end_with_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", *arguments]) == FAILED
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert "Traceback" not in printed.err
