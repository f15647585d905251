"""A model in half precision through both doors: JSON, and binary tensors of the Open Inference Protocol."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import OpenClient
from tests.support.onnx_models import build_graph, declare, make_rows, write_model
from tests.support.open_inference import HEADER_LENGTH


async def test_answers_are_numpys_in_json_and_in_binary(open_client: OpenClient, tmp_path: Path) -> None:
    weights = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float16)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    outputs = [declare("logits", None, 3, type_=TensorProto.FLOAT16)]
    inputs = [declare("x", None, 4, type_=TensorProto.FLOAT16)]
    content = build_graph(nodes, outputs, inputs, [numpy_helper.from_array(weights, "w")], output="logits")
    write_model(tmp_path / "models", content, "half")
    rows = make_rows(8).astype(np.float16)
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": [8, 4], "datatype": "FP16", "parameters": {"binary_data_size": 64}}]}
    )
    headers = {HEADER_LENGTH: str(len(head))}

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        predicted = await client.post("/predict", json={"instances": rows.tolist()})
        inferred = await client.post("/v2/models/half/infer", content=head.encode() + rows.tobytes(), headers=headers)
        described = (await client.get("/v2/models/half")).json()
        document = (await client.get("/openapi.json")).json()
        example = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
        tried = await client.post("/v2/models/half/infer", json=example["examples"]["one row"]["value"])

    logits = rows.astype(np.float64) @ weights.astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answered = np.array([list(one["probabilities"].values()) for one in predicted.json()["predictions"]])
    np.testing.assert_allclose(answered, expected, atol=5e-3)
    probabilities, _ = inferred.json()["outputs"]
    assert np.reshape(probabilities["data"], probabilities["shape"]) == pytest.approx(answered)
    assert described["inputs"] == [{"name": "x", "datatype": "FP16", "shape": [-1, 4]}]
    assert tried.status_code == 200, tried.text
