"""Requests of the Open Inference Protocol for tests, and how they read its errors."""

from typing import Any

import httpx2
import numpy as np

from tests.support.answers import FEATURES

INFER = "/v2/models/car-loan/infer"
HEADER_LENGTH = "inference-header-content-length"


def make_body(rows: Any = (FEATURES,), name: str = "features", **members: object) -> dict[str, Any]:
    shape = list(np.shape(rows))
    data = np.reshape(rows, -1).tolist()
    return {"inputs": [{"name": name, "shape": shape, "datatype": "FP32", "data": data}], **members}


def read_error(answer: httpx2.Response) -> str:
    """Check that an answer is an error as the protocol has it, and return its text."""
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert "x-request-id" in answer.headers
    error: str = answer.json()["error"]
    assert error
    return error
