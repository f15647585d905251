"""/docs without a browser: what is served, under which headers, and that the page library is what it says it is."""

import hashlib
import re

import httpx2
import pytest

from app.api.docs import DIRECTORY, PARTS


async def test_page_allows_nothing_from_elsewhere_and_nothing_inline(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/docs")

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "<style" not in answer.text
    assert not re.search(r"<script(?! src=)", answer.text)


async def test_parts_that_the_page_names_are_served_as_what_they_are(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/docs")).text

    paths = re.findall(r'(?:src|href)="(docs/[^"]+)"', page)
    answers = [await client.get(f"/{path}") for path in paths]

    assert {path.removeprefix("docs/") for path in paths} == PARTS.keys()
    for path, answer in zip(paths, answers, strict=True):
        name = path.removeprefix("docs/")
        assert answer.headers["content-type"] == f"{PARTS[name]}; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.content == (DIRECTORY / name).read_bytes()


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip, br", "gzip"), ("identity", None)])
async def test_part_is_sent_compressed_when_the_client_accepts_it(
    client: httpx2.AsyncClient, accepted: str, encoding: str | None
) -> None:
    answer = await client.get("/docs/swagger-ui.css", headers={"accept-encoding": accepted})

    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.content == (DIRECTORY / "swagger-ui.css").read_bytes()


async def test_part_is_not_sent_again_when_the_client_has_it(client: httpx2.AsyncClient) -> None:
    first = await client.get("/docs/start.js")

    has, has_other = [
        await client.get("/docs/start.js", headers={"if-none-match": tag}) for tag in (first.headers["etag"], 'W/"0"')
    ]

    assert first.headers["cache-control"] == "no-cache"
    assert (has.status_code, has.content) == (304, b"")
    assert (has_other.status_code, has_other.content) == (200, first.content)


@pytest.mark.parametrize("name", ["index.html", "README.md", "..%2fasgi.py", "%00", "none"])
async def test_nothing_else_is_served(client: httpx2.AsyncClient, name: str) -> None:
    assert (await client.get(f"/docs/{name}")).status_code == 404


def test_page_library_is_unmodified() -> None:
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (DIRECTORY / "README.md").read_text(), re.MULTILINE)

    sums = [(hashlib.sha256((DIRECTORY / name).read_bytes()).hexdigest(), name) for _, name in listed]

    assert len(listed) == 5
    assert sums == listed
