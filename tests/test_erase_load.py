"""`scorekeeper erase` while replicas predict: what was answered before it is erased, what comes after it is kept."""

import asyncio
from collections.abc import AsyncIterator, Sequence, Sized
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx2

from tests.support.erasing import read_spooled_rows, run_erase
from tests.support.ledger import assert_exact
from tests.support.processes import WAIT_SECONDS, Server, wait_until

Answered = dict[UUID, tuple[str, int]]
"""The key of each prediction that was answered 200, and its number in the order of answers."""


async def test_erasure_under_load_is_exact(database_url: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    """Two replicas predict under two keys; one key is erased twice meanwhile."""
    directories = [tmp_path / name for name in ("one", "two")]
    servers = [Server({"DATABASE_URL": database_url, "DATA_DIR": str(directory)}) for directory in directories]
    answered: Answered = {}
    try:
        await asyncio.gather(*(server.start() for server in servers))
        async with predict_under_keys([server.url for server in servers], answered):
            for _ in range(2):
                await wait_for_answers(answered, 200)
                begun = len(answered)
                status, output = await run_erase(database_url, "erased")
                ended = len(answered)
            await wait_for_answers(answered, 200)
        await wait_until(lambda: has_rows(connection, answered))
        spooled = [row for directory in directories for row in read_spooled_rows(directory / "spool")]
    finally:
        for server in servers:
            await server.kill()

    assert status == 0, output
    blank = await check_rows(connection, answered, begun, ended)
    copies = {key: row for row in spooled if (key := UUID(str(row["prediction_id"]))) in answered}
    assert copies.keys() == answered.keys()
    assert {prediction_id for prediction_id, row in copies.items() if row["features"] == {}} == blank
    assert {prediction_id for prediction_id, row in copies.items() if row.get("external_id") is None} == blank
    await assert_exact(connection)


async def check_rows(connection: asyncpg.Connection, answered: Answered, begun: int, ended: int) -> set[UUID]:
    """Check the row of each answer by when it was answered; return those without values."""
    rows = await connection.fetch(
        "SELECT prediction_id, features::text, external_id, request_id FROM prediction_log "
        "WHERE prediction_id = ANY ($1::uuid[])",
        list(answered),
    )
    assert len(rows) == len(answered)
    blank = {row["prediction_id"] for row in rows if tuple(row)[1:] == ("{}", None, None)}
    for row in rows:
        key, number = answered[row["prediction_id"]]
        if key == "kept" or number >= ended:
            assert (row["external_id"], row["features"] == "{}") == (key, False)
        elif number < begun:
            assert row["prediction_id"] in blank
    return blank


@asynccontextmanager
async def predict_under_keys(urls: Sequence[str], answered: Answered) -> AsyncIterator[None]:
    """Keep servers busy until exit, with rows under both keys in each request."""
    keys = ["erased", "kept", "erased"]

    async def send(url: str) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=WAIT_SECONDS) as client:
            while True:
                rows = [[1.5, 2.3, 3.1, 4.2, float(at)] for at in range(len(keys))]
                response = await client.post("/predict", json={"instances": rows, "external_ids": keys})
                assert response.status_code == 200, response.text
                for row, key in zip(response.json()["predictions"], keys, strict=True):
                    answered[UUID(row["prediction_id"])] = (key, len(answered))

    tasks = [asyncio.create_task(send(url)) for url in urls]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one for one in ended if not isinstance(one, asyncio.CancelledError)] == []


async def wait_for_answers(answered: Sized, more: int) -> None:
    target = len(answered) + more

    async def has_answered() -> bool:
        return len(answered) >= target

    await wait_until(has_answered)


async def has_rows(connection: asyncpg.Connection, answered: Answered) -> bool:
    stored: int = await connection.fetchval(
        "SELECT count(*) FROM prediction_log WHERE prediction_id = ANY ($1::uuid[])", list(answered)
    )
    return stored == len(answered)
