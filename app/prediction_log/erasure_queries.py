"""SQL of erasures: requests, the predictions that are erased, and the reports of spools."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from app.database.queries import Connection, read_count
from app.prediction_log.erased_rows import Search
from app.prediction_log.record import ERASED_VALUES

REGISTER_SPOOL = """
INSERT INTO log_spool AS known (spool_id, place) VALUES ($1::uuid, $2::text)
ON CONFLICT (spool_id) DO UPDATE SET place = excluded.place, seen_at = now()
WHERE known.place <> excluded.place OR known.seen_at < now() - interval '1 minute'
"""


async def register_spool(connection: Connection, spool_id: UUID, place: str) -> None:
    """Note that a spool is there, at most once a minute."""
    await connection.execute(REGISTER_SPOOL, spool_id, place)


FORGET_SPOOL = "DELETE FROM log_spool WHERE spool_id = $1::uuid"


async def forget_spool(connection: Connection, spool_id: UUID) -> bool:
    """Note that a spool has no rows any more; return whether it was known."""
    return read_count(await connection.execute(FORGET_SPOOL, spool_id)) > 0


ADD_REQUEST = "INSERT INTO erasure_request (erasure_id, by_external_id) VALUES ($1::uuid, $2::boolean)"
ADD_SEARCH = "INSERT INTO erasure_search (erasure_id, salt, digest) VALUES ($1::uuid, $2::bytea, $3::bytea)"


async def add_request(connection: Connection, erasure_id: UUID, search: Search | None) -> None:
    """Ask every spool to erase the predictions of this erasure, and what `search` finds there."""
    await connection.execute(ADD_REQUEST, erasure_id, search is not None)
    if search is not None:
        await connection.execute(ADD_SEARCH, erasure_id, search.salt, search.digest)


FETCH_OPEN_REQUESTS = """
SELECT r.erasure_id, r.by_external_id, s.salt, s.digest
FROM erasure_request r LEFT JOIN erasure_search s USING (erasure_id)
WHERE r.finished_at IS NULL
    AND NOT EXISTS (SELECT FROM erasure_report p WHERE p.erasure_id = r.erasure_id AND p.spool_id = $1::uuid)
ORDER BY r.requested_at, r.erasure_id
"""


async def fetch_open_requests(connection: Connection, spool_id: UUID) -> list[asyncpg.Record]:
    """Fetch the requests on which a spool has not reported: (erasure_id, by_external_id, salt, digest)."""
    return await connection.fetch(FETCH_OPEN_REQUESTS, spool_id)


FETCH_ERASED = "SELECT prediction_id, erasure_id FROM erasure WHERE $1::uuid[] IS NULL OR erasure_id = ANY ($1::uuid[])"


async def fetch_erased(connection: Connection, erasure_ids: Sequence[UUID] | None) -> dict[UUID, UUID]:
    """Fetch the erased predictions of these erasures, None: of all; return each with its erasure."""
    return dict([tuple(row) for row in await connection.fetch(FETCH_ERASED, erasure_ids)])


FIND_ROWS = "SELECT prediction_id FROM prediction_log WHERE external_id = $1::text ORDER BY prediction_id"


async def find_rows(connection: Connection, external_id: str, timeout: float) -> list[UUID]:
    """Find the stored predictions under an external id."""
    return [row[0] for row in await connection.fetch(FIND_ROWS, external_id, timeout=timeout)]


LOCK_LOG = """
SET LOCAL lock_timeout = '5s';
LOCK TABLE ONLY prediction_log IN SHARE ROW EXCLUSIVE MODE
"""
"""Waits for the inserts that run, and makes new ones wait until COMMIT, some milliseconds; readers and dumps go on.

So an insert has either committed, and its rows are found by the update, or it sees which predictions are erased.
"""

ADD_ERASED = """
INSERT INTO erasure (prediction_id, erasure_id) SELECT unnest($1::uuid[]), $2::uuid
ON CONFLICT (prediction_id) DO UPDATE SET erasure_id = excluded.erasure_id
"""
"""A prediction that was erased before belongs to the new erasure: every spool looks for it once more."""

BLANK_ROWS = f"""
UPDATE prediction_log SET {", ".join(f"{name} = {value}" for name, value in ERASED_VALUES.items())}
WHERE prediction_id = ANY ($1::uuid[]) AND ({
    " OR ".join(f"{name} IS DISTINCT FROM {value}" for name, value in ERASED_VALUES.items())
})
"""  # noqa: S608  # made from constants only


async def erase_rows(connection: Connection, erasure_id: UUID, prediction_ids: Sequence[UUID], timeout: float) -> int:
    """Record predictions as erased, for ever, and blank the stored rows; return how many. Needs a transaction."""
    await connection.execute(LOCK_LOG, timeout=timeout)
    await connection.execute(ADD_ERASED, prediction_ids, erasure_id, timeout=timeout)
    return read_count(await connection.execute(BLANK_ROWS, prediction_ids, timeout=timeout))


ADD_REPORT = """
INSERT INTO erasure_report (erasure_id, spool_id, copies) VALUES ($1::uuid, $2::uuid, $3::bigint)
ON CONFLICT DO NOTHING
"""


async def add_report(connection: Connection, erasure_id: UUID, spool_id: UUID, copies: int) -> None:
    """Note that a spool has no copy of the erased predictions any more."""
    await connection.execute(ADD_REPORT, erasure_id, spool_id, copies)


FETCH_REPORTS = """
SELECT s.spool_id, s.place, s.seen_at, p.copies
FROM log_spool s LEFT JOIN erasure_report p ON p.spool_id = s.spool_id AND p.erasure_id = $1::uuid
ORDER BY s.place, s.spool_id
"""


async def fetch_reports(connection: Connection, erasure_id: UUID) -> list[asyncpg.Record]:
    """Fetch every known spool: (spool_id, place, seen_at, copies); `copies` is null while it has not reported."""
    return await connection.fetch(FETCH_REPORTS, erasure_id)


FINISH_REQUESTS = """
WITH finished AS (
    UPDATE erasure_request r SET finished_at = now()
    WHERE r.finished_at IS NULL AND (
        NOT EXISTS (
            SELECT FROM log_spool s WHERE NOT EXISTS (
                SELECT FROM erasure_report p WHERE p.erasure_id = r.erasure_id AND p.spool_id = s.spool_id
            )
        )
        OR (r.by_external_id AND NOT EXISTS (SELECT FROM erasure_search e WHERE e.erasure_id = r.erasure_id))
    )
    RETURNING r.erasure_id
)
DELETE FROM erasure_search WHERE erasure_id IN (SELECT erasure_id FROM finished)
"""


async def finish_requests(connection: Connection) -> None:
    """Finish the requests on which every known spool has reported, and remove what was searched.

    A request whose search is lost ends too: PostgreSQL empties that table after a crash, and a new primary has none.
    """
    await connection.execute(FINISH_REQUESTS)
