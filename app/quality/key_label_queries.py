"""SQL of labels under the client's own key, which are kept for predictions that are stored later."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import asyncpg

from app.database.queries import Connection, read_count

FIND_UNDER_KEYS = """
SELECT wanted.position, p.prediction_id, p.created_at, p.model_name, p.model_version, v.classes
FROM unnest($1::bigint[], $2::text[], $3::uuid[]) AS wanted (position, external_id, looked_to)
CROSS JOIN LATERAL (
    SELECT prediction_id, created_at, model_name, model_version FROM prediction_log
    WHERE external_id = wanted.external_id AND role = 'live' AND prediction_id > wanted.looked_to
    ORDER BY prediction_id LIMIT $4::integer
) p
LEFT JOIN model_version v ON v.name = p.model_name AND v.version = p.model_version
"""


async def find_under_keys(
    connection: Connection, positions: Sequence[int], keys: Sequence[str], looked_to: Sequence[UUID], limit: int
) -> list[asyncpg.Record]:
    """Find for each key up to `limit` live predictions after an id, as `label_queries.find_by_id` returns them."""
    return await connection.fetch(FIND_UNDER_KEYS, positions, keys, looked_to, limit)


ADD_KEY_LABELS = """
INSERT INTO key_label
    (external_id, label, observed_at, received_at, position, is_pending, stage, next_look_at, looked_to)
SELECT external_id, label, observed_at, received_at, position, is_pending,
    CASE WHEN looked_to IS NULL THEN 'fence' ELSE 'rest' END, now(), looked_to
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::boolean[], $6::uuid[])
    WITH ORDINALITY AS given (external_id, label, observed_at, received_at, is_pending, looked_to, position)
"""

ADOPT_PENDING = """
WITH moved AS (
    DELETE FROM pending_label WHERE pending_id IN (
        SELECT pending_id FROM pending_label WHERE external_id IS NOT NULL LIMIT 10000 FOR UPDATE SKIP LOCKED
    ) RETURNING *
)
INSERT INTO key_label (external_id, label, observed_at, received_at, position, is_pending, stage, next_look_at)
SELECT external_id, label, observed_at, received_at, row_number() OVER (ORDER BY pending_id), true, 'fence', now()
FROM moved
"""


async def add_key_labels(
    connection: Connection,
    keys: Sequence[str | None],
    labels: Sequence[str | None],
    observed_at: Sequence[datetime],
    received_at: Sequence[datetime],
    is_pending: Sequence[bool],
    looked_to: Sequence[UUID | None],
) -> None:
    """Keep labels under keys, in order; `looked_to` is given when a key has more predictions, after this one."""
    await connection.execute(ADD_KEY_LABELS, keys, labels, observed_at, received_at, is_pending, looked_to)


async def adopt_pending(connection: Connection) -> None:
    """Take over labels under keys that a server of the release before keeps as pending."""
    await connection.execute(ADOPT_PENDING)


TAKE_KEY_LABELS = """
SELECT label_id, external_id, label, observed_at, received_at, is_pending, looked_to,
    CASE WHEN fence > pg_snapshot_xmax(pg_current_snapshot()) THEN 'fence' ELSE stage END AS stage,
    coalesce(fence <= pg_snapshot_xmin(pg_current_snapshot()), false) AS is_behind_fence
FROM key_label WHERE next_look_at <= now() ORDER BY next_look_at LIMIT $1::integer FOR UPDATE SKIP LOCKED
"""
"""A fence in the future is of another server, from which these rows were restored."""

SET_FENCE = """
UPDATE key_label SET stage = 'look', looked_to = NULL, fence = pg_current_xact_id(), next_look_at = now()
WHERE label_id = ANY ($1::uuid[])
"""

MOVE_ON = """
UPDATE key_label SET stage = step.stage, looked_to = step.looked_to, is_pending = step.is_pending,
    next_look_at = CASE
        WHEN step.stage = 'settled' THEN NULL
        WHEN step.stage = 'look'
            THEN now() + least(greatest((now() - received_at) / 2, interval '1 second'), $5::interval)
        ELSE now()
    END
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::boolean[]) AS step (label_id, stage, looked_to, is_pending)
WHERE key_label.label_id = step.label_id
"""


class Step(NamedTuple):
    """What follows for a label: its next stage, how far its key's predictions were labelled, whether it found none."""

    label_id: UUID
    stage: str
    looked_to: UUID | None
    is_pending: bool


async def take_key_labels(connection: Connection, limit: int) -> list[asyncpg.Record]:
    """Lock and return up to `limit` labels that are due; skip those that others have locked.

    This must be the first statement of its transaction: `set_fence` relies on it. A label is behind its fence when all
    transactions that could have stored a prediction without seeing the label have ended.
    """
    return await connection.fetch(TAKE_KEY_LABELS, limit)


async def set_fence(connection: Connection, label_ids: Sequence[UUID]) -> None:
    """Note this transaction as the fence: it began after these labels were committed, and they are looked at again.

    A writer of the log looks for labels under its keys after it has got its transaction's number. If it does not see a
    label, it got its number before the label's COMMIT, so before this transaction did.
    """
    await connection.execute(SET_FENCE, label_ids)


