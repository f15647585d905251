"""A PostgreSQL of the tests that can be killed with all its processes, frozen, and started again."""

import os
import signal
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from app.database.embedded import run_embedded_server
from tests.conftest import POSTGRES_BIN, execute, with_database
from tests.support.processes import wait_until


class Postgres:
    """An embedded server under `directory`; its address is the same after each start."""

    def __init__(self, directory: Path, binaries: Path | None = Path(POSTGRES_BIN) if POSTGRES_BIN else None) -> None:
        self._directory = directory
        self._binaries = binaries
        self._stack = AsyncExitStack()
        self.url = ""
        self.is_running = False

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self._directory / "cluster" / "data"

    @property
    def socket(self) -> Path:
        """The Unix socket on which it listens."""
        return Path(parse_qs(urlsplit(self.url).query)["host"][0]) / ".s.PGSQL.5432"

    async def start(self) -> None:
        """Start it, unless it runs."""
        if not self.is_running:
            self.url = await self._stack.enter_async_context(run_embedded_server(self._directory, self._binaries))
            self.is_running = True

    async def stop(self) -> None:
        """Stop it gently, if it runs, frozen or not; or clean up behind one that was killed."""
        self.thaw()
        await self._stack.aclose()
        self.is_running = False

    async def kill(self) -> None:
        """SIGKILL all its processes, the postmaster first, so that it starts no other, and remove its socket."""
        pids = self._list_pids()
        _signal(pids, signal.SIGKILL)

        async def have_ended() -> bool:
            return not any(_is_alive(pid) for pid in pids)

        await wait_until(have_ended, what=lambda: "PostgreSQL's processes have ended")
        await self.stop()

    def freeze(self) -> None:
        """SIGSTOP all its processes: it accepts connections, and answers nothing."""
        _signal(self._list_pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT all its processes."""
        _signal(self._list_pids(), signal.SIGCONT)

    async def create_database(self, name: str, template: str = "") -> str:
        """Create a database, a copy of `template` if one is named; return its DSN."""
        await execute(self.url, f"CREATE DATABASE {name} {'TEMPLATE ' + template if template else ''}")
        return with_database(self.url, name)

    async def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        await execute(self.url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _list_pids(self) -> list[int]:
        """List the postmaster and its children."""
        try:
            postmaster = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        except (FileNotFoundError, IndexError):
            return []
        return [postmaster, *list_children(postmaster)]


def list_children(parent: int) -> list[int]:
    """List the direct children of a process."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                children.append(int(stat.parent.name))
    return children


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def make_database_name() -> str:
    """Return a name that no other scenario has."""
    return f"faults_{time.monotonic_ns()}"
