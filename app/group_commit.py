"""Group commit: items that arrive while a group is committed form the next group; a caller waits for its own group."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import Reason, UnavailableError, keep_since

Item = TypeVar("Item")


@dataclass(slots=True)
class Entry(Generic[Item]):
    """One caller's item, its size, and the future that the caller waits for."""

    item: Item
    size: int
    committed: "asyncio.Future[None]"


Commit = Callable[[list[Entry[Item]]], Awaitable[None]]
"""Commits a group and settles each of its entries. The group is empty when nothing has arrived for `idle_seconds`."""


class GroupCommit(Generic[Item]):
    """Commits the items of many callers in groups: callers call `add`, one task runs `run`. All sizes have one unit.

    Bounded: `pending` is the size of everything that waits or is being committed. An item that would raise it above
    `max_pending` is refused at once, unless nothing is pending. A group is at most `max_group` large; a larger item is
    a group of its own.
    """

    def __init__(self, max_pending: int, max_group: int, full: str) -> None:
        self._max_pending = max_pending
        self._max_group = max_group
        self._full = full
        self._waiting: list[Entry[Item]] = []
        self._arrived = asyncio.Event()
        self.pending = 0
        self.refusal: Reason | None = None

    async def add(self, item: Item, size: int) -> None:
        """Return when `item` is committed; raise UnavailableError when it is not, or when the outcome is unknown."""
        if self.refusal is not None:
            raise UnavailableError(self.refusal.detail)
        if self.pending and self.pending + size > self._max_pending:
            raise UnavailableError(self._full)
        entry = Entry(item, size, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self.pending += size
        self._arrived.set()
        try:
            await entry.committed
        finally:
            self.pending -= size

    async def run(self, commit: Commit[Item], idle_seconds: float) -> None:
        """Commit group after group until cancelled; then refuse the current group, waiting items and new items."""
        group: list[Entry[Item]] = []
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(idle_seconds):
                        await self._arrived.wait()
                group = self._take_group()
                await commit(group)
        finally:
            reason = Reason(code="stopping", detail="the server is stopping")
            self.refuse(reason)
            self.refuse_waiting(reason)
            settle(group, UnavailableError(reason.detail))

    def refuse(self, reason: Reason) -> None:
        """Refuse new items until `accept` is called."""
        self.refusal = keep_since(reason, self.refusal)

    def refuse_waiting(self, reason: Reason) -> None:
        """Refuse the items that wait; the current group is settled by the function that commits it."""
        waiting, self._waiting = self._waiting, []
        self._arrived.clear()
        settle(waiting, UnavailableError(reason.detail))

    def accept(self) -> None:
        """Take new items again."""
        self.refusal = None

    def _take_group(self) -> list[Entry[Item]]:
        size = taken = 0
        for entry in self._waiting:
            if taken and size + entry.size > self._max_group:
                break
            size += entry.size
            taken += 1
        group = self._waiting[:taken]
        del self._waiting[:taken]
        if not self._waiting:
            self._arrived.clear()
        return group


def settle(group: Sequence[Entry[Item]], error: UnavailableError | None) -> None:
    """Wake the callers of these entries: with None their items are committed, else each caller gets the error."""
    for entry in group:
        if entry.committed.done():
            continue  # its caller was cancelled, or it was settled before
        if error is None:
            entry.committed.set_result(None)
        else:
            entry.committed.set_exception(error)
