"""GET /quality/counts: what stands behind a window's numbers, against the rows themselves."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.measures.buckets import choose_span, kept_since, round_down, window_start
from app.prediction_log.record import Record
from app.quality.labels import take_labels
from tests.conftest import OpenClient
from tests.support.processes import wait_until
from tests.support.records import make_label, make_record, store

OF_ONE = {"model": "car-loan", "version": "1"}

ROWS = [("0", "0", 0.0), ("0", "1", 0.2), ("0", None, 0.29), ("1", "1", 0.96), ("1", "0", 0.5), ("1", "1", 1.0)]
"""Predicted class, label and score of rows."""


async def fetch_counts(client: httpx2.AsyncClient, window: str) -> dict[str, Any]:
    answer = await client.get("/quality/counts", params={**OF_ONE, "window": window})
    assert answer.status_code == 200, answer.text
    counts: dict[str, Any] = answer.json()
    return counts


async def store_labelled(connection: asyncpg.Connection, rows: Sequence[tuple[Record, str | None]]) -> None:
    await store(connection, *(record for record, _ in rows))
    now = datetime.now(UTC)
    labels = [make_label(record.prediction_id, label, now) for record, label in rows if label is not None]
    await take_labels(connection, labels)


async def wait_for_result(client: httpx2.AsyncClient, window: str, **measures: object) -> dict[str, Any]:
    """Return the result of a window once it has these measures."""

    async def is_computed() -> dict[str, Any] | None:
        for result in (await client.get("/quality")).json()["results"]:
            if result["window"] == window and {name: result[name] for name in measures} == measures:
                found: dict[str, Any] = result
                return found
        return None

    return await wait_until(is_computed)


async def test_counts_by_score_say_what_the_labels_said(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    rows = [(make_record(predicted=predicted, score=score), label) for predicted, label, score in ROWS]
    await store_labelled(connection, rows)
    await wait_for_result(client, "1h", predictions=6, labelled=5)

    by_score = (await fetch_counts(client, "1h"))["by_score"]

    assert [bar["lower"] for bar in by_score] == [round(0.05 * bar, 2) for bar in range(20)]
    assert [bar["upper"] for bar in by_score] == [round(0.05 * bar, 2) for bar in range(1, 21)]
    counted = {
        bar["lower"]: (bar["predictions"], bar["labelled"], bar["correct"]) for bar in by_score if bar["predictions"]
    }
    assert counted == {0.0: (1, 1, 1), 0.2: (1, 1, 0), 0.25: (1, 0, 0), 0.5: (1, 1, 0), 0.95: (2, 2, 2)}


@pytest.mark.parametrize(("window", "seconds"), [("1h", 60), ("24h", 600), ("7d", 21_600)])
async def test_counts_over_time_are_without_gaps_and_add_up_to_the_result(
    open_client: OpenClient, connection: asyncpg.Connection, window: str, seconds: int
) -> None:
    length = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7)}[window]
    now = datetime.now(UTC)
    rows = [
        (make_record(now - length * share, predicted=predicted, score=score), label)
        for share in (0.0, 0.1, 0.55, 0.95)
        for predicted, label, score in ROWS
    ]
    async with open_client(F1_INTERVAL_SECONDS="0.2") as client:
        await store_labelled(connection, rows)
        result = await wait_for_result(client, window, predictions=24, labelled=20)
        counts = await fetch_counts(client, window)

    by_time = counts["by_time"]
    edges = [datetime.fromisoformat(bucket["since"]) for bucket in by_time]
    ends = [datetime.fromisoformat(bucket["until"]) for bucket in by_time]
    assert edges[0] == datetime.fromisoformat(counts["since"]) == datetime.fromisoformat(result["since"])
    assert ends[-1] == datetime.fromisoformat(counts["until"]) >= datetime.fromisoformat(result["until"])
    assert edges[1:] == ends[:-1]
    assert {(end - start).total_seconds() for start, end in zip(edges[:-1], ends[:-1], strict=True)} == {seconds}
    expected = Counter(
        (max(edge for edge in edges if edge <= record.created_at), record.predicted_class) for record, _ in rows
    )
    found = {
        (edge, name): rows
        for edge, bucket in zip(edges, by_time, strict=True)
        for name, rows in bucket["classes"].items()
    }
    assert found == expected
    assert sum(bucket["labelled"] for bucket in by_time) == 20
    assert sum(bucket["correct"] for bucket in by_time) == 12
    assert all(bucket["predictions"] == sum(bucket["classes"].values()) for bucket in by_time)


async def test_counts_are_of_the_asked_role(client: httpx2.AsyncClient, connection: asyncpg.Connection) -> None:
    await store(connection, make_record(role="shadow"), make_record(), make_record())
    await wait_for_result(client, "1h", role="live", predictions=2)

    query = {**OF_ONE, "window": "1h", "role": "shadow"}
    counts = (await client.get("/quality/counts", params=query)).json()

    assert sum(bar["predictions"] for bar in counts["by_score"]) == 1


@pytest.mark.parametrize("change", [{"model": "none"}, {"version": "2"}, {"window": "2h"}, {"role": "shadow"}])
async def test_counts_of_what_has_no_result_are_404(client: httpx2.AsyncClient, change: dict[str, str]) -> None:
    await wait_for_result(client, "1h", predictions=0)

    answer = await client.get("/quality/counts", params={**OF_ONE, "window": "1h", **change})

    assert answer.status_code == 404
    assert "GET /quality lists the results" in answer.json()["detail"]


instants = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(now=instants, length=st.integers(1, 365 * 1440).map(lambda minutes: timedelta(minutes=minutes)))
def test_span_of_a_window_divides_it_and_is_kept_that_long(now: datetime, length: timedelta) -> None:
    since = window_start(now, length)

    span = choose_span(since, now)

    assert round_down(since, span) == since >= kept_since(span, now)
    assert length.total_seconds() / span <= 400
