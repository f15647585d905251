"""A classifier that needs about a millisecond per row, to overload a server with few requests."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIZE, LAYERS = 1024, 12


def write_slow_model(directory: Path) -> Path:
    """Write a repository with one model of two features; return its path."""
    file = directory / "slow" / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    shapes = [(2, SIZE), *[(SIZE, SIZE)] * LAYERS, (SIZE, 2)]
    weights = [
        numpy_helper.from_array((random.normal(size=shape) / SIZE).astype(np.float32), f"w{index}")
        for index, shape in enumerate(shapes)
    ]
    nodes = [helper.make_node("MatMul", [f"h{index}", f"w{index}"], [f"h{index + 1}"]) for index in range(len(shapes))]
    nodes.append(helper.make_node("Softmax", [f"h{len(shapes)}"], ["probabilities"], axis=1))
    features = helper.make_tensor_value_info("h0", TensorProto.FLOAT, [None, 2])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    graph = helper.make_graph(nodes, "slow", [features], [probabilities], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return directory
