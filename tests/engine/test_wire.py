"""The wire format: what is encoded is decoded to the bit, and a body that violates the protocol is refused by name."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bbt_fast.engine.wire import BINARY, HEADER_LENGTH, JSON, MOST_AXES, NUMBERS, Array, WireError, decode, encode

KINDS = (*NUMBERS, "BYTES")
SHAPES = st.just(()) | array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3) | st.just((2, 1) * (MOST_AXES // 2))


def values_of(kind: str, *, finite: bool) -> st.SearchStrategy[Any]:
    """Arrays of a data type, also in another order than they lie in memory."""
    if kind == "BYTES":
        found = arrays(object, SHAPES, elements=st.text(max_size=5), fill=st.nothing())
    else:
        limits = {"allow_nan": False, "allow_infinity": False} if finite and kind.startswith("FP") else {}
        found = arrays(np.dtype(NUMBERS[kind]), SHAPES, elements=limits)
    return found | found.map(np.transpose)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("binary", [True, False])
@settings(max_examples=30)
@given(data=st.data(), side=st.sampled_from(["inputs", "outputs"]))
def test_what_is_encoded_is_decoded(kind: str, binary: bool, data: st.DataObject, side: Any) -> None:
    names = data.draw(st.lists(st.text(max_size=5), max_size=3, unique=True))
    tensors = {name: data.draw(values_of(kind, finite=not binary)) for name in names}
    head = {"id": "x", "parameters": {"layer": 3}}
    body, headers = encode(side, tensors, head, binary=binary)
    assert headers["Content-Type"] == (BINARY if binary else JSON)
    found = decode(side, body, headers.get(HEADER_LENGTH))
    assert (found.parameters, found.head) == ({"layer": 3}, {"id": "x"})
    assert list(found.tensors) == names
    for name, array in tensors.items():
        got = found.tensors[name]
        assert (got.shape, got.dtype) == (array.shape, array.dtype)
        assert got.tolist() == array.tolist() if kind == "BYTES" else got.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("kind", "array", "data"),
    [
        ("FP16", np.array([1], np.float16), b"\x00\x3c"),
        ("FP32", np.array([1], np.float32), b"\x00\x00\x80\x3f"),
        ("FP64", np.array([1], np.float64), b"\x00\x00\x00\x00\x00\x00\xf0\x3f"),
        ("INT32", np.array([1, -2], np.int32), b"\x01\x00\x00\x00\xfe\xff\xff\xff"),
        ("INT64", np.array([-2], np.int64), b"\xfe\xff\xff\xff\xff\xff\xff\xff"),
        ("BYTES", np.array(["é", ""], object), b"\x02\x00\x00\x00\xc3\xa9\x00\x00\x00\x00"),
    ],
)
def test_the_bytes_are_those_of_the_protocol(kind: str, array: Array, data: bytes) -> None:
    body, headers = encode("inputs", {"a": array}, {})
    (described,) = json.loads(body[: int(headers[HEADER_LENGTH])])["inputs"]
    size = {"binary_data_size": len(data)}
    assert described == {"name": "a", "datatype": kind, "shape": [len(array)], "parameters": size}
    assert body.endswith(b"]}" + data)


TENSOR: dict[str, Any] = {"name": "a", "datatype": "INT32", "shape": [2], "data": [1, 2]}


def test_nested_data_are_those_of_a_flat_list() -> None:
    body = json.dumps({"inputs": [TENSOR | {"shape": [2, 1], "data": [[1], [2]]}]}).encode()
    assert decode("inputs", body, None).tensors["a"].tolist() == [[1], [2]]


def deep(levels: int) -> Any:
    """Two numbers in so many lists."""
    found: Any = [1, 2]
    for _ in range(levels - 1):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "a tensor must be an object with a name"),
        ({"name": ["a"]}, "a tensor must be an object with a name"),
        ({"datatype": "INT8"}, "tensor 'a' has datatype 'INT8', not one of FP16, FP32, FP64, INT32, INT64, BYTES"),
        ({"datatype": ["FP32"]}, "tensor 'a' has datatype"),
        ({"shape": None}, "the shape of tensor 'a' must be a list of sizes"),
        ({"shape": 2}, "the shape of tensor 'a' must be a list of sizes"),
        ({"shape": [-2]}, "the shape of tensor 'a' must be a list of sizes"),
        ({"shape": [2.0]}, "the shape of tensor 'a' must be a list of sizes"),
        ({"shape": [2, True]}, "the shape of tensor 'a' must be a list of sizes"),
        ({"shape": [2**31]}, "the shape of tensor 'a' must be a list of sizes"),
        ({"shape": [2, *[1] * MOST_AXES]}, "the shape of tensor 'a' must be a list of sizes"),
        ({"shape": [0, *[2**31 - 1] * 3], "data": []}, "the shape of tensor 'a' must be a list of sizes"),
        ({"data": None}, "tensor 'a' has neither data nor binary_data_size"),
        ({"data": {"0": 1}}, "tensor 'a' has neither data nor binary_data_size"),
        ({"data": [1]}, "the data of tensor 'a' must be 2 values of INT32"),
        ({"data": [1, 2, 3]}, "the data of tensor 'a' must be 2 values of INT32"),
        ({"data": [1, 2.0]}, "the data of tensor 'a' must be 2 values of INT32"),
        ({"data": [1, True]}, "the data of tensor 'a' must be 2 values of INT32"),
        ({"data": [1, None], "datatype": "FP32"}, "the data of tensor 'a' must be 2 values of FP32"),
        ({"data": [1, "2"], "datatype": "FP32"}, "the data of tensor 'a' must be 2 values of FP32"),
        ({"data": ["1", 2], "datatype": "BYTES"}, "the data of tensor 'a' must be 2 values of BYTES"),
        ({"data": [1, 2**31]}, "a value of tensor 'a' is too large for INT32"),
        ({"data": [1, 10**400], "datatype": "FP64"}, "a value of tensor 'a' is too large for FP64"),
        ({"data": deep(MOST_AXES + 2)}, "data must not be nested more than 8 deep"),
        ({"parameters": {"binary_data_size": 9}}, "the binary_data_size of tensor 'a' exceeds the body"),
        ({"parameters": {"binary_data_size": -1}}, "the binary_data_size of tensor 'a' exceeds the body"),
        ({"parameters": {"binary_data_size": "8"}}, "the binary_data_size of tensor 'a' exceeds the body"),
        ({"parameters": {"binary_data_size": True}}, "the binary_data_size of tensor 'a' exceeds the body"),
        ({"parameters": {"binary_data_size": 4}}, r"tensor 'a' has 4 bytes, but INT32 \[2\] takes 8"),
        ({"parameters": {"binary_data_size": 8}, "shape": [1]}, r"tensor 'a' has 8 bytes, but INT32 \[1\] takes 4"),
    ],
)
def test_a_tensor_that_violates_the_protocol_is_refused(changes: dict[str, Any], message: str) -> None:
    start = json.dumps({"inputs": [TENSOR | changes]}).encode()
    body = start + bytes(8) if "parameters" in changes else start
    with pytest.raises(WireError, match=message):
        decode("inputs", body, str(len(start)))


PART = json.dumps({"inputs": [TENSOR]}).encode()


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"", None, r"the body is not valid JSON \(JSONDecodeError\)"),
        (PART[:-1], None, r"the body is not valid JSON \(JSONDecodeError\)"),
        (PART, str(len(PART) - 1), r"the body is not valid JSON \(JSONDecodeError\)"),
        (b"\xff", None, r"the body is not valid JSON \(UnicodeDecodeError\)"),
        (b"[" * 100_000, None, r"the body is not valid JSON \(RecursionError\)"),
        (b"[]", None, "the body must be a JSON object"),
        (b'{"inputs": {}}', None, "inputs must be a list of tensors"),
        (b'{"inputs": [7]}', None, "a tensor must be an object with a name"),
        (json.dumps({"inputs": [TENSOR, TENSOR]}).encode(), None, "tensor 'a' occurs twice"),
        (b'{"parameters": []}', None, "parameters must be an object"),
        (b'{"outputs": {}}', None, "outputs must be a list"),
        (PART + b"more", str(len(PART)), "the body has 4 bytes that belong to no tensor"),
        (PART + b"more", None, r"the body is not valid JSON \(JSONDecodeError\)"),
        (PART, str(len(PART) + 1), f"{HEADER_LENGTH} is {len(PART) + 1}, but the body has {len(PART)} bytes"),
        (PART, "-1", f"{HEADER_LENGTH} is '-1', but it must be a number"),
        (PART, "", f"{HEADER_LENGTH} is '', but it must be a number"),
        (PART, "²", f"{HEADER_LENGTH} is '²', but it must be a number"),
        (PART, "0" * 13, f"{HEADER_LENGTH} is '0000000000000', but it must be a number"),
    ],
)
def test_a_body_that_violates_the_protocol_is_refused(body: bytes, length: str | None, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode("inputs", body, length)


def text(written: bytes, length: int | None = None) -> bytes:
    """A text as it is sent; its length may be a lie."""
    return struct.pack("<I", len(written) if length is None else length) + written


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (text(b"one"), "the bytes of tensor 'a' must be 2 texts"),
        (text(b"one") * 3, "the bytes of tensor 'a' must be 2 texts"),
        (text(b"one") + text(b"two")[:-1], "the bytes of tensor 'a' must be 2 texts"),
        (text(b"one") + text(b"two", 2**32 - 1), "the bytes of tensor 'a' must be 2 texts"),
        (text(b"one") + text(b"two") + b"\0", "the bytes of tensor 'a' must be 2 texts"),
        (text(b"one") + text(b"\xff"), "a text of tensor 'a' is not valid UTF-8"),
    ],
)
def test_texts_that_are_cut_or_no_texts_are_refused(data: bytes, message: str) -> None:
    tensor = {"name": "a", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(data)}}
    start = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(WireError, match=message):
        decode("inputs", start + data, str(len(start)))
