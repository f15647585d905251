"""POST /predict with models of one's own in MODEL_DIR: each type of class, selection, missing and non-finite values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.conftest import OpenClient
from tests.support.answers import count_written, pick, predict, read_problem, scrape
from tests.support.onnx_models import (
    Classes,
    Kind,
    add_metadata,
    build_contrary,
    build_dividing,
    build_echo,
    build_fragile,
    build_imputing,
    convert,
    make_rows,
    train,
    write_model,
)

TRAINED: dict[str, tuple[Kind, Classes, bool]] = {
    "texts": ("boosting", ("ash", "beech", "cherry"), False),
    "integers in ZipMap": ("forest", (1, 2, 3), True),
    "two texts in ZipMap": ("logistic", ("no", "yes"), True),
    "two integers": ("forest", (-1, 1), False),
}

each_trained = pytest.mark.parametrize(("kind", "classes", "zipmap"), TRAINED.values(), ids=TRAINED)


@each_trained
async def test_answers_are_scikit_learns(
    open_client: OpenClient, tmp_path: Path, kind: Kind, classes: Classes, zipmap: bool
) -> None:
    write_model(tmp_path / "models", convert(kind, classes, zipmap=zipmap))

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await predict(client, instances=make_rows(20).tolist())

    estimator = train(kind, classes)
    assert [one["prediction"] for one in answer["predictions"]] == estimator.predict(make_rows(20)).tolist()
    for one, expected in zip(answer["predictions"], estimator.predict_proba(make_rows(20)).tolist(), strict=True):
        assert one["probabilities"] == pytest.approx(dict(zip(map(str, classes), expected, strict=True)), abs=1e-5)
        assert one["score"] == find_score(one, classes)


def find_score(answer: Mapping[str, Any], classes: Classes) -> float:
    """Return the score that belongs to the answer's probabilities: the positive class's, or the predicted one's."""
    name = classes[-1] if len(classes) == 2 else answer["prediction"]
    score: float = answer["probabilities"][str(name)]
    return score


@each_trained
async def test_stored_row_is_the_answer(
    open_client: OpenClient,
    tmp_path: Path,
    connection: asyncpg.Connection,
    kind: Kind,
    classes: Classes,
    zipmap: bool,
) -> None:
    write_model(tmp_path / "models", convert(kind, classes, zipmap=zipmap), "own", "1.10")
    features = make_rows(1)[0].tolist()

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await predict(client, features=features)

    (row,) = await connection.fetch("SELECT * FROM prediction_log")
    assert str(row["prediction_id"]) == answer["prediction_id"]
    assert (row["model_name"], row["model_version"]) == ("own", "1.10")
    assert row["predicted_class"] == str(answer["prediction"])
    assert row["score"] == answer["score"]
    assert row["probabilities"] == [answer["probabilities"][str(name)] for name in classes]
    assert json.loads(row["features"]) == {f"f{index}": value for index, value in enumerate(features)}


async def test_metrics_count_classes_by_text_when_they_are_integers(open_client: OpenClient, tmp_path: Path) -> None:
    write_model(tmp_path / "models", build_echo(3, classes="[1, 2, 3]"), "counted")
    labels = {"model": "counted", "model_version": "1"}

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        await predict(client, instances=[[0.5, 0.25, 0.25], [0.0, 0.25, 0.75], [0.0, 0.0, 1.0]])
        samples = await scrape(client)

    counts = [pick(samples, "predictions_total", **labels, **{"class": name}) for name in ("1", "2", "3")]
    assert counts == [1, 0, 2]
    assert pick(samples, "prediction_score_distribution_sum", **labels) == 0.5 + 0.75 + 1.0


async def test_threshold_decides_when_the_graphs_label_differs(open_client: OpenClient, tmp_path: Path) -> None:
    write_model(tmp_path / "models", build_contrary(2, classes="[0, 1]", decision_threshold="0.25"))

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await predict(client, instances=[[0.5, 0.5], [0.75, 0.25], [0.875, 0.125]])

    assert [(one["prediction"], one["score"]) for one in answer["predictions"]] == [(1, 0.5), (1, 0.25), (0, 0.125)]


