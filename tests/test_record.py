from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import pytest

from app.prediction_log.record import BYTES_TOGETHER, Record, encode_records


def make_records(count: int, features: int) -> list[Record]:
    values: dict[str, float | None] = {f"feature_{index}": 1.5 for index in range(features)}
    now = datetime.now(UTC)
    return [Record(uuid4(), now, "m", "1", "a", 0.5, [0.5, 0.5], values, None, "request") for _ in range(count)]


@pytest.mark.parametrize(("count", "features"), [(1, 5), (500, 5), (501, 5), (1700, 5), (300, 3000)])
def test_encoded_records_are_all_there_in_order_and_in_short_parts(count: int, features: int) -> None:
    records = make_records(count, features)

    parts = encode_records(records)

    rows = [row for part in parts for row in msgspec.json.decode(b"[" + part.payload + b"]", type=list[Record])]
    assert rows == records
    assert sum(part.count for part in parts) == count
    assert max(len(part.payload) for part in parts) <= BYTES_TOGETHER
    assert max(part.count for part in parts) <= 500


def test_a_record_too_long_for_a_part_is_one_by_itself() -> None:
    records = make_records(2, 200_000)

    parts = encode_records(records)

    assert [part.count for part in parts] == [1, 1]