async def move_on(connection: Connection, steps: Sequence[Step], longest: timedelta) -> None:
    """Set the next stage of labels; a label that stays at `look` waits half its age, at most `longest`."""
    await connection.execute(
        MOVE_ON,
        [step.label_id for step in steps],
        [step.stage for step in steps],
        [step.looked_to for step in steps],
        [step.is_pending for step in steps],
        longest,
    )


FIND_OUTDONE = """
SELECT label_id FROM (
    SELECT label_id, observed_at, stage, is_pending, max(observed_at) OVER (
        PARTITION BY external_id, label ORDER BY received_at DESC, position DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS newer
    FROM key_label WHERE external_id = ANY ($1::text[])
) kept
WHERE stage = 'settled' AND NOT is_pending AND newer >= observed_at
"""
"""The same class for the same key, received later and observed no earlier: the older label can never count."""

REMOVE_KEY_LABELS = """
DELETE FROM key_label WHERE label_id IN (
    SELECT label_id FROM key_label WHERE label_id = ANY ($1::uuid[]) FOR UPDATE SKIP LOCKED
)
"""

EXPIRE_KEY_LABELS = """
DELETE FROM key_label WHERE label_id IN (
    SELECT label_id FROM key_label
    WHERE received_at < least(now(), (SELECT min(stored_at) FROM labelled_arrival)) - $1::interval
    ORDER BY received_at LIMIT $2::integer FOR UPDATE SKIP LOCKED
) RETURNING is_pending
"""
"""A prediction that was stored in time may still wait for the sweep."""


async def remove_outdone(connection: Connection, keys: Sequence[str]) -> None:
    """Remove labels of these keys that a newer label with the same class makes useless."""
    outdone = [row["label_id"] for row in await connection.fetch(FIND_OUTDONE, keys)]
    if outdone:
        await connection.execute(REMOVE_KEY_LABELS, outdone)


async def expire_key_labels(connection: Connection, age: timedelta, limit: int) -> list[bool]:
    """Remove up to `limit` labels that are older than `age`; return of each whether it found no prediction."""
    return [row["is_pending"] for row in await connection.fetch(EXPIRE_KEY_LABELS, age, limit)]


MEET_KEYS = """
UPDATE key_label SET is_pending = false WHERE label_id IN (
    SELECT label_id FROM key_label WHERE external_id = ANY ($1::text[]) AND is_pending FOR UPDATE SKIP LOCKED
) RETURNING label_id
"""

FIND_HELD_KEYS = "SELECT DISTINCT external_id FROM key_label WHERE external_id = ANY ($1::text[]) AND is_pending"

FIND_KEY_LABELS = """
SELECT wanted.prediction_id, kept.label_id, kept.label, kept.observed_at, kept.received_at, kept.position
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS wanted (prediction_id, external_id, stored_at)
CROSS JOIN LATERAL (
    SELECT label_id, label, observed_at, received_at, position FROM key_label
    WHERE external_id = wanted.external_id AND received_at >= wanted.stored_at - $4::interval
    ORDER BY observed_at DESC, received_at DESC, position DESC LIMIT 100
) kept
"""
"""With `remove_outdone` a key has a label for each class, or few more: 100 is a limit for keys that are misused."""


async def meet_keys(connection: Connection, keys: Sequence[str]) -> set[UUID]:
    """Note that these keys have a prediction; return the labels under them that had none so far."""
    return {row["label_id"] for row in await connection.fetch(MEET_KEYS, keys)}


async def find_held_keys(connection: Connection, keys: Sequence[str]) -> set[str]:
    """Return which of these keys have labels that could not be noted, because others have locked them."""
    return {row["external_id"] for row in await connection.fetch(FIND_HELD_KEYS, keys)}


async def find_key_labels(
    connection: Connection,
    prediction_ids: Sequence[UUID],
    keys: Sequence[str],
    stored_at: Sequence[datetime],
    kept_for: timedelta,
) -> list[asyncpg.Record]:
    """Find the labels that count for predictions, which were stored up to `kept_for` after them."""
    return await connection.fetch(FIND_KEY_LABELS, prediction_ids, keys, stored_at, kept_for)


LIST_KEYS = """
SELECT DISTINCT external_id FROM prediction_log p
WHERE prediction_id = ANY ($1::uuid[]) AND EXISTS (SELECT FROM key_label kept WHERE kept.external_id = p.external_id)
"""

REMOVE_UNDER_KEY = "DELETE FROM key_label WHERE external_id = $1::text"

REMOVE_UNUSED_KEYS = """
DELETE FROM key_label WHERE external_id = ANY ($1::text[])
    AND NOT EXISTS (SELECT FROM prediction_log p WHERE p.external_id = key_label.external_id)
"""


async def list_keys(connection: Connection, prediction_ids: Sequence[UUID]) -> list[str]:
    """Return the keys of predictions under which labels are kept."""
    return [row["external_id"] for row in await connection.fetch(LIST_KEYS, prediction_ids)]


async def remove_under_key(connection: Connection, external_id: str) -> int:
    """Remove the labels under a key; return how many."""
    return read_count(await connection.execute(REMOVE_UNDER_KEY, external_id))


async def remove_unused_keys(connection: Connection, keys: Sequence[str]) -> int:
    """Remove the labels under those of these keys that have no prediction any more; return how many."""
    return read_count(await connection.execute(REMOVE_UNUSED_KEYS, keys))
