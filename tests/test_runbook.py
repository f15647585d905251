"""/runbook/: the documentation travels with the server, and every link in it works there."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx2
import pytest

from app.web.markdown import render_markdown
from tests.support.answers import read_problem
from tests.support.pages import list_anchors
from tests.support.processes import ROOT
from tests.support.rules import ALERTS

PAGES = sorted(ROOT.glob("docs/*.md"))


class Links(HTMLParser):
    """The ids and the targets of a page; the parser of Python's library, no code of ours."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002  # the base class has it
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in {"href", "src"} and value:
                self.targets.append(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_every_link_of_a_page_leads_to_an_answer_and_a_heading(client: httpx2.AsyncClient, page: Path) -> None:
    path = f"/runbook/{page.name}"
    answer = await client.get(path)

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    links = Links(answer.text)
    assert len(set(links.ids)) == len(links.ids)
    for target in links.targets:
        if target.startswith(("http", "data:")):
            continue
        place, _, heading = urljoin(path, target).partition("#")
        found = answer if place == path else await client.get(place)
        assert found.status_code == 200, target
        assert not heading or heading in Links(found.text).ids, target


async def test_index_lists_the_pages(client: httpx2.AsyncClient) -> None:
    index = await client.get("/runbook/")

    assert index.content == (await client.get("/runbook/README.md")).content
    assert {page.name for page in PAGES} - {"README.md"} <= set(Links(index.text).targets)


async def test_every_alert_has_its_section_where_its_link_leads(client: httpx2.AsyncClient) -> None:
    ids = Links((await client.get("/runbook/alerts.md")).text).ids

    assert {rule["annotations"]["runbook_url"].partition("#")[2] for rule in ALERTS} <= set(ids)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_have_the_anchors_that_forges_make(page: Path) -> None:
    _, rendered = render_markdown(page.read_text())

    ids = Links(rendered).ids
    assert ids
    assert set(ids) <= list_anchors(page)


@pytest.mark.parametrize("name", ["page.png", "..%2fREADME.md", "%2e%2e", "none.md", "%00"])
async def test_nothing_else_is_served(client: httpx2.AsyncClient, name: str) -> None:
    answer = await client.get(f"/runbook/{name}")

    assert answer.status_code == 404
    assert read_problem(answer) == []


async def test_pages_allow_nothing_from_elsewhere_and_are_not_sent_twice(client: httpx2.AsyncClient) -> None:
    first = await client.get("/runbook/alerts.md")
    again = await client.get("/runbook/alerts.md", headers={"if-none-match": first.headers["etag"]})

    assert again.status_code == 304
    assert "default-src 'none'" in first.headers["content-security-policy"]
    assert not re.search(r"<script|<style| (style|on\w+)=", first.text)


def test_markdown_is_html_without_html_of_its_own() -> None:
    title, rendered = render_markdown(
        "# A <b> & `c`\n\n## Two\n\n## Two\n\n<i>x</i> [out](../README.md) [in](b.md#c)\n"
    )

    assert title == "A &lt;b&gt; &amp; `c`"
    assert Links(rendered).ids == ["a-b--c", "two", "two-1"]
    assert Links(rendered).targets == ["b.md#c"]
    assert "<i>" not in rendered
    assert "out" in rendered


def test_documentation_travels_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["docs"] == "app/bundled/docs"
    assert "!docs" in (ROOT / ".dockerignore").read_text().splitlines()
