"""A toy engine: the calls of the seam over a tiny function, with no model behind it. Small real tokenizers. Whole runs.

- at_once: an executor that does everything at once, on the caller's thread
- make_tokenizer: function(kind) -> PreTrainedTokenizerFast, kind one of wordpiece, bpe, gpt, unigram
- toy_engine: function(cuts="input", n_layers=3) -> engine
- toy_parts: function(seed=0) -> Parts for it
- make_options: function(algorithm="bbt", **changes) -> resolved Options of a small run on it
- start: function(folder, options, engine=None, control=None, parts=None, origins=None) -> Result
- model_folder: function(kind="roberta") -> folder of a tiny model with its tokenizer
- tuned: function(algorithm="bbt", kind="roberta", **changes) -> folder of a finished run of a second, made once
- small: function(**changes) -> options of a run on it, for an empty current folder
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bbt_fast.engine.embeddings import LocalEmbeddings, clipped_spread
from bbt_fast.export.examples import Examples
from bbt_fast.tuner.artifacts.folder import RunFolder
from bbt_fast.tuner.artifacts.result import Result
from bbt_fast.tuner.data.encoding import Encoded
from bbt_fast.tuner.demo import rows
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.control import Control
from bbt_fast.tuner.run.progress import Progress
from bbt_fast.tuner.run.setup import CUTS
from bbt_fast.tuner.run.single import Parts, Run
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import Preset, Task, load_task, task_names
from bbt_fast.tuner.tune import tune

N_PROMPT, HIDDEN, VOCABULARY, CLASSES, LAYERS = 3, 8, 40, 2, 3


class ToySession:
    """Texts on a toy engine: a tanh of a product per layer, as fast as a test needs."""

    def __init__(self, engine: ToyEngine, examples: Examples) -> None:
        self.engine, self.examples = engine, examples
        stages = 1 if engine.cuts == "input" else engine.n_layers
        self.committed = torch.zeros(stages, engine.n_prompt_tokens, engine.hidden_size)

    def _states(self, prompts: dict[int, Tensor]) -> list[Tensor]:
        mask = self.examples.attention_mask[..., None].float()
        hidden = (self.engine.word_embeddings[self.examples.input_ids] * mask).sum(1) / mask.sum(1)
        states = [hidden[None]]
        for layer in range(len(self.committed)):
            prompt = prompts.get(layer, self.committed[layer][None])
            states.append(torch.tanh(states[-1] @ self.engine.weights[layer] + prompt.mean(1)[:, None]))
        return states

    def evaluate(self, prompts: Tensor, layer: int = 0) -> Tensor:
        self.engine.calls.append((layer, len(prompts)))
        hidden = self._states({layer: prompts})[-1]
        return 3 * hidden @ self.engine.word_embeddings[self.examples.label_token_ids].T

    def commit(self, prompt: Tensor, layer: int = 0) -> None:
        self.committed[layer] = prompt

    def hidden_states(self, layer: int) -> Tensor:
        return self._states({})[layer][0]

    def clipped_spread(self, layer: int) -> float:
        return clipped_spread(self.hidden_states(layer))


class ToyEngine:
    """An engine without a model, which counts its evaluations."""

    name, precision, mode, device = "toy", "fp32", "add", torch.device("cpu")
    runs_on = place = "cpu"
    holds_model = True
    family = SimpleNamespace(kind="masked", prompt_start=1)
    export_seconds = 0.0
    n_prompt_tokens, hidden_size = N_PROMPT, HIDDEN

    def __init__(self, cuts: str, n_layers: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.cuts, self.n_layers = cuts, n_layers
        self.word_embeddings = torch.randn(VOCABULARY, HIDDEN, generator=generator)
        self.weights = torch.randn(n_layers, HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5
        self.parity: dict[str, float] = {}
        self.calls: list[tuple[int, int]] = []
        """(layer, population) of every evaluation."""

    @property
    def embeddings(self) -> LocalEmbeddings:
        return LocalEmbeddings(self.word_embeddings)

    def open(self, examples: Examples) -> ToySession:
        return ToySession(self, examples)


class AtOnce(Executor):
    """Does everything at once, on the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture
def at_once() -> Executor:
    """An executor that does everything at once: a thread aside that is always done before it is asked."""
    return AtOnce()


@pytest.fixture
def toy_engine() -> Callable[..., ToyEngine]:
    """A function that makes a toy engine."""

    def make(cuts: str = "input", n_layers: int = 3) -> ToyEngine:
        return ToyEngine(cuts, n_layers)

    return make


@pytest.fixture
def toy_parts() -> Callable[..., Parts]:
    """A function that draws data for the toy engine: two classes that differ in the tokens they like."""

    def encode(generator: torch.Generator, n: int) -> Encoded:
        labels = torch.arange(n) % CLASSES
        lengths = torch.randint(4, 9, (n,), generator=generator)
        mask = (torch.arange(9) < lengths[:, None]).long()
        low = 5 + labels[:, None] * 9
        ids = (low + torch.randint(0, 12, (n, 9), generator=generator)) * mask
        return Encoded(Examples(ids, mask, lengths - 1, torch.tensor([30, 31])), labels, 0)

    def make(seed: int = 0) -> Parts:
        generator = torch.Generator().manual_seed(seed)
        return Parts(*(encode(generator, n) for n in (16, 16, 50)))

    return make


