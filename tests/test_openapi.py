"""/openapi.json: valid, of the routes that there are, with the loaded models' inputs and examples that work."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.asgi import ROUTES
from app.openapi.document import make_document
from app.web.deployment import Deployment
from tests.conftest import OpenClient
from tests.support.answers import BY_NAME, FEATURES, JSON_HEADERS, NAMES, NDJSON_HEADERS, label, predict
from tests.support.openapi import Document, check_shape, fetch_document, has_results
from tests.support.processes import wait_until
from tests.support.several_models import ROW, write_several


@pytest.fixture(params=["demo", "several models"])
async def any_client(
    open_client: OpenClient, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(**(write_several(tmp_path) if request.param == "several models" else {})) as opened:
        yield opened


@pytest.fixture
async def several(open_client: OpenClient, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(**write_several(tmp_path)) as opened:
        yield opened


def list_examples(document: Document, path: str) -> list[tuple[str, str, Any]]:
    """Return (media type, name, value) of every example for the body of this path."""
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return [
        (media_type, name, example["value"])
        for media_type, body in content.items()
        for name, example in body["examples"].items()
    ]


def is_accepted(document: Document, body: Document) -> bool:
    """Tell whether the document allows this body of /predict."""
    schema = {"$ref": "#/components/schemas/PredictRequest", "components": document["components"]}
    return bool(OAS31Validator(schema).is_valid(body))


async def test_document_is_valid_openapi(any_client: httpx2.AsyncClient) -> None:
    document = await fetch_document(any_client)

    assert document["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


async def test_document_has_every_route_and_no_other(client: httpx2.AsyncClient) -> None:
    document = await fetch_document(client)

    documented = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    assert documented == {
        (route.path.replace(":path}", "}"), method)
        for route in ROUTES
        for method in route.methods or ()
        if method != "HEAD"
    }


async def undeclared(request: Request) -> Response:
    return Response()


def test_handler_without_declaration_is_refused() -> None:
    routes = [Route("/undeclared", undeclared), *ROUTES]

    with pytest.raises(LookupError, match="undeclared"):
        make_document(routes, Deployment((), 1, ()))


async def test_features_are_the_models(client: httpx2.AsyncClient) -> None:
    document = await fetch_document(client)

    by_name, in_order = document["components"]["schemas"]["car-loan.1.Row"]["anyOf"]
    assert tuple(by_name["properties"]) == NAMES
    assert (in_order["minItems"], in_order["maxItems"]) == (len(NAMES), len(NAMES))


async def test_examples_are_allowed_and_answered_200(any_client: httpx2.AsyncClient) -> None:
    document = await fetch_document(any_client)

    examples = list_examples(document, "/predict")
    answers = [await any_client.post("/predict", json=body) for _, _, body in examples]

    assert [answer.status_code for answer in answers] == [200] * len(examples), [answer.text for answer in answers]
    assert all(is_accepted(document, body) for _, _, body in examples)
    asked = [answer.json() for answer in answers]
    assert {(one["model"], one["model_version"]) for one in asked} == {
        tuple(name.partition(",")[0].split(" ")) for _, name, _ in examples
    }


async def test_examples_of_labels_are_applied_to_those_of_predict(client: httpx2.AsyncClient) -> None:
    document = await fetch_document(client)
    for _, _, body in list_examples(document, "/predict"):
        await client.post("/predict", json=body)

    examples = list_examples(document, "/labels")
    answers = [
        await client.post("/labels", json=value, headers=JSON_HEADERS)
        if media_type == "application/json"
        else await client.post("/labels", content=value, headers=NDJSON_HEADERS)
        for media_type, _, value in examples
    ]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.json()["received"] for answer in answers] == [1, 2, 2]
    assert sum(answer.json()["new"] for answer in answers) == 2


BODIES: list[tuple[Document, int]] = [
    ({"features": ROW}, 200),
    ({"features": [None, *ROW[1:]]}, 200),
    ({"features": dict(zip("abc", ROW, strict=True)), "version": 1}, 200),
    ({"features": [None, *ROW[1:]], "version": "1"}, 422),
    ({"features": dict(zip("abc", ROW, strict=True))}, 422),
    ({"features": ROW[:2]}, 422),
    ({"features": ROW[:2], "model": "second"}, 200),
    ({"features": ROW[:2], "model": "second", "version": "main"}, 200),
    ({"features": ROW[:2], "version": "main"}, 404),
    ({"features": [1, 2, True, "Bern"], "model": "mixture"}, 200),
    ({"features": {"pair_0": 1, "pair_1": 2, "member": False, "city": "x" * 10_000}, "model": "mixture"}, 200),
    ({"features": [1, 2, True, "x" * 10_001], "model": "mixture"}, 422),
    ({"features": [1, 2, True, "\0"], "model": "mixture"}, 422),
    ({"features": [1, True, True, "Bern"], "model": "mixture"}, 422),
    ({"features": [1, 2, 1, "Bern"], "model": "mixture"}, 422),
    ({"features": [1, 2, True, None], "model": "mixture"}, 422),
    ({"features": [1, 2, 3.0, 2**63 - 1], "model": "integers"}, 200),
    ({"features": [1, 2, 3, 2**63], "model": "integers"}, 422),
    ({"features": [1, 2, 3.5, 4], "model": "integers"}, 422),
    ({"features": ROW, "model": None, "version": None, "external_id": None, "external_ids": None}, 200),
    ({"instances": [ROW], "external_id": "a"}, 422),
    ({"instances": [ROW], "external_ids": ["a"], "version": 2}, 200),
    ({"instances": []}, 422),
    ({"features": ROW, "instances": [ROW]}, 422),
    ({"features": [1e39, 0, 0]}, 422),
    ({}, 422),
]


async def test_document_allows_what_the_server_takes(several: httpx2.AsyncClient) -> None:
    document = await fetch_document(several)

    answers = [await several.post("/predict", json=body) for body, _ in BODIES]

    assert [(body, answer.status_code) for (body, _), answer in zip(BODIES, answers, strict=True)] == BODIES
    assert [(body, is_accepted(document, body)) for body, _ in BODIES] == [(body, it == 200) for body, it in BODIES]


async def test_document_is_not_sent_again_when_the_client_has_it(client: httpx2.AsyncClient) -> None:
    first = await client.get("/openapi.json")

    second = await client.get("/openapi.json", headers={"if-none-match": first.headers["etag"]})

    assert (second.status_code, second.content) == (304, b"")


async def test_every_problem_that_a_route_answers_is_in_the_document(client: httpx2.AsyncClient) -> None:
    document = await fetch_document(client)
    sent = [
        ("post", "/predict", {"content": b"{"}),
        ("post", "/predict", {"json": {"features": FEATURES, "model": "none"}}),
        ("post", "/predict", {"content": b" " * 2**23 + b"{}"}),
        ("post", "/predict", {"content": b"", "headers": {"content-type": "text/plain"}}),
        ("post", "/predict", {"json": {"features": {**BY_NAME, "other": 1}}}),
        ("post", "/labels", {"json": {"label": 1}}),
        ("get", "/predictions", {"params": {"limit": 0}}),
        ("get", "/predictions/{prediction_id}", {}),
        ("get", "/quality", {"params": {"since": "2026-01-01T00:00:00Z"}}),
        ("get", "/quality/history", {}),
        ("get", "/quality/counts", {}),
        ("get", "/quality/counts", {"params": {"model": "a", "version": "1", "window": "1h"}}),
        ("get", "/quality/history", {"params": {"model": "a", "version": "1", "window": "1h", "since": "0.5"}}),
        ("get", "/models/{model}/versions/{version}", {}),
        ("post", "/models/{model}/load", {"json": {}}),
        ("post", "/models/{model}/load", {"json": {"version": " " * 1024}}),
        ("post", "/models/{model}/unload", {"json": {}}),
        ("post", "/models/{model}/pin", {"json": {"version": "1"}}),
        ("get", "/page/{file}", {}),
        ("get", "/v2/models/{model}", {}),
        ("post", "/v2/models/{model}/infer", {}),
        ("post", "/v2/repository/index", {"content": b"{"}),
        ("post", "/v2/repository/models/{model}/load", {"json": {"parameters": {"config": "{}"}}}),
        ("get", "/v2/trace/{rest}", {}),
    ]

    answers = [
        await client.request(method, re.sub(r"{\w+}", "none", path), **options)  # type: ignore[arg-type]
        for method, path, options in sent
    ]

    assert [answer.status_code for answer in answers] == [
        *(400, 404, 413, 415, 422, 422, 422, 422, 422, 422, 422, 404, 422),
        *(404, 404, 413, 422, 404, 404),
        *(404, 404, 400, 501, 501),
    ]
    for (method, path, _), answer in zip(sent, answers, strict=True):
        reference = document["paths"][path][method]["responses"][str(answer.status_code)]["$ref"]
        response = document["components"]["responses"][reference.rpartition("/")[2]]
        assert list(response["content"]) == [answer.headers["content-type"]]


async def test_answers_have_the_shapes_in_the_document(client: httpx2.AsyncClient) -> None:
    document = await fetch_document(client)
    prediction = await predict(client, external_id="a")
    await label(client, external_id="a", label=1)
    await wait_until(lambda: has_results(client))
    values = {"prediction_id": prediction["prediction_id"], "model": "car-loan", "version": "1", "page": "labels.md"}
    paths = [
        path
        for path, item in document["paths"].items()
        if "{file}" not in path and "200" in item.get("get", {"responses": {}})["responses"]
    ]

    of_one = {"model": "car-loan", "version": "1", "window": "1h"}
    query = {"/quality/history": of_one, "/quality/counts": of_one}
    answers = {path: await client.get(path.format(**values), params=query.get(path)) for path in paths}

    assert answers["/predictions/{prediction_id}"].json()["label_history"]
    assert answers["/quality/history"].json()["history"], answers["/quality/history"].text
    for path, answer in answers.items():
        check_shape(document, "get", path, answer)


async def test_answers_about_versions_have_the_shapes_in_the_document(several: httpx2.AsyncClient) -> None:
    document = await fetch_document(several)
    steps: list[tuple[str, str, Document]] = [
        ("post", "/models/{model}/unload", {"json": {"version": "1"}}),
        ("get", "/models", {}),
        ("get", "/models/{model}/versions/{version}", {}),
        ("post", "/models/{model}/load", {"json": {"version": 1}}),
        ("post", "/models/{model}/pin", {"json": {"version": "1"}}),
        ("get", "/models/{model}/versions/{version}", {}),
        ("post", "/models/{model}/load", {}),
    ]

    answers = [
        await several.request(method, path.format(model="first", version="1"), **options)
        for method, path, options in steps
    ]
    tied = await several.post("/models/first/unload", json={"version": "1"})

    assert [answer.json().get("state") for answer in answers] == [
        *("unloaded", None, "unloaded", "serving", None, "serving", "serving")
    ]
    assert [one["version"] for one in answers[1].json()["not_serving"]] == ["1"]
    for (method, path, _), answer in zip(steps, answers, strict=True):
        check_shape(document, method, path, answer)
    assert tied.status_code == 409
    assert "409" in document["paths"]["/models/{model}/unload"]["post"]["responses"]


async def test_document_is_written_anew_when_other_versions_are_served(several: httpx2.AsyncClient) -> None:
    bodies: list[Document] = [{"features": dict(zip("abc", ROW, strict=True))}, {"features": [None, *ROW[1:]]}]

    before = await fetch_document(several)
    await several.post("/models/first/pin", json={"version": "1"})
    pinned = await fetch_document(several)
    await several.post("/models/first/unload", json={"version": "2"})
    alone = await fetch_document(several)

    assert [is_accepted(before, body) for body in bodies] == [False, True]
    assert [is_accepted(pinned, body) for body in bodies] == [True, False]
    assert "first.2.Row" in pinned["components"]["schemas"]
    assert "first.2.Row" not in alone["components"]["schemas"]
