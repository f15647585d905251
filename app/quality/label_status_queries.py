"""SQL of what became of labels that a request could not apply: rejected ones are counted, others still wait."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from app.database.queries import Connection
from app.quality.label_classes import Rejection

ADD_REJECTIONS = """
INSERT INTO label_rejection (model_name, model_version, labels)
SELECT * FROM unnest($1::text[], $2::text[], $3::integer[])
"""

DROP_OLD_REJECTIONS = "DELETE FROM label_rejection WHERE rejected_at < now() - $1::interval"


async def add_rejections(connection: Connection, rejections: Iterable[Rejection]) -> None:
    """Count rejected labels by version: rows are only added, so that requests do not wait for each other."""
    counts = Counter((rejection.model_name, rejection.model_version) for rejection in rejections)
    if counts:
        columns = [[model for model, _ in counts], [version for _, version in counts], list(counts.values())]
        await connection.execute(ADD_REJECTIONS, *columns)


async def drop_old_rejections(connection: Connection, age: timedelta) -> None:
    """Forget counts that are older than `age`."""
    await connection.execute(DROP_OLD_REJECTIONS, age)


READ_STATUS = """
SELECT waiting.pending, waiting.pending_since, waiting.overdue, waiting.overdue_since,
    refused.rejected, refused.rejected_at, refused.rejected_lately, refused.rejected_since, refused.rejected_by
FROM (
    SELECT count(*) AS pending, min(received_at) AS pending_since, count(*) FILTER (WHERE is_overdue) AS overdue,
        min(received_at) FILTER (WHERE is_overdue) AS overdue_since
    FROM (
        SELECT received_at, received_at > now() - interval '25 hours' AND received_at < now() - interval '1 hour'
            AS is_overdue
        FROM (
            SELECT received_at FROM pending_label
            UNION ALL
            SELECT received_at FROM key_label WHERE is_pending
        ) both_kinds
    ) label
) waiting
CROSS JOIN (
    SELECT coalesce(sum(labels), 0)::bigint AS rejected, max(rejected_at) AS rejected_at,
        coalesce(sum(labels) FILTER (WHERE is_recent), 0)::bigint AS rejected_lately,
        min(rejected_at) FILTER (WHERE is_recent) AS rejected_since,
        (array_agg(DISTINCT model_name || ' version ' || model_version) FILTER (WHERE is_recent))[1:5] AS rejected_by
    FROM (
        SELECT *, rejected_at > now() - interval '1 hour' AS is_recent
        FROM label_rejection WHERE rejected_at > now() - interval '1 day'
    ) day
) refused
"""
"""A label that waits for more than a day has been shown for a day: its id is wrong, and it is no news any more."""


class LabelStatus(msgspec.Struct, frozen=True):
    """Labels that wait for a prediction, and labels that were rejected in the last 24 hours, with when.

    Of these, `overdue` have waited for one hour to 25, and `rejected_lately` were rejected in the last hour, by the
    versions `rejected_by` (five at most).
    """

    pending: int
    pending_since: datetime | None
    overdue: int
    overdue_since: datetime | None
    rejected: int
    rejected_at: datetime | None
    rejected_lately: int
    rejected_since: datetime | None
    rejected_by: list[str] | None


async def read_label_status(connection: Connection) -> LabelStatus:
    """Count the labels that wait and that were rejected, on all replicas."""
    row = await connection.fetchrow(READ_STATUS)
    assert row is not None
    return LabelStatus(*row)
