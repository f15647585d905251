"""Files of labels: what each format gives, and what is refused before anything is sent."""

import gzip
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.exchange.label_batch import EmptyLabel, LabelBatch, read_batch
from app.exchange.label_files import Columns, LabelFileError, name_format, open_labels
from tests.support.processes import ROOT

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
ID = "01a20831-fa9f-756f-95c6-2c0bc96d68b3"
LABELS: Sequence[Mapping[str, object]] = [
    {"prediction_id": ID, "external_id": None, "label": "1", "observed_at": NOON},
    {"prediction_id": None, "external_id": 'say "hi",\norder-7', "label": "0", "observed_at": None},
]


def write_csv(path: Path) -> None:
    header, first = "prediction_id,external_id,note,label,observed_at", f"{ID},,x,1,2024-05-01T12:00:00Z"
    path.write_text(f'\ufeff{header}\r\n{first}\r\n\r\n,"say ""hi"",\norder-7",x,0,\r\n')


def write_ndjson(path: Path) -> None:
    path.write_bytes(b"\n\n".join(msgspec.json.encode(label) for label in LABELS))


def write_parquet(path: Path) -> None:
    observed_at = pa.array([NOON, None], pa.timestamp("ns", "Europe/Berlin"))
    columns = {name: [label[name] for label in LABELS] for name in ("prediction_id", "external_id", "label")}
    pq.write_table(pa.table({**columns, "note": ["x", "x"], "observed_at": observed_at}), path)


def compress(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_compressed(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_compressed


def read(path: Path, columns: Columns | None = None, empty_label: EmptyLabel = "refuse") -> LabelBatch:
    columns = columns or Columns()
    with open_labels(path, name_format(path), columns) as file:
        return read_batch(list(file.rows), columns, empty_label, NOON)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("labels.csv", write_csv),
        ("labels.csv.gz", compress(write_csv)),
        ("labels.ndjson", write_ndjson),
        ("labels.jsonl.gz", compress(write_ndjson)),
        ("labels.parquet", write_parquet),
    ],
)
def test_every_format_gives_the_same_lines(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)

    batch = read(tmp_path / name)

    assert batch.malformed == []
    lines = [msgspec.json.decode(line) for line in batch.lines]
    times = [datetime.fromisoformat(line.pop("observed_at")) for line in lines]
    assert lines == [{name: label[name] for name in line} for label, line in zip(LABELS, lines, strict=True)]
    assert times == [NOON, NOON + timedelta(microseconds=1)]


def test_places_are_lines_of_the_file_when_cells_and_blank_lines_shift_them(tmp_path: Path) -> None:
    write_csv(tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("too,few\n")

    batch = read(tmp_path / "labels.csv")

    assert [row.place for row in batch.rows] == ["line 2", "line 4"]
    assert [(row.place, fault) for row, fault in batch.malformed] == [
        ("line 6", "2 cells, but the first line has 5"),
    ]


MALFORMED = {
    "id": ("17,1,", "prediction_id: Invalid UUID"),
    "no-key": (",1,", 'give either prediction_id or external_id, for example {"external_id": "order-1", "label": 1}'),
    "no-label": (f"{ID},,", "label: empty; set --empty-label if empty labels are allowed"),
    "time-without-offset": (
        f"{ID},1,2024-05-01T12:00:00",
        "observed_at: Expected `datetime` with a timezone component",
    ),
    "future": (f"{ID},1,2999-01-01T00:00:00Z", "observed_at: more than five minutes in the future"),
    "nul": (f"{ID},1\x00,", "label: text with a NUL character"),
}


@pytest.mark.parametrize(("cells", "fault"), [pytest.param(*case, id=name) for name, case in MALFORMED.items()])
def test_row_is_malformed_when_the_server_would_refuse_it(tmp_path: Path, cells: str, fault: str) -> None:
    (tmp_path / "labels.csv").write_text(f"prediction_id,label,observed_at\n{ID},1,\n{cells}\n")

    batch = read(tmp_path / "labels.csv")

    assert [(row.place, why) for row, why in batch.malformed] == [("line 3", fault)]
    assert len(batch.lines) == 1


@pytest.mark.parametrize(
    ("empty_label", "labels", "empty"), [("skip", ["1"], 1), ("withdraw", ["1", None], 0)], ids=["skip", "withdraw"]
)
def test_empty_label_means_what_is_asked(
    tmp_path: Path, empty_label: EmptyLabel, labels: Sequence[str | None], empty: int
) -> None:
    (tmp_path / "labels.csv").write_text("external_id,label\na,1\nb,\n")

    batch = read(tmp_path / "labels.csv", empty_label=empty_label)

    assert [msgspec.json.decode(line)["label"] for line in batch.lines] == labels
    assert batch.empty == empty


def test_columns_are_taken_under_other_names(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"prediction_id,order,repaid,at\n{ID},7,1,2024-05-01T12:00:00Z\n")

    batch = read(tmp_path / "labels.csv", Columns(external_id="order", label="repaid", observed_at="at"))

    [line] = [msgspec.json.decode(line) for line in batch.lines]
    assert line == {
        "prediction_id": None,
        "external_id": "7",
        "label": "1",
        "observed_at": "2024-05-01T12:00:00Z",
    }


def test_id_is_used_when_a_row_has_both_keys(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"prediction_id,external_id,label\n{ID},order-1,1\n")

    batch = read(tmp_path / "labels.csv")

    assert [msgspec.json.decode(line)["external_id"] for line in batch.lines] == [None]


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [
        ("a,b\n1,2\n", Columns(), "has no column label; it has a, b"),
        ("a,label\n1,2\n", Columns(), "has no column prediction_id or external_id; it has a, label"),
        ("external_id,label\n1,2\n", Columns(observed_at="at"), "has no column at; it has external_id, label"),
        ("", Columns(), "has no column label; it has none"),
    ],
)
def test_file_is_refused_when_a_column_is_missing(tmp_path: Path, content: str, columns: Columns, said: str) -> None:
    (tmp_path / "labels.csv").write_text(content)

    with pytest.raises(LabelFileError, match=said):
        read(tmp_path / "labels.csv", columns)


def test_file_is_refused_when_it_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.gz"
    compress(write_csv)(path)
    path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(LabelFileError, match=r"labels\.csv\.gz cannot be read: Compressed file ended"):
        read(path)


def test_file_of_an_unknown_kind_asks_for_its_format() -> None:
    with pytest.raises(LabelFileError, match="give --format"):
        name_format(Path("labels.xlsx"))


def test_parquet_without_pyarrow_says_how_to_install_it(tmp_path: Path) -> None:
    write_parquet(tmp_path / "labels.parquet")
    code = "import sys; sys.modules['pyarrow'] = None; from app.commands.parser import run; run(sys.argv[1:])"
    command = [sys.executable, "-c", code, "labels", "import", str(tmp_path / "labels.parquet")]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert ended.stderr == "error: Parquet needs pyarrow: pip install pyarrow, or use CSV\n"
