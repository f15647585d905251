"""The Open Inference Protocol's bodies, without a server: what is read, what is refused, what is written."""

import base64
import gzip
import json
import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BodyTooLargeError, MalformedBodyError, ScorekeeperError, UnsupportedMediaTypeError
from app.open_inference.tensors import NamedTensor
from app.open_inference.wire import (
    InferAnswer,
    InferParameters,
    InferRequest,
    UnsupportedError,
    choose_outputs,
    decode_request,
    decompress,
    encode_answer,
    read_header_length,
)

# Elements in binary by the datatype's table, each with the values that they stand for.
WIRES: dict[str, tuple[bytes, list[Any]]] = {
    "BOOL": (b"\x00\x01\x02", [False, True, True]),
    "INT8": (b"\xff\x7f", [-1, 127]),
    "UINT8": (b"\xff\x00", [255, 0]),
    "INT16": (struct.pack("<2h", -2, 300), [-2, 300]),
    "UINT16": (struct.pack("<H", 65535), [65535]),
    "INT32": (struct.pack("<i", -(2**31)), [-(2**31)]),
    "UINT32": (struct.pack("<I", 2**32 - 1), [2**32 - 1]),
    "INT64": (struct.pack("<q", -(2**63)), [-(2**63)]),
    "UINT64": (struct.pack("<Q", 2**64 - 1), [2**64 - 1]),
    "FP16": (struct.pack("<2e", 0.5, -2.0), [0.5, -2.0]),
    "BF16": (b"\x80\x3f\x49\x40", [1.0, 3.140625]),
    "FP32": (struct.pack("<2f", 0.25, -1e30), [0.25, float(np.float32(-1e30))]),
    "FP64": (struct.pack("<d", 0.1), [0.1]),
    "BYTES": (b"\x03\x00\x00\x00abc\x00\x00\x00\x00\x02\x00\x00\x00\xc3\xa4", ["abc", "", "ä"]),
}
NOT_IN_JSON = ("FP16", "BF16")


def encode(*inputs: dict[str, Any], **members: object) -> bytes:
    return json.dumps({"inputs": inputs, **members}).encode()


def decode(body: bytes) -> InferRequest:
    return decode_request(body, len(body))


def make_input(datatype: str = "FP32", shape: tuple[int, ...] = (1, 2), **members: object) -> dict[str, Any]:
    return {"name": "x", "shape": list(shape), "datatype": datatype, **members}


@pytest.mark.parametrize("datatype", WIRES)
def test_binary_elements_are_read(datatype: str) -> None:
    blob, values = WIRES[datatype]
    head = encode(make_input(datatype, (len(values),), parameters={"binary_data_size": len(blob)}))

    (tensor,) = decode_request(head + blob, len(head)).inputs

    assert (tensor.name, tensor.datatype, tensor.array.tolist()) == ("x", datatype, values)


@pytest.mark.parametrize("datatype", [name for name in WIRES if name not in NOT_IN_JSON])
def test_json_elements_are_read(datatype: str) -> None:
    _, values = WIRES[datatype]

    (tensor,) = decode(encode(make_input(datatype, (len(values),), data=values))).inputs

    assert tensor.array.tolist() == values


@pytest.mark.parametrize("datatype", NOT_IN_JSON)
def test_half_precision_is_refused_in_json(datatype: str) -> None:
    with pytest.raises(MalformedBodyError, match="must be sent as binary data"):
        decode(encode(make_input(datatype, data=[1.0, 2.0])))


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2], [3, 4], [5, 6]]], ids=["flat", "nested"])
def test_data_is_row_major_whether_flat_or_nested(data: list[Any]) -> None:
    (tensor,) = decode(encode(make_input(shape=(3, 2), data=data))).inputs

    assert tensor.array.tolist() == [[1, 2], [3, 4], [5, 6]]


@given(st.lists(st.integers(1, 4), max_size=4).flatmap(lambda shape: st.tuples(st.just(shape), st.booleans())))
def test_any_shape_is_read(case: tuple[list[int], bool]) -> None:
    shape, is_nested = case
    expected = np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape)
    data = expected.tolist() if is_nested and shape else expected.reshape(-1).tolist()

    (tensor,) = decode(encode(make_input(shape=tuple(shape), data=data))).inputs

    assert np.array_equal(tensor.array, expected)


