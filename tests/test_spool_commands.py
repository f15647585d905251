"""`scorekeeper spool`, and what docs/operations.md says of the log."""

import io
import re
import signal
from collections.abc import AsyncIterator, Sequence, Sized
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import asyncpg
import pytest
from prometheus_client import REGISTRY
from rich.console import Console

from app.commands.spool import SpoolCommandError, drain_spool, show_spool, verify_spool
from app.prediction_log.failures import FailureKind
from app.prediction_log.record import Record, encode_records
from app.spool.journal import Journal, open_journal
from app.spool.segment import HEADER_BYTES, encode_frame
from app.spool.spool import open_spool
from tests.support.load import find_lost, load
from tests.support.processes import ROOT, Server, find_free_port, run_app, start_app, wait_until
from tests.support.records import count_rows, make_record


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "spool"


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(output: io.StringIO) -> Console:
    return Console(file=output, width=200)


async def test_status_counts_what_the_spool_holds(directory: Path, console: Console, output: io.StringIO) -> None:
    await fill_spool(directory, [make_record() for _ in range(3)])
    await fill_spool(directory, [make_record() for _ in range(4)])
    size = sum(path.stat().st_size for path in directory.glob("seg-*.log"))

    status = show_spool(directory, console)

    assert status == 0
    assert read_table(output) == {
        "in use by a server": "no",
        "segments": "2",
        "bytes": f"{size:,}",
        "rows not known to be shipped": "7",
        "files in dead/": "0",
        "files in corrupt/": "0",
    }


async def test_status_and_verify_work_while_a_server_uses_the_spool(
    directory: Path, console: Console, output: io.StringIO
) -> None:
    async with use_spool(directory) as journal:
        await append(journal, [make_record()])

        status = show_spool(directory, console)
        verified = verify_spool(directory, console)
        await append(journal, [make_record()])

    assert (status, verified) == (0, 0)
    assert read_table(output)["in use by a server"] == "yes"
    assert "1 segments, 1 valid rows, 0 damaged places" in output.getvalue()


async def test_verify_names_segment_and_bytes_of_damage(directory: Path, console: Console, output: io.StringIO) -> None:
    first, last = make_record(), make_record()
    await fill_spool(directory, [first], [make_record()], [last])
    path = directory / f"seg-{0:020d}.log"
    data = bytearray(path.read_bytes())
    start = HEADER_BYTES + len(encode([first]))
    end = len(data) - len(encode([last]))
    data[start + 50] ^= 1
    path.write_bytes(data)

    status = verify_spool(directory, console)

    assert status == 1
    assert f"{path.name}: bytes {start} to {end} are damaged" in output.getvalue()
    assert "1 segments, 2 valid rows, 1 damaged places" in output.getvalue()
    assert list(directory.glob("corrupt/*")) == []


async def test_verify_finds_a_damaged_header(directory: Path, console: Console, output: io.StringIO) -> None:
    await fill_spool(directory, [make_record()])
    path = directory / f"seg-{0:020d}.log"
    path.write_bytes(b"x" + path.read_bytes()[1:])

    assert verify_spool(directory, console) == 1
    assert f"bytes 0 to {HEADER_BYTES} are damaged" in output.getvalue()


async def test_verify_calls_an_unfinished_end_no_damage(directory: Path, console: Console, output: io.StringIO) -> None:
    await fill_spool(directory, [make_record()])
    path = directory / f"seg-{0:020d}.log"
    path.write_bytes(path.read_bytes() + encode([make_record()])[:-1])

    assert verify_spool(directory, console) == 0
    assert "are an unfinished write; its rows were never promised" in output.getvalue()


async def test_verify_calls_a_promised_end_that_is_gone_damage(
    directory: Path, console: Console, output: io.StringIO
) -> None:
    async with use_spool(directory) as journal:
        await append(journal, [make_record()])
        await journal._rotate()  # the next segment's header says how much of this one was promised
        await append(journal, [make_record()])
    path = directory / f"seg-{0:020d}.log"
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    assert verify_spool(directory, console) == 1
    assert f"{path.name}: bytes {HEADER_BYTES} to {path.stat().st_size} are damaged" in output.getvalue()


async def test_drain_stores_and_removes_everything(
    directory: Path, database_url: str, connection: asyncpg.Connection, console: Console, output: io.StringIO
) -> None:
    await fill_spool(directory, [make_record() for _ in range(300)])
    await fill_spool(directory, [make_record() for _ in range(200)])
    (directory / f"seg-{2:020d}.log").touch()  # a crash between the making of a file and its first bytes

    statuses = [await drain_spool(directory, database_url, console) for _ in range(2)]

    assert statuses == [0, 0]
    assert await count_rows(connection, "prediction_log") == 500
    assert list(directory.glob("seg-*")) == []
    assert "500/500" in output.getvalue()
    assert "the spool is empty" in output.getvalue()


