"""Erase rows in this replica's spool when a command asks for it, and report.

The shipper calls this between two chunks, so no copy of a row is in memory on its way to PostgreSQL or dead/ meanwhile.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args
from uuid import UUID

import asyncpg

from app.prediction_log import erasure_queries as queries
from app.prediction_log.erased_rows import RowEraser, RowFinder, Search
from app.spool.rewriting import DRAFT, read_file, remove_draft, rewrite_file
from app.spool.segment import Segment
from app.spool.spool import AsideFolder, Spool
from app.tasks import call_in_thread

logger = logging.getLogger(__name__)

ERASURE_LOOK_SECONDS = 1.0
"""Interval at which a replica looks for requests."""

STEP_SECONDS = 30.0
"""Limit for each step in the database."""

ROTATE_SECONDS = 10.0
"""How long to wait until the writer has begun a new segment; it does so within a second unless its disk fails."""

SLICE_IDS = 500
"""Predictions erased in one transaction, in which inserts wait some milliseconds."""


class Eraser:
    """Works on requests for one spool."""

    def __init__(self, spool: Spool, pool: asyncpg.Pool) -> None:
        self._spool = spool
        self._pool = pool
        self._id = UUID(bytes=spool.uuid)
        self._place = f"{socket.gethostname()}:{spool.directory}"
        self._next_look = 0.0
        self._is_checked = False
        self._problem = ""

    async def work(self) -> None:
        """Look for requests, and work on them; when that fails, log it and try again the next time."""
        if time.monotonic() < self._next_look:
            return
        try:
            await self._work()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._note(f"{type(error).__name__}: {error}")
        except Exception:
            logger.exception("an erasure failed because of a bug; it is tried again")
        else:
            self._note("")
        self._next_look = time.monotonic() + ERASURE_LOOK_SECONDS

    async def _work(self) -> None:
        """Erase what new requests ask for; the first time, also everything that was erased before."""
        draft = self._spool.directory / DRAFT
        if not self._is_checked:
            await call_in_thread(remove_draft, self._spool.disk, draft)
        async with self._pool.acquire(timeout=STEP_SECONDS) as connection:
            await queries.register_spool(connection, self._id, self._place)
            rows = await queries.fetch_open_requests(connection, self._id)
            requests = [row["erasure_id"] for row in rows if row["digest"] or not row["by_external_id"]]
            erased = await queries.fetch_erased(connection, requests if self._is_checked else None)
        searches = [Search(row["erasure_id"], row["salt"], row["digest"]) for row in rows if row["digest"]]
        if erased or searches:
            await self._close_open_segment()
            erased |= await self._find(searches)
        eraser = RowEraser(erased, searches)
        if erased or searches:
            await self._visit_files(lambda path: rewrite_file(self._spool.disk, path, draft, eraser.blank))
        self._is_checked = True
        if rows:
            await self._report(requests, eraser.copies)

    async def _close_open_segment(self) -> None:
        """Have the writer begin a new segment, so that every row that was answered is in a file that may change."""
        if not any(segment.is_open and segment.rows for segment in self._spool.segments):
            return
        self._spool.begun.clear()
        self._spool.is_rotation_wanted = True
        try:
            async with asyncio.timeout(ROTATE_SECONDS):
                await self._spool.begun.wait()
        finally:
            self._spool.is_rotation_wanted = False

    async def _find(self, searches: Sequence[Search]) -> dict[UUID, UUID]:
        """Find the rows of searched external ids, record them as erased, and return them with their erasures.

        They are recorded before any copy is blanked: a blank copy does not show any more whose it was.
        """
        if not searches:
            return {}
        finder = RowFinder(searches)
        await self._visit_files(lambda path: read_file(self._spool.disk, path, finder.look))
        for erasure_id, ids in finder.found.items():
            for some in slice_ids(sorted(ids)):
                async with self._pool.acquire(timeout=STEP_SECONDS) as connection, connection.transaction():
                    await queries.erase_rows(connection, erasure_id, some, STEP_SECONDS)
        return {one: erasure_id for erasure_id, ids in finder.found.items() for one in ids}

    async def _visit_files(self, visit: Callable[[Path], None]) -> None:
        """Call `visit`, in a thread, for each closed segment and for each file in dead/ and corrupt/."""
        last = max((segment.sequence for segment in self._spool.segments if not segment.is_open), default=-1)
        visited: set[int] = set()
        while segment := self._find_segment(last, visited):
            visited.add(segment.sequence)
            segment.is_held = True
            try:
                await call_in_thread(_visit_file, visit, segment.path)
            finally:
                segment.is_held = False
        for folder in get_args(AsideFolder):
            for path in await call_in_thread(self._spool.list_aside, folder):
                await call_in_thread(_visit_file, visit, path)

    def _find_segment(self, last: int, visited: set[int]) -> Segment | None:
        """Return a closed segment, up to `last`, that was not visited; one may come back that could not be removed."""
        segments = (one for one in self._spool.segments if not one.is_open and one.sequence <= last)
        return next((segment for segment in segments if segment.sequence not in visited), None)

    async def _report(self, requests: Sequence[UUID], copies: Mapping[UUID, int]) -> None:
        async with self._pool.acquire(timeout=STEP_SECONDS) as connection:
            for erasure_id in requests:
                await queries.add_report(connection, erasure_id, self._id, copies.get(erasure_id, 0))
                logger.info("erasure %s: %d copies of rows were erased here", erasure_id, copies.get(erasure_id, 0))
            await queries.finish_requests(connection)

    def _note(self, problem: str) -> None:
        """Log a problem once, not each second."""
        if problem and problem != self._problem:
            logger.warning("erasures cannot be looked for or worked on now: %s", problem)
        self._problem = problem


async def forget_empty_spool(pool: asyncpg.Pool, spool: Spool) -> None:
    """Note that a spool has no files any more, so that no erasure waits for it."""
    async with pool.acquire(timeout=STEP_SECONDS) as connection:
        await queries.forget_spool(connection, UUID(bytes=spool.uuid))
        await queries.finish_requests(connection)


def _visit_file(visit: Callable[[Path], None], path: Path) -> None:
    """Visit a file, unless somebody has removed it."""
    try:
        visit(path)
    except FileNotFoundError:
        logger.debug("%s is gone", path)


def slice_ids(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    """Split ids for transactions that are short, because inserts wait for them."""
    return (ids[start : start + SLICE_IDS] for start in range(0, len(ids), SLICE_IDS))
