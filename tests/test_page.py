"""/ and /docs without a browser: what is served, under which headers, and that the libraries are what they say."""

import hashlib
import re
from typing import get_args

import httpx2
import pytest

from app.api.pages import DIRECTORY, PARTS
from app.measures.measure import QualityState


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_page_allows_nothing_from_elsewhere_and_nothing_inline(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "<style" not in answer.text
    assert not re.search(r"<script(?! (type=\"module\" )?src=)", answer.text)
    assert not re.search(r" (style|on\w+)=", answer.text)


async def test_parts_that_the_pages_name_are_served_as_what_they_are(client: httpx2.AsyncClient) -> None:
    pages = [(await client.get(path)).text for path in ("/", "/docs", "/runbook/")]
    named = {name for page in pages for name in re.findall(r'(?:src|href)="(?:\.\./)?page/([^"]+)"', page)}
    waiting = {"model.js"}
    while waiting:  # modules name further ones
        imported = set(re.findall(r'from "\./([^"]+)"', (DIRECTORY / waiting.pop()).read_text())) - named
        named |= imported
        waiting |= imported

    answers = {name: await client.get(f"/page/{name}") for name in named}

    assert named == PARTS.keys()
    for name, answer in answers.items():
        assert answer.headers["content-type"] == f"{PARTS[name]}; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.content == (DIRECTORY / name).read_bytes()


def test_page_has_words_for_every_state() -> None:
    words = (DIRECTORY / "text.js").read_text().partition("STATES = {")[2].partition("};")[0]

    assert set(re.findall(r"^  (\w+): \[", words, re.MULTILINE)) == {*get_args(QualityState), "stale"}


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip, br", "gzip"), ("identity", None)])
async def test_part_is_sent_compressed_when_the_client_accepts_it(
    client: httpx2.AsyncClient, accepted: str, encoding: str | None
) -> None:
    answer = await client.get("/page/swagger-ui.css", headers={"accept-encoding": accepted})

    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.content == (DIRECTORY / "swagger-ui.css").read_bytes()


async def test_part_is_not_sent_again_when_the_client_has_it(client: httpx2.AsyncClient) -> None:
    first = await client.get("/page/docs.js")

    has, has_other = [
        await client.get("/page/docs.js", headers={"if-none-match": tag}) for tag in (first.headers["etag"], 'W/"0"')
    ]

    assert first.headers["cache-control"] == "no-cache"
    assert (has.status_code, has.content) == (304, b"")
    assert (has_other.status_code, has_other.content) == (200, first.content)


@pytest.mark.parametrize("name", ["model.html", "README.md", "..%2fasgi.py", "%00", "none"])
async def test_nothing_else_is_served(client: httpx2.AsyncClient, name: str) -> None:
    assert (await client.get(f"/page/{name}")).status_code == 404


def test_libraries_are_unmodified() -> None:
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (DIRECTORY / "README.md").read_text(), re.MULTILINE)

    sums = [(hashlib.sha256((DIRECTORY / name).read_bytes()).hexdigest(), name) for _, name in listed]

    assert len(listed) == 7
    assert sums == listed
