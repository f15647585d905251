"""A look-up by id and a time range read only the partitions concerned, whichever kind of plan PostgreSQL chooses."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from app.prediction_log.queries import SELECT_BY_ID, SELECT_PAGE
from app.quality.export_queries import SELECT_ROWS
from app.quality.label_queries import APPEND_HISTORY, FETCH_HISTORY, FIND_BY_ID, UPSERT_LABELS, upsert_labels
from app.quality.ledger_queries import COUNT_PERIOD, FIND_DIFFERENCES
from tests.conftest import execute, with_database
from tests.support.plans import find_partitions_read, walk
from tests.support.records import make_record, register_demo, store

FIRST_DAY = datetime(2024, 5, 1, tzinfo=UTC)

DAYS, ROWS_PER_DAY = 30, 400

LAST_ID = UUID(int=2**128 - 1)

FILL = """
INSERT INTO prediction_label (prediction_id, label, observed_at, received_at)
    SELECT prediction_id, '1', created_at, created_at FROM prediction_log;
INSERT INTO prediction_label_history (prediction_id, label, observed_at, received_at, outcome)
    SELECT prediction_id, '1', created_at, created_at, 'new' FROM prediction_log;
ANALYZE
"""

READ_LOCKS = """
SELECT relation::regclass::text AS name FROM pg_locks
WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock' AND relation::regclass::text ~ '_[0-9]{8}$'
"""

PLANS = pytest.mark.parametrize("plan_mode", ["force_custom_plan", "force_generic_plan"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def month_url(postgres: str) -> AsyncIterator[str]:
    """The DSN of a database with a month of labelled rows; tests leave it as it is."""
    url = with_database(postgres, "month")
    await execute(postgres, "CREATE DATABASE month TEMPLATE template")
    connection = await asyncpg.connect(url)
    step = timedelta(days=1) / ROWS_PER_DAY
    await register_demo(connection)
    await store(connection, *(make_record(FIRST_DAY + number * step) for number in range(DAYS * ROWS_PER_DAY)))
    await connection.execute(FILL)
    await connection.close()
    yield url
    await execute(postgres, "DROP DATABASE month WITH (FORCE)")


@pytest.fixture
async def month(month_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to that database, in a transaction that is undone."""
    connection = await asyncpg.connect(month_url)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


async def find_id(connection: asyncpg.Connection, day: int) -> UUID:
    """Return the id of a row in the middle of a day of May."""
    at = FIRST_DAY + timedelta(days=day - 1, hours=12)
    found = await connection.fetchval(
        "SELECT min(prediction_id::text) FROM prediction_log WHERE prediction_id >= prediction_id_at($1)", at
    )
    return UUID(found)


@PLANS
async def test_search_for_predictions_of_labels_reads_the_days_of_their_ids(
    month: asyncpg.Connection, plan_mode: str
) -> None:
    ids = [await find_id(month, day) for day in (3, 20)]
    values = f"'{{0, 1}}', '{{{ids[0]}, {ids[1]}}}'"

    read = await find_partitions_read(month, plan_mode, FIND_BY_ID, "bigint[], uuid[]", values)

    assert read == ["prediction_log_20240503", "prediction_log_20240520"]


@pytest.mark.parametrize(
    ("table", "statement", "types", "values"),
    [
        ("prediction_log", FIND_BY_ID, "bigint[], uuid[]", "'{{0, 1}}', '{ids}'"),
        (
            "prediction_label_history",
            APPEND_HISTORY,
            "uuid[], text[], timestamptz[], timestamptz[], text[]",
            "'{ids}', '{{0, 0}}', '{{now, now}}', '{{now, now}}', '{{new, new}}'",
        ),
    ],
    ids=["find", "history"],
)
async def test_statements_about_labels_are_planned_for_the_days_of_their_ids(
    month: asyncpg.Connection, table: str, statement: str, types: str, values: str
) -> None:
    ids = [str(await find_id(month, day)) for day in (3, 4)]

    await month.execute(f"PREPARE asked ({types}) AS {statement}")
    plan = await month.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked ({values.format(ids=f'{{{ids[0]}, {ids[1]}}}')})")

    planned = {node.get("Relation Name", "") for node in walk(json.loads(plan)[0]["Plan"])}
    assert {name for name in planned if name[-8:].isdigit()} == {f"{table}_20240503", f"{table}_20240504"}


