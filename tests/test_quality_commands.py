"""`scorekeeper quality check|rebuild`, beside writers that go on."""

import asyncio
import io
import re
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest
from rich.console import Console

from app.commands.parser import parse_arguments
from app.commands.quality import QualityCommandError, check_ledger, rebuild_ledger
from app.database.pool import open_pool
from app.jobs import STATES
from app.prediction_log.partitions import drop_old_partitions
from app.quality.labels import take_labels
from tests.support.ledger import assert_exact, fold, read_ledger
from tests.support.processes import ROOT, run_app
from tests.support.records import count_rows, insert_records, make_label, make_record, register_demo, store
from tests.support.rules import list_exported

NOW = datetime.now(UTC)

BREAK = {
    "a count": "UPDATE quality_bucket SET rows = rows + 2 WHERE span = 86400 AND label IS NULL",
    "a sum": "UPDATE quality_bucket SET score_sum = score_sum - 1 WHERE span = 3600",
    "a delay": "UPDATE quality_bucket SET delay_sum = delay_sum + 1 WHERE span = 60 AND label IS NOT NULL",
    "a missing bucket": "DELETE FROM quality_bucket WHERE span = 600",
    "a change that was noted twice": "INSERT INTO quality_delta SELECT starts_at, model_name, model_version, role, "
    "score_bin, predicted_class, label, rows, 0, 0, 0 FROM quality_bucket WHERE span = 60",
}


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(output: io.StringIO) -> Console:
    return Console(file=output, width=200)


@pytest.fixture
async def rows(connection: asyncpg.Connection) -> None:
    """Labelled rows of two hours ago and of last week, folded, and a row that is noted only."""
    records = [make_record(NOW - age, score=0.25) for age in (timedelta(hours=2), timedelta(days=7)) for _ in range(5)]
    await register_demo(connection)
    await store(connection, *records)
    await take_labels(connection, [make_label(record.prediction_id, "0", NOW) for record in records[1:]])
    await fold(connection)
    await insert_records(connection, [make_record(NOW - timedelta(hours=3))])


@pytest.mark.usefixtures("rows")
async def test_check_finds_an_exact_ledger_exact(database_url: str, console: Console, output: io.StringIO) -> None:
    status = await check_ledger(database_url, date.min, date.max, console)

    assert (status, "0 cells differ" in output.getvalue()) == (0, True)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("statement", BREAK.values(), ids=BREAK)
async def test_check_finds_what_is_wrong_and_rebuild_mends_it(
    database_url: str, connection: asyncpg.Connection, console: Console, output: io.StringIO, statement: str
) -> None:
    await connection.execute(statement)

    found = await check_ledger(database_url, date.min, date.max, console)
    shown = output.getvalue()
    await rebuild_ledger(database_url, date.min, date.max, console)
    mended = await check_ledger(database_url, date.min, date.max, console)

    assert (found, mended) == (1, 0)
    assert "car-loan 1 live, bin" in shown
    await assert_exact(connection)


@pytest.mark.usefixtures("rows")
async def test_command_line_checks_before_anybody_rebuilds(database_url: str, connection: asyncpg.Connection) -> None:
    await connection.execute(BREAK["a count"])

    runs = [
        await run_app("quality", action, environment={"DATABASE_URL": database_url})
        for action in ("check", "check", "rebuild", "check")
    ]

    assert [status for status, _ in runs] == [1, 1, 0, 0], runs


@pytest.mark.usefixtures("rows")
async def test_only_the_days_asked_for_are_checked_and_mended(
    database_url: str, connection: asyncpg.Connection, console: Console
) -> None:
    last_week = (NOW - timedelta(days=7)).date()
    await connection.execute("UPDATE quality_bucket SET rows = rows + 1 WHERE span = 86400")

    await rebuild_ledger(database_url, last_week, last_week, console)

    assert await check_ledger(database_url, last_week, last_week, console) == 0
    assert await check_ledger(database_url, last_week + timedelta(days=1), date.max, console) == 1


@pytest.mark.usefixtures("rows")
async def test_rebuild_leaves_the_counts_of_dropped_days(
    database_url: str, connection: asyncpg.Connection, console: Console
) -> None:
    before = await read_ledger(connection)
    async with open_pool(database_url, 1) as pool:
        await drop_old_partitions(pool, 5, timeout=5)
    assert await count_rows(connection, "prediction_log") == 6

    await rebuild_ledger(database_url, date.min, date.max, console)

    assert await read_ledger(connection) == before


@pytest.mark.usefixtures("rows")
async def test_rebuild_beside_writers_loses_and_doubles_nothing(
    database_url: str, connection: asyncpg.Connection, console: Console
) -> None:
    done = asyncio.Event()

    async def write() -> None:
        async with open_pool(database_url, 1) as pool, pool.acquire() as own:
            while not done.is_set():
                records = [make_record(NOW - timedelta(hours=2)) for _ in range(20)]
                await insert_records(own, records)
                await take_labels(own, [make_label(record.prediction_id, "1", NOW) for record in records])

    async def fold_often() -> None:
        async with open_pool(database_url, 1) as pool, pool.acquire() as own:
            while not done.is_set():
                await fold(own)

    async def rebuild() -> None:
        for _ in range(10):
            await rebuild_ledger(database_url, date.min, date.max, console)
        done.set()

    await asyncio.gather(write(), write(), fold_often(), rebuild())

    assert await count_rows(connection, "prediction_log") > 100
    assert await check_ledger(database_url, date.min, date.max, console) == 0
    await assert_exact(connection)


async def test_command_says_that_the_schema_is_behind(empty_database_url: str, console: Console) -> None:
    with pytest.raises(QualityCommandError, match="alembic upgrade head"):
        await check_ledger(empty_database_url, date.min, date.max, console)


def test_days_of_the_command_line_are_dates() -> None:
    options = parse_arguments(["quality", "check", "--since", "2024-05-01"])

    assert (options.action, options.since, options.until) == ("check", date(2024, 5, 1), date.max)


def test_every_state_and_metric_of_quality_is_documented() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    section = operations.partition("## Quality")[2].partition("\n## ")[0]
    existing = {name.removesuffix("_count") for name in list_exported()}

    assert set(re.findall(r"^\| `([a-z_]+)` \| (?!.*\*\*)", section, re.MULTILINE)) >= set(STATES)
    assert set(re.findall(r"`(model_[a-z0-9_]+)`", section)) <= existing
