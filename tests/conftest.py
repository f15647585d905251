"""A real PostgreSQL for every test: a template database migrated once, a copy of it per test."""

import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx2
import pytest
import pytest_asyncio
from asgi_lifespan import LifespanManager

from app import main
from app.database.embedded import run_embedded_server
from app.database.migrate import upgrade_schema
from app.database.pool import open_pool
from app.prediction_log.partitions import make_partitions_ahead
from tests.support.limits import pytest_exception_interact, pytest_timeout_set_timer
from tests.support.processes import WAIT_SECONDS, Server

__all__ = ["pytest_exception_interact", "pytest_timeout_set_timer"]

POSTGRES_BIN = os.environ.get("TEST_POSTGRES_BIN")
"""Directory of another PostgreSQL's programs, to run every test on it; unset: the wheel's."""

OpenClient = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[str]:
    """The DSN of a server that all tests of this process share; its database `template` is at head.

    It does not wait for the disk: no test takes the power from it, and each database that is dropped waits for all.
    """
    with make_open_directory() as directory:
        async with run_embedded_server(directory, Path(POSTGRES_BIN) if POSTGRES_BIN else None) as url:
            await execute(url, "ALTER SYSTEM SET fsync = off")
            await execute(url, "SELECT pg_reload_conf()")
            await execute(url, "CREATE DATABASE template")
            await upgrade_schema(with_database(url, "template"))
            yield url


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users may pass, for an embedded server: as root, pytest's own are closed to its user."""
    with make_open_directory() as directory:
        yield directory


@pytest.fixture
async def database_url(postgres: str) -> AsyncIterator[str]:
    """The DSN of a database of one's own, at head and empty."""
    async for url in _copy_database(postgres, "TEMPLATE template STRATEGY file_copy"):
        yield url


@pytest.fixture
async def empty_database_url(postgres: str) -> AsyncIterator[str]:
    """The DSN of a database of one's own that was never migrated."""
    async for url in _copy_database(postgres, ""):
        yield url


async def _copy_database(postgres: str, template: str) -> AsyncIterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    await execute(postgres, f"CREATE DATABASE {name} {template}")
    yield with_database(postgres, name)
    await execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to this test's database."""
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool of connections to this test's database, which has the partitions of the next days."""
    async with open_pool(database_url, 4) as opened:
        await make_partitions_ahead(opened, timeout=5)
        yield opened


@pytest.fixture
def spool_directory(tmp_path: Path) -> Path:
    """Where this test's spool is; it does not exist yet."""
    return tmp_path / "spool"


@pytest.fixture
def open_client(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenClient:
    """Open the application in this process, with its real lifespan, and a client for it; settings as keywords.

    At level `database` unless told otherwise, so that a row is in the table when its request has been answered.
    """

    @asynccontextmanager
    async def open_client(**settings: str) -> AsyncIterator[httpx2.AsyncClient]:
        environment = {"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path / "data"), "DURABILITY": "database"}
        environment["ACCESS_LOG"] = "false"  # its thread would write between the captured outputs of two tests
        environment |= settings
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        async with LifespanManager(main, startup_timeout=WAIT_SECONDS, shutdown_timeout=WAIT_SECONDS) as manager:
            transport = httpx2.ASGITransport(manager.app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=WAIT_SECONDS) as client:
                yield client

    return open_client


@pytest.fixture
async def client(open_client: OpenClient) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the application with the demo model and default settings; the quality job runs every 0.2 s."""
    async with open_client(F1_INTERVAL_SECONDS="0.2") as opened:
        yield opened


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A uvicorn process on a free port with the demo model, to be started by the test and stopped here."""
    server = Server({"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path / "data"), "F1_INTERVAL_SECONDS": "0.2"})
    yield server
    await server.kill()


@contextmanager
def make_open_directory() -> Iterator[Path]:
    """Make a temporary directory that other users may pass."""
    with tempfile.TemporaryDirectory(prefix="scorekeeper-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


async def execute(url: str, statement: str) -> None:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def with_database(url: str, name: str) -> str:
    """Return the DSN of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
