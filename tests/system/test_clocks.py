"""The server's clock is wrong or is set while it runs, PostgreSQL's is right (libfaketime)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.support.answers import label, predict, scrape
from tests.support.fake_clock import fake_clock, set_clock
from tests.support.processes import WAIT_SECONDS, Server, wait_until
from tests.support.records import make_record, register_demo, store


@pytest.fixture
async def clock(server: Server, tmp_path: Path) -> Path:
    """The file with the offset of the server's clock, which is right at first."""
    clock = tmp_path / "clock"
    server.environment |= fake_clock(clock)
    return clock


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the server process."""
    async with httpx2.AsyncClient(base_url=server.url, timeout=WAIT_SECONDS) as client:
        yield client


async def read_result(http: httpx2.AsyncClient) -> dict[str, Any]:
    """The result of the shortest window, empty while there is none."""
    results: list[dict[str, Any]] = (await http.get("/quality")).json()["results"]
    return results[0] if results else {}


def counts(http: httpx2.AsyncClient, labelled: int) -> Callable[[], Awaitable[bool]]:
    """Whether the numbers count so many labelled predictions, and are not stale."""

    async def are_counted() -> bool:
        result = await read_result(http)
        return bool(result) and result["labelled"] == labelled and result["state"] != "stale"

    return are_counted


async def predict_stored(http: httpx2.AsyncClient) -> str:
    """Make a prediction; return its id once its row is stored."""
    prediction_id: str = (await predict(http))["prediction_id"]

    async def is_stored() -> bool:
        return (await http.get(f"/predictions/{prediction_id}")).status_code == 200

    await wait_until(is_stored)
    return prediction_id


async def test_jobs_run_on_and_corrections_count_when_the_clock_is_set_back(
    server: Server, http: httpx2.AsyncClient, clock: Path
) -> None:
    await server.start()
    first = await predict_stored(http)
    await label(http, prediction_id=first, label=1)
    await wait_until(counts(http, 1))

    set_clock(clock, "-1h")
    corrected = await label(http, prediction_id=first, label=0)
    second = await predict_stored(http)
    taken = await label(http, prediction_id=second, label=1)
    await wait_until(counts(http, 2), seconds=30)

    assert (corrected["corrected"], taken["new"]) == (1, 1)
    assert b"the wall clock was set by -3600" in server.log


async def test_numbers_are_not_stale_and_the_skew_is_told_on_a_server_ahead(
    server: Server, http: httpx2.AsyncClient, clock: Path
) -> None:
    set_clock(clock, "+90s")
    await server.start()

    result = await wait_until(lambda: read_result(http))

    samples = await scrape(http)
    [skew] = [value for (name, _), value in samples.items() if name == "clock_skew_seconds"]
    stale = [
        value for (name, labels), value in samples.items() if name == "model_quality_state" and "stale" in str(labels)
    ]
    reasons = {reason["code"]: reason["detail"] for reason in (await http.get("/health")).json()["reasons"]}
    assert skew == pytest.approx(90, abs=1)
    assert (result["state"], set(stale)) == ("no_predictions", {0.0})
    assert set(reasons) == {"clock_skew"}
    assert "ahead of the database's" in reasons["clock_skew"]


async def test_retention_counts_days_by_the_database_on_a_server_far_ahead(
    server: Server, http: httpx2.AsyncClient, clock: Path, connection: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    await register_demo(connection)
    await store(connection, make_record(now - timedelta(days=40)), make_record(now - timedelta(days=10)))
    server.environment["RETENTION_DAYS"] = "25"
    set_clock(clock, "+20d")
    await server.start()

    async def has_dropped() -> bool:
        return b"partitions, dropped " in server.log  # what is too old, day by day

    await wait_until(has_dropped)

    kept = [row["created_at"] for row in await connection.fetch("SELECT created_at FROM prediction_log")]
    assert [round((now - created_at) / timedelta(days=1)) for created_at in kept] == [10]
