"""Make the directory `mlflow/` as MLflow saves an ONNX model, and in its answers.json what scikit-learn answers.

Run in an environment of its own: `pip install mlflow-skinny onnx onnxruntime skl2onnx pandas`, then
`python tests/families/make_mlflow.py`. MLflow puts tensors of 1 KiB and more into a file of their own, if they are
raw bytes, as PyTorch's exporter writes them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "mlflow"


def main() -> None:
    """Train, convert, save."""
    import mlflow.onnx
    from onnx import numpy_helper
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.neural_network import MLPClassifier

    rows, labels = load_iris(return_X_y=True)
    classifier = MLPClassifier((80,), random_state=0, max_iter=600).fit(rows, labels)
    example: Any = rows[:1].astype("float32")
    model = to_onnx(classifier, example, options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3})
    for tensor in model.graph.initializer:
        if tensor.name != "classes":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    shutil.rmtree(HERE, ignore_errors=True)
    mlflow.onnx.save_model(model, str(HERE))
    chosen = rows[::5].astype("float32")
    answers = {"rows": chosen.tolist(), "probabilities": classifier.predict_proba(chosen).tolist()}
    (HERE / "answers.json").write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
