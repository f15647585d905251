"""`scorekeeper erase`: remove what tells who a prediction is about, from the database and from every spool."""

import argparse
import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

import asyncpg
from rich.console import Console

from app.commands.arguments import Commands, at_least
from app.database.migrate import read_schema_state
from app.database.pool import check_server, open_database_url, open_pool
from app.database.queries import Connection
from app.errors import ScorekeeperError
from app.prediction_log import erasure_queries
from app.prediction_log.erased_rows import Search, digest_external_id
from app.prediction_log.eraser import slice_ids
from app.quality.key_label_queries import list_keys, remove_under_key, remove_unused_keys
from app.quality.label_queries import remove_history
from app.quality.waiting_queries import remove_pending_of
from app.settings import Settings

INCOMPLETE = 3
"""Exit status when a spool has not reported; 1 and 2 are for errors and wrong usage, as in every command."""

STATEMENT_SECONDS = 600.0
"""Limit for each statement; to find the rows of one key in 800 days takes less than a second."""

SALT_BYTES = 32

POLL_SECONDS = 0.2
"""Pause between two looks at the reports; a replica looks for requests once a second."""


class EraseCommandError(ScorekeeperError):
    """The command cannot do what was asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to erase (one of the two ids is set), how long to wait for spools, and which of them are lost."""

    external_id: str | None
    prediction_id: UUID | None
    wait_seconds: float
    lost_spools: Sequence[UUID] = ()


