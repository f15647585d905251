"""Bodies that /labels refuses: status, pointer and code of each, and that nothing is written."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from tests.conftest import OpenClient
from tests.support.answers import JSON_HEADERS, NDJSON_HEADERS, count_written, label, predict, read_problem
from tests.support.refusing import Refusing, open_refusing, shared_loop

ID = b'"prediction_id": "01a20831-fa9f-756f-95c6-2c0bc96d68b3"'
GOOD = b'{"external_id": "a", "label": 1}'
DIGITS = b"9" * 5_000
NESTED = b"[" * 100_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with the demo model and default settings, for all tests of this module."""
    async with open_refusing(postgres, tmp_path_factory.mktemp("data")) as opened:
        yield opened


MALFORMED = {
    "empty": b"",
    "truncated": b"{" + ID + b', "label": 1',
    "nan": b"{" + ID + b', "label": NaN}',
    "infinity": b"{" + ID + b', "label": Infinity}',
    "lone-surrogate": rb'{"external_id": "\udc00", "label": 1}',
    "utf-16": GOOD.decode().encode("utf-16"),
    "byte-order-mark": b"\xef\xbb\xbf" + GOOD,
    "latin-1": b'{"external_id": "\xe9", "label": 1}',
    "nested": b'{"labels": ' + NESTED,
    "two-lines": GOOD + b"\n" + GOOD,
}


@shared_loop
@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in MALFORMED.items()])
async def test_labels_answers_400_when_the_body_is_not_json(refusing: Refusing, body: bytes) -> None:
    answer = await refusing.post("/labels", body)

    assert answer.status_code == 400
    assert read_problem(answer) == []


UNACCEPTABLE: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "null": (b"null", [("", "wrong_type")]),
    "array": (b"[" + GOOD + b"]", [("", "wrong_type")]),
    "no-member": (b"{}", [("", "one_key"), ("/label", "missing_field")]),
    "no-key": (b'{"label": 1}', [("", "one_key")]),
    "null-keys": (b'{"prediction_id": null, "external_id": null, "label": 1}', [("", "one_key")]),
    "both-keys": (b"{" + ID + b', "external_id": "a", "label": 1}', [("", "one_key")]),
    "no-label": (b"{" + ID + b"}", [("/label", "missing_field")]),
    "unknown-member": (b"{" + ID + b', "label": 1, "lable": 1}', [("", "unknown_field")]),
    "id-not-a-uuid": (b'{"prediction_id": "17", "label": 1}', [("/prediction_id", "invalid")]),
    "id-number": (b'{"prediction_id": 17, "label": 1}', [("/prediction_id", "wrong_type")]),
    "external-id-number": (b'{"external_id": 17, "label": 1}', [("/external_id", "wrong_type")]),
    "external-id-nul": (rb'{"external_id": "\u0000", "label": 1}', [("/external_id", "not_storable")]),
    "external-id-201": (b'{"external_id": "%s", "label": 1}' % (b"x" * 201), [("/external_id", "out_of_range")]),
    "label-bool": (b"{" + ID + b', "label": true}', [("/label", "wrong_type")]),
    "label-array": (b"{" + ID + b', "label": [1]}', [("/label", "wrong_type")]),
    "label-fraction": (b"{" + ID + b', "label": 0.5}', [("/label", "wrong_type")]),
    "label-nul": (b"{" + ID + rb', "label": "1\u0000"}', [("/label", "not_storable")]),
    "label-201": (b"{" + ID + b', "label": "%s"}' % (b"x" * 201), [("/label", "out_of_range")]),
    "label-1e400": (b"{" + ID + b', "label": 1e400}', [("/label", "out_of_range")]),
    "label-1e308": (b"{" + ID + b', "label": 1e308}', [("/label", "out_of_range")]),
    "label-400-digits": (b"{" + ID + b', "label": %s}' % (b"9" * 400), [("/label", "out_of_range")]),
    "label-5000-digits": (b"{" + ID + b', "label": %s}' % DIGITS, [("/label", "out_of_range")]),
    "time-without-offset": (
        b"{" + ID + b', "label": 1, "observed_at": "2026-01-01T00:00:00"}',
        [("/observed_at", "wrong_type")],
    ),
    "time-text": (b"{" + ID + b', "label": 1, "observed_at": "yesterday"}', [("/observed_at", "invalid")]),
    "time-number": (b"{" + ID + b', "label": 1, "observed_at": 1700000000}', [("/observed_at", "wrong_type")]),
    "time-of-year-9999": (
        b"{" + ID + b', "label": 1, "observed_at": "9999-12-31T23:59:59-14:00"}',
        [("/observed_at", "in_the_future")],
    ),
    "labels-null": (b'{"labels": null}', [("/labels", "wrong_type")]),
    "labels-object": (b'{"labels": ' + GOOD + b"}", [("/labels", "wrong_type")]),
    "labels-and-label": (b'{"labels": [' + GOOD + b'], "label": 1}', [("", "unknown_field")]),
    "labels-second-wrong": (
        b'{"labels": [' + GOOD + b', {"external_id": "b", "label": true}]}',
        [("/labels/1/label", "wrong_type")],
    ),
    "labels-two-wrong": (
        b'{"labels": [{"external_id": "b"}, ' + GOOD + rb', {"external_id": "\u0000", "label": 1}]}',
        [("/labels/0/label", "missing_field"), ("/labels/2/external_id", "not_storable")],
    ),
}


