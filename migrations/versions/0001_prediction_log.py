"""The prediction log, its labels with their history, model versions, and the results of the quality job."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PARTITIONED = ("prediction_log", "prediction_label", "prediction_label_history")

PREDICTION_ID_AT = """
CREATE FUNCTION prediction_id_at(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$
    SELECT (lpad(to_hex(greatest(0, least(ceil(extract(epoch FROM at) * 1000), 281474976710655))::bigint), 12, '0')
        || repeat('0', 20))::uuid
$$
"""

MAKE_PARTITIONS = """
CREATE FUNCTION make_prediction_partitions(first_day date, last_day date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp
AS $$
DECLARE
    day timestamp;
    parent text;
    child text;
    made integer := 0;
BEGIN
    IF last_day - first_day > 400 THEN
        RAISE EXCEPTION 'asked for % days of partitions at once, at most 400 are made', last_day - first_day;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('make_prediction_partitions'));
    FOR day IN SELECT generate_series(first_day::timestamp, last_day::timestamp, '1 day') LOOP
        FOREACH parent IN ARRAY ARRAY['prediction_log', 'prediction_label', 'prediction_label_history'] LOOP
            child := parent || to_char(day, '_YYYYMMDD');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                prediction_id_at(day AT TIME ZONE 'UTC'),
                prediction_id_at((day + interval '1 day') AT TIME ZONE 'UTC'));
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$
"""


def upgrade() -> None:
    """Create everything but partitions: the server creates the first ones when it starts."""
    op.execute(PREDICTION_ID_AT)
    op.execute(
        "COMMENT ON FUNCTION prediction_id_at IS 'Smallest prediction_id of a prediction made at or after this time: "
        "prediction_id >= prediction_id_at(since) AND prediction_id < prediction_id_at(until) prunes partitions'"
    )
    create_model_version()
    create_prediction_log()
    create_labels()
    create_quality_result()
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(MAKE_PARTITIONS.format(schema=schema))


def create_model_version() -> None:
    """Create the table of all versions that were ever served, to read their rows even after their files are gone."""
    op.create_table(
        "model_version",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("classes", pg.JSONB, nullable=False, comment="in the order of prediction_log.probabilities"),
        sa.Column("positive_class", sa.Text, comment="as text; null for more than two classes"),
        sa.Column("inputs", pg.JSONB, nullable=False),
        sa.Column("loaded_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    )


def create_prediction_log() -> None:
    """Create the log, partitioned by the day in the UUIDv7. A default partition would block adding its ranges later."""
    op.create_table(
        "prediction_log",
        sa.Column("prediction_id", pg.UUID, primary_key=True, comment="UUIDv7: identity, time order, partition key"),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, comment="the same instant as the id's"),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("predicted_class", sa.Text, nullable=False),
        sa.Column("score", sa.REAL, nullable=False),
        sa.Column("probabilities", pg.ARRAY(sa.REAL), nullable=False, comment="in the order of model_version.classes"),
        sa.Column("features", pg.JSONB, nullable=False, comment="keyed by feature name"),
        sa.Column("external_id", sa.Text, comment="the client's own key"),
        sa.Column("request_id", sa.Text),
        sa.Column("role", sa.Text, nullable=False, server_default="live"),
        sa.CheckConstraint("role IN ('live', 'shadow')", name="prediction_log_role"),
        postgresql_partition_by="RANGE (prediction_id)",
    )
    op.create_index(
        "prediction_log_external_id",
        "prediction_log",
        ["external_id"],
        postgresql_where=sa.text("external_id IS NOT NULL"),
    )


def create_labels() -> None:
    """Create the tables of current labels, of all received labels, and of labels without a stored prediction yet."""
    op.create_table(
        "prediction_label",
        sa.Column("prediction_id", pg.UUID, primary_key=True),
        sa.Column("label", sa.Text, comment="null: withdrawn"),
        sa.Column("observed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("received_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("previous_label", sa.Text, comment="what the last change replaced"),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1", comment="1 plus the number of changes"),
        postgresql_partition_by="RANGE (prediction_id)",
    )
    op.execute("CREATE SEQUENCE prediction_label_history_id")
    op.create_table(
        "prediction_label_history",
        sa.Column("prediction_id", pg.UUID, primary_key=True),
        sa.Column(
            "history_id",
            sa.BigInteger,
            primary_key=True,
            autoincrement=False,
            server_default=sa.text("nextval('prediction_label_history_id')"),
        ),
        sa.Column("label", sa.Text),
        sa.Column("observed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("received_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("outcome", sa.Text, nullable=False, comment="new, unchanged, corrected or withdrawn"),
        postgresql_partition_by="RANGE (prediction_id)",
    )
    op.create_table(
        "pending_label",
        sa.Column("pending_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("prediction_id", pg.UUID),
        sa.Column("external_id", sa.Text),
        sa.Column("label", sa.Text),
        sa.Column("observed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("received_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("next_try_at", sa.TIMESTAMP(timezone=True), nullable=False, comment="when the sweep looks again"),
        sa.CheckConstraint("num_nonnulls(prediction_id, external_id) = 1", name="pending_label_one_key"),
    )
    op.create_index("pending_label_next_try_at", "pending_label", ["next_try_at"])


def create_quality_result() -> None:
    """Create the table of the latest result per model, version and window, which every replica exports."""
    op.create_table(
        "quality_result",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("model_version", sa.Text, primary_key=True),
        sa.Column("window_name", sa.Text, primary_key=True),
        sa.Column("computed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("since", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("until", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("average", sa.Text, nullable=False),
        sa.Column("f1", sa.Double, comment="null unless the state is ok"),
        sa.Column("predictions", sa.BigInteger, nullable=False),
        sa.Column("labelled", sa.BigInteger, nullable=False),
        sa.Column("confusion", pg.JSONB, nullable=False, comment="{label: {predicted class: rows}}"),
    )


def downgrade() -> None:
    """Drop everything, including the data."""
    op.execute("DROP FUNCTION make_prediction_partitions")
    for table in ("quality_result", "pending_label", *reversed(PARTITIONED), "model_version"):
        op.drop_table(table)
    op.execute("DROP SEQUENCE prediction_label_history_id")
    op.execute("DROP FUNCTION prediction_id_at")
