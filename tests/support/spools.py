"""A spool with its writer and its shipper in this process, on a real disk and a real PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from app.prediction_log import eraser, shipper
from app.prediction_log.eraser import Eraser
from app.prediction_log.inserter import Inserter
from app.prediction_log.record import Record, encode_records
from app.prediction_log.shipper import Shipper
from app.spool import journal
from app.spool.journal import Journal, open_journal
from app.spool.segment import encode_frame
from app.spool.spool import Spool, open_spool
from app.tasks import own_task
from tests.support.records import count_rows

MAX_BYTES = 256 * 1024**2


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the intervals at which writer, shipper and eraser look for work."""
    monkeypatch.setattr(journal, "LIMIT_CHECK_SECONDS", 0.02)
    monkeypatch.setattr(shipper, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(eraser, "ERASURE_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(eraser, "ERASURE_RETRY_SECONDS", 0.1)


@asynccontextmanager
async def write_spool(directory: Path) -> AsyncIterator[tuple[Spool, Journal]]:
    """Open a spool and its writer until exit."""
    async with open_spool(directory) as spool, open_journal(spool, MAX_BYTES, True, pytest.fail) as journal:
        yield spool, journal


@asynccontextmanager
async def ship(spool: Spool, pool: asyncpg.Pool) -> AsyncIterator[Shipper]:
    """Ship a spool until exit, and work on requests to erase."""
    shipper = Shipper(spool, Inserter(pool), Eraser(spool, pool))
    async with own_task(shipper.run(), "shipper", pytest.fail):
        yield shipper


async def append(journal: Journal, *records: Record) -> None:
    """Append one frame."""
    (rows,) = encode_records(records)
    await journal.append(encode_frame(rows.payload, rows.count), rows.count)


async def has_shipped(spool: Spool) -> bool:
    """Tell whether all rows are stored or put aside."""
    return spool.pending_rows == 0


async def is_known(connection: asyncpg.Connection) -> bool:
    """Tell whether one spool is registered."""
    return await count_rows(connection, "log_spool") == 1
