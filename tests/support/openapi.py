"""The document at /openapi.json: what is in it, and answers held to it."""

from typing import Any

import httpx2
from openapi_schema_validator import OAS31Validator, oas31_format_checker

Document = dict[str, Any]


async def fetch_document(client: httpx2.AsyncClient) -> Document:
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document: Document = answer.json()
    return document


def list_operations(document: Document) -> list[tuple[str, str, Document]]:
    """Return (path, method, operation) of every operation."""
    return [(path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()]


def read_parameters(operation: Document, place: str) -> dict[str, Any]:
    """Return the examples of the parameters in the path or in the query."""
    found = [one for one in operation.get("parameters", ()) if one["in"] == place]
    return {one["name"]: one["schema"]["examples"][0] for one in found}


def list_queries(operation: Document) -> list[dict[str, Any]]:
    """Return the query with what it needs, if it has any parameters, and with all of them."""
    every = read_parameters(operation, "query")
    needed = {one["name"] for one in operation.get("parameters", ()) if one["required"]}
    least = {name: value for name, value in every.items() if name in needed}
    return [least, every] if every else [{}]


def list_bodies(operation: Document) -> list[tuple[str, Any]]:
    """Return (media type, value) of every example for the body, or of none."""
    content = operation.get("requestBody", {"content": {"": {"examples": {"": {"value": None}}}}})["content"]
    return [
        (media_type, example["value"]) for media_type, body in content.items() for example in body["examples"].values()
    ]


def is_valid(document: Document, schema: Document, value: object) -> bool:
    validator = OAS31Validator({**schema, "components": document["components"]}, format_checker=oas31_format_checker)
    return bool(validator.is_valid(value))


async def has_results(client: httpx2.AsyncClient) -> bool:
    return bool((await client.get("/quality")).json()["results"])


def check_shape(document: Document, method: str, path: str, answer: httpx2.Response) -> None:
    """Hold a 200 to what the document says of it."""
    assert answer.status_code == 200, answer.text
    content = document["paths"][path][method]["responses"]["200"]["content"]
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = {**content[media_type].get("schema", {}), "components": document["components"]}
    if media_type == "application/json":
        assert list(OAS31Validator(schema).iter_errors(answer.json())) == []
