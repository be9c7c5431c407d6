"""Print the table of lengths.py: how long the texts of a task are, counted with a model's tokenizer.

python benchmarks/measure_lengths.py --model_name MODEL --data_root FOLDER, where FOLDER/TASK/train.jsonl are the texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import transformers

from bbt_fast.benchmarks.harness.lengths import QUANTILES
from bbt_fast.tuner.data.encoding import TextEncoder
from bbt_fast.tuner.data.splits import load_splits
from bbt_fast.tuner.tasks.task import load_task

K_SHOT = 16
SEEDS = range(20)


def quantiles(model_name: str, task_name: str, data_dir: Path) -> list[int]:
    """Return the quantiles of the tokens per example, template and special tokens included, the prompt not.

    The examples are the few-shot training and development sets of 20 seeds: balanced over the classes, as a run's are.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_name)
    task = load_task(task_name)
    encoder = TextEncoder(tokenizer, task, "masked", "cat", 0, 1, 512)
    lengths = []
    for seed in SEEDS:
        splits = load_splits(task, data_dir=data_dir, k_shot=K_SHOT, seed=seed)
        for rows in (splits.train, splits.dev):
            lengths += encoder.encode(rows).examples.lengths.tolist()
    return [round(q) for q in np.quantile(lengths, QUANTILES)]


def main() -> None:
    """Print a row per task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--data_root", required=True, type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "ag_news", "dbpedia_14"])
    options = parser.parse_args()
    for task in options.tasks:
        print(f'    "{task}": {tuple(quantiles(options.model_name, task, options.data_root / task))},')


if __name__ == "__main__":
    main()
