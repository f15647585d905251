"""/docs in a browser: it shows the interface, sends its example, and asks nobody but the server."""

import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from playwright.async_api import expect

from tests.support.answers import NAMES
from tests.support.processes import Server
from tests.system.browser import Visit, open_browser


@pytest.fixture
async def visit() -> AsyncIterator[Visit]:
    async with open_browser(1200, 1600) as opened:
        yield opened


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
    await visit.take_picture("docs")

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
