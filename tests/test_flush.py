"""Both ways of waiting for the disk, on real files."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.spool import flush as flush_module
from app.spool.disk import DISK, make_directories
from app.spool.flush import Flusher, KernelFlusher, ThreadFlusher, explain_result, open_flusher
from tests.support.processes import WAIT_SECONDS

BOTH = pytest.mark.parametrize("make", [KernelFlusher, ThreadFlusher])
MakeFlusher = Callable[[asyncio.AbstractEventLoop], Flusher]


@pytest.fixture
async def descriptor(tmp_path: Path) -> AsyncIterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


async def flush(flusher: Flusher, descriptor: int) -> OSError | None:
    done: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    flusher.flush(descriptor, done.set_result)
    assert not done.done()
    async with asyncio.timeout(WAIT_SECONDS):
        return await done


@BOTH
async def test_flush_reports_success_again_and_again(make: MakeFlusher, descriptor: int) -> None:
    flusher = make(asyncio.get_running_loop())
    try:
        for _ in range(50):
            os.write(descriptor, b"data")
            assert await flush(flusher, descriptor) is None
    finally:
        flusher.close()


@BOTH
async def test_flush_reports_several_at_once(make: MakeFlusher, descriptor: int) -> None:
    flusher = make(asyncio.get_running_loop())
    try:
        assert await asyncio.gather(*(flush(flusher, descriptor) for _ in range(8))) == [None] * 8
    finally:
        flusher.close()


@BOTH
async def test_flush_of_a_bad_descriptor_reports_an_error(make: MakeFlusher) -> None:
    flusher = make(asyncio.get_running_loop())
    reading, writing = os.pipe()
    os.close(writing)
    try:
        assert isinstance(await flush(flusher, reading), OSError)  # a pipe has nothing to sync
        os.close(reading)
        assert isinstance(await flush(flusher, reading), OSError)
    finally:
        flusher.close()


async def test_kernel_flusher_reports_an_operation_that_fails_after_it_was_taken(descriptor: int) -> None:
    """A write beyond what any file system holds: unlike a failing fdatasync, every kernel can be asked for it."""
    from caio import linux_aio

    flusher = KernelFlusher(asyncio.get_running_loop())
    done: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    try:
        flusher._submit(linux_aio.Operation.write(b"x", descriptor, 2**62), done.set_result)
        async with asyncio.timeout(WAIT_SECONDS):
            error = await done
    finally:
        flusher.close()

    assert error is not None
    assert error.errno == errno.EFBIG


async def test_kernel_flusher_reports_more_than_the_kernel_takes_at_once(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flusher = KernelFlusher(asyncio.get_running_loop())
    try:
        outcomes = await asyncio.gather(*(flush(flusher, descriptor) for _ in range(5000)))
    finally:
        flusher.close()

    assert all(outcome is None or isinstance(outcome, OSError) for outcome in outcomes)


@pytest.mark.parametrize(("result", "code"), [(2**64 - 5, 5), (-28, 28), (0, None), (4096, None)])
def test_explain_result_reads_errors_signed_and_unsigned(result: int, code: int | None) -> None:
    error = explain_result(result)

    assert (error.errno if error else None) == code


async def test_open_flusher_takes_the_kernels_way_here(descriptor: int) -> None:
    flusher = await open_flusher(descriptor)
    flusher.close()

    assert isinstance(flusher, KernelFlusher)


async def test_open_flusher_takes_the_thread_where_the_kernel_has_no_room(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush_module, "AIO_EVENTS", 2**30)

    flusher = await open_flusher(descriptor)
    flusher.close()

    assert isinstance(flusher, ThreadFlusher)


async def test_open_flusher_takes_the_thread_where_the_kernels_way_does_not_work() -> None:
    reading, writing = os.pipe()
    try:
        flusher = await open_flusher(reading)
        flusher.close()
    finally:
        os.close(reading)
        os.close(writing)

    assert isinstance(flusher, ThreadFlusher)


def test_make_directories_makes_a_private_one_in_ordinary_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"

    make_directories(DISK, path)
    make_directories(DISK, path)

    assert path.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o100 == 0o100
    assert path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777