def test_binary_inputs_follow_each_other_in_their_order() -> None:
    size = {"binary_data_size": 16}
    head = encode(
        {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "parameters": size},
        {"name": "words", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]},
        {"name": "input1", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
    )

    inputs = decode_request(head + struct.pack("<4I", 1, 2, 3, 4) + b"\x01\x00\x01", len(head)).inputs

    assert [one.name for one in inputs] == ["input0", "words", "input1"]
    assert [one.array.tolist() for one in inputs] == [[[1, 2], [3, 4]], ["a", "b"], [True, False, True]]


def test_members_that_are_not_known_are_ignored() -> None:
    request = decode(encode(make_input(data=[1, 2], extra=1), model_name="m", id="7", outputs=[]))

    assert (request.id, request.outputs) == ("7", {})


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "column": (
        make_input(shape=(3, 1), data=[1, "a", 3]),
        "FP32 of this shape: Expected `float | null`, got `str` at data[1]",
    ),
    "column of columns": (make_input(shape=(3, 1), data=[[1], [2], ["a"]]), "got `str` at data[2][0]"),
    "row": (make_input(shape=(1, 2), data=[[1, True]]), "got `bool` at data[0][1]"),
    "vector": (make_input("INT64", shape=(2,), data=[1, 2.5]), "Expected `int`, got `float` at data[1]"),
    "nested too little": (make_input(shape=(2, 1), data=[[1], 2]), "Expected `array`, got `int` at data[1]"),
}


@pytest.mark.parametrize(("tensor", "detail"), FAULTS.values(), ids=FAULTS)
def test_wrong_element_is_told_with_its_place(tensor: dict[str, Any], detail: str) -> None:
    with pytest.raises(MalformedBodyError) as refused:
        decode(encode(tensor))

    assert str(refused.value).endswith(detail)


BASE64 = {"content_type": "base64"}


def test_texts_in_base64_are_decoded() -> None:
    texts = ["größe", "", "a" * 100]
    data = [base64.b64encode(text.encode()).decode() for text in texts]

    (tensor,) = decode(encode(make_input("BYTES", (3, 1), data=data, parameters=BASE64))).inputs

    assert tensor.array.tolist() == [[text] for text in texts]


def test_binary_texts_in_base64_are_decoded() -> None:
    element = base64.b64encode("größe".encode())
    blob = struct.pack("<I", len(element)) + element
    head = encode(make_input("BYTES", (1,), parameters=BASE64 | {"binary_data_size": len(blob)}))

    (tensor,) = decode_request(head + blob, len(head)).inputs

    assert tensor.array.tolist() == ["größe"]


NOT_BASE64: dict[str, bytes] = {
    "other signs": encode(make_input("BYTES", (1,), data=["größe"], parameters=BASE64)),
    "length": encode(make_input("BYTES", (1,), data=["abc"], parameters=BASE64)),
    "bytes": encode(make_input("BYTES", (1,), data=["/w=="], parameters=BASE64)),
    "numbers": encode(make_input("FP32", (1,), data=[1], parameters=BASE64)),
    "request": encode(make_input("BYTES", (1,), data=["YQ=="]), parameters=BASE64),
}


@pytest.mark.parametrize("body", NOT_BASE64.values(), ids=NOT_BASE64)
def test_what_cannot_be_decoded_as_base64_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBodyError, match=r"(?i)base64"):
        decode(body)


def test_missing_text_is_kept() -> None:
    (tensor,) = decode(encode(make_input("BYTES", (1, 2), data=["a", None]))).inputs

    assert tensor.array.tolist() == [["a", None]]


def test_null_becomes_nan() -> None:
    (tensor,) = decode(encode(make_input(data=[None, 2]))).inputs

    assert np.isnan(tensor.array).tolist() == [[True, False]]


