"""SQL of labels that wait for the id of a prediction, and of predictions that came after a label for them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from app.database.queries import Connection, read_count

ADD_PENDING = """
INSERT INTO pending_label (prediction_id, label, observed_at, received_at, next_try_at)
SELECT *, now() FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[])
"""

TAKE_PENDING = """
SELECT pending_id, prediction_id, external_id, label, observed_at, received_at FROM pending_label
WHERE prediction_id IS NOT NULL AND next_try_at <= $1::timestamptz
ORDER BY next_try_at, pending_id LIMIT $2::integer FOR UPDATE SKIP LOCKED
"""

TAKE_PENDING_OF = """
SELECT pending_id, prediction_id, external_id, label, observed_at, received_at FROM pending_label
WHERE prediction_id = ANY ($1::uuid[]) ORDER BY pending_id FOR UPDATE SKIP LOCKED
"""

FIND_HELD_PENDING = """
SELECT DISTINCT prediction_id FROM pending_label
WHERE prediction_id = ANY ($1::uuid[]) AND pending_id <> ALL ($2::bigint[])
"""

REMOVE_PENDING = "DELETE FROM pending_label WHERE pending_id = ANY ($1::bigint[])"

POSTPONE_PENDING = """
UPDATE pending_label
SET next_try_at = now() + least(greatest((now() - received_at) / 2, interval '1 second'), $2::interval)
WHERE pending_id = ANY ($1::bigint[])
"""
"""The older a label, the longer the pause between tries, so that labels without a prediction cost almost nothing."""


async def add_pending(
    connection: Connection,
    prediction_ids: Sequence[UUID | None],
    labels: Sequence[str | None],
    observed_at: Sequence[datetime],
    received_at: Sequence[datetime],
) -> None:
    """Keep labels whose prediction is not stored yet."""
    await connection.execute(ADD_PENDING, prediction_ids, labels, observed_at, received_at)


async def take_pending(connection: Connection, due: datetime, limit: int) -> list[asyncpg.Record]:
    """Lock and return up to `limit` pending labels whose next try is due; skip those that others have locked."""
    return await connection.fetch(TAKE_PENDING, due, limit)


async def take_pending_of(connection: Connection, prediction_ids: Sequence[UUID]) -> list[asyncpg.Record]:
    """Lock and return the pending labels of these predictions, due or not, in the order in which they arrived."""
    return await connection.fetch(TAKE_PENDING_OF, prediction_ids)


async def find_held_pending(connection: Connection, prediction_ids: Sequence[UUID], taken: Sequence[int]) -> set[UUID]:
    """Return which of these predictions have other pending labels than those taken: others have locked them."""
    return {row["prediction_id"] for row in await connection.fetch(FIND_HELD_PENDING, prediction_ids, taken)}


async def remove_pending(connection: Connection, pending_ids: Sequence[int]) -> None:
    """Remove pending labels that were applied, rejected or have expired."""
    await connection.execute(REMOVE_PENDING, pending_ids)


async def postpone_pending(connection: Connection, pending_ids: Sequence[int], longest: timedelta) -> None:
    """Try these labels again after half their age, at least 1 s and at most `longest`."""
    await connection.execute(POSTPONE_PENDING, pending_ids, longest)


ADD_ARRIVALS = """
INSERT INTO labelled_arrival (prediction_id, external_id) SELECT * FROM unnest($1::uuid[], $2::text[])
"""

TAKE_ARRIVALS = """
SELECT arrival_id, prediction_id, external_id, stored_at FROM labelled_arrival
WHERE next_try_at <= now() ORDER BY next_try_at LIMIT $1::integer FOR UPDATE SKIP LOCKED
"""

REMOVE_ARRIVALS = "DELETE FROM labelled_arrival WHERE arrival_id = ANY ($1::uuid[])"

POSTPONE_ARRIVALS = """
UPDATE labelled_arrival
SET next_try_at = now() + least(greatest((now() - stored_at) / 2, interval '1 second'), $2::interval)
WHERE arrival_id = ANY ($1::uuid[])
"""

DROP_OLD_ARRIVALS = "DELETE FROM labelled_arrival WHERE stored_at < now() - $1::interval"


async def add_arrivals(connection: Connection, prediction_ids: Sequence[UUID], external_ids: Sequence[str]) -> None:
    """Let the sweep apply the labels of these keys to these predictions, which are stored."""
    await connection.execute(ADD_ARRIVALS, prediction_ids, external_ids)


async def take_arrivals(connection: Connection, limit: int) -> list[asyncpg.Record]:
    """Lock and return up to `limit` predictions that came after a label for them; skip those that others have locked.

    `external_id` is None when the label is for the id.
    """
    return await connection.fetch(TAKE_ARRIVALS, limit)


async def remove_arrivals(connection: Connection, arrival_ids: Sequence[UUID]) -> None:
    """Forget predictions that have their labels now."""
    await connection.execute(REMOVE_ARRIVALS, arrival_ids)


async def postpone_arrivals(connection: Connection, arrival_ids: Sequence[UUID], longest: timedelta) -> None:
    """Try these predictions again after half their age, at least 1 s and at most `longest`."""
    await connection.execute(POSTPONE_ARRIVALS, arrival_ids, longest)


async def drop_old_arrivals(connection: Connection, age: timedelta) -> None:
    """Forget predictions that could not be labelled for so long: their rows or their version are gone."""
    await connection.execute(DROP_OLD_ARRIVALS, age)


REMOVE_PENDING_OF = "DELETE FROM pending_label WHERE prediction_id = ANY ($1::uuid[]) OR external_id = $2::text"

REMOVE_ARRIVALS_OF = "DELETE FROM labelled_arrival WHERE prediction_id = ANY ($1::uuid[]) OR external_id = $2::text"


async def remove_pending_of(connection: Connection, prediction_ids: Sequence[UUID], external_id: str | None) -> int:
    """Remove the labels that wait for erased predictions, and those under an external id; return how many."""
    await connection.execute(REMOVE_ARRIVALS_OF, prediction_ids, external_id)
    return read_count(await connection.execute(REMOVE_PENDING_OF, prediction_ids, external_id))
