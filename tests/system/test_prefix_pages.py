"""The pages in a browser behind a proxy that publishes the server below a prefix: they find the server there."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.async_api import expect

from tests.support.open_inference import INFER, make_body
from tests.support.prefix import PREFIX, open_prefix_proxy, start_below_prefix
from tests.support.processes import Server, wait_until
from tests.system.browser import Visit, open_browser

PATIENCE_MS = 30_000


@pytest.fixture
async def visit() -> AsyncIterator[Visit]:
    async with open_browser(1200, 1600) as opened:
        yield opened


@pytest.fixture
async def url(server: Server) -> AsyncIterator[str]:
    start_below_prefix(server)
    await server.start()
    async with open_prefix_proxy(server.port) as url:
        yield url


async def test_model_page_shows_data_below_a_prefix(url: str, visit: Visit) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        await client.post(INFER, json=make_body())

        async def is_counted() -> bool:
            return any(one["predictions"] == 1 for one in (await client.get("/quality")).json()["results"])

        await wait_until(is_counted, seconds=60)

    await visit.page.goto(f"{url}/")

    await expect(visit.page.locator("#summary-title")).to_contain_text("car-loan version 1", timeout=PATIENCE_MS)
    await expect(visit.page.locator("#numbers dd").first).to_have_text("1", timeout=PATIENCE_MS)
    assert {urlsplit(one).path.startswith(f"{PREFIX}/") for one in visit.urls if not one.startswith("data:")} == {True}
    assert visit.complaints == []


async def test_docs_page_sends_a_request_below_a_prefix(url: str, visit: Visit) -> None:
    page = visit.page
    await page.goto(f"{url}/docs")

    operation = page.locator("#operations-open-inference-infer")
    await operation.locator(".opblock-summary-control").click()
    async with page.expect_response(f"{url}{INFER}") as promised:
        await operation.locator("button.execute").click()
    response = await promised.value
    await visit.take_picture("docs-below-a-prefix")

    assert response.status == 200
    assert (await response.json())["model_name"] == "car-loan"
    assert visit.complaints == []
