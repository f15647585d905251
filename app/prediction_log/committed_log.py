"""The log at the level `database`: a request gets its 200 after the COMMIT of the batch with its rows.

A batch forms while the previous one commits. When PostgreSQL cannot store rows, requests are refused at once.
"""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from app import metrics
from app.errors import Reason, UnavailableError
from app.group_commit import Entry, GroupCommit, settle
from app.prediction_log.failures import explain_failure
from app.prediction_log.inserter import Inserter, InsertError, wait_to_retry
from app.prediction_log.record import Rows
from app.tasks import OnTaskDeath, own_task

logger = logging.getLogger(__name__)

MAX_PENDING_ROWS = 50_000
"""Most rows that wait for a COMMIT, about as many as PostgreSQL stores in a second; above it, requests are refused."""

MAX_GROUP_ROWS = 5_000
"""Most rows in a COMMIT of several models' batches; a larger batch has its own. More rows per COMMIT are not faster."""

COMMIT_SECONDS = 5.0
"""How long a batch is tried before its requests are answered 503; a restart of a connection pooler takes less."""

PROBE_SECONDS = 1.0
"""Interval at which an idle or failing log tries an insert without rows, so that readiness is right without traffic."""

COMMIT_RETRY_BASE_SECONDS, COMMIT_RETRY_CAP_SECONDS = 0.05, 1.0
"""The pause between attempts: random, from 0 to a limit that doubles from the first value to the second."""

RowsGroup = list[Entry[Sequence[Rows]]]


class CommittedLog:
    """Stores rows in PostgreSQL before it returns. Refuses at once when full (MAX_PENDING_ROWS) or failing."""

    def __init__(self, inserter: Inserter) -> None:
        self._inserter = inserter
        self._groups = GroupCommit[Sequence[Rows]](
            MAX_PENDING_ROWS, MAX_GROUP_ROWS, "too many predictions wait to be stored"
        )

    async def store(self, rows: Sequence[Rows]) -> None:
        """Return after PostgreSQL has committed all `rows`; raise UnavailableError when that is not certain."""
        count = sum([part.count for part in rows])
        try:
            await self._groups.add(rows, count)
        except UnavailableError:
            metrics.LOG_REFUSED.inc(count)
            raise
        metrics.LOG_ANSWERED.inc(count)

    def find_refusal(self) -> Reason | None:
        """Return why `store` refuses rows now, None while it takes them."""
        return self._groups.refusal

    def find_trouble(self) -> Reason | None:
        """Return why rows do not reach PostgreSQL now, None while they do."""
        return self._groups.refusal

    def export(self) -> None:
        """Update the gauges."""
        metrics.LOG_PENDING.set(self._groups.pending)

    async def run(self) -> None:
        """Commit batches until cancelled, then refuse waiting requests; probe while there is nothing to commit."""
        await self._groups.run(self._commit, PROBE_SECONDS)

    async def _commit(self, batch: RowsGroup) -> None:
        """Insert a batch; try again until it works, for COMMIT_SECONDS, unless another attempt cannot work."""
        deadline = time.monotonic() + COMMIT_SECONDS
        attempt = 0
        while True:
            try:
                stored = await self._inserter.insert([part.payload for entry in batch for part in entry.item])
            except InsertError as error:
                attempt += 1
                if error.kind == "poison" and len(batch) > 1:
                    await self._commit(batch[: len(batch) // 2])
                    await self._commit(batch[len(batch) // 2 :])
                    return
                if error.kind != "transient" or time.monotonic() >= deadline:
                    self._refuse(batch, error)
                    return
                await wait_to_retry(attempt, COMMIT_RETRY_BASE_SECONDS, COMMIT_RETRY_CAP_SECONDS)
            else:
                metrics.LOG_REPEATED.inc(sum(entry.size for entry in batch) - stored)
                if self._groups.refusal is not None:
                    logger.info("PostgreSQL stores predictions again")
                    self._groups.accept()
                settle(batch, None)
                return

    def _refuse(self, batch: RowsGroup, error: InsertError) -> None:
        """Refuse a batch, and all waiting requests too unless the fault is in a row of this batch."""
        if error.kind == "poison" and batch:
            logger.error("PostgreSQL refuses a row of a request: %s", error)
        else:
            before, reason = self._groups.refusal, explain_failure(error.kind)
            if before is None or before.code != reason.code:
                logger.warning("PostgreSQL does not store predictions (%s): %s", error.kind, error)
            self._groups.refuse(reason)
            self._groups.refuse_waiting(reason)
        settle(batch, UnavailableError("PostgreSQL did not store this prediction"))


@asynccontextmanager
async def open_committed_log(inserter: Inserter, on_death: OnTaskDeath) -> AsyncIterator[CommittedLog]:
    """Open the log; commit until exit, then refuse the requests that still wait."""
    log = CommittedLog(inserter)
    async with own_task(log.run(), "committer", on_death):
        yield log
