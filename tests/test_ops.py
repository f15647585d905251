"""The health endpoints, /metrics and /models."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx2
import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from app.api.health import find_model_troubles
from app.errors import Reason
from app.serving.repository import ModelRepository
from app.state import Lifecycle
from tests.conftest import OpenClient
from tests.support.answers import NAMES, predict, read_problem
from tests.support.onnx_files import write_squares
from tests.support.processes import ROOT, wait_until

DEMO_FILE = ROOT / "demo" / "models" / "car-loan" / "1" / "model.onnx"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/health", {"status": "ok", "reasons": []}),
        ("/health/live", {"live": True}),
        ("/health/ready", {"ready": True, "reasons": []}),
    ],
)
async def test_health_is_good_when_nothing_is_wrong(
    client: httpx2.AsyncClient, path: str, body: dict[str, object]
) -> None:
    answer = await client.get(path)

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == body


async def test_health_names_the_reason_when_the_log_takes_no_rows(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    await connection.execute("ALTER TABLE prediction_log RENAME TO gone")

    async def is_not_ready() -> bool:
        return (await client.get("/health/ready")).status_code == 503

    await wait_until(is_not_ready)

    ready, health, live = [await client.get(path) for path in ("/health/ready", "/health", "/health/live")]
    assert (ready.status_code, health.status_code, live.status_code) == (503, 200, 200)
    assert ready.json()["ready"] is False
    assert health.json()["status"] == "degraded"
    assert [reason["code"] for reason in ready.json()["reasons"]] == ["log_configuration"]
    assert {reason["code"] for reason in health.json()["reasons"]} <= {"log_configuration", "quality_job_failed"}
    for answer in (ready, health):
        assert "prediction_log" not in answer.text


async def test_health_says_since_when_the_log_takes_no_rows(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    before = datetime.now(UTC)
    await connection.execute("ALTER TABLE prediction_log RENAME TO gone")

    async def read_since(path: str) -> list[datetime]:
        reasons = (await client.get(path)).json()["reasons"]
        return [datetime.fromisoformat(one["since"]) for one in reasons if one["code"] == "log_configuration"]

    async def has_failed_again() -> bool:
        return REGISTRY.get_sample_value("prediction_log_failures_total", {"kind": "configuration"}) != failures

    await wait_until(lambda: read_since("/health"))
    first = await read_since("/health/ready")
    failures = REGISTRY.get_sample_value("prediction_log_failures_total", {"kind": "configuration"})
    await wait_until(has_failed_again)

    assert await read_since("/health") == await read_since("/health/ready") == first
    assert before <= first[0] <= datetime.now(UTC)


def test_reason_for_several_versions_began_with_the_first() -> None:
    began = [datetime(2026, 5, day, tzinfo=UTC) for day in (3, 1, 2)]
    repository = ModelRepository("model", {})
    for version, since in zip(("1", "2", "3"), began, strict=True):
        code = "model_conflict" if version == "3" else "model_not_loadable"
        record = repository.open_record("model", version)
        record.trouble = Reason(code=code, detail=f"word {version}", since=since)

    reasons = find_model_troubles(repository)

    assert [(reason.code, reason.detail, reason.since) for reason in reasons] == [
        ("model_not_loadable", "model version 1: word 1; model version 2: word 2", began[1]),
        ("model_conflict", "model version 3: word 3", began[2]),
    ]


def test_trouble_with_the_schema_has_one_beginning_until_it_is_over() -> None:
    lifecycle = Lifecycle()
    unprepared = lifecycle.database_trouble
    lifecycle.note_schema("behind")
    behind = lifecycle.database_trouble
    lifecycle.note_schema("behind")
    still_behind = lifecycle.database_trouble
    lifecycle.note_schema("current")

    assert [reason and reason.code for reason in (unprepared, behind)] == ["database_unprepared", "schema_behind"]
    assert still_behind is behind
    assert lifecycle.database_trouble is None


def test_stop_has_one_beginning() -> None:
    lifecycle = Lifecycle()
    lifecycle.stop()
    first = lifecycle.stopping
    lifecycle.stop()

    assert first is not None
    assert lifecycle.stopping is first


async def test_head_is_answered_without_a_body_when_asked_of_health(client: httpx2.AsyncClient) -> None:
    answer = await client.head("/health/ready")

    assert answer.status_code == 200


FIRST_METRICS = {
    "model_f1_score": "gauge",
    "prediction_score_distribution": "histogram",
    "predictions": "counter",
    "http_requests": "counter",
}
"""The four whose names never change, without the suffix of counters."""


async def test_metrics_are_text_when_no_format_is_asked_for(client: httpx2.AsyncClient) -> None:
    await predict(client)

    answer = await client.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {name: families[name].type for name in FIRST_METRICS} == FIRST_METRICS
    assert "predictions_total{" in answer.text
    assert "http_requests_total{" in answer.text


async def test_metrics_are_openmetrics_when_accepted(client: httpx2.AsyncClient) -> None:
    await predict(client)

    answer = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})

    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    parsed = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]  # prometheus-client types only the other one
    families = {family.name: family.type for family in parsed}
    assert {name: families[name] for name in FIRST_METRICS} == FIRST_METRICS


async def test_metrics_tell_the_models_file_when_loaded(client: httpx2.AsyncClient) -> None:
    sha256 = hashlib.sha256(DEMO_FILE.read_bytes()).hexdigest()

    text = (await client.get("/metrics")).text

    assert f'model_info{{model="car-loan",model_version="1",sha256="{sha256}"}} 1.0' in text


async def test_metrics_tell_the_spools_limit_when_there_is_a_spool(open_client: OpenClient) -> None:
    async with open_client(DURABILITY="fsync", SPOOL_MAX_BYTES="67108864") as client:
        text = (await client.get("/metrics")).text

    assert "prediction_log_spool_max_bytes 6.7108864e+07" in text


async def test_model_is_described_when_loaded(client: httpx2.AsyncClient) -> None:
    before = datetime.now(UTC)

    body = (await client.get("/models/car-loan/versions/1")).json()

    loaded_at = datetime.fromisoformat(body.pop("loaded_at"))
    training_f1 = body.pop("training_f1")
    assert before - timedelta(minutes=1) < loaded_at <= before
    assert 0.5 < training_f1 < 1
    assert body == {
        "name": "car-loan",
        "version": "1",
        "state": "serving",
        "default": True,
        "pinned": False,
        "trouble": None,
        "sha256": hashlib.sha256(DEMO_FILE.read_bytes()).hexdigest(),
        "inputs": [{"name": name, "type": "number"} for name in NAMES],
        "missing_values": "refused",
        "classes": [0, 1],
        "positive_class": 1,
        "decision": "threshold",
        "label_doubt": None,
        "decision_threshold": 0.5,
        "batching": "on",
        "batching_doubt": None,
    }


async def test_models_lists_every_version_when_several_are_loaded(open_client: OpenClient, tmp_path: Path) -> None:
    for name, version in (("b", "10"), ("b", "9"), ("a", "1")):
        write_squares(tmp_path, name, version, ["no", "maybe", "yes"], feature_names=json.dumps(["x", "y", "z"]))

    async with open_client(MODEL_DIR=str(tmp_path), DEFAULT_MODEL="b") as client:
        body = (await client.get("/models")).json()
        one = (await client.get("/models/b/versions/9")).json()

    assert body["default_model"] == "b"
    assert [(model["name"], model["version"]) for model in body["models"]] == [("a", "1"), ("b", "9"), ("b", "10")]
    assert one in body["models"]
    assert (one["positive_class"], one["decision"]) == (None, "argmax")
    assert [given["name"] for given in one["inputs"]] == ["x", "y", "z"]


@pytest.mark.parametrize("path", ["/models/other/versions/1", "/models/car-loan/versions/2", "/models/%00/versions/1"])
async def test_model_is_answered_404_when_not_loaded(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert answer.status_code == 404
    assert read_problem(answer) == []
