"""Turn every error into an answer: `application/problem+json` (RFC 9457), or under /v2 the form of its protocol."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Fault, ScorekeeperError
from app.web.json import answer_json
from app.web.requests import get_path, get_request_id

PROBLEM_JSON = "application/problem+json"

MAX_FAULTS = 20
"""Faults listed in one answer; a batch may have thousands, and the first ones are enough to see what is wrong."""


class Problem(msgspec.Struct):
    """What went wrong (RFC 9457)."""

    type: Annotated[str, Meta(description="Always this: `title` says what `status` means", examples=["about:blank"])]
    title: Annotated[str, Meta(description="What the status means", examples=["Unprocessable Entity"])]
    status: Annotated[int, Meta(description="The answer's status", examples=[422])]
    detail: Annotated[
        str, Meta(description="What went wrong, in words", examples=["/features/loan_length: expected number"])
    ]
    instance: Annotated[
        str,
        Meta(
            description="The request's id, under which the server logs it",
            examples=["5f1c9d0a7be2430e0000000000000001"],
        ),
    ]
    errors: Annotated[
        list[Fault] | UnsetType, Meta(description=f"What is wrong with the request, at most {MAX_FAULTS} faults")
    ] = UNSET


class OpenInferenceError(msgspec.Struct):
    """What went wrong, in the form of the Open Inference Protocol."""

    error: Annotated[
        str, Meta(description="What went wrong, in words", examples=["no such model; loaded are car-loan"])
    ]


def render_error(request: Request, error: Exception) -> Response:
    """Answer a ScorekeeperError with its status, a bug with 500; uvicorn logs a bug's traceback."""
    return render_at(get_path(request.scope), error, get_request_id(request.scope))


def render_at(path: str, error: Exception, request_id: str) -> Response:
    """Answer an error in the form of this path, which is without a proxy's prefix: a problem, or that of /v2."""
    if not is_open_inference(path):
        return render_problem(error, request_id)
    if not isinstance(error, ScorekeeperError):
        return _render_open_inference_error(500, HIDDEN, {})
    status = 400 if error.status == 422 else error.status  # the protocol has no 422
    return _render_open_inference_error(status, str(error), dict(error.headers))


def render_problem(error: Exception, request_id: str) -> Response:
    """Answer an error as a problem. The text of a bug's exception is not shown: it may hold anything."""
    if isinstance(error, ScorekeeperError):
        return _render(request_id, error.status, str(error), dict(error.headers), error.faults[:MAX_FAULTS])
    return _render(request_id, 500, HIDDEN, {})


HIDDEN = "internal error; the server's log has the details under this request id"


def render_http_exception(request: Request, error: Exception) -> Response:
    """Answer what Starlette's routing raises: 404 and 405."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    detail = "there is nothing at this path; /docs lists every path" if error.status_code == 404 else error.detail
    if error.status_code == 405:
        detail = (
            f"the method is not allowed at this path, allowed are {headers['Allow']}; /docs shows each with an example"
        )
    if is_open_inference(get_path(request.scope)):
        return _render_open_inference_error(error.status_code, detail, headers)
    return _render(get_request_id(request.scope), error.status_code, detail, headers)


def is_open_inference(path: str) -> bool:
    """Return whether an error is answered in the form of the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def _render_open_inference_error(status: int, detail: str, headers: dict[str, str]) -> Response:
    """Answer an error in the form of the Open Inference Protocol."""
    return answer_json(OpenInferenceError(detail), status, headers)


def _render(
    request_id: str, status: int, detail: str, headers: dict[str, str], faults: Sequence[Fault] = ()
) -> Response:
    problem = Problem("about:blank", HTTPStatus(status).phrase, status, detail, request_id, list(faults) or UNSET)
    return answer_json(problem, status, headers, PROBLEM_JSON)
