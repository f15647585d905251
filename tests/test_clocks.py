"""Two clocks: labels and results are dated by the database's, and the difference is measured and shown."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import httpx2
import pytest

from app.database.clock import DatabaseClock
from app.quality.labels import take_labels
from tests.conftest import OpenClient
from tests.support.answers import label, pick, predict, scrape
from tests.support.records import make_label


def read_at(seconds_ahead: float, took: float = 0.0) -> DatabaseClock:
    """A clock that has just been read on a server whose own clock is ahead."""
    clock, now = DatabaseClock(), time.monotonic()
    clock.note(datetime.now(UTC) - timedelta(seconds=seconds_ahead + took / 2), now - took, now)
    return clock


@pytest.mark.parametrize("ahead", [90.0, -3600.0, 0.0])
def test_time_is_the_databases_and_the_skew_is_the_difference(ahead: float) -> None:
    clock = read_at(ahead)

    assert abs((datetime.now(UTC) - clock.now()).total_seconds() - ahead) < 0.5
    assert clock.skew_seconds == pytest.approx(ahead, abs=0.5)


def test_time_is_the_servers_until_the_database_was_read() -> None:
    clock = DatabaseClock()

    assert abs(datetime.now(UTC) - clock.now()) < timedelta(seconds=5)
    assert clock.skew_seconds is None
    assert clock.find_trouble() is None


@pytest.mark.parametrize(
    ("ahead", "took", "word"),
    [(1.5, 0.0, "ahead of"), (-1.5, 0.0, "behind"), (0.5, 0.0, None), (-0.5, 0.0, None), (1.5, 2.0, None)],
)
def test_skew_is_told_from_a_second_on_unless_the_reading_took_as_long(
    ahead: float, took: float, word: str | None
) -> None:
    clock = read_at(ahead, took)

    first, second = clock.find_trouble(), clock.find_trouble()

    assert (first and first.code) == (word and "clock_skew")
    if first is not None:
        assert f"{abs(ahead)} s {word} the database's" in first.detail
        assert second is not None
        assert second.since == first.since


async def test_skew_is_exported(client: httpx2.AsyncClient) -> None:
    samples = await scrape(client)

    assert ("clock_skew_seconds", frozenset()) in samples
    assert abs(pick(samples, "clock_skew_seconds")) < 1


async def test_health_names_the_skew(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_client() as client:
        before = (await client.get("/health")).json()
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 90)  # the system's clock, set forward

        [reason] = (await client.get("/health")).json()["reasons"]

    assert before["reasons"] == []
    assert reason["code"] == "clock_skew"
    assert "90.0 s ahead" in reason["detail"]


async def test_later_arrival_wins_over_a_label_that_a_fast_clock_dated(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    """Neither label has a time of its own; the first was taken by a server whose clock was 20 days ahead."""
    key = UUID((await predict(client))["prediction_id"])
    ahead = datetime.now(UTC) + timedelta(days=20)
    await take_labels(connection, [make_label(key, "1", ahead)])

    first = await label(client, prediction_id=str(key), label=0)
    again = await label(client, prediction_id=str(key), label=1)

    stored = await connection.fetchrow("SELECT label, observed_at, received_at FROM prediction_label")
    assert (first["corrected"], again["corrected"]) == (1, 1)
    assert stored is not None
    assert (stored["label"], stored["observed_at"]) == ("1", stored["received_at"])
    assert stored["received_at"] < ahead


async def test_observation_with_a_time_still_wins_over_a_label_without_one(client: httpx2.AsyncClient) -> None:
    key = (await predict(client))["prediction_id"]
    soon = (datetime.now(UTC) + timedelta(minutes=4)).isoformat()
    await label(client, prediction_id=key, label=1, observed_at=soon)

    counts = await label(client, prediction_id=key, label=0)

    assert counts["unchanged"] == 1
