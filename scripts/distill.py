"""Distil smaller masked language models from one, for a comparison over the model's size where only one is at hand.

A student has some of the teacher's layers, evenly spaced, and its embeddings and head, which stay as they are. It is
trained to give the teacher's last hidden states on texts with masked tokens (a part of the loss of DistilBERT, Sanh et
al. 2019). The progress bar shows the error, relative to the variance of the states. At the end the script prints the
perplexity of all models on masked tokens of texts that were left out.

Example:
    python scripts/distill.py --model_name MODEL --texts DATA/*/train.jsonl --layers 2,4 --output_dir models
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedModel
from transformers.trainer_pt_utils import LengthGroupedSampler

from bbt_fast.export.errors import DataError
from bbt_fast.tuner.data.records import READERS, read_records

HELD_OUT = 20
"""Of this many texts, one is left out of training."""
LAYER = re.compile(r"(?<=\.layer\.)\d+")
"""A layer's number in the names of its weights, in BERT, RoBERTa and their kin."""


def layer_counts(text: str) -> list[int]:
    """Return numbers of layers, from "2,4"."""
    return sorted(map(int, text.split(",")))


def read_texts(paths: list[Path]) -> list[str]:
    """Return every text of files in a format of docs/tasks.md, each once.

    Raises:
        DataError: if a file cannot be read.
    """
    if other := [path for path in paths if path.suffix.lower() not in READERS]:
        raise DataError(f"{other[0]} is of none of the kinds {', '.join(READERS)}.")
    records = [record for path in paths for record in read_records(path, lambda first: None)]
    return list(dict.fromkeys(text for record in records for text in record.values.values() if isinstance(text, str)))


def student_of(teacher: PreTrainedModel, n_layers: int) -> PreTrainedModel:
    """Return a model with ``n_layers`` of the teacher's layers, the first and the last among them."""
    config = teacher.config.__class__.from_dict(teacher.config.to_dict() | {"num_hidden_layers": n_layers})
    student = AutoModelForMaskedLM.from_config(config)
    kept = np.linspace(0, teacher.config.num_hidden_layers - 1, n_layers).round().astype(int).astype(str).tolist()
    weights = {
        LAYER.sub(lambda number: str(kept.index(number[0])), name): value
        for name, value in teacher.state_dict().items()
        if (number := LAYER.search(name)) is None or number[0] in kept
    }
    student.load_state_dict(weights)
    for name, weight in student.named_parameters():
        weight.requires_grad = LAYER.search(name) is not None
    return student


def last_hidden(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the last hidden states of a batch's tokens, without padding: [tokens, D]."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    states: Tensor = model.base_model(**inputs).last_hidden_state
    return states[batch["attention_mask"].bool()]


def main() -> None:
    """Train and save the students, and print the perplexities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name", required=True, help="the teacher, of the kind of BERT: hub id or folder")
    add("--texts", type=Path, nargs="+", required=True, help=f"files with texts ({', '.join(READERS)})")
    add("--layers", type=layer_counts, default="2,4", help="the students' numbers of layers (default: %(default)s)")
    add("--output_dir", type=Path, required=True, help="each student gets a folder in it")
    add("--epochs", type=int, default=2, help="(default: %(default)s)")
    add("--batch_size", type=int, default=32, help="texts in a batch (default: %(default)s)")
    add("--max_tokens", type=int, default=96, help="longer texts are cut (default: %(default)s)")
    add("--learning_rate", type=float, default=5e-4, help="peak of the schedule (default: %(default)s)")
    add("--bf16", action="store_true", help="compute in bf16, where the processor can: twice as fast")
    add("--seed", type=int, default=42, help="of order and masks (default: %(default)s)")
    options = parser.parse_args()
    try:
        texts = read_texts(options.texts)
    except DataError as error:
        parser.error(str(error))

    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model_name)
    teacher: Any = AutoModelForMaskedLM.from_pretrained(options.model_name, dtype=torch.float32).eval()
    sizes, most = options.layers, teacher.config.num_hidden_layers
    if sizes[0] < 1 or sizes[-1] > most or not any(map(LAYER.search, teacher.state_dict())):
        parser.error(f"--layers {sizes}: the teacher has {most} layers, and must be like BERT or RoBERTa.")
    students = {n_layers: student_of(teacher, n_layers).train() for n_layers in sizes}
    encoded = tokenizer(texts, truncation=True, max_length=options.max_tokens)["input_ids"]
    rows = [{"input_ids": ids} for ids in encoded]
    kept, held_out = [row for i, row in enumerate(rows) if i % HELD_OUT], rows[::HELD_OUT]
    collate = DataCollatorForLanguageModeling(tokenizer, seed=options.seed)
    order = LengthGroupedSampler(options.batch_size, lengths=[len(row["input_ids"]) for row in kept])
    batches = DataLoader(kept, options.batch_size, sampler=order, collate_fn=collate)

    steps = options.epochs * len(batches)
    trained = [weight for student in students.values() for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / (0.05 * steps), 1 - s / steps))
    bar = tqdm((batch for _ in range(options.epochs) for batch in batches), total=steps, unit="step")
    for batch in bar:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                wanted = last_hidden(teacher, batch).float()
            given = [last_hidden(student, batch).float() for student in students.values()]
        losses = [mse_loss(states, wanted) / wanted.var() for states in given]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix({str(n): f"{loss.item():.3f}" for n, loss in zip(students, losses, strict=True)}, refresh=False)

    for n_layers, student in students.items():
        folder = options.output_dir / f"{Path(options.model_name).name}-{n_layers}"
        student.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        student.float()
    for n_layers, model in [*students.items(), (most, teacher)]:
        print(f"{n_layers} layers: perplexity {perplexity(model, held_out, collate, options.batch_size):.1f}")


@torch.inference_mode()
def perplexity(model: Any, rows: list[Any], collate: DataCollatorForLanguageModeling, batch_size: int) -> float:
    """Return the perplexity of a model on the masked tokens of texts."""
    model.eval()
    collate.generator = None  # the same masks for all models
    total, count = 0.0, 0
    for batch in DataLoader(rows, batch_size, collate_fn=collate):
        total += cross_entropy(model(**batch).logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum").item()
        count += int((batch["labels"] != -100).sum())
    return float(np.exp(total / count))


if __name__ == "__main__":
    main()
