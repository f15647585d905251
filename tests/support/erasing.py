"""Where values of rows can be found: in every table by SELECT, and in the bytes of every file of a spool."""

import io
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec
from rich.console import Console

from app.commands.erase import Wanted, erase
from app.prediction_log.record import Record
from app.spool.segment import read_frames
from tests.support.records import make_record

SECRETS = ("secret-feature", "secret-key", "secret-request")
"""What an erasure must leave nowhere."""


def make_secret(text: str = "secret-feature", *, external_id: str = "secret-key") -> Record:
    """Make a row whose values can be recognized anywhere."""
    return msgspec.structs.replace(
        make_record(external_id=external_id), features={"name": text, "n": 1.55}, request_id="secret-request"
    )


async def find_in_tables(connection: asyncpg.Connection, texts: Sequence[str]) -> list[str]:
    """Return the tables in which a text stands in any column."""
    tables = await connection.fetch(
        "SELECT quote_ident(relname) AS name FROM pg_class WHERE relkind IN ('r', 'p', 'm') "
        "AND relnamespace = 'public'::regnamespace"
    )
    found = []
    for table in tables:
        rows = await connection.fetch(f"SELECT one::text AS row FROM {table['name']} one")
        found += [table["name"] for row in rows if any(text in row["row"] for text in texts)]
    return sorted(set(found))


def find_in_files(directory: Path, texts: Sequence[str]) -> list[str]:
    """Return the files under a directory in whose bytes a text stands."""
    contents = {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}
    return [path for path, data in contents.items() if any(text.encode() in data for text in texts)]


def read_spooled_rows(directory: Path) -> list[dict[str, object]]:
    """Decode every row of every segment; a damaged place fails."""
    rows: list[dict[str, object]] = []
    for path in sorted(directory.glob("seg-*.log")):
        data = path.read_bytes()
        frames, damages = read_frames(data, 0)
        assert [(damage.start, damage.end > 48) for damage in damages] == [(0, False)], path
        rows += [row for frame in frames for row in msgspec.json.decode(b"[" + frame.payload + b"]")]
    return rows


async def fetch_row(connection: asyncpg.Connection, prediction_id: UUID) -> dict[str, object]:
    """Fetch what can tell who a stored row is about."""
    row = await connection.fetchrow(
        "SELECT features::text, external_id, request_id FROM prediction_log WHERE prediction_id = $1", prediction_id
    )
    assert row is not None, "the row is not stored"
    return dict(row)


BLANK = {"features": "{}", "external_id": None, "request_id": None}
"""An erased row, in those columns."""


async def run_erase(url: str, key: str | UUID, *, wait: float = 60, lost: tuple[UUID, ...] = ()) -> tuple[int, str]:
    """Run the command; return its status and what it printed."""
    external_id, prediction_id = (key, None) if isinstance(key, str) else (None, key)
    output = io.StringIO()
    status = await erase(url, Wanted(external_id, prediction_id, wait, lost), Console(file=output, width=200))
    return status, output.getvalue()
