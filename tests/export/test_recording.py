"""Layers as the model calls them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, T5Config
from transformers.models.bart.modeling_bart import BartEncoderLayer
from transformers.models.t5.modeling_t5 import T5Block

from bbt_fast.export.recording import Call


def bart() -> tuple[nn.Module, Call]:
    """A BART layer whose output overflows fp16, and a call of it."""
    config = BartConfig(d_model=16, encoder_attention_heads=2, encoder_ffn_dim=32)
    config._attn_implementation = "sdpa"
    layer = BartEncoderLayer(config)
    nn.init.constant_(layer.final_layer_norm.weight, 6e4)
    return layer, Call((None,), {})


def t5() -> tuple[nn.Module, Call]:
    """A T5 layer whose output overflows fp16, and a call of it."""
    config = T5Config(d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=1)
    config._attn_implementation = "sdpa"
    layer = T5Block(config, has_relative_attention_bias=True)
    nn.init.constant_(layer.layer[-1].DenseReluDense.wo.weight, 6e4)
    return layer, Call((), {})


@pytest.mark.parametrize("make", [bart, t5])
def test_a_layer_that_clamps_float16_looks_at_no_number(make):
    torch.manual_seed(0)
    layer, call = make()
    layer = layer.half().eval().requires_grad_(False)
    texts = torch.randn(2, 5, 16).half()
    found = call(layer, texts, {})
    assert found.abs().max() == torch.finfo(torch.float16).max - 1000
    torch.testing.assert_close(call(layer, texts[:1], {}), found[:1], atol=0, rtol=2e-3)

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden: Tensor) -> Tensor:
            return call(self.layer, hidden, {})

    exported = torch.export.export(Called(), (texts,)).module()
    torch.testing.assert_close(exported(texts), found, atol=0, rtol=2e-3)
