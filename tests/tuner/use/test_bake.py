"""A baked classifier answers as ``predict`` does, with ONNX Runtime and tokenizers alone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from google.protobuf import text_format
from tokenizers import Tokenizer

import bbt_fast
from bbt_fast.export.classifier import Classifier
from bbt_fast.export.errors import ParityError, UsageError
from bbt_fast.export.model import StagedModel
from bbt_fast.tuner.cli.main import main
from bbt_fast.tuner.data.columns import Row
from bbt_fast.tuner.demo import rows
from bbt_fast.tuner.use import bake as bake_module
from bbt_fast.tuner.use.bake import Baked, bake
from bbt_fast.tuner.use.baked_tokenizer import PROBES
from bbt_fast.tuner.use.triton import config_of

TEXTS = [str(row["text"]) for row in rows("test")[:180]] + [text.strip() for text in PROBES]
TEXTS = TEXTS[-200:]
FEW = TEXTS[-40:]
FP32, FP16 = 1e-4, 2e-2
CASES = [("bbt", "roberta", "cat"), ("bbtv2", "bert", "add"), ("bbtv2", "roberta", "cat")]


@pytest.fixture(scope="module")
def baked(
    tuned: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[bbt_fast.Classifier, Baked]]:
    """A function that bakes a small run, once for the same arguments: (what it was made of, what was made)."""
    made: dict[tuple[str, ...], tuple[bbt_fast.Classifier, Baked]] = {}

    def make(algorithm: str, kind: str, mode: str, precision: str = "fp32") -> tuple[bbt_fast.Classifier, Baked]:
        key = (algorithm, kind, mode, precision)
        if key not in made:
            run = tuned(algorithm, kind, cat_or_add=mode)
            classifier = bbt_fast.load(run, engine="torch", precision="fp32", device="cpu")
            out = tmp_path_factory.mktemp("baked") / "-".join(key)
            made[key] = classifier, bake(classifier, out, precision=precision, triton=True)
        return made[key]

    return make


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def answers(folder: Path, texts: list[str], size: int = 64) -> np.ndarray[Any, Any]:
    """What a user of the folder does, in batches."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = opened(folder / "model.onnx")
    found = []
    for start in range(0, len(texts), size):
        encoded = tokenizer.encode_batch(texts[start:][:size])
        ids, mask = (np.array([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
        found.append(session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0])
    return np.concatenate(found)


def expected_logits(classifier: bbt_fast.Classifier, texts: list[str]) -> np.ndarray[Any, Any]:
    """The logits of the classifier that was baked."""
    logits: np.ndarray[Any, Any] = classifier.logits(
        classifier.encoder.encode([Row(t, None, 0) for t in texts])
    ).numpy()
    return logits


def labels_agree(classifier: bbt_fast.Classifier, found: np.ndarray[Any, Any], texts: list[str], tie: float) -> bool:
    """Whether the labels are those that the classifier gives, but where its two best logits are closer than a tie."""
    best_two = np.sort(expected_logits(classifier, texts))[:, -2:]
    tied = best_two[:, 1] - best_two[:, 0] < tie
    labels = [classifier.labels[i] for i in found.argmax(axis=1)]
    assert tied.mean() < 0.5
    return all(a == b["label"] or t for a, b, t in zip(labels, classifier(texts), tied, strict=True))


@pytest.mark.parametrize(("algorithm", "kind", "mode"), [CASES[0], pytest.param(*CASES[1], marks=pytest.mark.slow)])
def test_a_baked_file_answers_as_predict_does(algorithm, kind, mode, baked):
    classifier, made = baked(algorithm, kind, mode)
    expected = expected_logits(classifier, FEW)
    assert len({tuple(row) for row in expected.round(3).tolist()}) > len(FEW) / 2
    for size in (len(FEW), 7, 1):  # padded and not; any batch and any length
        found = answers(made.folder, FEW, size)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < FP32
    assert labels_agree(classifier, found, FEW, tie=2 * FP32)
    assert made.difference < FP32


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "kind", "mode"), CASES[:1])
def test_a_baked_file_in_fp16_answers_alike(algorithm, kind, mode, baked):
    classifier, made = baked(algorithm, kind, mode, "fp16")
    found = answers(made.folder, FEW)
    assert found.dtype == np.float32
    scale = max(1.0, np.abs(expected_logits(classifier, FEW)).max())
    assert 0 < made.difference < FP16 * scale
    assert labels_agree(classifier, found, FEW, tie=2 * FP16 * scale)
    kinds = {
        tensor.data_type for tensor in onnx.load(made.folder / "model.onnx").graph.initializer if len(tensor.dims) == 2
    }
    assert onnx.TensorProto.FLOAT16 in kinds


@pytest.mark.slow
def test_prompts_with_calibrated_words_of_their_own_are_baked(tuned, tmp_path):
    runs = [tuned(label_words="auto", calibrate=True, seed=seed) for seed in (42, 7)]
    classifier = bbt_fast.load(runs, engine="torch", precision="fp32", device="cpu")
    assert len(classifier.encoder.label_words.rows) == 8
    assert len(set(classifier.words)) == 2
    made = bake(classifier, tmp_path / "baked")
    assert np.abs(answers(made.folder, FEW, 7) - expected_logits(classifier, FEW)).max() < FP32


