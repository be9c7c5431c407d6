"""A distilled student is a model of its own, nearer to its teacher than the layers it starts from."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bbt_fast.tuner import demo


def test_a_student_has_some_layers_of_its_teacher_and_learns_from_it(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(repo_root / "scripts" / "distill.py"))["main"]
    teacher = Path(demo.__file__).parent
    texts = tmp_path / "train.jsonl"
    texts.write_text("".join(json.dumps({"text": row["text"], "label": 0}) + "\n" for row in demo.rows("test")[:200]))

    def perplexities(learning_rate: str) -> dict[str, float]:
        flags = ["--model_name", teacher, "--texts", texts, "--output_dir", tmp_path, "--layers", "5", "--epochs", "4"]
        monkeypatch.setattr(sys, "argv", ["distill.py", *map(str, flags), "--learning_rate", learning_rate])
        main()
        found = re.findall(r"(\d) layers: perplexity ([\d.]+)", capsys.readouterr().out)
        return {layers: float(perplexity) for layers, perplexity in found}

    untrained, trained = perplexities("0"), perplexities("1e-3")
    assert trained["6"] == untrained["6"] < trained["5"] < untrained["5"] / 1.5
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "demo-5")
    assert student.config.num_hidden_layers == len(student.roberta.encoder.layer) == 5
    assert len(AutoTokenizer.from_pretrained(tmp_path / "demo-5")) == student.config.vocab_size
