"""Bring the schema to head when the server starts, in a child process, so that the server does not load Alembic."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Literal

from app.database.connecting import CLOSE_SECONDS, connect
from app.database.queries import VERSION_TABLE, Connection, has_foreign_version, read_schema_revision
from app.errors import StartupError
from app.settings import BUNDLED_DIR

logger = logging.getLogger(__name__)

MIGRATION_TIMEOUT_SECONDS = 600.0
"""Limit for the child process: migrating a large log may take minutes, waiting for another replica up to 60 s."""

SchemaState = Literal["current", "behind", "ahead"]


def find_head_revision(migrations: Path = BUNDLED_DIR / "migrations") -> str:
    """Return the newest revision of this release, the highest number in the names of the migrations' files."""
    return max(path.name.partition("_")[0] for path in (migrations / "versions").glob("[0-9]*_*.py"))


async def read_schema_state(connection: Connection) -> SchemaState:
    """Compare the database's revision with this release's. A newer schema still works with this release (`ahead`)."""
    revision = await read_schema_revision(connection) or ""
    head = find_head_revision()
    if revision == head:
        return "current"
    return "behind" if revision < head else "ahead"


async def prepare_schema(url: str, *, migrate: bool) -> SchemaState:
    """Bring the schema to head if it is behind and `migrate` is true, else only log it; return the schema's state."""
    connection = await connect(url)
    try:
        state = await read_schema_state(connection)
        if await has_foreign_version(connection):
            logger.info("alembic_version in this database is of another application; ours is %s", VERSION_TABLE)
    finally:
        await connection.close(timeout=CLOSE_SECONDS)
    if state == "ahead":
        logger.warning("the database schema is newer than this release (%s)", find_head_revision())
    elif state == "behind" and not migrate:
        logger.warning("the database schema is behind: run `alembic upgrade head`; the server is not ready until then")
    elif state == "behind":
        await upgrade_schema(url)
        return "current"
    return state


async def upgrade_schema(url: str) -> None:
    """Run `alembic upgrade head`; raise StartupError with the last line of its output when it fails."""
    environment = {**os.environ, "DATABASE_URL": url}
    environment.pop("DATABASE_URL_FILE", None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alembic", "-c", str(BUNDLED_DIR / "alembic.ini"), "upgrade", "head"),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(MIGRATION_TIMEOUT_SECONDS):
            _, output = await process.communicate()
    except TimeoutError:
        raise StartupError(f"the migration took longer than {MIGRATION_TIMEOUT_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = output.decode(errors="replace").strip().splitlines()
    if process.returncode:
        raise StartupError(f"the migration failed: {lines[-1] if lines else process.returncode}")
    logger.info("migrated the database schema to revision %s", find_head_revision())
