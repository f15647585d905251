"""`scorekeeper erase`: afterwards no table and no file of a spool has the values, and the numbers are the same."""

import asyncio
import io
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from rich.console import Console

from app.commands.spool import drain_spool
from app.prediction_log.erasure_queries import erase_rows
from app.prediction_log.record import encode_records
from app.quality.labels import take_labels
from tests.conftest import OpenClient
from tests.support.erasing import (
    BLANK,
    SECRETS,
    fetch_row,
    find_in_tables,
    find_values,
    make_secret,
    read_spooled_rows,
    run_erase,
)
from tests.support.ledger import assert_exact
from tests.support.processes import wait_until
from tests.support.records import count_rows, insert_records, make_label, make_record, register_demo, store
from tests.support.spools import append, has_shipped, hurry, is_known, ship, write_spool


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.mark.parametrize("by", ["external id", "prediction id"])
async def test_erased_values_are_in_no_table_and_no_file(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection, by: str
) -> None:
    """Copies are in a retained and in the open segment, beside other rows, in dead/ and, damaged, in corrupt/."""
    erased, poison = make_secret(), make_secret("secret-feature \x00")
    others = [make_record(external_id=f"other-{at}") for at in range(4)]
    keys = ["secret-key"] if by == "external id" else [erased.prediction_id, poison.prediction_id]
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, others[0], erased, others[1])
        await journal._rotate()
        await append(journal, others[2], poison, others[3])
        await wait_until(lambda: has_shipped(spool))
        damaged = encode_records([others[0], erased])[0].payload.replace(b'"role"', b'"r\xffle"')
        await asyncio.to_thread(spool.put_aside, "corrupt", "seg-9-48-900", damaged)
        before = await find_values(connection, spool_directory)

        results = [await run_erase(database_url, key) for key in keys]

        left = await find_values(connection, spool_directory)
        rows = {str(row["prediction_id"]): row for row in read_spooled_rows(spool_directory)}

    assert len([place for place in before if place.endswith(".log")]) == 2, "nothing was there to be erased"
    assert {"dead", "corrupt"} <= {Path(place).parent.name for place in before}
    assert [status for status, _ in results] == [0] * len(keys), results
    assert left == []
    assert await fetch_row(connection, erased.prediction_id) == BLANK
    assert rows[str(erased.prediction_id)].keys() == rows[str(poison.prediction_id)].keys()
    for other in others:
        assert (await fetch_row(connection, other.prediction_id))["external_id"] == other.external_id
        assert rows[str(other.prediction_id)]["features"] == {"car_value": 1.5}
    assert b"other-0" in (spool_directory / "corrupt" / "seg-9-48-900").read_bytes()


async def test_labels_that_wait_are_removed_and_the_one_that_counts_stays(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await register_demo(connection)
    erased, unstored = make_secret(), make_secret("secret-feature \x00")
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, erased, unstored)
        await wait_until(lambda: has_shipped(spool))
        now = datetime.now(UTC)
        keys: list[UUID | str] = [erased.prediction_id, unstored.prediction_id, "a-later-row", uuid4()]
        await take_labels(connection, [make_label(key, "1", now) for key in keys])

        status, output = await run_erase(database_url, "secret-key")

    assert status == 0
    assert "1 predictions, 1 waiting labels, 1 labels of the history" in output
    assert (await count_rows(connection, "pending_label"), await count_rows(connection, "key_label")) == (1, 1)
    assert await count_rows(connection, "prediction_label_history") == 0
    assert await connection.fetchval("SELECT label FROM prediction_label") == "1"
    await assert_exact(connection)


@pytest.mark.parametrize("by", ["external id", "prediction id"])
async def test_labels_under_the_key_of_an_erased_prediction_are_removed(
    database_url: str, connection: asyncpg.Connection, by: str
) -> None:
    await register_demo(connection)
    erased, other = make_secret(), make_record(external_id="other")
    await store(connection, erased, other, make_record(external_id="other"))
    now = datetime.now(UTC)
    await take_labels(connection, [make_label(key, "1", now) for key in ("secret-key", "other")])

    await run_erase(database_url, "secret-key" if by == "external id" else erased.prediction_id)
    await run_erase(database_url, other.prediction_id)

    assert await find_in_tables(connection, SECRETS) == []
    assert [row["external_id"] for row in await connection.fetch("SELECT external_id FROM key_label")] == ["other"]


