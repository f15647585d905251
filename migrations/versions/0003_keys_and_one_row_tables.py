"""A primary key for every table, so that all can be replicated, and at most one row in the tables of one row.

Writers wait while `quality_bucket` is written anew, a few seconds per million buckets. The release before runs on.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

RANDOM_KEYS = {"quality_delta": "delta_id", "quality_bucket": "bucket_id"}
"""Random ids, no sequences: after a logical switchover a sequence may be behind, and then it gives ids twice."""

ONE_ROW_TABLES = {"prediction_retention": "dropped_before", "quality_check": "minute"}
"""Tables of one row, with the column by which the row to keep is the greatest, if a restore has doubled it."""

KEEP_PENDING_IDS_AHEAD = """
CREATE FUNCTION keep_pending_ids_ahead() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp
AS $$
BEGIN
    IF (SELECT max(pending_id) FROM pending_label) > (SELECT last_value FROM pending_label_pending_id_seq) THEN
        PERFORM pg_advisory_xact_lock(hashtext('keep_pending_ids_ahead'));
        PERFORM setval('pending_label_pending_id_seq', highest)
        FROM (SELECT max(pending_id) AS highest FROM pending_label) pending
        WHERE highest > (SELECT last_value FROM pending_label_pending_id_seq);
    END IF;
    RETURN NULL;
END
$$
"""
"""Logical replication does not carry sequences: behind their rows, they would refuse every pending label."""

CREATE_TRIGGER = """
CREATE TRIGGER keep_pending_ids_ahead BEFORE INSERT ON pending_label
FOR EACH STATEMENT EXECUTE FUNCTION keep_pending_ids_ahead()
"""


def upgrade() -> None:
    """Add the keys; ids of pending labels stay ahead of those that are there."""
    for table, key in RANDOM_KEYS.items():
        op.execute(f"ALTER TABLE {table} ADD COLUMN {key} uuid NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY")
    for table, column in ONE_ROW_TABLES.items():
        op.execute(
            f"DELETE FROM {table} WHERE ctid <> (SELECT ctid FROM {table} ORDER BY {column} DESC LIMIT 1)"  # noqa: S608
        )
        op.execute(
            f"ALTER TABLE {table} ADD COLUMN one_row boolean NOT NULL DEFAULT true PRIMARY KEY "
            f"CONSTRAINT {table}_has_one_row CHECK (one_row)"
        )
    op.alter_column("quality_check", "mismatch_rows", nullable=True, comment="0: right; null: the check took too long")
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(KEEP_PENDING_IDS_AHEAD.format(schema=schema))
    op.execute(CREATE_TRIGGER)


def downgrade() -> None:
    """Take the keys away again."""
    op.execute("DROP TRIGGER keep_pending_ids_ahead ON pending_label")
    op.execute("DROP FUNCTION keep_pending_ids_ahead")
    op.execute("UPDATE quality_check SET mismatch_rows = 0 WHERE mismatch_rows IS NULL")
    op.alter_column("quality_check", "mismatch_rows", nullable=False, comment="0: the ledger was right")
    for table in ONE_ROW_TABLES:
        op.drop_column(table, "one_row")
    for table, key in RANDOM_KEYS.items():
        op.drop_column(table, key)
