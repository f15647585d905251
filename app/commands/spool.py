"""`scorekeeper spool`: look at a spool, check it, or bring what it holds to PostgreSQL without a server."""

import argparse
import asyncio
import fcntl
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from app.commands.arguments import Commands
from app.database.pool import check_server, open_pool
from app.errors import ScorekeeperError
from app.prediction_log.inserter import Inserter
from app.prediction_log.shipper import Shipper
from app.settings import Settings
from app.spool.journal import Journal
from app.spool.reader import SpoolReader, find_segments, is_unfinished
from app.spool.segment import HEADER_BYTES, Damage, Segment, decode_header, read_frames
from app.tasks import own_task

LOOK_SECONDS = 0.05
"""Between two looks at how far the drain has come."""

FIND_TRIES = 10
"""Looks at a directory from which a running server removes a file meanwhile."""


class SpoolCommandError(ScorekeeperError):
    """The command cannot do what was asked; the message says why."""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("spool", help="look at a spool, or bring it to PostgreSQL without a server")
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for name, description in (
        ("status", "Show what a spool holds, also of a server that runs."),
        ("verify", "Read every frame of a spool and show damage, also of a server that runs; 1: damage."),
        ("drain", "Store what a spool holds at DATABASE_URL, and remove it; 0: nothing is left."),
    ):
        action = actions.add_parser(name, help=description, description=description)
        action.add_argument("--data-dir", type=Path, help="the directory that holds spool/ (default: DATA_DIR)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Show, verify or drain."""
    directory = (options.data_dir or Settings.from_env().data_dir) / "spool"
    if options.action == "status":
        return show_spool(directory)
    if options.action == "verify":
        return verify_spool(directory)
    return asyncio.run(drain_spool(directory, Settings.from_env().database_url))


def show_spool(directory: Path, console: Console | None = None) -> int:
    """Print what a spool holds; return 0."""
    console = console or Console()
    is_used = is_locked(directory)
    segments, rows = count_spool(directory)
    table = Table(title=f"spool {directory}", show_header=False)
    table.add_row("in use by a server", "yes" if is_used else "no")
    table.add_row("segments", f"{len(segments):,}")
    table.add_row("bytes", f"{sum(segment.readable_end for segment in segments):,}")
    table.add_row("rows not known to be shipped", f"{rows:,}")
    for name in ("dead", "corrupt"):
        table.add_row(f"files in {name}/", f"{count_aside(directory, name):,}")
    console.print(table)
    if is_used and rows:
        console.print("A server keeps shipped segments a while: its prediction_log_pending_rows says what still waits.")
    return 0


def verify_spool(directory: Path, console: Console | None = None) -> int:
    """Read every frame and print what is no valid one; return 1 when something promised is damaged, else 0."""
    console = console or Console()
    segments, _ = count_spool(directory)
    rows = damaged = 0
    for segment in track(segments, description="verify", console=console, transient=True):
        try:
            found, damages = read_segment(segment)
        except FileNotFoundError:
            continue  # a running server has shipped and removed it
        rows += found
        for damage in damages:
            where = f"{segment.path.name}: bytes {damage.start} to {damage.end}"
            if is_unfinished(segment, damage):
                console.print(f"{where} are an unfinished end, which nobody was promised")
            else:
                damaged += 1
                console.print(f"{where} are damaged")
    console.print(f"{len(segments):,} segments, {rows:,} valid rows, {damaged:,} damaged places")
    return 1 if damaged else 0


async def drain_spool(directory: Path, url: str | None, console: Console | None = None) -> int:
    """Store everything at `url` and remove it; return 1 when something stays for a person. May be begun again."""
    console = console or Console()
    if url is None:
        raise SpoolCommandError("DATABASE_URL is not set: where should the spool be drained to?")
    count_spool(directory)
    with lock_spool(directory):
        await check_server(url)
        segments, spool = find_segments(directory)
        journal = Journal(directory, 0, None, segments, spool)  # not run: nothing is appended
        async with open_pool(url, max_size=1) as pool:
            await ship_spool(journal, Inserter(pool), console)
    for segment in journal.segments:
        console.print(f"{segment.path} stays: it is damaged, and what is damaged cannot be copied to corrupt/")
    aside = {name: count for name in ("dead", "corrupt") if (count := count_aside(directory, name))}
    for name, count in aside.items():
        console.print(f"{count:,} files stay in {directory / name}: a person must look at them")
    if journal.segments or aside:
        return 1
    console.print("the spool is empty")
    return 0


async def ship_spool(journal: Journal, inserter: Inserter, console: Console) -> None:
    """Ship what can be read; wait for a PostgreSQL that is away, give up on one that is not set up."""
    shipper = Shipper(journal, inserter)
    dead: list[str] = []
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        total = SpoolReader(journal.segments, journal.directory).count_recovered_rows()
        rows_bar = bar.add_task("rows", total=total)
        async with own_task(shipper.run(), "shipper", dead.append):
            while left := [segment for segment in journal.segments if not (segment.is_finished and segment.is_kept)]:
                remove_shipped(journal)
                if all(segment.retry_at > 0 for segment in left):
                    raise SpoolCommandError(f"{left[0].path} cannot be read now; everything else is shipped")
                bar.update(rows_bar, completed=total - shipper.pending_rows)
                if dead:
                    raise SpoolCommandError("the drain has ended by itself; nothing was removed unshipped")
                if shipper.failure is not None and shipper.failure.kind in ("configuration", "partition"):
                    raise SpoolCommandError(f"PostgreSQL is not set up for this release: {shipper.failure.reason}")
                await asyncio.sleep(LOOK_SECONDS)


def remove_shipped(journal: Journal) -> None:
    """Remove the segments of which PostgreSQL has everything, or dead/ and corrupt/ have."""
    for segment in list(journal.segments):
        if segment.shipped_at is not None:
            journal.segments.remove(segment)
            segment.path.unlink(missing_ok=True)


def count_spool(directory: Path) -> tuple["deque[Segment]", int]:
    """Return the segments and their rows, by the heads of their frames; a running server may go on meanwhile."""
    if not directory.is_dir():
        raise SpoolCommandError(f"{directory} is no spool")
    for _ in range(FIND_TRIES):
        try:
            segments, _ = find_segments(directory)
            return segments, SpoolReader(segments, directory).count_recovered_rows()
        except FileNotFoundError:
            continue
    raise SpoolCommandError(f"{directory} changes too fast to be read: try again")


def count_aside(directory: Path, name: str) -> int:
    """Count what was put aside for a person to look at."""
    return len(list((directory / name).glob("*")))


def read_segment(segment: Segment) -> tuple[int, list[Damage]]:
    """Return how many rows of a segment are valid, and what lies between, or is missing at its end."""
    data = segment.path.read_bytes()
    start = 0 if decode_header(data) is None else HEADER_BYTES
    frames, damages = read_frames(data[start:], start)
    if len(data) < segment.readable_end:
        damages.append(Damage(len(data), segment.readable_end))
    return sum(frame.rows for frame in frames), damages


def is_locked(directory: Path) -> bool:
    """Tell whether a process uses the spool, by trying its lock for an instant."""
    try:
        descriptor = os.open(directory / "LOCK", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def lock_spool(directory: Path) -> Iterator[None]:
    """Be the only process that uses the spool until exit."""
    descriptor = os.open(directory / "LOCK", os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SpoolCommandError(f"a server uses {directory} and ships it: stop it before you drain") from None
    try:
        yield
    finally:
        os.close(descriptor)
