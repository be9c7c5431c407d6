"""The Triton kernels compute what PyTorch does, by Triton's interpreter where there is Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from packaging.version import Version
from torch import nn

from bbt_fast.engine.gelu_polynomial import COEFFICIENTS, LIMIT


def test_the_kernels_polynomial_is_gelu() -> None:
    x = torch.linspace(-20, 20, 1_000_001)
    inside = x.clamp(-LIMIT, LIMIT)
    at = inside * inside * (2 / LIMIT**2) - 1
    value = torch.zeros_like(x)
    for coefficient in reversed(COEFFICIENTS):
        value = value * at + coefficient
    found = 0.5 * x + 0.5 * x * (inside * value)
    assert (found.double() - nn.functional.gelu(x.double())).abs().max() < 2.6e-5


GELU = """
import torch
from bbt_fast.engine.gelu_kernel import linear_gelu_rows
torch.manual_seed(0)
for rows, depth, columns in (300, 136, 520), (5, 64, 8):
    x, w, b = (torch.randn(*shape).half() for shape in ((rows, depth), (columns, depth), (columns,)))
    w /= depth**0.5
    exact = torch.nn.functional.gelu(torch.nn.functional.linear(x.float(), w.float(), b.float()))
    assert (linear_gelu_rows(x, w, b).float() - exact).abs().max() < 3e-3
"""
ATTENTION = """
import torch
from bbt_fast.export.short_attention_kernel import attend_short
torch.manual_seed(0)
for lengths, heads, width in ([7, 64, 65, 100, 1], 2, 64), ([30, 33, 5], 3, 32), ([128, 12], 1, 16):
    joined = torch.randn(sum(lengths), 3 * heads * width).half()
    query, key, value = (part.unflatten(1, (heads, width)) for part in joined.chunk(3, dim=1))
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    seen = attend_short(query, key, value, bounds, max(lengths), width**-0.5)
    for start, end in zip(bounds.tolist(), bounds.tolist()[1:]):
        alone = (part[start:end].transpose(0, 1).float() for part in (query, key, value))
        exact = torch.nn.functional.scaled_dot_product_attention(*alone).transpose(0, 1)
        assert (seen[start:end].float() - exact).abs().max() < 2e-3
"""


def triton_fault() -> str | None:
    """Return why Triton cannot interpret kernels here, or None if it can."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "Triton comes with PyTorch's CUDA builds only; `make test-kernels` installs it"
    if Version(found) < Version("3.7"):
        return f"Triton {found} cannot interpret kernels with NumPy 2.4: that needs 3.7, of a later PyTorch"
    return None


@pytest.mark.skipif(triton_fault() is not None, reason=str(triton_fault()))
@pytest.mark.parametrize("code", [GELU, ATTENTION], ids=["gelu", "attention"])
def test_a_kernel_computes_what_pytorch_does(code: str) -> None:
    interpreted = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=interpreted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
