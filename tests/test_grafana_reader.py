"""What Grafana asks PostgreSQL, as the role that `grafana/reader.sql` makes: it reads, prunes, and changes nothing."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from app.database.embedded_home import find_wheel
from app.database.migrate import upgrade_schema
from app.database.pool import open_pool
from app.quality.labels import take_labels
from app.quality.refresh import QualitySettings, refresh_results
from app.settings import QualityWindow
from tests.conftest import POSTGRES_BIN, execute
from tests.support.dashboards import PanelQuery, list_queries
from tests.support.plans import find_partitions_read
from tests.support.processes import ROOT
from tests.support.records import MODEL, VERSION, fetch_known, make_label, make_record, register_demo, store

PSQL = Path(POSTGRES_BIN) / "psql" if POSTGRES_BIN else find_wheel() / "psql"

PANELS = pytest.mark.parametrize(
    "query", list_queries("grafana-postgresql-datasource"), ids=lambda query: query.name.partition(": ")[2]
)

DAYS = 5


async def make_reader(url: str, **environment: str) -> str:
    """Run reader.sql as an operator does; return what psql says."""
    process = await asyncio.create_subprocess_exec(
        *(str(PSQL), url, "--no-psqlrc", "--quiet", "--file", str(ROOT / "grafana" / "reader.sql")),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def with_reader(url: str, password: str) -> str:
    """Return the DSN of the same database for the reader."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"grafana_reader:{password}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture
async def reader(database_url: str, connection: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the reader to a database with a labelled row on each of the last days, scored by the job."""
    await register_demo(connection)
    now = datetime.now(UTC)
    rows = [make_record(now - timedelta(days=day), predicted=str(day % 2)) for day in range(DAYS)]
    await store(connection, *rows, make_record(now - timedelta(seconds=1), predicted="1"))
    async with open_pool(database_url, 2) as pool:
        await take_labels(connection, [make_label(row.prediction_id, "1", now) for row in rows])
        settings = QualitySettings((QualityWindow("1h", timedelta(hours=1)),), None, min_labels=1, objective=None)
        await refresh_results(pool, settings, await fetch_known(connection), {(MODEL, VERSION)}, timedelta(0))
    await make_reader(database_url, GRAFANA_READER_PASSWORD="it's secret")
    opened = await asyncpg.connect(with_reader(database_url, "it%27s%20secret"))
    yield opened
    await opened.close()


def at_time(query: PanelQuery, since: datetime, until: datetime) -> str:
    """Fill in the time that is looked at as Grafana does."""
    filled = query.text.replace("$__timeFrom()", f"'{since:%Y-%m-%dT%H:%M:%SZ}'")
    return filled.replace("$__timeTo()", f"'{until:%Y-%m-%dT%H:%M:%SZ}'")


@PANELS
async def test_panel_shows_rows(reader: asyncpg.Connection, query: PanelQuery) -> None:
    now = datetime.now(UTC)

    rows = await reader.fetch(at_time(query, now - timedelta(hours=6), now + timedelta(minutes=1)))

    assert rows
    assert any(value is not None for value in rows[0].values())


async def test_latest_predictions_come_with_their_labels(reader: asyncpg.Connection) -> None:
    (query,) = (query for query in list_queries("grafana-postgresql-datasource") if "Latest" in query.name)
    now = datetime.now(UTC)

    rows = await reader.fetch(at_time(query, now - timedelta(days=DAYS), now + timedelta(minutes=1)))

    assert [(row["predicted"], row["label"]) for row in rows[:3]] == [("0", "1"), ("1", None), ("1", "1")]
    assert len(rows) == DAYS + 1


async def test_confusion_counts_the_window(reader: asyncpg.Connection) -> None:
    (query,) = (query for query in list_queries("grafana-postgresql-datasource") if "Confusion" in query.name)

    rows = await reader.fetch(query.text)

    assert [tuple(row) for row in rows] == [("1", "0", 1)]


@PANELS
async def test_panel_reads_the_days_that_are_looked_at(
    reader: asyncpg.Connection, connection: asyncpg.Connection, query: PanelQuery
) -> None:
    until = datetime.now(UTC) - timedelta(days=2)
    since = until - timedelta(days=1)

    async with connection.transaction():
        statement = at_time(query, since, until)
        read = await find_partitions_read(connection, "auto", statement, "integer", "1")

    assert {name[-8:] for name in read} <= {f"{day:%Y%m%d}" for day in (since, until)}
    assert bool(read) == ("prediction_log" in query.text)


async def test_reader_changes_nothing_even_if_it_wants_to(reader: asyncpg.Connection) -> None:
    await reader.execute("SET default_transaction_read_only = off")

    for statement in (
        "DELETE FROM prediction_log",
        "UPDATE prediction_label SET label = '0'",
        "INSERT INTO quality_check VALUES (now(), 0)",
        "CREATE TABLE mine (number integer)",
        "SELECT drop_oldest_prediction_partitions('2000-01-01')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.execute(statement)


async def test_reader_that_was_made_first_reads_what_migrations_and_partitions_make_later(
    empty_database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("from a file\n")
    await make_reader(empty_database_url, GRAFANA_READER_PASSWORD_FILE=str(tmp_path / "password"))
    await upgrade_schema(empty_database_url)
    await execute(empty_database_url, "SELECT make_prediction_partitions(current_date, current_date)")

    opened = await asyncpg.connect(with_reader(empty_database_url, "from%20a%20file"))
    try:
        partition = f"prediction_log_{datetime.now(UTC):%Y%m%d}"
        counts = [await opened.fetchval(f"SELECT count(*) FROM {name}") for name in ("prediction_log", partition)]
    finally:
        await opened.close()

    assert counts == [0, 0]


async def test_reader_without_a_password_cannot_log_in(database_url: str) -> None:
    await make_reader(database_url, GRAFANA_READER_PASSWORD="", GRAFANA_READER_PASSWORD_FILE="/nowhere")

    for password in ("", "x"):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(with_reader(database_url, password))
