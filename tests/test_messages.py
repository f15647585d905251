"""What the server says to a request that it refuses: what is allowed, with an example that works."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest

from app.serving.features import KIND_EXAMPLES, FeatureKind
from tests.conftest import OpenClient
from tests.support.family_models import make_mixture
from tests.support.onnx_models import write_model
from tests.support.open_inference import read_error


async def refuse(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    detail: str = answer.json()["detail"]
    return detail


def find_examples(detail: str) -> list[Any]:
    """Every JSON document that stands in a text, read by the standard library."""
    found, decoder = [], json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{\"", detail)):
        value, _ = decoder.raw_decode(detail[start:])
        found.append(value)
    return found


@pytest.mark.parametrize("name", ["inputs", "data", "rows"])
async def test_another_name_for_rows_is_told_the_right_ones(client: httpx2.AsyncClient, name: str) -> None:
    detail = await refuse(await client.post("/predict", json={name: [[1, 2, 3, 4, 5]]}), 422)

    assert f"`{name}`" in detail
    assert "allowed are features, instances, model, version, external_id, external_ids" in detail
    assert [list(example) for example in find_examples(detail)] == [["features"], ["instances"]]


async def test_neither_row_nor_rows_is_told_how_both_are_sent(client: httpx2.AsyncClient) -> None:
    detail = await refuse(await client.post("/predict", json={}), 422)

    assert [list(example) for example in find_examples(detail)] == [["features"], ["instances"]]


async def test_a_member_of_a_label_is_told_those_that_there_are(client: httpx2.AsyncClient) -> None:
    one = await refuse(await client.post("/labels", json={"id": "a", "label": 1}), 422)
    many = await refuse(await client.post("/labels", json={"labels": [{"id": "a", "label": 1}]}), 422)

    assert "allowed are label, prediction_id, external_id, observed_at, labels" in one
    assert "allowed are label, prediction_id, external_id, observed_at" in many
    assert "observed_at, labels" not in many
    (example,) = find_examples(one)
    assert (await client.post("/labels", json=example)).status_code == 200


async def test_an_unknown_parameter_is_told_those_that_there_are(client: httpx2.AsyncClient) -> None:
    detail = await refuse(await client.get("/predictions?modle=a"), 422)
    documented = (await client.get("/openapi.json")).json()["paths"]["/predictions"]["get"]["parameters"]

    assert detail.startswith("?modle: ")
    assert "allowed are " + ", ".join(one["name"] for one in documented) in detail


@pytest.mark.parametrize(
    "text", ["2026-01-31", "2026-01-31T12:00:00", "yesterday", "1769860800", "2026-01-31T12:00:00 00:00"]
)
async def test_a_time_is_told_how_it_is_written(client: httpx2.AsyncClient, text: str) -> None:
    in_query = await refuse(await client.get("/predictions", params={"since": text}), 422)
    in_body = await refuse(
        await client.post("/labels", json={"external_id": "a", "label": 1, "observed_at": text}), 422
    )

    for detail in (in_query, in_body):
        example = re.search(r"a time with its offset from UTC, for example (\S+)$", detail)
        assert example is not None, detail
        assert (await client.get("/predictions", params={"since": example[1]})).status_code == 200


async def test_another_parameter_is_told_an_example(client: httpx2.AsyncClient) -> None:
    detail = await refuse(await client.get("/predictions?limit=many"), 422)

    example = re.search(r"for example \?(\S+)$", detail)
    assert example is not None, detail
    assert (await client.get(f"/predictions?{example[1]}")).status_code == 200


@pytest.mark.parametrize("number", ["NaN", "nan", "Infinity", "-Infinity", "-inf"])
@pytest.mark.parametrize(
    "body", ['{"features": [1, 2, %s, 4, 5]}', '{"features":[%s,2,3,4,5]}', '{"features":{"car_value":%s}}']
)
async def test_nan_is_told_how_a_missing_value_is_sent(client: httpx2.AsyncClient, body: str, number: str) -> None:
    headers = {"content-type": "application/json"}
    detail = await refuse(await client.post("/predict", content=body % number, headers=headers), 400)

    assert "NaN and Infinity are no JSON numbers: a missing value is null" in detail


async def test_other_malformed_json_is_not_told_of_nan(client: httpx2.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    for body in ('{"features": [1, 2, x]}', '{"external_id": "NaN", "features": [1, ]}', '{"a": nul}'):
        detail = await refuse(await client.post("/predict", content=body, headers=headers), 400)

        assert "NaN" not in detail, body


@pytest.mark.parametrize(
    ("path", "status"),
    [("/models/car-loan/pin", 404), ("/models/car-loan/unload", 404), ("/predict", 422), ("/labels", 200)],
)
async def test_no_body_is_told_what_to_send(client: httpx2.AsyncClient, path: str, status: int) -> None:
    detail = await refuse(await client.post(path), 400)

    assert detail.startswith("the body is empty, for example ")
    example = find_examples(detail)[0]
    assert (await client.post(path, json=example)).status_code == status  # of another version, and of other rows


async def test_null_is_told_what_the_feature_takes(client: httpx2.AsyncClient) -> None:
    detail = await refuse(await client.post("/predict", json={"features": [1, 2, 3, 4, None]}), 422)

    assert detail == "/features/4: null is not allowed, expected number, for example 1.5"


async def test_null_where_only_other_features_may_be_missing_is_told_so(
    open_client: OpenClient, tmp_path: Path
) -> None:
    write_model(tmp_path, make_mixture(missing_values="allowed").content, "model", "1")

    async with open_client(MODEL_DIR=str(tmp_path)) as client:
        no_text = await refuse(await client.post("/predict", json={"features": [1, 1, True, None]}), 422)
        no_number = await refuse(await client.post("/predict", json={"features": ["1", 1, True, "Bern"]}), 422)

    assert no_text == '/features/3: null is not allowed, expected text, for example "abc"'
    assert no_number == "/features/0: expected number or null, for example 1.5"


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/predict", "POST"), ("POST", "/quality", "GET, HEAD")]
)
async def test_another_method_is_told_the_allowed_ones(
    client: httpx2.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await client.request(method, path)

    assert answer.headers["allow"] == allowed
    assert f"allowed are {allowed};" in await refuse(answer, 405)


async def test_messages_of_the_open_inference_protocol_say_the_same(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/v2/models/car-loan/infer")

    assert answer.status_code == 405
    assert "allowed are POST;" in read_error(answer)


async def test_an_unknown_feature_is_told_those_that_there_are(client: httpx2.AsyncClient) -> None:
    row = {"car_price": 1, "debt_to_income_ratio": 1, "loan_length": 1, "driver_tenure": 1, "size_of_downpayment": 1}
    answer = await client.post("/predict", json={"features": row})

    assert await refuse(answer, 422) == "/features: feature 'car_value' is missing (and 1 more)"
    names = [one["name"] for one in (await client.get("/models/car-loan/versions/1")).json()["inputs"]]
    assert answer.json()["errors"][1]["detail"] == f"no such feature; the features are {', '.join(names)}"


async def test_a_missing_feature_is_told_when_null_would_do(open_client: OpenClient, tmp_path: Path) -> None:
    write_model(tmp_path, make_mixture(missing_values="allowed").content, "model", "1")

    async with open_client(MODEL_DIR=str(tmp_path)) as client:
        answer = await client.post("/predict", json={"features": {"member": True}})

    details = [fault["detail"] for fault in answer.json()["errors"]]
    assert [detail.partition(" is missing")[2] for detail in details] == ["; null is allowed"] * 2 + [""]


@pytest.mark.parametrize("kind", get_args(FeatureKind))
def test_every_kind_of_feature_has_an_example(kind: FeatureKind) -> None:
    assert kind in KIND_EXAMPLES
