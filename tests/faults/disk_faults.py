"""Faults of the spool's disk: full, failing, slow, damaged."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import msgspec

from app.prediction_log.record import Record
from app.spool.segment import FRAME, HEADER_BYTES, Frame, encode_frame, read_frames
from tests.faults.injectors import inject, limited_file_size, read_only, small_disk
from tests.faults.scenario import Fault
from tests.faults.world import World
from tests.support.load import Promise
from tests.support.processes import wait_until
from tests.support.records import make_record

DISK_MEGABYTES = 96


@asynccontextmanager
async def disk_full(world: World) -> AsyncIterator[None]:
    """Fill a small disk but for a page or two, so that the next group is cut in its middle; then free it."""
    disk = await world.beneath.enter_async_context(small_disk(world.directory / "disk", DISK_MEGABYTES))
    world.server.environment["DATA_DIR"] = str(disk / "data")
    await world.server.start()
    await world.wait_for_promises(200)
    since = time.monotonic()
    filler = disk / "filler"
    fill(filler, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 2 * 4096)
    await asyncio.sleep(3)
    ready = await world.server.is_ready()
    world.check(not ready, "the server says that it is ready although its disk is full")
    world.check(bool(world.list_exchanges(since, "503")), "no request was refused")
    filler.unlink()
    yield


@asynccontextmanager
async def disk_read_only(world: World) -> AsyncIterator[None]:
    """The server starts again on a disk that has become read-only: it ships what is there, and refuses what is new."""
    disk = await world.beneath.enter_async_context(small_disk(world.directory / "disk", DISK_MEGABYTES))
    world.server.environment["DATA_DIR"] = str(disk / "data")
    await world.server.start()
    await world.wait_for_promises(200)
    await world.server.kill()
    since = time.monotonic()
    async with read_only(disk):
        await world.server.start(wait=False)
        await wait_until(lambda: has_refused(world, since), what=lambda: "a request is refused")
        world.check(not await world.server.is_ready(), "the server says that it is ready on a read-only disk")
    yield


async def has_refused(world: World, since: float) -> bool:
    """Tell whether a request sent since then has been refused."""
    return bool(world.list_exchanges(since, "503"))


def fill(path: Path, size_bytes: int) -> None:
    """Write a file of that size, or until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            left = size_bytes
            while left > 0:
                left -= file.write(bytes(min(left, 1024**2)))
        except OSError:
            pass


@asynccontextmanager
async def file_too_large(world: World) -> AsyncIterator[None]:
    """RLIMIT_FSIZE: each segment takes 64 KiB, the last write into it only in part."""
    since = time.monotonic()
    with limited_file_size(world.pid, 64 * 1024):
        yield
    world.check(bool(world.list_exchanges(since, "503")), "no request was refused")


def failing_call(calls: str, how: str) -> Fault:
    """A system call on the spool's files fails as strace is told."""

    @asynccontextmanager
    async def fault(world: World) -> AsyncIterator[None]:
        first = len(list(world.spool.glob("seg-*.log"))) - 1
        paths = [world.spool / f"seg-{sequence:020d}.log" for sequence in range(first, first + 30)]
        paths = paths if calls == "write" else []
        async with inject(world.pid, calls, how, world.directory / "strace.log", tuple(paths)) as injection:
            yield
        world.check(injection.count > 0, f"no {calls} failed")

    return fault


