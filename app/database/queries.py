"""What is asked of the database about itself, and what every query runs on."""

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Connection = asyncpg.Connection | PoolConnectionProxy
"""A connection of its own, or one that a pool has lent."""

SCHEMA_REVISION_TABLE = "SELECT to_regclass('alembic_version') IS NOT NULL"
SCHEMA_REVISION = "SELECT version_num FROM alembic_version"


async def read_schema_revision(connection: Connection) -> str | None:
    """Return the Alembic revision that the database is at, None when it was never migrated."""
    if not await connection.fetchval(SCHEMA_REVISION_TABLE):
        return None
    revision: str | None = await connection.fetchval(SCHEMA_REVISION)
    return revision


EMBEDDED_DATABASE = "mlops"
CREATE_DATABASE = f"CREATE DATABASE {EMBEDDED_DATABASE}"


async def create_embedded_database(connection: Connection, timeout: float) -> None:
    """Create the one database of an embedded server."""
    await connection.execute(CREATE_DATABASE, timeout=timeout)
