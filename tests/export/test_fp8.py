"""Products in fp8."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bbt_fast.export.fp8 import Fp8Linear, quantized, with_fp8_products


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_quantised_rows_are_within_half_a_step_of_the_rows(size):
    rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * size
    values, scale = quantized(rows)
    error = (values.double() * scale.double() - rows.double()).abs()
    assert (error <= rows.double().abs() / 16 + scale.double() * 2**-10 + 1e-6 * size).all()
    assert error.max() > 0


def test_a_zero_row_gives_the_bias_and_a_row_with_nan_gives_nan_alone():
    layer = Fp8Linear(torch.randn(32, 16), torch.arange(32.0))
    states = torch.randn(3, 16)
    states[0], states[1, 4] = 0, torch.nan
    out = layer(states)
    assert torch.equal(out[0], torch.arange(32.0))
    assert out[1].isnan().all()
    assert out[2].isfinite().all()


def test_a_huge_neighbour_changes_no_row():
    layer = Fp8Linear(torch.randn(32, 16), None)
    states = torch.randn(4, 16)
    louder = torch.cat([states, states * 1e6])
    torch.testing.assert_close(layer(louder)[:4], layer(states), rtol=1e-6, atol=1e-6)


def test_linear_maps_and_gpt2s_are_replaced_and_odd_sizes_are_kept():
    model = nn.Sequential(nn.Linear(16, 32), nn.Sequential(Conv1D(48, 32)), nn.Linear(48, 5))
    states = torch.randn(7, 16)
    expected = model(states)
    assert [type(m) for m in with_fp8_products(model).modules()].count(Fp8Linear) == 2
    assert isinstance(model[2], nn.Linear)
    assert (model(states) - expected).norm() < 0.1 * expected.norm()
