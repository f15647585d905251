"""The errors of the document: which an operation may answer, and in which form."""

from collections.abc import Iterable

from app.web.json import JSON
from app.web.operation import Schema
from app.web.problem import PROBLEM_JSON, is_open_inference
from app.web.schemas import refer

PROBLEMS_OF_ANY = (400, 408, 414, 431, 500, 503)
"""The errors that any operation may answer: the server sends most before it looks for a route; 500 is a bug."""

PROBLEMS = {
    400: "The request, or its body, cannot be parsed",
    404: "What the request asks for does not exist",
    408: "The request came too slowly",
    409: "The request conflicts with the current state",
    413: "The body is larger than allowed",
    414: "The path and query are too long",
    415: "The body has a type or encoding that is not supported",
    422: "The request was parsed but is unacceptable; `errors` say where and why",
    431: "The headers are too large or too many",
    500: "A bug in the server",
    501: "A part of the protocol that is not supported",
    503: "The server cannot serve the request now and promises nothing; try again",
}

REQUEST_ID_HEADER: Schema = {
    "X-Request-Id": {
        "description": "The request's id, under which the server logs it",
        "schema": {"type": "string", "examples": ["5f1c9d0a7be2430e0000000000000001"]},
    }
}

RETRY_AFTER: Schema = {
    "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "examples": [1]}}
}


def name_problem(path: str, status: int) -> str:
    """Return the name of the response component with the errors of a status at a path."""
    return f"{'OpenInferenceError' if is_open_inference(path) else 'Problem'}{status}"


def make_problem(path: str, status: int) -> Schema:
    """Return the answer of an error status, in the form that errors have at a path."""
    media_type, name = (JSON, "OpenInferenceError") if is_open_inference(path) else (PROBLEM_JSON, "Problem")
    headers = {**REQUEST_ID_HEADER, **(RETRY_AFTER if status == 503 else {})}
    return {"description": PROBLEMS[status], "headers": headers, "content": {media_type: {"schema": refer(name)}}}


def make_problems(kinds: Iterable[tuple[str, int]]) -> dict[str, Schema]:
    """Return the response components for errors of (path, status)."""
    return {name_problem(path, status): make_problem(path, status) for path, status in kinds}
