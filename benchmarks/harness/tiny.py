"""Small random models of every family, for tests of a model's structure."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from bbt_fast.export.families import Family
from bbt_fast.export.loading import AUTO_CLASSES

VOCABULARY = 200
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
    # Far above the usual 0.02: a wrong engine would pass with logits that hardly depend on the input.
    "initializer_range": 0.2,
}
"""Fields of most configurations, which ignore the others. The sizes are those of tests/goldens, to share traces."""
OWN_NAMES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 24, "num_hidden_layers": 3, "num_hidden_groups": 2},
    "bart": {
        f"{side}_{field}": value
        for side in ("encoder", "decoder")
        for field, value in (("layers", 2), ("ffn_dim", 128), ("attention_heads", 4))
    }
    | {"decoder_layers": 3, "init_std": 0.2},
    "bert": {"layer_norm_eps": 1e-12},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "legacy": False,
    },
    "distilbert": {"hidden_dim": 128},
    "electra": {"embedding_size": 48, "layer_norm_eps": 1e-12},
    "gpt2": {"n_inner": 128},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    "t5": {"d_kv": 16, "d_ff": 128, "num_decoder_layers": 3},
}
"""By ``model_type``: the fields with other names or values."""


def tiny_model(family: Family, model_type: str, **config: Any) -> PreTrainedModel:
    """Return a frozen model of 2 or 3 layers, the same at every call.

    Args:
        family: the row of the families' table.
        model_type: one of its model types.
        config: overrides fields of the configuration.
    """
    fields = {**TINY, **OWN_NAMES.get(model_type, {}), **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, AUTO_CLASSES[family.kind]).from_config(AutoConfig.for_model(model_type, **fields))
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.normal_()
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    return frozen
