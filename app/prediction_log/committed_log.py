"""The log at the level `database`: a 200 waits for the COMMIT of the batch that holds its rows.

A batch forms while the previous one commits. When PostgreSQL cannot take rows, requests are refused, not kept waiting.
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
"""Rows that may wait for a COMMIT, about a second of what PostgreSQL takes; beyond, requests are refused."""

MAX_GROUP_ROWS = 5_000
"""Requests join a batch up to this many rows; one larger request goes alone. More rows are not faster."""

COMMIT_SECONDS = 5.0
"""How long a batch is tried before its requests are answered 503: longer than a restart of PostgreSQL's pooler."""

PROBE_SECONDS = 1.0
"""How often an idle or failing log tries an insert of no rows, so that readiness is true without traffic."""

COMMIT_RETRY_BASE_SECONDS, COMMIT_RETRY_CAP_SECONDS = 0.05, 1.0
"""Bounds of the pause between two attempts, drawn with full jitter."""

RowsGroup = list[Entry[Sequence[Rows]]]


class CommittedLog:
    """Stores rows in PostgreSQL before it returns. Full (MAX_PENDING_ROWS) or failing: refuses at once."""

    def __init__(self, inserter: Inserter) -> None:
        self._inserter = inserter
        self._groups = GroupCommit[Sequence[Rows]](
            MAX_PENDING_ROWS, MAX_GROUP_ROWS, "too many predictions wait to be stored"
        )

    async def store(self, rows: Sequence[Rows]) -> None:
        """Return when PostgreSQL has committed all `rows`; raise UnavailableError when that is not certain."""
        count = sum([part.count for part in rows])
        try:
            await self._groups.add(rows, count)
        except UnavailableError:
            metrics.LOG_REFUSED.inc(count)
            raise
        metrics.LOG_ANSWERED.inc(count)

    def find_refusal(self) -> Reason | None:
        """Return why `store` refuses now; None while it can keep its promise."""
        return self._groups.refusal

    def find_trouble(self) -> Reason | None:
        """Return why rows do not reach PostgreSQL; None while they do."""
        return self._groups.refusal

    def export(self) -> None:
        """Bring the gauges up to date."""
        metrics.LOG_PENDING.set(self._groups.pending)

    async def run(self) -> None:
        """Commit batches until cancelled; probe while there is nothing to commit. Nobody is left waiting at the end."""
        await self._groups.run(self._commit, PROBE_SECONDS)

    async def _commit(self, batch: RowsGroup) -> None:
        """Insert until it holds, the time is over, or the error says that trying again is of no use."""
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
                    logger.info("PostgreSQL takes predictions again")
                    self._groups.accept()
                settle(batch, None)
                return

    def _refuse(self, batch: RowsGroup, error: InsertError) -> None:
        """Give up on a batch, and on all that waits behind it unless only this batch's rows are at fault."""
        if error.kind == "poison" and batch:
            logger.error("PostgreSQL refuses a row of a request: %s", error)
        else:
            before, reason = self._groups.refusal, explain_failure(error.kind)
            if before is None or before.code != reason.code:
                logger.warning("PostgreSQL takes no predictions (%s): %s", error.kind, error)
            self._groups.refuse(reason)
            self._groups.refuse_waiting(reason)
        settle(batch, UnavailableError("PostgreSQL did not take this prediction"))


@asynccontextmanager
async def open_committed_log(inserter: Inserter, on_death: OnTaskDeath) -> AsyncIterator[CommittedLog]:
    """Commit until exit; then whoever still waits is refused."""
    log = CommittedLog(inserter)
    async with own_task(log.run(), "committer", on_death):
        yield log