@pytest.mark.slow
def test_several_prompts_of_all_layers_are_baked_into_one_file(tuned, tmp_path):
    algorithm, kind, mode = CASES[2]
    runs = [tuned(algorithm, kind, cat_or_add=mode, **seed) for seed in ({}, {"seed": 7}, {"seed": 8})]
    classifier = bbt_fast.load(runs, engine="torch", precision="fp32", device="cpu")
    made = bake(classifier, tmp_path / "baked")
    expected = expected_logits(classifier, FEW)
    assert not np.allclose(
        expected, expected_logits(bbt_fast.load(runs[0], engine="torch", precision="fp32", device="cpu"), FEW)
    )
    assert np.abs(answers(made.folder, FEW, 7) - expected).max() < FP32
    assert json.loads((made.folder / "config.json").read_text())["bbt_fast"]["prompts"] == 3
    assert "3 soft prompts of 5 tokens each, averaged" in (made.folder / "README.md").read_text()


def test_the_folder_loads_as_a_sequence_classifier_s_does(baked):
    classifier, made = baked(*CASES[0])
    config = transformers.AutoConfig.from_pretrained(made.folder)
    assert config.id2label == dict(enumerate(classifier.labels))
    assert config.architectures == ["RobertaForSequenceClassification"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.folder)
    theirs = tokenizer([*FEW, "too long " * 300], padding=True, truncation=True)
    ours = Tokenizer.from_file(str(made.folder / "tokenizer.json")).encode_batch([*FEW, "too long " * 300])
    assert set(theirs) == {"input_ids", "attention_mask"}
    assert theirs["input_ids"] == [one.ids for one in ours]
    assert theirs["attention_mask"] == [one.attention_mask for one in ours]
    assert len(ours[0].ids) == tokenizer.model_max_length
    assert str(Path(classifier.config.base_model).parent) not in "".join(
        path.read_text(encoding="utf-8") for path in made.folder.glob("*") if path.suffix in (".json", ".md")
    )


@pytest.mark.slow
def test_the_code_in_the_readme_runs(baked):
    classifier, made = baked(*CASES[1])
    (code,) = re.findall(r"```python\n(.*?)```", (made.folder / "README.md").read_text(encoding="utf-8"), re.S)
    run = subprocess.run([sys.executable, "-c", code], cwd=made.folder, capture_output=True, text=True, check=False)
    expected = [answer["label"] for answer in classifier(["a text to classify", "another one"])]
    assert run.stdout.strip() == repr(expected), run.stderr


@pytest.fixture(scope="module")
def model_config_pb2() -> Any:
    """Triton's own definitions; the module is loaded alone, since its package asks for gRPC."""
    spec = importlib.util.find_spec("tritonclient")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    own = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert own is not None
    assert own.loader is not None
    module = importlib.util.module_from_spec(own)
    own.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("algorithm", "kind", "mode"), [CASES[0], pytest.param(*CASES[1], marks=pytest.mark.slow)])
def test_triton_s_definitions_agree_with_the_file(algorithm, kind, mode, baked, model_config_pb2):
    classifier, made = baked(algorithm, kind, mode)
    (model,) = (made.folder / "triton").iterdir()
    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    session = opened(model / "1" / "model.onnx")
    assert (config.name, config.backend) == (model.name, "onnxruntime")
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    types = {"tensor(int64)": model_config_pb2.TYPE_INT64, "tensor(float)": model_config_pb2.TYPE_FP32}
    for theirs, ours in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(one.name, one.data_type) for one in theirs] == [(one.name, types[one.type]) for one in ours]
        for one, actual in zip(theirs, ours, strict=True):
            assert isinstance(actual.shape[0], str)  # the batch, which Triton adds by itself
            assert list(one.dims) == [size if isinstance(size, int) else -1 for size in actual.shape[1:]]
    assert list(config.output[0].dims) == [len(classifier.labels)]
    assert tuple((model / config.output[0].label_filename).read_text().split()) == classifier.labels


def test_a_name_with_quotes_stays_a_name(model_config_pb2):
    config = text_format.Parse(config_of('say "no"', 3), model_config_pb2.ModelConfig())
    assert (config.name, list(config.output[0].dims)) == ('say "no"', [3])


