import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import REGISTRY

from app.errors import UnavailableError
from app.prediction_log import committed_log as log_module
from app.prediction_log.committed_log import CommittedLog, open_committed_log
from app.prediction_log.inserter import Inserter
from app.prediction_log.record import Rows, encode_records, make_prediction_ids, read_id_time
from tests.support.processes import wait_until
from tests.support.records import make_record


@pytest.fixture
async def log(pool: asyncpg.Pool) -> AsyncIterator[CommittedLog]:
    async with open_committed_log(Inserter(pool), pytest.fail) as opened:
        yield opened


def make_rows(count: int = 1, *, at: datetime | None = None, external_id: str | None = None) -> list[Rows]:
    return [encode_records([make_record(at, external_id=external_id)])[0] for _ in range(count)]


async def count_rows(connection: asyncpg.Connection) -> int:
    rows: int = await connection.fetchval("SELECT count(*) FROM prediction_log")
    return rows


async def test_store_returns_when_another_connection_sees_the_rows(
    log: CommittedLog, connection: asyncpg.Connection
) -> None:
    await log.store(make_rows(3))

    assert await count_rows(connection) == 3


async def test_rows_that_are_there_already_count_as_repeated(log: CommittedLog) -> None:
    rows = make_rows(3)
    await log.store(rows)
    before = REGISTRY.get_sample_value("prediction_log_repeated_rows_total") or 0

    await log.store(rows)

    assert REGISTRY.get_sample_value("prediction_log_repeated_rows_total") == before + 3


async def test_store_commits_requests_that_wait_together(log: CommittedLog, connection: asyncpg.Connection) -> None:
    await asyncio.gather(*(log.store(make_rows(2)) for _ in range(200)))

    transactions = await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM prediction_log")
    assert await count_rows(connection) == 400
    assert transactions < 20


async def test_store_again_adds_nothing(log: CommittedLog, connection: asyncpg.Connection) -> None:
    rows = make_rows(2)
    await log.store(rows)

    await log.store(rows + make_rows(1))

    assert await count_rows(connection) == 3


async def test_store_makes_the_partition_that_is_missing(log: CommittedLog, connection: asyncpg.Connection) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=300)

    await log.store(make_rows(1, at=long_ago))

    assert await count_rows(connection) == 1


async def test_store_refuses_only_the_request_with_a_row_that_postgresql_refuses(
    log: CommittedLog, connection: asyncpg.Connection
) -> None:
    requests = [make_rows(2) for _ in range(7)]
    requests[3] = make_rows(2, external_id="\x00")

    outcomes = await asyncio.gather(*(log.store(request) for request in requests), return_exceptions=True)

    assert [type(outcome).__name__ for outcome in outcomes].count("UnavailableError") == 1
    assert isinstance(outcomes[3], UnavailableError)
    assert await count_rows(connection) == 12
    assert log.find_refusal() is None


async def test_store_refuses_at_once_while_the_table_is_gone_and_recovers_without_traffic(
    log: CommittedLog, connection: asyncpg.Connection
) -> None:
    await connection.execute("ALTER TABLE prediction_log RENAME TO elsewhere")

    with pytest.raises(UnavailableError):
        await log.store(make_rows())
    refusal = log.find_refusal()
    assert refusal is not None
    assert refusal.code == "log_configuration"
    await connection.execute("ALTER TABLE elsewhere RENAME TO prediction_log")
    await wait_until(lambda: is_well(log))
    await log.store(make_rows())

    assert await count_rows(connection) == 1


async def test_store_retries_until_a_lock_is_given_free(log: CommittedLog, connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
        stored = asyncio.create_task(log.store(make_rows()))
        await asyncio.sleep(0.2)  # long enough for a store that does not wait for its COMMIT to return
        assert not stored.done()

    await stored

    assert await count_rows(connection) == 1


async def test_store_survives_that_its_connections_are_ended(log: CommittedLog, connection: asyncpg.Connection) -> None:
    await log.store(make_rows())
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    await log.store(make_rows())

    assert await count_rows(connection) == 2


async def test_store_refuses_when_too_many_rows_wait(
    pool: asyncpg.Pool, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "MAX_PENDING_ROWS", 10)
    async with open_committed_log(Inserter(pool), pytest.fail) as log:
        async with connection.transaction():
            await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
            first = asyncio.create_task(log.store(make_rows(8)))
            await asyncio.sleep(0)
            with pytest.raises(UnavailableError, match="too many predictions wait"):
                await log.store(make_rows(3))
            second = asyncio.create_task(log.store(make_rows(2)))
            await asyncio.sleep(0)

        await asyncio.gather(first, second)

    assert await count_rows(connection) == 10


async def test_store_whose_caller_has_gone_does_not_break_its_batch(
    log: CommittedLog, connection: asyncpg.Connection
) -> None:
    gone = asyncio.create_task(log.store(make_rows()))
    other = asyncio.create_task(log.store(make_rows()))
    await asyncio.sleep(0)
    gone.cancel()

    await other

    assert await count_rows(connection) == 2


async def test_store_is_refused_when_the_log_ends(pool: asyncpg.Pool, connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
        async with open_committed_log(Inserter(pool), pytest.fail) as log:
            waiting = asyncio.create_task(log.store(make_rows()))
            await asyncio.sleep(0.05)  # the insert is under way, and blocked

    with pytest.raises(UnavailableError):
        await waiting
    with pytest.raises(UnavailableError):
        await log.store(make_rows())


def test_prediction_ids_are_uuid7_of_the_instant_and_ascend() -> None:
    clock_ms = 1_790_000_000_123

    ids = make_prediction_ids(clock_ms, 10_000)

    assert ids == sorted(set(ids))
    assert {key.version for key in ids} == {7}
    assert {key.variant for key in ids} == {"specified in RFC 4122"}
    assert {read_id_time(key) for key in ids} == {datetime(2026, 9, 21, 14, 13, 20, 123_000, tzinfo=UTC)}


def test_read_id_time_of_another_kind_of_uuid_is_none() -> None:
    assert read_id_time(UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")) is None


async def is_well(log: CommittedLog) -> bool:
    return log.find_refusal() is None
