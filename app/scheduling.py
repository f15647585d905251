"""Run jobs at intervals (APScheduler), which the monotonic clock counts: the wall clock may be set at any time."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from app.tasks import OnTaskDeath, own_task, stop_server

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""For running jobs to end when the server stops; then they are cancelled and their transactions rolled back."""

STEP_LOOK_SECONDS = 1.0
"""Interval of comparing the wall clock with the monotonic one: a job is late by at most this after a step."""

EARLY_SHARE, EARLY_SECONDS = 0.25, 1.0
"""A run that comes before it is due by at most this share of the interval, or this time, is the run that is due."""

STEP_SECONDS = 0.2
"""A difference between two looks from which on the wall clock was set, and not slowed down or sped up."""

Work = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """Work to do once per `interval`, for the first time `delay` after the start."""

    work: Work
    interval: timedelta
    delay: timedelta = timedelta(0)


class MonotonicInterval(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Fires once per interval of the monotonic clock. APScheduler asks for wall-clock times, as the clock is now."""

    def __init__(self, interval: timedelta, delay: timedelta) -> None:
        self._interval = interval.total_seconds()
        self._due = time.monotonic() + delay.total_seconds()
        self._asked_at: datetime | None = None

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return when to run next; runs that were missed are left out. APScheduler asks twice with the same `now`."""
        if previous_fire_time is not None and now != self._asked_at:
            self._asked_at = now
            early = min(EARLY_SHARE * self._interval, EARLY_SECONDS)
            passed = math.floor((time.monotonic() + early - self._due) / self._interval) + 1
            self._due += self._interval * max(0, passed)
        return self.find_due(now)

    def find_due(self, now: datetime) -> datetime:
        """Return when to run next by a wall clock that says `now`; it may be in the past."""
        return now + timedelta(seconds=self._due - time.monotonic())

    def __str__(self) -> str:
        return f"every {self._interval:g} s"


@asynccontextmanager
async def open_scheduler(
    schedule: Sequence[ScheduledJob], stop_seconds: float = STOP_SECONDS, on_death: OnTaskDeath = stop_server
) -> AsyncIterator[None]:
    """Run jobs until exit, each at most once at a time. Exit waits for running jobs, then cancels them."""
    scheduler = AsyncIOScheduler(timezone=UTC, job_defaults={"coalesce": True, "misfire_grace_time": None})
    running: set[asyncio.Task[None]] = set()

    async def run(work: Work) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await work()
        finally:
            running.discard(task)

    for job in schedule:
        scheduler.add_job(run, MonotonicInterval(job.interval, job.delay), args=(job.work,))
    scheduler.start()
    try:
        async with own_task(_watch_wall_clock(scheduler), "wall clock", on_death):
            yield
    finally:
        scheduler.pause()
        if running:
            await asyncio.wait(running, timeout=stop_seconds)
        scheduler.shutdown(wait=False)


async def _watch_wall_clock(scheduler: AsyncIOScheduler) -> None:
    """Time all jobs again whenever the wall clock was set: APScheduler would wait for a time that is far away."""
    before = time.time() - time.monotonic()
    while True:
        await asyncio.sleep(STEP_LOOK_SECONDS)
        offset = time.time() - time.monotonic()
        step, before = offset - before, offset
        if abs(step) < STEP_SECONDS:
            continue
        logger.warning("the wall clock was set by %+.1f s: all jobs are timed again", step)
        now = datetime.now(UTC)
        for job in scheduler.get_jobs():
            job.modify(next_run_time=job.trigger.find_due(now))
