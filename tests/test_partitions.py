"""Times as bounds of ids, and the daily partitions between such bounds."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.database.pool import open_pool
from app.prediction_log.partitions import DAYS_AHEAD, make_partitions_ahead
from app.prediction_log.queries import make_partitions
from app.prediction_log.record import EPOCH
from tests.support.records import PARENTS, count_rows, insert_records, list_partitions, make_record

DAY = date(2024, 2, 28)


async def ask_id(connection: asyncpg.Connection, at: datetime | str) -> UUID:
    argument = "$1::timestamptz" if isinstance(at, datetime) else "$1::text::timestamptz"
    found: UUID = await connection.fetchval(f"SELECT prediction_id_at({argument})", at)
    return UUID(str(found))


def id_of_ms(clock_ms: int) -> UUID:
    return UUID(int=clock_ms << 80)


@given(at=st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_id_at_a_time_is_its_millisecond_rounded_up(connection: asyncpg.Connection, at: datetime) -> None:
    rounded_up = -((EPOCH - at) // timedelta(milliseconds=1))

    assert await ask_id(connection, at) == id_of_ms(rounded_up)


async def test_id_at_a_time_stays_within_what_an_id_can_hold(connection: asyncpg.Connection) -> None:
    expected = {
        "1970-01-01 00:00:00+00": 0,
        "1970-01-01 00:00:00.000001+00": 1,
        "2024-05-01 12:00:00+00": 1_714_564_800_000,
        "2024-05-01 12:00:00.001+00": 1_714_564_800_001,
        "2024-05-01 12:00:00.001001+00": 1_714_564_800_002,
        "2024-05-01 14:00:00+02": 1_714_564_800_000,
        "1969-12-31 23:59:59.999+00": 0,
        "4000-01-01 00:00:00+00 BC": 0,
        "-infinity": 0,
        "infinity": 2**48 - 1,
        "290000-01-01 00:00:00+00": 2**48 - 1,
    }

    found = {at: await ask_id(connection, at) for at in expected}

    assert found == {at: id_of_ms(clock_ms) for at, clock_ms in expected.items()}


async def test_id_at_no_time_is_null(connection: asyncpg.Connection) -> None:
    assert await connection.fetchval("SELECT prediction_id_at(NULL)") is None


async def test_id_of_a_prediction_is_within_the_bounds_of_its_time(connection: asyncpg.Connection) -> None:
    record = make_record()

    bounds = [await ask_id(connection, record.created_at + timedelta(milliseconds=late)) for late in (0, 1)]

    assert bounds[0] <= record.prediction_id < bounds[1]


async def test_partitions_are_days_of_utc(connection: asyncpg.Connection) -> None:
    await connection.execute("SET TIME ZONE 'America/New_York'")

    made = await make_partitions(connection, DAY, DAY + timedelta(days=2))

    assert made == 9
    for parent in PARENTS:
        bounds = list((await list_partitions(connection, parent)).items())
        for (name, bound), back in zip(bounds, range(3), strict=True):
            day = DAY + timedelta(days=back)
            low, high = (id_of_ms(86_400_000 * ((day - EPOCH.date()).days + end)) for end in (0, 1))
            assert name == f"{parent}_{day:%Y%m%d}"
            assert bound == f"FOR VALUES FROM ('{low}') TO ('{high}')"


@pytest.mark.parametrize(("clock", "partition"), [("00:00:00.000", "0228"), ("23:59:59.999", "0228")])
async def test_row_goes_to_the_partition_of_its_day(connection: asyncpg.Connection, clock: str, partition: str) -> None:
    await make_partitions(connection, DAY - timedelta(days=1), DAY + timedelta(days=1))

    await insert_records(connection, [make_record(datetime.fromisoformat(f"{DAY}T{clock}+00:00"))])

    assert await connection.fetchval("SELECT tableoid::regclass::text FROM prediction_log") == (
        f"prediction_log_2024{partition}"
    )


async def test_partitions_are_made_once(connection: asyncpg.Connection) -> None:
    await make_partitions(connection, DAY, DAY + timedelta(days=1))

    again = await make_partitions(connection, DAY, DAY + timedelta(days=1))
    overlapping = await make_partitions(connection, DAY - timedelta(days=1), DAY)

    assert (again, overlapping) == (0, 3)


async def test_partitions_are_made_once_when_four_ask_at_a_time(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with open_pool(database_url, 4) as pool:

        async def make(first: int) -> int:
            async with pool.acquire() as own:
                return await make_partitions(own, DAY + timedelta(days=first), DAY + timedelta(days=first + 6))

        made = await asyncio.gather(*(make(first) for first in (0, 1, 2, 3)))

    assert sum(made) == 3 * 10
    assert len(await list_partitions(connection, "prediction_log")) == 10


async def test_partitions_can_be_made_while_rows_are_written(database_url: str) -> None:
    async with open_pool(database_url, 5) as pool:

        async def write(start: int) -> None:
            for day in range(start, start + 5):
                async with pool.acquire() as connection:
                    at = datetime(2024, 3, 1, tzinfo=UTC) + timedelta(days=day)
                    await make_partitions(connection, at.date(), at.date())
                    await insert_records(connection, [make_record(at) for _ in range(20)])

        await asyncio.gather(*(write(start) for start in (0, 1, 2, 3)))

        async with pool.acquire() as connection:
            assert await count_rows(connection, "prediction_log") == 4 * 5 * 20


async def test_partitions_of_over_400_days_are_refused(connection: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.RaiseError, match="401 days"):
        await make_partitions(connection, DAY, DAY + timedelta(days=401))

    assert await list_partitions(connection, "prediction_log") == {}


async def test_no_partition_is_made_when_the_days_are_reversed(connection: asyncpg.Connection) -> None:
    assert await make_partitions(connection, DAY, DAY - timedelta(days=1)) == 0


async def test_partitions_are_made_from_yesterday_to_a_week_ahead(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with open_pool(database_url, 1) as pool:
        made = await make_partitions_ahead(pool, timeout=5)

    partitions = await list_partitions(connection, "prediction_log")
    today = datetime.now(UTC).date()
    assert made == 3 * (DAYS_AHEAD + 2)
    assert next(iter(partitions)) in {f"prediction_log_{today - timedelta(days=back):%Y%m%d}" for back in (1, 2)}


async def test_partition_has_the_keys_and_indexes_of_the_log(connection: asyncpg.Connection) -> None:
    await make_partitions(connection, DAY, DAY)

    indexes = await connection.fetch(
        "SELECT indexdef FROM pg_indexes WHERE tablename = 'prediction_log_20240228' ORDER BY indexdef"
    )

    assert ["(external_id)" in row["indexdef"] for row in indexes] == [True, False]
    assert "UNIQUE" in indexes[1]["indexdef"]
