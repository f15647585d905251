"""Tensors of the Open Inference Protocol: their datatypes, and their elements in JSON and in bytes."""

import base64
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from types import GenericAlias
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.errors import MalformedBodyError

MAX_RANK = 8
"""Most dimensions of a tensor: more than any client uses, and JSON of this depth can be decoded."""

LENGTH_BYTES = 4
"""Size of the length before each element of a binary BYTES tensor."""


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor of a request or an answer. Numbers from JSON keep their precision: floats are float64."""

    name: str
    datatype: str
    array: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Datatype:
    """How elements are encoded: `wire` in binary; in JSON as `element`, in an array of `json`. None: binary only."""

    wire: np.dtype[Any]
    element: Any = None
    json: np.dtype[Any] | None = None


def _integer(code: str) -> Datatype:
    return Datatype(np.dtype(code), int, np.dtype(code))


def _float(code: str) -> Datatype:
    return Datatype(np.dtype(code), float | None, np.dtype("f8"))


TEXT = np.dtype(object)

DATATYPES = {
    "BOOL": Datatype(np.dtype("u1"), bool, np.dtype("?")),
    **{f"INT{8 * size}": _integer(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": _integer(f"<u{size}") for size in (1, 2, 4, 8)},
    "FP16": Datatype(np.dtype("<f2")),
    "BF16": Datatype(np.dtype("<u2")),
    "FP32": _float("<f4"),
    "FP64": _float("<f8"),
    "BYTES": Datatype(TEXT, str | None, TEXT),
}


def read_json_tensor(name: str, datatype: str, shape: Sequence[int], data: bytes) -> NDArray[Any]:
    """Decode `data` of a JSON input, flat or nested like `shape`; null becomes NaN. Raises 400 that names the input."""
    known = _find_datatype(name, datatype)
    if known.json is None:
        raise MalformedBodyError(f"input {name!r}: {datatype} must be sent as binary data")
    try:
        values = _decode_json(known.element, shape, data)
        _check_count(name, len(values), shape, "elements")
        return np.array(values, dtype=known.json).reshape(shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the first check of the UTF-8 of strings in `data`
        detail, _, place = str(error).partition(" - at `$")
        at = f" at data{place[:-1]}" if place else ""
        raise MalformedBodyError(f"input {name!r}: data is not {datatype} of this shape: {detail}{at}") from error
    except OverflowError as error:
        raise MalformedBodyError(f"input {name!r}: a number does not fit in {datatype}") from error


def _decode_json(element: Any, shape: Sequence[int], data: bytes) -> list[Any]:
    """Return the elements in row-major order; raise msgspec's ValidationError for data of another shape."""
    is_nested = data.lstrip()[1:].lstrip().startswith(b"[")
    if not is_nested or len(shape) < 2:
        return _decode_nested(element, 1)(data)
    values = _decode_nested(element, len(shape))(data)
    for size in shape[1:]:
        if any(len(row) != size for row in values):
            raise msgspec.ValidationError(f"the nested arrays do not have the shape {list(shape)}")
        values = list(chain.from_iterable(values))
    return values


@functools.cache
def _decode_nested(element: Any, depth: int) -> Callable[[bytes], list[Any]]:
    """Return a decoder of nested lists; cached, since making a decoder takes longer than decoding a row."""
    kind = element
    for _ in range(depth):
        kind = GenericAlias(list, kind)
    return msgspec.json.Decoder(kind).decode


def read_binary(name: str, datatype: str, shape: Sequence[int], blob: bytes | memoryview) -> NDArray[Any]:
    """Decode the bytes of a binary input. Raises 400 that names the input."""
    known = _find_datatype(name, datatype)
    if known.wire is TEXT:
        texts = _read_texts(name, blob, math.prod(shape))
        _check_count(name, len(texts), shape, "elements")
        return np.array(texts, dtype=TEXT).reshape(shape)
    _check_count(name, len(blob), (*shape, known.wire.itemsize), "bytes")
    array = np.frombuffer(blob, dtype=known.wire).reshape(shape)
    if datatype == "BOOL":
        return array.astype(np.bool_)
    if datatype == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array


def _read_texts(name: str, blob: bytes | memoryview, limit: int) -> list[str]:
    texts: list[str] = []
    position = 0
    try:
        while position < len(blob) and len(texts) <= limit:
            start = position + LENGTH_BYTES
            position = start + int.from_bytes(blob[position:start], "little")
            if start > len(blob) or position > len(blob):
                raise MalformedBodyError(f"input {name!r}: the last element is cut off")
            texts.append(str(blob[start:position], "utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"input {name!r}: element {len(texts)} is not UTF-8 text") from error
    return texts


def decode_base64(name: str, datatype: str, array: NDArray[Any]) -> NDArray[Any]:
    """Decode texts that a client has sent in Base64, as MLServer's do. Raises 400 that names the input."""
    if datatype != "BYTES":
        raise MalformedBodyError(f"input {name!r}: content_type base64 is for BYTES, not for {datatype}")
    decoded = array.copy()
    for at, text in enumerate(array.reshape(-1).tolist()):
        try:
            decoded.flat[at] = None if text is None else base64.b64decode(text, validate=True).decode()
        except ValueError as error:  # not Base64, or not UTF-8
            raise MalformedBodyError(f"input {name!r}: element {at} is not Base64 of UTF-8 text") from error
    return decoded


def _find_datatype(name: str, datatype: str) -> Datatype:
    """Return a datatype by its name; raise 400 that names the input for an unknown datatype."""
    known = DATATYPES.get(datatype)
    if known is None:
        raise MalformedBodyError(f"input {name!r}: the datatype must be one of {', '.join(DATATYPES)}")
    return known


def _check_count(name: str, count: int, shape: Sequence[int], unit: str) -> None:
    expected = math.prod(shape)
    if count != expected:
        raise MalformedBodyError(f"input {name!r}: {count} {unit} of data, its shape has {expected}")


def write_binary(tensor: NamedTensor) -> bytes:
    """Encode a tensor as its bytes."""
    if tensor.datatype == "BYTES":
        encoded = [text.encode() for text in tensor.array.reshape(-1).tolist()]
        return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in encoded)
    return tensor.array.astype(DATATYPES[tensor.datatype].wire, copy=False).tobytes()
