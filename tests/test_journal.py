"""The journal over a model disk that fails and loses power, and on a real directory."""

import asyncio
import errno
import stat
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import StartupError, UnavailableError
from app.spool import journal as journal_module
from app.spool.flush import OnFlushed
from app.spool.journal import Journal, open_journal
from app.spool.reader import SpoolReader
from app.spool.segment import HEADER_BYTES, decode_header, encode_frame
from app.spool.spool import Spool, name_segment, open_spool, read_spool
from app.tasks import own_task
from tests.support.model_disk import SHORT, Fault, ModelDisk, ModelFlusher, PowerLossError
from tests.support.processes import WAIT_SECONDS, wait_until

SPOOL = Path("/spool")
MAX_BYTES = 1024**2


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "LIMIT_CHECK_SECONDS", 0.005)
        yield


class FrozenFlusher:
    """A disk that never answers."""

    def flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        pass

    def close(self) -> None:
        pass


@asynccontextmanager
async def open_model(
    disk: ModelDisk, max_bytes: int = MAX_BYTES, *, is_frozen: bool = False
) -> AsyncIterator[tuple[Spool, Journal]]:
    spool = read_spool(SPOOL, disk)
    journal = Journal(spool, max_bytes, FrozenFlusher() if is_frozen else ModelFlusher(disk))
    await journal.check()
    async with own_task(journal.run(), "spool", pytest.fail):
        yield spool, journal
    journal.close()


@asynccontextmanager
async def open_real(
    directory: Path, max_bytes: int = MAX_BYTES, *, fsync: bool = True
) -> AsyncIterator[tuple[Spool, Journal]]:
    async with open_spool(directory) as spool, open_journal(spool, max_bytes, fsync, pytest.fail) as journal:
        yield spool, journal


def fail_calls(*failing: tuple[str, int]) -> Fault:
    """Fail calls by name for as long as they are in this list, which the test changes."""
    codes = dict(failing)
    return codes.get


def read_all(disk: ModelDisk) -> list[bytes]:
    """Read the spool as another process finds it."""
    return read_payloads(SpoolReader(read_spool(SPOOL, disk)))


def read_payloads(reader: SpoolReader) -> list[bytes]:
    payloads: list[bytes] = []
    for _ in range(10_000):
        chunk = reader.read()
        if chunk is None:
            return payloads
        payloads += [frame.payload for frame in chunk.frames]
        reader.advance(chunk)
    raise AssertionError("the reader does not come to an end")


async def append(journal: Journal, *payloads: bytes) -> None:
    await asyncio.gather(*(journal.append(encode_frame(payload, 1), 1) for payload in payloads))


async def is_well(journal: Journal) -> bool:
    return journal.refusal is None


async def has_failed(journal: Journal, code: str) -> bool:
    return journal.refusal is not None and journal.refusal.code == code


async def test_append_is_on_the_disk_when_it_returns() -> None:
    disk = ModelDisk()
    async with open_model(disk) as (_, journal):
        await append(journal, b"1", b"2")

        found = [read_all(disk.lose_power(Random(seed))) for seed in range(20)]

    assert found == [[b"1", b"2"]] * 20


@pytest.mark.parametrize("name", ["write", "sync"])
async def test_append_is_refused_once_when_the_disk_fails_once(name: str) -> None:
    disk = ModelDisk()
    async with open_model(disk) as (spool, journal):
        await append(journal, b"1")
        disk.fault = fail_calls((name, errno.EIO))
        with pytest.raises(UnavailableError):
            await append(journal, b"2")
        disk.fault = fail_calls()
        await wait_until(lambda: is_well(journal))

        await append(journal, b"3")

        assert read_payloads(SpoolReader(spool)) == [b"1", b"3"]


async def test_segments_that_fail_in_a_row_say_how_far_the_one_before_was_acknowledged() -> None:
    disk = ModelDisk()
    async with open_model(disk) as (_, journal):
        await append(journal, b"1")
        for _ in range(2):
            disk.fault = fail_calls(("truncate", errno.EIO), ("close", errno.EIO))
            disk.fault = _fail_next_sync(disk.fault)
            with pytest.raises(UnavailableError):
                await append(journal, b"refused")
            await wait_until(lambda: is_well(journal))
        disk.fault = fail_calls()
        await append(journal, b"2")

    after = disk.kill_process()
    headers = [decode_header(bytes(inode.seen)) for _, inode in sorted(after.names.items())]
    end = HEADER_BYTES + len(encode_frame(b"1", 1))
    assert [header.acknowledged_before if header else -1 for header in headers] == [None, end, HEADER_BYTES]


