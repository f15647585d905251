"""Inference requests and answers of the Open Inference Protocol: JSON, followed by binary tensors if there are any."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.errors import BodyTooLargeError, MalformedBodyError, ScorekeeperError, UnsupportedMediaTypeError
from app.open_inference.tensors import MAX_RANK, NamedTensor, decode_base64, read_binary, read_json_tensor, write_binary

HEADER_LENGTH = "inference-header-content-length"
"""The header that says how many bytes of a body are JSON, when binary tensors follow."""

WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""zlib's parameter for each content coding."""

Parameters = dict[str, Any] | None


class UnsupportedError(ScorekeeperError):
    """The request uses a part of the protocol that is not supported."""

    status = 501


class InputBody(msgspec.Struct, gc=False):
    """One input tensor, as it stands in JSON."""

    name: Annotated[str, Meta(description="The tensor's name, as the model's metadata has it", examples=["features"])]
    shape: Annotated[
        list[Annotated[int, Meta(ge=1)]],
        Meta(max_length=MAX_RANK, description="Its shape, rows first", examples=[[1, 5]]),
    ]
    datatype: Annotated[str, Meta(description="The protocol's name of its elements' type", examples=["FP32"])]
    parameters: Annotated[
        Parameters,
        Meta(
            description="`binary_data_size`: its bytes follow the JSON; `content_type`: `base64` when its texts are "
            "encoded so",
            examples=[{}],
        ),
    ] = None
    data: Annotated[
        msgspec.Raw | UnsetType,
        Meta(
            description="Its elements, row by row, flat or nested; null is a missing number",
            examples=[[1.5, 2.3, 3.1, 4.2, 5.0]],
            extra_json_schema={"type": "array"},
        ),
    ] = UNSET


class OutputBody(msgspec.Struct, gc=False):
    """One requested output."""

    name: Annotated[str, Meta(description="The tensor's name", examples=["probabilities"])]
    parameters: Annotated[
        Parameters,
        Meta(description="`binary_data`: whether its bytes follow the JSON", examples=[{"binary_data": False}]),
    ] = None


class InferBody(msgspec.Struct, gc=False):
    """The JSON of a request; members that are not named here are ignored."""

    inputs: Annotated[list[InputBody], Meta(description="The model's inputs, each once")]
    id: Annotated[str | None, Meta(description="The answer has the same id", examples=["42"])] = None
    parameters: Annotated[
        Parameters,
        Meta(
            description="`external_id` (one row) or `external_ids` (a JSON array as text): keys to send labels by; "
            "`binary_data_output`: whether all outputs' bytes follow the JSON",
            examples=[{"external_id": "order-1"}],
        ),
    ] = None
    outputs: Annotated[list[OutputBody] | None, Meta(description="The outputs that are wanted; null: all")] = None


class OutputParameters(msgspec.Struct):
    """The parameters of an output that is sent in binary."""

    binary_data_size: Annotated[
        int, Meta(description="How many of the bytes after the JSON belong to this output", examples=[8])
    ]


class OutputTensor(msgspec.Struct, gc=False):
    """One output tensor, as it stands in JSON."""

    name: Annotated[str, Meta(description="The tensor's name", examples=["probabilities"])]
    shape: Annotated[Sequence[int], Meta(description="Its shape, rows first", examples=[[1, 2]])]
    datatype: Annotated[str, Meta(description="The protocol's name of its elements' type", examples=["FP32"])]
    data: Annotated[list[Any] | UnsetType, Meta(description="Its elements, row by row", examples=[[0.1, 0.9]])] = UNSET
    parameters: Annotated[
        OutputParameters | UnsetType, Meta(description="In the place of `data`: its bytes follow the JSON")
    ] = UNSET


class InferParameters(msgspec.Struct, gc=False):
    """What this server adds to the outputs."""

    prediction_ids: Annotated[
        str,
        Meta(
            description="The rows' ids in the log, a JSON array as text",
            examples=['["01a2082d-7b3c-7000-8000-2f6d5a1c9e04"]'],
        ),
    ]


class InferAnswer(msgspec.Struct, kw_only=True, gc=False):
    """The JSON of an answer."""

    model_name: Annotated[str, Meta(description="The model that answers", examples=["car-loan"])]
    model_version: Annotated[str, Meta(description="Its version", examples=["1"])]
    id: Annotated[str | UnsetType, Meta(description="The request's, if it had one", examples=["42"])] = UNSET
    parameters: Annotated[InferParameters, Meta(description="The rows' ids")]
    outputs: Annotated[list[OutputTensor], Meta(description="The outputs that were asked for")]


