"""Time in the ledger: how long its buckets are, how long they are kept, and which buckets cover a period."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

SPANS = (60, 600, 3600, 21_600, 86_400)
"""Lengths of buckets in seconds, each a multiple of the one before. A bucket begins at a multiple of its length since
1970, UTC."""

EDGES_PER_WINDOW = 24
"""A window has at least this many buckets of some length; it begins on an edge of the longest such bucket. So it is at
most 1/24 longer than asked, or a minute."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive buckets of one span: since <= starts_at < until."""

    span: int
    since: datetime
    until: datetime


def window_start(now: datetime, length: timedelta) -> datetime:
    """Return `now` - `length`, rounded down to the edge of a bucket (EDGES_PER_WINDOW)."""
    edges = [span for span in SPANS if span * EDGES_PER_WINDOW <= length.total_seconds()]
    return round_down(now - length, max(edges, default=SPANS[0]))


def tile_period(since: datetime, until: datetime) -> Iterator[Tile]:
    """Cover the minutes with since <= minute < until by as few buckets as possible, in order of time."""
    at, end = _seconds(since), _seconds(until)
    while at < end:
        span = max(span for span in SPANS if at % span == 0 and at + span <= end)
        longer = next((longer for longer in SPANS if longer > span), None)
        last = at + (end - at) // span * span
        if longer is not None:
            last = min(last, math.ceil(at / longer) * longer if at % longer else last)
        yield Tile(span, _instant(at), _instant(last))
        at = last


def tile_window(since: datetime, now: datetime) -> list[Tile]:
    """Cover a window from its start to the end of the current minute."""
    return list(tile_period(since, round_down(now, 60) + timedelta(minutes=1)))


def kept_since(span: int, now: datetime) -> datetime:
    """Return the time since which buckets of this span are kept: no window that begins earlier needs them."""
    longer = next((longer for longer in SPANS if longer > span), None)
    if longer is None:
        return datetime.fromtimestamp(0, UTC)
    return round_down(now, span) - timedelta(seconds=longer * (EDGES_PER_WINDOW + 1))


def choose_span(since: datetime, now: datetime) -> int:
    """Return the shortest span whose buckets are kept since a window's start, which is an edge of such a bucket."""
    return min(span for span in SPANS if kept_since(span, now) <= since)


def round_down(at: datetime, span: int) -> datetime:
    """Return the edge of a bucket of this span at or before `at`."""
    return _instant(_seconds(at) // span * span)


def _seconds(at: datetime) -> int:
    return math.floor(at.timestamp())


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
