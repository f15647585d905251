"""/openapi.json: everything in it is described, and has an example that works."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import OpenClient
from tests.support.answers import predict
from tests.support.openapi import (
    Document,
    check_shape,
    fetch_document,
    has_results,
    is_valid,
    list_bodies,
    list_operations,
    list_queries,
    read_parameters,
)
from tests.support.processes import Server, wait_until
from tests.support.several_models import ROW, write_several


@pytest.fixture(params=["demo", "several models"])
async def any_client(
    open_client: OpenClient, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(**(write_several(tmp_path) if request.param == "several models" else {})) as opened:
        yield opened


async def test_everything_is_described_and_has_an_example(any_client: httpx2.AsyncClient) -> None:
    document = await fetch_document(any_client)
    operations = list_operations(document)
    parameters = [
        (path, parameter) for path, _, operation in operations for parameter in operation.get("parameters", ())
    ]
    schemas = document["components"]["schemas"]
    fields = [(name, field, one) for name, schema in schemas.items() for field, one in find_fields(schema)]

    assert len(parameters) > 40
    assert len(fields) > 150
    assert [path for path, _, operation in operations if not (operation["summary"] and operation["description"])] == []
    assert [one for one in parameters if not (one[1]["description"] and one[1]["schema"]["examples"])] == []
    assert [name for name, schema in schemas.items() if not schema.get("description")] == []
    assert [one for one in fields if not one[2].get("description")] == []
    assert [one for one in fields if "examples" not in one[2] and "$ref" not in str(one[2])] == []
    bodies = [content for *_, one in operations for content in one.get("requestBody", {}).get("content", {}).values()]
    assert len(bodies) == 11
    assert all(body["examples"] for body in bodies)
    answers = [content["application/json"] for _, content in list_answers(document) if "application/json" in content]
    assert all(answer == {} or answer["examples"] for answer in answers)


def find_fields(schema: Document) -> Iterator[tuple[str, Document]]:
    """Yield the fields of an object, or of the objects that a schema lets choose among."""
    yield from schema.get("properties", {}).items()
    for one in schema.get("anyOf", ()):
        yield from find_fields(one)


def list_answers(document: Document) -> list[tuple[str, Document]]:
    """Return (path, content) of every answer 200."""
    return [
        (path, operation["responses"]["200"]["content"])
        for path, _, operation in list_operations(document)
        if "200" in operation["responses"]
    ]


async def test_examples_are_what_their_schemas_allow(any_client: httpx2.AsyncClient) -> None:
    document = await fetch_document(any_client)

    found = [
        (content["schema"], example["value"])
        for path, method, operation in list_operations(document)
        for one in (operation.get("requestBody", {}), *operation["responses"].values())
        for content in one.get("content", {}).values()
        for example in content.get("examples", {}).values()
    ]
    found += [
        (field, value)
        for schema in document["components"]["schemas"].values()
        for _, field in find_fields(schema)
        for value in field.get("examples", ())
    ]
    found += [
        (parameter["schema"], value)
        for _, _, operation in list_operations(document)
        for parameter in operation.get("parameters", ())
        for value in parameter["schema"]["examples"]
    ]

    assert len(found) > 200
    assert [one for one in found if not is_valid(document, *one)] == []


async def test_examples_work_on_a_server(server: Server, tmp_path: Path) -> None:
    server.environment |= {**write_several(tmp_path), "DURABILITY": "database"}
    await server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        document = await fetch_document(client)
        prediction = await predict(client, features=ROW)
        await wait_until(lambda: has_results(client))
        # Ids are the server's, so that no example of one can be stored; unloading comes last, it takes models away.
        operations = sorted(list_operations(document), key=lambda one: "unload" in one[0])
        sent = [
            (method, path.format(**given), query, media_type, body)
            for path, method, operation in operations
            if "200" in operation["responses"]
            for given in [{**read_parameters(operation, "path"), "prediction_id": prediction["prediction_id"]}]
            for query in list_queries(operation)
            for media_type, body in list_bodies(operation)
        ]

        answers = [await send(client, *request) for request in sent]

    assert len(answers) > 60
    assert [(*one, answer.text) for one, answer in zip(sent, answers, strict=True) if answer.status_code != 200] == []


async def send(
    client: httpx2.AsyncClient, method: str, path: str, query: dict[str, Any], media_type: str, body: Any
) -> httpx2.Response:
    """Send a request; a body of text as it is, any other as JSON."""
    parameters = {name: str(value).lower() if value is True else value for name, value in query.items()}
    headers = {"content-type": media_type} if media_type else {}
    content = body if isinstance(body, str) else json.dumps(body)
    return await client.request(
        method, path, params=parameters, headers=headers, content=content if media_type else None
    )


@pytest.mark.parametrize("model", ["mixture", "integers", "second"])
async def test_example_of_inference_works_whatever_the_model_takes(
    open_client: OpenClient, tmp_path: Path, model: str
) -> None:
    async with open_client(**{**write_several(tmp_path), "DEFAULT_MODEL": model}) as client:
        document = await fetch_document(client)
        ((_, body),) = list_bodies(document["paths"]["/v2/models/{model}/infer"]["post"])

        answer = await client.post(f"/v2/models/{model}/infer", json=body)

        assert (answer.status_code, answer.json().get("model_name")) == (200, model)
        check_shape(document, "post", "/v2/models/{model}/infer", answer)
