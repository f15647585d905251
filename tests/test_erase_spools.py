"""`scorekeeper erase` and spools that are drained, lost, copied or stopped, or whose disk fails."""

import io
import shutil
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from rich.console import Console

from app.commands.erase import EraseCommandError
from app.commands.spool import drain_spool
from app.spool.disk import Disk
from tests.support.erasing import SECRETS, find_in_files, find_values, make_secret, run_erase
from tests.support.processes import run_app, wait_until
from tests.support.spools import append, has_shipped, hurry, is_known, ship, write_spool


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


async def test_a_spool_that_is_drained_empty_is_no_longer_waited_for(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, make_secret())
        await wait_until(lambda: is_known(connection))
    missing, _ = await run_erase(database_url, "secret-key", wait=0.1)

    drained = await drain_spool(spool_directory, database_url, Console(file=io.StringIO()))
    status, output = await run_erase(database_url, "secret-key")

    assert (missing, drained, status) == (3, 0, 0), output
    assert await find_values(connection, spool_directory) == []


async def test_a_lost_spool_is_no_longer_waited_for(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, _), ship(spool, pool):
        await wait_until(lambda: is_known(connection))
    missing, _ = await run_erase(database_url, "secret-key", wait=0)

    status, output = await run_erase(database_url, "secret-key", lost=(UUID(bytes=spool.uuid),))

    assert (missing, status) == (3, 0), output
    assert await connection.fetchval("SELECT count(*) FROM erasure_request WHERE finished_at IS NULL") == 0
    with pytest.raises(EraseCommandError, match=r"no spool has the id"):
        await run_erase(database_url, "secret-key", lost=(uuid4(),))


async def test_copies_that_are_put_back_are_erased_at_the_next_start(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    async with write_spool(spool_directory) as (spool, journal):
        await append(journal, make_secret(), make_secret())
        await journal._rotate()
        (spool_directory / "dead").mkdir()
        shutil.copy(spool_directory / f"seg-{0:020d}.log", spool_directory / "dead" / "copy")
    shutil.copytree(spool_directory, tmp_path / "copy")
    async with write_spool(spool_directory) as (spool, _), ship(spool, pool):
        await wait_until(lambda: has_shipped(spool))
        await run_erase(database_url, "secret-key")
    erased = await find_values(connection, spool_directory)
    shutil.rmtree(spool_directory)
    shutil.copytree(tmp_path / "copy", spool_directory)

    async def is_clean() -> bool:
        return not find_in_files(spool_directory, SECRETS)

    async with write_spool(spool_directory) as (spool, _), ship(spool, pool):
        await wait_until(is_clean)
        await wait_until(lambda: has_shipped(spool))

    assert erased == []
    assert await find_values(connection, spool_directory) == []


async def test_what_a_crash_has_left_of_a_rewriting_is_removed_at_the_next_start(
    spool_directory: Path, pool: asyncpg.Pool
) -> None:
    async with write_spool(spool_directory) as (spool, _):
        draft = spool_directory / "rewrite.tmp"
        draft.write_bytes(b"rows of somebody")

        async def is_gone() -> bool:
            return not draft.exists()

        async with ship(spool, pool):
            await wait_until(is_gone)


class NoRenameDisk(Disk):
    """A disk that does not take new files in place of others."""

    def replace(self, path: Path, target: Path) -> None:
        raise OSError(5, f"{path} cannot become {target}")


async def test_a_spool_whose_disk_fails_does_not_report(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, journal), ship(spool, pool):
        await append(journal, make_secret())
        await wait_until(lambda: has_shipped(spool))
        good_disk, spool.disk = spool.disk, NoRenameDisk()

        failed, output = await run_erase(database_url, "secret-key", wait=0.5)
        spool.disk = good_disk
        status, _ = await run_erase(database_url, "secret-key")

    assert failed == 3
    assert f"{spool_directory} has not reported" in output
    assert status == 0
    assert await find_values(connection, spool_directory) == []


async def test_the_command_names_the_spool_and_ends_with_3(
    spool_directory: Path, database_url: str, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async with write_spool(spool_directory) as (spool, _), ship(spool, pool):
        await wait_until(lambda: is_known(connection))
    environment = {"DATABASE_URL": database_url}

    status, output = await run_app("erase", "--external-id", "somebody", "--wait", "0", environment=environment)
    both, usage = await run_app("erase", "--external-id", "a", "--prediction-id", str(uuid4()), environment=environment)

    assert status == 3
    assert "erased in the database: 0 predictions" in output
    assert f"{spool_directory} has not reported (spool {UUID(bytes=spool.uuid)}" in output
    assert both == 2
    assert "not allowed with argument" in usage


async def test_the_command_says_that_the_schema_is_behind(database_url: str, connection: asyncpg.Connection) -> None:
    await connection.execute("UPDATE scorekeeper_version SET version_num = '0001'")

    with pytest.raises(EraseCommandError, match="the database schema is behind"):
        await run_erase(database_url, "somebody")
