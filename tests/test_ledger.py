"""The triggers keep the ledger equal to a count of the rows, whatever is written and however often."""

import random
from datetime import UTC, datetime, timedelta

import asyncpg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.prediction_log.record import Record
from app.quality.labels import take_labels
from tests.support.ledger import assert_exact, count_cells, fold, read_ledger
from tests.support.records import insert_records, make_label, make_record, register_demo, store

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

SECOND = timedelta(seconds=1)


def make_records(count: int, *, seed: int = 0) -> list[Record]:
    """Rows of several minutes, models, roles, classes and scores."""
    chance = random.Random(seed)
    return [
        make_record(
            NOON + chance.uniform(0, 300) * SECOND,
            predicted=chance.choice("01"),
            role=chance.choice(("live", "live", "shadow")),
            model=chance.choice(("car-loan", "other")),
            score=chance.choice((0.0, 1.0, 0.29, chance.random())),
        )
        for _ in range(count)
    ]


@pytest.fixture(autouse=True)
async def versions(connection: asyncpg.Connection) -> None:
    await register_demo(connection)
    await register_demo(connection, model="other")


async def test_predictions_are_counted(connection: asyncpg.Connection) -> None:
    await store(connection, *make_records(300))

    ledger = await read_ledger(connection)

    assert sum(counts[0] for counts in ledger.values()) == 300
    assert {key[3] for key in ledger} == {"live", "shadow"}
    assert await read_ledger(connection, 60) == await count_cells(connection, 60)
    await assert_exact(connection)


async def test_replay_adds_nothing_and_a_mixed_batch_its_new_rows(connection: asyncpg.Connection) -> None:
    records = make_records(100)
    await store(connection, *records[:60])
    before = await connection.fetchval("SELECT count(*) FROM quality_delta")

    replayed = await insert_records(connection, records[:60])
    noted = await connection.fetchval("SELECT count(*) FROM quality_delta")
    mixed = await insert_records(connection, records[30:])

    assert (replayed, mixed) == (0, 40)
    assert noted == before
    await assert_exact(connection)


@pytest.mark.parametrize("commit", [True, False])
async def test_row_and_its_count_are_committed_together(connection: asyncpg.Connection, commit: bool) -> None:
    await store(connection, *make_records(1))
    transaction = connection.transaction()
    await transaction.start()
    await insert_records(connection, make_records(10, seed=1))
    await (transaction.commit() if commit else transaction.rollback())

    assert sum(counts[0] for counts in (await read_ledger(connection)).values()) == (11 if commit else 1)
    await assert_exact(connection)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(
    "labels",
    [
        [("1", 1)],
        [("1", 1), ("0", 2)],
        [("1", 1), ("1", 2)],
        [("1", 2), ("0", 1)],
        [("1", 1), (None, 2)],
        [("1", 1), (None, 2), ("0", 3)],
        [(None, 1)],
        [(None, 1), (None, 2)],
        [("1", 90_000)],
    ],
    ids=str,
)
async def test_label_is_counted_by_what_stands_in_the_end(
    connection: asyncpg.Connection, labels: list[tuple[str | None, int]], folded: bool
) -> None:
    records = make_records(3)
    await store(connection, *records)
    for label, seconds in labels:
        at = NOON + seconds * SECOND
        await take_labels(connection, [make_label(record.prediction_id, label, at) for record in records])
        if folded:
            await fold(connection)

    cells = await read_ledger(connection)

    standing = max(labels, key=lambda label: label[1])[0]
    counted = {key[6] for key in cells} - {None}
    assert counted == ({standing} if standing else set())
    await assert_exact(connection)


async def test_label_counts_in_the_minute_of_its_prediction(connection: asyncpg.Connection) -> None:
    record = make_record(NOON + 90 * SECOND)
    await store(connection, record)
    await take_labels(connection, [make_label(record.prediction_id, "0", NOON + timedelta(days=9))])

    cells = await read_ledger(connection, 60)

    assert {(key[0], key[6]) for key in cells} == {(NOON + 60 * SECOND, None), (NOON + 60 * SECOND, "0")}


async def test_label_that_is_deleted_no_longer_counts(connection: asyncpg.Connection) -> None:
    records = make_records(20)
    await store(connection, *records)
    await take_labels(connection, [make_label(record.prediction_id, "1", NOON) for record in records])

    await connection.execute("DELETE FROM prediction_label WHERE prediction_id = $1", records[0].prediction_id)

    assert sum(counts[0] for key, counts in (await read_ledger(connection)).items() if key[6]) == 19
    await assert_exact(connection)


