"""The counts behind a window's numbers, from the ledger: predictions and labels over time and by score."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

import asyncpg
import msgspec
from msgspec import Meta

from app.database.queries import Connection
from app.measures.buckets import choose_span
from app.measures.cells import BINS
from app.quality.ledger_queries import count_buckets

SCORE_BARS = 20
"""Bars of 0.05 each, as the buckets of `prediction_score_distribution`."""


class Counts(msgspec.Struct, kw_only=True):
    """Numbers of predictions: all, with a label, and with a label that is the predicted class."""

    predictions: Annotated[int, Meta(description="Predictions", examples=[120])] = 0
    labelled: Annotated[int, Meta(description="Predictions with a label", examples=[100])] = 0
    correct: Annotated[int, Meta(description="Predictions whose label is the predicted class", examples=[94])] = 0

    def add(self, row: asyncpg.Record) -> None:
        """Add a row of `count_buckets`."""
        self.predictions += row["predictions"]
        self.labelled += row["labelled"]
        self.correct += row["correct"]


class TimeCounts(Counts, kw_only=True):
    """Counts of the predictions with since <= created_at < until."""

    since: Annotated[datetime, Meta(description="When the bucket begins", examples=["2026-01-01T00:00:00Z"])]
    until: Annotated[datetime, Meta(description="When the bucket ends", examples=["2026-01-01T00:01:00Z"])]
    classes: Annotated[
        dict[str, int], Meta(description="Predictions by predicted class", examples=[{"0": 40, "1": 80}])
    ]


class ScoreCounts(Counts, kw_only=True):
    """Counts of the predictions with lower <= score < upper; the last bar includes 1.0."""

    lower: Annotated[float, Meta(description="The lowest score of the bar", examples=[0.95])]
    upper: Annotated[float, Meta(description="The score at which the next bar begins", examples=[1.0])]


async def count_window(
    connection: Connection, names: tuple[str, str, str], since: datetime, until: datetime
) -> tuple[list[TimeCounts], list[ScoreCounts]]:
    """Count the predictions of (model, version, role) in a window by time and by score, both without gaps.

    `since` is a window's start (`buckets.window_start`). The counts include everything folded until now, which may be
    slightly more than the result computed at `until` includes.
    """
    span = choose_span(since, until)
    rows = await count_buckets(connection, names, span, since, until, BINS // SCORE_BARS)
    # In a thread: with many classes there are tens of thousands of rows.
    return await asyncio.to_thread(lambda: (_count_by_time(rows, span, since, until), _count_by_score(rows)))


def _count_by_time(rows: Sequence[asyncpg.Record], span: int, since: datetime, until: datetime) -> list[TimeCounts]:
    """Count by buckets of `span` seconds; the last bucket ends at `until`."""
    length, at = timedelta(seconds=span), since
    buckets: dict[datetime, TimeCounts] = {}
    while at < until:
        buckets[at] = TimeCounts(since=at, until=min(at + length, until), classes={})
        at += length
    for row in rows:
        if row["starts_at"] is not None:
            bucket = buckets[row["starts_at"]]
            bucket.add(row)
            bucket.classes[row["predicted_class"]] = row["predictions"]
    return list(buckets.values())


def _count_by_score(rows: Sequence[asyncpg.Record]) -> list[ScoreCounts]:
    """Count by SCORE_BARS equal ranges of the score."""
    bars = [ScoreCounts(lower=bar / SCORE_BARS, upper=(bar + 1) / SCORE_BARS) for bar in range(SCORE_BARS)]
    for row in rows:
        if row["starts_at"] is None:
            bars[row["score_bar"]].add(row)
    return bars
