"""The engine `remote` keeps the seam's contract: the answers of the local engine, whatever the network does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, load_engine
from bbt_fast.engine.remote import load_remote
from bbt_fast.export.errors import DeviceError, NumericsError, ShapeError, UsageError

N = 5
QUICK = {"patience": 20.0, "timeout": 10.0, "pause": 0.01}


def pair(url: str, model: PreTrainedModel, mode: str, cuts: str, examples: Examples):
    """Sessions of the remote engine and of the local one."""
    remote = load_remote(url, mode=mode, n_prompt_tokens=N, cuts=cuts, **QUICK)
    local = load_engine("torch", model, mode=mode, n_prompt_tokens=N, cuts=cuts, precision="fp32", device="cpu")
    return remote.open(examples), local.open(examples)


@pytest.mark.parametrize(("mode", "cuts"), [("add", "input"), ("add", "layers"), ("cat", "layers")])
def test_it_answers_to_the_bit_as_the_engine_behind_it(
    mode: str,
    cuts: str,
    server: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    remote, local = pair(server, roberta, mode, cuts, make_examples(roberta, mode, N))
    assert len(remote) == len(local)
    layers = 1 if cuts == "input" else 3
    for turn, layer in enumerate([0, *range(layers), 0]):
        prompts = make_prompts(roberta, 4, N, seed=turn)
        assert torch.equal(remote.evaluate(prompts, layer), local.evaluate(prompts, layer))
        assert remote.clipped_spread(layer) == local.clipped_spread(layer)
        for session in (remote, local):
            session.commit(prompts[0], layer)
    for session in (remote, local):
        session.commit(torch.zeros(N, 32), 0)
    assert torch.equal(remote.evaluate(prompts, layers - 1), local.evaluate(prompts, layers - 1))


def test_it_knows_the_facts_that_a_search_reads(server: str, roberta: PreTrainedModel) -> None:
    remote = load_remote(server, n_prompt_tokens=N, cuts="layers", **QUICK)
    local = load_engine("torch", roberta, n_prompt_tokens=N, cuts="layers", precision="fp32", device="cpu")
    for name in ("mode", "cuts", "n_prompt_tokens", "n_layers", "hidden_size", "precision", "parity"):
        assert getattr(remote, name) == getattr(local, name)
    for name in ("digest", "spread", "width"):
        assert getattr(remote.embeddings, name) == getattr(local.embeddings, name)
    assert torch.equal(remote.embeddings.rows([7, 3]), local.embeddings.rows([7, 3]))


def test_what_does_not_fit_is_the_same_error_as_at_home(
    server: str, roberta: PreTrainedModel, make_examples: Callable[..., Examples]
) -> None:
    examples = make_examples(roberta, "add", N)
    session, _ = pair(server, roberta, "add", "input", examples)
    with pytest.raises(ShapeError, match="prompts have 3 tokens, but graph 'roberta-add-fp32' was built for 5"):
        session.evaluate(torch.zeros(2, 3, 32))
    with pytest.raises(ShapeError, match="layer is 1, but prompts can enter layers 0 to 0"):
        session.evaluate(torch.zeros(2, N, 32), 1)
    with pytest.raises(ShapeError, match="layers 0 to 0"):
        session.commit(torch.zeros(N, 32), 1)
    with pytest.raises(NumericsError, match="NaN or infinity"):
        session.evaluate(torch.full((1, N, 32), float("nan")))
    with pytest.raises(UsageError, match=r"computes in fp32, but --precision is fp16"):
        load_remote(server, n_prompt_tokens=N, precision="fp16", **QUICK)
    with pytest.raises(UsageError, match="must be a URL such as https://host:8000"):
        load_remote("nowhere", **QUICK)
    with pytest.raises(UsageError, match="contains a user name or a password"):
        load_remote("http://ann:secret@localhost:8000", **QUICK)


def test_a_server_that_started_again_is_told_once_more(
    roberta: PreTrainedModel,
    make_model: Callable[..., PreTrainedModel],
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    tiny_scorer: Callable,
    serving: Callable,
) -> None:
    prompts = make_prompts(roberta, 4, N)
    with serving(tiny_scorer(roberta)) as url:
        remote, local = pair(url, roberta, "add", "layers", make_examples(roberta, "add", N))
        for session in (remote, local):
            session.commit(prompts[1], 0)
        assert torch.equal(remote.evaluate(prompts, 1), local.evaluate(prompts, 1))
    port = int(url.rpartition(":")[2])
    with serving(tiny_scorer(roberta), port):
        for session in (remote, local):
            session.commit(prompts[2], 2)
        assert torch.equal(remote.evaluate(prompts, 1), local.evaluate(prompts, 1))
    with serving(tiny_scorer(make_model("roberta", seed=1)), port), pytest.raises(DeviceError, match="fingerprint"):
        remote.evaluate(prompts, 1)


def test_a_server_that_forgets_the_oldest_is_told_once_more(
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    tiny_scorer: Callable,
    serving: Callable,
) -> None:
    with serving(tiny_scorer(roberta, max_sets=2)) as url:
        pairs = [pair(url, roberta, "add", "layers", make_examples(roberta, "add", N, seed=s)) for s in range(3)]
        prompts = make_prompts(roberta, 2, N)
        for remote, local in [*pairs, *pairs]:
            for session in (remote, local):
                session.commit(prompts[0], 1)
            assert torch.equal(remote.evaluate(prompts, 0), local.evaluate(prompts, 0))


def test_a_network_that_breaks_connections_changes_nothing(
    server: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    flaky: Callable[..., AbstractContextManager[str]],
) -> None:
    with flaky(int(server.rpartition(":")[2])) as url:
        remote, local = pair(url, roberta, "add", "layers", make_examples(roberta, "add", N))
        for turn in range(12):
            prompts = make_prompts(roberta, 3, N, seed=turn)
            assert torch.equal(remote.evaluate(prompts, turn % 3), local.evaluate(prompts, turn % 3))
            for session in (remote, local):
                session.commit(prompts[0], turn % 3)


def test_a_server_that_stays_away_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DeviceError, match=r"could not be reached for 0.3 s .* the same command again to resume"):
        load_remote(f"http://127.0.0.1:{port}", patience=0.3, pause=0.05)


def test_the_bytes_are_those_on_the_wire(
    server: str, roberta: PreTrainedModel, make_examples: Callable[..., Examples], make_prompts: Callable[..., Tensor]
) -> None:
    """A proxy that counts what it forwards sees what the client says it sent and received."""
    counted = {"up": 0, "down": 0}
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def count(source: socket.socket, target: socket.socket, way: str) -> None:
            while data := source.recv(65536):
                counted[way] += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

        def forward() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", int(server.rpartition(":")[2]))) as upstream:
                back = threading.Thread(target=count, args=(upstream, client, "down"))
                back.start()
                count(client, upstream, "up")
                back.join()

        proxy = threading.Thread(target=forward)
        proxy.start()
        engine = load_remote(f"http://127.0.0.1:{listener.getsockname()[1]}", n_prompt_tokens=N, **QUICK)
        session = engine.open(make_examples(roberta, "add", N))
        session.evaluate(make_prompts(roberta, 4, N))
        engine.caller.close()
        proxy.join()
    spent = (engine.traffic, session.registration, session.answers)
    assert (sum(one.up for one in spent), sum(one.down for one in spent)) == (counted["up"], counted["down"])


def test_only_a_key_that_the_server_knows_opens_it(
    tmp_path: Path,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    tiny_scorer: Callable,
    serving: Callable,
) -> None:
    file, prompts, refused = (
        tmp_path / "keys",
        make_prompts(roberta, 2, N),
        "refused the key: give a known key .*--api_key",
    )
    file.write_text("ann\nbob\n")
    with serving(tiny_scorer(roberta, file)) as url:
        ann, bob = (
            load_remote(url, key, n_prompt_tokens=N, **QUICK).open(make_examples(roberta, "add", N))
            for key in ("ann", "bob")
        )
        assert torch.equal(ann.evaluate(prompts), bob.evaluate(prompts))
        for key in (None, "eve"):
            with pytest.raises(UsageError, match=refused):
                load_remote(url, key, n_prompt_tokens=N, **QUICK)
        file.write_text("bob\n")
        with pytest.raises(UsageError, match=refused):
            ann.evaluate(prompts)
        assert bob.evaluate(prompts).shape == (2, len(bob), 3)
