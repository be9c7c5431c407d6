"""The API as others use it: Triton's own client, curl's JSON, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import torch
import tritonclient.http
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast import tune
from bbt_fast.engine import Examples, load_engine
from bbt_fast.engine.wire import encode
from bbt_fast.service.limits import Limits
from bbt_fast.service.server import Models, build

GRAPH = "/v2/models/scorer/versions/add-5-input"
TEXT = {
    "input_ids": np.array([[2, 5, 5, 5, 5, 5, 7, 3]]),
    "attention_mask": np.array([[1] * 8]),
    "answer_position": np.array([6]),
    "label_token_ids": np.array([5, 6]),
}
MALFORMED_STATUSES = {400, 404, 405, 413, 415, 422}


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, trust_env=False, timeout=30) as found:
        yield found


def post(client: httpx.Client, call: str, tensors: dict[str, Any], **parameters: Any) -> httpx.Response:
    """Call the scorer with tensors and parameters."""
    body, headers = encode("inputs", tensors, {"parameters": parameters})
    return client.post(f"{GRAPH}/{call}", content=body, headers=headers)


def register(client: httpx.Client, examples: Examples, **more: Any) -> str:
    """Register examples and return their name."""
    tensors = {k: v.numpy() for k, v in vars(examples).items() if v is not None} | more
    answer = post(client, "examples", tensors)
    assert answer.status_code == 200, answer.text
    name: str = answer.json()["parameters"]["examples"]
    return name


@pytest.fixture(scope="module")
def examples(roberta: PreTrainedModel, make_examples: Callable[..., Examples]) -> Examples:
    return make_examples(roberta, "add", 5)


def local_logits(model: PreTrainedModel, examples: Examples, prompts: Tensor) -> Tensor:
    """The logits of the same call without a server."""
    engine = load_engine("torch", model, n_prompt_tokens=5, precision="fp32", device="cpu")
    return engine.open(examples).evaluate(prompts)


def test_triton_s_client_gets_metadata_readiness_and_answers_of_the_scorer(
    server: str, client: httpx.Client, examples: Examples, roberta: PreTrainedModel, make_prompts: Callable[..., Tensor]
) -> None:
    name, prompts = register(client, examples), make_prompts(roberta, 3, 5)
    found = triton.InferenceServerClient(server.removeprefix("http://"))
    try:
        assert found.is_server_live()
        assert found.is_server_ready()
        assert found.is_model_ready("scorer", "add-5-input")
        assert found.get_server_metadata()["name"] == "bbt-fast"
        assert found.get_model_metadata("scorer", "add-5-input")["inputs"][0]["shape"] == [-1, 5, 32]
        for binary in (True, False):
            given_prompts = triton.InferInput("prompts", [3, 5, 32], "FP32")
            given_prompts.set_data_from_numpy(prompts.numpy(), binary_data=binary)
            answer = found.infer(
                "scorer", [given_prompts], "add-5-input",
                outputs=[triton.InferRequestedOutput("logits", binary_data=binary)],
                parameters={"examples": name, "layer": 0},
            )  # fmt: skip
            expected = local_logits(roberta, examples, prompts).numpy()
            np.testing.assert_allclose(answer.as_numpy("logits"), expected, atol=1e-6, rtol=0)
    finally:
        found.close()


def test_z_under_a_registered_projection_and_losses(
    client: httpx.Client, examples: Examples, roberta: PreTrainedModel
) -> None:
    from bbt_fast.tuner.search.losses import LOSSES
    from bbt_fast.tuner.search.metrics import METRICS
    from bbt_fast.tuner.search.projection import draw_projections

    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    name = register(client, examples, labels=labels.numpy())
    origin, z = torch.ones(5, 32), np.random.default_rng(0).standard_normal((4, 7))
    about = {"kind": "normal", "seed": 3, "layer": 0, "dim": 7, "scale": 0.5}
    projection = post(client, "projections", {"origin": origin.numpy()}, **about).json()["parameters"]["projection"]
    known = {"examples": name, "projection": projection, "loss": "hinge"}
    losses = post(client, "infer", {"z": z}, **known).json()["outputs"][0]["data"]
    (drawn,) = draw_projections("normal", 3, 7, [0.5], [origin], torch.device("cpu"))
    logits = local_logits(roberta, examples, drawn(z.astype(np.float32).astype(np.float64)))
    expected = LOSSES["hinge"](logits, labels, METRICS["accuracy"])
    assert losses == pytest.approx(expected.tolist(), abs=1e-6)
    assert post(client, "infer", {"z": z[:, :3]}, **known).json()["code"] == "shape"


@pytest.mark.parametrize(
    ("call", "tensors", "parameters", "status", "code"),
    [
        ("infer", {"prompts": np.zeros((1, 5, 32), np.float32)}, {"examples": "0" * 32}, 404, "unknown"),
        ("infer", {"prompts": np.zeros((1, 5, 32), np.float32)}, {"examples": 7}, 400, "usage"),
        ("infer", {}, {}, 404, "unknown"),
        ("examples", {"input_ids": np.zeros((1, 5), np.int64)}, {}, 400, "usage"),
        ("examples", TEXT | {"attention_mask": np.array([[1] * 6 + [2, 0]])}, {}, 400, "shape"),
        ("examples", TEXT | {"decoder_input_ids": np.array([5])}, {}, 400, "shape"),
        ("embeddings", {"ids": np.array([10**6])}, {}, 400, "shape"),
        ("projections", {}, {"kind": "other", "dim": 5}, 400, "usage"),
        ("projections", {}, {"dim": 10**5, "seed": 0, "scale": 10**400}, 400, "usage"),
        ("commits", {"prompts": np.full((1, 5, 32), np.nan, np.float32), "layers": np.array([0])}, {}, 422, "numerics"),
        ("commits", {"prompts": np.zeros((1, 5, 32), np.float32), "layers": np.array([4])}, {}, 400, "shape"),
        ("texts", {"texts": np.array(["x"], object)}, {"task": "/etc/passwd.yaml"}, 404, "usage"),
    ],
)
def test_what_is_wrong_is_refused_with_a_code(
    call: str, tensors: dict[str, Any], parameters: dict[str, Any], status: int, code: str, client: httpx.Client
) -> None:
    answer = post(client, call, tensors, **parameters)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
BRANCHES = LEAVES | st.lists(LEAVES, max_size=3)
JSON_VALUES = LEAVES | st.lists(BRANCHES, max_size=4) | st.dictionaries(st.text(max_size=8), BRANCHES, max_size=4)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["prompts", "z", "input_ids", "layers", "ids", "origin", "texts"]) | JSON_VALUES,
        "datatype": st.sampled_from(["FP16", "FP32", "INT64", "BYTES", "BOOL"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 2**33), max_size=9) | st.just([1, 5, 32]) | JSON_VALUES,
        "data": st.lists(st.integers(-9, 9), max_size=5) | JSON_VALUES,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-5, 10**12)}) | JSON_VALUES,
    },
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["examples", "committed", "layer", "projection", "loss", "base", "seed", "dim", "kind", "scale"]),
    JSON_VALUES,
    max_size=5,
)
BODIES = st.fixed_dictionaries(
    {}, optional={"inputs": st.lists(TENSORS, max_size=3) | JSON_VALUES, "parameters": PARAMETERS | JSON_VALUES,
                  "outputs": JSON_VALUES, "id": JSON_VALUES}
)  # fmt: skip
REQUESTS = st.tuples(
    st.sampled_from(["infer", "examples", "commits", "projections", "spread", "embeddings", "nothing"]),
    BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=60),
    st.none() | st.integers(-1, 200).map(str) | st.text("0123456789abc-", max_size=14),
)


def check_malformed(client: httpx.Client, request: tuple[str, bytes, str | None]) -> None:
    """Check that a malformed request gets an error status and a JSON error."""
    call, body, length = request
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    answer = client.post(f"{GRAPH}/{call}", content=body, headers=headers)
    assert answer.status_code in MALFORMED_STATUSES | ({200} if call == "projections" else set()), answer.text
    if answer.status_code != 200:
        assert set(answer.json()) == {"error", "code"}


@settings(max_examples=50)
@given(request_=REQUESTS)
def test_malformed_requests_are_refused(client: httpx.Client, request_: tuple[str, bytes, str | None]) -> None:
    check_malformed(client, request_)


@pytest.mark.slow
@settings(max_examples=1000)
@given(request_=REQUESTS)
def test_a_thousand_malformed_requests_are_refused(
    client: httpx.Client, request_: tuple[str, bytes, str | None]
) -> None:
    check_malformed(client, request_)


def test_other_clients_are_answered_among_malformed_requests(
    server: str, client: httpx.Client, examples: Examples, roberta: PreTrainedModel, make_prompts: Callable[..., Tensor]
) -> None:
    name, prompts = register(client, examples), make_prompts(roberta, 3, 5)
    expected = local_logits(roberta, examples, prompts).numpy().reshape(-1)
    stop = threading.Event()

    def disturb() -> None:
        with httpx.Client(base_url=server, trust_env=False) as other:
            while not stop.is_set():
                other.post(f"{GRAPH}/infer", content=b'{"inputs": [{}]}')

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(20):
            answer = post(client, "infer", {"prompts": prompts.numpy()}, examples=name)
            np.testing.assert_allclose(answer.json()["outputs"][0]["data"], expected, atol=1e-6, rtol=0)
    finally:
        stop.set()
        thread.join()


def test_keys_are_asked_for_and_can_be_revoked(
    tmp_path: Path, roberta: PreTrainedModel, tiny_scorer: Callable[..., Any], serving: Callable[..., Any]
) -> None:
    file = tmp_path / "keys"
    file.write_text("# for Ann\nfirst-key\nsecond-key\n")

    def status(key: str | None, path: str = "/v2") -> int:
        headers = {} if key is None else {"Authorization": key}
        return httpx.get(url + path, headers=headers, trust_env=False).status_code

    with serving(tiny_scorer(roberta, file)) as url:
        assert status(None, "/v2/health/ready") == 200
        assert [status(None), status("Bearer wrong"), status("first-key"), status("Bearer")] == [401] * 4
        assert status(None, "/metrics") == 401
        assert [status("Bearer first-key"), status("Bearer second-key")] == [200, 200]
        file.write_text("second-key\n")
        assert [status("Bearer first-key"), status("Bearer second-key")] == [401, 200]
        file.unlink()
        assert status("Bearer second-key") == 401


def test_limits_of_size_compression_graphs_and_turns(
    roberta: PreTrainedModel,
    examples: Examples,
    make_prompts: Callable[..., Tensor],
    tiny_scorer: Callable[..., Any],
    serving: Callable[..., Any],
) -> None:
    service = tiny_scorer(roberta, max_body_mib=1, max_waiting=1, max_graphs=1, max_candidates=2)
    with serving(service) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        name = register(client, examples)
        large = client.post(f"{GRAPH}/infer", content=b" " * (2**20 + 1))
        chunked = client.post(f"{GRAPH}/infer", content=iter([b" " * 2**19] * 3))
        assert (large.status_code, chunked.status_code) == (413, 413)
        assert client.post(f"{GRAPH}/infer", content=b"", headers={"Content-Encoding": "gzip"}).status_code == 415
        assert client.get("/v2/models/scorer/versions/add-6-input").status_code == 409
        assert client.get("/v2/models/scorer/versions/add-0-input").status_code == 404
        assert post(client, "infer", {"prompts": make_prompts(roberta, 3, 5).numpy()}, examples=name).status_code == 413
        busy, done = threading.Event(), threading.Event()

        async def occupy() -> None:
            await service.turns.take("127.0.0.1", lambda: (busy.set(), done.wait(10)), never)

        async def never() -> bool:
            return False

        loop = service.loop
        waiting = asyncio.run_coroutine_threadsafe(occupy(), loop)
        assert busy.wait(10)
        refused = post(client, "infer", {"prompts": make_prompts(roberta, 1, 5).numpy()}, examples=name)
        done.set()
        waiting.result(10)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert post(client, "infer", {"prompts": make_prompts(roberta, 1, 5).numpy()}, examples=name).status_code == 200


def test_a_body_that_does_not_arrive_in_time_is_refused(
    roberta: PreTrainedModel, tiny_scorer: Callable[..., Any], serving: Callable[..., Any]
) -> None:
    """The client waits for the refusal before it sends the rest."""
    head = f"POST {GRAPH}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    with (
        serving(tiny_scorer(roberta, read_timeout=0.05)) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as slow,
    ):
        slow.sendall(head.encode() + b"{")
        answer = b"".join(iter(lambda: slow.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.05 s: send it faster." in answer


def test_the_log_and_the_figures_hold_no_texts(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="bbt_fast.access"):
        client.post(f"{GRAPH}/infer", content=b'{"inputs": "a secret text"}')
        figures = client.get("/metrics").text
    entry = json.loads(caplog.messages[0])
    assert (entry["status"], entry["up"]) == (400, 27)
    assert "secret" not in caplog.text + figures
    assert 'bbt_fast_requests_total{route="/v2/models/scorer/versions/{version}/infer",status="400"}' in figures


def test_the_demo_ends_as_with_the_local_engine_and_its_prompt_classifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: Callable[..., Any], repo_root: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        "budget": 24, "popsize": 6, "k_shot": 4, "max_test_examples": 8, "plots": False, "eval_every": 24,
    }  # fmt: skip
    local = tune(engine="ort", precision="fp32", output_dir="local", **options)
    service = build(Models("demo", "local", "ort", "fp32", "cpu"), None, Limits())
    with serving(service) as url:
        remote = tune(engine="remote", url=url, output_dir="remote", **options)
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        texts = triton.InferInput("texts", [2], "BYTES")
        texts.set_data_from_numpy(np.array(["a fine and lovely film", "dull"], dtype=object))
        answer = client.infer("classifier", [texts])
        assert client.is_model_ready("classifier")
        assert client.get_model_metadata("classifier")["parameters"]["task"] == "demo"
        docs = (repo_root / "docs" / "service.md").read_text(encoding="utf-8")
        host = url.removeprefix("http://")
        examples = [block.replace("127.0.0.1:8000", host) for block in re.findall(r"```text\n(.*?)```", docs, re.S)]
        said = {}
        exec(
            next(block for block in examples if "tritonclient" in block), {"tritonclient": tritonclient, "np": np}, said
        )
        assert said["labels"][0].decode() in ("negative", "positive")
        if shutil.which("curl"):
            (command,) = (block.replace("\\\n", " ") for block in examples if block.startswith("curl"))
            shown = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout
            assert json.loads(shown)["outputs"][0]["data"] == [said["labels"][0].decode()]
        said["client"].close()
        client.close()
    journals = [(tmp_path / n / "journal.jsonl").read_text().splitlines() for n in ("local", "remote")]
    for one, other in zip(*([json.loads(line) for line in lines] for lines in journals), strict=True):
        if one["kind"] == "generation":
            assert one["candidates"] == other["candidates"]
            assert one["fitness"] == pytest.approx(other["fitness"], abs=1e-6)
    prompts = [(tmp_path / n / "prompt.safetensors").read_bytes() for n in ("local", "remote")]
    assert prompts[0] == prompts[1]
    assert remote.tuned == local.tuned
    assert (local.queries.measured, remote.queries.measured) == (False, True)
    assert remote.queries.prompt_up_bytes >= local.queries.prompt_up_bytes
    assert [text.decode() for text in answer.as_numpy("label")] == [
        one["label"] for one in service.classifier._classifier(["a fine and lovely film", "dull"])
    ]
