"""From the spool to a real PostgreSQL."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest
from prometheus_client import REGISTRY

from app.prediction_log import shipper as shipper_module
from app.prediction_log.record import Record
from app.prediction_log.shipper import Shipper
from app.spool import journal as journal_module
from app.spool.segment import encode_frame
from app.spool.spool import Spool
from tests.support.processes import wait_until
from tests.support.records import count_rows, make_record
from tests.support.spools import append, has_shipped, hurry, ship, write_spool


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(shipper_module, "SHIP_RETRY_CAP_SECONDS", 0.2)


async def has_rows(connection: asyncpg.Connection, count: int) -> bool:
    return await count_rows(connection, "prediction_log") == count


async def has_failed(shipper: Shipper, kind: str) -> bool:
    return shipper.trouble is not None and shipper.trouble.code == f"log_{kind}"


def read_counter(name: str) -> float:
    return REGISTRY.get_sample_value(f"prediction_log_{name}_rows_total") or 0.0


async def test_rows_of_the_spool_are_stored(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool) as shipper:
        for _ in range(20):
            await append(journal, make_record(), make_record())
        await wait_until(lambda: has_shipped(spool))

        assert await count_rows(connection, "prediction_log") == 40
        assert shipper.lag_seconds == 0
        assert shipper.trouble is None


async def test_restart_offers_again_without_duplicates(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, make_record(), make_record())
        await wait_until(lambda: has_shipped(spool))
    async with write_spool(spool_directory) as (spool, journal):
        await append(journal, make_record())
    repeated, stored = read_counter("repeated"), read_counter("stored")

    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await wait_until(lambda: has_rows(connection, 3))
        await wait_until(lambda: has_shipped(spool))

    assert not (spool_directory / "dead").exists()
    assert read_counter("repeated") - repeated == 2
    assert read_counter("stored") - stored == 1


async def test_poison_row_ends_in_dead_and_the_rest_is_stored(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    poison = make_record(external_id="\x00")
    dead = read_counter("dead")
    async with write_spool(spool_directory) as (spool, journal):
        for _ in range(5):
            await append(journal, make_record(), make_record())
        await append(journal, make_record(), poison, make_record())
        await append(journal, make_record())

        async with ship(spool, pool):
            await wait_until(lambda: has_stored(spool, connection, 13))

    [path] = (spool_directory / "dead").iterdir()
    assert path.name == f"{poison.prediction_id}.json"
    assert msgspec.json.decode(path.read_bytes(), type=Record) == poison
    assert read_counter("dead") - dead == 1


async def has_stored(spool: Spool, connection: asyncpg.Connection, rows: int) -> bool:
    return await has_rows(connection, rows) and spool.pending_rows == 0


async def test_frame_that_is_no_json_ends_in_dead_and_the_rest_is_stored(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal):
        await append(journal, make_record())
        await journal.append(encode_frame(b'{"prediction_id', 1), 1)
        await append(journal, make_record())

        async with ship(spool, pool):
            await wait_until(lambda: has_stored(spool, connection, 2))

    assert [path.read_bytes() for path in (spool_directory / "dead").iterdir()] == [b'{"prediction_id']


async def test_poison_waits_while_dead_cannot_be_written(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal):
        (spool_directory / "dead").touch()  # no spool_directory can be made there
        await append(journal, make_record(external_id="\x00"), make_record())
        async with ship(spool, pool):
            await asyncio.sleep(0.3)
            assert spool.pending_rows == 2
            (spool_directory / "dead").unlink()

            await wait_until(lambda: has_stored(spool, connection, 1))


async def test_table_that_is_gone_keeps_everything_until_it_is_back(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await connection.execute("ALTER TABLE prediction_log RENAME TO elsewhere")
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool) as shipper:
        await append(journal, make_record(), make_record())
        await wait_until(lambda: has_failed(shipper, "configuration"))
        await append(journal, make_record())
        assert spool.pending_rows == 3
        assert shipper.lag_seconds > 0
        await connection.execute("ALTER TABLE elsewhere RENAME TO prediction_log")

        await wait_until(lambda: has_stored(spool, connection, 3))
        await wait_until(lambda: has_no_trouble(shipper))

    assert not (spool_directory / "dead").exists()


BREAK_LEDGER = {
    "check": "ALTER TABLE quality_delta ADD CONSTRAINT wrong CHECK (rows < 0)",
    "range": "CREATE OR REPLACE FUNCTION score_bin(score real) RETURNS smallint LANGUAGE sql RETURN (1e9)::smallint",
    "zero": "CREATE OR REPLACE FUNCTION score_bin(score real) RETURNS smallint LANGUAGE sql RETURN 1 / (score - score)",
    "unique": "CREATE UNIQUE INDEX wrong ON quality_delta ((1)); "
    "INSERT INTO quality_delta SELECT 'epoch', '', '', '', 0, '', NULL, 0, 0, 0, 0",
    "column": "ALTER TABLE quality_delta DROP COLUMN rows",
    "table": "DROP TABLE quality_delta",
}


@pytest.mark.parametrize("statement", BREAK_LEDGER.values(), ids=BREAK_LEDGER)
async def test_error_of_the_ledger_keeps_everything_as_configuration(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection, statement: str
) -> None:
    await connection.execute(statement)
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool) as shipper:
        await append(journal, make_record(), make_record())

        await wait_until(lambda: has_failed(shipper, "configuration"))

        assert spool.pending_rows == 2
    assert not (spool_directory / "dead").exists()


async def test_rows_are_stored_and_counted_once_the_ledger_is_mended(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await connection.execute(BREAK_LEDGER["check"])
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool) as shipper:
        await append(journal, make_record(), make_record())
        await wait_until(lambda: has_failed(shipper, "configuration"))
        await connection.execute("ALTER TABLE quality_delta DROP CONSTRAINT wrong")

        await wait_until(lambda: has_stored(spool, connection, 2))

    assert await connection.fetchval("SELECT sum(rows) FROM quality_delta") == 2


async def has_no_trouble(shipper: Shipper) -> bool:
    return shipper.trouble is None


async def test_idle_shipper_sees_that_postgresql_takes_nothing_and_that_it_does_again(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, _), ship(spool, pool) as shipper:
        await connection.execute("ALTER TABLE prediction_log RENAME TO elsewhere")
        await wait_until(lambda: has_failed(shipper, "configuration"))
        await connection.execute("ALTER TABLE elsewhere RENAME TO prediction_log")
        await wait_until(lambda: has_no_trouble(shipper))


async def test_trouble_is_since_its_first_failure(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, _), ship(spool, pool) as shipper:
        await connection.execute("ALTER TABLE prediction_log RENAME TO elsewhere")
        await wait_until(lambda: has_failed(shipper, "configuration"))
        first, first_error = shipper.trouble, shipper.error
        assert first is not None

        async def has_failed_again() -> bool:
            return shipper.error is not first_error

        await wait_until(has_failed_again)

        assert shipper.trouble == first
        assert "prediction_log" not in first.detail


async def test_terminated_connections_lose_nothing(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        for _ in range(10):
            await append(journal, make_record())
            await end_other_connections(connection)

        await wait_until(lambda: has_stored(spool, connection, 10))


async def test_rows_wait_for_a_lock_and_are_stored_once(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        async with connection.transaction():
            await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
            await append(journal, make_record())
            await asyncio.sleep(0.2)
            assert spool.pending_rows == 1

        await wait_until(lambda: has_stored(spool, connection, 1))


async def test_missing_partition_is_made_on_demand(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=300)
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, make_record(long_ago), make_record())

        await wait_until(lambda: has_stored(spool, connection, 2))


async def test_segment_closed_after_its_last_row_was_shipped_leaves_the_disk(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETAIN_SECONDS", 0.0)
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, make_record())
        await wait_until(lambda: has_stored(spool, connection, 1))
        monkeypatch.setattr(journal_module, "SEGMENT_SECONDS", 0.0)

        await wait_until(lambda: has_left(spool_directory, 0))
        assert await has_rows(connection, 1)


async def has_left(spool_directory: Path, sequence: int) -> bool:
    return not (spool_directory / f"seg-{sequence:020d}.log").exists()


async def test_pending_rows_are_right_when_all_is_offered_again(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETAIN_SECONDS", 0.0)
    async with write_spool(spool_directory) as (spool, journal):
        async with ship(spool, pool) as shipper:
            await append(journal, make_record(), make_record())
            await wait_until(lambda: has_stored(spool, connection, 2))
            with monkeypatch.context() as patch:
                patch.setattr(journal_module, "SEGMENT_SECONDS", 0.0)
                await wait_until(lambda: has_left(spool_directory, 0))
            await append(journal, make_record())
            await wait_until(lambda: has_stored(spool, connection, 3))
        shipper._reader.rewind()
        assert spool.pending_rows == 1  # the other two are no longer on the disk

        async with ship(spool, pool) as shipper:
            await wait_until(lambda: has_shipped(spool))

    assert await has_rows(connection, 3)
    assert not (spool_directory / "dead").exists()


async def fake_history(connection: asyncpg.Connection) -> None:
    """Have this database name another history than its server's, the one in a table that a test may change."""
    await connection.execute(
        "CREATE SCHEMA history; CREATE TABLE history.now AS SELECT '000000010000000000000001' AS file; "
        "CREATE FUNCTION history.pg_walfile_name(pg_lsn) RETURNS text LANGUAGE sql AS 'SELECT file FROM history.now'"
    )
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {database} SET search_path = history, pg_catalog, public")
    await end_other_connections(connection)


async def take_over(connection: asyncpg.Connection) -> None:
    """Lose what is stored and go on in another timeline, as when a standby that lacks the last commits is promoted."""
    async with connection.transaction():
        await connection.execute("TRUNCATE prediction_log")
        await connection.execute("UPDATE history.now SET file = '000000020000000000000001'")


async def end_other_connections(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_rows_that_were_shipped_are_offered_again_when_a_standby_has_taken_over(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper_module, "WATCH_SECONDS", 0.05)
    await fake_history(connection)
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, make_record(), make_record())
        await wait_until(lambda: has_stored(spool, connection, 2))

        await take_over(connection)

        await wait_until(lambda: has_stored(spool, connection, 2))


async def test_shipper_that_is_stopped_in_the_middle_of_an_insert_goes_on_later(
    spool_directory: Path, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal):
        async with connection.transaction():
            await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
            await append(journal, make_record())
            with contextlib.suppress(asyncio.CancelledError):
                async with ship(spool, pool):
                    await asyncio.sleep(0.2)

        async with ship(spool, pool):
            await wait_until(lambda: has_stored(spool, connection, 1))
