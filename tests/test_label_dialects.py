"""Files of labels as spreadsheets, databases and pandas write them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.exchange.label_batch import EmptyLabel, LabelBatch, read_batch
from app.exchange.label_files import Columns, LabelFileError, name_format, open_labels
from app.exchange.text_files import TextForm

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def read(path: Path, empty_label: EmptyLabel = "refuse", form: TextForm | None = None) -> LabelBatch:
    with open_labels(path, name_format(path), Columns(), form) as file:
        return read_batch(list(file.rows), Columns(), empty_label, NOON)


def decode(batch: LabelBatch, member: str) -> list[object]:
    return [msgspec.json.decode(line)[member] for line in batch.lines]


def list_faults(batch: LabelBatch) -> list[tuple[str, str]]:
    return [(row.place, fault) for row, fault in batch.malformed]


@pytest.mark.parametrize(
    "header", ["external_id,label,label", "external_id,label,external_id", "label,external_id,label"]
)
def test_file_is_refused_when_a_column_is_there_twice(tmp_path: Path, header: str) -> None:
    (tmp_path / "labels.csv").write_text(f"{header}\na,1,0\n")

    with pytest.raises(LabelFileError, match="more than once"):
        read(tmp_path / "labels.csv")


def test_parquet_file_is_refused_when_a_column_is_there_twice(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["1"]), pa.array(["0"])]
    pq.write_table(pa.Table.from_arrays(columns, ["external_id", "label", "label"]), tmp_path / "labels.parquet")

    with pytest.raises(LabelFileError, match="has the column label more than once"):
        read(tmp_path / "labels.parquet")


def test_line_is_malformed_when_a_member_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "labels.ndjson").write_text('{"external_id": "a", "label": 1, "label": 0}\n')

    assert list_faults(read(tmp_path / "labels.ndjson")) == [("line 1", "label is there more than once")]


def test_columns_that_are_not_used_may_be_there_twice(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("external_id,note,label,note,\na,x,1,y,\n")

    assert decode(read(tmp_path / "labels.csv"), "label") == ["1"]


TIMES = {
    "postgresql": ("2024-05-01 12:00:00+00", NOON),
    "postgresql-fraction": ("2024-05-01 17:30:00.000125+05:30", NOON + timedelta(microseconds=125)),
    "bigquery": ("2024-05-01 12:00:00 UTC", NOON),
    "bigquery-fraction": ("2024-05-01 12:00:00.123456 UTC", NOON + timedelta(microseconds=123456)),
    "snowflake": ("2024-05-01 05:00:00.000 -0700", NOON),
    "snowflake-nanoseconds": ("2024-05-01 12:00:00.123456789 +0000", NOON + timedelta(microseconds=123456)),
    "snowflake-z": ("2024-05-01 12:00:00.000 Z", NOON),
    "iso": ("2024-05-01T12:00:00Z", NOON),
}


@pytest.mark.parametrize(("text", "at"), [pytest.param(*case, id=name) for name, case in TIMES.items()])
def test_time_is_read_as_databases_write_it(tmp_path: Path, text: str, at: datetime) -> None:
    (tmp_path / "labels.csv").write_text(f"external_id,label,observed_at\na,1,{text}\n")

    batch = read(tmp_path / "labels.csv")

    assert list_faults(batch) == []
    assert [datetime.fromisoformat(str(time)) for time in decode(batch, "observed_at")] == [at]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns", "Europe/Amsterdam"])
async def test_time_is_read_as_postgresql_writes_it(connection: asyncpg.Connection, tmp_path: Path, zone: str) -> None:
    await connection.execute(f"SET TIME ZONE '{zone}'")
    moments = [NOON, NOON + timedelta(microseconds=1), datetime(1901, 1, 1, tzinfo=UTC)]  # then with odd offsets
    written = [await connection.fetchval("SELECT $1::timestamptz::text", moment) for moment in moments]
    rows = "".join(f"a,1,{text}\n" for text in written)
    (tmp_path / "labels.csv").write_text(f"external_id,label,observed_at\n{rows}")

    batch = read(tmp_path / "labels.csv")

    assert list_faults(batch) == []
    assert [datetime.fromisoformat(str(time)) for time in decode(batch, "observed_at")] == moments


@pytest.mark.parametrize(
    "text",
    ["2024-05-01 12:00:00", "2024-13-01 12:00:00+00", "2024-05-01 25:00:00 UTC", "0001-01-01 00:00:00+14", "infinity"],
)
def test_row_is_malformed_when_its_time_means_no_moment(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(f"external_id,label,observed_at\na,1,{text}\n")

    [(place, fault)] = list_faults(read(tmp_path / "labels.csv"))

    assert place == "line 2"
    assert fault.startswith("observed_at: ")


@pytest.mark.parametrize("key", ["1.0E+05", "1E+11", "1.23457e+16"])
def test_row_is_malformed_when_a_spreadsheet_has_shortened_its_key(tmp_path: Path, key: str) -> None:
    (tmp_path / "labels.csv").write_text(f"external_id,label\norder-1,1\n{key},1\n")

    batch = read(tmp_path / "labels.csv")

    fault = "external_id: a number that a spreadsheet has shortened; write the column as text"
    assert list_faults(batch) == [("line 3", fault)]


@pytest.mark.parametrize(
    ("keys", "given"),
    [
        (pa.array([Decimal(100000), Decimal(10) ** 37], pa.decimal128(38, 0)), ["100000", "1" + "0" * 37]),
        (pa.array([Decimal("17.00"), Decimal("18.00")], pa.decimal128(10, 2)), ["17", "18"]),
        (pa.array([100000.0, 2.0**53 - 1]), ["100000", "9007199254740991"]),
        (pa.array([1, 2**63 - 1]), ["1", "9223372036854775807"]),
    ],
    ids=["decimal", "decimal-with-places", "double", "integer"],
)
def test_keys_that_are_numbers_in_parquet_are_the_texts_that_were_sent(
    tmp_path: Path, keys: pa.Array, given: Sequence[str]
) -> None:
    pq.write_table(pa.table({"external_id": keys, "label": ["1", "0"]}), tmp_path / "labels.parquet")

    batch = read(tmp_path / "labels.parquet")

    assert decode(batch, "external_id") == given


@pytest.mark.parametrize("key", [17.5, 2.0**53, float("inf"), True, Decimal("1.5")])
def test_row_is_malformed_when_its_key_cannot_be_what_was_sent(tmp_path: Path, key: object) -> None:
    pq.write_table(pa.table({"external_id": [key], "label": ["1"]}), tmp_path / "labels.parquet")

    [(place, fault)] = list_faults(read(tmp_path / "labels.parquet"))

    assert place == "row 1"
    assert fault.startswith("external_id: ")


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (pa.array([Decimal(1), Decimal(0)], pa.decimal128(38, 0)), [1, 0]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([1.0, 0.0]), [1.0, 0.0]),
    ],
    ids=["decimal", "boolean", "double"],
)
def test_labels_in_parquet_are_sent_whatever_their_type(
    tmp_path: Path, labels: pa.Array, given: Sequence[object]
) -> None:
    pq.write_table(pa.table({"external_id": ["a", "b"], "label": labels}), tmp_path / "labels.parquet")

    assert decode(read(tmp_path / "labels.parquet"), "label") == given


@pytest.mark.parametrize("text", ["", "NaN", "nan"])
def test_label_of_a_csv_file_is_empty_when_it_is_nan(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(f"external_id,label,observed_at\nnan,1,NaT\nb,{text},\n")

    refused, skipped = read(tmp_path / "labels.csv"), read(tmp_path / "labels.csv", "skip")

    assert [place for place, _ in list_faults(refused)] == ["line 3"]
    assert (decode(skipped, "external_id"), skipped.empty) == (["nan"], 1)


def test_label_of_a_parquet_file_is_empty_when_it_is_nan(tmp_path: Path) -> None:
    table = pa.table({"external_id": ["a", "b", "c"], "label": pa.array([1.0, float("nan"), None])})
    pq.write_table(table, tmp_path / "labels.parquet")

    batch = read(tmp_path / "labels.parquet", "skip")

    assert (decode(batch, "external_id"), batch.empty) == (["a"], 2)


def test_nan_as_text_is_sent_when_json_has_it(tmp_path: Path) -> None:
    """There, null withdraws; a text is a class like any other, which the server refuses if the model lacks it."""
    (tmp_path / "labels.ndjson").write_text(
        '{"external_id": "a", "label": "nan"}\n{"external_id": "b", "label": NaN}\n'
    )

    batch = read(tmp_path / "labels.ndjson", "withdraw")

    assert decode(batch, "label") == ["nan"]
    assert [place for place, _ in list_faults(batch)] == ["line 2"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_delimiter_and_encoding_are_recognized(tmp_path: Path, delimiter: str, encoding: str) -> None:
    rows = [["note; or, not", "external_id", "label"], ["größe", "straße, 7", "1"], ["", "日本", "0"]]
    text = "".join(delimiter.join(f'"{cell}"' for cell in row) + "\r\n" for row in rows)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))

    batch = read(tmp_path / "labels.csv")

    assert list_faults(batch) == []
    assert (decode(batch, "external_id"), decode(batch, "label")) == (["straße, 7", "日本"], ["1", "0"])
    assert [row.place for row in batch.rows] == ["line 2", "line 3"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_encoding_of_lines_is_recognized(tmp_path: Path, encoding: str) -> None:
    text = '{"external_id": "日本", "label": 1}\r\n\r\n{"external_id": "b", "label": 0}'
    (tmp_path / "labels.ndjson").write_bytes(text.encode(encoding))

    batch = read(tmp_path / "labels.ndjson")

    assert decode(batch, "external_id") == ["日本", "b"]
    assert [row.place for row in batch.rows] == ["line 1", "line 3"]


def test_delimiter_is_what_is_said(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("external_id~label\na,b~1\n")

    batch = read(tmp_path / "labels.tsv", form=TextForm(delimiter="~"))

    assert decode(batch, "external_id") == ["a,b"]


def test_file_that_is_not_utf_8_asks_for_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("external_id,label\nstraße,1\n".encode("cp1252"))

    with pytest.raises(LabelFileError, match="give its --encoding, such as cp1252"):
        read(tmp_path / "labels.csv")

    assert decode(read(tmp_path / "labels.csv", form=TextForm("cp1252")), "external_id") == ["straße"]
