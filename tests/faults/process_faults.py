"""Faults of the server's process: killed, stopped, started twice."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.scenario import Fault
from tests.faults.world import World
from tests.support.processes import Server


def killed(times: int) -> Fault:
    """SIGKILL at random moments under load."""

    @asynccontextmanager
    async def fault(world: World) -> AsyncIterator[None]:
        for _ in range(times):
            await asyncio.sleep(random.uniform(0.05, 0.8))
            await world.server.kill()
            await world.server.start()
            await world.wait_for_promises(50)
        yield

    return fault


def killed_while_starting(times: int) -> Fault:
    """SIGKILL with rows in the spool, then at random moments of the next starts, while they ship."""

    @asynccontextmanager
    async def fault(world: World) -> AsyncIterator[None]:
        world.postgres.freeze()
        await world.wait_for_promises(1500)
        await world.server.kill()
        world.postgres.thaw()
        for _ in range(times):
            await world.server.start(wait=False)
            await asyncio.sleep(random.uniform(0.2, 2.5))
            await world.server.kill()
        yield
        await world.server.start()

    return fault


@asynccontextmanager
async def stopped_in_an_outage(world: World) -> AsyncIterator[None]:
    """SIGTERM while PostgreSQL is away: the rest waits on the disk for the next start."""
    await world.postgres.kill()
    await world.wait_for_promises(500)
    world.server.send_signal(signal.SIGTERM)
    status = await world.server.wait()
    world.check(status == -signal.SIGTERM, f"the server ended with {status}")
    world.check(b"stay in the spool" in world.server.log, "the log does not say that rows stay in the spool")
    yield
    await world.postgres.start()
    await world.server.start()


@asynccontextmanager
async def second_process(world: World) -> AsyncIterator[None]:
    """Another process on the same spool: it ends with a line that says so, the first goes on."""
    second = Server(world.server.environment)
    try:
        await second.start(wait=False)
        status = await second.wait()
    finally:
        await second.kill()
    said = second.log.decode()
    world.check(status == 3, f"the second process ended with {status}")
    world.check("is in use by another process" in said and "Traceback" not in said, f"the second process says {said}")
    yield
