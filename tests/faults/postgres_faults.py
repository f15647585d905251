"""Faults of PostgreSQL and of the way to it."""

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from app.database.migrate import upgrade_schema
from tests.conftest import execute
from tests.faults.disk_faults import fill
from tests.faults.injectors import small_disk
from tests.faults.postgres import Postgres
from tests.faults.scenario import Fault
from tests.faults.world import World
from tests.support.load import fetch_rows
from tests.support.processes import wait_until

TABLESPACE_MEGABYTES = 64


@asynccontextmanager
async def postgres_killed(world: World) -> AsyncIterator[None]:
    """SIGKILL of all its processes; it is away, and recovers."""
    await world.postgres.kill()
    yield
    await world.postgres.start()


@asynccontextmanager
async def postgres_killed_again_and_again(world: World) -> AsyncIterator[None]:
    """SIGKILL and restart at once, several times."""
    for _ in range(4):
        await world.postgres.kill()
        await world.postgres.start()
        await world.wait_for_promises(100)
    yield


@asynccontextmanager
async def last_commits_lost(world: World) -> AsyncIterator[None]:
    """At the address is PostgreSQL as it was some commits ago, in a new timeline: what a failover leaves, in short."""
    postgres = Postgres(world.directory / "own")
    world.beneath.push_async_callback(postgres.stop)
    await postgres.start()
    world.url = world.server.environment["DATABASE_URL"] = postgres.url
    await world.server.start()
    await world.wait_for_promises(200)
    await postgres.kill()
    copied_ms = time.time_ns() // 1_000_000
    past = postgres.data.with_name("past")
    await asyncio.to_thread(subprocess.check_call, ["cp", "--archive", postgres.data, past])
    for name, text in (("recovery.signal", ""), ("postgresql.auto.conf", "restore_command = 'false'\n")):
        (past / name).write_text(text)
        os.chown(past / name, past.stat().st_uid, past.stat().st_gid)
    await postgres.start()
    await wait_until(lambda: has_rows_since(postgres.url, copied_ms), seconds=30, what=lambda: "newer rows are stored")
    await postgres.kill()
    postgres.data.rename(postgres.data.with_name("lost"))
    past.rename(postgres.data)
    await postgres.start()
    yield


async def has_rows_since(url: str, instant_ms: int) -> bool:
    """Return whether rows are stored that were predicted after an instant, as their ids say."""
    return any(key.int >> 80 > instant_ms for key, _ in await fetch_rows(url))


@asynccontextmanager
async def absent_at_start(world: World) -> AsyncIterator[None]:
    """Nobody at the address when the server starts; predictions are answered all the same."""
    await world.postgres.kill()
    await world.server.start()
    await world.wait_for_promises(500)
    yield
    await world.postgres.start()


@asynccontextmanager
async def empty_and_absent_at_start(world: World) -> AsyncIterator[None]:
    """As before, and when PostgreSQL comes its database has no schema yet."""
    await execute(world.url, "DROP SCHEMA public CASCADE")
    await execute(world.url, "CREATE SCHEMA public")
    await world.postgres.kill()
    await world.server.start()
    await world.wait_for_promises(500)
    yield
    await world.postgres.start()
    await upgrade_schema(world.url)  # also by the server itself; whoever is first


@asynccontextmanager
async def postgres_frozen(world: World) -> AsyncIterator[None]:
    """SIGSTOP: connections open, nothing is answered."""
    world.postgres.freeze()
    yield
    world.postgres.thaw()


@asynccontextmanager
async def blackhole(world: World) -> AsyncIterator[None]:
    """The network carries nothing, no connection breaks; what was under way arrives afterwards."""
    world.proxy.blackhole()
    yield
    world.proxy.restore()


@asynccontextmanager
async def slow_network(world: World) -> AsyncIterator[None]:
    """Each packet takes 200 ms."""
    world.proxy.delay_seconds = 0.2
    yield
    world.proxy.restore()


def reset_after_commit(times: int) -> Fault:
    """The connection breaks when PostgreSQL has committed and before anybody hears of it."""

    @asynccontextmanager
    async def fault(world: World) -> AsyncIterator[None]:
        world.proxy.resets_left = times
        yield
        world.check(world.proxy.resets == times, f"only {world.proxy.resets} of {times} commits were followed by RST")
        world.proxy.restore()

    return fault


@asynccontextmanager
async def schema_renamed(world: World) -> AsyncIterator[None]:
    """The operator's mistake: the tables are not where they are looked for. Everything is kept."""
    await rename_schema(world.url, "public", "elsewhere")
    yield
    await rename_schema(world.url, "elsewhere", "public")


@asynccontextmanager
async def postgres_read_only(world: World) -> AsyncIterator[None]:
    """Every transaction is read-only, as on a standby or in an operator's emergency."""
    name = urlsplit(world.url).path[1:]
    await execute(world.postgres.url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await end_sessions(world, name)
    yield
    await execute(world.postgres.url, f"ALTER DATABASE {name} RESET default_transaction_read_only")


@asynccontextmanager
async def postgres_full(world: World) -> AsyncIterator[None]:
    """The disk under today's rows is full."""
    disk = await world.beneath.enter_async_context(small_disk(world.directory / "disk", TABLESPACE_MEGABYTES))
    owner = world.postgres.data.stat()
    os.chown(disk, owner.st_uid, owner.st_gid)
    await execute(world.postgres.url, f"CREATE TABLESPACE small LOCATION '{disk}'")
    world.beneath.push_async_callback(drop_tablespace, world)
    for tables in ("TABLE", "INDEX"):
        await execute(world.url, f"ALTER {tables} ALL IN TABLESPACE pg_default SET TABLESPACE small")
    filler = disk / "filler"
    fill(filler, TABLESPACE_MEGABYTES * 1024**2)
    yield
    failures = await world.read_metric("prediction_log_failures_total")
    world.check(failures > 0, "nothing failed although the disk was full")
    filler.unlink()


async def drop_tablespace(world: World) -> None:
    """Have nothing on the small disk, and nobody know it, before it goes."""
    for tables in ("TABLE", "INDEX"):
        await execute(world.url, f"ALTER {tables} ALL IN TABLESPACE small SET TABLESPACE pg_default")
    await execute(world.postgres.url, "DROP TABLESPACE small")


async def end_sessions(world: World, name: str) -> None:
    """End all sessions of a database."""
    await execute(
        world.postgres.url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )


async def rename_schema(url: str, old: str, new: str) -> None:
    """Rename a schema, between two statements of those that use it."""
    for attempt in range(20):
        try:
            await execute(url, f"SET lock_timeout = '1s'; ALTER SCHEMA {old} RENAME TO {new}")
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            await asyncio.sleep(0.05 * attempt)
        else:
            return
    raise AssertionError(f"cannot rename schema {old}")


@asynccontextmanager
async def table_locked(world: World) -> AsyncIterator[None]:
    """Somebody holds the table: inserts wait and time out."""
    connection = await asyncpg.connect(world.url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()
