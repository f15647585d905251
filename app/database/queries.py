"""The type of connection for all queries, and SQL about the database itself."""

from datetime import datetime

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Connection = asyncpg.Connection | PoolConnectionProxy
"""A single connection, or one from a pool."""


def read_count(status: str) -> int:
    """Return the number of rows in the status of a statement, such as `INSERT 0 5`."""
    return int(status.rpartition(" ")[2])


VERSION_TABLE = "scorekeeper_version"
"""Where Alembic keeps the revision. Its own default, `alembic_version`, may be another application's."""

OLD_REVISIONS = ("0001", "0002")
"""Revisions of releases that kept the revision in `alembic_version`."""

SCHEMA_REVISION_TABLE = "SELECT to_regclass('scorekeeper_version') IS NOT NULL"
SCHEMA_REVISION = "SELECT version_num FROM scorekeeper_version"


async def read_schema_revision(connection: Connection) -> str | None:
    """Return the database's Alembic revision, None when it was never migrated."""
    if not await connection.fetchval(SCHEMA_REVISION_TABLE):
        return None
    revision: str | None = await connection.fetchval(SCHEMA_REVISION)
    return revision


HAS_OLD_VERSION_TABLE = "SELECT to_regclass('alembic_version') IS NOT NULL"
HAS_OUR_TABLES = (
    "SELECT to_regclass('prediction_label_history') IS NOT NULL AND to_regclass('model_version') IS NOT NULL"
)
OLD_VERSIONS = "SELECT version_num FROM alembic_version"


async def has_foreign_version(connection: Connection) -> bool:
    """Return whether there is an `alembic_version` that no older release of this application has made."""
    if not await connection.fetchval(HAS_OLD_VERSION_TABLE):
        return False
    versions = [row["version_num"] for row in await connection.fetch(OLD_VERSIONS)]
    return not await connection.fetchval(HAS_OUR_TABLES) or any(one not in OLD_REVISIONS for one in versions)


READ_TIME = "SELECT clock_timestamp()"


async def read_time(connection: Connection) -> datetime:
    """Return the database's time at this moment."""
    at: datetime = await connection.fetchval(READ_TIME)
    return at


EMBEDDED_DATABASE = "mlops"
CREATE_DATABASE = f"CREATE DATABASE {EMBEDDED_DATABASE}"


async def create_embedded_database(connection: Connection, timeout: float) -> None:
    """Create the database of an embedded server."""
    await connection.execute(CREATE_DATABASE, timeout=timeout)
