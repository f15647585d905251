"""A row of the prediction log, its encoding as JSON, and its id."""

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

TEXT_LIMIT = 200
"""Most characters of an external id: enough for any key, and small in the index."""

FeatureValue = bool | int | float | str | None
FeatureValues = Mapping[str, FeatureValue | list[FeatureValue]]
"""{name of the feature: value}; a missing number is None."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One prediction: each field is a column of the table `prediction_log`, None is NULL.

    `created_at` is the time in `prediction_id`, a UUIDv7.
    """

    prediction_id: UUID
    created_at: datetime
    model_name: str
    model_version: str
    predicted_class: str
    score: float
    probabilities: list[float]
    features: FeatureValues
    external_id: str | None
    request_id: str
    role: str = "live"


ERASED_VALUES = {"features": "'{}'::jsonb", "external_id": "NULL", "request_id": "NULL"}
"""What an erased row has, in SQL, in the columns that can tell who it is about."""


class Rows(msgspec.Struct, frozen=True, gc=False):
    """Encoded records: `payload` has `count` JSON objects joined by commas, for the spool and for PostgreSQL."""

    payload: bytes
    count: int


ROWS_TOGETHER = 500
"""Most records encoded together, about 200 KiB: frames of the spool and statements are not much longer."""

VALUES_TOGETHER = 20_000
"""Most features and probabilities that are encoded together: a few milliseconds, for which no other thread runs."""

BYTES_TOGETHER = 4 * 1024**2
"""Records with very many features are split at this size, far below the longest frame that the spool reads."""


def encode_records(records: Sequence[Record]) -> list[Rows]:
    """Encode records. The caller has checked that PostgreSQL can store their values."""
    if not records:
        return [Rows(b"", 0)]
    values = len(records[0].probabilities) + len(records[0].features)
    together = max(1, min(ROWS_TOGETHER, VALUES_TOGETHER // values))
    if len(records) <= together:
        payload = _encode(records)[1:-1]
        if len(payload) <= BYTES_TOGETHER or len(records) == 1:
            return [Rows(payload, len(records))]
        middle = len(records) // 2
        return encode_records(records[:middle]) + encode_records(records[middle:])
    parts = [records[start : start + together] for start in range(0, len(records), together)]
    return [rows for part in parts for rows in encode_records(part)]


_encode = msgspec.json.Encoder().encode


class RowDate(msgspec.Struct, frozen=True):
    """The part of an encoded record that shows its partition and its age."""

    prediction_id: UUID
    created_at: datetime


def read_clock_ms() -> int:
    """Return the server's time in milliseconds since 1970; all rows of a batch get the same time."""
    return time.time_ns() // 1_000_000


def make_prediction_ids(clock_ms: int, count: int) -> list[UUID]:
    """Make `count` ascending UUIDv7 of this time, so that rows keep the order of their batch.

    RFC 9562, section 6.2, method 2: within a batch, the random part increases by random steps.
    """
    chance = secrets.token_bytes(10 + 4 * count)
    tail = clock_ms << 80 | 0x7000 << 64 | (int.from_bytes(chance[:2]) & 0xFFF) << 64 | 0b10 << 62
    tail += int.from_bytes(chance[2:10]) >> 3  # the highest bit stays 0: room for 2**29 steps of up to 2**32
    ids = []
    for step in memoryview(chance[10:]).cast("I"):
        tail += step + 1
        ids.append(UUID(int=tail))
    return ids


def read_id_time(prediction_id: UUID) -> datetime | None:
    """Return the time in a UUIDv7; None for other UUIDs, which are not ids of predictions."""
    if prediction_id.version != 7:
        return None
    return time_from_ms(prediction_id.int >> 80)


def time_from_ms(clock_ms: int) -> datetime:
    """Return the time of milliseconds since 1970, at most the end of the year 9999."""
    return EPOCH + timedelta(milliseconds=min(clock_ms, 253_402_300_799_999))


def is_storable(text: str, limit: int = TEXT_LIMIT) -> bool:
    """Return whether PostgreSQL can store this text: no NUL. The JSON decoder has checked that it is valid Unicode."""
    return len(text) <= limit and "\x00" not in text