def test_what_cannot_be_baked_is_refused_and_leaves_nothing(tuned, tmp_path, monkeypatch, capsys):
    run = str(tuned())
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for words, message in (
        (["--out", str(full)], "is not empty: choose another --out"),
        (["--out", str(tmp_path / "new"), "--precision", "int8"], "must be one of fp32, fp16 for a baked file"),
    ):
        assert main(["bake", "--run", run, *words]) == 2
        assert message in capsys.readouterr().err
    classifier = bbt_fast.load(run, engine="torch", precision="fp32", device="cpu")
    monkeypatch.setattr(bake_module, "write_classifier", lambda graph, path, *_: path.write_bytes(b"no graph"))
    with pytest.raises(ParityError, match="ONNX Runtime cannot run this model as one graph"):
        bake(classifier, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_file_that_answers_otherwise_is_refused(baked, tmp_path, monkeypatch):
    classifier, made = baked(*CASES[0])
    other = onnx.load(made.folder / "model.onnx")
    monkeypatch.setattr(bake_module, "write_classifier", lambda graph, path, *_: onnx.save(other, path))
    answered = bake_module.answer
    monkeypatch.setattr(bake_module, "answer", lambda *args: answered(*args) + 0.01)
    with pytest.raises(ParityError, match=r"disagrees with PyTorch in fp32: a logit differs by 1\.\d\de-02"):
        bake(classifier, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_whose_answer_comes_from_a_decoder_is_refused(make_model, make_examples):
    config = transformers.BartConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    staged = StagedModel(transformers.BartForConditionalGeneration(config).eval(), "add", 3, "input")
    with pytest.raises(UsageError, match="BART cannot be baked: one graph from token ids"):
        Classifier(staged, torch.zeros(1, 1, 3, 16), [[5], [6]], 7, torch.float32)


ALONE = """
import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer

folder, texts = sys.argv[1], json.load(open(sys.argv[2], encoding="utf-8"))
assert not {"torch", "transformers", "bbt_fast"} & set(sys.modules)
for name in ("torch", "transformers", "bbt_fast"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} is here too")
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
names = json.load(open(folder + "/config.json", encoding="utf-8"))["id2label"]
logits = []
for start in range(0, len(texts), 32):
    encoded = tokenizer.encode_batch(texts[start : start + 32])
    inputs = {
        "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
    }
    logits += session.run(["logits"], inputs)[0].tolist()
print(json.dumps([logits, [names[str(int(np.argmax(row)))] for row in logits]]))
"""


@pytest.fixture(scope="module")
def bare_python(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with onnxruntime, tokenizers and numpy; skips if pip cannot get them."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile"]
    pip += ["-c", str(repo_root / "constraints.txt"), "onnxruntime", "tokenizers", "numpy"]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(pip, capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        pytest.skip(f"pip cannot install onnxruntime, tokenizers and numpy here: {done.stderr.strip()[-300:]}")
    return python


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "kind", "mode", "precision"), [(*CASES[1], "fp32"), (*CASES[0], "fp16")])
def test_a_fresh_environment_answers_200_texts_as_predict_does(
    algorithm, kind, mode, precision, baked, bare_python, tmp_path
):
    classifier, made = baked(algorithm, kind, mode, precision)
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(TEXTS), encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [bare_python, "-I", "-c", ALONE, made.folder, texts], capture_output=True, text=True, check=False, env=own
    )
    assert done.returncode == 0, done.stderr
    found, labels = json.loads(done.stdout)
    expected = expected_logits(classifier, TEXTS)
    assert len(found) == len(labels) == len(TEXTS) == 200
    difference = np.abs(np.array(found) - expected).max()
    scale = max(1.0, np.abs(expected).max())
    limit = FP32 if precision == "fp32" else FP16 * scale
    assert difference < limit
    assert labels_agree(classifier, np.array(found), TEXTS, tie=2 * limit)
    if precision == "fp32":
        assert labels == [answer["label"] for answer in classifier(TEXTS)]


@pytest.mark.slow
def test_a_pair_task_is_baked_with_its_prefixes(tuned, model_folder, tmp_path, capsys):
    task = tmp_path / "pairs.yaml"
    task.write_text(
        "labels: ['no', 'yes']\ntemplates: '{text_a} ? {mask} , {text_b}'\nlabel_words: [bad, great]\n",
        encoding="utf-8",
    )
    for split in ("train", "test"):
        some = rows(split)[:60]
        lines = [{"text_a": r["text"], "text_b": some[-i]["text"], "label": i % 2} for i, r in enumerate(some)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run = tuned("bbt", "roberta", task_name=str(task), data_dir=str(tmp_path))
    assert main(["bake", "--run", str(run), "--out", str(tmp_path / "baked")]) == 0
    assert "this vocabulary needs these before the stripped texts: '', ' '" in capsys.readouterr().out
    pairs = [(one, other) for one, other in zip(FEW, reversed(FEW), strict=True)]
    classifier = bbt_fast.load(run, engine="torch", precision="fp32", device="cpu")
    expected = classifier.logits(classifier.encoder.encode([Row(*pair, 0) for pair in pairs])).numpy()
    config = json.loads((tmp_path / "baked" / "config.json").read_text(encoding="utf-8"))
    prefixes = config["bbt_fast"]["text_prefixes"]
    given: Any = [tuple(p + t.strip() for p, t in zip(prefixes, pair, strict=True)) for pair in pairs]
    assert np.abs(answers(tmp_path / "baked", given) - expected).max() < FP32
