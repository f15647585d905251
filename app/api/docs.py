"""GET /docs and /docs/{file}: the interface as a page that can send requests, and asks nobody but this server."""

import asyncio
import functools
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from app.api.static import File, answer_file
from app.errors import NotFoundError

DIRECTORY = Path(__file__).parent.parent / "page"

PAGE = "index.html"

PARTS = {
    "start.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""What the page is made of, beside itself."""

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
    return await _answer(request, PAGE, "text/html")


async def get_part(request: Request) -> Response:
    """Answer a part of the page."""
    name = request.path_params["file"]
    if name not in PARTS:
        raise NotFoundError("there is nothing at this path")
    return await _answer(request, name, PARTS[name])


async def _answer(request: Request, name: str, media_type: str) -> Response:
    return answer_file(request, await asyncio.to_thread(read_file, name, media_type), SECURITY_HEADERS)


@functools.cache
def read_file(name: str, media_type: str) -> File:
    """Read and compress a file, once."""
    return File.make((DIRECTORY / name).read_bytes(), media_type)
