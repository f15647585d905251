"""What the Open Inference Protocol's endpoints refuse: status and form of each answer, and that nothing is written."""

import gzip
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.answers import FEATURES
from tests.support.open_inference import HEADER_LENGTH, INFER, make_body, read_error
from tests.support.refusing import Refusing, open_refusing, shared_loop


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with the demo model and default settings, for all tests of this module."""
    async with open_refusing(postgres, tmp_path_factory.mktemp("data")) as opened:
        yield opened


def change(**members: object) -> dict[str, Any]:
    """Return a valid body with other members of its input."""
    body = make_body()
    body["inputs"][0] |= members
    return body


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no-inputs": ({"inputs": []}, "features"),
    "unknown-input": (change(name="x"), "features"),
    "input-twice": ({"inputs": make_body()["inputs"] * 2}, "features"),
    "wrong-width": (change(shape=[1, 4], data=[1, 2, 3, 4]), r"\[1, 4\]"),
    "wrong-rank": (change(shape=[5]), r"\[5\]"),
    "no-rows": (change(shape=[0, 5], data=[]), "shape"),
    "too-many-rows": (make_body([FEATURES] * 10_001), "10000"),
    "texts-for-floats": (change(datatype="BYTES", data=["a"] * 5), "FP32"),
    "booleans-for-floats": (change(datatype="BOOL", data=[True] * 5), "FP32"),
    "null": (change(data=[None, 2, 3, 4, 5]), "null is not allowed"),
    "beyond-float32": (change(data=[1, 2, 3, 4, 1e39]), "/rows/0/4"),
    "unknown-output": (make_body(outputs=[{"name": "x"}]), "no output 'x'"),
    "ids-too-many": (make_body(parameters={"external_ids": '["a", "b"]'}), "2 external ids for 1 rows"),
    "ids-no-array": (make_body(parameters={"external_ids": ["a"]}), "external_ids"),
    "id-with-nul": (make_body(parameters={"external_id": "a\x00"}), "external id"),
    "id-no-text": (make_body(parameters={"external_id": 1}), "external id"),
}


@shared_loop
@pytest.mark.parametrize(("body", "text"), REFUSED.values(), ids=REFUSED)
async def test_unacceptable_requests_are_400(refusing: Refusing, body: dict[str, Any], text: str) -> None:
    answer = await refusing.post(INFER, body)

    assert answer.status_code == 400
    assert re.search(text, read_error(answer))


@shared_loop
@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\x80"]}]}', {}, 400),
        (b"x", {HEADER_LENGTH: "2"}, 400),
        (b"x", {HEADER_LENGTH: "-1"}, 400),
        (b"", {HEADER_LENGTH: "0"}, 400),
        (b"\x00" * 21, {HEADER_LENGTH: "0"}, 400),
        (b"\x00\x00\xc0\x7f" * 5, {HEADER_LENGTH: "0"}, 400),
        (b"\x00\x00\x80\x7f" * 5, {HEADER_LENGTH: "0"}, 400),
        (b"{}", {"content-encoding": "gzip"}, 400),
        (b"{}", {"content-encoding": "br"}, 415),
        (gzip.compress(b" " * 9_000_000), {"content-encoding": "gzip"}, 413),
        (b" " * 9_000_000, {}, 413),
    ],
    ids=[
        "json",
        "utf-8",
        "beyond",
        "negative",
        "empty-raw",
        "part-row",
        "nan",
        "infinity",
        "coding",
        "br",
        "bomb",
        "large",
    ],
)
async def test_unreadable_bodies_are_refused(
    refusing: Refusing, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await refusing.post(INFER, content, headers)

    assert answer.status_code == status
    read_error(answer)


@shared_loop
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/x/infer", 404),
        ("POST", "/v2/models/Car-Loan/infer", 404),
        ("POST", "/v2/models/car%2Floan/infer", 404),
        ("POST", "/v2/models/%00/infer", 404),
        ("POST", "/v2/models/car-loan/versions/2/infer", 404),
        ("GET", "/v2/models/x", 404),
        ("GET", "/v2/models/x/ready", 404),
        ("GET", "/v2/models/x/config", 404),
        ("GET", "/v2/models/x/stats", 404),
        ("GET", "/v2/models/car-loan/versions/2/stats", 404),
        ("POST", "/v2/repository/models/x/load", 404),
        ("POST", "/v2/repository/models/x/unload", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/x", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/car-loan", 405),
        ("POST", "/v2/health/ready", 405),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501),
        ("GET", "/v2/trace/setting", 501),
        ("GET", "/v2/models/car-loan/trace/setting", 501),
        ("POST", "/v2/logging", 501),
        ("POST", "/v2/models/car-loan/generate", 501),
    ],
)
async def test_errors_are_the_protocols(refusing: Refusing, method: str, path: str, status: int) -> None:
    answer = await refusing.client.request(method, path)

    assert answer.status_code == status
    read_error(answer)
    assert ("allow" in answer.headers) == (status == 405)


@shared_loop
async def test_errors_elsewhere_stay_problems(refusing: Refusing) -> None:
    assert (await refusing.client.get("/v2x")).headers["content-type"] == "application/problem+json"


@shared_loop
async def test_models_do_not_come_with_a_request(refusing: Refusing) -> None:
    answer = await refusing.post("/v2/repository/models/car-loan/load", {"parameters": {"config": "{}"}})

    assert answer.status_code == 501
    read_error(answer)


@shared_loop
@pytest.mark.parametrize("path", ["index", "models/car-loan/load", "models/car-loan/unload"])
async def test_repository_requests_that_are_no_json_are_400(refusing: Refusing, path: str) -> None:
    answer = await refusing.post(f"/v2/repository/{path}", b"[")

    assert answer.status_code == 400
    read_error(answer)
