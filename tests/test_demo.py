"""The bundled demo: its rows, its model's metadata, and that the script makes the committed model of them."""

import gzip
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sklearn.metrics import f1_score

from tests.support.demo_data import DEMO, FEATURES, MODEL, Array, read_columns, read_header

HELD_OUT_ROWS = 10_000


def open_model(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = (
        1  # with more, the trees' sum depends on the number of rows by one unit in the last place
    )
    return onnxruntime.InferenceSession(path, options)


def score(path: Path, features: Array) -> Array:
    probabilities: Array = open_model(path).run(["probabilities"], {"features": features})[0]
    return probabilities


@pytest.fixture(scope="module")
def analysis() -> Array:
    return read_columns("analysis.csv.gz", *FEATURES)


@pytest.fixture(scope="module")
def labels() -> Array:
    return read_columns("analysis_target.csv.gz", "repaid", dtype=np.int64)


def test_reference_rows_are_complete() -> None:
    reference = read_columns("reference.csv.gz", *FEATURES, "repaid")

    assert read_header("reference.csv.gz") == [*FEATURES, "repaid"]
    assert reference.shape == (50_000, 6)
    assert np.isfinite(reference).all()
    assert np.unique(reference[:, 4]).tolist() == [0, 10, 20, 30, 40]
    # Counted in NannyML's file: grep -c for repaid 1.0.
    assert np.unique(reference[:, 5], return_counts=True)[1].tolist() == [25_021, 24_979]


def test_analysis_rows_and_their_labels_have_the_same_ids(analysis: Array, labels: Array) -> None:
    ids = read_columns("analysis.csv.gz", "id", dtype=np.int64)
    times = read_columns("analysis.csv.gz", "timestamp", dtype="datetime64[ms]")

    assert read_header("analysis.csv.gz") == ["id", "timestamp", *FEATURES]
    assert read_header("analysis_target.csv.gz") == ["id", "repaid"]
    assert analysis.shape == (50_000, 5)
    assert np.isfinite(analysis).all()
    assert ids.tolist() == list(range(50_000, 100_000))
    assert ids.tolist() == read_columns("analysis_target.csv.gz", "id", dtype=np.int64).tolist()
    assert (np.diff(times) > np.timedelta64(0, "ms")).all()
    assert (str(times[0]), str(times[-1])) == ("2018-10-30T18:00:00.000", "2019-08-29T11:51:16.848")
    assert np.bincount(labels).tolist() == [24_966, 25_034]


def test_model_takes_five_features_and_returns_label_and_probabilities() -> None:
    model = open_model(MODEL)

    assert [(i.name, i.type, i.shape[1:]) for i in model.get_inputs()] == [("features", "tensor(float)", [5])]
    assert [(o.name, o.type) for o in model.get_outputs()] == [
        ("label", "tensor(int64)"),
        ("probabilities", "tensor(float)"),
    ]


def test_model_scores_a_row_far_outside_its_data() -> None:
    probabilities = score(MODEL, np.array([[1.5, 2.3, 3.1, 4.2, 5.0]], dtype=np.float32))

    assert probabilities.shape == (1, 2)
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)


def test_metadata_describes_the_model() -> None:
    metadata = open_model(MODEL).get_modelmeta().custom_metadata_map

    assert metadata.keys() == {
        "feature_names", "classes", "positive_class", "decision_threshold", "training_f1", "example", "description",
    }  # fmt: skip
    assert json.loads(metadata["feature_names"]) == FEATURES
    assert json.loads(metadata["classes"]) == [0, 1]
    assert json.loads(metadata["positive_class"]) == 1
    assert metadata["decision_threshold"] == "0.5"
    assert metadata["description"]
    first = read_columns("reference.csv.gz", *FEATURES)[0].tolist()
    assert json.loads(metadata["example"]) == pytest.approx(first, rel=1e-6)


def test_training_f1_is_that_of_the_held_out_reference_rows() -> None:
    held_out = read_columns("reference.csv.gz", *FEATURES, "repaid")[-HELD_OUT_ROWS:]
    metadata = open_model(MODEL).get_modelmeta().custom_metadata_map

    positive = score(MODEL, held_out[:, :5])[:, 1] >= float(metadata["decision_threshold"])

    assert float(metadata["training_f1"]) == pytest.approx(f1_score(held_out[:, 5], positive), abs=1e-12)


