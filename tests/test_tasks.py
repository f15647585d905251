import asyncio

import pytest

from app.tasks import own_task


async def test_own_task_that_dies_by_itself_is_reported() -> None:
    deaths: list[str] = []
    died = asyncio.Event()

    async def die() -> None:
        raise RuntimeError

    def on_death(name: str) -> None:
        deaths.append(name)
        died.set()

    async with own_task(die(), "mortal", on_death):
        await died.wait()

    assert deaths == ["mortal"]


async def test_own_task_is_cancelled_and_awaited_at_the_end_without_a_report() -> None:
    ended = False

    async def last_for_ever() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True

    async with own_task(last_for_ever(), "immortal", pytest.fail):
        await asyncio.sleep(0)

    assert ended
