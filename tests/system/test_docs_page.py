"""/docs in a browser: it shows the interface, sends its example, and asks nobody but the server."""

import json
import os
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.answers import NAMES
from tests.processes import Server

CHROMIUM = "/usr/bin/chromium"
"""Debian's; Playwright's own browsers cannot be had from a package registry."""

SCREENSHOT = os.environ.get("TEST_SCREENSHOT")
"""A file for a picture of the page with its answer, to look at; unset: none is made."""


class Visit:
    """A page, and what its browser asked and complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.urls: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))


@pytest.fixture
async def visit() -> AsyncIterator[Visit]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Visit(await browser.new_page(viewport={"width": 1200, "height": 1600}))
        await browser.close()


async def test_page_sends_its_example_and_asks_nobody_else(server: Server, visit: Visit) -> None:
    await server.start()
    page = visit.page
    await page.goto(f"{server.url}/docs")

    operation = page.locator("#operations-predictions-predict")
    await operation.locator(".opblock-summary-control").click()
    sent = json.loads(await operation.locator("textarea.body-param__text").input_value())
    async with page.expect_response(f"{server.url}/predict") as promised:
        await operation.locator("button.execute").click()
    response = await promised.value
    await expect(operation.locator(".live-responses-table .response .response-col_status").first).to_contain_text("200")
    if SCREENSHOT:
        await page.screenshot(path=SCREENSHOT)

    assert tuple(sent["features"]) == NAMES
    assert response.status == 200
    assert response.request.post_data_json == sent
    assert (await response.json())["model"] == "car-loan"
    assert {urlsplit(url).netloc for url in visit.urls if not url.startswith("data:")} == {urlsplit(server.url).netloc}
    assert visit.complaints == []


async def test_page_shows_every_operation(server: Server, visit: Visit) -> None:
    await server.start()
    await visit.page.goto(f"{server.url}/docs")
    document = await (await visit.page.request.get(f"{server.url}/openapi.json")).json()

    await expect(visit.page.locator(".opblock")).to_have_count(sum(map(len, document["paths"].values())))

    assert visit.complaints == []
