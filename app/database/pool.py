"""Connections to PostgreSQL: which server, how many, and what to say when there is none."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from app.database.embedded import run_embedded_server
from app.database.queries import Connection
from app.errors import StartupError, UnavailableError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 5.0
"""For one attempt to connect; PostgreSQL on the same network answers in milliseconds."""

START_TIMEOUT_SECONDS = 60.0
"""For a PostgreSQL that is replaying its log after a crash."""

CLOSE_TIMEOUT_SECONDS = 10.0
"""For connections in use to come back; whoever used them has been stopped before the pool."""

COMMAND_TIMEOUT_SECONDS = 30.0
"""For one statement that states no shorter one; the longest of ours is the quality job's scan."""

OLDEST_VERSION = 15
"""Oldest major version that the tests run on."""

ConnectionFailure = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OverflowError)
"""What asyncpg raises when it cannot connect: the network, the server's refusal, a DSN that it cannot read."""


@asynccontextmanager
async def open_database_url(url: str | None, data_dir: Path) -> AsyncIterator[str]:
    """Yield `url`, or the DSN of an embedded server that runs until exit when `url` is None."""
    if url is not None:
        yield url
        return
    async with run_embedded_server(data_dir / "postgresql") as embedded_url:
        yield embedded_url


@asynccontextmanager
async def open_pool(url: str, max_size: int) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool that connects on demand, so that it survives a database that is away; closing is bounded."""
    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=max_size,
            timeout=CONNECT_TIMEOUT_SECONDS,
            command_timeout=COMMAND_TIMEOUT_SECONDS,
            statement_cache_size=0,  # named statements break behind a pooler in transaction mode; ours are few and long
            server_settings={"application_name": "scorekeeper"},
        )
    except ConnectionFailure as error:
        raise StartupError(describe_connection_error(url, error)) from error
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                await pool.close()
        except TimeoutError:
            pool.terminate()


class DatabaseUnreachableError(StartupError):
    """Nobody answers where PostgreSQL should be; it may come later."""


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL did not do what was asked; why is in the server's log, not in the answer."""


@asynccontextmanager
async def borrow_connection(pool: asyncpg.Pool) -> AsyncIterator[Connection]:
    """Take a connection for a request; whatever goes wrong with PostgreSQL meanwhile is DatabaseUnavailableError."""
    try:
        async with pool.acquire(timeout=CONNECT_TIMEOUT_SECONDS) as connection:
            yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        logger.warning("PostgreSQL did not serve a request: %s: %s", type(error).__name__, error)
        raise DatabaseUnavailableError("PostgreSQL cannot be asked now") from error


async def check_server(url: str) -> None:
    """Connect once; raise StartupError with one line when that fails or the server is too old."""
    try:
        connection = await _connect_when_started(url)
    except (OSError, asyncpg.ConnectionDoesNotExistError, asyncpg.CannotConnectNowError) as error:
        raise DatabaseUnreachableError(describe_connection_error(url, error)) from error
    except ConnectionFailure as error:
        raise StartupError(describe_connection_error(url, error)) from error
    version = connection.get_server_version()
    await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)
    if version.major < OLDEST_VERSION:
        raise StartupError(
            f"PostgreSQL at {_describe_server(url)} is version {version.major}, which is too old: "
            f"{OLDEST_VERSION} to 18 are supported"
        )


async def _connect_when_started(url: str) -> asyncpg.Connection:
    """Connect; a server that says that it is still starting is asked again for START_TIMEOUT_SECONDS."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_SECONDS)
        except asyncpg.CannotConnectNowError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


def describe_connection_error(url: str, error: BaseException) -> str:
    """Say in one line, without the password, why there is no connection."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, TimeoutError) and not str(error):
        reason = f"no answer within {CONNECT_TIMEOUT_SECONDS:g} s"
    return f"cannot connect to PostgreSQL at {_describe_server(url)} (DATABASE_URL): {reason}"


def _describe_server(url: str) -> str:
    """Host, port and database of a DSN; never its user or password."""
    parts = urlsplit(url)
    if "@" in url and "@" not in parts.netloc:
        return "the given server"  # a password with a bare "/" or "#" in it, which would show
    hosts = parts.netloc.rpartition("@")[2]
    return f"{hosts or 'the local socket'}{parts.path}"
