"""Each family of models, as its library exports it: served, logged, labelled and scored."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from sklearn.metrics import f1_score

from app.serving.model import Model
from tests.support.family_models import FAMILIES, Family, read_made
from tests.support.onnx_models import write_model
from tests.support.refusing import Refusing, open_refusing, shared_loop

each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with a model of every family, for all tests of this module."""
    models = tmp_path_factory.mktemp("models")
    for name, make in FAMILIES.items():
        write_model(models, make().content, name)
    settings = {"MODEL_DIR": str(models), "DEFAULT_MODEL": "mixture", "DURABILITY": "database"}
    async with open_refusing(postgres, tmp_path_factory.mktemp("data"), **settings) as opened:
        yield opened


async def predict(shared: Refusing, name: str, family: Family) -> list[dict[str, Any]]:
    """Have the family's rows answered, every other one sent by name."""
    rows = [dict(zip(family.names, row, strict=True)) if at % 2 else row for at, row in enumerate(family.rows)]
    answer = await shared.client.post("/predict", json={"model": name, "instances": rows})
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


@each_family
def test_scores_are_the_librarys(name: str) -> None:
    family = FAMILIES[name]()
    model = Model(name, "1", family.content)

    scores = model.score_rows(family.rows)

    assert model.signature.feature_names == tuple(family.names)
    assert model.signature.classes == tuple(family.classes)
    np.testing.assert_allclose(scores.probabilities, family.probabilities, atol=1e-6)
    assert [model.signature.classes[index] for index in scores.predicted] == family.predictions


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith(("lightgbm", "xgboost", "catboost"))])
def test_scores_are_the_librarys_when_values_are_missing(name: str) -> None:
    family = read_made(name, missing=True)

    scores = Model(name, "1", family.content).score_rows(family.rows)

    np.testing.assert_allclose(scores.probabilities, family.probabilities, atol=1e-6)


@shared_loop
@each_family
async def test_answers_are_the_librarys(shared: Refusing, name: str) -> None:
    family = FAMILIES[name]()

    answers = await predict(shared, name, family)

    assert [answer["prediction"] for answer in answers] == family.predictions
    for answer, expected in zip(answers, family.probabilities.tolist(), strict=True):
        named = dict(zip(map(str, family.classes), expected, strict=True))
        assert answer["probabilities"] == pytest.approx(named, abs=1e-6)


@shared_loop
@each_family
async def test_log_keeps_each_value_as_it_was_sent(shared: Refusing, name: str) -> None:
    family = FAMILIES[name]()

    ids = [answer["prediction_id"] for answer in await predict(shared, name, family)]

    rows = await shared.connection.fetch(
        "SELECT features FROM prediction_log WHERE prediction_id = ANY($1::uuid[]) ORDER BY prediction_id", ids
    )
    stored = [json.loads(row["features"]) for row in rows]
    sent = [dict(zip(family.names, row, strict=True)) for row in family.rows]
    assert json.dumps(stored, sort_keys=True) == json.dumps(sent, sort_keys=True)  # 1, 1.0 and true are three things


@shared_loop
@each_family
async def test_quality_is_scikit_learns_when_labels_have_come(shared: Refusing, name: str) -> None:
    family = FAMILIES[name]()
    since = datetime.now(UTC) - timedelta(milliseconds=1)
    answers = await predict(shared, name, family)
    until = datetime.now(UTC) + timedelta(milliseconds=1)
    labels = list(family.predictions)
    labels[::3] = [family.classes[at % len(family.classes)] for at in range(len(labels[::3]))]
    body = [{"prediction_id": a["prediction_id"], "label": b} for a, b in zip(answers, labels, strict=True)]

    labelled = await shared.client.post("/labels", json={"labels": body})
    period = {"since": since.isoformat(), "until": until.isoformat(), "model": name}
    quality = await shared.client.get("/quality", params=period)

    assert labelled.json()["new"] == len(body), labelled.text
    (result,) = quality.json()["results"]
    assert result["labelled"] == len(body)
    kind = {"average": "binary", "pos_label": family.classes[1]} if len(family.classes) == 2 else {"average": "macro"}
    assert result["f1"] == pytest.approx(f1_score(labels, family.predictions, zero_division=0.0, **kind))