INFER_DECODER = msgspec.json.Decoder(InferBody)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded request. `outputs` has each requested output, and whether it is sent in binary; empty: all outputs."""

    inputs: Sequence[NamedTensor]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, bool] = field(default_factory=dict)
    binary_outputs: bool = False
    """Whether an output is sent in binary when the request does not say so for this output."""


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """Undo a Content-Encoding; raise 415 if it is unknown, 400 for invalid data, 413 for more than `limit` bytes."""
    if coding == "identity":
        return body
    if coding not in WINDOW_BITS:
        raise UnsupportedMediaTypeError("Content-Encoding must be gzip, deflate or identity")
    decompressor = zlib.decompressobj(WINDOW_BITS[coding])
    try:
        plain = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedBodyError(f"the body is not {coding}") from error
    if len(plain) > limit:
        raise BodyTooLargeError(f"the body has more than the {limit} bytes allowed when it is decompressed")
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedBodyError(f"the body's {coding} data is cut off, or other bytes follow it")
    return plain


def read_header_length(value: str, size: int) -> int:
    """Return how many of the body's `size` bytes are JSON; raise 400 if the header is not an integer up to `size`."""
    if not (value.isascii() and value.isdecimal() and len(value) <= 15 and int(value) <= size):
        raise MalformedBodyError(f"Inference-Header-Content-Length must be an integer up to the body's {size} bytes")
    return int(value)


def decode_request(body: bytes, json_size: int) -> InferRequest:
    """Decode a request whose first `json_size` bytes are JSON. Raises 400, or 501 for what is not supported."""
    try:
        asked = INFER_DECODER.decode(body[:json_size])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedBodyError(f"not a valid inference request: {detail}") from error
    blobs = Blobs(memoryview(body)[json_size:])
    if (asked.parameters or {}).get("content_type") == "base64":
        raise MalformedBodyError("content_type base64 belongs to the parameters of an input, not of the request")
    inputs = [_read_input(one, blobs) for one in asked.inputs]
    blobs.check_end()
    by_default = _read_flag(asked.parameters, "binary_data_output", default=False)
    outputs = {one.name: _read_output(one, default=by_default) for one in asked.outputs or []}
    return InferRequest(inputs, asked.id, asked.parameters or {}, outputs, by_default)


class Blobs:
    """The bytes after the JSON; each input takes its bytes from the front."""

    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def take(self, name: str, size: int) -> memoryview:
        """Take the bytes of the next input; raise 400 if fewer are left."""
        if size > len(self._rest):
            raise MalformedBodyError(f"input {name!r}: {size} bytes of binary data, the body has {len(self._rest)}")
        blob, self._rest = self._rest[:size], self._rest[size:]
        return blob

    def check_end(self) -> None:
        """Raise 400 for bytes that belong to no input."""
        if self._rest:
            raise MalformedBodyError(f"{len(self._rest)} bytes of binary data belong to no input")


def _read_input(asked: InputBody, blobs: Blobs) -> NamedTensor:
    """Decode one input from its JSON, or from the bytes after the JSON."""
    name, parameters = asked.name, asked.parameters or {}
    if "shared_memory_region" in parameters:
        raise UnsupportedError("shared memory is not supported: send the data")
    size = parameters.get("binary_data_size")
    if (size is None) == isinstance(asked.data, UnsetType):
        raise MalformedBodyError(f"input {name!r}: give either data or parameters.binary_data_size")
    if not isinstance(asked.data, UnsetType):
        array = read_json_tensor(name, asked.datatype, asked.shape, bytes(asked.data))
    elif type(size) is int and size >= 0:
        array = read_binary(name, asked.datatype, asked.shape, blobs.take(name, size))
    else:
        raise MalformedBodyError(f"input {name!r}: binary_data_size must be an integer that is not negative")
    if parameters.get("content_type") == "base64":
        array = decode_base64(name, asked.datatype, array)
    return NamedTensor(name, asked.datatype, array)


def _read_output(asked: OutputBody, *, default: bool) -> bool:
    """Return whether an output is sent in binary."""
    for name in ("shared_memory_region", "classification"):
        if (asked.parameters or {}).get(name):
            raise UnsupportedError(f"output {asked.name!r}: {name} is not supported")
    return _read_flag(asked.parameters, "binary_data", default=default)


def _read_flag(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise MalformedBodyError(f"parameter {name} must be true or false")
    return value


def choose_outputs(request: InferRequest, names: Sequence[str]) -> dict[str, bool]:
    """Return the outputs to answer, and whether each is sent in binary; raise 400 for an unknown output."""
    for name in request.outputs:
        if name not in names:
            raise MalformedBodyError(f"no output {name!r}; the outputs are {', '.join(names)}")
    return dict(request.outputs) or dict.fromkeys(names, request.binary_outputs)


def encode_answer(answer: InferAnswer, tensors: Sequence[tuple[NamedTensor, bool]]) -> tuple[bytes, int | None]:
    """Encode an answer with these outputs, some in binary; return the body and, if bytes follow the JSON, its size."""
    blobs = []
    for tensor, is_binary in tensors:
        output = OutputTensor(tensor.name, tensor.array.shape, tensor.datatype)
        if is_binary:
            blobs.append(write_binary(tensor))
            output.parameters = OutputParameters(len(blobs[-1]))
        else:
            output.data = tensor.array.reshape(-1).tolist()
        answer.outputs.append(output)
    body = msgspec.json.encode(answer)
    return b"".join([body, *blobs]), len(body) if blobs else None
