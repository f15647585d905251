"""GET /openapi.json: the interface in OpenAPI 3.1, with the inputs of the models that are loaded now."""

import asyncio
import functools
import re
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.api.labels import LabelBody
from app.api.pages import PARTS
from app.openapi.model_schemas import (
    NO_NUL,
    REF,
    ModelShape,
    Schema,
    describe_models,
    forbid_nul,
    make_examples,
    make_model_schemas,
)
from app.openapi.operations import JSON, OPERATIONS, PROBLEMS_OF_ANY, Content, Operation
from app.openapi.shapes import Problem
from app.prediction_log.record import TEXT_LIMIT
from app.state import get_state
from app.web.static import File, answer_file

DESCRIPTION = """\
An inference service that knows how good it is.

Errors are `application/problem+json` (RFC 9457) with JSON pointers to what was wrong. Every answer has an
`X-Request-Id`: the request's own, if it has one of up to 128 letters, digits and `._:/+=@-`. A path asked with another
method is answered 405 with `Allow`; 503 comes with `Retry-After`.
"""


async def get_openapi(request: Request) -> Response:
    """Answer the document; it is written anew when another set of models is loaded."""
    state = get_state(request.scope)
    models = describe_models(state.repository)
    return answer_file(request, await asyncio.to_thread(write_document, models, state.max_batch_rows))


@functools.lru_cache(maxsize=1)
def write_document(models: tuple[ModelShape, ...], max_rows: int) -> File:
    """Return the document as it is sent."""
    return File.make(msgspec.json.encode(make_document(models, max_rows)), JSON)


def make_document(models: Sequence[ModelShape], max_rows: int) -> Schema:
    """Write the document for these models."""
    paths: dict[str, Schema] = {}
    bodies = {
        "/predict": {"required": True, "content": make_predict_body(models)},
        "/labels": {"required": True, "content": make_labels_body(models)},
    }
    for operation in OPERATIONS:
        body = make_version_body(operation.body, models) if operation.body else bodies.get(operation.path)
        item = make_operation(operation, list_parameters(operation, models), body)
        paths.setdefault(operation.path, {})[operation.method] = item
    contents = [content for operation in OPERATIONS for kinds in operation.answers.values() for content in kinds]
    structs = [content for content in contents if isinstance(content, type)]
    structs += [operation.body for operation in OPERATIONS if operation.body]
    _, schemas = msgspec.json.schema_components([Problem, *structs], ref_template=REF)
    problems = {status for operation in OPERATIONS for status in operation.problems} | {*PROBLEMS_OF_ANY}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Scorekeeper", "version": version("scorekeeper"), "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {**make_model_schemas(models, max_rows), **make_label_schemas(max_rows), **schemas},
            "responses": {f"Problem{status}": make_problem(status) for status in sorted(problems)},
        },
    }


def make_operation(operation: Operation, parameters: Sequence[Schema], body: Schema | None) -> Schema:
    """Write one operation."""
    answers = {status: make_answer(status, contents) for status, contents in operation.answers.items()}
    for status in sorted({*operation.problems, *PROBLEMS_OF_ANY}):
        if status in answers:
            answers[status]["content"] |= make_problem(status)["content"]
        else:
            answers[status] = {"$ref": f"#/components/responses/Problem{status}"}
    return {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": body} if body else {}),
        "responses": {str(status): answers[status] for status in sorted(answers)},
    }


def list_parameters(operation: Operation, models: Sequence[ModelShape]) -> list[Schema]:
    """List what stands in the path and in the query."""
    schemas: dict[str, Schema] = {
        "prediction_id": {"type": "string", "format": "uuid"},
        "model": {"type": "string", "examples": [models[0].name]},
        "version": {"type": "string", "examples": [models[0].versions[-1]]},
        "file": {"enum": list(PARTS)},
    }
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": schemas[name]}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    if operation.query is None:
        return parameters
    schema = msgspec.json.schema(operation.query)["$defs"][operation.query.__name__]
    required = schema.get("required", ())
    return parameters + [
        {"name": name, "in": "query", "required": name in required, "schema": member}
        for name, member in forbid_nul(schema["properties"]).items()
    ]


