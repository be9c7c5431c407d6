"""Encode tensors in the Open Inference Protocol v2: JSON, or JSON followed by binary tensors (binary extension).

See https://github.com/kserve/open-inference-protocol and Triton's "Binary Tensor Data Extension". The client and the
server both use this module.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..export.errors import UsageError

Array = NDArray[Any]
HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header with the JSON part's length, if binary data follows."""
BINARY, JSON = "application/octet-stream", "application/json"
NUMBERS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
"""The numeric data types, little-endian; texts have the data type BYTES."""
NAMES = {np.dtype(code): name for name, code in NUMBERS.items()}
MOST_AXES = 8
MOST_VALUES = 2**40
"""NumPy limits the sizes of an empty array too, as if its empty axes were not there."""
_LENGTH = struct.Struct("<I")


class WireError(UsageError):
    """A body violates the protocol."""


@dataclass(frozen=True)
class Message:
    """A request's inputs or a response's outputs."""

    tensors: dict[str, Array]
    parameters: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    """The JSON part, without its tensors' data."""

    @property
    def wants_binary(self) -> bool:
        """Whether the request asks for binary outputs."""
        outputs = [one for one in self.head.get("outputs") or () if isinstance(one, dict)]
        given = [one.get("parameters") for one in outputs]
        return bool(self.parameters.get("binary_data_output")) or any(
            isinstance(one, dict) and one.get("binary_data") is True for one in given
        )


def encode(
    side: Literal["inputs", "outputs"],
    tensors: Mapping[str, Array],
    head: Mapping[str, Any],
    *,
    binary: bool = True,
) -> tuple[bytes, dict[str, str]]:
    """Return a body and its HTTP headers.

    Args:
        side: "inputs" for a request, "outputs" for a response.
        tensors: by name; arrays of objects hold texts.
        head: other entries of the JSON part.
        binary: append the tensors as bytes to the JSON part.
    """
    described, tail = [], []
    for name, array in tensors.items():
        texts = array.dtype == object
        entry: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if texts else NAMES[array.dtype],
            "shape": list(array.shape),
        }
        if binary:
            data = _texts_to_bytes(array) if texts else np.ascontiguousarray(array).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = array.reshape(-1).tolist()
        described.append(entry)
    start = json.dumps({**head, side: described}, separators=(",", ":"), allow_nan=False).encode()
    if not binary:
        return start, {"Content-Type": JSON}
    return b"".join([start, *tail]), {"Content-Type": BINARY, HEADER_LENGTH: str(len(start))}


def decode(side: Literal["inputs", "outputs"], body: bytes, header_length: str | None) -> Message:
    """Decode a body.

    Args:
        side: "inputs" for a request, "outputs" for a response.
        body: the whole body.
        header_length: the value of the HTTP header ``HEADER_LENGTH``, if present.

    Raises:
        WireError: if the body violates the protocol.
    """
    length = _split(body, header_length)
    head = read_object(body[:length])
    described = head.pop(side, [])
    if not isinstance(described, list):
        raise WireError(f"{side} must be a list of tensors.")
    tensors: dict[str, Array] = {}
    for entry in described:
        name, array, length = _tensor(entry, body, length)
        if name in tensors:
            raise WireError(f"tensor {name!r} occurs twice.")
        tensors[name] = array
    if length != len(body):
        raise WireError(f"the body has {len(body) - length} bytes that belong to no tensor.")
    parameters = head.pop("parameters", {})
    if not isinstance(parameters, dict):
        raise WireError("parameters must be an object.")
    if not isinstance(head.get("outputs", []), list):
        raise WireError("outputs must be a list.")
    return Message(tensors, parameters, head)


def read_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        WireError: if the text is no JSON object.
    """
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"the body is not valid JSON ({type(error).__name__}).") from None
    if not isinstance(found, dict):
        raise WireError("the body must be a JSON object.")
    return found


def content_name(tensors: Mapping[str, Array]) -> str:
    """Return a digest of the tensors' content; it is the same in every process."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(json.dumps([name, NAMES[array.dtype], list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _split(body: bytes, header_length: str | None) -> int:
    """Return the length of the JSON part."""
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 12:
        raise WireError(f"{HEADER_LENGTH} is {header_length[:20]!r}, but it must be a number.")
    length = int(header_length)
    if length > len(body):
        raise WireError(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes.")
    return length


def _tensor(entry: Any, body: bytes, start: int) -> tuple[str, Array, int]:
    """Decode one tensor; return its name, its values, and the offset of the next tensor's bytes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise WireError("a tensor must be an object with a name.")
    name, kind, shape = entry["name"], entry.get("datatype"), entry.get("shape")
    if not isinstance(kind, str) or kind not in (*NUMBERS, "BYTES"):
        raise WireError(
            f"tensor {name[:40]!r} has datatype {str(kind)[:40]!r}, not one of {', '.join(NUMBERS)}, BYTES."
        )
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_AXES
        or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
        or math.prod(filter(None, shape)) >= MOST_VALUES
    ):
        raise WireError(f"the shape of tensor {name[:40]!r} must be a list of sizes.")
    count = math.prod(shape)
    parameters = entry.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return name, _listed(name, kind, shape, entry.get("data")), start
    if type(size) is not int or not 0 <= size <= len(body) - start:
        raise WireError(f"the binary_data_size of tensor {name[:40]!r} exceeds the body.")
    if kind == "BYTES":
        return name, _texts_from_bytes(name, body[start : start + size], count).reshape(shape), start + size
    dtype = np.dtype(NUMBERS[kind])
    if size != count * dtype.itemsize:
        raise WireError(f"tensor {name[:40]!r} has {size} bytes, but {kind} {shape} takes {count * dtype.itemsize}.")
    return name, np.frombuffer(body, dtype, count, start).reshape(shape), start + size


def _listed(name: str, kind: str, shape: list[int], data: Any) -> Array:
    """Decode a tensor whose values are in the JSON part, flat or nested."""
    if not isinstance(data, list):
        raise WireError(f"tensor {name[:40]!r} has neither data nor binary_data_size.")
    flat = list(_flat(data, MOST_AXES))
    types = (str,) if kind == "BYTES" else (int, float) if kind.startswith("FP") else (int,)
    if len(flat) != math.prod(shape) or not all(type(value) in types for value in flat):
        raise WireError(f"the data of tensor {name[:40]!r} must be {math.prod(shape)} values of {kind}.")
    try:
        array = np.array(flat, dtype=object if kind == "BYTES" else NUMBERS[kind])
    except OverflowError:
        raise WireError(f"a value of tensor {name[:40]!r} is too large for {kind}.") from None
    return array.reshape(shape)


def _flat(data: list[Any], depth: int) -> Any:
    for value in data:
        if not isinstance(value, list):
            yield value
        elif depth:
            yield from _flat(value, depth - 1)
        else:
            raise WireError(f"data must not be nested more than {MOST_AXES} deep.")


def _texts_to_bytes(array: Array) -> bytes:
    texts = [str(text).encode() for text in array.reshape(-1)]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def _texts_from_bytes(name: str, data: bytes, count: int) -> Array:
    texts: list[str] = []
    at = 0
    while at + _LENGTH.size <= len(data) and len(texts) < count:
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + size
        try:
            texts.append(data[at - size : at].decode())
        except UnicodeDecodeError:
            raise WireError(f"a text of tensor {name[:40]!r} is not valid UTF-8.") from None
    if at != len(data) or len(texts) != count:
        raise WireError(f"the bytes of tensor {name[:40]!r} must be {count} texts.")
    return np.array(texts, dtype=object)
