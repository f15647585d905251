"""Records to PostgreSQL in batches: a batch forms while the previous one commits, its requests wait for the COMMIT.

This is the level `database` of durability: `store` returns when the rows are committed, or raises.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg

from app import metrics
from app.errors import UnavailableError
from app.prediction_log.failures import FailureKind, classify_failure
from app.prediction_log.queries import insert_records, make_partitions
from app.prediction_log.record import Record
from app.tasks import OnTaskDeath, own_task

logger = logging.getLogger(__name__)

MAX_PENDING_ROWS = 50_000
"""Rows that may wait for a COMMIT, about a second of what PostgreSQL takes; beyond, requests are refused."""

MAX_BATCH_ROWS = 5_000
"""Requests join a batch up to this many rows; one larger request goes alone. More rows are not faster."""

SHIP_SECONDS = 5.0
"""How long a batch is tried before its requests are answered 503: longer than a restart of PostgreSQL's pooler."""

PROBE_SECONDS = 1.0
"""How often an idle or failing log tries an insert of no rows, so that readiness tells the truth without traffic."""

RETRY_BASE_SECONDS, RETRY_CAP_SECONDS = 0.05, 1.0
"""Bounds of the pause between two attempts, drawn with full jitter."""

ATTEMPT_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class LogUnavailableError(UnavailableError):
    """PostgreSQL does not take rows now, or more rows wait than it can take soon: nothing is promised."""


@dataclass(frozen=True, slots=True)
class LogFailure:
    """Why the last attempt to store rows failed. `reason` is for the operator: the server's words, no data of rows."""

    kind: FailureKind
    reason: str
    since: float


@dataclass(slots=True)
class _Group:
    """The rows of one request: stored together or not at all."""

    records: Sequence[Record]
    stored: "asyncio.Future[None]"


