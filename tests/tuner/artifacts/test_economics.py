"""What a run would send to a model behind an API, and what it held in memory."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from bbt_fast.tuner.artifacts import economics
from bbt_fast.tuner.artifacts.economics import KIB, MIB, Memory, held_bytes
from bbt_fast.tuner.search.evolution import Evolution


@pytest.mark.parametrize(("algorithm", "mode"), [("bbt", "add"), ("bbtv2", "add"), ("bbt", "cat")])
def test_queries_and_bytes_follow_from_options_and_data(algorithm, mode, tmp_path, make_options, start, toy_parts):
    result = start(tmp_path / "r", make_options(algorithm, cat_or_add=mode))
    queries = result.queries
    tokens = int(toy_parts().train.examples.attention_mask.sum())
    assert (queries.train, queries.dev) == (96, 6)
    assert queries.z_up_bytes == 4 * 6  # intrinsic_dim
    assert queries.prompt_up_bytes == 4 * 3 * 8  # n, H of the toy engine
    assert queries.logits_down_bytes == 4 * 16 * 2  # examples, classes
    placeholders = {"add": 3, "cat": 0}[mode]
    assert queries.text_up_bytes == 4 * (tokens - 16 * placeholders)


def test_the_confusion_matrix_counts_the_test_set(tmp_path, make_options, start):
    result = start(tmp_path / "r", make_options())
    counts = torch.tensor(json.loads((tmp_path / "r" / "result.json").read_text())["confusion"])
    assert counts.sum(dim=1).tolist() == [25, 25]
    assert float(counts.diagonal().sum()) / 50 == result.tuned.test


def test_memory_is_that_of_cma_es_of_the_projection_and_of_the_process(tmp_path, make_options, start):
    one, deep = (start(tmp_path / name, make_options(name)).memory for name in ("bbt", "bbtv2"))
    assert one.projection * MIB == 4 * 6 * 3 * 8
    assert deep.projection == 3 * one.projection
    # A decomposition that is under way at the end holds other arrays than one that is done.
    assert deep.user == pytest.approx(3 * one.user, rel=0.3)
    assert one.server is not None
    assert one.server > 50  # PyTorch alone takes more


def test_held_bytes_counts_every_block_once():
    array, tensor = np.zeros((10, 10)), torch.zeros(5)
    assert held_bytes({"a": [array, array[2:], array.T]}, (tensor, tensor[1:])) == array.nbytes + 20
    assert held_bytes(Evolution(100, 1.0, 4, seed=0)) > 2 * 8 * 100**2


def test_the_peak_is_forgotten_where_the_system_can():
    if not economics.CLEAR.exists():
        pytest.skip("no /proc")
    block = np.ones(64 * MIB // 8)
    before = economics._peak_bytes()
    del block
    economics.forget_peak()
    assert economics._peak_bytes() < before - 32 * MIB


def test_other_systems_are_asked_in_their_own_units(monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(economics, "STATUS", tmp_path / "none")
    raw = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for platform, unit in (("freebsd14", KIB), ("darwin", 1)):
        monkeypatch.setattr(sys, "platform", platform)
        assert economics._peak_bytes() == pytest.approx(raw * unit, rel=0.01)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert Memory.of(MIB, MIB, torch.device("cpu")) == Memory(1.0, 1.0, None)
