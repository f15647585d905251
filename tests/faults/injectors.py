"""Make a running process's system calls, its disk and its limits fail; every injector is undone at exit."""

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import WAIT_SECONDS


@dataclass(frozen=True, slots=True)
class Injection:
    """System calls that are being tampered with; strace tells of each in `log`."""

    log: Path

    @property
    def count(self) -> int:
        """How many calls have been tampered with."""
        said = self.log.read_text(errors="replace")
        return said.count("(INJECTED)") + said.count("(DELAYED)")


@asynccontextmanager
async def inject(pid: int, calls: str, how: str, log: Path, paths: tuple[Path, ...] = ()) -> AsyncIterator[Injection]:
    """Tamper with a process's `calls`, on descriptors of `paths` only when there are any, as strace(1) says `how`."""
    words = ["-f", "-p", str(pid), "-o", str(log), "-e", f"trace={calls}", "-e", f"inject={calls}:{how}"]
    for path in paths:
        words += ["-P", str(path)]
    process = await asyncio.create_subprocess_exec("strace", *words, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            said = b""
            while b" attached" not in said:
                line = await process.stderr.readline()
                said += line
                assert line, f"strace: {said.decode()}"
        yield Injection(log)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Detach from the process; it goes on."""
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(10):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def small_disk(place: Path, megabytes: int) -> AsyncIterator[Path]:
    """Mount a disk in memory of this size."""
    place.mkdir()
    await _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(place))
    try:
        yield place
    finally:
        await _run("umount", "--lazy", str(place))


@asynccontextmanager
async def read_only(disk: Path) -> AsyncIterator[None]:
    """Let nobody write to a mounted disk, of which no file may be open for writing."""
    await _run("mount", "-o", "remount,ro", str(disk))
    try:
        yield
    finally:
        await _run("mount", "-o", "remount,rw", str(disk))


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(WAIT_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, f"{command}: {output.decode()}"


@contextmanager
def limited_file_size(pid: int, size_bytes: int) -> Iterator[None]:
    """Let no file of a running process grow beyond `size_bytes`: a write takes what fits, the next is EFBIG."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def block_kernel_aio(directory: Path) -> str:
    """Make a PYTHONPATH on which caio cannot be imported: fdatasync is a system call of ours then, not the kernel's."""
    directory.mkdir(exist_ok=True)
    (directory / "caio.py").write_text('raise ImportError("blocked by a fault test")\n')
    return str(directory)
