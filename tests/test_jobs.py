"""Jobs: their end with the server's, and sweeping pending labels beside refreshing the quality numbers."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from prometheus_client import REGISTRY

from app.jobs import schedule_jobs
from app.quality.labels import take_labels
from app.scheduling import STOP_SECONDS, MonotonicInterval, ScheduledJob, open_scheduler
from tests.support.jobs import WINDOWS, open_jobs
from tests.support.processes import wait_until
from tests.support.records import count_rows, make_label, make_record, register_demo, store

HOUR = timedelta(hours=1)

COUNT_WAITING = """
SELECT count(*) FROM pg_locks
WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

LOCK_PENDING = "LOCK TABLE pending_label IN ACCESS EXCLUSIVE MODE"
LOCK_RESULTS = "LOCK TABLE quality_result IN ACCESS EXCLUSIVE MODE"


def read_counter(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


async def wait_for_lock(connection: asyncpg.Connection) -> None:
    """Wait until somebody waits for a lock."""

    async def is_waited_for() -> bool:
        return bool(await connection.fetchval(COUNT_WAITING))

    await wait_until(is_waited_for, seconds=60)


async def test_job_under_way_finishes_when_the_scheduler_stops() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    finished = []

    async def work() -> None:
        begun.set()
        await may_end.wait()
        finished.append("work")

    async with asyncio.timeout(60), open_scheduler([ScheduledJob(work, HOUR)], stop_seconds=60):
        await begun.wait()
        asyncio.get_running_loop().call_later(0.2, may_end.set)  # the scheduler is stopping by then

    assert finished == ["work"]


async def test_job_is_cancelled_when_it_takes_too_long_at_the_stop() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asyncio.timeout(60):
        async with open_scheduler([ScheduledJob(work, HOUR)], stop_seconds=0.2):
            await begun.wait()
            stopped_at = time.monotonic()
        waited = time.monotonic() - stopped_at
        await ended.wait()

    assert waited >= 0.2


async def test_no_job_begins_while_the_scheduler_stops() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    runs = []

    async def work() -> None:
        begun.set()
        await may_end.wait()

    async def count() -> None:
        runs.append(may_end.is_set())

    schedule = [ScheduledJob(work, HOUR), ScheduledJob(count, timedelta(seconds=0.05), delay=timedelta(seconds=0.05))]
    async with asyncio.timeout(60), open_scheduler(schedule, stop_seconds=60):
        await begun.wait()
        before = len(runs)
        asyncio.get_running_loop().call_later(0.3, may_end.set)

    assert len(runs) == before


async def test_results_are_stored_when_the_server_stops_while_they_are_computed(
    database_url: str, connection: asyncpg.Connection
) -> None:
    await register_demo(connection)
    await store(connection, make_record())
    watcher = await asyncpg.connect(database_url)
    lock = connection.transaction()
    async with asyncio.timeout(60), open_jobs(database_url) as jobs:
        await lock.start()
        await connection.execute(LOCK_RESULTS)

        async with open_scheduler([ScheduledJob(jobs.refresh_quality, HOUR)], stop_seconds=STOP_SECONDS):
            await wait_for_lock(watcher)
            release = asyncio.create_task(lock.rollback())
        await release
    await watcher.close()

    assert await count_rows(connection, "quality_result") == len(WINDOWS)


async def test_quality_is_computed_while_a_sweep_is_held_up(database_url: str, connection: asyncpg.Connection) -> None:
    await register_demo(connection)
    record = make_record()
    await take_labels(connection, [make_label(record.prediction_id, "1", datetime.now(UTC))])
    await store(connection, record)
    watcher = await asyncpg.connect(database_url)
    async with asyncio.timeout(60), open_jobs(database_url) as jobs:
        async with connection.transaction():
            await connection.execute(LOCK_PENDING)
            sweep = asyncio.create_task(jobs.sweep_labels())
            await wait_for_lock(watcher)

            await jobs.refresh_quality()

            computed = await count_rows(watcher, "quality_result")
            is_held_up = not sweep.done()
        await sweep
    await watcher.close()

    assert (computed, is_held_up) == (len(WINDOWS), True)
    assert await count_rows(connection, "prediction_label") == 1


async def test_sweep_takes_the_other_labels_when_another_replica_holds_some(
    database_url: str, connection: asyncpg.Connection
) -> None:
    await register_demo(connection)
    records = [make_record() for _ in range(3)]
    await take_labels(connection, [make_label(record.prediction_id, "1", datetime.now(UTC)) for record in records])
    await store(connection, *records)
    async with asyncio.timeout(60), open_jobs(database_url) as jobs, connection.transaction():
        held = await connection.fetchval("SELECT prediction_id FROM pending_label LIMIT 1 FOR UPDATE")

        await jobs.sweep_labels()

        labelled = await connection.fetch("SELECT prediction_id FROM prediction_label")

    assert {row["prediction_id"] for row in labelled} == {record.prediction_id for record in records} - {held}


async def test_failed_sweep_is_counted_by_itself_and_holds_up_no_results(
    database_url: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await register_demo(connection)
    await store(connection, make_record())
    names = ("model_label_sweep_failures_total", "model_quality_failures_total")
    before = [read_counter(name) for name in names]
    async with open_jobs(database_url) as jobs:
        await connection.execute("ALTER TABLE pending_label RENAME TO away")

        await jobs.sweep_labels()
        await jobs.refresh_quality()

    assert [read_counter(name) - count for name, count in zip(names, before, strict=True)] == [1, 0]
    assert [message.partition(":")[0] for message in caplog.messages] == ["pending labels could not be applied"]
    assert await count_rows(connection, "quality_result") == len(WINDOWS)


NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("step", [timedelta(0), -HOUR, HOUR, timedelta(days=3650)])
def test_next_run_is_an_interval_away_whatever_the_wall_clock_says(step: timedelta) -> None:
    trigger = MonotonicInterval(HOUR, timedelta(0))
    first = trigger.get_next_fire_time(None, NOON)

    following = [trigger.get_next_fire_time(at, NOON + step) for at in (first, NOON + step)]

    assert abs(first - NOON) < timedelta(seconds=10)
    assert [abs(at - NOON - step - HOUR) < timedelta(seconds=10) for at in following] == [True, True]


def test_run_that_comes_early_because_the_clock_was_set_forward_is_an_additional_one() -> None:
    trigger = MonotonicInterval(HOUR, delay=HOUR / 2)

    following = trigger.get_next_fire_time(NOON + HOUR / 2, NOON + 2 * HOUR)

    assert abs(following - NOON - 2.5 * HOUR) < timedelta(seconds=10)


async def test_labels_are_swept_shortly_before_each_refresh(database_url: str) -> None:
    interval = timedelta(seconds=0.8)
    begun: list[tuple[str, float]] = []

    def note(name: str, job: ScheduledJob) -> ScheduledJob:
        async def work() -> None:
            begun.append((name, time.monotonic()))
            await job.work()

        return replace(job, work=work)

    async def look_for_models() -> None:
        """Nothing: there is no MODEL_DIR here."""

    async with asyncio.timeout(60), open_jobs(database_url) as jobs:
        names: dict[object, str] = {jobs.refresh_quality: "refresh", jobs.sweep_labels: "sweep"}
        schedule = schedule_jobs(jobs, look_for_models, interval)
        async with open_scheduler([note(names[job.work], job) for job in schedule if job.work in names]):

            async def has_refreshed() -> bool:
                return sum(name == "refresh" for name, _ in begun) >= 4

            await wait_until(has_refreshed, seconds=60)

    assert [name for name, _ in begun[:7]] == ["refresh", "sweep"] * 3 + ["refresh"]
    leads = [refreshed - swept for (_, swept), (_, refreshed) in zip(begun[1:7:2], begun[2:7:2], strict=True)]
    assert min(leads) < interval.total_seconds() / 2  # the others may have been held up on a busy machine
