"""GET /predictions/{id} and GET /predictions: rows as they were answered, filters, pages, parameters."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from app.prediction_log.record import make_prediction_ids
from app.quality.labels import take_labels
from tests.support.answers import BY_NAME, label, list_ids, predict, read_problem
from tests.support.records import make_label, make_record, register_demo, round_ms, store
from tests.support.refusing import Refusing, open_refusing, shared_loop

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)
"""Yesterday's, so that rows before and after it are in the past and in one partition."""

Six = tuple[httpx2.AsyncClient, dict[str, str]]
"""A client of an application with the rows a to f, and their letters by id."""

ROW_MEMBERS = {
    *("prediction_id", "created_at", "model", "model_version", "prediction", "score", "probabilities", "features"),
    *("external_id", "request_id", "role", "label", "erased_at"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reading(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with the demo model, for tests that write nothing."""
    async with open_refusing(postgres, tmp_path_factory.mktemp("data")) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def six(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Six]:
    """The application with six rows, for tests that write nothing."""
    async with open_refusing(postgres, tmp_path_factory.mktemp("data")) as opened:
        yield opened.client, await store_six(opened.connection)


async def store_minutes(connection: asyncpg.Connection, count: int) -> list[str]:
    """Store one row a minute from NOON on; return their ids, newest first."""
    records = [make_record(NOON + timedelta(minutes=minute)) for minute in range(count)]
    await store(connection, *records)
    return [str(record.prediction_id) for record in reversed(records)]


async def test_prediction_is_the_row_as_answered_when_it_has_no_label(client: httpx2.AsyncClient) -> None:
    sent = {"features": BY_NAME, "external_id": "order-17"}
    answered = (await client.post("/predict", json=sent, headers={"x-request-id": "req-1"})).json()

    row = (await client.get(f"/predictions/{answered['prediction_id']}")).json()

    created_at = datetime.fromisoformat(row.pop("created_at"))
    assert round_ms(created_at) == uuid.UUID(answered["prediction_id"]).int >> 80
    assert row == {
        **answered,
        "features": BY_NAME,
        "external_id": "order-17",
        "request_id": "req-1",
        "role": "live",
        "label": None,
        "label_history": [],
        "erased_at": None,
    }


async def test_prediction_shows_the_newest_label_and_every_one_in_order_of_arrival(client: httpx2.AsyncClient) -> None:
    prediction_id = (await predict(client))["prediction_id"]
    observed = [(NOON + timedelta(hours=hour)).isoformat().replace("+00:00", "Z") for hour in range(3)]
    for value, observed_at in ((1, observed[1]), ("0", observed[2]), (1, observed[0])):
        await label(client, prediction_id=prediction_id, label=value, observed_at=observed_at)

    row = (await client.get(f"/predictions/{prediction_id}")).json()

    assert set(row) == ROW_MEMBERS | {"label_history"}
    assert set(row["label"]) == {"label", "observed_at", "received_at"}
    assert (row["label"]["label"], row["label"]["observed_at"]) == (0, observed[2])
    assert [(one["label"], one["observed_at"], one["outcome"]) for one in row["label_history"]] == [
        (1, observed[1], "new"),
        (0, observed[2], "corrected"),
        (1, observed[0], "unchanged"),
    ]


async def test_prediction_has_no_label_but_its_history_when_it_was_withdrawn(client: httpx2.AsyncClient) -> None:
    prediction_id = (await predict(client))["prediction_id"]
    await label(client, prediction_id=prediction_id, label=1)
    await label(client, prediction_id=prediction_id, label=None)

    row = (await client.get(f"/predictions/{prediction_id}")).json()

    assert row["label"] is None
    assert [(one["label"], one["outcome"]) for one in row["label_history"]] == [(1, "new"), (None, "withdrawn")]


async def test_prediction_is_answered_404_that_says_so_when_it_is_not_stored(client: httpx2.AsyncClient) -> None:
    (prediction_id,) = make_prediction_ids(round_ms(datetime.now(UTC)), 1)

    answer = await client.get(f"/predictions/{prediction_id}")

    assert answer.status_code == 404
    assert read_problem(answer) == []
    assert "stored" in answer.json()["detail"]
    assert str(prediction_id) not in answer.text


@shared_loop
@pytest.mark.parametrize("text", ["17", "s3cret", "01a20831-fa9f-756f-95c6", "a" * 31 + "%00"])
async def test_prediction_is_answered_422_when_the_id_is_no_uuid(reading: Refusing, text: str) -> None:
    answer = await reading.client.get(f"/predictions/{text}")

    assert answer.status_code == 422
    assert [code for _, code in read_problem(answer)] == ["wrong_type"]
    assert "s3cret" not in answer.text


@shared_loop
async def test_prediction_does_not_blame_the_body_when_the_id_in_the_path_is_no_uuid(reading: Refusing) -> None:
    answer = await reading.client.get("/predictions/17")

    assert "body" not in answer.json()["detail"]


async def test_predictions_are_newest_first_when_nothing_is_asked_for(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    ids = await store_minutes(connection, 3)

    body = (await client.get("/predictions")).json()

    assert set(body) == {"predictions", "next"}
    assert body["next"] is None
    assert [set(row) for row in body["predictions"]] == [ROW_MEMBERS] * 3
    assert [row["prediction_id"] for row in body["predictions"]] == ids


async def test_predictions_are_an_empty_page_when_nothing_is_stored(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/predictions")

    assert answer.json() == {"predictions": [], "next": None}


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 11], ids=lambda limit: f"limit-{limit}")
async def test_pages_give_every_row_once_when_walked_while_rows_arrive(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, limit: int
) -> None:
    ids = await store_minutes(connection, 10)

    walked: list[str] = []
    parameters: dict[str, str | int] = {"limit": limit}
    pages = 0
    while parameters.get("cursor", "first") is not None:
        body = (await client.get("/predictions", params=parameters)).json()
        walked += [row["prediction_id"] for row in body["predictions"]]
        parameters["cursor"] = body["next"]
        pages += 1
        await predict(client)  # newer than all pages that are still to come

    assert walked == ids
    assert pages == -(-10 // limit)


async def test_pages_give_every_row_once_when_rows_share_their_instant(client: httpx2.AsyncClient) -> None:
    ids = [
        row["prediction_id"] for row in (await predict(client, instances=[list(BY_NAME.values())] * 5))["predictions"]
    ]

    first = (await client.get("/predictions", params={"limit": 3})).json()
    second = await list_ids(client, limit=3, cursor=first["next"])

    assert [row["prediction_id"] for row in first["predictions"]] + second == ids[::-1]


@shared_loop
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, "fedcba"),
        ({"model": "car-loan"}, "fedca"),
        ({"model": "other"}, "b"),
        ({"model": "nobody"}, ""),
        ({"version": "1"}, "fedcba"),
        ({"version": "2"}, ""),
        ({"class": "0"}, "ec"),
        ({"class": "2"}, ""),
        ({"labelled": "true"}, "ca"),
        ({"labelled": "false"}, "fedb"),
        ({"external_id": "key"}, "fd"),
        ({"external_id": "key' OR 1=1 --"}, ""),
        ({"since": "12:02"}, "fedc"),
        ({"until": "12:02"}, "ba"),
        ({"since": "12:01", "until": "12:03"}, "cb"),
        ({"since": "12:03", "until": "12:01"}, ""),
        ({"class": "0", "labelled": "true", "since": "12:00", "external_id": "key"}, ""),
        ({"class": "1", "external_id": "key", "until": "12:05", "model": "car-loan"}, "d"),
    ],
    ids=str,
)
async def test_predictions_are_those_that_fit_when_filtered(
    six: Six, parameters: dict[str, str], expected: str
) -> None:
    client, letters = six
    for name in parameters.keys() & {"since", "until"}:
        parameters = {**parameters, name: f"{NOON:%Y-%m-%d}T{parameters[name]}:00Z"}

    found = await list_ids(client, **parameters)

    assert "".join(letters[prediction_id] for prediction_id in found) == expected


async def store_six(connection: asyncpg.Connection) -> dict[str, str]:
    """Store rows a to f, one a minute from NOON on; return their letters by id.

    b is another model's, c and e are of class 0, a and c are labelled, e's label was withdrawn, d and f share a key.
    """
    await register_demo(connection, "other")
    records = {
        letter: make_record(
            NOON + timedelta(minutes="abcdef".index(letter)),
            predicted="0" if letter in "ce" else "1",
            external_id="key" if letter in "df" else None,
            model="other" if letter == "b" else "car-loan",
        )
        for letter in "abcdef"
    }
    await store(connection, *records.values())
    labels = [("a", "1", 0), ("c", "1", 0), ("e", "1", 0), ("e", None, 1)]
    await take_labels(
        connection,
        [
            make_label(records[letter].prediction_id, value, NOON + timedelta(hours=hour))
            for letter, value, hour in labels
        ],
    )
    return {str(record.prediction_id): letter for letter, record in records.items()}


@pytest.mark.parametrize("limit", [1, 1000])
async def test_limit_is_taken_when_at_its_bounds(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, limit: int
) -> None:
    ids = await store_minutes(connection, 60)

    assert await list_ids(client, limit=limit) == ids[:limit]


async def test_limit_is_fifty_when_none_is_given(client: httpx2.AsyncClient, connection: asyncpg.Connection) -> None:
    ids = await store_minutes(connection, 60)

    assert await list_ids(client) == ids[:50]


@shared_loop
@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ("limit=0", "?limit", "invalid"),
        ("limit=1001", "?limit", "invalid"),
        ("limit=-1", "?limit", "invalid"),
        ("limit=ten", "?limit", "invalid"),
        ("limit=", "?limit", "invalid"),
        ("limit=" + "9" * 5_000, "?limit", "invalid"),
        ("cursor=17", "?cursor", "invalid"),
        ("labelled=maybe", "?labelled", "invalid"),
        ("since=yesterday", "?since", "invalid"),
        ("since=2026-01-01T00:00:00", "?since", "invalid"),
        ("since=nan", "?since", "invalid"),
        ("since=1e300", "?since", "invalid"),
        ("until=0.5", "?until", "invalid"),
        ("until=1767225600", "?until", "invalid"),
        ("until=2026-13-01T00:00:00Z", "?until", "invalid"),
        ("since=0001-01-01T00:00:00%2B14:00", "?since", "invalid"),
        ("until=9999-12-31T23:59:59-14:00", "?until", "invalid"),
        ("models=car-loan", "?models", "unknown_parameter"),
        ("Model=car-loan", "?Model", "unknown_parameter"),
        ("predicted_class=1", "?predicted_class", "unknown_parameter"),
        ("limit=1&limit=2", "?limit", "repeated_parameter"),
        ("model=car-loan&model=car-loan", "?model", "repeated_parameter"),
        ("external_id=a%00b", "?external_id", "not_storable"),
    ],
    ids=lambda text: text[:40],
)
async def test_predictions_are_refused_when_a_parameter_is_wrong(
    reading: Refusing, query: str, pointer: str, code: str
) -> None:
    answer = await reading.client.get(f"/predictions?{query}")

    assert answer.status_code == 422
    assert read_problem(answer) == [(pointer, code)]


@shared_loop
@pytest.mark.parametrize(
    "query", ["limit=s3cret", "cursor=s3cret", "since=s3cret", "labelled=s3cret", "model=s3cret%00"]
)
async def test_predictions_do_not_repeat_the_value_when_refused(reading: Refusing, query: str) -> None:
    answer = await reading.client.get(f"/predictions?{query}")

    assert answer.status_code == 422
    assert "s3cret" not in answer.text
