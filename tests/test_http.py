"""What holds for every request, whatever its resource: ids, methods, media types, sizes, paths."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from tests.conftest import OpenClient
from tests.support.answers import JSON_HEADERS, NDJSON_HEADERS, count_written, pick, predict, read_problem, scrape
from tests.support.processes import Server, wait_until
from tests.support.refusing import Refusing, open_refusing, shared_loop

BODIES = {"/predict": b'{"features": [1,2,3,4,5]}', "/labels": b'{"external_id": "a", "label": 1}'}
"""A valid body for each path that takes one."""

LIMIT = 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with the smallest bodies that can be set, for all tests of this module."""
    async with open_refusing(postgres, tmp_path_factory.mktemp("data"), MAX_BODY_BYTES=str(LIMIT)) as opened:
        yield opened


@shared_loop
async def test_request_id_is_generated_when_none_is_sent(refusing: Refusing) -> None:
    answers = [await refusing.client.get("/health/live") for _ in range(2)]

    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert {len(one) for one in ids} == {32}


@shared_loop
@pytest.mark.parametrize(
    "sent",
    ["a", "01a20831-fa9f-756f-95c6-2c0bc96d68b3", "root=1-67891233:abc_def/+=@.", "x" * 128],
    ids=["short", "uuid", "signs", "128"],
)
async def test_request_id_is_taken_over_when_sane(refusing: Refusing, sent: str) -> None:
    answer = await refusing.client.post("/predict", content=b"", headers={**JSON_HEADERS, "x-request-id": sent})

    assert answer.headers.get_list("x-request-id") == [sent]
    assert answer.json()["instance"] == sent


@shared_loop
@pytest.mark.parametrize(
    "sent",
    [b"", b"a b", b"x" * 129, b"\xc3\xa9", b"<script>", b'"quoted"', b"a\tb", b"a;b"],
    ids=["empty", "blank", "129", "not-ascii", "markup", "quotes", "tab", "semicolon"],
)
async def test_request_id_is_replaced_when_not_sane(refusing: Refusing, sent: bytes) -> None:
    answer = await refusing.client.get("/health/live", headers=[(b"x-request-id", sent)])

    (replaced,) = answer.headers.get_list("x-request-id")
    assert replaced.isalnum()
    assert replaced.encode() != sent


@shared_loop
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "INVENTED"])
@pytest.mark.parametrize("path", BODIES)
async def test_another_method_is_answered_405_with_allow_when_only_post_is_taken(
    refusing: Refusing, path: str, method: str
) -> None:
    answer = await refusing.client.request(method, path)

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.headers["content-type"] == "application/problem+json"
    if method != "HEAD":
        assert read_problem(answer) == []


@shared_loop
@pytest.mark.parametrize(
    "path", ["/predictions", "/predictions/1", "/quality", "/models", "/models/m/versions/1", "/health", "/metrics"]
)
async def test_post_is_answered_405_with_allow_when_a_path_is_only_read(refusing: Refusing, path: str) -> None:
    answer = await refusing.post(path, b"{}")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert read_problem(answer) == []


@shared_loop
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", ""],
)
async def test_a_body_is_answered_415_when_its_type_is_not_json(
    refusing: Refusing, path: str, content_type: str
) -> None:
    answer = await refusing.post(path, BODIES[path], headers={"content-type": content_type})

    assert answer.status_code == 415
    assert read_problem(answer) == []


@shared_loop
async def test_predict_answers_415_when_the_body_is_ndjson(refusing: Refusing) -> None:
    answer = await refusing.post("/predict", BODIES["/predict"], headers=NDJSON_HEADERS)

    assert answer.status_code == 415
    assert read_problem(answer) == []