class Shipper:
    """Stores records. Full (MAX_PENDING_ROWS) or failing: LogUnavailableError at once. `failure` is None when well."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._waiting: list[_Group] = []
        self._shipping: list[_Group] = []
        self._pending_rows = 0
        self._arrived = asyncio.Event()
        self.failure: LogFailure | None = None

    async def store(self, records: Sequence[Record]) -> None:
        """Return when PostgreSQL has committed all `records`; raise LogUnavailableError when that is not certain."""
        if self.failure is not None:
            metrics.LOG_REFUSED.inc(len(records))
            raise LogUnavailableError("PostgreSQL does not take predictions now")
        if self._pending_rows and self._pending_rows + len(records) > MAX_PENDING_ROWS:
            metrics.LOG_REFUSED.inc(len(records))
            raise LogUnavailableError("too many predictions wait to be stored")
        group = _Group(records, asyncio.get_running_loop().create_future())
        self._waiting.append(group)
        self._pending_rows += len(records)
        self._arrived.set()
        await group.stored

    async def run(self) -> None:
        """Ship batches until cancelled; probe while there is nothing to ship. Nobody is left waiting at the end."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):
                        await self._arrived.wait()
                self._shipping = self._take_batch()
                await self._ship(self._shipping)
        finally:
            self.failure = LogFailure("transient", "the shipper has stopped", time.time())
            self._settle(self._shipping + self._waiting, LogUnavailableError("the server is stopping"))

    def _take_batch(self) -> list[_Group]:
        rows = taken = 0
        for group in self._waiting:
            if taken and rows + len(group.records) > MAX_BATCH_ROWS:
                break
            rows += len(group.records)
            taken += 1
        batch = self._waiting[:taken]
        del self._waiting[:taken]
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _ship(self, batch: list[_Group]) -> None:
        """Insert until it holds, the time is over, or the error says that trying again is of no use."""
        deadline = time.monotonic() + SHIP_SECONDS
        attempt = 0
        while True:
            try:
                await self._insert([record for group in batch for record in group.records])
            except ATTEMPT_ERRORS as error:
                attempt += 1
                if await self._handle(error, batch, attempt, deadline):
                    return
            else:
                self._confirm(batch)
                return

    async def _insert(self, records: Sequence[Record]) -> None:
        """Insert once. Connect, insert and give back are each bounded, also against a server that is frozen."""
        started = time.perf_counter()
        async with self._pool.acquire(timeout=SHIP_SECONDS) as connection:
            await insert_records(connection, records, timeout=SHIP_SECONDS)
        if records:
            metrics.LOG_COMMIT_SECONDS.observe(time.perf_counter() - started)
            metrics.LOG_BATCH_ROWS.observe(len(records))

    async def _handle(self, error: Exception, batch: list[_Group], attempt: int, deadline: float) -> bool:
        """Act on a failed attempt; return whether the batch is settled, else it is to be tried again."""
        kind = classify_failure(error)
        metrics.LOG_FAILURES.labels(kind).inc()
        if kind == "poison" and len(batch) > 1:
            middle = len(batch) // 2
            await self._ship(batch[:middle])
            await self._ship(batch[middle:])
            return True
        if kind == "partition" and attempt == 1 and await self._make_missing_partitions(batch):
            return False
        if kind == "transient" and time.monotonic() < deadline:
            await self._pool.expire_connections()
            if attempt > 1:  # after a restart of the server only the first use of a pooled connection fails
                pause = random.uniform(0, min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2**attempt))  # noqa: S311
                await asyncio.sleep(pause)
            return False
        self._refuse(batch, error, kind)
        return True

    async def _make_missing_partitions(self, batch: list[_Group]) -> bool:
        days = [record.created_at.date() for group in batch for record in group.records]
        try:
            async with self._pool.acquire(timeout=SHIP_SECONDS) as connection:
                await make_partitions(connection, min(days), max(days))
        except ATTEMPT_ERRORS as error:
            logger.warning("cannot make partitions for %s to %s: %s", min(days), max(days), error)
            return False
        return True

    def _confirm(self, batch: list[_Group]) -> None:
        if self.failure is not None:
            logger.info("the prediction log takes rows again")
            self.failure = None
        metrics.LOG_STORED.inc(sum(len(group.records) for group in batch))
        self._settle(batch, None)

    def _refuse(self, batch: list[_Group], error: Exception, kind: FailureKind) -> None:
        """Give up on a batch, and on all that waits behind it unless only this batch's rows are at fault."""
        reason = str(error).partition("\n")[0] or type(error).__name__
        if kind == "poison" and batch:
            logger.error("PostgreSQL refuses a row of a request: %s", type(error).__name__)
        else:
            if self.failure is None:
                logger.warning("the prediction log takes no rows (%s): %s", kind, reason)
            self.failure = LogFailure(kind, reason, self.failure.since if self.failure else time.time())
            batch = batch + self._waiting
            self._waiting = []
            self._arrived.clear()
        metrics.LOG_REFUSED.inc(sum(len(group.records) for group in batch))
        self._settle(batch, LogUnavailableError("PostgreSQL did not take this prediction"))

    def _settle(self, batch: list[_Group], error: LogUnavailableError | None) -> None:
        for group in batch:
            if group.stored.done():
                continue  # its client has gone, or an earlier half of this batch has been settled
            if error is None:
                group.stored.set_result(None)
            else:
                group.stored.set_exception(error)
        self._count_pending()

    def _count_pending(self) -> None:
        self._pending_rows = sum(
            len(group.records) for group in self._shipping + self._waiting if not group.stored.done()
        )
        metrics.LOG_PENDING.set(self._pending_rows)


@asynccontextmanager
async def open_shipper(pool: asyncpg.Pool, on_death: OnTaskDeath) -> AsyncIterator[Shipper]:
    """Run a shipper until exit; whoever stores has been answered by then, since requests end before the lifespan."""
    shipper = Shipper(pool)
    async with own_task(shipper.run(), "prediction log", on_death):
        yield shipper
