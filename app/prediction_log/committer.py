"""Durability level `database`: a request waits for the COMMIT of the batch that holds its rows.

A batch forms while the previous one commits. When PostgreSQL cannot take rows, requests are refused, not kept waiting.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from app import metrics
from app.errors import UnavailableError
from app.prediction_log.inserter import Inserter, InsertError, LogFailure
from app.prediction_log.record import Rows

logger = logging.getLogger(__name__)

MAX_PENDING_ROWS = 50_000
"""Rows that may wait for a COMMIT, about a second of what PostgreSQL takes; beyond, requests are refused."""

MAX_BATCH_ROWS = 5_000
"""Requests join a batch up to this many rows; one larger request goes alone. More rows are not faster."""

SHIP_SECONDS = 5.0
"""How long a batch is tried before its requests are answered 503: longer than a restart of PostgreSQL's pooler."""

PROBE_SECONDS = 1.0
"""How often an idle or failing committer tries an insert of no rows, so that readiness is true without traffic."""

RETRY_BASE_SECONDS, RETRY_CAP_SECONDS = 0.05, 1.0
"""Bounds of the pause between two attempts, drawn with full jitter."""


class LogUnavailableError(UnavailableError):
    """PostgreSQL does not take rows now, or more rows wait than it can take soon: nothing is promised."""


@dataclass(slots=True)
class _Group:
    """Rows that are stored together or not at all, `count` of them."""

    rows: Sequence[Rows]
    count: int
    stored: "asyncio.Future[None]"


class Committer:
    """Stores rows before it returns. Full (MAX_PENDING_ROWS) or failing (`failure`): LogUnavailableError at once."""

    def __init__(self, inserter: Inserter) -> None:
        self._inserter = inserter
        self._waiting: list[_Group] = []
        self._committing: list[_Group] = []
        self._arrived = asyncio.Event()
        self.pending_rows = 0
        self.failure: LogFailure | None = None

    async def store(self, rows: Sequence[Rows]) -> None:
        """Return when PostgreSQL has committed all `rows`; raise LogUnavailableError when that is not certain."""
        count = sum([part.count for part in rows])
        if self.failure is not None:
            raise LogUnavailableError("PostgreSQL does not take predictions now")
        if self.pending_rows and self.pending_rows + count > MAX_PENDING_ROWS:
            raise LogUnavailableError("too many predictions wait to be stored")
        group = _Group(rows, count, asyncio.get_running_loop().create_future())
        self._waiting.append(group)
        self.pending_rows += count
        self._arrived.set()
        await group.stored

    async def run(self) -> None:
        """Commit batches until cancelled; probe while there is nothing to commit. Nobody is left waiting at the end."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):
                        await self._arrived.wait()
                self._committing = self._take_batch()
                await self._commit(self._committing)
        finally:
            self.failure = LogFailure("transient", "the server is stopping")
            self._settle(self._committing + self._waiting, LogUnavailableError("the server is stopping"))

    def _take_batch(self) -> list[_Group]:
        rows = taken = 0
        for group in self._waiting:
            if taken and rows + group.count > MAX_BATCH_ROWS:
                break
            rows += group.count
            taken += 1
        batch = self._waiting[:taken]
        del self._waiting[:taken]
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _commit(self, batch: list[_Group]) -> None:
        """Insert until it holds, the time is over, or the error says that trying again is of no use."""
        deadline = time.monotonic() + SHIP_SECONDS
        attempt = 0
        while True:
            try:
                stored = await self._inserter.insert([part.payload for group in batch for part in group.rows])
            except InsertError as error:
                attempt += 1
                if error.kind == "poison" and len(batch) > 1:
                    await self._commit(batch[: len(batch) // 2])
                    await self._commit(batch[len(batch) // 2 :])
                    return
                if error.kind != "transient" or time.monotonic() >= deadline:
                    self._refuse(batch, error)
                    return
                if attempt > 1:  # after a restart of the server only the first use of a pooled connection fails
                    longest = min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2**attempt)
                    await asyncio.sleep(random.uniform(0, longest))  # noqa: S311
            else:
                metrics.LOG_REPEATED.inc(sum(group.count for group in batch) - stored)
                if self.failure is not None:
                    logger.info("PostgreSQL takes predictions again")
                    self.failure = None
                self._settle(batch, None)
                return

    def _refuse(self, batch: list[_Group], error: InsertError) -> None:
        """Give up on a batch, and on all that waits behind it unless only this batch's rows are at fault."""
        if error.kind == "poison" and batch:
            logger.error("PostgreSQL refuses a row of a request: %s", error)
        else:
            if self.failure is None:
                logger.warning("PostgreSQL takes no predictions (%s): %s", error.kind, error)
                self.failure = LogFailure(error.kind, error.reason)
            batch = batch + self._waiting
            self._waiting = []
            self._arrived.clear()
        self._settle(batch, LogUnavailableError("PostgreSQL did not take this prediction"))

    def _settle(self, batch: list[_Group], error: LogUnavailableError | None) -> None:
        for group in batch:
            if group.stored.done():
                continue  # its client has gone, or an earlier half of this batch has been settled
            if error is None:
                group.stored.set_result(None)
            else:
                group.stored.set_exception(error)
        self.pending_rows = sum(group.count for group in self._committing + self._waiting if not group.stored.done())
