"""Compute the quality of every version over every window on one replica at a time, and store it for all replicas."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import msgspec
import numpy as np

from app.database.queries import Connection
from app.measures.buckets import kept_since, round_down, window_start
from app.measures.cells import Cells
from app.measures.f1 import choose_average
from app.measures.measure import measure
from app.quality import ledger, queries
from app.quality.ledger_queries import count_period
from app.quality.queries import QualityResult
from app.settings import F1Average, QualityWindow

logger = logging.getLogger(__name__)

MINUTE = timedelta(minutes=1)

CHECK_SECONDS = 10.0
"""Time limit for a check of the ledger: a check that takes longer costs more than it is worth."""

CHECK_PAUSE = timedelta(minutes=30)
"""From a check that took too long to the next one."""

Version = tuple[str, str]
"""Name of a model, and of its version."""


class KnownVersion(msgspec.Struct, frozen=True):
    """A registered version; `classes` as text, in the order of its probabilities."""

    name: str
    version: str
    classes: tuple[str, ...]
    positive_class: str | None


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """The operator's settings for the quality numbers."""

    windows: tuple[QualityWindow, ...]
    average: F1Average | None
    min_labels: int
    objective: float | None

    @property
    def window_names(self) -> list[str]:
        """The names of the windows as the operator wrote them."""
        return [window.name for window in self.windows]


async def refresh_results(
    pool: asyncpg.Pool,
    settings: QualitySettings,
    versions: Sequence[KnownVersion],
    loaded: Collection[Version],
    fresh: timedelta,
    check_seconds: float = CHECK_SECONDS,
) -> bool:
    """Fold, sum, measure and store; return False when another replica does it now or has done it within `fresh`.

    The fold is a transaction of its own, so that a later error does not undo it. Results are stored for the `versions`
    that are `loaded` here or have predictions in a window.
    """
    async with pool.acquire(timeout=5) as connection:
        async with connection.transaction():
            if not await _is_due(connection, fresh):
                return False
            await ledger.fold_ledger(connection, await queries.read_clock(connection))
        async with connection.transaction():
            if not await _is_due(connection, fresh):
                return False
            now = await queries.read_clock(connection)
            results = await score_windows(connection, settings, versions, loaded, now)
            await queries.store_results(connection, now, settings.window_names, results)
        await _check_minutes(connection, check_seconds)
    return True


async def _is_due(connection: Connection, fresh: timedelta) -> bool:
    """Take the job's lock until this transaction ends; return False if another replica has it or ran within `fresh`."""
    return await queries.try_job_lock(connection) and not await queries.is_computed_within(connection, fresh)


async def score_windows(
    connection: Connection,
    settings: QualitySettings,
    versions: Sequence[KnownVersion],
    loaded: Collection[Version],
    now: datetime,
) -> list[QualityResult]:
    """Score every version over every window up to `now`, from the ledger."""
    starts = [window_start(now, window.length) for window in settings.windows]
    sums: defaultdict[int, list[asyncpg.Record]] = defaultdict(list)
    for row in await ledger.sum_windows(connection, starts, now):
        sums[row["position"]].append(row)
    shown = {*loaded, *((row["model_name"], row["model_version"]) for rows in sums.values() for row in rows)}
    scored = [version for version in versions if (version.name, version.version) in shown]
    periods = [Period(window.name, since, now, now) for window, since in zip(settings.windows, starts, strict=True)]

    def score_all() -> list[QualityResult]:
        return [
            result
            for position, period in enumerate(periods)
            for result in _score_versions(scored, sums[position], period, settings)
        ]

    return await asyncio.to_thread(score_all)


