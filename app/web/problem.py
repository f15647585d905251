"""Every error becomes one kind of answer: `application/problem+json` (RFC 9457); under /v2 its protocol's own."""

from collections.abc import Sequence
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Fault, ScorekeeperError
from app.web.requests import get_path, get_request_id

MAX_FAULTS = 20
"""Faults listed in one answer; a batch may have thousands, and the first few tell."""


def render_error(request: Request, error: Exception) -> Response:
    """Answer an error of our own tree, or a bug of ours, whose traceback uvicorn logs."""
    return render_at(get_path(request.scope), error, get_request_id(request.scope))


def render_at(path: str, error: Exception, request_id: str) -> Response:
    """Answer an error in the form that this path's clients know."""
    if not is_open_inference(path):
        return render_problem(error, request_id)
    if not isinstance(error, ScorekeeperError):
        return render_open_inference_error(500, HIDDEN, {})
    status = 400 if error.status == 422 else error.status  # the protocol does not tell the two apart
    return render_open_inference_error(status, str(error), dict(error.headers))


def render_problem(error: Exception, request_id: str) -> Response:
    """Answer an error under a request's id; of a bug the text is not shown, it may hold anything."""
    if isinstance(error, ScorekeeperError):
        return _render(request_id, error.status, str(error), dict(error.headers), error.faults[:MAX_FAULTS])
    return _render(request_id, 500, HIDDEN, {})


HIDDEN = "an error of the server; its log has more under this request id"


def render_http_exception(request: Request, error: Exception) -> Response:
    """Answer what Starlette's routing raises: 404 and 405."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    detail = "there is nothing at this path" if error.status_code == 404 else error.detail
    if is_open_inference(get_path(request.scope)):
        return render_open_inference_error(error.status_code, detail, headers)
    return _render(get_request_id(request.scope), error.status_code, detail, headers)


def is_open_inference(path: str) -> bool:
    """Tell whether an answer is to be in the form of the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def render_open_inference_error(status: int, detail: str, headers: dict[str, str]) -> Response:
    """Answer an error as the Open Inference Protocol has it."""
    return Response(msgspec.json.encode({"error": detail}), status, headers, media_type="application/json")


def _render(
    request_id: str, status: int, detail: str, headers: dict[str, str], faults: Sequence[Fault] = ()
) -> Response:
    problem: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": request_id,
    }
    if faults:
        problem["errors"] = list(faults)
    body = msgspec.json.encode(problem)
    return Response(body, status, headers, media_type="application/problem+json")
