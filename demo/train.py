"""Train the demo model on the recorded reference rows and write it as ONNX: ``python demo/train.py [--output PATH]``.

The newest fifth of the reference rows is held out. ``training_f1`` in the metadata is the F1 score of the written model
on these rows, at the decision threshold. The same rows and package versions give the same bytes.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import f1_score

DEMO = Path(__file__).resolve().parent
REFERENCE = DEMO / "data" / "reference.csv.gz"
MODEL = DEMO / "models" / "car-loan" / "1" / "model.onnx"

HELD_OUT_ROWS = 10_000
"""Rows at the end of the reference data that are not used for training: a fifth; F1 is exact to about 0.005."""

DECISION_THRESHOLD = 0.5
"""A loan with at least this probability is predicted as repaid; the classes are equally frequent."""

TARGET_OPSET = {"": 16, "ai.onnx.ml": 1}
"""Operator sets of the written graph: old ones that have all that a tree ensemble needs, for old runtimes too."""

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def main() -> None:
    """Read the arguments, train, and write the model file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=MODEL, help="file to write (default: the bundled model)")
    output: Path = parser.parse_args().output
    names, features, labels = read_reference()
    classifier = fit(features[:-HELD_OUT_ROWS], labels[:-HELD_OUT_ROWS])
    held_out_f1 = measure_f1(classifier, features[-HELD_OUT_ROWS:], labels[-HELD_OUT_ROWS:])
    model = convert(classifier, names)
    onnx.helper.set_model_props(model, describe(names, held_out_f1, features[0]))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(model.SerializeToString(deterministic=True))
    print(f"{output}: F1 {held_out_f1:.4f} on {HELD_OUT_ROWS} held-out rows")


def read_reference(path: Path = REFERENCE) -> tuple[list[str], Rows, Labels]:
    """Read the feature names, the features as float32 (n, n_features) and the labels as int64 (n,), oldest first."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        *names, _ = next(lines).strip().split(",")
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    return names, table[:, :-1], table[:, -1].astype(np.int64)


def fit(features: Rows, labels: Labels) -> GradientBoostingClassifier:
    """Train the classifier: few and shallow trees, because it must be small in git and fast on one row."""
    # HistGradientBoostingClassifier would train faster, but skl2onnx 1.20 cannot convert it with onnx 1.23: skl2onnx
    # writes the missing-value flags of the nodes as booleans, which onnx refuses.
    classifier = GradientBoostingClassifier(
        n_estimators=30, max_depth=6, learning_rate=0.3, subsample=0.5, min_samples_leaf=20, random_state=0
    )
    return classifier.fit(features, labels)


def measure_f1(classifier: GradientBoostingClassifier, features: Rows, labels: Labels) -> float:
    """Return the F1 score of class 1 at the decision threshold."""
    return float(f1_score(labels, classifier.predict_proba(features)[:, 1] >= DECISION_THRESHOLD))


def convert(classifier: GradientBoostingClassifier, names: list[str]) -> onnx.ModelProto:
    """Convert to ONNX: features float32 (n, n_features) -> label int64 (n,), probabilities float32 (n, 2)."""
    model: onnx.ModelProto = convert_sklearn(
        classifier,
        name="car-loan",  # the default is a random name
        initial_types=[("features", FloatTensorType([None, len(names)]))],
        options={"zipmap": False},
        target_opset=TARGET_OPSET,
    )
    # skl2onnx lists the operator sets in the order of a set of texts, which differs from one process to the next.
    model.opset_import.sort(key=lambda opset: opset.domain)
    return model


def describe(names: list[str], training_f1: float, example: Rows) -> dict[str, str]:
    """Return the metadata that the server reads from the model file."""
    return {
        "feature_names": json.dumps(names),
        "classes": json.dumps([0, 1]),
        "positive_class": json.dumps(1),
        "decision_threshold": str(DECISION_THRESHOLD),
        "training_f1": repr(training_f1),
        "example": json.dumps([float(str(value)) for value in example]),
        "description": "Will a car loan be repaid? Gradient-boosted trees on NannyML's synthetic car loan data.",
    }


if __name__ == "__main__":
    main()
