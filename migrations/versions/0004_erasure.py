"""Erasure: which predictions are erased, the requests that replicas work on, and the spools that must report."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables. No table has a sequence: after a logical switchover a sequence would repeat its numbers."""
    create_spools()
    create_requests()
    op.create_table(
        "erasure",
        sa.Column("prediction_id", pg.UUID, primary_key=True),
        sa.Column("erasure_id", pg.UUID, nullable=False),
        make_time("erased_at"),
        comment="erased predictions: their values are never stored again, whenever a copy is offered; never emptied",
    )
    op.create_index("erasure_erasure_id", "erasure", ["erasure_id"])
    op.execute("GRANT SELECT ON erasure TO PUBLIC")  # inserts read it, and the log's writer may have only INSERT


def create_spools() -> None:
    """Create the table of spools: an erasure is complete when each of them has reported."""
    op.create_table(
        "log_spool",
        sa.Column("spool_id", pg.UUID, primary_key=True, comment="in the header of each of its files"),
        sa.Column("place", sa.Text, nullable=False, comment="host:directory"),
        make_time("seen_at"),
        comment="every spool that may have copies of rows, also those of stopped replicas",
    )


def create_requests() -> None:
    """Create the tables of requests, of what replicas search for, and of their reports.

    A digest of an external id exists while its request is worked on, in a table that is not in the write-ahead log, in
    no standby and in no physical backup.
    """
    op.create_table(
        "erasure_request",
        sa.Column("erasure_id", pg.UUID, primary_key=True),
        sa.Column("by_external_id", sa.Boolean, nullable=False, comment="erasure_search has the digest"),
        make_time("requested_at"),
        sa.Column("finished_at", sa.TIMESTAMP(timezone=True), comment="null: a spool has not reported yet"),
    )
    op.create_index(
        "erasure_request_open", "erasure_request", ["erasure_id"], postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_table(
        "erasure_search",
        sa.Column("erasure_id", pg.UUID, primary_key=True),
        sa.Column("salt", pg.BYTEA, nullable=False),
        sa.Column("digest", pg.BYTEA, nullable=False, comment="BLAKE2b of the external id, keyed with the salt"),
        comment="what replicas search for, until they have all reported",
        prefixes=["UNLOGGED"],
    )
    op.create_table(
        "erasure_report",
        sa.Column("erasure_id", pg.UUID, primary_key=True),
        sa.Column("spool_id", pg.UUID, primary_key=True),
        sa.Column("copies", sa.BigInteger, nullable=False, comment="copies of rows that were erased in the spool"),
        make_time("reported_at"),
    )


def make_time(name: str) -> sa.Column[object]:
    """Return a column with the time of the database."""
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


def downgrade() -> None:
    """Drop the tables. Copies of erased rows that are offered afterwards are stored with their values."""
    for table in ("erasure", "erasure_report", "erasure_search", "erasure_request", "log_spool"):
        op.drop_table(table)
