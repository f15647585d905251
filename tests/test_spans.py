"""Which buckets make up a window: none missing, none twice, few, and all of them kept."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.measures.buckets import SPANS, kept_since, round_down, tile_period, tile_window, window_start

NOW = datetime(2024, 5, 1, 12, 34, 56, 789_000, tzinfo=UTC)

instants = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
lengths = st.integers(1, 365 * 1440).map(lambda minutes: timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("length", "start"),
    [
        (timedelta(minutes=1), datetime(2024, 5, 1, 12, 33, tzinfo=UTC)),
        (timedelta(hours=1), datetime(2024, 5, 1, 11, 34, tzinfo=UTC)),
        (timedelta(hours=4), datetime(2024, 5, 1, 8, 30, tzinfo=UTC)),
        (timedelta(hours=24), datetime(2024, 4, 30, 12, tzinfo=UTC)),
        (timedelta(days=7), datetime(2024, 4, 24, 12, tzinfo=UTC)),
        (timedelta(days=30), datetime(2024, 4, 1, tzinfo=UTC)),
    ],
)
def test_window_starts_at_the_edge_of_a_bucket(length: timedelta, start: datetime) -> None:
    assert window_start(NOW, length) == start


def test_window_starts_on_an_hour_of_utc_whatever_the_zone() -> None:
    now = datetime(2024, 1, 2, 12, 10, tzinfo=timezone(timedelta(hours=5, minutes=45)))

    assert window_start(now, timedelta(days=1)).isoformat() == "2024-01-01T06:00:00+00:00"


@given(now=instants, length=lengths)
def test_window_is_at_most_a_24th_or_a_minute_longer_than_asked(now: datetime, length: timedelta) -> None:
    late = (now - length) - window_start(now, length)

    assert timedelta(0) <= late < max(length / 24, timedelta(minutes=1))


@given(now=instants, length=lengths)
def test_tiles_cover_a_window_once_with_buckets_that_are_kept(now: datetime, length: timedelta) -> None:
    since = window_start(now, length)

    tiles = tile_window(since, now)

    assert tiles[0].since == since
    assert now < tiles[-1].until <= now + timedelta(minutes=1)
    assert [tile.since for tile in tiles[1:]] == [tile.until for tile in tiles[:-1]]
    for tile in tiles:
        assert round_down(tile.since, tile.span) == tile.since < tile.until == round_down(tile.until, tile.span)
        assert tile.since >= kept_since(tile.span, now)


@pytest.mark.parametrize(("hours", "most"), [(1, 40), (24, 60), (168, 70), (24 * 365, 430)])
def test_window_is_the_sum_of_few_buckets(hours: int, most: int) -> None:
    for minutes in range(0, 1440, 7):
        now = NOW + timedelta(minutes=minutes)
        tiles = tile_window(window_start(now, timedelta(hours=hours)), now)
        assert sum((tile.until - tile.since).total_seconds() / tile.span for tile in tiles) <= most


def test_period_of_no_minute_has_no_tile() -> None:
    assert list(tile_period(NOW, NOW)) == []


@given(now=instants)
def test_every_bucket_that_is_kept_stays_kept_until_it_is_pruned_for_good(now: datetime) -> None:
    later = now + timedelta(minutes=1)

    assert all(kept_since(span, now) <= kept_since(span, later) <= later for span in SPANS)
