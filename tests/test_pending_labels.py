"""Labels that arrive before their prediction is stored: applied later, tried ever more rarely, expired."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx2
import pytest
from prometheus_client import REGISTRY

from app.quality.label_queries import fetch_history
from app.quality.label_sweep import sweep_pending
from app.quality.labels import Outcome, take_labels
from tests.support.processes import wait_until
from tests.support.records import count_rows, make_label, make_record, register_demo, store

Sweep = Counter[Outcome]


@pytest.fixture(autouse=True)
async def version(connection: asyncpg.Connection) -> None:
    """The version that the predictions are of, known to the database."""
    await register_demo(connection)


async def sweep(connection: asyncpg.Connection, age: timedelta = timedelta(0)) -> Sweep:
    """Sweep as the job does, every pending label being due, and older than it was by `age`."""
    await connection.execute(
        "UPDATE pending_label SET next_try_at = now(), received_at = received_at - $1::interval", age
    )
    return await sweep_pending(connection)


async def read_label(connection: asyncpg.Connection, of: object) -> str | None:
    label: str | None = await connection.fetchval("SELECT label FROM prediction_label WHERE prediction_id = $1", of)
    return label


async def test_pending_label_is_applied_by_the_job_when_its_row_is_stored(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    record = make_record()
    posted = await client.post("/labels", json={"prediction_id": str(record.prediction_id), "label": 0})

    await store(connection, record)

    async def is_labelled() -> bool:
        shown = (await client.get(f"/predictions/{record.prediction_id}")).json()
        return bool(shown["label"] and shown["label"]["label"] == 0)

    assert posted.json()["pending"] == 1
    await wait_until(is_labelled)
    assert await count_rows(connection, "pending_label") == 0


async def test_pending_label_is_found_by_external_id(connection: asyncpg.Connection) -> None:
    record = make_record(external_id="order-1")
    await take_labels(connection, [make_label("order-1", "0", datetime.now(UTC))])
    await store(connection, record)

    outcomes = await sweep(connection)

    assert outcomes == {"new": 1}
    assert await read_label(connection, record.prediction_id) == "0"


async def test_pending_label_keeps_the_time_of_its_arrival(connection: asyncpg.Connection) -> None:
    record, arrived = make_record(), datetime.now(UTC) - timedelta(hours=3)
    await take_labels(connection, [make_label(record.prediction_id, "0", arrived - timedelta(hours=1), arrived)])
    await store(connection, record)

    await sweep(connection)

    [event] = await fetch_history(connection, record.prediction_id)
    assert (event["observed_at"], event["received_at"]) == (arrived - timedelta(hours=1), arrived)


async def test_newest_pending_label_wins_when_several_wait(connection: asyncpg.Connection) -> None:
    record, now = make_record(), datetime.now(UTC)
    times = [now - timedelta(minutes=minutes) for minutes in (2, 1, 3)]
    for label, at in zip(("0", "1", "0"), times, strict=True):
        await take_labels(connection, [make_label(record.prediction_id, label, at, now)])
    await store(connection, record)

    outcomes = await sweep(connection)

    assert outcomes == {"new": 1, "corrected": 1, "unchanged": 1}
    assert await read_label(connection, record.prediction_id) == "1"


async def test_label_that_came_after_the_row_wins_when_a_pending_one_has_the_same_time(
    connection: asyncpg.Connection,
) -> None:
    record, noon = make_record(), datetime(2024, 5, 1, 12, tzinfo=UTC)
    await take_labels(connection, [make_label(record.prediction_id, "0", noon, noon + timedelta(seconds=1))])
    await store(connection, record)
    await take_labels(connection, [make_label(record.prediction_id, "1", noon, noon + timedelta(seconds=2))])

    outcomes = await sweep(connection)

    assert await read_label(connection, record.prediction_id) == "1"
    assert outcomes == {"unchanged": 1}


async def test_pending_label_is_rejected_when_the_stored_model_does_not_know_its_class(
    connection: asyncpg.Connection,
) -> None:
    record = make_record()
    await take_labels(connection, [make_label(record.prediction_id, "maybe", datetime.now(UTC))])
    await store(connection, record)

    outcomes = await sweep(connection)

    assert outcomes == {"rejected": 1}
    assert await count_rows(connection, "pending_label") == 0


@pytest.mark.parametrize(
    ("age", "outcomes"), [(timedelta(days=30, minutes=1), {"expired": 1}), (timedelta(days=30, minutes=-1), {})]
)
async def test_pending_label_expires_after_thirty_days(
    connection: asyncpg.Connection, age: timedelta, outcomes: dict[Outcome, int]
) -> None:
    arrived = datetime.now(UTC)
    await take_labels(connection, [make_label(make_record().prediction_id, "1", arrived)])

    swept = await sweep(connection, age)

    assert swept == outcomes
    assert await count_rows(connection, "pending_label") == 1 - len(outcomes)


async def test_pending_label_is_applied_when_its_row_comes_after_thirty_days(connection: asyncpg.Connection) -> None:
    record, arrived = make_record(), datetime.now(UTC)
    await take_labels(connection, [make_label(record.prediction_id, "1", arrived)])
    await store(connection, record)

    outcomes = await sweep(connection, timedelta(days=31))

    assert outcomes == {"new": 1}


@pytest.mark.parametrize(
    ("age", "pause"),
    [
        (timedelta(0), timedelta(seconds=1)),
        (timedelta(minutes=10), timedelta(minutes=5)),
        (timedelta(hours=1), timedelta(minutes=30)),
        (timedelta(days=10), timedelta(hours=1)),
    ],
)
async def test_pending_label_is_tried_more_rarely_with_age(
    connection: asyncpg.Connection, age: timedelta, pause: timedelta
) -> None:
    now = datetime.now(UTC)
    await take_labels(connection, [make_label(make_record().prediction_id, "1", now - age)])

    await sweep(connection)

    chosen = await connection.fetchval("SELECT next_try_at FROM pending_label") - now
    assert pause <= chosen < pause + timedelta(seconds=10)


async def test_pending_label_is_left_alone_until_it_is_due(connection: asyncpg.Connection) -> None:
    record = make_record()
    await take_labels(connection, [make_label(record.prediction_id, "1", datetime.now(UTC))])
    await connection.execute("UPDATE pending_label SET next_try_at = now() + interval '1 minute'")
    await connection.execute("ALTER TABLE prediction_log DISABLE TRIGGER call_labels")
    await store(connection, record)

    outcomes = await sweep_pending(connection)

    assert not outcomes
    assert await count_rows(connection, "pending_label") == 1


async def test_pending_label_is_applied_at_once_when_its_row_is_stored_before_its_next_try(
    connection: asyncpg.Connection,
) -> None:
    record = make_record()
    await take_labels(connection, [make_label(record.prediction_id, "1", datetime.now(UTC))])
    await connection.execute("UPDATE pending_label SET next_try_at = now() + interval '1 hour'")
    await store(connection, record)

    outcomes = await sweep_pending(connection)

    assert outcomes == {"new": 1}
    assert await count_rows(connection, "labelled_arrival") == 0


async def test_label_is_not_delayed_by_labels_of_unknown_predictions(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO pending_label (prediction_id, label, observed_at, received_at, next_try_at) "
        "SELECT gen_random_uuid(), '1', now(), now(), now() - interval '1 hour' FROM generate_series(1, 20000)"
    )
    record = make_record()
    await take_labels(connection, [make_label(record.prediction_id, "1", datetime.now(UTC))])
    await store(connection, record)

    outcomes = await sweep_pending(connection)

    assert outcomes == {"new": 1}


async def test_labels_of_the_job_are_counted_only_if_they_are_committed(connection: asyncpg.Connection) -> None:
    record = make_record()
    await take_labels(connection, [make_label(record.prediction_id, "0", datetime.now(UTC))])
    await store(connection, record)
    await connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'refused'; END $$"
    )
    await connection.execute("CREATE TRIGGER refuse BEFORE DELETE ON pending_label EXECUTE FUNCTION refuse()")
    before = count_new_labels()

    with pytest.raises(asyncpg.RaiseError):
        await sweep_pending(connection)

    assert await count_rows(connection, "prediction_label") == 0
    assert count_new_labels() == before


def count_new_labels() -> float:
    return REGISTRY.get_sample_value("model_labels_total", {"outcome": "new"}) or 0.0


async def test_label_waits_while_its_version_is_not_registered(connection: asyncpg.Connection) -> None:
    """A version that came while PostgreSQL was away is served before the database knows its classes."""
    record = make_record()
    await store(connection, record)
    await connection.execute("DELETE FROM model_version")

    taken = (await take_labels(connection, [make_label(record.prediction_id, "1", datetime.now(UTC))])).counts
    swept = await sweep(connection)
    await register_demo(connection)
    applied = await sweep(connection)

    assert (taken, swept, applied) == ({"pending": 1}, {}, {"new": 1})
    assert await read_label(connection, record.prediction_id) == "1"
