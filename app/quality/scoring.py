"""Compute the quality of every version over every window, one replica at a time, and store it for all."""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec

from app.database.queries import Connection
from app.quality import queries
from app.quality.f1 import choose_average, compute_f1
from app.quality.labels import sweep_pending
from app.quality.queries import QualityResult
from app.settings import F1Average, QualityWindow

STATES = ("no_predictions", "no_labels", "no_positives", "ok")
"""Why there is no F1, or `ok`."""

LONGEST_MINUTE_WINDOW = timedelta(hours=6)
"""Up to this length windows begin on a minute, longer ones on an hour."""


async def refresh_results(
    pool: asyncpg.Pool, windows: Sequence[QualityWindow], average: F1Average | None, fresh: timedelta
) -> bool:
    """Sweep, then count and store; False when another replica is at it or did so within `fresh`.

    The sweep commits by itself, so that its labels are not held up by a scan that takes long or fails.
    """
    async with pool.acquire(timeout=5) as connection:
        await sweep_pending(connection)
        async with connection.transaction():
            if not await queries.try_job_lock(connection) or await queries.is_computed_within(connection, fresh):
                return False
            now = await queries.read_clock(connection)
            results = []
            for window in windows:
                since = window_start(now, window.length)
                results += await score_period(connection, window.name, since, now, average)
            await queries.store_results(connection, results)
    return True


async def score_period(
    connection: Connection, name: str, since: datetime, until: datetime, average: F1Average | None
) -> list[QualityResult]:
    """Score every known version on its predictions with since <= created_at <= until, from the raw rows."""
    confusions: defaultdict[tuple[str, str], dict[str, dict[str, int]]] = defaultdict(dict)
    predictions: defaultdict[tuple[str, str], int] = defaultdict(int)
    for model_name, version, predicted, label, rows in await queries.count_confusion(connection, since, until):
        predictions[model_name, version] += rows
        if label is not None:
            confusions[model_name, version].setdefault(label, {})[predicted] = rows
    results = []
    for model_name, version, classes, positive_class in await queries.fetch_versions(connection):
        key = model_name, version
        labelled = sum(sum(row.values()) for row in confusions[key].values())
        chosen = choose_average(average, len(msgspec.json.decode(classes)))
        f1 = compute_f1(confusions[key], chosen, positive_class)
        state = name_state(predictions[key], labelled, f1)
        results.append(
            QualityResult(
                model_name,
                version,
                name,
                until,
                since,
                until,
                state,
                chosen,
                f1,
                predictions[key],
                labelled,
                confusions[key],
            )
        )
    return results


def name_state(predictions: int, labelled: int, f1: float | None) -> str:
    """Name the reason why there is no F1, or `ok`."""
    if predictions == 0:
        return "no_predictions"
    if labelled == 0:
        return "no_labels"
    return "no_positives" if f1 is None else "ok"


def window_start(now: datetime, length: timedelta) -> datetime:
    """Return `now` - `length`, rounded down to a minute, for windows over six hours to an hour (UTC)."""
    edge = 60 if length <= LONGEST_MINUTE_WINDOW else 3600
    return datetime.fromtimestamp(math.floor((now - length).timestamp() / edge) * edge, UTC)
