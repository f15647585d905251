"""`scorekeeper spool`: show a spool, check it, or ship it to PostgreSQL without a server."""

import argparse
import asyncio
from pathlib import Path
from typing import get_args

import asyncpg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from app.commands.arguments import Commands
from app.database.pool import check_server, open_pool
from app.errors import ScorekeeperError
from app.prediction_log.eraser import Eraser, forget_empty_spool
from app.prediction_log.inserter import Inserter
from app.prediction_log.shipper import Shipper
from app.settings import Settings
from app.spool.reader import is_torn_tail
from app.spool.segment import HEADER_BYTES, Damage, Segment, decode_header, read_frames
from app.spool.spool import AsideFolder, Spool, SpoolInUseError, is_in_use, open_spool, read_spool
from app.tasks import own_task

LOOK_SECONDS = 0.05
"""Pause between two checks of the drain's progress."""

READ_TRIES = 10
"""Attempts to read a spool while a running server removes files from it."""

ASIDE_FOLDERS: tuple[AsideFolder, ...] = get_args(AsideFolder)


class SpoolCommandError(ScorekeeperError):
    """The command cannot do what was asked; the message says why."""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("spool", help="show or check a spool, or ship it to PostgreSQL without a server")
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for name, description in (
        ("status", "Show what a spool holds; a server may use it meanwhile."),
        ("verify", "Read every frame of a spool; exit status 1 if one is damaged. A server may use it meanwhile."),
        ("drain", "Store the rows of a spool at DATABASE_URL and remove them; exit status 0 if nothing is left."),
    ):
        action = actions.add_parser(name, help=description, description=description)
        action.add_argument("--data-dir", type=Path, help="the directory that holds spool/ (default: DATA_DIR)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Show, verify or drain the spool."""
    directory = (options.data_dir or Settings.from_env().data_dir) / "spool"
    if options.action == "status":
        return show_spool(directory)
    if options.action == "verify":
        return verify_spool(directory)
    return asyncio.run(drain_spool(directory, Settings.from_env().database_url))


def show_spool(directory: Path, console: Console | None = None) -> int:
    """Print what a spool holds; return 0."""
    console = console or Console()
    is_used = is_in_use(directory)
    spool, rows = _count_spool(directory)
    table = Table(title=f"spool {directory}", show_header=False)
    table.add_row("in use by a server", "yes" if is_used else "no")
    table.add_row("segments", f"{len(spool.segments):,}")
    table.add_row("bytes", f"{spool.used_bytes:,}")
    table.add_row("rows not known to be shipped", f"{rows:,}")
    for folder in ASIDE_FOLDERS:
        table.add_row(f"files in {folder}/", f"{spool.count_aside(folder):,}")
    console.print(table)
    if is_used and rows:
        console.print(
            "The server keeps shipped segments for a while: its metric prediction_log_pending_rows has the rows that "
            "are not shipped yet."
        )
    return 0


def verify_spool(directory: Path, console: Console | None = None) -> int:
    """Read every frame and print what is not valid; return 1 when promised rows are damaged, else 0."""
    console = console or Console()
    spool, _ = _count_spool(directory)
    rows = damaged = 0
    for segment in track(spool.segments, description="verify", console=console, transient=True):
        try:
            found, damages = _verify_segment(segment)
        except FileNotFoundError:
            continue  # a running server has shipped and removed it
        rows += found
        for damage in damages:
            where = f"{segment.path.name}: bytes {damage.start} to {damage.end}"
            if is_torn_tail(segment, damage):
                console.print(f"{where} are an unfinished write; its rows were never promised")
            else:
                damaged += 1
                console.print(f"{where} are damaged")
    console.print(f"{len(spool.segments):,} segments, {rows:,} valid rows, {damaged:,} damaged places")
    return 1 if damaged else 0


async def drain_spool(directory: Path, url: str | None, console: Console | None = None) -> int:
    """Store all rows at `url` and remove them; return 1 if files are left that a person must check. Can be repeated."""
    console = console or Console()
    if url is None:
        raise SpoolCommandError("DATABASE_URL is not set: set it to the database for the rows")
    _check_directory(directory)
    try:
        async with open_spool(directory) as spool:
            await check_server(url)
            async with open_pool(url, max_size=1) as pool:
                await _ship_spool(spool, pool, console)
                aside = {folder: count for folder in ASIDE_FOLDERS if (count := spool.count_aside(folder))}
                if not spool.segments and not aside:
                    await forget_empty_spool(pool, spool)
    except SpoolInUseError:
        raise SpoolCommandError(f"a server uses {directory} and ships it: stop the server before you drain") from None
    for segment in spool.segments:
        console.print(f"{segment.path} is left: it is damaged, and the damaged bytes could not be copied to corrupt/")
    for folder, count in aside.items():
        console.print(f"{count:,} files are left in {directory / folder}: a person must check them")
    if spool.segments or aside:
        return 1
    console.print("the spool is empty")
    return 0


async def _ship_spool(spool: Spool, pool: asyncpg.Pool, console: Console) -> None:
    """Ship what can be read. Wait while PostgreSQL is unreachable; raise SpoolCommandError when it is not set up."""
    shipper = Shipper(spool, Inserter(pool), Eraser(spool, pool))
    dead: list[str] = []
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        total = spool.count_older_rows()
        rows_bar = bar.add_task("rows", total=total)
        async with own_task(shipper.run(), "shipper", dead.append):
            while left := [one for one in spool.segments if not (one.is_finished and one.progress.is_kept)]:
                await _remove_shipped(spool)
                if all(segment.progress.retry_at > 0 for segment in left):
                    raise SpoolCommandError(f"{left[0].path} cannot be read now; all other segments are shipped")
                bar.update(rows_bar, completed=total - spool.pending_rows)
                if dead:
                    raise SpoolCommandError("the drain has failed; only shipped segments were removed")
                if shipper.error is not None and shipper.error.kind in ("configuration", "partition"):
                    raise SpoolCommandError(f"PostgreSQL is not set up for this release: {shipper.error.reason}")
                await asyncio.sleep(LOOK_SECONDS)


async def _remove_shipped(spool: Spool) -> None:
    """Remove the segments whose rows are all in PostgreSQL, dead/ or corrupt/."""
    for segment in list(spool.segments):
        if segment.progress.shipped_at is not None:
            try:
                await spool.remove(segment)
            except OSError as error:
                reason = f"{segment.path} is shipped, but cannot be removed: {error.strerror}"
                raise SpoolCommandError(reason) from error


def _count_spool(directory: Path) -> tuple[Spool, int]:
    """Return the spool and its number of rows, read from the heads of frames; a server may use it meanwhile."""
    _check_directory(directory)
    for _ in range(READ_TRIES):
        try:
            spool = read_spool(directory)
        except FileNotFoundError:
            continue
        return spool, spool.count_older_rows()
    raise SpoolCommandError(f"{directory} changes too fast to be read: try again")


def _check_directory(directory: Path) -> None:
    """Raise SpoolCommandError when there is no spool: only a server creates one."""
    if not directory.is_dir():
        raise SpoolCommandError(f"{directory} is not a spool")


def _verify_segment(segment: Segment) -> tuple[int, list[Damage]]:
    """Return the number of valid rows of a segment, and its damaged places, including bytes missing at its end."""
    data = segment.path.read_bytes()
    start = 0 if decode_header(data) is None else HEADER_BYTES
    frames, damages = read_frames(data[start:], start)
    if len(data) < segment.readable_end:
        damages.append(Damage(len(data), segment.readable_end))
    return sum(frame.rows for frame in frames), damages