@asynccontextmanager
async def slow_flush(world: World) -> AsyncIterator[None]:
    """fdatasync takes 200 ms: so does every answer, and nobody else waits."""
    async with inject(world.pid, "fdatasync", "delay_enter=200000", world.directory / "strace.log") as injection:
        since = time.monotonic()
        health = await world.time_health(4)
        answered = [one.seconds for one in world.list_exchanges(since, "200")]
        yield
    world.check(injection.count > 5, f"only {injection.count} calls were slow")
    world.check(len(answered) > 20, f"only {len(answered)} requests were answered")
    world.check(min(answered, default=1) >= 0.2, f"an answer took {min(answered, default=1):.3f} s, less than its sync")
    middle = health[len(health) // 2]
    world.check(middle < 0.1, f"half of the answers of /health/live took longer than {middle:.3f} s")


REGIONS = {"magic": 0, "length": 4, "rows": 8, "crc": 12, "payload": FRAME.size + 20}
"""Parts of a frame, by an offset in them."""


@asynccontextmanager
async def bytes_damaged(world: World) -> AsyncIterator[None]:
    """While the server is down a byte turns in each kind of region of a segment; the rest of it arrives."""
    path = await stop_with_rows(world)
    data = bytearray(path.read_bytes())
    frames, _ = read_frames(bytes(data[HEADER_BYTES:]), HEADER_BYTES)
    damaged = frames[10 : 10 + 7 * len(REGIONS) : 7]
    for frame, offset in zip(damaged, REGIONS.values(), strict=False):
        data[frame.start + offset] ^= 0x81
    data[HEADER_BYTES - 1] ^= 0x81
    path.write_bytes(data)
    world.put_aside |= {key for frame in damaged for key in list_ids(frame)}
    await start_again(world)
    yield
    kept = b"".join(file.read_bytes() for file in (world.spool / "corrupt").glob("*"))
    whole = [frame for frame, offset in zip(damaged, REGIONS.values(), strict=False) if offset < FRAME.size]
    world.check(all(frame.payload in kept for frame in whole), "corrupt/ does not hold what was damaged")


@asynccontextmanager
async def tail_torn(world: World) -> AsyncIterator[None]:
    """A power loss leaves a frame that was never promised, in part: it is dropped, and nothing else."""
    path = await stop_with_rows(world)
    with path.open("ab") as file:
        file.write(encode_frame(make_row("0"), 1)[:-7])
    await start_again(world)
    yield


POISON = "\x00"
"""A text that PostgreSQL refuses; no answer of the server could have led to it."""


@asynccontextmanager
async def poison_in_spool(world: World) -> AsyncIterator[None]:
    """Rows that PostgreSQL refuses stand in the spool, alone and among others of one request: these are stored."""
    path = await stop_with_rows(world)
    good = [make_row("1"), make_row("0")]
    with path.open("ab") as file:
        file.write(encode_frame(make_row(POISON), 1))
        file.write(encode_frame(b",".join([good[0], make_row(POISON), good[1]]), 3))
    for row in good:
        record = msgspec.json.decode(row, type=Record)
        world.promise({record.prediction_id: Promise(record.predicted_class, record.score, record.model_version)})
    await start_again(world)
    yield


@asynccontextmanager
async def frame_unreadable(world: World) -> AsyncIterator[None]:
    """A whole frame that holds no rows, as another release or a bug might leave: put aside, and the rest goes on."""
    path = await stop_with_rows(world)
    with path.open("ab") as file:
        file.write(encode_frame(b"{no row", 1))
    await start_again(world)
    yield


def make_row(predicted_class: str) -> bytes:
    """Encode a row as /predict would."""
    return msgspec.json.encode(make_record(predicted=predicted_class))


def list_ids(frame: Frame) -> Sequence[UUID]:
    """List the predictions of a frame."""
    rows = msgspec.json.decode(b"[" + frame.payload + b"]", type=list[Record])
    return [row.prediction_id for row in rows]


async def stop_with_rows(world: World) -> Path:
    """SIGKILL the server when its spool holds rows that PostgreSQL lacks; return the segment of the last of them."""
    await world.postgres.kill()
    await world.wait_for_promises(1000)
    await world.server.kill()
    return max(world.spool.glob("seg-*.log"))


async def start_again(world: World) -> None:
    """Start PostgreSQL and the server."""
    await world.postgres.start()
    await world.server.start()