async def test_drain_of_a_killed_servers_spool_loses_no_answered_row(tmp_path: Path, database_url: str) -> None:
    nobody = f"postgresql://user:password@127.0.0.1:{find_free_port()}/mlops"
    server = Server({"DATABASE_URL": nobody, "DATA_DIR": str(tmp_path)})
    try:
        await server.start()
        async with load(server.url) as answers:
            await wait_until(lambda: has_promised(answers.promised, 300))
            await server.kill()
    finally:
        await server.kill()

    status, output = await run_spool("verify", tmp_path)
    drained, drain_output = await run_spool("drain", tmp_path, DATABASE_URL=database_url)
    shown, table = await run_spool("status", tmp_path)

    assert (status, drained, shown) == (0, 0, 0), output + drain_output + table
    assert await find_lost(database_url, answers) == []
    assert re.search(r"rows not known to be shipped\s*│\s*0\s", table)


async def test_drain_that_was_killed_is_resumed(
    directory: Path, database_url: str, connection: asyncpg.Connection
) -> None:
    await fill_spool(directory, *([make_record() for _ in range(1000)] for _ in range(30)))
    process = await start_app(
        *("spool", "drain", "--data-dir", str(directory.parent)), environment={"DATABASE_URL": database_url}
    )
    await wait_until(lambda: has_rows(connection))
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    before = await count_rows(connection, "prediction_log")

    status, output = await run_spool("drain", directory.parent, DATABASE_URL=database_url)

    assert before < 30_000, "killed too late to show anything"
    assert status == 0, output
    assert await count_rows(connection, "prediction_log") == 30_000


async def test_drain_keeps_a_row_that_postgresql_refuses(
    directory: Path, database_url: str, connection: asyncpg.Connection, console: Console, output: io.StringIO
) -> None:
    poison = make_record(external_id="a\x00b")
    await fill_spool(directory, [make_record(), poison, make_record()])

    status = await drain_spool(directory, database_url, console)

    assert status == 1
    assert await count_rows(connection, "prediction_log") == 2
    assert [path.name for path in directory.glob("dead/*")] == [f"{poison.prediction_id}.json"]
    assert "1 files are left in" in output.getvalue()


async def test_drain_while_a_server_uses_the_spool_says_so(directory: Path, database_url: str) -> None:
    async with use_spool(directory):
        with pytest.raises(SpoolCommandError, match=r"a server uses .*spool and ships it: stop the server before"):
            await drain_spool(directory, database_url)


async def test_drain_into_a_database_without_schema_keeps_everything(
    directory: Path, empty_database_url: str, console: Console
) -> None:
    await fill_spool(directory, [make_record()])

    with pytest.raises(SpoolCommandError, match=r'not set up for this release: .*"prediction_log" does not exist'):
        await drain_spool(directory, empty_database_url, console)

    assert len(list(directory.glob("seg-*"))) == 1


async def test_drain_without_a_database_ends_in_one_line(directory: Path) -> None:
    await fill_spool(directory, [make_record()])

    status, output = await run_spool("drain", directory.parent, DATABASE_URL="")

    assert status == 1
    assert output == "error: DATABASE_URL is not set: set it to the database for the rows\n"


async def test_status_of_no_spool_ends_in_one_line(tmp_path: Path) -> None:
    status, output = await run_spool("status", tmp_path)

    assert status == 1
    assert output == f"error: {tmp_path}/spool is not a spool\n"


OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_every_reason_code_is_documented() -> None:
    sources = [path.read_text() for path in (ROOT / "app").rglob("*.py")]
    named = r'(?:"code": |Reason\(\s*code=)"([a-z_]+)"'
    codes = {code for source in sources for code in re.findall(named, source)}
    codes |= {f"log_{kind}" for kind in get_args(FailureKind)}

    assert {"stopping", "schema_behind", "database_unprepared", "spool_full", "spool_disk"} < codes
    assert {code for code in codes if f"| `{code}` |" not in OPERATIONS} == set()


def test_every_metric_of_the_log_is_documented_and_exists() -> None:
    existing = {sample_name(family.name, family.type) for family in REGISTRY.collect()}
    existing = {name for name in existing if name.startswith("prediction_log_")}
    documented = set(re.findall(r"\b(prediction_log_[a-z_]+)\b", OPERATIONS)) - {"prediction_log_"}

    assert documented - {f"{name}_bucket" for name in existing} == existing


def sample_name(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


@asynccontextmanager
async def use_spool(directory: Path) -> AsyncIterator[Journal]:
    async with open_spool(directory) as spool, open_journal(spool, 1024**3, False, pytest.fail) as journal:
        yield journal


async def fill_spool(directory: Path, *requests: Sequence[Record]) -> None:
    """Have one run of a server append requests."""
    async with use_spool(directory) as journal:
        for records in requests:
            await append(journal, records)


async def append(journal: Journal, records: Sequence[Record]) -> None:
    await journal.append(encode(records), len(records))


def encode(records: Sequence[Record]) -> bytes:
    return b"".join(encode_frame(rows.payload, rows.count) for rows in encode_records(records))


async def run_spool(action: str, data_dir: Path, **environment: str) -> tuple[int, str]:
    return await run_app("spool", action, "--data-dir", str(data_dir), environment=environment)


def read_table(output: io.StringIO) -> dict[str, str]:
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.getvalue().splitlines() if "│" in line]
    return dict(cells)


async def has_promised(promised: Sized, count: int) -> bool:
    return len(promised) >= count


async def has_rows(connection: asyncpg.Connection) -> bool:
    return await count_rows(connection, "prediction_log") > 0