async def test_short_writes_are_gone_on_with() -> None:
    disk = ModelDisk()
    disk.fault = fail_calls(("write", SHORT))
    async with open_model(disk) as (_, journal):
        await append(journal, b"x" * 1000)

    assert read_all(disk.lose_power(Random(0))) == [b"x" * 1000]


async def test_append_whose_caller_has_gone_does_not_break_its_group() -> None:
    disk = ModelDisk()
    async with open_model(disk) as (spool, journal):
        gone = asyncio.create_task(append(journal, b"1"))
        await asyncio.sleep(0)
        gone.cancel()

        await append(journal, b"2")

        assert b"2" in read_payloads(SpoolReader(spool))


async def test_append_is_refused_when_the_journal_ends_during_its_flush() -> None:
    async with open_model(ModelDisk(), is_frozen=True) as (_, journal):
        waiting = asyncio.create_task(append(journal, b"1"))
        await asyncio.sleep(0.02)  # the flush is under way, and never ends

    with pytest.raises(UnavailableError, match="stopping"):
        async with asyncio.timeout(WAIT_SECONDS):
            await waiting


async def test_append_is_refused_when_the_disk_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "FLUSH_SECONDS", 0.02)
    async with open_model(ModelDisk(), is_frozen=True) as (_, journal):
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(WAIT_SECONDS):
                await append(journal, b"1")


async def test_append_is_refused_at_once_when_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_PENDING_BYTES", 100)
    async with open_model(ModelDisk()) as (_, journal):
        first = asyncio.create_task(append(journal, b"x" * 90))
        await asyncio.sleep(0)

        with pytest.raises(UnavailableError, match="too many"):
            await append(journal, b"x" * 90)

        await first


async def test_failing_measures_and_removals_do_not_end_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "RETAIN_SECONDS", 0.0)
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 200)
    disk = ModelDisk()
    async with open_model(disk) as (spool, journal):
        await append(journal, b"x" * 150)
        await append(journal, b"y" * 150)
        disk.fault = fail_calls(("measure_free", errno.EIO), ("unlink", errno.EROFS))
        spool.segments[0].progress.shipped_at = 0.0
        calls = disk.calls
        await wait_until(lambda: has_called(disk, calls + 6))
        await append(journal, b"z")
        kept = len(spool.segments)
        disk.fault = fail_calls()
        await wait_until(lambda: has_segments(spool, kept - 1))


async def has_called(disk: ModelDisk, count: int) -> bool:
    return disk.calls >= count


async def has_segments(spool: Spool, count: int) -> bool:
    return len(spool.segments) == count


async def test_journal_goes_on_after_a_segment_could_neither_be_begun_nor_removed() -> None:
    disk = ModelDisk()
    async with open_model(disk) as (_, journal):
        await append(journal, b"1")
        disk.fault = fail_calls(("sync", errno.EIO), ("unlink", errno.EIO))
        with pytest.raises(UnavailableError):
            await append(journal, b"2")
        await wait_until(lambda: has_failed(journal, "spool_disk"))
        disk.fault = fail_calls()
        await wait_until(lambda: is_well(journal))

        await append(journal, b"3")

    assert read_all(disk.lose_power(Random(0))) == [b"1", b"3"]


async def test_a_full_disk_makes_room_by_removing_what_was_shipped() -> None:
    disk = ModelDisk()
    async with open_model(disk) as (spool, journal):
        await append(journal, b"1")
        first = SPOOL / name_segment(0)
        disk.fault = lambda name: errno.ENOSPC if name in {"write", "create"} and first in disk.names else None
        with pytest.raises(UnavailableError):
            await append(journal, b"2")
        await wait_until(lambda: has_failed(journal, "spool_disk"))
        spool.segments[0].progress.shipped_at = time.monotonic()

        await wait_until(lambda: is_well(journal))

        assert [segment.path.name for segment in spool.segments] == [name_segment(1)]


async def test_shipped_segments_are_kept_through_a_single_failure() -> None:
    disk = ModelDisk()
    async with open_model(disk) as (spool, journal):
        await append(journal, b"1")
        disk.fault = _fail_next_sync(fail_calls())
        with pytest.raises(UnavailableError):
            await append(journal, b"2")
        await wait_until(lambda: is_well(journal))
        spool.segments[0].progress.shipped_at = time.monotonic()
        disk.fault = _fail_next_sync(fail_calls())
        with pytest.raises(UnavailableError):
            await append(journal, b"3")
        await wait_until(lambda: is_well(journal))

        assert [segment.sequence for segment in spool.segments] == [0, 1, 2]