REFUSED = {
    "empty": b"",
    "no-object": b"[]",
    "no-inputs": b"{}",
    "nan": b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}',
    "deep": b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 100_000,
    "latin-1": b'{"inputs": [{"name": "\xe9", "shape": [1], "datatype": "FP32", "data": [1]}]}',
    "text-not-utf-8": b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["\x80"]}]}',
    "text-lone-surrogate": rb'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["\ud800"]}]}',
    "unknown-datatype": encode(make_input("FP8", data=[1, 2])),
    "no-data": encode(make_input()),
    "too-few": encode(make_input(data=[1])),
    "too-many": encode(make_input(data=[1, 2, 3])),
    "ragged": encode(make_input(shape=(2, 2), data=[[1, 2, 3], [4]])),
    "nested-otherwise": encode(make_input(shape=(2, 2), data=[[1, 2, 3, 4]])),
    "data-no-array": encode(make_input(data=1)),
    "data-null": encode(make_input(data=None)),
    "text-for-number": encode(make_input(data=["1", "2"])),
    "boolean-for-number": encode(make_input(data=[True, False])),
    "number-for-boolean": encode(make_input("BOOL", data=[1, 0])),
    "number-for-text": encode(make_input("BYTES", data=[1, 2])),
    "fraction-for-integer": encode(make_input("INT64", data=[1.5, 2])),
    "null-for-integer": encode(make_input("INT64", data=[None, 2])),
    "beyond-int8": encode(make_input("INT8", data=[128, 2])),
    "beyond-int64": encode(make_input("INT64", data=[2**63, 2])),
    "negative-for-unsigned": encode(make_input("UINT8", data=[-1, 2])),
    "beyond-float64": encode(make_input("FP64", data=[10**400, 2])),
    "negative-dimension": encode(make_input(shape=(-1, 2), data=[1, 2])),
    "no-elements": encode(make_input(shape=(0, 2), data=[])),
    "huge-shape": encode(make_input(shape=(2**40, 2**40), data=[1, 2])),
    "fractional-shape": encode({"name": "x", "shape": [1.5], "datatype": "FP32", "data": [1]}),
    "too-many-dimensions": encode(make_input(shape=(1,) * 9, data=[1])),
    "size-and-data": encode(make_input(data=[1, 2], parameters={"binary_data_size": 8})),
    "size-without-bytes": encode(make_input(parameters={"binary_data_size": 8})),
    "size-negative": encode(make_input(parameters={"binary_data_size": -8})),
    "size-no-integer": encode(make_input(parameters={"binary_data_size": "8"})),
    "size-boolean": encode(make_input(parameters={"binary_data_size": True})),
    "binary-no-boolean": encode(make_input(data=[1, 2]), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
    "parameters-no-object": encode(make_input(data=[1, 2]), parameters=[1]),
    "id-no-text": encode(make_input(data=[1, 2]), id=7),
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in REFUSED.items()])
def test_malformed_requests_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        decode(body)


BLOBS = {
    "too-short-for-the-shape": ("FP32", (1, 2), b"\x00" * 4),
    "too-long-for-the-shape": ("FP32", (1, 2), b"\x00" * 12),
    "length-cut-off": ("BYTES", (1,), b"\x01\x00"),
    "text-cut-off": ("BYTES", (1,), b"\x05\x00\x00\x00abc"),
    "text-not-utf-8": ("BYTES", (1,), b"\x01\x00\x00\x00\xff"),
    "texts-too-few": ("BYTES", (2,), b"\x01\x00\x00\x00a"),
    "texts-too-many": ("BYTES", (1,), b"\x01\x00\x00\x00a" * 3),
}


@pytest.mark.parametrize(("datatype", "shape", "blob"), BLOBS.values(), ids=BLOBS)
def test_malformed_binary_data_is_refused(datatype: str, shape: tuple[int, ...], blob: bytes) -> None:
    head = encode(make_input(datatype, shape, parameters={"binary_data_size": len(blob)}))

    with pytest.raises(MalformedBodyError, match="input 'x'"):
        decode_request(head + blob, len(head))


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    head = encode(make_input(data=[1, 2]))

    with pytest.raises(MalformedBodyError, match="3 bytes"):
        decode_request(head + b"abc", len(head))


@pytest.mark.parametrize(
    "body",
    [
        encode(make_input(parameters={"shared_memory_region": "r"})),
        encode(make_input(data=[1, 2]), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
        encode(make_input(data=[1, 2]), outputs=[{"name": "y", "parameters": {"classification": 2}}]),
    ],
    ids=["input-shared-memory", "output-shared-memory", "classification"],
)
def test_extensions_that_are_not_here_are_named(body: bytes) -> None:
    with pytest.raises(UnsupportedError, match="not supported"):
        decode(body)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_body_raises_what_is_no_answer(body: bytes, json_size: int) -> None:
    head = encode(make_input("BYTES", (1,), parameters={"binary_data_size": len(body)}))
    for content, size in ((body, min(json_size, len(body))), (head + body, len(head))):
        try:
            decode_request(content, size)
        except ScorekeeperError as error:
            assert error.status == 400  # noqa: PT017  # other errors are what this test looks for


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "+1", "11", "9" * 5000, "\xb2", "\u0663"])
def test_header_length_is_refused_unless_it_is_a_place_in_the_body(value: str) -> None:
    with pytest.raises(MalformedBodyError, match="Inference-Header-Content-Length"):
        read_header_length(value, 10)


