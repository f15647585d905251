"""`scorekeeper export`: what is in the file, and that it tells what GET /quality tells."""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace
from rich.console import Console
from sklearn.metrics import f1_score

from app.exchange.export import Export, ExportError, ExportFormat, open_output, run_export
from app.prediction_log.queries import register_version
from app.quality.export_queries import ExportFilter
from app.quality.labels import take_labels
from tests.support.processes import Server, run_app
from tests.support.records import make_label, make_record, register_demo, store

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


async def export(url: str, output: Path, *, labelled_only: bool = True, **wanted: Any) -> list[dict[str, str]]:
    """Export the first of May; return what the CSV file says."""
    period = ExportFilter(NOON - timedelta(hours=12), NOON + timedelta(hours=12), None, None, labelled_only)
    status = await run_export(Export(replace(period, **wanted), "csv", output), url, Console(file=io.StringIO()))
    assert status == 0
    return read_csv(output)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def number(name: str) -> dict[str, str]:
    return {"name": name, "type": "number"}


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
async def test_f1_of_the_exported_rows_is_that_of_quality(
    server: Server, tmp_path: Path, file_format: ExportFormat
) -> None:
    await server.start()
    await run_app("replay", "--url", server.url, "--rows", "300", "--rate", "400", "--label-delay", "0.2")
    since, until = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC)
    output = tmp_path / f"rows.{file_format}"

    limits = ("--since", since.isoformat(), "--until", until.isoformat())
    status, said = await run_app("export", "--output", str(output), *limits, environment=server.environment)
    assert status == 0, said

    rows: Sequence[Mapping[str, object]]
    rows = read_csv(output) if file_format == "csv" else pq.read_table(output).to_pylist()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        period = {"since": since.isoformat(), "until": until.isoformat()}
        [result] = (await client.get("/quality", params=period)).raise_for_status().json()["results"]
    labels, predictions = [str(row["label"]) for row in rows], [str(row["prediction"]) for row in rows]
    assert len(rows) == result["labelled"] == 300
    assert f1_score(labels, predictions, pos_label="1") == pytest.approx(result["f1"], abs=1e-12)


