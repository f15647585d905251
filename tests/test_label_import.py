"""`scorekeeper labels import`, through a real server."""

import asyncio
import io
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
from rich.console import Console

from app.commands.parser import parse_arguments
from app.exchange.aside import AsideError
from app.exchange.checkpoint import Checkpoint, CheckpointError
from app.exchange.label_files import Columns
from app.exchange.label_import import LabelImport, LabelImportError, run_import
from app.exchange.text_files import TextForm
from app.prediction_log.record import Record
from tests.conftest import execute
from tests.support.processes import ROOT, Server, run_app, start_app, wait_until
from tests.support.records import make_record, store

BATCH_ROWS = 4


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(output: io.StringIO) -> Console:
    return Console(file=output, width=200)


@pytest.fixture
async def records(server: Server, connection: asyncpg.Connection) -> list[Record]:
    """Ten stored predictions of the server that runs, in the order of their ids."""
    await server.start()
    records = sorted((make_record(external_id=f"order-{n}") for n in range(10)), key=lambda each: each.prediction_id)
    await store(connection, *records)
    return records


def plan_import(server: Server, path: Path, *, restart: bool = False, malformed: Path | None = None) -> LabelImport:
    return LabelImport(
        url=server.url,
        path=path,
        file_format="csv",
        columns=Columns(),
        empty_label="refuse",
        batch_rows=BATCH_ROWS,
        state=path.with_name("state"),
        restart=restart,
        malformed=malformed,
        rejected=path.with_name("rejected"),
        form=TextForm(),
    )


def write_labels(path: Path, rows: Sequence[tuple[object, object]]) -> Path:
    path.write_text("prediction_id,label\n" + "".join(f"{key},{label}\n" for key, label in rows))
    return path


async def read_labels(connection: asyncpg.Connection) -> dict[str, str | None]:
    rows = await connection.fetch("SELECT prediction_id, label FROM prediction_label")
    return {str(row["prediction_id"]): row["label"] for row in rows}


async def read_history(connection: asyncpg.Connection) -> list[tuple[object, ...]]:
    rows = await connection.fetch(
        "SELECT prediction_id, label, observed_at FROM prediction_label_history ORDER BY prediction_id, observed_at"
    )
    return [tuple(row) for row in rows]


def read_table(output: io.StringIO | str) -> dict[str, int]:
    text = output if isinstance(output, str) else output.getvalue()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return {name: int(count.replace(",", "")) for name, count in cells}


async def test_import_reports_counts_that_add_up(
    server: Server, records: Sequence[Record], tmp_path: Path, connection: asyncpg.Connection
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        "key,repaid\n"
        + "".join(f"order-{n},{n % 2}\n" for n in range(6))
        + "order-0,1\norder-6,2\nnobody,1\norder-7,\n"
    )

    status, output = await run_app(
        "labels",
        "import",
        *(str(path), "--url", server.url, "--external-id-column", "key", "--label-column", "repaid"),
        *("--empty-label", "skip"),
    )

    assert status == 1, output
    assert read_table(output) == {
        "read": 10,
        "new": 6,
        "corrected": 1,
        "pending": 1,
        "rejected": 1,
        "without a label, not sent": 1,
    }
    assert "1 rejected, not a class of car-loan version 1 (allowed: 0, 1)" in output
    aside = [msgspec.json.decode(line) for line in (tmp_path / "labels.csv.rejected").read_bytes().splitlines()]
    assert aside == [
        {
            "place": "line 9",
            "fault": "not a class of car-loan version 1 (allowed: 0, 1)",
            "row": {"key": "order-6", "repaid": "2"},
        }
    ]
    by_order = {each.external_id: str(each.prediction_id) for each in records}
    expected = {by_order[f"order-{n}"]: str(n % 2) for n in range(1, 6)} | {by_order["order-0"]: "1"}
    assert await read_labels(connection) == expected


async def test_malformed_row_stops_before_its_batch_and_correcting_it_ends_as_if_it_had_never_been(
    server: Server, records: Sequence[Record], tmp_path: Path, connection: asyncpg.Connection, console: Console
) -> None:
    rows: list[tuple[object, object]] = [(each.prediction_id, 1) for each in records]
    path = write_labels(tmp_path / "labels.csv", [*rows[:6], ("17", 1), *rows[7:]])

    with pytest.raises(LabelImportError, match=r"labels\.csv line 8: prediction_id: Invalid UUID"):
        await run_import(plan_import(server, path), console)
    sent = len(await read_labels(connection))
    write_labels(path, rows)
    with pytest.raises(CheckpointError, match="--restart"):
        await run_import(plan_import(server, path), console)
    status = await run_import(plan_import(server, path, restart=True), console)

    assert sent == BATCH_ROWS
    assert status == 0
    assert await read_labels(connection) == {str(each.prediction_id): "1" for each in records}
    assert len(await read_history(connection)) == len(records)


