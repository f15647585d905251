"""Connections to PostgreSQL: which server, how many, and the error when there is no connection."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from app.database.connecting import CONNECT_TIMEOUT_SECONDS, Connector, PinnedConnection, connect
from app.database.embedded import run_embedded_server
from app.database.embedded_home import has_database
from app.database.queries import Connection
from app.errors import StartupError, UnavailableError

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 60.0
"""Limit for a PostgreSQL that replays its write-ahead log after a crash."""

CLOSE_TIMEOUT_SECONDS = 10.0
"""Limit for connections in use to be returned; the tasks that used them were stopped before the pool closes."""

COMMAND_TIMEOUT_SECONDS = 30.0
"""Limit for a statement without its own; the longest statement is the quality job's scan."""

OLDEST_VERSION = 15
"""Oldest major version that is supported and tested."""

ConnectionFailure = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OverflowError)
"""What asyncpg raises when it cannot connect: a network error, a refusal by the server, or an invalid DSN."""


@asynccontextmanager
async def open_database_url(url: str | None, data_dir: Path, *, must_exist: bool = False) -> AsyncIterator[str]:
    """Yield `url`, or the DSN of an embedded server that runs until exit when `url` is None.

    With `must_exist` raise StartupError when there is no embedded database, instead of making one.
    """
    if url is not None:
        yield url
        return
    if must_exist and not await asyncio.to_thread(has_database, data_dir / "postgresql"):
        raise StartupError(
            f"there is no database: DATABASE_URL is not set, and {(data_dir / 'postgresql').absolute()} has none; set "
            "DATABASE_URL, or DATA_DIR to the server's"
        )
    async with run_embedded_server(data_dir / "postgresql") as embedded_url:
        yield embedded_url


@asynccontextmanager
async def open_pool(url: str, max_size: int) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool that connects when needed, so that it works again after an outage; closing it has a time limit."""
    connector = Connector(url)

    async def open_connection(*_: Any, **options: Any) -> asyncpg.Connection:
        return await connector.connect(**options)

    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=max_size,
            connection_class=PinnedConnection,
            connect=open_connection,
            command_timeout=COMMAND_TIMEOUT_SECONDS,
            statement_cache_size=0,  # named statements fail behind a pooler in transaction mode
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
    """No server answers at the address of PostgreSQL; it may come later."""


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL could not serve a request; the reason is in the server's log, not in the answer."""


@asynccontextmanager
async def borrow_connection(pool: asyncpg.Pool) -> AsyncIterator[Connection]:
    """Take a connection for a request; turn every error of PostgreSQL meanwhile into DatabaseUnavailableError."""
    try:
        async with pool.acquire(timeout=CONNECT_TIMEOUT_SECONDS) as connection:
            yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        logger.warning("PostgreSQL could not serve a request: %s: %s", type(error).__name__, error)
        raise DatabaseUnavailableError("PostgreSQL is not available now") from error


async def check_server(url: str) -> None:
    """Connect once; raise StartupError, with a message of one line, when that fails or the server is too old."""
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
    """Connect; while the server says that it is starting, try again for START_TIMEOUT_SECONDS."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            return await connect(url)
        except asyncpg.CannotConnectNowError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


def describe_connection_error(url: str, error: BaseException) -> str:
    """Return one line, without the password, that says why there is no connection."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, TimeoutError) and not str(error):
        reason = f"no answer within {CONNECT_TIMEOUT_SECONDS:g} s"
    return f"cannot connect to PostgreSQL at {_describe_server(url)} (DATABASE_URL): {reason}"


def _describe_server(url: str) -> str:
    """Return the hosts, ports and database of a DSN, never its user or password."""
    parts = urlsplit(url)
    if "@" in url and "@" not in parts.netloc:
        return "the given server"  # the password has a "/" or "#" that is not escaped: parts of it would be shown
    hosts = parts.netloc.rpartition("@")[2]
    return f"{hosts or 'the local socket'}{parts.path}"
