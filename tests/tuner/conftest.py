"""A toy engine: the calls of the seam over a tiny function, with no model behind it. And small real tokenizers.

- real_task: function(name) -> Task, packaged or one of tests/tuner/tasks
- make_tokenizer: function(kind) -> PreTrainedTokenizerFast, kind one of wordpiece, bpe, gpt, unigram
- toy_engine: function(cuts="input", n_layers=3) -> engine
- toy_parts: function(seed=0) -> run.Parts for it
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bbt_fast.export.examples import Examples
from bbt_fast.tuner.data.encoding import Encoded
from bbt_fast.tuner.demo import rows
from bbt_fast.tuner.run.single import Parts
from bbt_fast.tuner.tasks.task import Task, load_task, task_names

N_PROMPT, HIDDEN, VOCABULARY, CLASSES = 3, 8, 40, 2


class ToySession:
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


class ToyEngine:
    name, precision, mode, device = "toy", "fp32", "add", torch.device("cpu")
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

    def open(self, examples: Examples) -> ToySession:
        return ToySession(self, examples)


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


@pytest.fixture
def quiet() -> Any:
    """A progress that shows nothing."""
    from bbt_fast.tuner.run.progress import Silent

    return Silent()


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


@pytest.fixture(scope="session")
def real_task() -> Callable[[str], Task]:
    """A function that loads a packaged task, or one that a user would write (``tests/tuner/tasks``)."""

    def load(name: str) -> Task:
        path = Path(__file__).parent / "tasks" / f"{name}.yaml"
        return load_task(path if path.exists() else name)

    return load
