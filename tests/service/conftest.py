"""A real server on loopback, on a thread of this process.

- serving: function(service) -> context manager that yields its URL and stops it at the end
- tiny_scorer: function(model, **limits) -> Service with a scorer of a model, on PyTorch in fp32
- server: URL of one with the tiny RoBERTa, for a module
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from bbt_fast.service.app import Service
from bbt_fast.service.keys import Keys
from bbt_fast.service.limits import Limits
from bbt_fast.service.scorer import Scorer
from bbt_fast.service.server import in_background


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[str]]:
    return in_background


def make_scorer(model: PreTrainedModel, keys: Path | None = None, **limits: Any) -> Service:
    given = Limits(**limits)
    return Service(Scorer(model, "torch", "fp32", "cpu", given), None, None, Keys(keys), given)


@pytest.fixture(scope="session")
def tiny_scorer() -> Callable[..., Service]:
    return make_scorer


@pytest.fixture(scope="module")
def server(roberta: PreTrainedModel) -> Iterator[str]:
    with in_background(make_scorer(roberta)) as url:
        yield url
