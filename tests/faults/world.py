"""What a fault happens to: a server process with clients, its spool, its PostgreSQL, and who watches them."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import httpx2

from tests.faults.injectors import block_kernel_aio
from tests.faults.postgres import Postgres, make_database_name
from tests.faults.proxy import Proxy, open_proxy
from tests.support.load import Answers, Exchange, Promise, open_record, write_record
from tests.support.processes import Server, wait_until

BODY = {"features": [1, 2, 3, 4, 5]}

SAMPLE_SECONDS = 0.1

TEMPLATE = "template"


@dataclass(slots=True)
class Peaks:
    """The most that the server's process and its spool have held."""

    memory_bytes: int = 0
    descriptors: int = 0
    spool_bytes: int = 0
    spool_files: int = 0


@dataclass(slots=True)
class World:
    """One scenario's servers and directories; `problems` collects what should not have been."""

    directory: Path
    postgres: Postgres
    proxy: Proxy
    url: str
    server: Server
    answers: Answers = field(default_factory=Answers)
    put_aside: set[UUID] = field(default_factory=set)
    """Rows that the scenario itself has made impossible to store: they must be in dead/ or corrupt/ instead."""
    beneath: AsyncExitStack = field(default_factory=AsyncExitStack)
    """What the server stands on, closed when it has ended."""
    peaks: Peaks = field(default_factory=Peaks)
    problems: list[str] = field(default_factory=list)

    @property
    def spool(self) -> Path:
        """The server's spool directory."""
        return Path(self.server.environment["DATA_DIR"]) / "spool"

    @property
    def record(self) -> Path:
        """Where clients keep what they were promised."""
        return self.directory / "record"

    @property
    def pid(self) -> int:
        """The server process that runs now."""
        assert self.server.process is not None
        return self.server.process.pid

    @property
    def proxied_url(self) -> str:
        """The DSN that leads through the proxy."""
        parts = urlsplit(self.url)
        user = parts.netloc.rpartition("@")[0]
        address = f"{user}@127.0.0.1:{self.proxy.port}"
        return urlunsplit(parts._replace(netloc=address, query="sslmode=disable"))

    def check(self, holds: bool, problem: str) -> None:
        """Note a problem unless `holds`."""
        if not holds:
            self.problems.append(problem)

    async def wait_for_promises(self, more: int) -> None:
        """Wait until the clients have been promised `more` rows than now."""
        goal = len(self.answers.promised) + more

        async def has_promised() -> bool:
            return len(self.answers.promised) >= goal

        await wait_until(has_promised, what=lambda: f"{more} rows are answered: {self.answers.seen}")

    def list_exchanges(self, since: float, outcome: str) -> list[Exchange]:
        """List requests sent since then (monotonic) with that outcome."""
        return [one for one in self.answers.exchanges if one.sent_at >= since and one.outcome == outcome]

    async def predict(self) -> UUID | None:
        """Predict one row and keep the promise, if there is one."""
        self.answers.indeterminate += 1
        try:
            async with httpx2.AsyncClient(base_url=self.server.url, timeout=5) as client:
                response = await client.post("/predict", json=BODY)
        except httpx2.TransportError:
            return None
        if response.status_code != 200:
            return None
        self.answers.indeterminate -= 1
        said = response.json()
        key = UUID(said["prediction_id"])
        self.promise({key: Promise(str(said["prediction"]), said["score"], said["model_version"])})
        return key

    def promise(self, promises: Mapping[UUID, Promise]) -> None:
        """Hold the server to these rows too."""
        file = open_record(self.record / "scenario")
        write_record(file, promises)
        os.close(file)
        self.answers.promised.update(promises)

    async def read_metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        async with httpx2.AsyncClient(base_url=self.server.url, timeout=10) as client:
            text = (await client.get("/metrics")).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    async def time_health(self, seconds: float) -> list[float]:
        """Ask /health/live again and again for that long; return how long each answer took."""
        times = []
        deadline = time.monotonic() + seconds
        async with httpx2.AsyncClient(base_url=self.server.url, timeout=10) as client:
            while time.monotonic() < deadline:
                started = time.monotonic()
                assert (await client.get("/health/live")).status_code == 200
                times.append(time.monotonic() - started)
                await asyncio.sleep(0.02)
        return sorted(times)

    async def watch(self) -> None:
        """Note the peaks of the server's process and spool until cancelled."""
        while True:
            self._sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    def _sample(self) -> None:
        peaks = self.peaks
        with suppress(OSError, IndexError, AssertionError):
            status = Path(f"/proc/{self.pid}/status").read_text()
            resident = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
            if resident is not None:
                peaks.memory_bytes = max(peaks.memory_bytes, int(resident[1]) * 1024)
            peaks.descriptors = max(peaks.descriptors, len(os.listdir(f"/proc/{self.pid}/fd")))  # noqa: PTH208
        with suppress(OSError):
            sizes = [path.stat().st_size for path in self.spool.glob("seg-*.log")]
            peaks.spool_bytes = max(peaks.spool_bytes, sum(sizes))
            peaks.spool_files = max(peaks.spool_files, len(sizes))


@asynccontextmanager
async def open_world(
    directory: Path, postgres: Postgres, settings: Mapping[str, str], *, by_proxy: bool, kernel_aio: bool
) -> AsyncIterator[World]:
    """Make a world with a database of its own; at exit nothing of it runs, and PostgreSQL does."""
    await postgres.start()
    name = make_database_name()
    url = await postgres.create_database(name, TEMPLATE)
    (directory / "record").mkdir()
    async with open_proxy(postgres.socket) as proxy:
        environment = {"DATABASE_URL": url, "DATA_DIR": str(directory / "data"), **settings}
        if not kernel_aio:
            environment["PYTHONPATH"] = block_kernel_aio(directory / "blocked")
        world = World(directory, postgres, proxy, url, Server(environment))
        if by_proxy:
            world.server.environment["DATABASE_URL"] = world.proxied_url
        watch = asyncio.create_task(world.watch())
        try:
            yield world
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await world.server.kill()
            (directory / "server.log").write_bytes(world.server.log)
            await world.beneath.aclose()
            postgres.thaw()
            await postgres.start()
            await postgres.drop_database(name)