def test_label_output_agrees_with_the_threshold(analysis: Array) -> None:
    label, probabilities = open_model(MODEL).run(None, {"features": analysis})

    assert np.array_equal(label, probabilities[:, 1] >= 0.5)


def test_f1_drops_at_row_25000(analysis: Array, labels: Array) -> None:
    predicted = score(MODEL, analysis)[:, 1] >= 0.5

    chunks = [f1_score(labels[i : i + 5_000], predicted[i : i + 5_000]) for i in range(0, 50_000, 5_000)]

    # Wilson intervals of 95 %: 0.9198 to 0.9266 before, 0.8996 to 0.9071 after; both lie within the margins below.
    assert f1_score(labels[:25_000], predicted[:25_000]) == pytest.approx(0.923, abs=0.005)
    assert f1_score(labels[25_000:], predicted[25_000:]) == pytest.approx(0.903, abs=0.005)
    # Each chunk before the row is better than each chunk after it: the least is 0.9213, the most 0.9066.
    assert min(chunks[:5]) > 0.915
    assert max(chunks[5:]) < 0.912


def test_retraining_gives_the_committed_scores(tmp_path: Path, analysis: Array) -> None:
    retrained = tmp_path / "new" / "model.onnx"

    subprocess.run([sys.executable, DEMO / "train.py", "--output", retrained], check=True, capture_output=True)

    assert np.array_equal(score(retrained, analysis), score(MODEL, analysis))
    assert (
        open_model(retrained).get_modelmeta().custom_metadata_map
        == open_model(MODEL).get_modelmeta().custom_metadata_map
    )


def test_onnx_scores_agree_with_scikit_learn(analysis: Array) -> None:
    train = runpy.run_path(str(DEMO / "train.py"))
    _, features, labels = train["read_reference"]()

    classifier = train["fit"](features[:-HELD_OUT_ROWS], labels[:-HELD_OUT_ROWS])

    np.testing.assert_allclose(score(MODEL, analysis), classifier.predict_proba(analysis), rtol=0, atol=1e-5)


def test_prepare_keeps_the_wanted_columns_as_the_shortest_equal_float32(tmp_path: Path) -> None:
    wheel = tmp_path / "nannyml.whl"
    columns = "id,car_value,salary_range,debt_to_income_ratio,loan_length,size_of_downpayment,driver_tenure"
    row = "7,39811.0,40K - 60K €,0.6329502188904286,19.0,40%,0.2126532961066545"
    with zipfile.ZipFile(wheel, "w") as archive:
        folder = "nannyml/datasets/data/synthetic_car_loan_"
        archive.writestr(folder + "reference.csv", f"{columns},repaid,timestamp\n{row},1.0,2018-01-01 00:00:00.000\n")
        archive.writestr(folder + "analysis.csv", f"{columns},timestamp\n{row},2018-01-01 00:08:43.152\n")
        archive.writestr(folder + "analysis_target.csv", "id,repaid\n7,0\n")
        archive.writestr("nannyml-0.13.1.dist-info/LICENSE", "the licence\n")

    subprocess.run([sys.executable, DEMO / "prepare.py", wheel, "--output", tmp_path], check=True, capture_output=True)

    packed = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    short = "39811,0.63295025,19,0.2126533,40"
    assert np.float32("0.6329502188904286") == np.float32("0.63295025") != np.float32("0.6329502")
    assert {name: gzip.decompress(data).decode().splitlines()[1] for name, data in packed.items()} == {
        "reference.csv.gz": f"{short},1",
        "analysis.csv.gz": f"7,2018-01-01 00:08:43.152,{short}",
        "analysis_target.csv.gz": "7,0",
    }
    # The first ten bytes of a gzip file: magic, method, flags (no name), time (none), level, system (unknown).
    assert {data[:10].hex() for data in packed.values()} == {"1f8b08000000000002ff"}
    assert (tmp_path / "LICENSE-nannyml").read_text() == "the licence\n"
