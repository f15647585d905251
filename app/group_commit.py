"""Group commit: what arrives while one group is being committed forms the next, and each caller waits for its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import Reason, UnavailableError, keep_since

Item = TypeVar("Item")


@dataclass(slots=True)
class Entry(Generic[Item]):
    """What one caller has added, how much it is, and what its caller waits for."""

    item: Item
    size: int
    committed: "asyncio.Future[None]"


Commit = Callable[[list[Entry[Item]]], Awaitable[None]]
"""Commits a group and settles each of its entries; the group is empty when nothing has come for a while."""


class GroupCommit(Generic[Item]):
    """Callers `add`, one task runs `run`. Sizes are in any unit, the same everywhere.

    Full: what would make more than `max_pending` wait, or be under way, is refused at once, unless it is alone. A group
    is at most `max_group`; a larger entry is a group of its own.
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
        """Return when `item` is committed; raise UnavailableError when it is not, or when that is not certain."""
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
        """Commit group after group until cancelled; then refuse what is under way, what waits and what still comes."""
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
        """Refuse what comes, until `accept`."""
        self.refusal = keep_since(reason, self.refusal)

    def refuse_waiting(self, reason: Reason) -> None:
        """Refuse what waits; what is under way is left to whoever commits it."""
        waiting, self._waiting = self._waiting, []
        self._arrived.clear()
        settle(waiting, UnavailableError(reason.detail))

    def accept(self) -> None:
        """Take what comes again."""
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
    """Tell the callers of these entries what has become of them; None: they are committed."""
    for entry in group:
        if entry.committed.done():
            continue  # its caller has gone, or it has been settled before
        if error is None:
            entry.committed.set_result(None)
        else:
            entry.committed.set_exception(error)
