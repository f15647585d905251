"""Models of very many classes: what a request may ask, and that other requests go on while a large one is answered."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from onnx import helper, numpy_helper
from sklearn.metrics import f1_score

from app.api.predict_batch import make_batcher
from app.serving.batching import INLINE_SECONDS
from app.serving.model import Model
from app.serving.signature import MAX_BATCH_VALUES
from tests.support.onnx_models import build_graph, declare, write_model
from tests.support.open_inference import read_error
from tests.support.processes import ROOT
from tests.support.refusing import Refusing, open_refusing, shared_loop

CLASSES = 1500
MOST_ROWS = 666
"""A million values, by the classes."""


def build_wide(classes: int, features: int = 4) -> bytes:
    """Build a linear model of many classes."""
    weights = np.random.default_rng(0).normal(size=(features, classes)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["l"]), helper.make_node("Softmax", ["l"], ["p"])]
    return build_graph(
        nodes,
        [declare("p", None, classes)],
        [declare("x", None, features)],
        [numpy_helper.from_array(weights, "w")],
        classes=json.dumps([f"class-{index}" for index in range(classes)]),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with a model of many classes, for all tests of this module."""
    models = tmp_path_factory.mktemp("models")
    write_model(models, build_wide(CLASSES), "wide")
    settings = {"MODEL_DIR": str(models), "DURABILITY": "fsync"}
    async with open_refusing(postgres, tmp_path_factory.mktemp("data"), **settings) as opened:
        yield opened


def make_rows(count: int) -> list[list[float]]:
    rows: list[list[float]] = np.random.default_rng(1).normal(size=(count, 4)).tolist()
    return rows


@shared_loop
async def test_rows_of_a_request_are_limited_by_their_classes(shared: Refusing) -> None:
    refused = await shared.post("/predict", {"instances": make_rows(MOST_ROWS + 1)})

    assert MOST_ROWS == MAX_BATCH_VALUES // CLASSES
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert (fault["pointer"], fault["code"]) == ("/instances", "batch_size")
    assert fault["detail"] == "667 rows, this model allows 1 to 666, because a row has 4 features and 1500 classes"


@shared_loop
async def test_rows_of_an_inference_are_limited_by_their_classes(shared: Refusing) -> None:
    rows = make_rows(MOST_ROWS + 1)
    tensor = {"name": "x", "shape": [len(rows), 4], "datatype": "FP32", "data": rows}

    refused = await shared.post("/v2/models/wide/infer", {"inputs": [tensor]})
    config = (await shared.client.get("/v2/models/wide/config")).json()

    assert refused.status_code == 400
    assert "this model allows 1 to 666" in read_error(refused)
    assert config["max_batch_size"] == MOST_ROWS


@shared_loop
async def test_limit_is_in_the_document(shared: Refusing) -> None:
    document = (await shared.client.get("/openapi.json")).json()

    many: Any = document["components"]["schemas"]["wide.1.Many"]
    assert many["properties"]["instances"]["maxItems"] == MOST_ROWS


@shared_loop
async def test_largest_request_is_answered_as_numpy_does_while_the_loop_goes_on(shared: Refusing) -> None:
    rows, gaps = make_rows(MOST_ROWS), [0.0]

    async def watch() -> None:
        while True:
            begun = time.thread_time()
            await asyncio.sleep(0)
            gaps.append(time.thread_time() - begun)

    watching = asyncio.create_task(watch())
    answer = await shared.client.post("/predict", json={"instances": rows})
    watching.cancel()

    assert answer.status_code == 200, answer.text
    answered = np.array([list(one["probabilities"].values()) for one in answer.json()["predictions"]])
    logits = np.array(rows) @ np.random.default_rng(0).normal(size=(4, CLASSES))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(answered, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    assert max(gaps) < 0.2  # the loop's own work, whatever runs beside it


@pytest.mark.parametrize(("classes", "is_inline"), [(3, True), (3000, False)])
def test_one_row_of_many_classes_is_not_worked_on_by_the_event_loop(classes: int, is_inline: bool) -> None:
    model = Model("wide", "1", build_wide(classes))

    async def predict_seconds() -> float:
        batcher = make_batcher(model, None, None)  # type: ignore[arg-type]  # nothing is run
        return batcher._predict_seconds(1)

    assert (asyncio.run(predict_seconds()) < INLINE_SECONDS) is is_inline


MEASURE = """
import json, resource, sys
import numpy as np
from app.measures.cells import Cells
from app.measures.measure import measure
classes, rows = 3000, 30_000
chance = np.random.default_rng(0)
labels = chance.integers(0, classes, rows)
predicted = np.where(chance.random(rows) < 0.8, labels, chance.integers(0, classes, rows))
ones, none = np.ones(rows, dtype=np.int64), np.full(rows, -1)
bins = chance.integers(0, 100, rows)
twice = [np.concatenate([one, one]) for one in (bins, predicted)]
sums = np.full(2 * rows, 0.5)
cells = Cells(*twice, np.concatenate([labels, none]), np.concatenate([ones, ones]), sums, sums)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
measures = measure(cells, classes, None, "macro", 50)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([grown, measures.f1, len(measures.confusion), labels.tolist(), predicted.tolist()]))
"""


def test_quality_of_3000_classes_is_scikit_learns_within_300_mib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=100
    )

    grown_kib, f1, cells, labels, predicted = json.loads(done.stdout)
    assert grown_kib < 300 * 1024
    assert f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert cells == len(set(zip(labels, predicted, strict=True)))


def test_waiting_rows_are_limited_by_their_values() -> None:
    model = Model("wide", "1", build_wide(3000))

    async def read_limit() -> int:
        return make_batcher(model, None, None)._max_waiting_rows  # type: ignore[arg-type]  # nothing is run

    assert asyncio.run(read_limit()) < 1000
