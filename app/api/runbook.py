"""GET /runbook/...: the documentation of this release, to which alerts link; it needs nothing but this server."""

import asyncio
import functools
from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.api.pages import SECURITY_HEADERS
from app.errors import NotFoundError
from app.settings import BUNDLED_DIR
from app.web.markdown import render_markdown
from app.web.operation import Operation
from app.web.static import File, answer_file

DOCS_DIR = BUNDLED_DIR / "docs"

INDEX = "README.md"

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta name="color-scheme" content="light dark">
    <title>{title}, Scorekeeper</title>
    <link rel="icon" href="data:,">
    <link rel="stylesheet" href="../page/runbook.css">
  </head>
  <body>
    <nav aria-label="Other pages"><a href="../">Model</a> <a href="README.md">Documentation</a></nav>
    <main>
{content}
    </main>
  </body>
</html>
"""

PageName = Annotated[str, Meta(description="The page's name, as in the folder docs/", examples=["alerts.md"])]


@Operation(
    id="getRunbook",
    tag="operations",
    summary="The documentation's first page",
    answers={200: ["text/html"], 304: []},
)
async def get_runbook(request: Request) -> Response:
    """Answer the list of all pages of the documentation."""
    return await _answer_page(request, INDEX)


@Operation(
    id="getRunbookPage",
    tag="operations",
    summary="A page of the documentation",
    answers={200: ["text/html"], 304: []},
    problems=[404],
    path={"page": PageName},
)
async def get_runbook_page(request: Request) -> Response:
    """Answer one page of the documentation; `alerts.md` has a section for each alert."""
    return await _answer_page(request, request.path_params["page"])


async def _answer_page(request: Request, name: str) -> Response:
    if name not in await asyncio.to_thread(_list_pages):
        raise NotFoundError("there is no such page; /runbook/ lists them")
    return answer_file(request, await asyncio.to_thread(_render_page, name), SECURITY_HEADERS)


@functools.cache
def _list_pages() -> frozenset[str]:
    return frozenset(path.name for path in DOCS_DIR.glob("*.md"))


@functools.cache
def _render_page(name: str) -> File:
    """Render a page, once."""
    title, content = render_markdown((DOCS_DIR / name).read_text(encoding="utf-8"))
    return File.make(TEMPLATE.format(title=title, content=content).encode(), "text/html")
