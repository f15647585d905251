"""A row of the prediction log on its way to PostgreSQL, and the ids of rows."""

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

TEXT_LIMIT = 200
"""Characters of an external id: enough for any key, and an index entry that stays small."""


FeatureValues = Mapping[str, bool | int | float | str | None]
"""By the name of the feature; a missing number is None."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One prediction: each field is a column of the table `prediction_log`, None a NULL.

    `created_at` is the instant of `prediction_id`, a UUIDv7.
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


class Rows(msgspec.Struct, frozen=True, gc=False):
    """Encoded records: `payload` is `count` JSON objects joined by commas, as spool and PostgreSQL take them."""

    payload: bytes
    count: int


ROWS_TOGETHER = 500
"""Records encoded together, about 200 KiB: no frame of the spool and no statement is much longer."""


BYTES_TOGETHER = 4 * 1024**2
"""Rows of very many features are encoded fewer together, to stay far from the longest frame that the spool reads."""


def encode_records(records: Sequence[Record]) -> list[Rows]:
    """Encode records; whatever they hold is storable by then."""
    if len(records) <= ROWS_TOGETHER:
        payload = _encode(records)[1:-1]
        if len(payload) <= BYTES_TOGETHER or len(records) == 1:
            return [Rows(payload, len(records))]
        middle = len(records) // 2
        return encode_records(records[:middle]) + encode_records(records[middle:])
    parts = [records[start : start + ROWS_TOGETHER] for start in range(0, len(records), ROWS_TOGETHER)]
    return [rows for part in parts for rows in encode_records(part)]


_encode = msgspec.json.Encoder().encode


class RowDate(msgspec.Struct, frozen=True):
    """Of an encoded record, what tells its partition and its age."""

    prediction_id: UUID
    created_at: datetime


def read_clock_ms() -> int:
    """Return the server's clock in milliseconds, the one reading that dates every row of a request."""
    return time.time_ns() // 1_000_000


def make_prediction_ids(clock_ms: int, count: int) -> list[UUID]:
    """Make `count` UUIDv7 of this instant, ascending, so that rows keep the order of their batch.

    RFC 9562, section 6.2, method 2: the random part is counted up by random steps within one batch.
    """
    chance = secrets.token_bytes(10 + 4 * count)
    tail = clock_ms << 80 | 0x7000 << 64 | (int.from_bytes(chance[:2]) & 0xFFF) << 64 | 0b10 << 62
    tail += int.from_bytes(chance[2:10]) >> 3  # the free bit leaves room for 2**29 steps of up to 2**32
    ids = []
    for step in memoryview(chance[10:]).cast("I"):
        tail += step + 1
        ids.append(UUID(int=tail))
    return ids


def read_id_time(prediction_id: UUID) -> datetime | None:
    """Return the instant in a UUIDv7; None for another kind of UUID, which no prediction of ours has."""
    if prediction_id.version != 7:
        return None
    return time_from_ms(prediction_id.int >> 80)


def time_from_ms(clock_ms: int) -> datetime:
    """Return the instant of a clock reading; years beyond 9999 count as the last one."""
    return EPOCH + timedelta(milliseconds=min(clock_ms, 253_402_300_799_999))


def is_storable(text: str, limit: int = TEXT_LIMIT) -> bool:
    """Return whether PostgreSQL takes this text: no NUL; JSON decoding has made sure that it is valid Unicode."""
    return len(text) <= limit and "\x00" not in text
