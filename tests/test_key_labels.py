"""Labels under the client's own key: they count for every live prediction of the key, whatever comes first."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import httpx2
import pytest

from app.prediction_log.record import Record
from app.quality.label_sweep import sweep_pending
from app.quality.label_targets import KEY_PREDICTIONS, Label
from app.quality.labels import take_labels
from tests.support.records import count_rows, insert_records, make_label, make_record, register_demo, store

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
async def version(connection: asyncpg.Connection) -> None:
    """The version that the predictions are of, known to the database."""
    await register_demo(connection)


def make_records(number: int, key: str = "order-1") -> list[Record]:
    return [make_record(external_id=key) for _ in range(number)]


async def read_labels(connection: asyncpg.Connection) -> dict[UUID, str | None]:
    rows = await connection.fetch("SELECT prediction_id, label FROM prediction_label")
    return {row["prediction_id"]: row["label"] for row in rows}


async def test_label_holds_for_all_predictions_of_its_key(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    await store(connection, *make_records(150))

    answer = (await client.post("/labels", json={"external_id": "order-1", "label": 0})).json()

    assert (answer["new"], answer["predictions"]) == (1, 150)
    assert list((await read_labels(connection)).values()) == ["0"] * 150


async def test_counts_are_of_labels_and_of_predictions(connection: asyncpg.Connection) -> None:
    await store(connection, *make_records(3), *make_records(11, "order-2"))

    taken = await take_labels(connection, [make_label(key, "1", NOW) for key in ("order-1", "order-2", "nobody")])

    assert taken.counts == {"new": 2, "pending": 1}
    assert taken.predictions == 14


async def test_sweep_labels_the_rest_when_a_key_has_thousands_of_predictions(connection: asyncpg.Connection) -> None:
    await store(connection, *make_records(2 * KEY_PREDICTIONS + 100))

    taken = await take_labels(connection, [make_label("order-1", "1", NOW)])
    labelled = await count_rows(connection, "prediction_label")
    swept = await sweep_pending(connection)

    assert (taken.counts, taken.predictions, labelled) == ({"new": 1}, KEY_PREDICTIONS, KEY_PREDICTIONS)
    assert swept == {}
    assert await count_rows(connection, "prediction_label") == 2 * KEY_PREDICTIONS + 100


async def test_label_counts_for_a_prediction_that_is_stored_later(connection: asyncpg.Connection) -> None:
    [first, later] = make_records(2)
    await store(connection, first)
    await take_labels(connection, [make_label("order-1", "1", NOW)])
    await sweep_pending(connection)
    await store(connection, later)

    swept = await sweep_pending(connection)

    assert swept == {}  # the label was counted when it came
    assert await read_labels(connection) == {first.prediction_id: "1", later.prediction_id: "1"}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_newest_observation_counts_for_a_prediction_that_is_stored_later(
    connection: asyncpg.Connection, order: Sequence[int]
) -> None:
    labels = [make_label("order-1", label, NOW + timedelta(minutes=at)) for at, label in enumerate(("0", "0", "1"))]
    for at in order:
        await take_labels(connection, [labels[at]])
        await sweep_pending(connection)
    [record] = make_records(1)
    await store(connection, record)

    await sweep_pending(connection)

    assert await read_labels(connection) == {record.prediction_id: "1"}
    assert await count_rows(connection, "pending_label") == 0


async def test_withdrawal_counts_for_a_prediction_that_is_stored_later(connection: asyncpg.Connection) -> None:
    [record] = make_records(1)
    await take_labels(connection, [make_label("order-1", "1", NOW), make_label("order-1", None, NOW)])
    await store(connection, record)

    await sweep_pending(connection)

    assert await read_labels(connection) == {record.prediction_id: None}


async def test_the_later_label_of_a_request_has_arrived_later_under_the_same_key(
    connection: asyncpg.Connection,
) -> None:
    """The sweep applies them one by one in any order, and of equal times the later arrival counts."""
    given = [("order-1", "1"), ("order-2", "0"), ("order-1", None), ("order-1", "0")]
    await take_labels(connection, [make_label(key, text, NOW) for key, text in given])

    kept = await connection.fetch("SELECT external_id, label, observed_at, received_at FROM key_label")

    times = {(row["external_id"], row["label"]): (row["observed_at"], row["received_at"]) for row in kept}
    assert times["order-2", "0"] == (NOW, NOW)
    assert NOW == times["order-1", "1"][1] < times["order-1", None][1] < times["order-1", "0"][1]
    assert all(observed_at == received_at for observed_at, received_at in times.values())


@pytest.mark.parametrize(("days", "labelled"), [(29.9, 1), (30.1, 0)])
async def test_label_counts_for_predictions_of_the_thirty_days_after_it(
    connection: asyncpg.Connection, days: float, labelled: int
) -> None:
    await take_labels(connection, [make_label("order-1", "1", NOW - timedelta(days=40), NOW - timedelta(days=days))])
    await sweep_pending(connection)
    await store(connection, *make_records(1))

    await sweep_pending(connection)

    assert len(await read_labels(connection)) == labelled


async def test_label_is_removed_and_expired_when_it_has_met_no_prediction(connection: asyncpg.Connection) -> None:
    arrived = NOW - timedelta(days=30, hours=1, minutes=1)
    await take_labels(connection, [make_label("order-1", "1", arrived), make_label("nobody", "1", arrived)])
    await store(connection, *make_records(1))
    await connection.execute("UPDATE labelled_arrival SET stored_at = stored_at - interval '1 day'")

    first = await sweep_pending(connection)
    second = await sweep_pending(connection)

    assert (first, second) == ({"new": 1, "expired": 1}, {})
    assert await count_rows(connection, "key_label") == 0


async def test_label_is_not_for_a_shadow_prediction(connection: asyncpg.Connection) -> None:
    stored, later = (make_record(external_id="order-1", role="shadow") for _ in range(2))
    await store(connection, stored)

    taken = await take_labels(connection, [make_label("order-1", "1", NOW)])
    await store(connection, later)
    await sweep_pending(connection)

    assert taken.counts == {"pending": 1}
    assert await read_labels(connection) == {}


async def test_label_that_one_model_rejects_counts_for_the_other_one(connection: asyncpg.Connection) -> None:
    await register_demo(connection, "animals", ("cat", "dog"))
    loan, animal = make_record(external_id="order-1"), make_record(external_id="order-1", model="animals")
    await store(connection, loan)

    taken = await take_labels(connection, [make_label("order-1", "cat", NOW), make_label("order-1", "1", NOW)])
    await store(connection, animal)
    await sweep_pending(connection)

    assert taken.counts == {"rejected": 1, "new": 1}
    assert await read_labels(connection) == {loan.prediction_id: "1", animal.prediction_id: "cat"}


@pytest.mark.parametrize("is_stored_first", [True, False])
async def test_label_waits_while_the_version_of_a_prediction_is_not_registered(
    connection: asyncpg.Connection, is_stored_first: bool
) -> None:
    [record] = make_records(1)
    await connection.execute("DELETE FROM model_version")
    if is_stored_first:
        await store(connection, record)
    taken = await take_labels(connection, [make_label("order-1", "1", NOW)])
    await store(connection, record)

    early = await sweep_pending(connection)
    await register_demo(connection)
    await connection.execute("UPDATE labelled_arrival SET next_try_at = now()")
    late = await sweep_pending(connection)

    assert (taken.counts, early, late) == ({"pending": 1}, {}, {"new": 1})
    assert await read_labels(connection) == {record.prediction_id: "1"}


async def test_label_of_the_release_before_is_taken_over(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO pending_label (external_id, label, observed_at, received_at, next_try_at) "
        "VALUES ('order-1', '1', now(), now(), now() + interval '1 hour')"
    )
    [record] = make_records(1)
    await store(connection, record)

    swept = await sweep_pending(connection)

    assert swept == {"new": 1}
    assert await read_labels(connection) == {record.prediction_id: "1"}


async def test_repeated_labels_of_a_key_are_kept_once(connection: asyncpg.Connection) -> None:
    await store(connection, *make_records(1))
    for minute in range(5):
        await take_labels(connection, [make_label("order-1", "01"[minute % 2], NOW + timedelta(minutes=minute))])
        await sweep_pending(connection)

    kept = await connection.fetch("SELECT label, observed_at FROM key_label ORDER BY observed_at")

    assert [tuple(row) for row in kept] == [("1", NOW + timedelta(minutes=3)), ("0", NOW + timedelta(minutes=4))]


async def test_label_counts_for_a_prediction_whose_transaction_does_not_see_it(
    database_url: str, connection: asyncpg.Connection
) -> None:
    await store(connection, make_record())
    [record] = make_records(1)
    writer = await asyncpg.connect(database_url)
    try:
        async with writer.transaction():
            await insert_records(writer, [record])
            taken = await take_labels(connection, [make_label("order-1", "1", NOW)])
            during = await sweep_pending(connection)
            stages = await connection.fetch("SELECT stage FROM key_label")
    finally:
        await writer.close()
    await connection.execute("UPDATE key_label SET next_look_at = now()")
    after = await sweep_pending(connection)

    assert (taken.counts, during, after) == ({"pending": 1}, {}, {"new": 1})
    assert [row["stage"] for row in stages] == ["look"]
    assert await count_rows(connection, "labelled_arrival") == 0
    assert await connection.fetchval("SELECT stage FROM key_label") == "settled"


def find_winners(records: Sequence[Record], labels: Sequence[Label]) -> dict[UUID, str | None]:
    """The oracle: the newest observation under each prediction's key, of equal ones that which came last."""
    winners = {}
    for record in records:
        [*_, winner] = sorted(
            (label for label in labels if label.external_id == record.external_id),
            key=lambda label: (label.observed_at, label.received_at),
        )
        winners[record.prediction_id] = winner.label
    return winners


