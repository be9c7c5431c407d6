"""What the seeds of a command share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import BartConfig, PreTrainedTokenizerFast

from bbt_fast.export.cpt import CptConfig, CptForMaskedLM
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task


def test_cpt_is_asked_as_a_masked_model_though_its_checkpoints_call_themselves_bart(
    tmp_path: Path, make_tokenizer: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    BartConfig(vocab_size=60, d_model=16).save_pretrained(tmp_path)
    task = load_task("sst2")
    options = resolve(Options.of(model_name=str(tmp_path), task_name="sst2"), task.preset)
    setup = Setup(options, task)
    tiny = CptConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=60)
    setup.model = CptForMaskedLM(tiny)
    assert setup.config.model_type == "bart"
    setup.tokenizer = make_tokenizer("wordpiece")
    assert setup.prompt_config(options, setup.encoder, "digest").kind == "masked"