@dataclass(slots=True)
class Removed:
    """What was removed from the database."""

    rows: int = 0
    history: int = 0
    pending: int = 0


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "erase",
        help="remove what tells who a prediction is about",
        description=(
            "Remove features, external id and request id of predictions, and their waiting labels, from the database "
            "and from every spool, while servers run. Exit status 3 names a spool that has not reported."
        ),
    )
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument("--external-id", type=_text, metavar="ID", help="all predictions under this key of the client")
    key.add_argument("--prediction-id", type=UUID, metavar="ID", help="this prediction")
    parser.add_argument(
        "--wait", type=at_least(0, float), default=60.0, metavar="SECONDS", help="for reports (default: %(default)s)"
    )
    parser.add_argument(
        "--lost",
        type=UUID,
        action="append",
        default=[],
        metavar="SPOOL",
        help="a spool whose disk is lost or destroyed, by the id that this command prints: no longer wait for it",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Erase."""
    wanted = Wanted(options.external_id, options.prediction_id, options.wait, options.lost)
    return asyncio.run(_run(wanted, Settings.from_env()))


def _text(argument: str) -> str:
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not valid UTF-8") from None
    return argument


async def _run(wanted: Wanted, settings: Settings) -> int:
    async with open_database_url(settings.database_url, settings.data_dir, must_exist=True) as url:
        return await erase(url, wanted)


async def erase(url: str, wanted: Wanted, console: Console | None = None) -> int:
    """Erase predictions everywhere and print what was removed; return 0, or INCOMPLETE when a spool is missing."""
    console = console or Console()
    removed = Removed()
    await check_server(url)
    try:
        async with open_pool(url, max_size=1) as pool, pool.acquire(timeout=10) as connection:
            await _prepare(connection, wanted.lost_spools)
            with console.status("waiting for the reports of all spools"):
                spools = await _erase_everywhere(connection, wanted, removed)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise EraseCommandError(f"not everything is erased, run the command again: {error}") from error
    console.print(
        f"erased in the database: {removed.rows:,} predictions, {removed.pending:,} waiting labels, "
        f"{removed.history:,} labels of the history"
    )
    for spool in spools:
        console.print(_describe_spool(spool), soft_wrap=True, markup=False, highlight=False)
    return INCOMPLETE if any(spool["copies"] is None for spool in spools) else 0


async def _prepare(connection: Connection, lost_spools: Sequence[UUID]) -> None:
    if await read_schema_state(connection) == "behind":
        raise EraseCommandError("the database schema is behind: run `alembic upgrade head`")
    for spool_id in lost_spools:
        if not await erasure_queries.forget_spool(connection, spool_id):
            raise EraseCommandError(f"no spool has the id {spool_id}")


async def _erase_everywhere(connection: Connection, wanted: Wanted, removed: Removed) -> list[asyncpg.Record]:
    """Erase in the database, wait for every spool, and return their reports.

    A row can be stored after the first look at the database, and its spool can have removed its file before it was
    asked. So the database is looked at again at the end; rows that came meanwhile are erased in the same way.
    """
    deadline = time.monotonic() + wanted.wait_seconds
    ids = await _find_predictions(connection, wanted)
    erasure_id = await _request(connection, ids, wanted.external_id, removed)
    spools = await _wait(connection, erasure_id, deadline)
    await _remove_labels(connection, erasure_id, wanted.external_id, removed)  # of what the spools have found too
    if wanted.external_id is not None and (ids := await _find_predictions(connection, wanted)):
        second_id = await _request(connection, ids, None, removed)
        seconds = await _wait(connection, second_id, deadline)
        missing = {spool["spool_id"] for spool in spools if spool["copies"] is None}
        spools = [spool for spool in spools if spool["spool_id"] in missing] + [
            spool for spool in seconds if spool["spool_id"] not in missing
        ]
    return spools


async def _find_predictions(connection: Connection, wanted: Wanted) -> list[UUID]:
    if wanted.prediction_id is not None:
        return [wanted.prediction_id]
    assert wanted.external_id is not None
    return await erasure_queries.find_rows(connection, wanted.external_id, STATEMENT_SECONDS)


async def _request(connection: Connection, ids: Sequence[UUID], external_id: str | None, removed: Removed) -> UUID:
    """Erase predictions in the database, then ask every spool to erase them, and those under an external id."""
    erasure_id = uuid4()
    for some in slice_ids(ids):
        keys = await list_keys(connection, some)
        async with connection.transaction():
            removed.rows += await erasure_queries.erase_rows(connection, erasure_id, some, STATEMENT_SECONDS)
        removed.pending += await remove_unused_keys(connection, keys)  # they were about these predictions only
    await _remove_labels(connection, erasure_id, external_id, removed)
    salt = secrets.token_bytes(SALT_BYTES)
    search = None if external_id is None else Search(erasure_id, salt, digest_external_id(external_id, salt))
    async with connection.transaction():
        await erasure_queries.add_request(connection, erasure_id, search)
    return erasure_id


async def _remove_labels(connection: Connection, erasure_id: UUID, external_id: str | None, removed: Removed) -> None:
    """Remove the waiting labels and the history of labels; the label that counts stays, as the numbers need it."""
    ids = sorted(await erasure_queries.fetch_erased(connection, [erasure_id]))
    removed.history += await remove_history(connection, ids)
    removed.pending += await remove_pending_of(connection, ids, external_id)
    if external_id is not None:
        removed.pending += await remove_under_key(connection, external_id)


async def _wait(connection: Connection, erasure_id: UUID, deadline: float) -> list[asyncpg.Record]:
    """Return the reports of all spools when they are complete, or what there is at the deadline (monotonic)."""
    while True:
        spools = await erasure_queries.fetch_reports(connection, erasure_id)
        is_complete = all(spool["copies"] is not None for spool in spools)
        if is_complete or time.monotonic() > deadline:
            await erasure_queries.finish_requests(connection)
            return spools
        await asyncio.sleep(POLL_SECONDS)


def _describe_spool(spool: asyncpg.Record) -> str:
    if spool["copies"] is not None:
        return f"{spool['place']}: {spool['copies']:,} copies erased"
    return (
        f"{spool['place']} has not reported (spool {spool['spool_id']}, last seen {spool['seen_at']:%Y-%m-%d %H:%M} "
        "UTC): it erases its copies when it runs again; run this command again then"
    )
