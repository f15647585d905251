"""Run the migrations on the configured database, in one transaction, one process at a time."""

import asyncio
import sys
from logging.config import fileConfig

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from app.database.pool import ConnectionFailure, describe_connection_error, open_database_url
from app.errors import StartupError
from app.settings import Settings

MIGRATION_LOCK = 0x53434F5245
"""Key of the advisory lock with which only one process migrates at a time ("SCORE" in ASCII)."""


def migrate(connection: Connection) -> None:
    """Migrate in a transaction that holds the lock; a process that waits for it (at most 60 s) finds nothing to do."""
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.run_migrations()


async def migrate_online() -> None:
    """Connect and migrate. asyncpg connects, because it accepts DSNs with several hosts, unlike SQLAlchemy's URLs."""
    settings = Settings.from_env()
    async with open_database_url(settings.database_url, settings.data_dir) as url:

        async def connect() -> asyncpg.Connection:
            try:
                return await asyncpg.connect(url, timeout=10)
            except ConnectionFailure as error:
                raise StartupError(describe_connection_error(url, error)) from error

        engine = create_async_engine("postgresql+asyncpg://", async_creator=connect)
        try:
            async with engine.connect() as connection:
                await connection.run_sync(migrate)
                await connection.commit()
        finally:
            await engine.dispose()


if context.is_offline_mode():
    sys.exit("offline mode is not supported: migrations need a connection to PostgreSQL")
if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
try:
    asyncio.run(migrate_online())
except StartupError as error:
    sys.exit(f"error: {error}")
except DBAPIError as error:
    sys.exit(f"error: {str(error.orig).splitlines()[0]}")
