"""README.md of a run's folder: the model card of its prompt; and of a baked folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..tasks.presets import DEMO
from .files import write_whole
from .prompt_config import PromptConfig, read_prompt_config
from .result import RESULT, Result, read_result

CARD = "README.md"
ALGORITHMS = {"bbt": "BBT (Sun et al., ICML 2022)", "bbtv2": "BBTv2 (Sun et al., EMNLP 2022)"}


def write_card(folder: Path) -> None:
    """Write the card of the prompt in a folder, with the metrics of a finished run.

    Raises:
        UsageError: if there is no prompt.
        ArtifactError: if a file is damaged, or the folder is not writable.
    """
    result = read_result(folder) if (folder / RESULT).exists() else None
    write_whole(folder / CARD, card(read_prompt_config(folder), result, str(folder)).encode())


def card(config: PromptConfig, result: Result | None, place: str) -> str:
    """Return the text of a card.

    Args:
        config: the prompt's description.
        result: its run's, if that is finished.
        place: the folder or hub id to load it from.
    """
    task = config.task
    base = base_title(config) + (f" at revision {config.base_model_revision}" if config.base_model_revision else "")
    words = "; ".join(
        f"{label}: {' or '.join(candidates)}"
        for label, candidates in zip(task.labels, task.words(config.kind), strict=True)
    )
    facts = {
        "base model": base,
        "task": task.name,
        "template": f"`{task.template(config.kind)}`",
        "label words": words,
        "algorithm": ALGORITHMS[config.algorithm],
        "prompt": f"{config.n_prompt_tokens} tokens, {config.cat_or_add} mode",
        "examples": f"{config.k_shot} per class for training, as many for development",
        "seed": str(config.seed),
    } | _figures(result)
    table = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in facts.items())
    sample = '"a text to classify"' if len(task.texts) == 1 else '("a text", "another to compare it with")'
    return f"""{_front_matter(config)}
# A soft prompt for {task.name}

It turns a frozen language model into a classifier of {len(task.labels)} classes ({", ".join(task.labels)}). bbt-fast
tuned it without gradients; the model's weights are unchanged.

| | |
|---|---|
{table}

```python
import bbt_fast

classifier = bbt_fast.load({json.dumps(place, ensure_ascii=False)})
print(classifier([{sample}]))
```
"""


def baked_card(config: PromptConfig, prompts: int, prefixes: Sequence[str]) -> str:
    """Return the README of a baked folder: its contents, and code that runs it.

    Args:
        config: the prompts' description.
        prompts: the number of prompts.
        prefixes: the strings that the caller puts before each text.
    """
    task = config.task
    single = len(task.texts) == 1
    texts = '["a text to classify", "another one"]' if single else '[("a text", "another to compare it with")]'
    spaced = ""
    if any(prefixes):
        texts = f"[tuple(p + t.strip() for p, t in zip({list(prefixes)!r}, pair)) for pair in {texts}]"
        spaced = "This vocabulary spells the start of a word with a space, so the texts get theirs first. "
    length = f"{config.n_prompt_tokens} tokens"
    prompt = f"{prompts} soft prompts of {length} each, averaged" if prompts > 1 else f"a soft prompt of {length}"
    return f"""# A text classifier for {task.name}

Base model: {base_title(config)}, with {prompt}. It is one ONNX file: token ids
and attention mask in, the logits of {len(task.labels)} classes out ({", ".join(task.labels)}).
The template, the prompt and the label words are inside; tokenizer.json takes raw texts. {spaced}
It needs onnxruntime, tokenizers and numpy:

```python
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx")
names = json.loads(Path("config.json").read_text(encoding="utf-8"))["id2label"]

encoded = tokenizer.encode_batch({texts})
inputs = {{
    "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
    "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
}}
(logits,) = session.run(["logits"], inputs)
print([names[str(row.argmax())] for row in logits])
```
"""


def _figures(result: Result | None) -> dict[str, str]:
    """Return the rows of the table about a finished run."""
    if result is None:
        return {}
    return {
        f"{result.metric}, test": f"{result.tuned.test:.4f} (before tuning {result.zero_shot.test:.4f})",
        f"{result.metric}, development": f"{result.tuned.dev:.4f} (before tuning {result.zero_shot.dev:.4f})",
        f"{result.metric}, training": f"{result.tuned.train:.4f}",
        "test examples": str(result.examples["test"]),
        "evaluations": str(result.evaluations),
        "engine": f"{result.engine} in {result.precision} on {result.device}",
    }


def _front_matter(config: PromptConfig) -> str:
    """Return the metadata that the hub reads."""
    facts = {
        "library_name": "bbt-fast",
        "pipeline_tag": "text-classification",
        "tags": ["bbt-fast", "black-box-tuning", "soft-prompt", config.algorithm],
    }
    if is_shareable(config.base_model) and config.base_model != DEMO:
        facts["base_model"] = config.base_model
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---"


def base_title(config: PromptConfig) -> str:
    """Return the base model's name for files that others read: its hub id, or the last part of its folder's path."""
    if config.base_model == DEMO:
        return "the demo model of bbt-fast"
    return config.base_model if is_shareable(config.base_model) else Path(config.base_model).name


def is_shareable(base_model: str) -> bool:
    """Return whether others can load a base model: the packaged one, or one that is not a local folder."""
    return base_model == DEMO or not (Path(base_model).is_absolute() or Path(base_model).exists())
