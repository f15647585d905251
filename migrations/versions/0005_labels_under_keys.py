"""Labels under the client's own key count for predictions that are stored later; rejected labels leave a count.

Labels that wait for a prediction under such a key move into the new table. Replicas of the release before go on: what
they add to the old table moves at the next sweep of a new replica.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

CALL_LABELS = """
CREATE FUNCTION call_labels() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET enable_seqscan = off
AS $$
BEGIN
    INSERT INTO labelled_arrival (prediction_id, external_id)
    SELECT changed.prediction_id, NULL FROM changed
    CROSS JOIN LATERAL (SELECT FROM pending_label WHERE prediction_id = changed.prediction_id LIMIT 1) waiting
    UNION ALL
    SELECT changed.prediction_id, changed.external_id FROM changed
    CROSS JOIN LATERAL (SELECT FROM key_label WHERE external_id = changed.external_id LIMIT 1) kept
    WHERE changed.role = 'live';
    RETURN NULL;
END
$$
"""
"""Append only, like the ledger: writers of predictions wait neither for each other nor for labels.

Without sequential scans the plan, which a session keeps, is one look-up in an index per row, also when it was made
while the tables were empty.
"""

CREATE_TRIGGER = """
CREATE TRIGGER call_labels AFTER INSERT ON prediction_log REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION call_labels()
"""

MOVE_PENDING = """
WITH moved AS (DELETE FROM pending_label WHERE external_id IS NOT NULL RETURNING *)
INSERT INTO key_label (external_id, label, observed_at, received_at, position, is_pending, stage, next_look_at)
SELECT external_id, label, observed_at, received_at, row_number() OVER (ORDER BY pending_id), true, 'fence', now()
FROM moved
"""

MOVE_BACK = """
INSERT INTO pending_label (external_id, label, observed_at, received_at, next_try_at)
SELECT external_id, label, observed_at, received_at, now() FROM key_label WHERE is_pending
ORDER BY received_at, position
"""


def upgrade() -> None:
    """Create the tables and the trigger; creating the trigger waits for the writers of the log."""
    op.create_table(
        "key_label",
        sa.Column("label_id", pg.UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("external_id", sa.Text, nullable=False),
        sa.Column("label", sa.Text, comment="as it was sent; null: a withdrawal"),
        sa.Column("observed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("received_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("position", sa.Integer, nullable=False, comment="in its request, for equal times"),
        sa.Column("is_pending", sa.Boolean, nullable=False, comment="no prediction of its key has been stored"),
        sa.Column("stage", sa.Text, nullable=False, comment="what the sweep does next, app/quality/key_labels.py"),
        sa.Column("next_look_at", sa.TIMESTAMP(timezone=True), comment="when the sweep does it; null: never"),
        sa.Column("looked_to", pg.UUID, comment="how far it has gone through the key's predictions"),
        sa.Column("fence", sa.Text, comment="a transaction; all that missed this label began before it"),
        sa.CheckConstraint("stage IN ('rest', 'fence', 'look', 'last', 'settled')", name="key_label_stage"),
        comment="every label under a client's key, for 30 days: it counts for predictions that are stored later",
    )
    op.execute("ALTER TABLE key_label ALTER fence TYPE xid8 USING fence::xid8")
    op.create_index("key_label_external_id", "key_label", ["external_id"])
    op.create_index("key_label_received_at", "key_label", ["received_at"])
    op.create_index(
        "key_label_due", "key_label", ["next_look_at"], postgresql_where=sa.text("next_look_at IS NOT NULL")
    )
    op.create_index("key_label_pending", "key_label", ["received_at"], postgresql_where=sa.text("is_pending"))
    op.create_table(
        "labelled_arrival",
        sa.Column("arrival_id", pg.UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("prediction_id", pg.UUID, nullable=False),
        sa.Column("external_id", sa.Text, comment="null: labels under its key do not count for it"),
        sa.Column("stored_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("next_try_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        comment="predictions that were stored after a label for them; the sweep applies it",
    )
    op.create_index("labelled_arrival_next_try_at", "labelled_arrival", ["next_try_at"])
    op.create_table(
        "label_rejection",
        sa.Column("rejection_id", pg.UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("rejected_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("labels", sa.Integer, nullable=False),
        comment="how many labels were rejected, for a week",
    )
    op.create_index("label_rejection_rejected_at", "label_rejection", ["rejected_at"])
    op.create_index(
        "pending_label_prediction_id",
        "pending_label",
        ["prediction_id"],
        postgresql_where=sa.text("prediction_id IS NOT NULL"),
    )
    op.execute(MOVE_PENDING)
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(CALL_LABELS.format(schema=schema))
    op.execute(CREATE_TRIGGER)


def downgrade() -> None:
    """Drop what this migration made; labels under a key that still wait go back into the old table."""
    op.execute("DROP TRIGGER call_labels ON prediction_log")
    op.execute("DROP FUNCTION call_labels")
    op.execute(MOVE_BACK)
    op.drop_index("pending_label_prediction_id", "pending_label")
    for table in ("label_rejection", "labelled_arrival", "key_label"):
        op.drop_table(table)
