import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from app.database.pool import open_pool
from app.prediction_log import shipper as shipper_module
from app.prediction_log.partitions import make_partitions_ahead
from app.prediction_log.record import Record, make_prediction_ids, read_clock_ms, read_id_time, time_from_ms
from app.prediction_log.shipper import LogUnavailableError, Shipper, open_shipper
from tests.processes import wait_until


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(database_url, 2) as opened:
        await make_partitions_ahead(opened, timeout=5)
        yield opened


@pytest.fixture
async def shipper(pool: asyncpg.Pool) -> AsyncIterator[Shipper]:
    async with open_shipper(pool, pytest.fail) as opened:
        yield opened


def make_records(count: int = 1, *, clock_ms: int | None = None, features: str = "{}") -> list[Record]:
    clock_ms = clock_ms or read_clock_ms()
    return [
        Record(key, time_from_ms(clock_ms), "m", "1", "a", 0.5, "{0.5,0.5}", features, None, "request")
        for key in make_prediction_ids(clock_ms, count)
    ]


async def count_rows(connection: asyncpg.Connection) -> int:
    rows: int = await connection.fetchval("SELECT count(*) FROM prediction_log")
    return rows


async def test_store_returns_when_another_connection_sees_the_rows(
    shipper: Shipper, connection: asyncpg.Connection
) -> None:
    await shipper.store(make_records(3))

    assert await count_rows(connection) == 3


async def test_store_commits_requests_that_wait_together(shipper: Shipper, connection: asyncpg.Connection) -> None:
    await asyncio.gather(*(shipper.store(make_records(2)) for _ in range(200)))

    transactions = await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM prediction_log")
    assert await count_rows(connection) == 400
    assert transactions < 20


async def test_store_again_adds_nothing(shipper: Shipper, connection: asyncpg.Connection) -> None:
    records = make_records(2)
    await shipper.store(records)

    await shipper.store(records + make_records(1))

    assert await count_rows(connection) == 3


async def test_store_makes_the_partition_that_is_missing(shipper: Shipper, connection: asyncpg.Connection) -> None:
    long_ago = int((datetime.now(UTC) - timedelta(days=300)).timestamp() * 1000)

    await shipper.store(make_records(1, clock_ms=long_ago))

    assert await count_rows(connection) == 1


async def test_store_refuses_only_the_request_with_a_row_that_postgresql_refuses(
    shipper: Shipper, connection: asyncpg.Connection
) -> None:
    requests = [make_records(2) for _ in range(7)]
    requests[3] = make_records(2, features="not JSON")

    outcomes = await asyncio.gather(*(shipper.store(request) for request in requests), return_exceptions=True)

    assert [type(outcome).__name__ for outcome in outcomes].count("LogUnavailableError") == 1
    assert isinstance(outcomes[3], LogUnavailableError)
    assert await count_rows(connection) == 12
    assert shipper.failure is None


async def test_store_refuses_at_once_while_the_table_is_gone_and_recovers_without_traffic(
    shipper: Shipper, connection: asyncpg.Connection
) -> None:
    await connection.execute("ALTER TABLE prediction_log RENAME TO elsewhere")

    with pytest.raises(LogUnavailableError):
        await shipper.store(make_records())
    assert shipper.failure is not None
    assert shipper.failure.kind == "configuration"
    await connection.execute("ALTER TABLE elsewhere RENAME TO prediction_log")
    await wait_until(lambda: is_well(shipper))
    await shipper.store(make_records())

    assert await count_rows(connection) == 1


async def test_store_retries_until_a_lock_is_given_free(shipper: Shipper, connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
        stored = asyncio.create_task(shipper.store(make_records()))
        await asyncio.sleep(0.2)  # long enough for a store that does not wait for its COMMIT to return
        assert not stored.done()

    await stored

    assert await count_rows(connection) == 1


async def test_store_survives_that_its_connections_are_ended(shipper: Shipper, connection: asyncpg.Connection) -> None:
    await shipper.store(make_records())
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    await shipper.store(make_records())

    assert await count_rows(connection) == 2


async def test_store_refuses_when_too_many_rows_wait(
    shipper: Shipper, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper_module, "MAX_PENDING_ROWS", 10)
    async with connection.transaction():
        await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
        first = asyncio.create_task(shipper.store(make_records(8)))
        await asyncio.sleep(0)
        with pytest.raises(LogUnavailableError, match="too many predictions wait"):
            await shipper.store(make_records(3))
        second = asyncio.create_task(shipper.store(make_records(2)))
        await asyncio.sleep(0)

    await asyncio.gather(first, second)

    assert await count_rows(connection) == 10


async def test_store_whose_caller_has_gone_does_not_break_its_batch(
    shipper: Shipper, connection: asyncpg.Connection
) -> None:
    gone = asyncio.create_task(shipper.store(make_records()))
    other = asyncio.create_task(shipper.store(make_records()))
    await asyncio.sleep(0)
    gone.cancel()

    await other

    assert await count_rows(connection) == 2


async def test_store_is_refused_when_the_shipper_ends(pool: asyncpg.Pool, connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
        async with open_shipper(pool, pytest.fail) as shipper:
            waiting = asyncio.create_task(shipper.store(make_records()))
            await asyncio.sleep(0.05)  # the insert is under way, and blocked

    with pytest.raises(LogUnavailableError):
        await waiting
    with pytest.raises(LogUnavailableError):
        await shipper.store(make_records())


def test_prediction_ids_are_uuid7_of_the_instant_and_ascend() -> None:
    clock_ms = 1_790_000_000_123

    ids = make_prediction_ids(clock_ms, 10_000)

    assert ids == sorted(set(ids))
    assert {key.version for key in ids} == {7}
    assert {key.variant for key in ids} == {"specified in RFC 4122"}
    assert {read_id_time(key) for key in ids} == {datetime(2026, 9, 21, 14, 13, 20, 123_000, tzinfo=UTC)}


def test_read_id_time_of_another_kind_of_uuid_is_none() -> None:
    assert read_id_time(UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")) is None


async def is_well(shipper: Shipper) -> bool:
    return shipper.failure is None
