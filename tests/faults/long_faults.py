"""Faults that take long or need more programs: failover, PgBouncer, a clock that jumps."""

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx2

from app.database.embedded_home import find_cluster
from tests.conftest import execute
from tests.faults.postgres import Postgres
from tests.faults.proxy import Proxy, open_proxy
from tests.faults.world import World
from tests.support.fake_clock import fake_clock, set_clock
from tests.support.load import fetch_rows
from tests.support.processes import WAIT_SECONDS, find_free_port, wait_until

DEBIAN_POSTGRES = Path("/usr/lib/postgresql/15/bin")
"""Debian's postgresql-15: the wheel has no pg_basebackup."""

PGBOUNCER = "/usr/sbin/pgbouncer"

READERS = 4

MS_PER_DAY = 86_400_000

JUMPS = ("+0", "+2d", "-2d", "+9d", "-30d", "+0")
"""Offsets of the clock, one after the other; partitions are made ahead for a week."""


@asynccontextmanager
async def clock_jumps(world: World) -> AsyncIterator[None]:
    """The wall clock jumps to and fro; the monotonic one does not."""
    clock = world.directory / "clock"
    world.server.environment |= fake_clock(clock)
    await world.server.start()
    for offset in JUMPS:
        set_clock(clock, offset)
        await world.wait_for_promises(200)
    yield
    days = {(key.int >> 80) // MS_PER_DAY for key in world.answers.promised}
    world.check(len(days) >= len(set(JUMPS)), f"the clock jumped to {len(days)} days only")


@asynccontextmanager
async def behind_pgbouncer(world: World) -> AsyncIterator[None]:
    """PgBouncer in transaction mode between, as it comes with Debian 12; it is restarted once."""
    port = find_free_port()
    parts = urlsplit(world.url)
    socket = parse_qs(parts.query)["host"][0]
    place = world.directory / "pgbouncer"
    place.mkdir()
    settings = place / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={socket} port=5432 user={parts.username} password={parts.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\nmax_client_conn = 200\ndefault_pool_size = 10\n"
    )
    world.server.environment["DATABASE_URL"] = f"postgresql://{parts.username}:any@127.0.0.1:{port}{parts.path}"
    world.server.environment["DATABASE_URL"] += "?sslmode=disable"
    user, group = world.postgres.data.stat().st_uid, world.postgres.data.parent.stat().st_gid
    for path in (place, settings):
        os.chown(path, user, group)
    async with running(PGBOUNCER, str(settings), port=port, user=user, group=group):
        await world.server.start()
        readers = [asyncio.create_task(read_pages(world)) for _ in range(READERS)]
        await world.wait_for_promises(3000)
        seen = sum(await asyncio.gather(*readers), Counter[int]())
        world.check(set(seen) == {200}, f"readers saw {seen}")
    await world.wait_for_promises(200)
    await world.beneath.enter_async_context(running(PGBOUNCER, str(settings), port=port, user=user, group=group))
    yield


async def read_pages(world: World) -> Counter[int]:
    """Read pages of predictions, so that several connections take turns; return how often each status was seen."""
    async with httpx2.AsyncClient(base_url=world.server.url, timeout=20) as client:
        return Counter([(await client.get("/predictions", params={"limit": 5})).status_code for _ in range(50)])


@asynccontextmanager
async def running(*command: str, port: int, user: int, group: int) -> AsyncIterator[None]:
    """Run a program until exit, usable when it listens."""
    process = await asyncio.create_subprocess_exec(
        *command,
        user=user,
        group=group,
        extra_groups=[],
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await wait_until(lambda: listens(port), what=lambda: f"{command[0]} listens: {process.returncode}")
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def listens(port: int) -> bool:
    """Tell whether somebody accepts connections on a port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def failed_over(world: World) -> AsyncIterator[None]:
    """The primary dies with commits that its standby lacks, the standby is promoted: these rows come again."""
    primary = Postgres(world.directory / "primary", DEBIAN_POSTGRES)
    world.beneath.push_async_callback(primary.stop)
    await primary.start()
    async with open_proxy(primary.socket) as replication, open_proxy(primary.socket) as way_to_primary:
        standby = await make_standby(world, primary, replication)
        way_to_standby = await world.beneath.enter_async_context(open_proxy(standby.socket))
        parts = urlsplit(primary.url)
        hosts = f"127.0.0.1:{way_to_primary.port},127.0.0.1:{way_to_standby.port}"
        account = parts.netloc.rpartition("@")[0]
        address = f"postgresql://{account}@{hosts}{parts.path}?sslmode=disable&target_session_attrs=read-write"
        world.server.environment["DATABASE_URL"] = address
        await world.server.start()
        await world.wait_for_promises(500)
        replication.blackhole()
        await world.wait_for_promises(2000)
        before = {key for key, _ in await fetch_rows(primary.url)}
        await primary.kill()
    await execute(standby.url, "SELECT pg_promote()")
    after = {key for key, _ in await fetch_rows(standby.url)}
    world.check(bool(before - after), "the standby lacked nothing")
    world.url = standby.url
    yield


async def make_standby(world: World, primary: Postgres, replication: Proxy) -> Postgres:
    """Copy the primary through the proxy and start the copy as its standby."""
    cluster = find_cluster(world.directory / "standby", DEBIAN_POSTGRES)
    parts = urlsplit(primary.url)
    staging = cluster.home / "staging"
    staging.mkdir()
    owner = primary.data.stat().st_uid
    os.chown(staging, owner, -1)
    words = ["-h", "127.0.0.1", "-p", str(replication.port), "-U", str(parts.username), "-D", str(staging / "data")]
    environment = {"PGPASSWORD": str(parts.password), "PATH": "/usr/bin:/bin", "PGSSLMODE": "disable"}
    group = cluster.account.group if cluster.account else owner
    await run_as(owner, group, environment, str(DEBIAN_POSTGRES / "pg_basebackup"), *words, "-R", "-c", "fast")
    (staging / "data").rename(cluster.data)
    shutil.copy(primary.data.parent / "password", cluster.home / "password")
    standby = Postgres(world.directory / "standby", DEBIAN_POSTGRES)
    world.beneath.push_async_callback(standby.stop)
    await standby.start()
    connection = await asyncpg.connect(standby.url)
    assert await connection.fetchval("SELECT pg_is_in_recovery()")
    await connection.close()
    return standby


async def run_as(user: int, group: int, environment: Mapping[str, str], *command: str) -> None:
    """Run a program to its end as another user."""
    process = await asyncio.create_subprocess_exec(
        *command,
        user=user,
        group=group,
        extra_groups=[],
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(WAIT_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, f"{command}: {output.decode()}"
