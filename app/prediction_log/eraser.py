"""Erase rows in this replica's spool when a command asks for it, and report.

The shipper calls this between two chunks, so no copy of a row is in memory on its way to PostgreSQL or dead/ meanwhile.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args
from uuid import UUID

import asyncpg

from app.prediction_log import erasure_queries as queries
from app.prediction_log.erased_rows import IdCollector, RowEraser, RowFinder, Search
from app.prediction_log.inserter import ATTEMPT_SECONDS
from app.spool.rewriting import DRAFT, read_file, remove_draft, rewrite_file
from app.spool.segment import Segment
from app.spool.spool import AsideFolder, Spool
from app.tasks import call_in_thread

logger = logging.getLogger(__name__)

ERASURE_LOOK_SECONDS = 1.0
"""Interval at which a replica looks for requests."""

ERASURE_RETRY_SECONDS = 10.0
"""Pause after a failure, because the next attempt reads all files again."""

STEP_SECONDS = 30.0
"""Limit for each statement that erases rows."""

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
        self._draft = spool.directory / DRAFT
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
            self._note("an error in this server")
        else:
            self._note("")
        pause = ERASURE_RETRY_SECONDS if self._problem else ERASURE_LOOK_SECONDS
        self._next_look = time.monotonic() + pause

    async def _work(self) -> None:
        """Erase what new requests ask for; the first time, also everything that was erased before."""
        if not self._is_checked:
            await self._check_files()
            self._is_checked = True
        async with asyncio.timeout(ATTEMPT_SECONDS), self._pool.acquire() as connection:
            await queries.register_spool(connection, self._id, self._place)
            rows = await queries.fetch_open_requests(connection, self._id)
            requests = [row["erasure_id"] for row in rows if row["digest"] or not row["by_external_id"]]
            erased = await queries.fetch_erased(connection, requests) if requests else {}
        if rows:
            searches = [Search(row["erasure_id"], row["salt"], row["digest"]) for row in rows if row["digest"]]
            await self._report(requests, await self._erase(erased, searches))

    async def _erase(self, erased: dict[UUID, UUID], searches: Sequence[Search]) -> Mapping[UUID, int]:
        """Blank all copies of erased predictions, and of those that searches find; return how many by erasure."""
        await self._close_open_segment()
        finder = RowFinder(searches)
        if searches:
            await self._visit_files(lambda path: call_in_thread(read_file, self._spool.disk, path, finder.look))
            await self._record(finder)
        found = {one: erasure_id for erasure_id, ids in finder.found.items() for one in ids}
        eraser = RowEraser(erased | found, searches)
        await self._visit_files(lambda path: self._rewrite(path, eraser))
        return eraser.copies

    async def _record(self, finder: RowFinder) -> None:
        """Record found predictions as erased before any copy is blanked: that no longer shows whose it was."""
        for erasure_id, ids in finder.found.items():
            for some in slice_ids(sorted(ids)):
                async with self._pool.acquire(timeout=STEP_SECONDS) as connection, connection.transaction():
                    await queries.erase_rows(connection, erasure_id, some, STEP_SECONDS)

    async def _check_files(self) -> None:
        """Blank every row that was erased before this process began; register the spool first, in case that fails."""
        async with asyncio.timeout(ATTEMPT_SECONDS), self._pool.acquire() as connection:
            await queries.register_spool(connection, self._id, self._place)
            has_erasures = await queries.has_erasures(connection)
        await call_in_thread(remove_draft, self._spool.disk, self._draft)
        if has_erasures:
            await self._visit_files(self._check_file)

    async def _check_file(self, path: Path) -> None:
        collector = IdCollector()
        await call_in_thread(read_file, self._spool.disk, path, collector.look)
        erased: dict[UUID, UUID] = {}
        for some in slice_ids(sorted(collector.ids)):
            async with asyncio.timeout(ATTEMPT_SECONDS), self._pool.acquire() as connection:
                erased |= await queries.fetch_erased_among(connection, some)
        if erased:
            await self._rewrite(path, RowEraser(erased, []))

    async def _rewrite(self, path: Path, eraser: RowEraser) -> None:
        await call_in_thread(rewrite_file, self._spool.disk, path, self._draft, eraser.blank)

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

    async def _visit_files(self, visit: Callable[[Path], Awaitable[None]]) -> None:
        """Visit each closed segment, which is not removed meanwhile, and each file in dead/ and corrupt/."""
        last = max((segment.sequence for segment in self._spool.segments if not segment.is_open), default=-1)
        visited: set[int] = set()
        while segment := self._find_segment(last, visited):
            visited.add(segment.sequence)
            segment.is_held = True
            try:
                await _visit_file(visit, segment.path)
            finally:
                segment.is_held = False
        for folder in get_args(AsideFolder):
            for path in await call_in_thread(self._spool.list_aside, folder):
                await _visit_file(visit, path)

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


async def _visit_file(visit: Callable[[Path], Awaitable[None]], path: Path) -> None:
    """Visit a file, unless somebody has removed it."""
    try:
        await visit(path)
    except FileNotFoundError:
        logger.debug("%s is gone", path)


def slice_ids(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    """Split ids for transactions that are short, because inserts wait for them."""
    return (ids[start : start + SLICE_IDS] for start in range(0, len(ids), SLICE_IDS))
