"""What all scenarios share: their PostgreSQL, and the programs without which they fail."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.database.migrate import upgrade_schema
from tests.conftest import make_open_directory
from tests.faults.postgres import Postgres
from tests.faults.world import TEMPLATE


def check_programs(*programs: str) -> None:
    """Fail when a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    assert not missing, f"missing: {', '.join(missing)}"


@asynccontextmanager
async def open_postgres() -> AsyncIterator[Postgres]:
    """Run a PostgreSQL until exit, with a migrated database to copy."""
    check_programs("strace", "mount", "umount")
    with make_open_directory() as directory:
        postgres = Postgres(directory)
        await postgres.start()
        try:
            await upgrade_schema(await postgres.create_database(TEMPLATE))
            yield postgres
        finally:
            await postgres.stop()
