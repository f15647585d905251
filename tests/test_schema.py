"""Alembic as an operator runs it: up, down, up again, several at a time, with a wrong address."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.database.migrate import find_head_revision, prepare_schema, read_schema_state
from app.errors import StartupError
from app.quality.labels import take_labels
from tests.conftest import execute
from tests.support.ledger import assert_exact, read_ledger
from tests.support.processes import ROOT, find_free_port
from tests.support.programs import run_alembic
from tests.support.records import make_label, make_record, register_demo, store

SCHEMA = """
SELECT c.relname, c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
    pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT proname, 'function', NULL, pg_get_functiondef(oid), NULL, NULL FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT conname, 'constraint', NULL, pg_get_constraintdef(oid), NULL, NULL FROM pg_constraint
WHERE connamespace = 'public'::regnamespace
ORDER BY 1, 2, 3
"""


async def read_schema(url: str) -> list[tuple[object, ...]]:
    """Return every table, column, default, function and constraint."""
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(SCHEMA)]
    finally:
        await connection.close()


async def test_schema_is_the_same_after_it_was_taken_down(empty_database_url: str) -> None:
    first_up = await run_alembic(empty_database_url, "upgrade", "head")
    made = await read_schema(empty_database_url)
    await execute(empty_database_url, "SELECT make_prediction_partitions('2024-01-01', '2024-01-03')")

    down = await run_alembic(empty_database_url, "downgrade", "base")
    left = await read_schema(empty_database_url)
    second_up = await run_alembic(empty_database_url, "upgrade", "head")

    assert [status for status, _ in (first_up, down, second_up)] == [0, 0, 0]
    assert {name for name, *_ in left if not str(name).startswith("scorekeeper_version")} == set()
    assert await read_schema(empty_database_url) == made


async def test_upgrade_does_nothing_when_the_schema_is_at_head(database_url: str) -> None:
    before = await read_schema(database_url)

    status, output = await run_alembic(database_url, "upgrade", "head")

    assert (status, "Running upgrade" in output) == (0, False)
    assert await read_schema(database_url) == before


async def test_upgrade_works_from_any_directory(empty_database_url: str, tmp_path: Path) -> None:
    status, output = await run_alembic(empty_database_url, "upgrade", "head", cwd=tmp_path)

    assert status == 0, output


async def test_four_upgrades_at_once_all_succeed(empty_database_url: str) -> None:
    results = await asyncio.gather(*(run_alembic(empty_database_url, "upgrade", "head") for _ in range(4)))

    assert [status for status, _ in results] == [0, 0, 0, 0]
    assert sum("Running upgrade" in output for _, output in results) == 1


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://someone:hidden@127.0.0.1:{closed_port}/mlops",
        "postgresql://someone:hidden@127.0.0.1:99999/mlops",
        "postgresql://someone:hidden@127.0.0.1:port/mlops",
        "postgresql://someone:hidden@127.0.0.1:5432/mlops?sslmode=perhaps",
        "mysql://someone:hidden@127.0.0.1/mlops",
        "someone:hidden",
    ],
)
async def test_upgrade_says_in_one_line_that_the_address_is_wrong(address: str) -> None:
    status, output = await run_alembic(address.format(closed_port=find_free_port()), "upgrade", "head")

    assert status != 0
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert "DATABASE_URL" in output
    assert "hidden" not in output


async def test_upgrade_says_in_one_line_that_the_database_is_not_there(postgres: str) -> None:
    status, output = await run_alembic(postgres.replace("/mlops?", "/nowhere?"), "upgrade", "head")

    assert status != 0
    assert output.startswith("error: ")
    assert output.count("\n") == 1


def test_head_revision_is_the_one_of_alembic() -> None:
    script = ScriptDirectory.from_config(Config(ROOT / "alembic.ini"))

    assert find_head_revision() == script.get_current_head()


@pytest.mark.parametrize(("revision", "state"), [("0000", "behind"), ("9999", "ahead")])
async def test_schema_state_compares_revisions(connection: asyncpg.Connection, revision: str, state: str) -> None:
    before = await read_schema_state(connection)
    await connection.execute("UPDATE scorekeeper_version SET version_num = $1", revision)

    assert before == "current"
    assert await read_schema_state(connection) == state


async def test_schema_that_was_never_made_is_left_alone_when_not_to_migrate(empty_database_url: str) -> None:
    state = await prepare_schema(empty_database_url, migrate=False)

    assert state == "behind"
    assert await read_schema(empty_database_url) == []


async def test_schema_that_was_never_made_is_made_on_start(empty_database_url: str) -> None:
    state = await prepare_schema(empty_database_url, migrate=True)

    assert state == "current"
    assert any(name == "prediction_log" for name, *_ in await read_schema(empty_database_url))


async def test_migration_that_fails_stops_the_start_in_one_line(empty_database_url: str) -> None:
    await execute(empty_database_url, "CREATE TABLE prediction_label (wrong text)")

    with pytest.raises(StartupError, match=r"the migration failed: .*prediction_label") as raised:
        await prepare_schema(empty_database_url, migrate=True)

    assert "\n" not in str(raised.value)


async def test_upgrade_counts_the_rows_that_are_there(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    records = [make_record(noon + number * timedelta(seconds=7), score=number / 30) for number in range(30)]
    await register_demo(connection)
    await store(connection, *records)
    labels = [
        make_label(record.prediction_id, "01"[at % 2] if at % 3 else None, noon) for at, record in enumerate(records)
    ]
    await take_labels(connection, labels[:20])
    await run_alembic(database_url, "downgrade", "0001")  # without the ledger, as the first release has left them

    await run_alembic(database_url, "upgrade", "head")

    ledger = await read_ledger(connection)
    assert sum(counts[0] for counts in ledger.values()) == 30 + 13
    await assert_exact(connection)
    await connection.close()
