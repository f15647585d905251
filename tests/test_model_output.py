"""A model whose output for a row is no probabilities: that request is 503, and /health, /models and a metric say so."""

from pathlib import Path

import asyncpg
import httpx2
import numpy as np
import pytest
from prometheus_client import REGISTRY

from app.serving.probabilities import are_probabilities, find_improper_rows
from tests.conftest import OpenClient
from tests.support.answers import count_written, read_problem
from tests.support.onnx_models import HUGE, build_breaking, build_contrary, build_misnaming, write_model

PROPER, IMPROPER = [0.5, 0.25], [2 * HUGE, 0.0]

CODE = "model_output_not_probabilities"


def count_refused() -> float | None:
    labels = {"model": "model", "model_version": "1"}
    return REGISTRY.get_sample_value("model_output_refused_rows_total", labels)


async def list_codes(client: httpx2.AsyncClient) -> list[str]:
    return [reason["code"] for reason in (await client.get("/health")).json()["reasons"]]


async def test_answer_is_503_when_the_models_output_is_no_probabilities(
    open_client: OpenClient, tmp_path: Path, connection: asyncpg.Connection
) -> None:
    write_model(tmp_path / "models", build_breaking())

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        before, counted = await list_codes(client), count_refused()
        answer = await client.post("/predict", json={"instances": [PROPER, IMPROPER]})
        after, model = await list_codes(client), (await client.get("/models/model/versions/1")).json()

    assert (answer.status_code, read_problem(answer)) == (503, [("/instances/1", CODE)])
    assert "Retry-After" in answer.headers
    assert (CODE in before, CODE in after, model["trouble"]["code"]) == (False, True, CODE)
    assert counted is not None
    assert (count_refused() or 0) - counted == 2
    assert await count_written(connection) == 0


async def test_others_are_answered_when_one_rows_output_is_no_probabilities(
    open_client: OpenClient, tmp_path: Path
) -> None:
    write_model(tmp_path / "models", build_breaking())

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        refused = await client.post("/predict", json={"features": IMPROPER})
        answered = await client.post("/predict", json={"features": PROPER})
        tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": IMPROPER}
        by_protocol = await client.post("/v2/models/model/infer", json={"inputs": [tensor]})

    assert (refused.status_code, answered.status_code, by_protocol.status_code) == (503, 200, 503)
    assert "which are not probabilities" in by_protocol.json()["error"]


async def test_answer_is_503_when_the_label_names_no_class(open_client: OpenClient, tmp_path: Path) -> None:
    write_model(tmp_path / "models", build_misnaming())

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        refused = await client.post("/predict", json={"features": IMPROPER})
        answered = await client.post("/predict", json={"features": PROPER})
        codes, (model,) = await list_codes(client), (await client.get("/models")).json()["models"]

    assert (refused.status_code, answered.status_code, answered.json()["prediction"]) == (503, 200, 0)
    assert (model["decision"], codes) == ("label", ["model_output_unknown_class"])


async def test_models_says_what_was_found_at_load(open_client: OpenClient, tmp_path: Path) -> None:
    write_model(tmp_path / "models", build_contrary(2, classes="[1, 2]", batching="off"))

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        (model,) = (await client.get("/models")).json()["models"]

    assert (model["decision"], model["label_doubt"]) == ("argmax", "it says 0, which is not a class")
    assert (model["batching"], model["batching_doubt"]) == ("off", 'metadata "batching" is off')


ROWS: dict[str, tuple[list[list[float]], list[int]]] = {
    "proper": ([[0.25, 0.75], [1.0, 0.0]], []),
    "rounded": ([[0.2501, 0.75], [1.001, -0.001]], []),
    "sum": ([[0.5, 0.5], [0.5, 0.6]], [1]),
    "negative": ([[-0.5, 1.5], [0.5, 0.5]], [0]),
    "above": ([[1.5, -0.5, 0.0], [0.5, 0.5, 0.0]], [0]),
    "compensated": ([[0.3, 0.3, 0.3], [0.4, 0.4, 0.3]], [0, 1]),
    "large": ([[3e38, 3e38], [3e38, -3e38]], [0, 1]),
}


@pytest.mark.parametrize("copies", [1, 100])
@pytest.mark.parametrize(("rows", "improper"), ROWS.values(), ids=ROWS)
def test_rows_that_are_no_probabilities_are_found(rows: list[list[float]], improper: list[int], copies: int) -> None:
    values = np.array(rows * copies, np.float32)

    found = find_improper_rows(values).tolist()

    assert are_probabilities(values) == (not improper)
    assert found == [copy * len(rows) + row for copy in range(copies) for row in improper]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 100])
def test_values_that_are_not_finite_are_no_probabilities(value: float, count: int) -> None:
    values = np.tile(np.array([value, 0.5], np.float32), (count, 1))

    assert not are_probabilities(values)
    assert len(find_improper_rows(values)) == 0  # they are told as what they are


def test_many_rounded_rows_are_probabilities() -> None:
    values = np.full((10_000, 3), 0.3333, np.float32)  # each sums to 0.9999, together they are far from 1

    assert are_probabilities(values)
