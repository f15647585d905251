"""The health endpoints, /metrics and /models."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx2
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

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
    for answer in (ready, health):
        assert [reason["code"] for reason in answer.json()["reasons"]] == ["log_configuration"]
        assert "prediction_log" not in answer.text


def test_reasons_are_dated_when_they_begin() -> None:
    lifecycle = Lifecycle()

    lifecycle.begin_stop()
    lifecycle.note_schema("behind")
    lifecycle.note_default(is_unclear=True)
    first = (lifecycle.stopping_since, lifecycle.schema_since, lifecycle.default_unclear_since)
    lifecycle.begin_stop()
    lifecycle.note_schema("behind")
    lifecycle.note_default(is_unclear=True)

    assert None not in first
    assert first == (lifecycle.stopping_since, lifecycle.schema_since, lifecycle.default_unclear_since)
    lifecycle.note_default(is_unclear=False)
    assert lifecycle.default_unclear_since is None


async def test_head_is_answered_without_a_body_when_asked_of_health(client: httpx2.AsyncClient) -> None:
    answer = await client.head("/health/ready")

    assert answer.status_code == 200


SEED_METRICS = {
    "model_f1_score": "gauge",
    "prediction_score_distribution": "histogram",
    "predictions": "counter",
    "http_requests": "counter",
}
"""The contract's first four, without the suffix of counters."""


async def test_metrics_are_text_when_no_format_is_asked_for(client: httpx2.AsyncClient) -> None:
    await predict(client)

    answer = await client.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {name: families[name].type for name in SEED_METRICS} == SEED_METRICS
    assert "predictions_total{" in answer.text
    assert "http_requests_total{" in answer.text


async def test_metrics_are_openmetrics_when_accepted(client: httpx2.AsyncClient) -> None:
    await predict(client)

    answer = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})

    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    parsed = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]  # prometheus-client types only the other one
    families = {family.name: family.type for family in parsed}
    assert {name: families[name] for name in SEED_METRICS} == SEED_METRICS


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
        "decision_threshold": 0.5,
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
