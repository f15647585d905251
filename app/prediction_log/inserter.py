"""One attempt to store rows in PostgreSQL; a failure has a kind and a reason."""

import asyncio
import random
import time
from collections.abc import Sequence
from datetime import date

import asyncpg
import msgspec

from app import metrics
from app.prediction_log.failures import FailureKind, classify_failure
from app.prediction_log.queries import insert_rows, make_partitions, read_cluster_history
from app.prediction_log.record import RowDate

ATTEMPT_SECONDS = 5.0
"""Limit for each step of an attempt (connect, insert, return the connection), also when the server is frozen."""

ATTEMPT_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class InsertError(Exception):
    """An attempt failed; the batch may be stored completely or not at all.

    `reason` is PostgreSQL's message, for the operator; it has no data of rows.
    """

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Inserter:
    """Stores batches; uses a pool that nothing else uses."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def watch_cluster(self) -> str | None:
        """Return the cluster's identity and timeline; they change when a standby takes over. Raises InsertError.

        None: the server does not tell them, to this role or at all. That is no failure to store rows.
        """
        try:
            async with self._pool.acquire(timeout=ATTEMPT_SECONDS) as connection:
                return await read_cluster_history(connection)
        except (
            asyncpg.SyntaxOrAccessError,
            asyncpg.FeatureNotSupportedError,
            asyncpg.ObjectNotInPrerequisiteStateError,
        ):
            return None
        except ATTEMPT_ERRORS as error:
            raise await self._explain(error) from error

    async def insert(self, rows: Sequence[bytes]) -> int:
        """Store `rows`, each with one or more JSON objects; return how many were new. Raises InsertError.

        Makes missing partitions.
        """
        try:
            try:
                return await self._insert(rows)
            except asyncpg.CheckViolationError as error:
                if classify_failure(error) != "partition":
                    raise
                await self._make_partitions(rows)
                return await self._insert(rows)
        except ATTEMPT_ERRORS as error:
            raise await self._explain(error) from error

    async def _insert(self, rows: Sequence[bytes]) -> int:
        started = time.perf_counter()
        async with self._pool.acquire(timeout=ATTEMPT_SECONDS) as connection:
            stored = await insert_rows(connection, rows, timeout=ATTEMPT_SECONDS)
        if rows:
            metrics.LOG_COMMIT_SECONDS.observe(time.perf_counter() - started)
            metrics.LOG_BATCH_ROWS.observe(stored)
            metrics.LOG_STORED.inc(stored)
        return stored

    async def _make_partitions(self, rows: Sequence[bytes]) -> None:
        days = _list_days(rows)
        async with self._pool.acquire(timeout=ATTEMPT_SECONDS) as connection:
            for day in days:
                await make_partitions(connection, day, day)

    async def _explain(self, error: Exception) -> InsertError:
        kind = classify_failure(error)
        metrics.LOG_FAILURES.labels(kind).inc()
        reason = str(error).partition("\n")[0] or type(error).__name__
        if kind == "transient":
            await self._pool.expire_connections()
        return InsertError(kind, reason)


async def wait_to_retry(attempt: int, base_seconds: float, cap_seconds: float) -> None:
    """Wait after a failed attempt, but not after the first: after a restart of PostgreSQL, only the first use fails.

    (A pooled connection notices the restart when it is used.) The wait is random, up to a limit that doubles until
    `cap_seconds`.
    """
    if attempt > 1:
        longest = min(cap_seconds, base_seconds * 2.0 ** min(attempt, 20))
        await asyncio.sleep(random.uniform(0, longest))  # noqa: S311


def _list_days(rows: Sequence[bytes]) -> list[date]:
    """Return the days (UTC) of encoded rows, ascending."""
    dates = msgspec.json.decode(b"[" + b",".join(rows) + b"]", type=list[RowDate])
    return sorted({row.created_at.date() for row in dates})
