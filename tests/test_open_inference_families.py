"""Each family of models over the Open Inference Protocol, with tensors made by what its metadata says."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tests.support.family_models import FAMILIES, Family
from tests.support.onnx_models import write_model
from tests.support.open_inference import HEADER_LENGTH, read_error
from tests.support.refusing import Refusing, open_refusing, shared_loop

DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "BOOL": "?"}

each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with a model of every family, for all tests of this module."""
    models = tmp_path_factory.mktemp("models")
    for name, make in FAMILIES.items():
        write_model(models, make().content, name)
    settings = {"MODEL_DIR": str(models), "DEFAULT_MODEL": "mixture", "DURABILITY": "database"}
    async with open_refusing(postgres, tmp_path_factory.mktemp("data"), **settings) as opened:
        yield opened


async def make_inputs(shared: Refusing, name: str, family: Family) -> list[dict[str, Any]]:
    """Split the family's rows into the model's inputs, as JSON."""
    described = (await shared.client.get(f"/v2/models/{name}")).json()["inputs"]
    inputs, start = [], 0
    for one in described:
        shape = [len(family.rows), *one["shape"][1:]]
        stop = start + int(np.prod(shape[1:], dtype=int))
        data = [value for row in family.rows for value in row[start:stop]]
        inputs.append({"name": one["name"], "shape": shape, "datatype": one["datatype"], "data": data})
        start = stop
    assert start == len(family.names)
    return inputs


def make_binary(inputs: Sequence[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
    """Return the same request with binary tensors, in and out."""
    blobs = [encode(one["datatype"], one.pop("data")) for one in inputs]
    for one, blob in zip(inputs, blobs, strict=True):
        one["parameters"] = {"binary_data_size": len(blob)}
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(blobs), {HEADER_LENGTH: str(len(head))}


def encode(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in values)
    return np.array(values, dtype=DTYPES[datatype]).tobytes()


@shared_loop
@each_family
async def test_answers_are_the_librarys_and_rows_are_logged(shared: Refusing, name: str) -> None:
    family = FAMILIES[name]()
    inputs = await make_inputs(shared, name, family)

    answer = (await shared.client.post(f"/v2/models/{name}/infer", json={"inputs": inputs})).json()

    outputs = {one["name"]: one for one in answer["outputs"]}
    probabilities = next(one for one in answer["outputs"] if len(one["shape"]) == 2)
    label = next(one for one in answer["outputs"] if len(one["shape"]) == 1)
    assert len(outputs) == 2
    assert label["data"] == family.predictions
    assert np.reshape(probabilities["data"], probabilities["shape"]) == pytest.approx(family.probabilities, abs=1e-6)
    rows = await shared.connection.fetch(
        "SELECT features FROM prediction_log WHERE prediction_id = ANY($1::uuid[]) ORDER BY prediction_id",
        json.loads(answer["parameters"]["prediction_ids"]),
    )
    assert [json.loads(row["features"]) for row in rows] == [
        dict(zip(family.names, row, strict=True)) for row in family.rows
    ]


@shared_loop
@each_family
async def test_binary_tensors_are_answered_as_json_is(shared: Refusing, name: str) -> None:
    family = FAMILIES[name]()
    path, inputs = f"/v2/models/{name}/infer", await make_inputs(shared, name, family)
    expected = (await shared.client.post(path, json={"inputs": inputs})).json()["outputs"]

    body, headers = make_binary(inputs)
    answer = await shared.client.post(path, content=body, headers=headers)

    start = int(answer.headers[HEADER_LENGTH])
    outputs = json.loads(answer.content[:start])["outputs"]
    assert [(one["name"], one["shape"]) for one in outputs] == [(one["name"], one["shape"]) for one in expected]
    for output, known in zip(outputs, expected, strict=True):
        stop = start + output["parameters"]["binary_data_size"]
        assert answer.content[start:stop] == encode(output["datatype"], known["data"])
        start = stop
    assert start == len(answer.content)


async def change_mixture(shared: Refusing, **changed: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the inputs of the family `mixture` with other members of some."""
    inputs = await make_inputs(shared, "mixture", FAMILIES["mixture"]())
    return [{**one, **changed.get(one["name"], {})} for one in inputs]


REFUSED: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "number-for-text": ({"city": {"datatype": "FP32", "data": [1, 2, 3]}}, "BYTES"),
    "text-for-number": ({"pair": {"datatype": "BYTES", "data": ["1"] * 6}}, "FP32"),
    "integer-for-boolean": ({"member": {"datatype": "UINT8", "data": [1, 0, 1]}}, "BOOL"),
    "rows-differ": ({"member": {"shape": [2], "data": [True, False]}}, "different numbers of rows"),
    "text-with-nul": ({"city": {"data": ["a\x00", "b", "c"]}}, "NUL"),
    "name-changed": ({"city": {"name": "town"}}, "pair, member, city"),
}


@shared_loop
@pytest.mark.parametrize(("changed", "text"), REFUSED.values(), ids=REFUSED)
async def test_several_inputs_are_refused_when_one_is_wrong(
    shared: Refusing, changed: dict[str, dict[str, Any]], text: str
) -> None:
    inputs = await change_mixture(shared, **changed)

    answer = await shared.post("/v2/models/mixture/infer", {"inputs": inputs})

    assert answer.status_code == 400
    assert text in read_error(answer)


@shared_loop
@pytest.mark.parametrize("shape", [[3], [3, 1]], ids=["vector", "column"])
async def test_a_column_may_be_sent_with_or_without_a_second_dimension(shared: Refusing, shape: list[int]) -> None:
    inputs = await change_mixture(shared, member={"shape": shape}, city={"shape": shape})

    answer = await shared.client.post("/v2/models/mixture/infer", json={"inputs": inputs})

    assert answer.status_code == 200, answer.text


@shared_loop
async def test_integers_are_refused_when_they_do_not_fit(shared: Refusing) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "UINT64", "data": [1, 2, 3, 2**63]}]}

    answer = await shared.post("/v2/models/integers/infer", dict(body))

    assert answer.status_code == 400
    assert "/rows/0/3" in read_error(answer)


@shared_loop
async def test_floats_are_refused_for_integers(shared: Refusing) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}

    answer = await shared.post("/v2/models/integers/infer", dict(body))

    assert answer.status_code == 400
    assert "the model takes INT64" in read_error(answer)


@shared_loop
@pytest.mark.parametrize("name", ["logits", "one-logit"])
async def test_output_is_named_after_the_probabilities_when_the_graph_has_logits(shared: Refusing, name: str) -> None:
    family = FAMILIES[name]()
    inputs = await make_inputs(shared, name, family)

    described = (await shared.client.get(f"/v2/models/{name}")).json()["outputs"]
    configured = (await shared.client.get(f"/v2/models/{name}/config")).json()["output"]
    answer = (await shared.client.post(f"/v2/models/{name}/infer", json={"inputs": inputs})).json()
    refused = await shared.post(f"/v2/models/{name}/infer", {"inputs": inputs, "outputs": [{"name": "p"}]})

    for outputs in (described, configured, answer["outputs"]):
        assert [one["name"] for one in outputs] == ["probabilities", "label"]
    sums = np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"]).sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    assert (refused.status_code, read_error(refused)) == (400, "no output 'p'; the outputs are probabilities, label")
