"""Rows and versions as PostgreSQL takes or refuses them, and what its refusals mean."""

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest

from app.database.queries import Connection
from app.errors import StartupError
from app.prediction_log.failures import FailureKind, classify_failure
from app.prediction_log.queries import fetch_prediction, insert_rows, list_columns, make_partitions
from app.prediction_log.record import Record, encode_records
from app.serving.queries import register_version
from tests.conftest import OpenClient, with_database
from tests.support.processes import ROOT, find_free_port
from tests.support.records import count_rows, insert_records, make_record

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

Failing = Callable[[Connection], Awaitable[object]]


@pytest.fixture
async def log(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A connection to a log with a partition for NOON."""
    await make_partitions(connection, NOON.date(), NOON.date())
    return connection


async def test_insert_again_adds_nothing(log: asyncpg.Connection) -> None:
    records = [make_record(NOON) for _ in range(50)]
    await insert_records(log, records)

    await insert_records(log, records)

    assert await count_rows(log, "prediction_log") == 50


async def test_insert_adds_exactly_the_new_rows_of_a_mixed_batch(log: asyncpg.Connection) -> None:
    known, new = [make_record(NOON) for _ in range(20)], [make_record(NOON) for _ in range(20)]
    await insert_records(log, known)
    mixed = [record for pair in zip(known, new, strict=True) for record in pair]

    await insert_records(log, [*mixed, new[0]])

    stored = await log.fetch("SELECT prediction_id FROM prediction_log")
    assert {row["prediction_id"] for row in stored} == {record.prediction_id for record in mixed}
    assert len(stored) == 40


async def test_insert_leaves_a_row_that_is_there_as_it_is(log: asyncpg.Connection) -> None:
    record = make_record(NOON, predicted="1")
    await insert_records(log, [record])

    await insert_records(log, [msgspec.structs.replace(record, predicted_class="0")])

    assert await log.fetchval("SELECT predicted_class FROM prediction_log") == "1"


async def test_insert_stores_every_column(log: asyncpg.Connection) -> None:
    record = make_record(NOON, external_id="order-1", role="shadow")
    await insert_records(log, [record])

    row = await fetch_prediction(log, record.prediction_id)

    assert row is not None
    exact = (
        "prediction_id",
        "created_at",
        "model_name",
        "model_version",
        "predicted_class",
        "score",
        "external_id",
        "request_id",
        "role",
    )
    assert {name: row[name] for name in exact} == {name: getattr(record, name) for name in exact}
    assert msgspec.json.decode(row["features"]) == record.features
    assert row["probabilities"] == [0.25, 0.75]


def test_a_field_without_a_postgresql_type_is_named_in_the_error() -> None:
    class Odd(msgspec.Struct):
        name: str
        elapsed: timedelta

    with pytest.raises(TypeError, match=r"^Odd\.elapsed is .*timedelta.*, which has no type in POSTGRES_TYPES$"):
        list_columns(Odd)


async def test_columns_written_are_those_of_the_table(connection: asyncpg.Connection) -> None:
    rows = await connection.fetch(
        "SELECT attname, format_type(atttypid, NULL) AS type FROM pg_attribute "
        "WHERE attrelid = 'prediction_log'::regclass AND attnum > 0 AND NOT attisdropped"
    )

    in_full = {"timestamptz": "timestamp with time zone"}
    assert {row["attname"]: row["type"] for row in rows} == {
        name: in_full.get(of, of) for name, of in list_columns(Record).items()
    }


async def test_a_refused_row_is_stored_by_the_statement_in_operations(log: asyncpg.Connection) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"^INSERT INTO prediction_log .*?;$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    record = make_record(NOON, external_id="order-1")
    await insert_records(log, [record])
    stored = await fetch_prediction(log, record.prediction_id)
    await log.execute("DELETE FROM prediction_log")

    await log.execute(found[0].replace(":'row'", "$1"), msgspec.json.encode(record).decode())

    assert stored is not None
    assert await fetch_prediction(log, record.prediction_id) == stored


async def test_insert_is_all_or_nothing(log: asyncpg.Connection) -> None:
    records = [make_record(NOON), make_record(NOON, external_id="\x00")]

    with pytest.raises(asyncpg.DataError):
        await insert_records(log, records)

    assert await count_rows(log, "prediction_log") == 0


async def test_insert_of_no_rows_is_possible(log: asyncpg.Connection) -> None:
    await insert_records(log, [])

    assert await count_rows(log, "prediction_log") == 0


async def insert_without_partition(connection: Connection) -> None:
    await insert_records(connection, [make_record(datetime(2031, 1, 1, tzinfo=UTC))])


async def insert_bad_json(connection: Connection) -> None:
    await insert_rows(connection, [b"{"], timeout=10)


async def insert_bad_role(connection: Connection) -> None:
    await insert_records(connection, [make_record(NOON, role="understudy")])


async def insert_bad_array(connection: Connection) -> None:
    row = encode_records([make_record(NOON)])[0].payload.replace(b"[0.25,0.75]", b'["x"]')
    await insert_rows(connection, [row], timeout=10)


async def insert_huge_score(connection: Connection) -> None:
    await insert_records(connection, [msgspec.structs.replace(make_record(NOON), score=1e300)])


async def insert_nul(connection: Connection) -> None:
    await insert_records(connection, [make_record(NOON, external_id="\x00")])


async def insert_after(connection: Connection, *statements: str) -> None:
    for statement in statements:
        await connection.execute(statement)
    await insert_records(connection, [make_record(NOON)])


def after(*statements: str) -> Failing:
    return lambda connection: insert_after(connection, *statements)


TRIGGER = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'not today'; END$$;
CREATE TRIGGER refuse BEFORE INSERT ON prediction_log FOR EACH ROW EXECUTE FUNCTION refuse()
"""

LOOK_UP_FAILS = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM * FROM nowhere; RETURN new; END$$;
CREATE TRIGGER refuse BEFORE INSERT ON prediction_log FOR EACH ROW EXECUTE FUNCTION refuse()
"""

DOUBLE_RETENTION = """
ALTER TABLE prediction_retention DROP COLUMN one_row; INSERT INTO prediction_retention VALUES ('-infinity')
"""

SLEEPS = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(60); RETURN new; END$$;
CREATE TRIGGER wait BEFORE INSERT ON prediction_log FOR EACH ROW EXECUTE FUNCTION wait();
SET statement_timeout = 20
"""


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        pytest.param(insert_without_partition, "partition", id="no partition"),
        pytest.param(insert_bad_json, "poison", id="no JSON"),
        pytest.param(insert_bad_array, "poison", id="no array"),
        pytest.param(insert_huge_score, "poison", id="number too large"),
        pytest.param(insert_nul, "poison", id="NUL in a text"),
        pytest.param(insert_bad_role, "poison", id="check"),
        pytest.param(after("ALTER TABLE prediction_log ADD extra text NOT NULL"), "poison", id="not null"),
        pytest.param(after("ALTER TABLE prediction_log RENAME TO away"), "configuration", id="no table"),
        pytest.param(after("ALTER TABLE prediction_log DROP score"), "configuration", id="no column"),
        pytest.param(after("SET ROLE pg_monitor"), "configuration", id="no permission"),
        pytest.param(after(TRIGGER), "configuration", id="trigger"),
        pytest.param(after(LOOK_UP_FAILS), "configuration", id="statement of a trigger"),
        pytest.param(after(DOUBLE_RETENTION), "configuration", id="two rows where one is meant"),
        pytest.param(after("SET default_transaction_read_only = on"), "transient", id="read only"),
        pytest.param(after(SLEEPS), "transient", id="cancelled"),
        pytest.param(after("SELECT pg_terminate_backend(pg_backend_pid())"), "transient", id="connection ended"),
    ],
)
async def test_failure_of_an_insert_is_classified(log: asyncpg.Connection, fail: Failing, kind: FailureKind) -> None:
    with pytest.raises(asyncpg.PostgresError) as raised:
        await fail(log)

    assert classify_failure(raised.value) == kind


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ("08000 08003 08006 57P01 57P02 57P03 53100 53200 53300 40001 40P01 55P03 57014 25006 58030", "transient"),
        ("XX000 XX001 99999", "transient"),
        ("42P01 42703 42501 42883 42P10 3D000 28000 28P01 09000 P0001 P0004 21000 0A000 55000", "configuration"),
        ("22003 22P02 22P05 22021 23502 23505 23514", "poison"),
    ],
)
def test_failure_is_classified_by_its_code(codes: str, kind: FailureKind) -> None:
    kinds = {code: classify_failure(asyncpg.PostgresError.new({"C": code, "n": "c"})) for code in codes.split()}

    assert kinds == dict.fromkeys(codes.split(), kind)


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ("22003 22P02 22P05 22021 23502 23505 23514 P0001", "configuration"),
        ("53100 40001 40P01 55P03 57014", "transient"),
    ],
)
async def test_failure_inside_a_function_is_no_fault_of_the_row(
    connection: asyncpg.Connection, codes: str, kind: FailureKind
) -> None:
    kinds = {}
    for code in codes.split():
        with pytest.raises(asyncpg.PostgresError) as raised:
            await connection.execute(
                f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}', CONSTRAINT = 'c'; END $$"
            )
        kinds[code] = classify_failure(raised.value)

    assert kinds == dict.fromkeys(codes.split(), kind)


