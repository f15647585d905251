"""Make the files of this directory: models of libraries too large for the test environment, and what they answer.

Run in an environment of its own: `pip install lightgbm xgboost-cpu catboost onnxmltools skl2onnx onnxruntime`, then
`python tests/families/make.py`; with names, only those are made. `answers.json` holds, for the same rows, the
probabilities and classes that each library itself gives; null is a missing value.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

HERE = Path(__file__).parent
FEATURES = 4
OPSET = 15


def make_data(count: int, seed: int) -> Any:
    """Make rows float32 (count, FEATURES) of which some values are missing."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count, FEATURES)).astype(np.float32)
    rows[generator.random(rows.shape) < 0.05] = np.nan
    return rows


def label(rows: Any, classes: Sequence[int | str]) -> Any:
    """Give each row a class that its features tell, mostly."""
    filled = np.nan_to_num(rows)
    ranks = (filled[:, 0] + filled[:, 1] * filled[:, 2]).argsort().argsort()
    return np.array(classes)[ranks * len(classes) // len(rows)]


def make_lightgbm(rows: Any, labels: Any, *, zipmap: bool) -> tuple[Any, bytes]:
    """Train with LightGBM, convert with onnxmltools."""
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm

    model = LGBMClassifier(n_estimators=5, num_leaves=7, verbose=-1).fit(rows, labels)
    graph = convert_lightgbm(model, initial_types=[_declare()], zipmap=zipmap, target_opset=OPSET)
    return model, graph.SerializeToString()


def make_xgboost(rows: Any, labels: Any) -> tuple[Any, bytes]:
    """Train with XGBoost, convert with onnxmltools."""
    from onnxmltools import convert_xgboost
    from xgboost import XGBClassifier

    model = XGBClassifier(n_estimators=5, max_depth=3).fit(rows, labels)
    graph = convert_xgboost(model, initial_types=[_declare()], target_opset=OPSET)
    return model, graph.SerializeToString()


def _declare() -> tuple[str, Any]:
    from onnxmltools.convert.common.data_types import FloatTensorType

    return "features", FloatTensorType([None, FEATURES])


def make_catboost(rows: Any, labels: Any) -> tuple[Any, bytes]:
    """Train with CatBoost, which writes ONNX itself."""
    from catboost import CatBoostClassifier

    model = CatBoostClassifier(iterations=5, depth=3, verbose=False, allow_writing_files=False).fit(rows, labels)
    with TemporaryDirectory() as directory:
        file = Path(directory) / "model.onnx"
        model.save_model(str(file), format="onnx")
        return model, file.read_bytes()


Maker = Callable[[Any, Any], tuple[Any, bytes]]

Family = tuple[str, Maker, Sequence[int | str]]

FAMILIES: dict[str, Family] = {
    "lightgbm-zipmap": ("lightgbm", lambda rows, labels: make_lightgbm(rows, labels, zipmap=True), (0, 1)),
    "lightgbm-texts": ("lightgbm", lambda rows, labels: make_lightgbm(rows, labels, zipmap=False), ("a", "b", "c")),
    "xgboost": ("xgboost-cpu", make_xgboost, (0, 1)),
    "xgboost-three": ("xgboost-cpu", make_xgboost, (0, 1, 2)),
    "catboost": ("catboost", make_catboost, ("no", "yes")),
    "catboost-three": ("catboost", make_catboost, (1, 2, 3)),
}

LABELS: dict[str, Sequence[int | str]] = {
    "from-0": (0, 1),
    "from-1": (1, 2),
    "signs": (-1, 1),
    "3-7": (3, 7),
    "0-5": (0, 5),
    "int64": (10_000_000_000, 20_000_000_000),
    "texts": ("no", "yes"),
    "three": (2, 5, 9),
    "three-texts": ("ash", "beech", "cherry"),
    "five": (0, 1, 2, 3, 4),
}
"""Sets of classes: each library is tried with each of them. None of their converters takes booleans."""


def list_swept() -> dict[str, Family]:
    """Return a family of each library for each set of classes; XGBoost takes only numbers from 0 on."""
    swept: dict[str, Family] = {}
    for name, classes in LABELS.items():
        swept[f"swept-lightgbm-{name}"] = ("lightgbm", partial(make_lightgbm, zipmap=False), classes)
        swept[f"swept-lightgbm-zipmap-{name}"] = ("lightgbm", partial(make_lightgbm, zipmap=True), classes)
        swept[f"swept-catboost-{name}"] = ("catboost", make_catboost, classes)
    for name in ("from-0", "five"):
        swept[f"swept-xgboost-{name}"] = ("xgboost-cpu", make_xgboost, LABELS[name])
    return swept


def main() -> None:
    """Write the files that are named on the command line, or all of them."""
    train, test = make_data(300, 0), make_data(40, 1)
    path = HERE / "answers.json"
    answers: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    answers["rows"] = [[None if np.isnan(v) else float(v) for v in row] for row in test]
    families = FAMILIES | list_swept()
    for name in sys.argv[1:] or families:
        library, make, classes = families[name]
        model, content = make(train, label(train, classes))
        (HERE / f"{name}.onnx").write_bytes(content)
        answers[name] = {
            "library": f"{library} {version(library)}",
            "classes": model.classes_.tolist(),
            "probabilities": np.asarray(model.predict_proba(test), dtype=np.float64).tolist(),
            "predictions": np.ravel(model.predict(test)).tolist(),
        }
    path.write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