async def test_label_of_a_prediction_that_is_not_stored_is_an_error(connection: asyncpg.Connection) -> None:
    await store(connection, make_record(NOON))
    statement = "INSERT INTO prediction_label (prediction_id, label, observed_at, received_at) VALUES ($1, '1', $2, $2)"

    with pytest.raises(asyncpg.CheckViolationError, match="label_has_a_stored_prediction"):
        await connection.execute(statement, make_record(NOON).prediction_id, NOON)


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_shuffled_repeated_and_corrected_labels_end_in_the_counts_of_labels_sent_once(
    connection: asyncpg.Connection, data: st.DataObject
) -> None:
    event = st.tuples(st.integers(0, 5), st.integers(0, 6), st.sampled_from(("0", "1", None)))
    events = data.draw(st.lists(event, min_size=1, max_size=20, unique_by=lambda event: event[:2]))
    chaotic = data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events), max_size=8))))
    size = data.draw(st.integers(1, 28))
    await connection.execute("TRUNCATE prediction_log, prediction_label, quality_delta, quality_bucket")
    records = make_records(6)
    await store(connection, *records)
    labels = [make_label(records[row].prediction_id, label, NOON + at * SECOND, NOON) for row, at, label in chaotic]

    for start in range(0, len(labels), size):
        await take_labels(connection, labels[start : start + size])

    newest = {row: (at, label) for row, at, label in sorted(events, key=lambda event: event[1])}
    in_the_end = await read_ledger(connection)
    await assert_exact(connection)
    await connection.execute("TRUNCATE prediction_label, prediction_label_history, quality_delta, quality_bucket")
    await connection.execute("TRUNCATE prediction_log")
    await insert_records(connection, records)
    once = [
        make_label(records[row].prediction_id, label, NOON + at * SECOND, NOON) for row, (at, label) in newest.items()
    ]
    await take_labels(connection, once)
    assert await read_ledger(connection) == in_the_end


async def test_bins_hold_the_scores_from_their_edges_on(connection: asyncpg.Connection) -> None:
    edges = np.arange(101) / 100
    scores = np.concatenate([edges, np.nextafter(edges, 2), np.nextafter(edges, -1)]).astype(np.float32).clip(0, 1)

    bins = await connection.fetchval(
        "SELECT array_agg(score_bin(score::real) ORDER BY at) "
        "FROM unnest($1::float8[]) WITH ORDINALITY AS s (score, at)",
        scores.astype(np.float64).tolist(),
    )

    for at, edge in enumerate(edges[:100]):
        assert ((scores.astype(np.float64) >= edge) == (np.array(bins) >= at)).all()


@pytest.mark.parametrize(("score", "as_if"), [(-0.5, 0.0), (1.5, 1.0), (float("inf"), 1.0), (float("nan"), 1.0)])
async def test_score_that_is_no_probability_counts_as_the_nearest(
    connection: asyncpg.Connection, score: float, as_if: float
) -> None:
    statement = "SELECT score_bin(s), score_billionths(s), score_square_billionths(s) FROM (SELECT $1::real) t (s)"

    assert await connection.fetchrow(statement, score) == await connection.fetchrow(statement, as_if)


async def test_writer_with_only_the_right_to_insert_is_counted(connection: asyncpg.Connection) -> None:
    await store(connection, make_record(NOON))
    await connection.execute("CREATE ROLE log_writer")
    try:
        await connection.execute("GRANT INSERT ON prediction_log TO log_writer; SET ROLE log_writer")
        stored = await insert_records(connection, make_records(10))
        await connection.execute("RESET ROLE")
        assert stored == 10
        await assert_exact(connection)
    finally:
        await connection.execute("RESET ROLE; DROP OWNED BY log_writer; DROP ROLE log_writer")


async def test_temporary_table_of_the_writer_is_not_taken_for_the_ledger(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TEMP TABLE quality_delta (LIKE public.quality_delta)")
    await store(connection, *make_records(5))

    counted = await connection.fetchval("SELECT sum(rows) FROM public.quality_delta")

    assert counted == 5


async def test_folded_ledger_equals_the_rows_in_every_span_that_is_kept(connection: asyncpg.Connection) -> None:
    now = datetime.now(UTC)
    ages = [timedelta(hours=hours) for hours in (0, 1, 3, 20, 100, 400, 4000)]
    await store(connection, *(make_record(now - age) for age in ages for _ in range(3)))

    await fold(connection)

    rows = await connection.fetch("SELECT span, sum(rows) AS rows FROM quality_bucket GROUP BY span ORDER BY span")
    assert [(row["span"], row["rows"]) for row in rows] == [(60, 9), (600, 12), (3600, 15), (21600, 18), (86400, 21)]


async def test_fold_removes_buckets_that_no_window_needs(connection: asyncpg.Connection) -> None:
    await store(connection, make_record(datetime.now(UTC)))
    await fold(connection)
    await connection.execute("UPDATE quality_bucket SET starts_at = starts_at - interval '26 hours' WHERE span < 3600")

    await fold(connection)

    spans = await connection.fetch("SELECT span FROM quality_bucket ORDER BY span")
    assert [row["span"] for row in spans] == [3600, 21600, 86400]