async def test_malformed_rows_are_put_aside_when_asked(
    server: Server,
    records: Sequence[Record],
    tmp_path: Path,
    console: Console,
    output: io.StringIO,
) -> None:
    first, second = (each.prediction_id for each in records[:2])
    path = write_labels(tmp_path / "labels.csv", [("17", 1), (first, 1), (second, "")])

    status = await run_import(plan_import(server, path, malformed=tmp_path / "malformed"), console)

    assert status == 1
    assert read_table(output) == {"read": 3, "new": 1, "malformed, not sent": 2}
    aside = [msgspec.json.decode(line) for line in (tmp_path / "malformed").read_bytes().splitlines()]
    assert [(entry["place"], entry["row"]["prediction_id"]) for entry in aside] == [
        ("line 2", "17"),
        ("line 4", str(second)),
    ]


async def test_rejected_rows_are_written_to_a_file_once_when_the_import_begins_again(
    server: Server,
    records: Sequence[Record],
    tmp_path: Path,
    console: Console,
    output: io.StringIO,
) -> None:
    rows = [(each.prediction_id, "maybe" if at % 2 else "TRUE") for at, each in enumerate(records)]
    path = write_labels(tmp_path / "labels.csv", rows)
    (tmp_path / "rejected").write_text("of another import\n")

    statuses = [await run_import(plan_import(server, path, restart=restart), console) for restart in (False, True)]

    assert statuses == [1, 1]
    aside = [msgspec.json.decode(line) for line in (tmp_path / "rejected").read_bytes().splitlines()]
    assert [(each["place"], each["row"]["label"]) for each in aside] == [
        (f"line {line}", "maybe") for line in (3, 5, 7, 9, 11)
    ]
    assert output.getvalue().count("5 rejected, not a class of car-loan version 1 (allowed: 0, 1)") == 2


async def test_file_of_rejected_rows_is_removed_when_there_are_none(
    server: Server, records: Sequence[Record], tmp_path: Path, console: Console
) -> None:
    path = write_labels(tmp_path / "labels.csv", [(records[0].prediction_id, 1)])
    (tmp_path / "rejected").write_text("of another import\n")

    await run_import(plan_import(server, path), console)

    assert not (tmp_path / "rejected").exists()


async def test_import_says_so_when_malformed_rows_cannot_be_put_aside(
    server: Server, records: Sequence[Record], tmp_path: Path, connection: asyncpg.Connection, console: Console
) -> None:
    path = write_labels(tmp_path / "labels.csv", [(records[0].prediction_id, 1)])

    with pytest.raises(AsideError, match="nowhere/malformed cannot be written"):
        await run_import(plan_import(server, path, malformed=tmp_path / "nowhere" / "malformed"), console)

    assert await read_labels(connection) == {}


async def test_finished_import_sends_nothing_when_run_again(
    server: Server,
    records: Sequence[Record],
    tmp_path: Path,
    connection: asyncpg.Connection,
    console: Console,
    output: io.StringIO,
) -> None:
    path = write_labels(tmp_path / "labels.csv", [(each.prediction_id, 1) for each in records])
    await run_import(plan_import(server, path), console)
    await connection.execute("TRUNCATE prediction_label")

    status = await run_import(plan_import(server, path), console)

    assert status == 0
    assert await read_labels(connection) == {}
    assert "was already imported" in output.getvalue()


async def test_changed_file_is_a_new_import_when_the_last_one_has_finished(
    server: Server, records: Sequence[Record], tmp_path: Path, connection: asyncpg.Connection, console: Console
) -> None:
    path = write_labels(tmp_path / "labels.csv", [(records[0].prediction_id, 1), (records[0].prediction_id, 1)])
    await run_import(plan_import(server, path), console)

    await run_import(plan_import(server, write_labels(path, [(records[0].prediction_id, 0)])), console)

    assert await read_labels(connection) == {str(records[0].prediction_id): "0"}