@shared_loop
@pytest.mark.parametrize(("body", "errors"), [pytest.param(*case, id=name) for name, case in UNACCEPTABLE.items()])
async def test_labels_answers_422_and_points_at_the_fault_when_json_is_unacceptable(
    refusing: Refusing, body: bytes, errors: list[tuple[str, str]]
) -> None:
    answer = await refusing.post("/labels", body)

    assert answer.status_code == 422
    assert read_problem(answer) == errors


@shared_loop
async def test_labels_answers_422_when_observed_before_the_calendar_begins_in_utc(refusing: Refusing) -> None:
    body = {"external_id": "a", "label": 1, "observed_at": "0001-01-01T00:00:00+14:00"}

    answer = await refusing.post("/labels", body)

    assert answer.status_code == 422
    assert [pointer for pointer, _ in read_problem(answer)] == ["/observed_at"]


@shared_loop
@pytest.mark.parametrize("body", [b'{"labels": []}', b""], ids=["json", "ndjson"])
async def test_labels_answers_422_when_the_batch_is_empty(refusing: Refusing, body: bytes) -> None:
    answer = await refusing.post("/labels", body, headers=JSON_HEADERS if body else NDJSON_HEADERS)

    assert answer.status_code == 422
    assert [code for _, code in read_problem(answer)] == ["batch_size"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b'{"labels": [' + b",".join([GOOD] * 4) + b"]}", JSON_HEADERS), (b"\n".join([GOOD] * 4), NDJSON_HEADERS)],
    ids=["json", "ndjson"],
)
async def test_labels_answers_422_when_the_batch_is_over_max_batch_rows(
    open_client: OpenClient, connection: asyncpg.Connection, body: bytes, headers: dict[str, str]
) -> None:
    async with open_client(MAX_BATCH_ROWS="3") as client:
        answer = await client.post("/labels", content=body, headers=headers)

    assert answer.status_code == 422
    assert [code for _, code in read_problem(answer)] == ["batch_size"]
    assert await count_written(connection) == 0


LINES: dict[str, tuple[bytes, int, list[tuple[str, str]]]] = {
    "not-json": (b"{bad}", 400, []),
    "truncated": (b'{"external_id": "b"', 400, []),
    "byte-order-mark": (b"\xef\xbb\xbf" + GOOD, 400, []),
    "nested": (NESTED, 400, []),
    "array": (b"[]", 422, [("/2", "wrong_type")]),
    "no-label": (b'{"external_id": "b"}', 422, [("/2/label", "missing_field")]),
    "label-nul": (rb'{"external_id": "b", "label": "\u0000"}', 422, [("/2/label", "not_storable")]),
    "many-in-a-line": (b'{"labels": [' + GOOD + b"]}", 422, [("/2", "unknown_field")]),
}


@shared_loop
@pytest.mark.parametrize(("line", "status", "errors"), [pytest.param(*case, id=name) for name, case in LINES.items()])
async def test_labels_refuses_all_lines_and_names_the_third_when_it_is_wrong(
    refusing: Refusing, line: bytes, status: int, errors: list[tuple[str, str]]
) -> None:
    body = b"\n".join([GOOD, b"", line, GOOD, b""])

    answer = await refusing.post("/labels", body, headers=NDJSON_HEADERS)

    assert answer.status_code == status
    assert read_problem(answer) == errors
    assert "line 3: " in answer.json()["detail"]


async def test_labels_takes_every_line_when_lines_end_in_crlf_and_some_are_blank(client: httpx2.AsyncClient) -> None:
    body = b"\r\n".join([GOOD, b"", GOOD.replace(b'"a"', b'"b"'), b""])

    answer = await client.post("/labels", content=body, headers={"content-type": "application/x-ndjson; charset=utf-8"})

    assert answer.status_code == 200
    assert (answer.json()["received"], answer.json()["pending"]) == (2, 2)


@pytest.mark.parametrize(("ahead", "status"), [(timedelta(minutes=4), 200), (timedelta(minutes=6), 422)])
async def test_labels_tolerates_five_minutes_when_observed_in_the_future(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, ahead: timedelta, status: int
) -> None:
    prediction_id = (await predict(client))["prediction_id"]
    observed_at = (datetime.now(UTC) + ahead).astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()

    answer = await client.post("/labels", json={"prediction_id": prediction_id, "label": 1, "observed_at": observed_at})

    assert answer.status_code == status
    assert await connection.fetchval("SELECT count(*) FROM prediction_label") == (status == 200)


@shared_loop
@pytest.mark.parametrize(
    "body",
    [
        {"prediction_id": "s3cret", "label": 1},
        {"external_id": "s3cret\0", "label": 1},
        {"external_id": "a", "label": "s3cret\0"},
        {"external_id": "a", "label": ["s3cret"]},
        {"external_id": "a", "label": 1, "observed_at": "s3cret"},
    ],
    ids=["prediction-id", "external-id", "label", "label-array", "observed-at"],
)
async def test_labels_does_not_repeat_the_value_when_refused(refusing: Refusing, body: dict[str, object]) -> None:
    answer = await refusing.post("/labels", body)

    assert answer.status_code == 422
    assert "s3cret" not in answer.text


async def test_labels_stores_text_verbatim_when_it_is_sql(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    sql = "'; DROP TABLE key_label; --"

    counts = await label(client, external_id=sql, label=sql)

    assert counts["pending"] == 1
    row = await connection.fetchrow("SELECT external_id, label FROM key_label")
    assert row is not None
    assert tuple(row) == (sql, sql)
