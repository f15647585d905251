"""What a scenario is, and the one oracle that judges all of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from tests.faults.postgres import Postgres
from tests.faults.world import Peaks, World, open_world
from tests.support.load import CLIENTS, Promise, fetch_rows, list_lost, load, read_record
from tests.support.processes import wait_until

Fault = Callable[[World], AbstractAsyncContextManager[None]]
"""Entering breaks something, leaving heals it; clients send all the while."""

WARM_ROWS = 200
"""Rows that are answered before anything breaks."""

STORE_SECONDS = 10.0
"""From the answer of a new prediction after the fault to its row."""

SETTLE_SECONDS = 60.0
"""For all other rows to arrive."""

MAX_MEMORY_BYTES = 600 * 1024**2
"""About 200 MB are the interpreter, onnxruntime and a model; the rest is what queues may hold."""

MAX_DESCRIPTORS = 200
"""Clients, two pools, the spool and the loop's own."""

MAX_SPOOL_FILES = 100

BROKEN = {"ConnectError", "ReadError", "RemoteProtocolError", "WriteError"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault, under which settings it happens, and what it excuses: by default nothing but 200 is seen.

    `alive_seconds`: from the end of the fault to a new 200. `dead`, `corrupt`: how many files lie there at the end.
    """

    name: str
    fault: Fault
    seconds: float = 0.0
    settings: Mapping[str, str] = field(default_factory=dict)
    starts: bool = True
    by_proxy: bool = False
    kernel_aio: bool = True
    clients: int = CLIENTS
    batch: int | None = None
    may_refuse: bool = False
    may_break: bool = False
    alive_seconds: float = 5.0
    dead: int = 0
    corrupt: int = 0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a scenario: rows answered 200, rows in the table; `problems` is empty when all is well."""

    answered: int
    stored: int
    lost: int
    duplicates: int
    refused: int
    seconds: float
    peaks: Peaks
    problems: tuple[str, ...]


async def run_scenario(scenario: Scenario, postgres: Postgres, directory: Path) -> Verdict:
    """Break, heal and judge."""
    started = time.monotonic()
    async with open_world(
        directory, postgres, scenario.settings, by_proxy=scenario.by_proxy, kernel_aio=scenario.kernel_aio
    ) as world:
        if scenario.starts:
            await world.server.start()
        async with load(
            world.server.url, clients=scenario.clients, batch=scenario.batch, record=world.record
        ) as world.answers:
            if scenario.starts:
                await world.wait_for_promises(WARM_ROWS)
            async with scenario.fault(world):
                await asyncio.sleep(scenario.seconds)
            await check_liveness(world, scenario.alive_seconds)
        return await judge(scenario, world, started)


async def check_liveness(world: World, seconds: float) -> None:
    """A new prediction is answered soon after the fault, and stored soon after its answer."""
    started = time.monotonic()
    key = await wait_until(world.predict, what=lambda: f"a 200 after the fault: {tail(world)}")
    answered = time.monotonic()
    world.check(answered - started <= seconds, f"the first 200 took {answered - started:.1f} s")

    async def is_stored() -> bool:
        return key in dict(await fetch_rows(world.url))

    await wait_until(is_stored, what=lambda: f"the new row is stored: {tail(world)}")
    took = time.monotonic() - answered
    world.check(took <= STORE_SECONDS, f"the first row took {took:.1f} s to be stored")


def tail(world: World) -> str:
    """Return the last that the server has said."""
    return world.server.log.decode(errors="replace")[-1000:]


async def judge(scenario: Scenario, world: World, started: float) -> Verdict:
    """Compare what clients were promised with what is stored, after giving the rest time to arrive."""
    promised = read_record(world.record)
    world.check(promised.keys() == world.answers.promised.keys(), "the clients' files differ from their memory")
    expected = {key: promise for key, promise in promised.items() if key not in world.put_aside}
    rows = await wait_for_rows(world, expected)
    lost = list_lost(expected, rows)
    duplicates = len(rows) - len(dict(rows))
    extras = len(dict(rows).keys() - promised.keys())
    world.check(not lost, f"{len(lost)} rows are lost, the first is {lost[:1]}")
    world.check(duplicates == 0, f"{duplicates} rows are there twice")
    limit = world.answers.indeterminate
    world.check(extras <= limit, f"{extras} rows were never answered, {limit} could be")
    check_answers(scenario, world)
    await check_rest(scenario, world)
    refused = world.answers.seen["503"] + world.answers.seen["429"]
    seconds = time.monotonic() - started
    problems = tuple(world.problems)
    return Verdict(len(promised), len(rows), len(lost), duplicates, refused, seconds, world.peaks, problems)


async def wait_for_rows(world: World, promised: Mapping[UUID, Promise]) -> list[tuple[UUID, Promise]]:
    """Fetch what is stored when nothing is missing any more, or when time is over."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        rows = await fetch_rows(world.url)
        if not list_lost(promised, rows) or time.monotonic() > deadline:
            return rows
        await asyncio.sleep(0.3)


def check_answers(scenario: Scenario, world: World) -> None:
    """Only what the scenario excuses may have been seen beside 200."""
    allowed = {"200"} | ({"503", "429"} if scenario.may_refuse else set()) | (BROKEN if scenario.may_break else set())
    others = {outcome: count for outcome, count in world.answers.seen.items() if outcome not in allowed}
    world.check(not others, f"clients saw {others}")


async def check_rest(scenario: Scenario, world: World) -> None:
    """Nothing is left over, put aside without cause, or grown beyond bounds."""
    for name, expected in (("dead", scenario.dead), ("corrupt", scenario.corrupt)):
        found = len(list((world.spool / name).glob("*")))
        world.check(found == expected, f"{name}/ holds {found} files, expected were {expected}")

    async def has_nothing_pending() -> bool:
        return await world.read_metric("prediction_log_pending_rows") == 0

    try:
        await wait_until(has_nothing_pending)
    except AssertionError:
        pending = await world.read_metric("prediction_log_pending_rows")
        world.check(False, f"prediction_log_pending_rows is {pending:g} when all is stored")
    peaks = world.peaks
    world.check(peaks.memory_bytes <= MAX_MEMORY_BYTES, f"memory grew to {peaks.memory_bytes / 1e6:.0f} MB")
    world.check(peaks.descriptors <= MAX_DESCRIPTORS, f"{peaks.descriptors} descriptors were open")
    world.check(peaks.spool_files <= MAX_SPOOL_FILES, f"the spool grew to {peaks.spool_files} segments")
    limit = int(scenario.settings.get("SPOOL_MAX_BYTES", 1024**3)) + 64 * 1024**2
    world.check(peaks.spool_bytes <= limit, f"the spool grew to {peaks.spool_bytes} bytes")


@asynccontextmanager
async def nothing(world: World) -> AsyncIterator[None]:
    """No fault: the oracle's own check."""
    yield