CORPUS_SENTENCES = 300
SPECIAL_TOKENS = {
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "bpe": {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"},
    "gpt": {"eos": "<|endoftext|>"},
    "unigram": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
}


def corpus() -> list[str]:
    """Demo sentences, and every task's template and label words often enough to become tokens of their own."""
    lines = [str(row["text"]) for row in rows("train")[:CORPUS_SENTENCES]]
    for task in map(load_task, task_names()):
        for kind, template in task.templates.items():
            words = [word for alternatives in task.words(kind) for word in alternatives]
            lines += 20 * [re.sub(r"\{\w+\}", " ", template), *(f"it is {word}" for word in words), *words]
    return lines


def wordpiece(special: dict[str, str]) -> Tokenizer:
    """As BERT's: uncased, one token per Chinese character."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=4000, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return framed(tokenizer, "[CLS] $A [SEP]")


def byte_level(special: dict[str, str]) -> Tokenizer:
    """As GPT-2's: words with a leading space are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def unigram(special: dict[str, str]) -> Tokenizer:
    """As T5's SentencePiece model: the space before a word is a part of its token, at the beginning too."""
    words = {word for line in corpus() for word in line.split()}
    scores = {f"▁{word}": -5.0 for word in words if word.isascii()} | dict.fromkeys(words, -8.0) | {"▁": -9.0}
    scores |= dict.fromkeys({letter for word in words for letter in word} - scores.keys(), -12.0)
    first = [*special.values(), "<extra_id_0>", "<extra_id_1>"]
    vocabulary = [*((token, 0.0) for token in first), *sorted(scores.items())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=first.index(special["unk"])))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(first)
    return framed(tokenizer, "$A </s>")


def framed(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """Let a tokenizer put its special tokens around texts."""
    names = [name for name in template.split() if name != "$A"]
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


TOKENIZERS: dict[str, Callable[[dict[str, str]], Tokenizer]] = {
    "wordpiece": wordpiece,
    "bpe": lambda special: framed(byte_level(special), "<s> $A </s>"),
    "gpt": byte_level,
    "unigram": unigram,
}


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A function that trains a small tokenizer of a kind of ``TOKENIZERS`` on synthetic sentences, once per kind."""

    @cache
    def make(kind: str) -> PreTrainedTokenizerFast:
        special = SPECIAL_TOKENS[kind]
        tokens: dict[str, Any] = {f"{name}_token": token for name, token in special.items()}
        if kind == "bpe":
            tokens["mask_token"] = AddedToken("<mask>", lstrip=True, special=True)  # as RoBERTa's takes the space
        return PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind](special), **tokens)

    return make


@pytest.fixture
def make_options() -> Callable[..., Options]:
    """A function that makes the options of a small run: 12 generations of 8, development scores every 2."""

    def make(algorithm: str = "bbt", **changes: Any) -> Options:
        small = {
            "budget": 96,
            "popsize": 8,
            "intrinsic_dim": 6,
            "eval_every": 16,
            "sigma": 1.0,
            "alpha": 1.0,
            "batch_size": 20,
        }
        options = Options(task_name="toy", algorithm=algorithm, **{**small, **changes})
        return resolve(options, Preset())

    return make


@pytest.fixture
def start(toy_engine: Callable[..., Any], toy_parts: Callable[..., Parts]) -> Callable[..., Result]:
    """A function that begins or goes on with a run in a folder."""

    def run(
        path: Path,
        options: Options,
        engine: Any = None,
        control: Control | None = None,
        parts: Parts | None = None,
        origins: Tensor | None = None,
    ) -> Result:
        cuts = CUTS[options.algorithm]
        engine = engine or toy_engine(cuts, LAYERS)
        zeros = torch.zeros(1 if cuts == "input" else LAYERS, engine.n_prompt_tokens, engine.hidden_size)
        folder = RunFolder(path)
        control = control or Control()
        control.stop_files.append(folder.stop)
        with folder.claim():
            folder.check(options)
            folder.begin(options)
            task = Task("toy", ("cold", "warm"), templates={}, label_words={})
            it = Run(options, task, engine, parts or toy_parts(), zeros if origins is None else origins)
            return it.execute(folder, control, Progress())

    return run


@pytest.fixture(scope="session")
def model_folder(
    make_model: Callable[..., Any], make_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """A function that saves a tiny random model with its tokenizer."""

    def make(kind: str = "roberta") -> str:
        folder = tmp_path_factory.getbasetemp() / f"model-{kind}"
        if not folder.exists():
            tokenizer = make_tokenizer({"roberta": "bpe", "bert": "wordpiece"}[kind])
            make_model(kind, vocab_size=len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def tuned(model_folder: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that tunes a prompt for a tiny model, once for the same arguments; do not change the folder."""
    folders: dict[str, Path] = {}

    def make(algorithm: str = "bbt", kind: str = "roberta", **changes: Any) -> Path:
        options = {
            "model_name": model_folder(kind), "algorithm": algorithm, "engine": "torch", "precision": "fp32",
            "device": "cpu", "popsize": 4, "budget": 24, "eval_every": 8, "n_prompt_tokens": 5, "intrinsic_dim": 10,
            "k_shot": 4, "max_test_examples": 30, "plots": False,
        }  # fmt: skip
        key = f"{algorithm}-{kind}-{sorted(changes.items())}"
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("tuned") / "run"
            tune(**(options | changes), output_dir=str(folders[key]))
        return folders[key]

    return make


@pytest.fixture
def small(
    model_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """A function that makes the options of a run of a second: the demo's sentences, a tiny model, an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(**changes: Any) -> dict[str, Any]:
        options = {
            "model_name": model_folder(), "engine": "torch", "precision": "fp32", "device": "cpu", "popsize": 4,
            "budget": 24, "eval_every": 8, "n_prompt_tokens": 5, "intrinsic_dim": 10, "k_shot": 4,
            "max_test_examples": 12, "plots": False,
        }  # fmt: skip
        return options | changes

    return make
