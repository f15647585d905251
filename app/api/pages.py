"""GET / and /docs: a page about the model's quality, and a page about the API. They ask only this server."""

import asyncio
import functools
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.errors import NotFoundError
from app.web.operation import Operation
from app.web.static import File, answer_file

DIRECTORY = Path(__file__).parent.parent / "page"

PARTS = {
    "model.js": "text/javascript",
    "charts.js": "text/javascript",
    "tables.js": "text/javascript",
    "text.js": "text/javascript",
    "model.css": "text/css",
    "runbook.css": "text/css",
    "chart.umd.min.js": "text/javascript",
    "docs.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""The files that the pages load."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Allow nothing from other servers and nothing inline, except images that style sheets contain (`data:`)."""


PartName = Annotated[
    str,
    Meta(description="The file's name", examples=["model.css"], extra_json_schema={"enum": list(PARTS)}),
]


@Operation(
    id="getModelPage",
    tag="operations",
    summary="A page about the model's quality",
    answers={200: ["text/html"], 304: []},
)
async def get_model_page(request: Request) -> Response:
    """Answer the page that shows one model live; it asks only this server."""
    return await _answer(request, "model.html", "text/html")


@Operation(id="getDocs", tag="operations", summary="This document as a page", answers={200: ["text/html"], 304: []})
async def get_docs_page(request: Request) -> Response:
    """Answer the page that shows this document and sends requests; it asks only this server."""
    return await _answer(request, "docs.html", "text/html")


@Operation(
    id="getPageFile",
    tag="operations",
    summary="A part of these pages",
    answers={200: ["text/css", "text/javascript"], 304: []},
    problems=[404],
    path={"file": PartName},
)
async def get_part(request: Request) -> Response:
    """Answer a script or a style sheet of the pages, 304 when the client has it."""
    name = request.path_params["file"]
    if name not in PARTS:
        raise NotFoundError("there is nothing at this path")
    return await _answer(request, name, PARTS[name])


async def _answer(request: Request, name: str, media_type: str) -> Response:
    return answer_file(request, await asyncio.to_thread(_read_file, name, media_type), SECURITY_HEADERS)


@functools.cache
def _read_file(name: str, media_type: str) -> File:
    """Read and compress a file, once."""
    return File.make((DIRECTORY / name).read_bytes(), media_type)
