"""A model of a disk for the spool: it forgets, tears and reorders what was not synced, and fails any call on demand.

Stricter than a real one: a synced file is not found again unless its directory was synced after it was made, and data
whose sync failed once is never made durable by a later sync.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from app.spool.disk import Disk
from app.spool.flush import OnFlushed

SECTOR_BYTES = 512

Fault = Callable[[str], int | None]
"""Told a call's name; returns the errno to fail it with, SHORT for a short write, or None."""

SHORT = -1


class PowerLossError(Exception):
    """The machine is off: this call and all later ones have no effect. Not an OSError, so nobody handles it."""


@dataclass
class Inode:
    """A file: what processes see, what is on the platter, and which sectors may or may not have got there."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    dirty: set[int] = field(default_factory=set)
    doubtful: set[int] = field(default_factory=set)

    def mark(self, start: int, end: int) -> None:
        """Note that bytes were changed."""
        self.dirty.update(range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES)))

    def sync(self) -> None:
        """Bring what is dirty to the platter, but nothing whose sync has failed before."""
        kept = bytearray(self.seen)
        for sector in self.doubtful:
            part = slice(sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, len(kept)))
            kept[part] = self.durable[part].ljust(part.stop - part.start, b"\0")
        self.durable = bytes(kept)
        self.dirty.clear()

    def fail_sync(self) -> None:
        """Lose track of what is dirty, as kernels do."""
        self.doubtful |= self.dirty
        self.dirty.clear()

    def tear(self, rng: Random) -> "Inode":
        """Return what a power loss leaves: a prefix of what was seen, or any subset of the unsynced sectors."""
        unsure = self.dirty | self.doubtful
        shortest, longest = sorted((len(self.durable), len(self.seen)))
        length = rng.choice([shortest, longest, rng.randint(shortest, longest)])
        chosen = {sector for sector in unsure if rng.random() < 0.5} if rng.random() < 0.7 else unsure
        data = bytearray(self.durable[:length].ljust(length, b"\0"))
        for sector in chosen:
            part = slice(sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, length, len(self.seen)))
            if part.start < part.stop:
                data[part] = self.seen[part]
        return Inode(bytearray(data), bytes(data))


class ModelDisk(Disk):
    """Files in memory. `fault` decides about each call; the call with the number `power_loss_at` never returns."""

    def __init__(self) -> None:
        self.fault: Fault = lambda _name: None
        self.power_loss_at: int | None = None
        self.calls = 0
        self.free = 2**40
        self.names: dict[Path, Inode] = {}
        self.durable_names: dict[Path, Inode] = {}
        self.history: dict[Path, list[Inode | None]] = {}
        self.open_files: dict[int, Inode] = {}
        self.writers: dict[int, Inode] = {}
        self.failed: set[int] = set()
        self.next_descriptor = 3

    def lose_power(self, rng: Random) -> "ModelDisk":
        """Return the disk as it is found afterwards: unsynced entries and data are there, or not, or in part."""
        after = ModelDisk()
        for path in {*self.names, *self.durable_names, *self.history}:
            states = [self.durable_names.get(path), *self.history.get(path, [])]
            inode = rng.choice(states)
            if inode is not None:
                after.names[path] = after.durable_names[path] = inode.tear(rng)
        return after

    def kill_process(self) -> "ModelDisk":
        """Return the disk as another process finds it: every call that was made has its effect."""
        after = ModelDisk()
        for path, inode in self.names.items():
            after.names[path] = after.durable_names[path] = Inode(bytearray(inode.seen), bytes(inode.seen))
        return after

    def _call(self, name: str) -> bool:
        """Count a call; return whether a write is to be short."""
        self.calls += 1
        if self.power_loss_at is not None and self.calls >= self.power_loss_at:
            raise PowerLossError
        code = self.fault(name)
        if code == SHORT:
            return True
        if code is not None:
            raise OSError(code, os.strerror(code))
        return False

    def list_names(self, directory: Path) -> list[str]:
        self._call("list")
        return [path.name for path in self.names if path.parent == directory]

    def make_directory(self, path: Path, mode: int) -> None:  # noqa: ARG002  # directories are always there
        self._call("make_directory")

    def create(self, path: Path) -> int:
        self._call("create")
        if path in self.names:
            raise FileExistsError(errno.EEXIST, "there is one", str(path))
        descriptor = self._open(self._set(path, Inode()))
        self.writers[descriptor] = self.open_files[descriptor]
        return descriptor

    def open(self, path: Path) -> int:
        self._call("open")
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self._open(self.names[path])

    def measure(self, path: Path) -> int:
        self._call("measure")
        return len(self.names[path].seen)

    def read(self, descriptor: int, size: int, offset: int) -> bytes:
        self._call("read")
        return bytes(self.open_files[descriptor].seen[offset : offset + size])

    def write(self, descriptor: int, data: memoryview) -> int:
        is_short = self._call_on(descriptor, "write")
        inode = self.writers[descriptor]
        taken = bytes(data[: max(1, len(data) // 3)] if is_short else data)
        inode.mark(len(inode.seen), len(inode.seen) + len(taken))
        inode.seen += taken
        return len(taken)

    def sync(self, descriptor: int) -> None:
        inode = self.writers[descriptor]
        try:
            self._call_on(descriptor, "sync")
        except OSError:
            inode.fail_sync()
            raise
        inode.sync()

    def truncate(self, descriptor: int, size: int) -> None:
        self._call("truncate")
        inode = self.writers[descriptor]
        inode.mark(size, len(inode.seen))
        del inode.seen[size:]

    def close(self, descriptor: int) -> None:
        del self.open_files[descriptor]  # also when it fails, as Linux does
        self.writers.pop(descriptor, None)
        self._call("close")

    def unlink(self, path: Path) -> None:
        self._call("unlink")
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        del self.names[path]
        self.history.setdefault(path, []).append(None)

    def replace(self, path: Path, target: Path) -> None:
        self._call("replace")
        self._set(target, self.names.pop(path))
        self.history.setdefault(path, []).append(None)

    def sync_directory(self, path: Path) -> None:
        self._call("sync_directory")
        for entry in [entry for entry in self.history if entry.parent == path]:
            del self.history[entry]
            if entry in self.names:
                self.durable_names[entry] = self.names[entry]
            else:
                self.durable_names.pop(entry, None)

    def measure_free(self, directory: Path) -> int:  # noqa: ARG002  # there is one file system
        self._call("measure_free")
        return self.free

    def _set(self, path: Path, inode: Inode) -> Inode:
        self.names[path] = inode
        self.history.setdefault(path, []).append(inode)
        return inode

    def _open(self, inode: Inode) -> int:
        self.next_descriptor += 1
        self.open_files[self.next_descriptor] = inode
        return self.next_descriptor

    def _call_on(self, descriptor: int, name: str) -> bool:
        """Count a call on an open file, on which nothing may be written or synced once either has failed."""
        assert descriptor not in self.failed, f"{name} on a file that has failed"
        try:
            return self._call(name)
        except OSError:
            self.failed.add(descriptor)
            raise


class ModelFlusher:
    """A flusher over the model: as the kernel's, it answers later, on the loop."""

    def __init__(self, disk: ModelDisk) -> None:
        self.disk = disk

    def flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        loop = asyncio.get_running_loop()
        try:
            self.disk.sync(descriptor)
        except OSError as error:
            loop.call_soon(on_flushed, error)
        else:
            loop.call_soon(on_flushed, None)

    def close(self) -> None:
        """Nothing is held."""