@PLANS
async def test_search_by_id_reads_one_day(month: asyncpg.Connection, plan_mode: str) -> None:
    prediction_id = await find_id(month, 7)

    read = await find_partitions_read(month, plan_mode, SELECT_BY_ID, "uuid", f"'{prediction_id}'")

    assert read == ["prediction_label_20240507", "prediction_log_20240507"]


@PLANS
async def test_search_for_history_reads_one_day(month: asyncpg.Connection, plan_mode: str) -> None:
    prediction_id = await find_id(month, 7)

    read = await find_partitions_read(month, plan_mode, FETCH_HISTORY, "uuid", f"'{prediction_id}'")

    assert read == ["prediction_label_history_20240507"]


async def test_labels_are_written_to_the_days_of_their_ids(month: asyncpg.Connection) -> None:
    ids = [await find_id(month, day) for day in (3, 20)]
    now = datetime.now(UTC)

    written = await upsert_labels(month, ids, ["0", "0"], [now, now], [now, now])

    assert [row["revision"] for row in written] == [2, 2]
    locked = {row["name"] for row in await month.fetch(READ_LOCKS)}
    assert {name for name in locked if not name.endswith("_pkey")} == {
        "prediction_label_20240503",
        "prediction_label_20240520",
    }


async def test_labels_are_written_without_a_read_of_any_table(month: asyncpg.Connection) -> None:
    prediction_id = await find_id(month, 3)
    types, now = "uuid[], text[], timestamptz[], timestamptz[]", datetime.now(UTC)

    read = await find_partitions_read(
        month, "auto", UPSERT_LABELS, types, f"'{{{prediction_id}}}', '{{0}}', '{{{now}}}', '{{{now}}}'"
    )

    assert read == []


@PLANS
@pytest.mark.parametrize("statement", [COUNT_PERIOD, FIND_DIFFERENCES], ids=["count", "compare"])
async def test_count_of_a_period_reads_its_days(month: asyncpg.Connection, plan_mode: str, statement: str) -> None:
    since, until = FIRST_DAY + timedelta(days=9, hours=6), FIRST_DAY + timedelta(days=11, hours=6)

    read = await find_partitions_read(
        month, plan_mode, statement, "timestamptz, timestamptz, integer", f"'{since}', '{until}', 60"
    )

    assert read == [f"{table}_202405{day}" for table in ("prediction_label", "prediction_log") for day in (10, 11, 12)]


@PLANS
async def test_export_of_a_period_reads_its_days(month: asyncpg.Connection, plan_mode: str) -> None:
    since, until = FIRST_DAY + timedelta(days=9, hours=6), FIRST_DAY + timedelta(days=10, hours=6)
    types, values = "timestamptz, timestamptz, text, text, boolean", f"'{since}', '{until}', NULL, NULL, true"

    read = await find_partitions_read(month, plan_mode, SELECT_ROWS, types, values)

    assert read == [f"{table}_202405{day}" for table in ("prediction_label", "prediction_log") for day in (10, 11)]


@PLANS
@pytest.mark.parametrize("labelled", ["NULL", "true", "false"])
@pytest.mark.parametrize("limit", [51, 1001])
async def test_page_of_a_time_range_reads_its_days(
    month: asyncpg.Connection, plan_mode: str, labelled: str, limit: int
) -> None:
    since, until = FIRST_DAY + timedelta(days=9, hours=6), FIRST_DAY + timedelta(days=11)
    types = "timestamptz, timestamptz, uuid, text, text, text, boolean, text, integer"
    values = f"'{since}', '{until}', '{LAST_ID}', NULL, NULL, NULL, {labelled}, NULL, {limit}"

    read = await find_partitions_read(month, plan_mode, SELECT_PAGE, types, values)

    assert {name[-4:] for name in read} <= {"0510", "0511"}
    assert "prediction_log_20240511" in read


@PLANS
async def test_first_page_reads_the_newest_day(month: asyncpg.Connection, plan_mode: str) -> None:
    types = "timestamptz, timestamptz, uuid, text, text, text, boolean, text, integer"
    values = f"'1970-01-01Z', '9999-12-31Z', '{LAST_ID}', NULL, NULL, NULL, NULL, NULL, 51"

    read = await find_partitions_read(month, plan_mode, SELECT_PAGE, types, values)

    assert read == ["prediction_label_20240530", "prediction_log_20240530"]