async def test_row_shows_everything_that_is_known(
    connection: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    await register_version(connection, "car-loan", "1", "0" * 64, (0, 1), "1", [number("car_value"), number("age")])
    record = replace(make_record(NOON, external_id='a "quoted", key'), features={"car_value": 1.5, "age": None})
    await store(connection, record)
    observed_at, received_at = NOON + timedelta(hours=1, microseconds=1), NOON + timedelta(hours=2)
    await take_labels(connection, [make_label(record.prediction_id, "0", observed_at, received_at)])

    [row] = await export(database_url, tmp_path / "rows.csv")

    assert row == {
        "prediction_id": str(record.prediction_id),
        "created_at": "2024-05-01 12:00:00+00:00",
        "model": "car-loan",
        "model_version": "1",
        "external_id": 'a "quoted", key',
        "prediction": "1",
        "score": "0.75",
        "label": "0",
        "observed_at": "2024-05-01 13:00:00.000001+00:00",
        "received_at": "2024-05-01 14:00:00+00:00",
        "probabilities.0": "0.25",
        "probabilities.1": "0.75",
        "features.car_value": "1.5",
        "features.age": "",
    }


async def test_columns_are_those_of_any_version_when_versions_differ(
    connection: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    await register_version(connection, "car-loan", "1", "0" * 64, (0, 1), "1", [number("car_value")])
    await register_version(connection, "pets", "1", "0" * 64, ("cat", "dog"), "dog", [number("weight")])
    await register_version(connection, "unused", "1", "0" * 64, (0, 1), "1", [number("nothing")])
    loan, pet = make_record(NOON), make_record(NOON + timedelta(minutes=1), model="pets", predicted="dog")
    await store(connection, loan, replace(pet, features={"weight": 4.0}))

    rows = await export(database_url, tmp_path / "rows.csv", labelled_only=False)

    shown = [{name: value for name, value in row.items() if "." in name} for row in rows]
    assert shown == [
        {
            "probabilities.0": "0.25",
            "probabilities.1": "0.75",
            "probabilities.cat": "",
            "probabilities.dog": "",
            "features.car_value": "1.5",
            "features.weight": "",
        },
        {
            "probabilities.0": "",
            "probabilities.1": "",
            "probabilities.cat": "0.25",
            "probabilities.dog": "0.75",
            "features.car_value": "",
            "features.weight": "4.0",
        },
    ]


async def test_values_keep_their_types_unless_versions_differ_in_them(
    connection: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    kinds = {"age": "integer", "name": "text", "is_new": "boolean", "code": "integer"}
    features = [{"name": name, "type": kind} for name, kind in kinds.items()]
    await register_version(connection, "car-loan", "1", "0" * 64, (0, 1), "1", features)
    await register_version(connection, "car-loan", "2", "0" * 64, (0, 1), "1", [{"name": "code", "type": "text"}])
    first, second = make_record(NOON), make_record(NOON + timedelta(minutes=1))
    await store(
        connection,
        replace(first, features={"age": 2**53 + 1, "name": "é", "is_new": True, "code": 7}),
        replace(second, model_version="2", features={"code": "x"}),
    )
    wanted = ExportFilter(NOON - timedelta(hours=1), NOON + timedelta(hours=1), None, None, labelled_only=False)

    output = tmp_path / "rows.parquet"
    await run_export(Export(wanted, "parquet", output), database_url, Console(file=io.StringIO()))

    rows = pq.read_table(output).to_pylist()
    assert [[row[f"features.{name}"] for name in kinds] for row in rows] == [
        [2**53 + 1, "é", True, "7"],
        [None, None, None, "x"],
    ]


async def test_only_labelled_live_rows_of_the_period_and_model_are_exported(
    connection: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    await register_demo(connection)
    await register_demo(connection, "other")
    first, last = NOON - timedelta(hours=12), NOON + timedelta(hours=12)
    wanted = [make_record(first), make_record(NOON), make_record(last)]
    early, late = make_record(first - timedelta(milliseconds=1)), make_record(last + timedelta(milliseconds=1))
    unlabelled, withdrawn = make_record(NOON), make_record(NOON)
    others = [early, late, withdrawn, make_record(NOON, role="shadow"), make_record(NOON, model="other")]
    await store(connection, *wanted, *others, unlabelled)
    await take_labels(connection, [make_label(each.prediction_id, "0", NOON) for each in [*wanted, *others]])
    await take_labels(connection, [make_label(withdrawn.prediction_id, None, NOON + timedelta(hours=1))])

    rows = await export(database_url, tmp_path / "rows.csv", model="car-loan")
    everything = await export(database_url, tmp_path / "all.csv", model="car-loan", labelled_only=False)

    assert [row["prediction_id"] for row in rows] == [str(each.prediction_id) for each in wanted]
    extra = {row["prediction_id"] for row in everything if row["label"] == ""}
    assert extra == {str(unlabelled.prediction_id), str(withdrawn.prediction_id)}
    assert len(everything) == 5


async def test_exported_labels_are_unchanged_when_they_are_imported(
    server: Server, connection: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    await server.start()
    records = [make_record(NOON, external_id=f"order-{n}") for n in range(3)]
    await store(connection, *records)
    await take_labels(connection, [make_label(each.prediction_id, "0", NOON) for each in records])
    await export(database_url, tmp_path / "rows.csv")

    status, output = await run_app("labels", "import", str(tmp_path / "rows.csv"), "--url", server.url)

    assert status == 0
    assert "│ unchanged │    3 │" in output
    assert await connection.fetchval("SELECT count(*) FROM prediction_label_history") == 3


async def test_file_holds_only_its_columns_when_there_are_no_rows(database_url: str, tmp_path: Path) -> None:
    rows = await export(database_url, tmp_path / "rows.csv")

    assert rows == []
    assert (tmp_path / "rows.csv").read_text().startswith("prediction_id,created_at,model,")


def test_old_file_stays_when_an_export_fails_halfway(tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    output.write_text("old")
    plan = Export(ExportFilter(NOON, NOON, None, None, labelled_only=True), "csv", output)

    def fail_halfway() -> None:
        with open_output(plan, {"a": str}) as writer:
            writer.write([["new"]])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"rows.csv": "old"}


async def test_export_into_a_directory_that_is_not_there_says_so(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"rows\.csv cannot be written: "):
        await export(database_url, tmp_path / "nowhere" / "rows.csv")