async def test_rows_that_only_a_spool_has_are_found_by_their_external_id(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    """The replica is stopped meanwhile: status 3 names its spool, which erases its copies when it runs again."""
    erased, other = [make_secret() for _ in range(3)], make_record(external_id="other")
    async with write_spool(spool_directory) as (spool, journal):
        async with ship(spool, pool):
            await wait_until(lambda: is_known(connection))
        await append(journal, erased[0], other, erased[1])
    async with write_spool(spool_directory) as (spool, journal):
        await append(journal, erased[2])

    status, output = await run_erase(database_url, "secret-key", wait=0.1)
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await wait_until(lambda: has_shipped(spool))
        again, complete = await run_erase(database_url, "secret-key")
        left = await find_values(connection, spool_directory)

    assert status == 3
    assert re.search(
        rf"{re.escape(str(spool_directory))} has not reported \(spool {UUID(bytes=spool.uuid)}, last seen", output
    )
    assert again == 0, complete
    assert left == []
    assert [await fetch_row(connection, record.prediction_id) for record in erased] == [BLANK] * 3
    assert (await fetch_row(connection, other.prediction_id))["external_id"] == "other"
    assert await count_rows(connection, "erasure") == 3
    assert await count_rows(connection, "erasure_search") == 0
    await assert_exact(connection)


async def test_rows_that_come_under_the_external_id_later_are_kept(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, make_secret())
        await run_erase(database_url, "secret-key")
        later = make_secret("a new feature")

        await append(journal, later)
        await wait_until(lambda: has_shipped(spool))

        row = await fetch_row(connection, later.prediction_id)
    assert (row["external_id"], row["request_id"]) == ("secret-key", "secret-request")
    assert "a new feature" in str(row["features"])


async def test_no_spool_that_was_never_there_is_waited_for(database_url: str, connection: asyncpg.Connection) -> None:
    erased, other = make_secret(), make_record(external_id="other")
    await store(connection, erased, other)

    status, output = await run_erase(database_url, erased.prediction_id)
    unknown, nothing = await run_erase(database_url, "nobody")

    assert (status, unknown) == (0, 0)
    assert "1 predictions" in output
    assert "0 predictions" in nothing
    assert await find_in_tables(connection, SECRETS) == []
    assert (await fetch_row(connection, other.prediction_id))["external_id"] == "other"
    await assert_exact(connection)


async def test_copies_that_are_offered_later_do_not_bring_the_values_back(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """A copy of the spool from before is drained into a primary that has lost the row, after a failover."""
    erased, other = make_secret(), make_record(external_id="other")
    async with write_spool(spool_directory) as (spool, journal):
        await append(journal, erased, other)
    shutil.copytree(spool_directory, tmp_path / "copy")
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await wait_until(lambda: has_shipped(spool))
        await run_erase(database_url, "secret-key")
    await connection.execute("DELETE FROM prediction_log")

    status = await drain_spool(tmp_path / "copy", database_url, Console(file=io.StringIO()))

    assert status == 0
    assert await find_in_tables(connection, SECRETS) == []
    assert await fetch_row(connection, erased.prediction_id) == BLANK
    assert (await fetch_row(connection, other.prediction_id))["external_id"] == "other"


async def test_an_insert_that_began_before_the_erasure_is_blanked(
    database_url: str, connection: asyncpg.Connection
) -> None:
    """The insert has not committed: the erasure waits for it."""
    erased = make_secret()
    await store(connection, make_record())
    writer = await asyncpg.connect(database_url)
    async with _closing(writer):
        transaction = writer.transaction()
        await transaction.start()
        await insert_records(writer, [erased])

        erasing = asyncio.create_task(run_erase(database_url, erased.prediction_id))
        await wait_until(lambda: waits_for_lock(connection))
        await transaction.commit()
        status, _ = await erasing

    assert status == 0
    assert await fetch_row(connection, erased.prediction_id) == BLANK
    await assert_exact(connection)


async def test_an_insert_that_comes_during_the_erasure_stores_no_values(
    database_url: str, connection: asyncpg.Connection
) -> None:
    """The erasure has not committed: the insert waits for it, and then sees it."""
    erased, other = make_secret(), make_record(external_id="other")
    await store(connection, make_record())
    eraser, writer = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    async with _closing(eraser), _closing(writer):
        transaction = eraser.transaction()
        await transaction.start()
        await erase_rows(eraser, uuid4(), [erased.prediction_id], timeout=10)

        inserting = asyncio.create_task(insert_records(writer, [erased, other]))
        await wait_until(lambda: waits_for_lock(connection))
        await transaction.commit()
        stored = await inserting

    assert stored == 2
    assert await fetch_row(connection, erased.prediction_id) == BLANK
    assert (await fetch_row(connection, other.prediction_id))["external_id"] == "other"
    await assert_exact(connection)


async def waits_for_lock(connection: asyncpg.Connection) -> bool:
    waiting: int = await connection.fetchval(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'prediction_log'::regclass"
    )
    return waiting > 0


@asynccontextmanager
async def _closing(connection: asyncpg.Connection) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await connection.close()


async def test_a_row_of_the_log_says_that_it_was_erased(open_client: OpenClient, database_url: str) -> None:
    async with open_client() as client:
        body = {"features": [1.5, 2.3, 3.1, 4.2, 5.0], "external_id": "secret-key"}
        answer = (await client.post("/predict", json=body)).json()
        kept = (await client.get(f"/predictions/{answer['prediction_id']}")).json()
        await client.post("/labels", json={"prediction_id": answer["prediction_id"], "label": 1})

        await run_erase(database_url, "secret-key")

        erased = (await client.get(f"/predictions/{answer['prediction_id']}")).json()
        under_key = (await client.get("/predictions", params={"external_id": "secret-key"})).json()
        (listed,) = (await client.get("/predictions")).json()["predictions"]

    assert (kept["erased_at"], kept["external_id"]) == (None, "secret-key")
    assert datetime.fromisoformat(erased["erased_at"]) <= datetime.now(UTC)
    blank: dict[str, object] = {"features": {}, "external_id": None, "request_id": None, "label_history": []}
    assert erased == {**kept, **blank, "erased_at": erased["erased_at"], "label": erased["label"]}
    assert erased["label"]["label"] == 1
    assert under_key["predictions"] == []
    assert listed == {name: value for name, value in erased.items() if name != "label_history"}
