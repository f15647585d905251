"""Markdown to HTML, with the headings' anchors that forges make, so that links to a section work here too."""

import html
import re
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token


def render_markdown(text: str) -> tuple[str, str]:
    """Return the title of a page, its first heading, and the page as HTML. HTML in the text is shown as text.

    A link out of the page's folder becomes plain text: only the folder is served.
    """
    from markdown_it import MarkdownIt  # noqa: PLC0415  # 2.4 MiB, which only a server with readers needs

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    title = _name_headings(tokens)
    for token in tokens:
        if token.children:
            token.children = _drop_outer_links(token.children)
    rendered: str = parser.renderer.render(tokens, parser.options, {})
    return title, rendered.replace("<table>", '<div class="table" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )


def _name_headings(tokens: "list[Token]") -> str:
    """Give each heading its anchor as id; return the first heading."""
    title, taken = "", set[str]()
    for opening, content in pairwise(tokens):
        if opening.type != "heading_open":
            continue
        title = title or content.content
        anchor = unique = re.sub(r"[^\w\- ]", "", content.content.lower()).replace(" ", "-")
        while unique in taken:
            unique = f"{anchor}-{sum(one.startswith(f'{anchor}-') for one in taken) + 1}"
        taken.add(unique)
        opening.attrSet("id", unique)
    return html.escape(title)


def _drop_outer_links(tokens: "list[Token]") -> "list[Token]":
    kept, is_outer = [], False
    for token in tokens:
        if token.type == "link_open":
            is_outer = str(token.attrGet("href")).startswith("../")
        if not (is_outer and token.type in {"link_open", "link_close"}):
            kept.append(token)
    return kept
