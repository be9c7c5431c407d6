"""The remote engine does not trust its server: damaged texts and prompts, answers of another shape, lost names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from bbt_fast.engine import Examples
from bbt_fast.engine.calls import Traffic, UnknownNameError
from bbt_fast.engine.remote import TRIES, RemoteEngine, RemoteSession
from bbt_fast.engine.wire import Array, Message, content_name
from bbt_fast.export.errors import BbtFastError, DeviceError, NumericsError

N, HIDDEN, EXAMPLES, CLASSES, CANDIDATES = 5, 32, 6, 3, 2
FACTS: dict[str, Any] = {
    "model_type": "roberta", "n_layers": 3, "hidden_size": HIDDEN, "fingerprint": "f", "engine": "torch",
    "precision": "fp32", "device": "cpu", "embeddings_digest": "d", "embeddings_spread": 1.0,
    "embeddings_width": HIDDEN, "vocabulary": 200, "parity": {}, "export_seconds": 0.0,
}  # fmt: skip
LOGITS = np.zeros((CANDIDATES, EXAMPLES, CLASSES), np.float32)


class Server:
    """A caller whose server gives the right answers, but for one call's."""

    url = "http://scorer:8000"

    def __init__(self, call: str = "", answer: Message | BbtFastError | None = None, facts: Any = FACTS) -> None:
        self.call, self.answer, self.facts = call, answer, facts
        self.asked: list[str] = []

    def get(self, path: str, traffic: Traffic) -> dict[str, Any]:
        return {"parameters": self.facts}

    def post(self, path: str, tensors: Mapping[str, Array], parameters: dict[str, Any], traffic: Traffic) -> Message:
        call = path.rpartition("/")[2]
        self.asked.append(call)
        if call == self.call and self.answer is not None:
            if isinstance(self.answer, BbtFastError):
                raise self.answer
            return self.answer
        if call == "examples":
            return Message({}, {"examples": content_name(tensors)})
        if call == "commits":
            layers = dict(zip(map(str, tensors["layers"].tolist()), tensors["prompts"], strict=True))
            return Message({}, {"committed": content_name(layers)})
        return Message({"logits": LOGITS})


@pytest.fixture
def open_on(roberta: PreTrainedModel, make_examples: Callable[..., Examples]) -> Callable[[Server], RemoteSession]:
    """A function that opens texts on a server."""

    def make(server: Server) -> RemoteSession:
        engine = RemoteEngine(server, f"add-{N}-layers")  # type: ignore[arg-type]
        return engine.open(make_examples(roberta, "add", N, n_examples=EXAMPLES, n_classes=CLASSES))

    return make


def use(session: RemoteSession) -> torch.Tensor:
    """Commit a prompt and have others answered."""
    session.commit(torch.ones(N, HIDDEN), 1)
    return session.evaluate(torch.ones(CANDIDATES, N, HIDDEN))


def test_right_answers_are_taken(open_on: Callable[[Server], RemoteSession]) -> None:
    server = Server()
    assert use(open_on(server)).shape == LOGITS.shape
    assert server.asked == ["examples", "commits", "infer"]


@pytest.mark.parametrize(
    ("call", "answer", "kind", "message"),
    [
        (
            "examples",
            Message({}, {"examples": "0" * 32}),
            DeviceError,
            r"received damaged examples\. Check the net",
        ),
        ("examples", Message({}), DeviceError, "received damaged examples"),
        ("commits", Message({}, {"committed": "0" * 32}), DeviceError, r"received damaged prompts\. Check the network"),
        ("infer", Message({}), DeviceError, r"must return logits \[2, 6, 3\], not None\. Check its version"),
        ("infer", Message({"logits": LOGITS[:1]}), DeviceError, r"must return logits \[2, 6, 3\], not \[1, 6, 3\]"),
        ("infer", Message({"logits": LOGITS[..., :2]}), DeviceError, r"must return logits .*, not \[2, 6, 2\]"),
        (
            "infer",
            Message({"logits": LOGITS + np.nan}),
            NumericsError,
            r"returned NaN or infinite logits\. Try a smal",
        ),
        ("infer", Message({"logits": LOGITS - np.inf}), NumericsError, "returned NaN or infinite logits"),
    ],
)
def test_an_answer_that_cannot_be_right_is_an_error(
    call: str, answer: Message, kind: type[BbtFastError], message: str, open_on: Callable[[Server], RemoteSession]
) -> None:
    with pytest.raises(kind, match=f"scorer:8000 {message}"):
        use(open_on(Server(call, answer)))


def test_a_server_that_loses_names_again_and_again_is_an_error(open_on: Callable[[Server], RemoteSession]) -> None:
    server = Server("infer", UnknownNameError("unknown examples 'a'."))
    with pytest.raises(UnknownNameError, match="unknown examples"):
        use(open_on(server))
    assert server.asked == ["examples", "commits", "infer"] * TRIES


@pytest.mark.parametrize("facts", [None, [], {name: value for name, value in FACTS.items() if name != "parity"}])
def test_another_server_is_refused(facts: Any) -> None:
    with pytest.raises(DeviceError, match=r"is no `bbt-fast serve` of this version\. Check --url and its version"):
        RemoteEngine(Server(facts=facts), f"add-{N}-layers")  # type: ignore[arg-type]