def test_header_length_may_be_the_whole_body() -> None:
    assert [read_header_length(value, 10) for value in ("0", "7", "10")] == [0, 7, 10]


PLAIN = b"x" * 1000


def test_compressed_bodies_are_read() -> None:
    assert decompress(gzip.compress(PLAIN), "gzip", 1000) == PLAIN
    assert decompress(zlib.compress(PLAIN), "deflate", 1000) == PLAIN
    assert decompress(PLAIN, "identity", 1000) == PLAIN


REFUSED_CODINGS: dict[str, tuple[bytes, str, type[ScorekeeperError]]] = {
    "bomb": (gzip.compress(b"x" * 50_000_000), "gzip", BodyTooLargeError),
    "one-byte-too-many": (zlib.compress(PLAIN + b"x"), "deflate", BodyTooLargeError),
    "truncated": (gzip.compress(PLAIN)[:-1], "gzip", MalformedBodyError),
    "more-behind-it": (gzip.compress(PLAIN) + b"x", "gzip", MalformedBodyError),
    "other-coding": (zlib.compress(PLAIN), "gzip", MalformedBodyError),
    "not-compressed": (PLAIN, "gzip", MalformedBodyError),
    "empty": (b"", "gzip", MalformedBodyError),
    "brotli": (PLAIN, "br", UnsupportedMediaTypeError),
    "two-codings": (PLAIN, "gzip, gzip", UnsupportedMediaTypeError),
}


@pytest.mark.parametrize(("body", "coding", "error"), REFUSED_CODINGS.values(), ids=REFUSED_CODINGS)
def test_compressed_bodies_are_refused(body: bytes, coding: str, error: type[ScorekeeperError]) -> None:
    with pytest.raises(error):
        decompress(body, coding, 1000)


NAMES = ("label", "probabilities")


def test_outputs_are_all_unless_some_are_asked_for() -> None:
    request = decode(encode(make_input(data=[1, 2]), parameters={"binary_data_output": True}))
    assert choose_outputs(request, NAMES) == {"label": True, "probabilities": True}
    assert choose_outputs(InferRequest([]), NAMES) == {"label": False, "probabilities": False}


def test_an_output_overrides_the_requests_binary_flag() -> None:
    outputs = [{"name": "probabilities", "parameters": {"binary_data": False}}, {"name": "label"}]
    request = decode(encode(make_input(data=[1, 2]), parameters={"binary_data_output": True}, outputs=outputs))

    assert choose_outputs(request, NAMES) == {"probabilities": False, "label": True}


def test_unknown_outputs_are_refused() -> None:
    with pytest.raises(MalformedBodyError, match="no output 'y'; the outputs are label, probabilities"):
        choose_outputs(InferRequest([], outputs={"y": False}), NAMES)


LABEL = NamedTensor("label", "BYTES", np.array(["ä", "b"], dtype=object))
PROBABILITIES = NamedTensor("p", "FP32", np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32))


def make_answer() -> InferAnswer:
    return InferAnswer(model_name="m", model_version="1", parameters=InferParameters("[]"), outputs=[])


def test_answers_are_json_unless_binary_is_asked_for() -> None:
    body, json_size = encode_answer(make_answer(), [(LABEL, False), (PROBABILITIES, False)])

    assert json_size is None
    assert msgspec.json.decode(body) == {
        "model_name": "m",
        "model_version": "1",
        "parameters": {"prediction_ids": "[]"},
        "outputs": [
            {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["ä", "b"]},
            {"name": "p", "shape": [2, 2], "datatype": "FP32", "data": [0.25, 0.75, 0.5, 0.5]},
        ],
    }


def test_binary_answers_follow_the_json_in_order() -> None:
    body, json_size = encode_answer(make_answer(), [(LABEL, True), (PROBABILITIES, True)])

    assert json_size is not None
    sizes = [one["parameters"] for one in json.loads(body[:json_size])["outputs"]]
    assert sizes == [{"binary_data_size": 11}, {"binary_data_size": 16}]
    assert body[json_size:] == b"\x02\x00\x00\x00\xc3\xa4\x01\x00\x00\x00b" + struct.pack("<4f", 0.25, 0.75, 0.5, 0.5)
