"""Which rows a window counts, and which state it is in; the job's results on real rows."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx2
import pytest

from app.database.pool import open_pool
from app.jobs import STATES
from app.prediction_log.record import Record
from app.quality.labels import take_labels
from app.quality.queries import fetch_results
from app.quality.refresh import QualitySettings, refresh_results, score_period
from app.settings import QualityWindow
from tests.conftest import OpenClient
from tests.support.exposition import Samples, read_samples
from tests.support.onnx_models import build_echo, write_model
from tests.support.processes import wait_until
from tests.support.records import fetch_known, make_label, make_record, register_demo, round_ms, store

SINCE = datetime(2024, 5, 1, 11, 30, tzinfo=UTC)
UNTIL = datetime(2024, 5, 1, 12, 30, 17, 123_000, tzinfo=UTC)

SETTINGS = QualitySettings((QualityWindow("1h", timedelta(hours=1)),), average=None, min_labels=1, objective=None)

MILLISECOND = timedelta(milliseconds=1)

LOWEST_BITS, HIGHEST_BITS = 0x7000_8000_0000_0000_0000, 0x7FFF_BFFF_FFFF_FFFF_FFFF
"""Of a UUIDv7 below its time: those of the first and the last id of a millisecond."""


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(database_url, 2) as opened:
        yield opened


def make_record_with_bits(at: datetime, bits: int) -> Record:
    return make_record(at, prediction_id=UUID(int=(round_ms(at) << 80) | bits))


async def label_rows(connection: asyncpg.Connection, *rows: tuple[Record, str | None]) -> None:
    """Store rows and label them, now."""
    now = datetime.now(UTC)
    await store(connection, *(record for record, _ in rows))
    await take_labels(connection, [make_label(record.prediction_id, label, now) for record, label in rows])


@pytest.mark.parametrize("bits", [LOWEST_BITS, HIGHEST_BITS])
@pytest.mark.parametrize(
    ("at", "counted"), [(SINCE - MILLISECOND, 0), (SINCE, 1), (UNTIL, 1), (UNTIL + MILLISECOND, 0)]
)
async def test_period_counts_a_row_at_its_edge(
    connection: asyncpg.Connection, bits: int, at: datetime, counted: int
) -> None:
    await register_demo(connection)
    await label_rows(connection, (make_record_with_bits(at, bits), "1"))

    [result] = await score_period(connection, SETTINGS, await fetch_known(connection), SINCE, UNTIL)

    assert (result.measures.predictions, result.measures.labelled) == (counted, counted)


async def test_period_leaves_out_a_row_that_is_less_than_a_millisecond_late(connection: asyncpg.Connection) -> None:
    await register_demo(connection)
    await store(connection, make_record(UNTIL + MILLISECOND))

    [result] = await score_period(connection, SETTINGS, await fetch_known(connection), SINCE, UNTIL + MILLISECOND / 2)

    assert result.measures.predictions == 0


async def test_period_counts_rows_of_several_days(connection: asyncpg.Connection) -> None:
    days = [SINCE - timedelta(days=back) for back in range(5)]
    await register_demo(connection)
    await label_rows(connection, *((make_record(day), "1") for day in days))

    [result] = await score_period(connection, SETTINGS, await fetch_known(connection), days[-2], SINCE)

    assert (result.measures.predictions, result.measures.labelled, result.measures.f1) == (4, 4, 1)


async def test_window_counts_rows_from_the_start_of_its_first_minute(
    pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    edges = [now.replace(second=0, microsecond=0) - timedelta(hours=1, minutes=minutes) for minutes in range(-2, 3)]
    records = [make_record(edge - early) for edge in edges for early in (timedelta(0), MILLISECOND)]
    await register_demo(connection)
    await store(connection, *records, make_record(now + timedelta(hours=1)))

    await refresh_results(pool, SETTINGS, await fetch_known(connection), set(), timedelta(0))

    [result] = await fetch_results(connection, ["1h"])
    assert result.since in edges
    assert timedelta(hours=1) <= result.until - result.since < timedelta(hours=1, minutes=1)
    assert result.measures.predictions == sum(record.created_at >= result.since for record in records)


async def test_label_counts_in_the_window_of_its_prediction(pool: asyncpg.Pool, connection: asyncpg.Connection) -> None:
    windows = (QualityWindow("1h", timedelta(hours=1)), QualityWindow("24h", timedelta(hours=24)))
    await register_demo(connection)
    await label_rows(connection, (make_record(datetime.now(UTC) - timedelta(hours=3)), "1"))

    await refresh_results(pool, replace(SETTINGS, windows=windows), await fetch_known(connection), set(), timedelta(0))

    short, long = await fetch_results(connection, ["1h", "24h"])
    assert (short.measures.state, short.measures.f1) == ("no_predictions", None)
    assert (long.measures.state, long.measures.f1) == ("one_class", 1)


async def test_shadow_rows_are_counted_apart(connection: asyncpg.Connection) -> None:
    await register_demo(connection)
    await label_rows(connection, (make_record(SINCE, predicted="0", role="shadow"), "1"), (make_record(SINCE), "1"))

    live, shadow = await score_period(connection, SETTINGS, await fetch_known(connection), SINCE, UNTIL)

    assert (live.role, live.measures.predictions, live.measures.f1) == ("live", 1, 1)
    assert (shadow.role, shadow.measures.predictions, shadow.measures.f1) == ("shadow", 1, 0)


async def test_versions_are_counted_apart(connection: asyncpg.Connection) -> None:
    await register_demo(connection)
    await register_demo(connection, model="other")
    await label_rows(connection, (make_record(SINCE), "1"), (make_record(SINCE, model="other"), "0"))

    results = await score_period(connection, SETTINGS, await fetch_known(connection), SINCE, UNTIL)

    assert [(result.model_name, result.measures.f1) for result in results] == [("car-loan", 1), ("other", 0)]


async def test_confusion_is_by_label_then_prediction(connection: asyncpg.Connection) -> None:
    await register_demo(connection)
    rows = [("1", "1"), ("1", "0"), ("1", "0"), ("0", "1"), ("0", None)]
    await label_rows(connection, *((make_record(SINCE, predicted=predicted), label) for predicted, label in rows))

    [result] = await score_period(connection, SETTINGS, await fetch_known(connection), SINCE, UNTIL)

    assert result.confusion == {"1": {"1": 1, "0": 1}, "0": {"1": 2}}
    assert (result.measures.predictions, result.measures.labelled) == (5, 4)


async def test_quality_of_a_period_is_counted_now(client: httpx2.AsyncClient, connection: asyncpg.Connection) -> None:
    await label_rows(
        connection,
        (make_record(SINCE), "1"),
        (make_record(SINCE, predicted="0"), "0"),
        (make_record(SINCE - MILLISECOND), "0"),
    )

    answer = await client.get("/quality", params={"since": SINCE.isoformat(), "until": UNTIL.isoformat()})

    [result] = answer.json()["results"]
    assert (result["window"], result["state"], result["f1"], result["coverage"]) == ("period", "too_few_labels", 1, 1)
    assert [datetime.fromisoformat(result[end]) for end in ("since", "until")] == [SINCE, UNTIL]


async def test_quality_of_a_period_needs_both_ends(client: httpx2.AsyncClient) -> None:
    answers = [await client.get("/quality", params={end: SINCE.isoformat()}) for end in ("since", "until")]

    assert [answer.status_code for answer in answers] == [422, 422]


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"),
        ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00"),
    ],
)
async def test_quality_of_all_time_is_answered(client: httpx2.AsyncClient, since: str, until: str) -> None:
    answer = await client.get("/quality", params={"since": since, "until": until})

    assert answer.status_code in (200, 422), answer.text


async def test_quality_shows_only_the_model_asked_for(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    await register_demo(connection, model="other")
    period = {"since": SINCE.isoformat(), "until": UNTIL.isoformat()}

    answer = await client.get("/quality", params={**period, "model": "other"})

    assert [result["model"] for result in answer.json()["results"]] == ["other"]


@pytest.mark.parametrize(
    ("state", "rows"),
    [
        ("no_predictions", []),
        ("no_labels", [("1", None), ("0", None)]),
        ("no_positives", [("0", "0"), ("1", None)]),
        ("one_class", [("0", "1"), ("1", None)]),
        ("too_few_labels", [("0", "1"), ("0", "0")]),
        ("ok", [("0", "1"), ("0", "0")] * 25),
    ],
)
async def test_exported_state_says_why_there_is_no_f1(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, state: str, rows: list[tuple[str, str | None]]
) -> None:
    if rows:
        await label_rows(connection, *((make_record(predicted=predicted), label) for predicted, label in rows))
    names = {"model": "car-loan", "model_version": "1", "window": "1h"}

    async def is_exported() -> Samples | None:
        samples = await read_samples(client)
        return samples if samples.get("model_quality_state", state=state, **names) == 1 else None

    samples = await wait_until(is_exported)

    assert samples is not None
    states = [samples.get("model_quality_state", state=name, **names) for name in STATES]
    assert states == [float(name == state) for name in STATES]
    is_defined = state in ("one_class", "too_few_labels", "ok")
    assert samples.get("model_f1_score", **names) == (0.0 if is_defined else None)
    assert ("model_f1_score{" in samples.text) == is_defined
    assert "NaN" not in samples.text


async def test_withdrawn_label_no_longer_counts(connection: asyncpg.Connection) -> None:
    record = make_record(SINCE)
    await register_demo(connection)
    await label_rows(connection, (record, "1"))
    await take_labels(connection, [make_label(record.prediction_id, None, datetime.now(UTC))])

    [result] = await score_period(connection, SETTINGS, await fetch_known(connection), SINCE, UNTIL)

    assert (result.measures.predictions, result.measures.labelled, result.measures.state) == (1, 0, "no_labels")


async def test_quality_shows_the_role_asked_for(client: httpx2.AsyncClient, connection: asyncpg.Connection) -> None:
    await label_rows(connection, (make_record(role="shadow"), "1"), (make_record(predicted="0"), "1"))

    async def is_shown() -> dict[str, object] | None:
        results = (await client.get("/quality", params={"role": "shadow"})).json()["results"]
        return results[0] if results and results[0]["labelled"] else None

    result = await wait_until(is_shown)

    assert (result["role"], result["window"], result["f1"]) == ("shadow", "1h", 1)
    samples = await read_samples(client)
    assert samples.get("model_f1_score", model="car-loan", model_version="1", window="1h") == 0


async def test_gauges_tell_what_quality_tells(client: httpx2.AsyncClient, connection: asyncpg.Connection) -> None:
    rows = [("1", "1"), ("1", "0"), ("0", "1"), ("0", "0"), ("1", "1"), ("0", None)]
    await label_rows(connection, *((make_record(predicted=predicted), label) for predicted, label in rows))
    names = {"model": "car-loan", "model_version": "1", "window": "24h"}

    async def are_exported() -> Samples | None:
        samples = await read_samples(client)
        return samples if samples.get("model_labelled_predictions", **names) == 5 else None

    samples = await wait_until(are_exported)

    [result] = [
        result for result in (await client.get("/quality")).json()["results"] if result["window"] == names["window"]
    ]
    gauges = {
        "model_f1_score": "f1",
        "model_f1_score_lower_bound": "f1_lower",
        "model_f1_score_upper_bound": "f1_upper",
        "model_f1_score_corrected": "corrected_f1",
        "model_precision": "precision",
        "model_recall": "recall",
        "model_accuracy": "accuracy",
        "model_baseline_f1_score": "baseline_f1",
        "model_label_coverage_ratio": "coverage",
    }
    assert {name: samples.get(name, **names) for name in gauges} == {
        name: result[measure] for name, measure in gauges.items()
    }
    assert (result["f1"], result["coverage"], result["labelled"]) == (2 / 3, 5 / 6, 5)
    assert result["label_delay_seconds"] >= 0


async def test_objective_is_exported_when_it_is_set(open_client: OpenClient) -> None:
    async with open_client(F1_OBJECTIVE="0.9") as client:
        samples = await wait_for_sample(client, "model_f1_objective", 0.9)
    async with open_client(F1_OBJECTIVE="") as client:
        without = await wait_for_sample(client, "model_f1_objective", None)

    assert "\nmodel_f1_objective 0.9" in samples.text
    assert "\nmodel_f1_objective " not in without.text


async def wait_for_sample(client: httpx2.AsyncClient, name: str, value: float | None) -> Samples:
    async def is_exported() -> Samples | None:
        samples = await read_samples(client)
        return samples if samples.get(name) == value else None

    return await wait_until(is_exported)


async def test_history_keeps_the_results_of_each_minute(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    await label_rows(connection, (make_record(), "1"))
    query = {"model": "car-loan", "version": "1", "window": "1h"}

    async def is_kept() -> list[dict[str, object]]:
        history: list[dict[str, object]] = (await client.get("/quality/history", params=query)).json()["history"]
        return history if history and history[0]["labelled"] else []

    history = await wait_until(is_kept)

    assert (history[0]["f1"], history[0]["predictions"], len(history) <= 2) == (1, 1, True)


async def test_versions_are_in_the_order_of_their_numbers(open_client: OpenClient, tmp_path: Path) -> None:
    for version in ("10", "9", "9.1", "beta-2", "beta-10"):
        write_model(tmp_path, build_echo(2), "model", version)

    async with open_client(MODEL_DIR=str(tmp_path), F1_INTERVAL_SECONDS="0.2") as client:

        async def list_results() -> list[str]:
            results = (await client.get("/quality")).json()["results"]
            return [result["model_version"] for result in results if result["window"] == "1h"]

        live = await wait_until(list_results)
        period = (await client.get("/quality?since=2024-05-01T00:00:00Z&until=2024-05-02T00:00:00Z")).json()["results"]

    assert live == ["9", "9.1", "10", "beta-2", "beta-10"]
    assert [result["model_version"] for result in period] == live
