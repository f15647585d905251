"""Models that take the tokens of a text, as many as there are: through both doors, in batches of several lengths."""

import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.serving.features import TOKEN_LIMIT, Value
from app.serving.model import Model
from tests.support.answers import read_problem
from tests.support.onnx_models import build_graph, declare, write_model
from tests.support.open_inference import read_error
from tests.support.refusing import Refusing, open_refusing, shared_loop

WORDS, SIZE = 50, 6
GENERATOR = np.random.default_rng(5)
TABLE = GENERATOR.normal(size=(WORDS, SIZE)).astype(np.float32)
WEIGHTS = GENERATOR.normal(size=(SIZE, 2)).astype(np.float32)


def build_classifier() -> bytes:
    """Build a classifier as those of transformers are exported: ids and mask of free length to logits of two classes.

    It adds up the vectors of the words that the mask has not left out.
    """
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["masks"]),
        helper.make_node("Mul", ["vectors", "masks"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "first"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["sum", "weights"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(TABLE, "table"),
        numpy_helper.from_array(WEIGHTS, "weights"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "first"),
    ]
    inputs = [declare(name, "batch", "sequence", type_=TensorProto.INT64) for name in ("input_ids", "attention_mask")]
    metadata = {"output": "logits", "classes": '["bad", "good"]'}
    return build_graph(nodes, [declare("logits", "batch", 2)], inputs, constants, **metadata)


def score(ids: list[int], mask: list[int]) -> Any:
    """Return the probabilities by numpy."""
    logits = (TABLE[ids] * np.array(mask)[:, None]).astype(np.float64).sum(axis=0) @ WEIGHTS
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def make_texts() -> list[tuple[list[int], list[int]]]:
    """Make ids and masks of several lengths, some of them the same."""
    lengths = (3, 7, 3, 1, 12, 7, 40)
    return [
        (GENERATOR.integers(0, WORDS, length).tolist(), GENERATOR.integers(0, 2, length).tolist()) for length in lengths
    ]


TEXTS = make_texts()
EXPECTED: NDArray[Any] = np.array([score(*text) for text in TEXTS])


def test_tokens_of_several_lengths_are_scored_as_numpy_does() -> None:
    model = Model("texts", "1", build_classifier())

    rows: list[list[Value]] = [[list(ids), list(mask)] for ids, mask in TEXTS]
    scores = model.score_rows(rows)

    np.testing.assert_allclose(scores.probabilities, EXPECTED, atol=1e-5)
    assert scores.predicted.tolist() == EXPECTED.argmax(axis=1).tolist()
    assert scores.scores.tolist() == scores.probabilities[:, 1].tolist()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with a model of tokens, for all tests of this module."""
    models = tmp_path_factory.mktemp("models")
    write_model(models, build_classifier(), "texts")
    settings = {"MODEL_DIR": str(models), "DURABILITY": "database"}
    async with open_refusing(postgres, tmp_path_factory.mktemp("data"), **settings) as opened:
        yield opened


@shared_loop
async def test_tokens_are_answered_and_logged(shared: Refusing) -> None:
    rows = [{"input_ids": ids, "attention_mask": mask} for ids, mask in TEXTS]

    answer = (await shared.client.post("/predict", json={"instances": rows})).json()

    answered = [list(one["probabilities"].values()) for one in answer["predictions"]]
    np.testing.assert_allclose(answered, EXPECTED, atol=1e-5)
    ids = [one["prediction_id"] for one in answer["predictions"]]
    logged = await shared.connection.fetch(
        "SELECT features FROM prediction_log WHERE prediction_id = ANY($1::uuid[]) ORDER BY prediction_id", ids
    )
    assert [json.loads(row["features"]) for row in logged] == rows
    shown = (await shared.client.get(f"/predictions/{ids[0]}")).json()
    assert shown["features"] == rows[0]


@shared_loop
async def test_tokens_are_inferred_as_tensors(shared: Refusing) -> None:
    described = (await shared.client.get("/v2/models/texts")).json()["inputs"]
    data = dict(zip(("input_ids", "attention_mask"), zip(TEXTS[1], TEXTS[5], strict=True), strict=True))
    inputs = [{"name": name, "shape": [2, 7], "datatype": "INT64", "data": rows} for name, rows in data.items()]

    answer = (await shared.client.post("/v2/models/texts/infer", json={"inputs": inputs})).json()

    assert [one["shape"] for one in described] == [[-1, -1], [-1, -1]]
    (probabilities, _) = answer["outputs"]
    np.testing.assert_allclose(np.reshape(probabilities["data"], (2, 2)), EXPECTED[[1, 5]], atol=1e-5)


@shared_loop
async def test_examples_of_the_document_are_answered(shared: Refusing) -> None:
    document = await shared.client.get("/openapi.json")
    assert document.status_code == 200, document.text
    paths = document.json()["paths"]
    bodies = {
        path: paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for path in ("/predict", "/v2/models/{model}/infer")
    }

    for path, examples in bodies.items():
        for example in examples.values():
            answer = await shared.client.post(path.format(model="texts"), json=example["value"])
            assert answer.status_code == 200, answer.text


TOKENS: dict[str, tuple[object, str]] = {
    "number": (3, "wrong_type"),
    "text": ("good", "wrong_type"),
    "null": (None, "missing_value"),
    "fraction": ([1, 2.5], "wrong_type"),
    "boolean": ([1, True], "wrong_type"),
    "none": ([], "out_of_range"),
    "too many": ([1] * (TOKEN_LIMIT + 1), "out_of_range"),
    "too large": ([2**63], "out_of_range"),
}


@shared_loop
@pytest.mark.parametrize(("tokens", "code"), TOKENS.values(), ids=TOKENS)
async def test_wrong_tokens_are_refused_by_name(shared: Refusing, tokens: object, code: str) -> None:
    answer = await shared.post("/predict", {"features": {"input_ids": tokens, "attention_mask": [1]}})

    assert answer.status_code == 422
    assert read_problem(answer) == [("/features/input_ids", code)]


@shared_loop
async def test_token_that_the_graph_refuses_is_the_clients_fault(shared: Refusing) -> None:
    answer = await shared.post("/predict", {"features": [[WORDS], [1]]})

    assert answer.status_code == 422, answer.text


@shared_loop
async def test_tokens_of_different_lengths_are_refused_where_the_graph_has_one_length(shared: Refusing) -> None:
    answer = await shared.post("/predict", {"instances": [[[1, 2], [1, 1]], [[1, 2], [1]]]})

    assert read_problem(answer) == [("/instances/1", "wrong_length")]
    assert "1 integers in 'attention_mask', 2 in 'input_ids'" in answer.text


@shared_loop
async def test_tensor_of_another_rank_is_refused(shared: Refusing) -> None:
    inputs = [
        {"name": name, "shape": [2], "datatype": "INT64", "data": [1, 2]} for name in ("input_ids", "attention_mask")
    ]

    answer = await shared.post("/v2/models/texts/infer", {"inputs": inputs})

    assert (answer.status_code, read_error(answer)) == (
        400,
        "input 'input_ids': the shape is [2], the model takes [-1, -1]",
    )