async def test_import_ends_as_if_uninterrupted_when_it_is_killed_again_and_again(
    server: Server, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    await server.start()
    records = [make_record() for _ in range(300)]
    await store(connection, *records)
    rows = [(records[n * 7 % 300].prediction_id, n // 100 % 2) for n in range(6_000)]
    path, state = write_labels(tmp_path / "labels.csv", rows), tmp_path / "labels.csv.import"
    arguments = (str(path), "--url", server.url, "--batch", "50")

    def count_done() -> int:
        return msgspec.json.decode(state.read_bytes(), type=Checkpoint).rows if state.exists() else 0

    for _ in range(4):
        process, before = await start_app("labels", "import", *arguments), count_done()

        async def has_moved(before: int = before) -> bool:
            return count_done() > before + 150

        await wait_until(has_moved)
        process.kill()
        await process.communicate()
    killed_at = count_done()
    status, output = await run_app("labels", "import", *arguments)

    assert 600 <= killed_at < len(rows)
    assert status == 0
    assert "continuing after" in output
    counts = read_table(output)
    assert counts.pop("read") == len(rows) == sum(counts.values())
    assert await read_labels(connection) == {str(key): str(label) for key, label in rows}
    history = await read_history(connection)
    assert len(history) == len(rows)
    assert sorted((str(key), label) for key, label, _ in history) == sorted((str(k), str(label)) for k, label in rows)


async def test_import_waits_for_a_database_that_is_away(
    server: Server, records: Sequence[Record], tmp_path: Path, postgres: str, database_url: str
) -> None:
    path = write_labels(tmp_path / "labels.csv", [(each.prediction_id, 1) for each in records])
    name = urlsplit(database_url).path.removeprefix("/")
    await execute(postgres, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    await execute(postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    async def is_refused() -> bool:
        return b"PostgreSQL could not serve a request" in server.log

    importing = asyncio.create_task(run_app("labels", "import", str(path), "--url", server.url))
    await wait_until(is_refused, what=server.log.decode)
    await execute(postgres, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    status, output = await importing

    assert status == 0, output
    assert read_table(output) == {"read": len(records), "new": len(records)}


async def test_import_names_the_batch_that_is_too_large_for_the_server(
    server: Server, tmp_path: Path, console: Console
) -> None:
    server.environment["MAX_BATCH_ROWS"] = "3"
    await server.start()
    path = write_labels(tmp_path / "labels.csv", [(make_record().prediction_id, 1) for _ in range(4)])

    with pytest.raises(LabelImportError, match="try a smaller --batch"):
        await run_import(plan_import(server, path), console)


async def test_import_without_a_server_says_so(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.csv", [])

    status, output = await run_app("labels", "import", str(path), "--url", "http://127.0.0.1:9")

    assert status == 1
    assert output.startswith("error: no Scorekeeper answers at http://127.0.0.1:9")
    assert [each.name for each in tmp_path.iterdir()] == ["labels.csv"]


async def test_import_of_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    status, output = await run_app("labels", "import", str(tmp_path / "nothing.csv"))

    assert status == 1
    assert "nothing.csv cannot be read" in output


async def test_dry_run_checks_every_row_and_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("external_id;label\n" + "order-1;1\n" * 3 + "1.0E+05;1\norder-2;\n")

    status, output = await run_app("labels", "import", str(path), "--dry-run", "--url", "http://127.0.0.1:9")

    assert status == 1
    assert read_table(output) == {"read": 5, "would be sent": 3, "malformed, not sent": 2}
    assert "labels.csv line 5: external_id: a number that a spreadsheet has shortened" in output
    assert "1 malformed, label: empty; set --empty-label if empty labels are allowed" in output
    assert [each.name for each in tmp_path.iterdir()] == ["labels.csv"]


async def test_import_reads_a_file_as_it_is_told(
    server: Server, records: Sequence[Record], tmp_path: Path, connection: asyncpg.Connection
) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("größe^label\norder-1^1\n".encode("cp1252"))
    said = ("--delimiter", "^", "--encoding", "cp1252", "--external-id-column", "größe", "--url", server.url)

    status, output = await run_app("labels", "import", str(path), *said)

    assert status == 0, output
    assert list((await read_labels(connection)).values()) == ["1"]


@pytest.mark.parametrize(
    "option", [("--delimiter", "ab"), ("--delimiter", '"'), ("--encoding", "base64"), ("--encoding", "klingon")]
)
def test_option_is_refused_when_no_file_is_written_so(option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["labels", "import", "labels.csv", *option])


def test_every_option_that_the_docs_name_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["labels", "import", "--help"], ["export", "--help"]):
        with pytest.raises(SystemExit):
            parse_arguments(command)
    known = find_options(capsys.readouterr().out)

    named = find_options((ROOT / "docs" / "labels.md").read_text())

    assert named - {"--data-binary"} <= known
    assert len(named) > 8


def find_options(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", text))