async def test_start_on_a_full_disk_serves_what_it_holds_and_recovers() -> None:
    disk = ModelDisk()
    async with open_model(disk) as (spool, journal):
        await append(journal, b"1")
    disk.fault = fail_calls(("create", errno.ENOSPC))

    async with open_model(disk) as (spool, journal):
        assert await has_failed(journal, "spool_disk")
        assert read_payloads(SpoolReader(spool)) == [b"1"]
        disk.fault = fail_calls()
        await wait_until(lambda: is_well(journal))
        await append(journal, b"2")


async def test_a_full_spool_refuses_and_goes_on_below_nine_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 100)
    disk = ModelDisk()
    async with open_model(disk, max_bytes=2000) as (spool, journal):
        while journal.refusal is None:
            await append(journal, b"x" * 100)
            await asyncio.sleep(0.01)  # a look at the limits
        assert await has_failed(journal, "spool_full")
        with pytest.raises(UnavailableError, match="full"):
            await append(journal, b"x")
        spool.segments.popleft()  # one of about twenty: still above nine tenths
        await asyncio.sleep(0.03)
        assert await has_failed(journal, "spool_full")

        for segment in list(spool.segments)[:4]:
            segment.progress.shipped_at = 0.0
        await wait_until(lambda: is_well(journal))


async def test_a_small_spool_closes_its_segment_so_that_shipped_rows_leave_it() -> None:
    disk = ModelDisk()
    async with open_model(disk, max_bytes=1000) as (spool, journal):
        await append(journal, b"x" * 1000)
        await wait_until(lambda: has_failed(journal, "spool_full"))
        read_payloads(SpoolReader(spool))
        await wait_until(lambda: has_segments(spool, 2))
        assert spool.segments[0].is_finished
        spool.segments[0].progress.shipped_at = 0.0

        await wait_until(lambda: is_well(journal))


async def test_little_free_disk_refuses_until_there_is_a_tenth_more() -> None:
    disk = ModelDisk()
    async with open_model(disk) as (_, journal):
        disk.free = journal_module.MIN_FREE_BYTES - 1
        await wait_until(lambda: has_failed(journal, "spool_full"))
        disk.free = journal_module.MIN_FREE_BYTES * 11 // 10
        await asyncio.sleep(0.03)
        assert journal.refusal is not None

        disk.free = journal_module.MIN_FREE_BYTES * 112 // 100
        await wait_until(lambda: is_well(journal))


async def test_a_rotation_that_fails_leaves_what_follows_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_SECONDS", 0.01)
    disk = ModelDisk()
    async with open_model(disk) as (spool, journal):
        disk.fault = fail_calls(("create", errno.ENOSPC))
        await append(journal, b"1")
        await asyncio.sleep(0.03)  # the rotation has been tried
        await append(journal, b"2")

        assert spool.segments[0].is_open
        assert spool.segments[0].acknowledged == spool.segments[0].readable_end


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    async with open_real(tmp_path / "spool"):
        with pytest.raises(StartupError, match="in use by another process"):
            async with open_real(tmp_path / "spool"):
                pass


async def test_a_directory_that_cannot_be_made_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StartupError, match="cannot be opened"):
        async with open_real(tmp_path / "file" / "spool"):
            pass


@pytest.mark.parametrize("fsync", [True, False])
async def test_journal_on_a_real_directory_is_private_and_read_back(tmp_path: Path, fsync: bool) -> None:
    directory = tmp_path / "data" / "spool"
    (tmp_path / "data").mkdir()
    async with open_real(directory, 64 * MAX_BYTES, fsync=fsync) as (spool, journal):
        await append(journal, b"1", b"2")
    (directory / "seg-notes.log").touch()  # somebody's own
    async with open_real(directory, 64 * MAX_BYTES, fsync=fsync) as (spool, journal):
        await append(journal, b"3")
        found = read_payloads(SpoolReader(spool))

    assert found == [b"1", b"2", b"3"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.glob("seg-0*.log")} == {0o600}


Life = tuple[list[list[int]], float, int | None]
"""Sizes of what is appended group by group, how often a call fails, and at which call the power goes."""