def make_answer(status: int, contents: Sequence[Content]) -> Schema:
    """Write the answers of one status that are no problems."""
    refs = [{"$ref": REF.format(name=content.__name__)} for content in contents if isinstance(content, type)]
    content: Schema = {media_type: {} for media_type in contents if isinstance(media_type, str)}
    if refs:
        content[JSON] = {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}
    return {"description": HTTPStatus(status).phrase, "headers": REQUEST_ID, "content": content}


def make_problem(status: int) -> Schema:
    """Write the answer to what went wrong."""
    headers = {**REQUEST_ID, **({"Retry-After": {"schema": {"type": "integer"}}} if status == 503 else {})}
    content = {"application/problem+json": {"schema": {"$ref": REF.format(name="Problem")}}}
    return {"description": PROBLEMS[status], "headers": headers, "content": content}


PROBLEMS = {
    400: "The request, or its body, cannot be parsed",
    404: "What the request asks for is not here",
    408: "The request came too slowly",
    409: "What the request wants does not go with what is there",
    413: "The body is larger than is read here",
    414: "The path and query are too long",
    415: "The body is of a type or encoding that is not read",
    422: "The request was parsed but is unacceptable; `errors` say where and why",
    431: "The headers are too large or too many",
    500: "A bug of the server",
    503: "The server cannot do it now and promises nothing; try again",
}

REQUEST_ID = {"X-Request-Id": {"schema": {"type": "string"}}}


def make_version_body(struct: type[msgspec.Struct], models: Sequence[ModelShape]) -> Schema:
    """Write a body that names a version, and may be left out when it need not."""
    is_required = any(field.required for field in msgspec.structs.fields(struct))
    schema = {"$ref": REF.format(name=struct.__name__)}
    return {
        "required": is_required,
        "content": {JSON: {"schema": schema, "example": {"version": models[0].versions[-1]}}},
    }


def make_predict_body(models: Sequence[ModelShape]) -> Schema:
    """Write the body of /predict with an example of each kind for each model."""
    examples = {name: example for model in models for name, example in make_examples(model).items()}
    return {JSON: {"schema": {"$ref": REF.format(name="PredictRequest")}, "examples": examples}}


def make_labels_body(models: Sequence[ModelShape]) -> Schema:
    """Write the body of /labels; the examples label what the examples of /predict predict."""
    one, other = ({"external_id": f"order-{number}", "label": models[0].classes[0]} for number in (1, 2))
    examples: dict[str, Any] = {
        "one": {"summary": "One label", "value": one},
        "many": {"summary": "Many labels", "value": {"labels": [one, other]}},
    }
    lines = b"".join(msgspec.json.encode(label) + b"\n" for label in (one, other)).decode()
    return {
        JSON: {"schema": {"$ref": REF.format(name="LabelRequest")}, "examples": examples},
        "application/x-ndjson": {
            "schema": {"type": "string", "description": "One `Label` per line"},
            "examples": {"lines": {"summary": "One label per line", "value": lines}},
        },
    }


def make_label_schemas(max_rows: int) -> dict[str, Schema]:
    """Write the components for the body of /labels: `LabelRequest`, one label and many."""
    label = forbid_nul(msgspec.json.schema(LabelBody)["$defs"]["LabelBody"])
    keys = ("prediction_id", "external_id")
    label["properties"]["label"] = {
        "description": "A class as text or whole number; null withdraws",
        "anyOf": [
            {"type": "string", "maxLength": TEXT_LIMIT, **NO_NUL},
            {"type": "integer", "minimum": -(2**63) + 1, "maximum": 2**63 - 1},
            {"type": "null"},
        ],
    }
    label["required"] = ["label"]
    label["oneOf"] = [{"required": [key], "properties": {key: {"type": "string"}}} for key in keys]
    one = {"$ref": REF.format(name="Label")}
    labels = {"type": "array", "items": one, "minItems": 1, "maxItems": max_rows}
    nothing = {name: {"type": "null"} for name in (*keys, "observed_at")}
    many = {"type": "object", "properties": {"labels": labels, **nothing}, "required": ["labels"]}
    return {
        "LabelRequest": {"anyOf": [one, {"$ref": REF.format(name="Labels")}]},
        "Label": label,
        "Labels": {**many, "additionalProperties": False},
    }
