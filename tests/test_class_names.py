"""Names of classes in any writing go from the graph to the answer, the label, the numbers and the metrics."""

from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from skl2onnx import to_onnx
from sklearn.metrics import f1_score
from sklearn.tree import DecisionTreeClassifier

from tests.conftest import OpenClient
from tests.support.onnx_models import OPSETS, make_rows, write_model

NAMES = {
    "space that does not break": ("prix\u00a0bas", "prix\u00a0haut"),
    "joiners": ("\U0001f468\u200d\U0001f4bb", "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    "marks of direction": ("\u200f\u05e9\u05dc\u05d5\u05dd\u200f", "\u202b\u0643\u0644\u0627\u202c"),
    "200 characters": ("é" * 200, "日" * 200),
    "quotes": ('a"b\\c', "a'b,c"),
    "spaces": (" a ", "  "),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
async def test_names_of_classes_are_kept_as_they_are(
    open_client: OpenClient, tmp_path: Path, names: tuple[str, str]
) -> None:
    rows = make_rows(60)
    labels = np.where(rows[:, 0] > 0, names[1], names[0])
    classifier = DecisionTreeClassifier(max_depth=2, random_state=0).fit(rows, labels)
    exported = to_onnx(classifier, rows[:1], options={"zipmap": True}, target_opset=OPSETS)
    write_model(tmp_path / "models", exported.SerializeToString())
    async with open_client(MODEL_DIR=str(tmp_path / "models"), DURABILITY="database") as client:
        answered = await client.post("/predict", json={"instances": rows.tolist()})
        predictions = answered.json()["predictions"]
        pairs = zip(predictions, labels[::-1], strict=True)
        given = [{"prediction_id": one["prediction_id"], "label": name} for one, name in pairs]
        labelled = await client.post("/labels", json={"labels": given})
        period = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}
        quality = await client.get("/quality", params=period)
        chosen = await client.get("/predictions", params={"class": names[0], "limit": 100})
        exposition = (await client.get("/metrics")).text

    expected = classifier.predict(rows).tolist()
    assert [one["prediction"] for one in predictions] == expected
    assert set(predictions[0]["probabilities"]) == set(names)
    assert labelled.json()["new"] == len(rows), labelled.text
    (result,) = quality.json()["results"]
    score = f1_score(labels[::-1].tolist(), expected, pos_label=classifier.classes_[1])
    assert result["f1"] == pytest.approx(score)
    assert len(chosen.json()["predictions"]) == expected.count(names[0])
    counted = {
        sample.labels["class"]: sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == "predictions_total"
    }
    assert {name: counted[name] for name in names} == {name: expected.count(name) for name in names}
