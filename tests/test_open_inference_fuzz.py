"""Whatever is sent to /v2: 200 or a well-formed 4xx or 501, never an error of the server."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.open_inference.tensors import DATATYPES
from tests.conftest import OpenClient
from tests.support.family_models import make_mixture
from tests.support.onnx_models import write_model
from tests.support.open_inference import HEADER_LENGTH, read_error
from tests.support.strategies import ANY_JSON, NUMBERS, SCALARS, TEXTS, moderate, spell, spoilt

LENGTH = HEADER_LENGTH.encode()
INFER = "/v2/models/model/infer"

CITY = b"\x04\x00\x00\x00Bern"
BLOBS = (np.array([0.25, -0.5], dtype="<f4").tobytes(), b"\x01", CITY)
INPUTS = [
    {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(blob)}}
    for (name, shape, datatype), blob in zip(
        (("pair", [1, 2], "FP32"), ("member", [1], "BOOL"), ("city", [1, 1], "BYTES")), BLOBS, strict=True
    )
]
BINARY_HEAD = json.dumps({"inputs": INPUTS, "parameters": {"binary_data_output": True}}).encode()
BINARY_LENGTH = str(len(BINARY_HEAD)).encode()
BINARY = BINARY_HEAD + b"".join(BLOBS)
JSON_BODY = json.dumps(
    {
        "id": "7",
        "parameters": {"external_ids": '["a", null]'},
        "inputs": [
            {"name": "pair", "shape": [2, 2], "datatype": "FP32", "data": [[0.25, -0.5], [1, 2]]},
            {"name": "member", "shape": [2], "datatype": "BOOL", "data": [True, False]},
            {"name": "city", "shape": [2, 1], "datatype": "BYTES", "data": ["Bern", "é"]},
        ],
        "outputs": [{"name": "p", "parameters": {"binary_data": True}}, {"name": "label"}],
    }
).encode()

PARAMETERS = st.none() | st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "external_id", "external_ids"]),
    SCALARS | ANY_JSON,
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["pair", "member", "city"]) | SCALARS,
        "shape": st.lists(st.integers(0, 4), max_size=3) | ANY_JSON,
        "datatype": st.sampled_from(list(DATATYPES)) | SCALARS,
    },
    optional={
        "data": st.lists(NUMBERS | st.booleans() | TEXTS | st.none(), max_size=8) | ANY_JSON,
        "parameters": PARAMETERS | SCALARS,
    },
)
OUTPUTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["p", "label"]) | SCALARS}, optional={"parameters": PARAMETERS}
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=4) | ANY_JSON},
    optional={
        "id": SCALARS,
        "parameters": PARAMETERS | SCALARS,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.just("p") | SCALARS}, optional={"parameters": PARAMETERS})
        ),
    },
)
HEADERS: st.SearchStrategy[dict[bytes, bytes]] = st.one_of(
    st.just({}),
    st.integers(-2, len(BINARY) + 2).map(lambda size: {LENGTH: str(size).encode()}),
    st.text(st.characters(codec="latin-1", categories=["L", "N", "P"]), max_size=5).map(
        lambda text: {LENGTH: text.encode("latin-1")}
    ),
)


@pytest.fixture
async def mixed(open_client: OpenClient, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a model of numbers, which may be missing, a boolean and a text."""
    write_model(tmp_path / "models", make_mixture(missing_values="allowed").content)
    async with open_client(MODEL_DIR=str(tmp_path / "models")) as opened:
        yield opened


async def check(client: httpx2.AsyncClient, path: str, body: bytes, headers: dict[bytes, bytes] | None = None) -> int:
    """Send a body; anything but 200 must be the client's making."""
    answer = await client.post(path, content=body, headers=headers)
    if answer.status_code != 200:
        assert answer.status_code in (400, 501), answer.text
        read_error(answer)
    return answer.status_code


async def test_bodies_to_be_spoilt_are_valid(mixed: httpx2.AsyncClient) -> None:
    assert await check(mixed, INFER, JSON_BODY) == 200
    assert await check(mixed, INFER, BINARY, {LENGTH: BINARY_LENGTH}) == 200


@moderate
@given(body=REQUESTS, headers=HEADERS)
async def test_inference_is_200_or_refused_when_members_are_arbitrary(
    mixed: httpx2.AsyncClient, body: object, headers: dict[bytes, bytes]
) -> None:
    await check(mixed, INFER, spell(body), headers)


@moderate
@given(body=spoilt(JSON_BODY))
async def test_inference_is_200_or_refused_when_json_is_spoilt(mixed: httpx2.AsyncClient, body: bytes) -> None:
    await check(mixed, INFER, body)


@moderate
@given(body=spoilt(BINARY), headers=st.just({LENGTH: BINARY_LENGTH}) | HEADERS)
async def test_inference_is_200_or_refused_when_binary_is_spoilt(
    mixed: httpx2.AsyncClient, body: bytes, headers: dict[bytes, bytes]
) -> None:
    await check(mixed, INFER, body, headers)


@moderate
@given(body=spoilt(gzip.compress(JSON_BODY, mtime=0)), coding=st.sampled_from([b"gzip", b"deflate"]))
async def test_inference_is_200_or_refused_when_gzip_is_spoilt(
    mixed: httpx2.AsyncClient, body: bytes, coding: bytes
) -> None:
    await check(mixed, INFER, body, {b"content-encoding": coding})


@moderate
@given(body=ANY_JSON, path=st.sampled_from(["index", "models/model/load"]))
async def test_repository_is_200_or_refused_when_the_body_is_any_json(
    mixed: httpx2.AsyncClient, body: object, path: str
) -> None:
    await check(mixed, f"/v2/repository/{path}", spell(body))
