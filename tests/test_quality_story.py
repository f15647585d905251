"""From the first prediction to the last number: /quality and the gauges say what scikit-learn says of exported rows."""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score, roc_auc_score

from app.exchange.export import Export, run_export
from app.quality.export_queries import ExportFilter
from tests.conftest import OpenClient
from tests.support.answers import NDJSON_HEADERS
from tests.support.demo_data import FEATURES, MODEL, Array, read_columns
from tests.support.exposition import read_samples
from tests.support.onnx_models import add_metadata, convert, make_rows, write_model
from tests.support.processes import wait_until

BODY_ROWS = 5_000
SETTINGS = {"F1_INTERVAL_SECONDS": "0.5", "QUALITY_WINDOWS": "1h"}


async def predict_and_label(
    client: httpx2.AsyncClient, rows: Array, labels: Sequence[Any]
) -> tuple[datetime, datetime]:
    """Predict rows, then label them; return the time in which the predictions were made."""
    since = datetime.now(UTC)
    for start in range(0, len(rows), BODY_ROWS):
        body = {"instances": rows[start : start + BODY_ROWS].tolist()}
        answer = (await client.post("/predict", json=body)).raise_for_status().json()
        lines = [
            msgspec.json.encode({"prediction_id": prediction["prediction_id"], "label": label})
            for prediction, label in zip(answer["predictions"], labels[start : start + BODY_ROWS], strict=True)
        ]
        counts = (await client.post("/labels", content=b"\n".join(lines), headers=NDJSON_HEADERS)).json()
        assert counts["new"] == len(lines)
    return since, datetime.now(UTC)


async def fetch_period(client: httpx2.AsyncClient, since: datetime, until: datetime) -> dict[str, Any]:
    period = {"since": since.isoformat(), "until": until.isoformat()}
    [result] = (await client.get("/quality", params=period)).raise_for_status().json()["results"]
    return dict(result)


async def fetch_window(client: httpx2.AsyncClient, labelled: int) -> dict[str, Any]:
    """The job's result, once it has counted all labels; the gauges are those of the same run."""

    async def is_counted() -> dict[str, Any] | None:
        results = (await client.get("/quality")).json()["results"]
        return results[0] if results and results[0]["labelled"] == labelled else None

    return await wait_until(is_counted)


async def export(database_url: str, result: dict[str, Any], output: Path) -> list[dict[str, str]]:
    since, until = (datetime.fromisoformat(result[end]) for end in ("since", "until"))
    wanted = ExportFilter(since, until, None, None, labelled_only=True)
    assert await run_export(Export(wanted, "csv", output), database_url, Console(file=io.StringIO())) == 0
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def check_with_scikit_learn(
    result: dict[str, Any], rows: Sequence[dict[str, str]], average: str, **options: Any
) -> None:
    labels, predicted = [row["label"] for row in rows], [row["prediction"] for row in rows]
    classes = sorted({*labels, *predicted})
    options |= {"average": average, "zero_division": np.nan}
    assert result["f1"] == pytest.approx(f1_score(labels, predicted, **options), abs=1e-12)
    assert result["recall"] == pytest.approx(recall_score(labels, predicted, **options), abs=1e-12)
    precision = precision_score(labels, predicted, **options)
    assert result["precision"] == (None if np.isnan(precision) else pytest.approx(precision, abs=1e-12))
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    assert result["f1_lower"] <= result["f1"] <= result["f1_upper"]
    matrix = confusion_matrix(labels, predicted, labels=classes)
    counted = [[result["confusion"].get(label, {}).get(name, 0) for name in classes] for label in classes]
    assert counted == matrix.tolist()


async def check_gauges(client: httpx2.AsyncClient, result: dict[str, Any]) -> None:
    """The gauges say the same, and nothing of what is undefined."""
    names = {"model": result["model"], "model_version": result["model_version"], "window": "1h"}
    samples = await read_samples(client)
    for gauge, number in (
        ("model_f1_score", "f1"),
        ("model_f1_score_lower_bound", "f1_lower"),
        ("model_f1_score_upper_bound", "f1_upper"),
        ("model_precision", "precision"),
        ("model_recall", "recall"),
        ("model_accuracy", "accuracy"),
    ):
        assert samples.get(gauge, **names) == result[number]
    assert samples.get("model_quality_state", **names, state=result["state"]) == 1


async def test_car_loan_drops_after_row_25000_with_intervals_apart(
    open_client: OpenClient, database_url: str, tmp_path: Path
) -> None:
    rows = read_columns("analysis.csv.gz", *FEATURES)
    labels = read_columns("analysis_target.csv.gz", "repaid", dtype=np.int64).tolist()
    async with open_client(**SETTINGS) as client:
        before = await fetch_period(client, *await predict_and_label(client, rows[:25_000], labels[:25_000]))
        after = await fetch_period(client, *await predict_and_label(client, rows[25_000:], labels[25_000:]))
        window = await fetch_window(client, 50_000)
        await check_gauges(client, window)

    exported = await export(database_url, window, tmp_path / "rows.csv")

    assert before["f1"] > after["f1"]
    assert before["f1_lower"] > after["f1_upper"]
    for result, part in ((before, exported[:25_000]), (after, exported[25_000:]), (window, exported)):
        check_with_scikit_learn(result, part, "binary", pos_label="1")
        labelled = [row["label"] for row in part]
        assert result["auc"] == pytest.approx(roc_auc_score(labelled, [float(r["score"]) for r in part]), abs=1e-3)
        assert (result["state"], result["coverage"]) == ("ok", 1)


async def test_several_classes_are_told_as_scikit_learn_tells_them(
    open_client: OpenClient, database_url: str, tmp_path: Path
) -> None:
    classes = ("low", "middle", "high")
    rows = make_rows(600, seed=5)
    labels = np.random.default_rng(5).choice(classes, len(rows), p=(0.2, 0.5, 0.3)).tolist()
    write_model(tmp_path / "models", convert("logistic", classes))
    async with open_client(MODEL_DIR=str(tmp_path / "models"), **SETTINGS) as client:
        await predict_and_label(client, rows, labels)
        window = await fetch_window(client, len(rows))
        await check_gauges(client, window)

    exported = await export(database_url, window, tmp_path / "rows.csv")

    assert (window["average"], window["state"], window["auc"]) == ("macro", "ok", None)
    check_with_scikit_learn(window, exported, "macro")


async def test_a_model_that_predicts_no_positive_has_f1_0_and_an_upper_bound(
    open_client: OpenClient, database_url: str, tmp_path: Path
) -> None:
    content = add_metadata(MODEL.read_bytes(), decision_threshold="1.0")
    write_model(tmp_path / "models", content, "car-loan")
    rows = read_columns("analysis.csv.gz", *FEATURES)[:500]
    labels = read_columns("analysis_target.csv.gz", "repaid", dtype=np.int64)[:500].tolist()
    async with open_client(MODEL_DIR=str(tmp_path / "models"), **SETTINGS) as client:
        await predict_and_label(client, rows, labels)
        window = await fetch_window(client, 500)
        await check_gauges(client, window)

    exported = await export(database_url, window, tmp_path / "rows.csv")

    assert (window["f1"], window["precision"], window["recall"]) == (0, None, 0)
    assert 0 < window["f1_upper"] < 0.05
    check_with_scikit_learn(window, exported, "binary", pos_label="1")