LIVES = st.lists(
    st.tuples(
        st.lists(st.lists(st.integers(1, 2500), min_size=1, max_size=4), max_size=8),
        st.sampled_from([0.0, 0.05, 0.3]),
        st.none() | st.integers(5, 40),
    ),
    min_size=1,
    max_size=3,
)
SLOW = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@SLOW
@given(lives=LIVES, seed=st.integers(0, 2**32))
def test_power_loss_at_any_call_loses_nothing_that_was_promised(lives: Sequence[Life], seed: int) -> None:
    rng, disk = Random(seed), ModelDisk()
    sent: list[bytes] = []
    promised: list[bytes] = []

    for life in lives:
        before = asyncio.run(live(disk, life, rng, sent, promised, is_synced=True))
        for _ in range(5):
            disk = before.lose_power(rng)
            check_spool(disk, sent, promised)


@settings(SLOW, max_examples=60)
@given(lives=LIVES, seed=st.integers(0, 2**32))
def test_process_kill_at_level_os_loses_nothing_that_was_promised(lives: Sequence[Life], seed: int) -> None:
    rng, disk = Random(seed), ModelDisk()
    sent: list[bytes] = []
    promised: list[bytes] = []

    for life in lives:
        disk = asyncio.run(live(disk, life, rng, sent, promised, is_synced=False)).kill_process()
        check_spool(disk, sent, promised)


def test_power_loss_at_level_os_may_lose_what_was_promised() -> None:
    losses = 0
    for seed in range(20):
        promised: list[bytes] = []
        disk = asyncio.run(live(ModelDisk(), ([[800]] * 4, 0.0, None), Random(seed), [], promised, is_synced=False))
        losses += read_all(disk.lose_power(Random(seed))) != promised

    assert losses > 0


async def live(
    disk: ModelDisk, life: Life, rng: Random, sent: list[bytes], promised: list[bytes], *, is_synced: bool
) -> ModelDisk:
    """Run a journal from its start to the loss of power, noting what it was given and what it has promised."""
    groups, fault_rate, power_loss_at = life
    codes = [errno.EIO, errno.ENOSPC, SHORT]
    disk.fault = lambda _name: rng.choice(codes) if rng.random() < fault_rate else None
    disk.power_loss_at = power_loss_at
    try:
        journal = Journal(read_spool(SPOOL, disk), MAX_BYTES, ModelFlusher(disk) if is_synced else None)
        await journal.check()
    except (OSError, PowerLossError):
        return disk  # the process does not start
    async with own_task(journal.run(), "spool", lambda _name: None) as task:
        for sizes in groups:
            payloads = [f"{len(sent) + index}:".encode().ljust(size, b".") for index, size in enumerate(sizes)]
            sent += payloads
            outcomes = await asyncio.gather(*(append(journal, one) for one in payloads), return_exceptions=True)
            promised += [payload for payload, outcome in zip(payloads, outcomes, strict=True) if outcome is None]
            assert all(outcome is None or isinstance(outcome, UnavailableError) for outcome in outcomes)
            if journal.refusal is not None:
                await asyncio.sleep(0.006)  # the next probe
        assert not task.done() or isinstance(task.exception(), PowerLossError)
    return disk


def check_spool(disk: ModelDisk, sent: Sequence[bytes], promised: Sequence[bytes]) -> None:
    """Read the spool twice: each promised frame once, in order; nothing that was not sent."""
    reader = SpoolReader(read_spool(SPOOL, disk))
    for _ in range(2):
        found = read_payloads(reader)
        assert len(set(found)) == len(found)
        assert set(found) <= set(sent)
        assert [payload for payload in found if payload in set(promised)] == list(promised)
        reader.rewind()


def _fail_next_sync(otherwise: Fault) -> Fault:
    failed: list[str] = []

    def fault(name: str) -> int | None:
        if name == "sync" and not failed:
            failed.append(name)
            return errno.EIO
        return otherwise(name)

    return fault


async def test_rows_are_promised_while_other_work_fills_the_shared_threads(tmp_path: Path) -> None:
    """The limits are checked and a segment is begun meanwhile: both are calls that block."""
    loop = asyncio.get_running_loop()
    may_end = threading.Event()
    async with open_real(tmp_path / "spool") as (spool, journal):
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, may_end.wait)
        try:
            async with asyncio.timeout(WAIT_SECONDS / 4):
                await journal.append(encode_frame(b"one", 1), 1)
                await journal.check()
                await journal._rotate()
                await journal.append(encode_frame(b"two", 1), 1)
        finally:
            may_end.set()
            await busy

        assert [segment.rows for segment in spool.segments] == [1, 1]
