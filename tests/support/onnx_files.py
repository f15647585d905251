"""Small ONNX classifiers for tests: probabilities are the squares of the features, 0.25 for a missing one."""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_squares(models: Path, name: str, version: str, classes: list[int | str], **metadata: str) -> None:
    """Write `<models>/<name>/<version>/model.onnx`: as many features as classes, no label output."""
    width = len(classes)
    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["features"], ["missing"]),
            helper.make_node("Where", ["missing", "half", "features"], ["filled"]),
            helper.make_node("Mul", ["filled", "filled"], ["probabilities"]),
        ],
        "squares",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    helper.set_model_props(model, {"classes": json.dumps(classes), **metadata})
    file = models / name / version / "model.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(model, str(file))
