"""GET /docs and /docs/{file}: the interface as a page that can send requests, and asks nobody but this server."""

import asyncio
import functools
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from app.api.static import File, answer_file
from app.errors import NotFoundError

DIRECTORY = Path(__file__).parent.parent / "page"

MEDIA_TYPES = {
    "index.html": "text/html",
    "start.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""What is served of that directory."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing from elsewhere, nothing inline; the page's pictures are in its style sheet."""


async def get_page(request: Request) -> Response:
    """Answer the page."""
    return await _answer(request, "index.html")


async def get_part(request: Request) -> Response:
    """Answer a part of the page."""
    name = request.path_params["file"]
    if name not in MEDIA_TYPES:
        raise NotFoundError("there is nothing at this path")
    return await _answer(request, name)


async def _answer(request: Request, name: str) -> Response:
    return answer_file(request, await asyncio.to_thread(read_file, name), SECURITY_HEADERS)


@functools.cache
def read_file(name: str) -> File:
    """Read and compress a file, once."""
    return File.make((DIRECTORY / name).read_bytes(), MEDIA_TYPES[name])
