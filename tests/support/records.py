"""Rows of the log and their labels for tests, made without a server, at any time."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from app.database.queries import Connection
from app.prediction_log.queries import insert_rows, make_partitions
from app.prediction_log.record import EPOCH, Record, encode_records, make_prediction_ids, time_from_ms
from app.quality.label_targets import Label
from app.quality.refresh import KnownVersion
from app.serving.queries import fetch_versions, register_version

MODEL, VERSION = "car-loan", "1"
"""The demo model; its classes are 0 and 1, the positive one is 1."""

PARENTS = ("prediction_log", "prediction_label", "prediction_label_history")
"""Tables that are partitioned by day."""


def make_record(
    at: datetime | None = None,
    *,
    predicted: str = "1",
    external_id: str | None = None,
    role: str = "live",
    prediction_id: UUID | None = None,
    model: str = MODEL,
    score: float = 0.75,
) -> Record:
    """Make a row predicted `at`, by default now; `prediction_id` overrides the random one of that instant."""
    clock_ms = round_ms(at or datetime.now(UTC))
    return Record(
        prediction_id=prediction_id or make_prediction_ids(clock_ms, 1)[0],
        created_at=time_from_ms(clock_ms),
        model_name=model,
        model_version=VERSION,
        predicted_class=predicted,
        score=score,
        probabilities=[1 - score, score],
        features={"car_value": 1.5},
        external_id=external_id,
        request_id="test",
        role=role,
    )


def round_ms(at: datetime) -> int:
    """Return whole milliseconds since 1970, rounded down, exactly."""
    return (at - EPOCH) // timedelta(milliseconds=1)


async def store(connection: Connection, *records: Record) -> None:
    """Store rows, their partitions made first."""
    days = [record.created_at.date() for record in records]
    await make_partitions(connection, min(days), max(days))
    await insert_records(connection, records)


async def insert_records(connection: Connection, records: Sequence[Record]) -> int:
    """Store rows as the log does; return how many were not there already."""
    return await insert_rows(connection, [rows.payload for rows in encode_records(records)], timeout=10)


async def register_demo(connection: Connection, model: str = MODEL, classes: Sequence[int | str] = (0, 1)) -> None:
    """Record a version as a server that loads it does."""
    positive = str(classes[-1]) if len(classes) == 2 else None
    assert await register_version(
        connection, model, VERSION, "0" * 64, classes, positive, [{"name": "f0", "type": "number"}]
    )


async def fetch_known(connection: Connection) -> list[KnownVersion]:
    """Fetch every registered version as the quality job takes them."""
    return [KnownVersion(*row) for row in await fetch_versions(connection)]


def make_label(key: UUID | str, label: str | None, observed_at: datetime, received_at: datetime | None = None) -> Label:
    """Make a label for a prediction's id, or for a text, the client's own key."""
    prediction_id, external_id = (key, None) if isinstance(key, UUID) else (None, key)
    return Label(prediction_id, external_id, label, observed_at, received_at or observed_at)


async def count_rows(connection: Connection, table: str) -> int:
    """Count all rows of a table."""
    rows: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    return rows


async def list_partitions(connection: Connection, parent: str) -> dict[str, str]:
    """Return the bounds of a table's partitions by name, ascending."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds FROM pg_inherits i "
        "JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::text::regclass ORDER BY c.relname",
        parent,
    )
    return {row["relname"]: row["bounds"] for row in rows}