async def score_period(
    connection: Connection,
    settings: QualitySettings,
    versions: Sequence[KnownVersion],
    since: datetime,
    until: datetime,
) -> list[QualityResult]:
    """Score versions on their predictions with since <= created_at <= until, from the rows instead of the ledger."""
    latest = min(until, queries.LATEST)
    last_ms = latest.replace(microsecond=latest.microsecond // 1000 * 1000)
    rows = await count_period(connection, since, last_ms + timedelta(milliseconds=1))
    period = Period("period", since, until, await queries.read_clock(connection))
    return await asyncio.to_thread(_score_versions, versions, rows, period, settings)


@dataclass(frozen=True, slots=True)
class Period:
    """The time range of a result's predictions, and when the result was computed."""

    name: str
    since: datetime
    until: datetime
    computed_at: datetime


def _score_versions(
    versions: Sequence[KnownVersion], sums: Sequence[asyncpg.Record], period: Period, settings: QualitySettings
) -> list[QualityResult]:
    """Score versions from their sums: each version as `live`, and in other roles where it has predictions."""
    found = {(row["model_name"], row["model_version"], row["role"]): row for row in sums}
    results = []
    for version in versions:
        names = (version.name, version.version)
        roles = {"live", *(role for *key, role in found if tuple(key) == names)}
        results += [_score(version, role, found.get((*names, role)), period, settings) for role in sorted(roles)]
    return results


def _score(
    version: KnownVersion, role: str, sums: asyncpg.Record | None, period: Period, settings: QualitySettings
) -> QualityResult:
    """Measure one version from its sums; `sums` is None when it has no predictions."""
    classes = list(version.classes)
    if sums is not None:  # somebody may have written a class by hand that the version does not have: add it
        classes += sorted({*sums["predicted"], *sums["labels"]} - {*classes, None})
    positive = classes.index(version.positive_class) if len(classes) == 2 and version.positive_class else None
    average = choose_average(settings.average, len(classes))
    cells = _make_cells(sums, {name: at for at, name in enumerate(classes)})
    measures = measure(cells, len(classes), positive, average, settings.min_labels)
    return QualityResult(
        *(version.name, version.version, role, period.name, period.computed_at, period.since, period.until),
        label_delay_seconds=sums["delay_sum"] / 1000 / measures.labelled if sums and measures.labelled else None,
        confusion=_name_confusion(measures.confusion, classes),
        measures=measures,
    )


def _make_cells(sums: asyncpg.Record | None, index: Mapping[str, int]) -> Cells:
    """Turn sums into cells, with classes as their index."""
    if sums is None:
        whole, real = np.zeros(0, dtype=np.int64), np.zeros(0)
        return Cells(whole, whole, whole, whole, real, real)
    return Cells(
        bins=np.array(sums["bins"], dtype=np.int64),
        predicted=np.array([index[name] for name in sums["predicted"]], dtype=np.int64),
        labels=np.array([-1 if name is None else index[name] for name in sums["labels"]], dtype=np.int64),
        rows=np.array(sums["rows"], dtype=np.int64),
        score_sums=np.array(sums["score_sums"], dtype=np.float64),
        score_square_sums=np.array(sums["score_square_sums"], dtype=np.float64),
    )


def _name_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return {label: {predicted class: rows}} without zeros."""
    named = {
        label: {name: rows for name, rows in zip(classes, row, strict=True) if rows}
        for label, row in zip(classes, matrix, strict=True)
    }
    return {label: row for label, row in named.items() if row}


async def _check_minutes(connection: Connection, limit_seconds: float) -> None:
    """Once a minute, compare the ledger with the rows for two minutes: the last complete one and the oldest kept one.

    So every minute is checked twice: after its predictions are stored, and after most of its labels have arrived. A
    check that takes longer than the limit says nothing; the next one comes after CHECK_PAUSE.
    """
    now = await queries.read_clock(connection)
    newest = round_down(now, 60) - MINUTE
    checked, mismatch_rows = await queries.read_check(connection)
    if newest - (MINUTE if mismatch_rows is not None else CHECK_PAUSE) < checked <= now:
        return
    oldest = kept_since(60, now) + MINUTE
    deadline = time.monotonic() + limit_seconds
    try:
        counts = [
            await ledger.count_mismatch(connection, minute, max(0.001, deadline - time.monotonic()))
            for minute in (newest, oldest)
        ]
    except (TimeoutError, asyncpg.QueryCanceledError):
        logger.warning(
            "the check of the ledger took longer than %g s, the next one is in %s", limit_seconds, CHECK_PAUSE
        )
        await queries.store_check(connection, newest, None)
    else:
        await queries.store_check(connection, newest, sum(counts))
