"""Small ONNX classifiers for tests: probabilities are the squares of the features, 0.25 for a missing one."""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_squares(models: Path, name: str, version: str, classes: list[int | str], **metadata: str) -> None:
    """Write `<models>/<name>/<version>/model.onnx`: a feature per class, its share of the squares is p; no label."""
    width = len(classes)
    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["features"], ["missing"]),
            helper.make_node("Where", ["missing", "half", "features"], ["filled"]),
            helper.make_node("Mul", ["filled", "filled"], ["squares"]),
            helper.make_node("Add", ["squares", "tiny"], ["parts"]),
            helper.make_node("ReduceSum", ["parts", "last"], ["total"], keepdims=1),
            helper.make_node("Div", ["parts", "total"], ["probabilities"]),
        ],
        "squares",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, width])],
        [
            helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("tiny", TensorProto.FLOAT, [], [1e-30]),  # a row of zeros has equal shares
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    helper.set_model_props(model, {"classes": json.dumps(classes), **metadata})
    file = models / name / version / "model.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(model, str(file))
