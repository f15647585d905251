"""More than can be taken: by the disk's room, and by PostgreSQL's speed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.world import World
from tests.support.processes import wait_until

SLOW_BYTES_PER_SECOND = 4e6
"""What PostgreSQL is let take, about a third of what the clients of `overloaded` send."""


@asynccontextmanager
async def spool_full(world: World) -> AsyncIterator[None]:
    """PostgreSQL is away until the spool holds no more: then requests are refused, until it has room again."""
    await world.postgres.kill()
    await wait_until(lambda: has_refused(world), what=lambda: f"the spool is full: {world.peaks}")
    await asyncio.sleep(2)
    ready = await world.server.is_ready()
    world.check(not ready, "the server says that it is ready although its spool is full")
    yield
    await world.postgres.start()


async def has_refused(world: World) -> bool:
    """Tell whether a request has been refused."""
    return world.answers.seen["503"] > 0


@asynccontextmanager
async def overloaded(world: World) -> AsyncIterator[None]:
    """Clients offer about three times what PostgreSQL takes: refusals are quick, and work goes on."""
    world.proxy.bytes_per_second = SLOW_BYTES_PER_SECOND
    since = time.monotonic()
    await asyncio.sleep(10)
    refusals = sorted(one.seconds for one in world.list_exchanges(since, "503"))
    late = [one for one in world.list_exchanges(0, "200") if one.sent_at + one.seconds > since + 5]
    yield
    world.proxy.restore()
    world.check(len(refusals) > 20, f"only {len(refusals)} requests were refused")
    typical = refusals[len(refusals) // 2] if refusals else 0.0
    world.check(typical < 1.0, f"half of the refusals took longer than {typical:.2f} s")
    rows = sum(one.rows for one in late)
    world.check(rows > 2_000, f"only {rows} rows were answered in the second half of the overload")