@shared_loop
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "identity, gzip", "unheard-of"])
async def test_a_body_is_answered_415_when_it_is_encoded(refusing: Refusing, path: str, encoding: str) -> None:
    answer = await refusing.post(path, BODIES[path], headers={**JSON_HEADERS, "content-encoding": encoding})

    assert answer.status_code == 415
    assert read_problem(answer) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "Application/JSON"},
        {"content-type": "application/json", "content-encoding": "identity"},
    ],
    ids=["charset", "upper-case", "identity"],
)
async def test_a_body_is_taken_when_its_type_is_json_spelt_otherwise(
    client: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await client.post("/predict", content=BODIES["/predict"], headers=headers)

    assert answer.status_code == 200


@shared_loop
@pytest.mark.parametrize("path", BODIES)
async def test_a_body_is_answered_413_when_its_declared_length_is_over_the_limit(refusing: Refusing, path: str) -> None:
    answer = await refusing.post(path, BODIES[path].ljust(LIMIT + 1))

    assert answer.request.headers["content-length"] == str(LIMIT + 1)
    assert answer.status_code == 413
    assert read_problem(answer) == []


@shared_loop
@pytest.mark.parametrize("path", BODIES)
async def test_a_body_is_answered_413_when_it_is_streamed_over_the_limit(refusing: Refusing, path: str) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield BODIES[path]
        for _ in range(LIMIT):
            yield b" "

    before = await count_written(refusing.connection)
    answer = await refusing.client.post(path, content=stream(), headers=JSON_HEADERS)

    assert "content-length" not in answer.request.headers
    assert answer.status_code == 413
    assert read_problem(answer) == []
    assert await count_written(refusing.connection) == before


async def test_a_body_is_taken_when_it_is_as_long_as_the_limit(open_client: OpenClient) -> None:
    async with open_client(MAX_BODY_BYTES=str(LIMIT)) as client:
        answer = await client.post("/predict", content=BODIES["/predict"].ljust(LIMIT), headers=JSON_HEADERS)

    assert answer.status_code == 200


@shared_loop
@pytest.mark.parametrize(
    "path",
    ["/none", "/predict/", "/labels/", "/predictions/", "/health/", "/metrics/", "/PREDICT", "/predict/x", "//predict"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_answered_404_without_a_redirect_when_asked_for(
    refusing: Refusing, path: str, method: str
) -> None:
    answer = await refusing.client.request(method, "http://test" + path)

    assert answer.status_code == 404
    assert "location" not in answer.headers
    assert read_problem(answer) == []


@shared_loop
async def test_routes_in_metrics_are_templates_when_paths_are_made_up(refusing: Refusing) -> None:
    before = await scrape(refusing.client)

    await refusing.client.get("/made-up/17")
    await refusing.client.get("/predictions/made-up-17")
    await refusing.client.request("INVENTED", "/predict")

    after = await scrape(refusing.client)

    def moved(**labels: str) -> float:
        return pick(after, "http_requests_total", **labels) - pick(before, "http_requests_total", **labels)

    assert moved(method="GET", route="unmatched", status="404") == 1
    assert moved(method="GET", route="/predictions/{prediction_id}", status="422") == 1
    assert moved(method="OTHER", route="/predict", status="405") == 1
    assert not [value for _, labels in after for _, value in labels if "made-up" in value or value == "INVENTED"]


@pytest.mark.parametrize(
    ("table", "method", "path"),
    [
        ("prediction_log", "POST", "/predict"),
        ("prediction_log", "POST", "/labels"),
        ("prediction_label", "GET", "/predictions"),
        ("prediction_label_history", "GET", "/predictions/{}"),
        ("prediction_label", "GET", "/quality?since=2024-05-01T00:00:00Z&until=2024-05-02T00:00:00Z"),
        ("quality_history", "GET", "/quality/history?model=car-loan&version=1&window=1h"),
    ],
    ids=["predict", "labels", "predictions", "prediction", "quality", "history"],
)
async def test_the_answer_is_503_with_retry_after_when_postgresql_fails(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, table: str, method: str, path: str
) -> None:
    prediction_id = (await predict(client))["prediction_id"]
    await connection.execute(f"ALTER TABLE {table} RENAME TO gone")

    answer = await client.request(
        method, path.format(prediction_id), content=BODIES.get(path, b""), headers=JSON_HEADERS
    )

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert read_problem(answer) == []
    assert table not in answer.text


async def test_a_client_that_goes_in_the_middle_of_its_body_is_no_error_of_the_server(server: Server) -> None:
    await server.start()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nX-Request-Id: gone\r\n\r\n1\r\n{\r\n"
    )
    await writer.drain()

    writer.close()

    async with httpx2.AsyncClient(base_url=server.url) as client:
        samples = await wait_until(lambda: _scrape_with_route(client, "/predict"))
    failed = [value for (_, labels), value in samples.items() if ("status", "500") in labels]
    assert failed
    assert not any(failed)
    assert b"Traceback" not in server.log


async def _scrape_with_route(
    client: httpx2.AsyncClient, route: str
) -> dict[tuple[str, frozenset[tuple[str, str]]], float] | None:
    samples = await scrape(client)
    return samples if any(value for (_, labels), value in samples.items() if ("route", route) in labels) else None
