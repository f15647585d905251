"""Group commit by itself: what forms a group, and what becomes of callers when it is full, cancelled or stopped."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from app.errors import Reason, UnavailableError
from app.group_commit import Entry, GroupCommit, settle
from app.tasks import own_task
from tests.support.processes import wait_until


@dataclass
class Storage:
    """Commits a group when it is `released`, and keeps what it has committed."""

    groups: GroupCommit[str]
    begun: list[list[str]] = field(default_factory=list)
    released: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def commit(self, group: list[Entry[str]]) -> None:
        if group:
            self.begun.append([entry.item for entry in group])
            await self.released.acquire()
            settle(group, None)

    async def has_begun(self, *groups: list[str]) -> bool:
        return self.begun == list(groups)


@asynccontextmanager
async def open_storage(max_pending: int = 100, max_group: int = 10) -> AsyncIterator[Storage]:
    storage = Storage(GroupCommit[str](max_pending, max_group, "full"))
    async with own_task(storage.groups.run(storage.commit, 0.01), "storage", pytest.fail):
        yield storage


def add(storage: Storage, item: str, size: int = 1) -> "asyncio.Task[None]":
    return asyncio.create_task(storage.groups.add(item, size))


async def test_what_arrives_during_a_commit_forms_the_next_group() -> None:
    async with open_storage() as storage:
        first = add(storage, "a")
        await wait_until(lambda: storage.has_begun(["a"]))
        others = [add(storage, item) for item in "bcd"]
        await asyncio.sleep(0)
        assert not first.done()
        storage.released.release()
        storage.released.release()

        await asyncio.gather(first, *others)

        assert storage.begun == [["a"], ["b", "c", "d"]]


async def test_a_caller_waits_for_its_own_group_only() -> None:
    async with open_storage() as storage:
        first = add(storage, "a")
        await wait_until(lambda: storage.has_begun(["a"]))
        second = add(storage, "b")
        storage.released.release()
        await first
        await wait_until(lambda: storage.has_begun(["a"], ["b"]))

        assert not second.done()

        storage.released.release()
        await second


async def test_a_group_is_at_most_as_large_as_allowed_and_a_larger_entry_goes_alone() -> None:
    async with open_storage(max_group=10) as storage:
        tasks = [add(storage, item, size) for item, size in [("a", 6), ("b", 4), ("c", 1), ("d", 30), ("e", 2)]]
        for _ in tasks:
            storage.released.release()

        await asyncio.gather(*tasks)

    assert storage.begun == [["a", "b"], ["c"], ["d"], ["e"]]


async def test_what_is_too_much_is_refused_at_once_and_counts_what_is_under_way() -> None:
    async with open_storage(max_pending=10) as storage:
        first = add(storage, "a", 8)
        await wait_until(lambda: storage.has_begun(["a"]))

        with pytest.raises(UnavailableError, match=r"^full$"):
            await storage.groups.add("b", 3)

        second = add(storage, "c", 2)
        storage.released.release()
        storage.released.release()
        await asyncio.gather(first, second)
        assert storage.groups.pending == 0


async def test_what_is_alone_is_taken_however_large() -> None:
    async with open_storage(max_pending=10) as storage:
        storage.released.release()

        await storage.groups.add("a", 1000)


async def test_a_caller_that_has_gone_takes_nobody_with_it_and_makes_room() -> None:
    async with open_storage() as storage:
        gone, other = add(storage, "a", 5), add(storage, "b", 5)
        await wait_until(lambda: storage.has_begun(["a", "b"]))
        gone.cancel()
        await asyncio.wait([gone])
        storage.released.release()

        await other

        assert gone.cancelled()
        assert storage.groups.pending == 0


async def test_the_end_refuses_what_is_under_way_what_waits_and_what_comes() -> None:
    async with open_storage() as storage:
        under_way = add(storage, "a")
        await wait_until(lambda: storage.has_begun(["a"]))
        waiting = add(storage, "b")
        await asyncio.sleep(0)

    outcomes = await asyncio.gather(under_way, waiting, storage.groups.add("c", 1), return_exceptions=True)

    assert [(type(outcome), str(outcome)) for outcome in outcomes] == [(UnavailableError, "the server is stopping")] * 3
    assert storage.groups.refusal is not None
    assert storage.groups.refusal.code == "stopping"


async def test_refuse_turns_away_what_comes_and_leaves_what_waits() -> None:
    async with open_storage() as storage:
        first = add(storage, "a")
        await wait_until(lambda: storage.has_begun(["a"]))
        waiting = add(storage, "b")
        await asyncio.sleep(0)
        storage.groups.refuse(Reason(code="disk", detail="the disk fails"))

        with pytest.raises(UnavailableError, match="the disk fails"):
            await storage.groups.add("c", 1)
        storage.groups.accept()
        last = add(storage, "d")
        for _ in range(3):
            storage.released.release()
        await asyncio.gather(first, waiting, last)


async def test_refuse_waiting_leaves_what_is_under_way() -> None:
    async with open_storage() as storage:
        first = add(storage, "a")
        await wait_until(lambda: storage.has_begun(["a"]))
        waiting = add(storage, "b")
        await asyncio.sleep(0)

        storage.groups.refuse_waiting(Reason(code="disk", detail="the disk fails"))

        with pytest.raises(UnavailableError, match="the disk fails"):
            await waiting
        storage.released.release()
        await first


async def test_refusal_is_since_its_code_began() -> None:
    groups = GroupCommit[str](1, 1, "full")
    full, fuller, other = (Reason(code=code, detail=code) for code in ("full", "full", "disk"))

    groups.refuse(full)
    groups.refuse(fuller)
    assert groups.refusal is not None
    assert groups.refusal.since == full.since

    groups.refuse(other)
    assert groups.refusal.since == other.since > full.since
