"""GET /openapi.json: the API in OpenAPI 3.1, generated from the routes and the models that are loaded now."""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.openapi.operations import DocumentedOperation, list_operations, make_operation
from app.openapi.problems import make_problems
from app.state import State, get_state
from app.web.deployment import Deployment, describe_models
from app.web.json import JSON
from app.web.operation import Operation, Schema, Tag
from app.web.problem import OpenInferenceError, Problem
from app.web.schemas import make_components
from app.web.static import File, answer_file

DESCRIPTION = """\
An inference service that knows how good it is.

Errors are `application/problem+json` (RFC 9457) with JSON pointers to what was wrong; below `/v2` they are those of the
Open Inference Protocol. Every answer has an `X-Request-Id`: that of the request if it has up to 128 letters, digits and
`._:/+=@-`, else a new one. A method that a path does not have is answered 405 with `Allow`; 503 has `Retry-After`.
"""

TAGS: Mapping[Tag, str] = {
    "predictions": "Scoring rows, and the rows that were scored",
    "labels": "The true classes, when they are known",
    "quality": "How good each version is",
    "models": "Which versions are served",
    "operations": "For probes, Prometheus and people",
    "open-inference": "The Open Inference Protocol, version 2, for its clients",
    "unsupported": "Parts of the Open Inference Protocol that are answered 501",
}


@Operation(id="getOpenapi", tag="operations", summary="This document", answers={200: [JSON], 304: []})
async def get_openapi(request: Request) -> Response:
    """Answer the API in OpenAPI 3.1; the document is rebuilt when the loaded models change."""
    deployment = _describe_deployment(get_state(request.scope))
    prefix = request.scope.get("root_path", "")
    return answer_file(request, await asyncio.to_thread(_write_document, request.app, deployment, prefix))


def _describe_deployment(state: State) -> Deployment:
    """Return what the document depends on."""
    windows = tuple(state.quality.window_names)
    return Deployment(describe_models(state.repository), state.max_batch_rows, windows)


@functools.lru_cache(maxsize=1)
def _write_document(app: Starlette, deployment: Deployment, prefix: str) -> File:
    """Return the document as it is sent."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    return File.make(msgspec.json.encode(make_document(routes, deployment, prefix)), JSON)


def make_document(routes: Sequence[Route], deployment: Deployment, prefix: str = "") -> Schema:
    """Return the document of these routes below a prefix; raise LookupError for one that declares no operation."""
    operations = list_operations(routes, deployment)
    components = _make_all_components(operations)
    paths: dict[str, Schema] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = make_operation(operation, components)
    errors = [(operation.path, status) for operation in operations for status in sorted(operation.problems)]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Scorekeeper", "version": version("scorekeeper"), "description": DESCRIPTION},
        "servers": [{"url": prefix or "/", "description": "This server"}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": paths,
        "components": {"schemas": components, "responses": make_problems(errors)},
    }


def _make_all_components(operations: Sequence[DocumentedOperation]) -> dict[str, Schema]:
    """Return the schemas that the operations refer to, by name."""
    contents = [one for operation in operations for some in operation.declared.answers.values() for one in some]
    bodies = [body for operation in operations for body in operation.bodies]
    types = [one for one in [*contents, *(body.shape for body in bodies)] if not isinstance(one, str | dict)]
    _, schemas = make_components([Problem, OpenInferenceError, *types])
    return {**{name: one for body in bodies for name, one in body.components.items()}, **schemas}