async def test_features_go_by_name_when_the_metadata_names_them(
    open_client: OpenClient, tmp_path: Path, connection: asyncpg.Connection
) -> None:
    content = add_metadata(convert("forest", (1, 2, 3)), feature_names='["größe", "a/b", "f 3", "\\"q\\""]')
    write_model(tmp_path / "models", content)
    features = dict(zip(["größe", "a/b", "f 3", '"q"'], make_rows(1)[0].tolist(), strict=True))

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await predict(client, features=dict(reversed(features.items())))

    assert [answer["prediction"]] == train("forest", (1, 2, 3)).predict(make_rows(1)).tolist()
    assert json.loads(await connection.fetchval("SELECT features FROM prediction_log")) == features


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ({}, ("b", "10", "b10")),
        ({"version": "9"}, ("b", "9", "b9")),
        ({"version": 9}, ("b", "9", "b9")),
        ({"model": "a"}, ("a", "1.10", "a1.10")),
        ({"model": "a", "version": "1.9"}, ("a", "1.9", "a1.9")),
    ],
    ids=["default", "version", "version as number", "model", "model and version"],
)
async def test_model_is_the_one_asked_for_when_there_are_several(
    open_client: OpenClient, tmp_path: Path, asked: dict[str, object], served: tuple[str, str, str]
) -> None:
    for name, version in [("a", "1.9"), ("a", "1.10"), ("b", "9"), ("b", "10")]:
        content = build_echo(2, classes=json.dumps(["other", name + version]))
        write_model(tmp_path / "models", content, name, version)

    async with open_client(MODEL_DIR=str(tmp_path / "models"), DEFAULT_MODEL="b") as client:
        answer = await predict(client, features=[0.25, 0.75], **asked)

    assert (answer["model"], answer["model_version"], answer["prediction"]) == served


@pytest.mark.parametrize(
    "asked",
    [{"model": "c"}, {"version": "11"}, {"model": "a", "version": "9"}, {"model": ""}, {"version": ""}],
    ids=["model", "version", "another model's version", "empty model", "empty version"],
)
async def test_answer_is_404_when_the_model_is_not_loaded(
    open_client: OpenClient, tmp_path: Path, connection: asyncpg.Connection, asked: dict[str, object]
) -> None:
    write_model(tmp_path / "models", build_echo(2), "a", "10")
    write_model(tmp_path / "models", build_echo(2), "b", "9")

    async with open_client(MODEL_DIR=str(tmp_path / "models"), DEFAULT_MODEL="b") as client:
        answer = await client.post("/predict", json={"features": [0.25, 0.75], **asked})

    assert answer.status_code == 404
    assert read_problem(answer) == []
    assert await count_written(connection) == 0


async def test_answer_is_422_when_the_models_output_is_not_finite(
    open_client: OpenClient, tmp_path: Path, connection: asyncpg.Connection
) -> None:
    write_model(tmp_path / "models", build_dividing())

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await client.post("/predict", json={"features": [1.0, -1.0]})

    assert answer.status_code == 422
    assert read_problem(answer) == [("/features", "non_finite_output")]
    assert await count_written(connection) == 0


async def test_no_row_is_stored_when_the_output_for_some_is_not_finite(
    open_client: OpenClient, tmp_path: Path, connection: asyncpg.Connection
) -> None:
    write_model(tmp_path / "models", build_dividing())

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await client.post("/predict", json={"instances": [[1, 3], [0, 0], [1, 1], [2, -2]]})

    assert answer.status_code == 422
    assert read_problem(answer) == [("/instances/1", "non_finite_output"), ("/instances/3", "non_finite_output")]
    assert await count_written(connection) == 0


@pytest.mark.parametrize(
    "features",
    [[None, 0.5, 0.25], {"f1": 0.5, "f0": None, "f2": 0.25}],
    ids=["by position", "by name"],
)
async def test_missing_value_is_scored_and_stored_as_null_when_allowed(
    open_client: OpenClient, tmp_path: Path, connection: asyncpg.Connection, features: object
) -> None:
    write_model(tmp_path / "models", build_imputing(missing_values="allowed"))

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await predict(client, features=features)

    assert answer["probabilities"] == {"0": 0.25, "1": 0.5, "2": 0.25}
    stored = json.loads(await connection.fetchval("SELECT features FROM prediction_log"))
    assert stored == {"f0": None, "f1": 0.5, "f2": 0.25}


async def test_answer_is_422_when_a_missing_value_is_not_allowed(
    open_client: OpenClient, tmp_path: Path, connection: asyncpg.Connection
) -> None:
    write_model(tmp_path / "models", build_imputing())

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await client.post("/predict", json={"instances": [[0.5, 0.25, 0.125], [0.5, None, 0.125]]})

    assert answer.status_code == 422
    assert read_problem(answer) == [("/instances/1/1", "missing_value")]
    assert await count_written(connection) == 0


async def test_others_are_answered_when_the_graph_fails_on_one_request(
    open_client: OpenClient,
    tmp_path: Path,
    connection: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_model(tmp_path / "models", build_fragile())

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        failed: httpx2.Response = await client.post("/predict", json={"features": [99, 0.5]})
        answer = await predict(client, features=[0.25, 0.75])

    assert failed.status_code == 422
    assert read_problem(failed) == []
    assert answer["score"] == 0.75
    assert await count_written(connection) == 1
    assert "fails on 1 rows" in capsys.readouterr().err