async def test_failure_to_connect_is_transient() -> None:
    with pytest.raises(OSError) as raised:  # noqa: PT011  # which one depends on the system
        await asyncpg.connect(f"postgresql://127.0.0.1:{find_free_port()}/mlops")

    assert classify_failure(raised.value) == "transient"


async def test_connection_to_a_database_that_is_not_there_is_configuration(postgres: str) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError) as raised:
        await asyncpg.connect(with_database(postgres, "nowhere"))

    assert classify_failure(raised.value) == "configuration"


async def register(connection: asyncpg.Connection, classes: Sequence[int | str], sha256: str = "0" * 64) -> bool:
    inputs = [{"name": "f0", "type": "number"}]
    return await register_version(connection, "car-loan", "1", sha256, classes, str(classes[-1]), inputs)


async def test_version_is_registered_again_with_another_file(connection: asyncpg.Connection) -> None:
    registered = [await register(connection, (0, 1), digit * 64) for digit in "01"]

    assert registered == [True, True]
    assert await connection.fetchval("SELECT sha256 FROM model_version") == "1" * 64


@pytest.mark.parametrize("classes", [(1, 0), (0, 1, 2), ("0", "1"), (0, 2)])
async def test_version_with_other_classes_is_refused(
    connection: asyncpg.Connection, classes: Sequence[int | str]
) -> None:
    await register(connection, (0, 1))

    registered = await register(connection, classes)

    assert registered is False
    assert await connection.fetchval("SELECT classes FROM model_version") == "[0, 1]"


async def test_server_does_not_start_when_its_version_had_other_classes(
    open_client: OpenClient, connection: asyncpg.Connection
) -> None:
    await register(connection, ("no", "yes"))

    with pytest.raises(StartupError, match="car-loan version 1 has been served with other classes"):
        async with open_client():
            pass
