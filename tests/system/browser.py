"""A page in Debian's Chromium, with what its browser asked and complained of."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Page, async_playwright

CHROMIUM = "/usr/bin/chromium"
"""Debian's; Playwright's own browsers cannot be had from a package registry."""

SCREENSHOTS = os.environ.get("TEST_SCREENSHOTS")
"""A directory for pictures, to look at; unset: none are made."""


class Visit:
    """A page, and what its browser asked and complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.urls: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    async def take_picture(self, name: str) -> None:
        """Make a picture of the page as it is, if pictures are asked for."""
        if SCREENSHOTS:
            await self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


@asynccontextmanager
async def open_browser(width: int = 1280, height: int = 800) -> AsyncIterator[Visit]:
    """Open a browser with a page of this size."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Visit(await browser.new_page(viewport={"width": width, "height": height}))
        await browser.close()