@pytest.mark.parametrize("seed", range(3))
async def test_newest_label_of_its_key_stands_when_labels_and_predictions_come_at_once(
    database_url: str, connection: asyncpg.Connection, seed: int
) -> None:
    """Writers of the log, of labels and two sweeps at the same time; half of the transactions stay open for a while."""
    chance = random.Random(seed)
    records = [make_record(external_id=f"order-{chance.randrange(12)}") for _ in range(240)]
    received = iter(range(10_000))
    labels = [
        make_label(
            f"order-{number % 12}",
            chance.choice(("0", "1", None)),
            NOW - timedelta(minutes=chance.randrange(20)),
            NOW + timedelta(milliseconds=next(received)),
        )
        for number in range(96)
    ]
    await store(connection, make_record(NOW))
    done = asyncio.Event()

    async def store_some(pool: asyncpg.Pool, mine: Sequence[Record]) -> None:
        for start in range(0, len(mine), 4):
            async with pool.acquire() as own, own.transaction():
                await insert_records(own, mine[start : start + 4])
                await own.fetchval("SELECT pg_sleep($1)", chance.choice((0, 0.02)))

    async def label_some(pool: asyncpg.Pool, mine: Sequence[Label]) -> None:
        for start in range(0, len(mine), 3):
            async with pool.acquire() as own:
                await take_labels(own, mine[start : start + 3])
                await own.fetchval("SELECT pg_sleep($1)", chance.choice((0, 0.02)))

    async def sweep(pool: asyncpg.Pool) -> None:
        while not done.is_set():
            async with pool.acquire() as own:
                await sweep_pending(own)

    async with asyncpg.create_pool(database_url, min_size=10, max_size=10) as pool:
        sweeps = [asyncio.create_task(sweep(pool)) for _ in range(2)]
        await asyncio.gather(
            *(store_some(pool, records[task::4]) for task in range(4)),
            *(label_some(pool, labels[task::4]) for task in range(4)),
        )
        done.set()
        await asyncio.gather(*sweeps)
    await connection.execute("UPDATE key_label SET next_look_at = now() WHERE next_look_at IS NOT NULL")
    await connection.execute("UPDATE labelled_arrival SET next_try_at = now()")  # those that were locked
    await sweep_pending(connection)

    assert await read_labels(connection) == find_winners(records, labels)
    assert await connection.fetchval("SELECT bool_and(stage = 'settled' AND NOT is_pending) FROM key_label")
    assert await count_rows(connection, "labelled_arrival") == 0
