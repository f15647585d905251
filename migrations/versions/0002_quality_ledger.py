"""The quality ledger, with counts of predictions and labels by triggers; retention; results with bounds and history.

The migration also counts the existing rows; writers wait meanwhile, about 2 s per million rows. Replicas of the release
before go on taking predictions and labels, but their quality job fails until they are replaced.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCORE_FUNCTIONS = (
    """
CREATE FUNCTION score_bin(score real) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN least(floor(least(greatest(score::float8, 0), 1) * 100), 99)::smallint
""",
    """
CREATE FUNCTION score_billionths(score real) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN round(least(greatest(score::float8, 0), 1) * 1000000000)::integer
""",
    """
CREATE FUNCTION score_square_billionths(score real) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN round(least(greatest(score::float8, 0), 1) ^ 2 * 1000000000)::integer
""",
)
"""Integers, so that sums are exact in any order. A score outside 0 to 1 counts as the nearest number in it."""

COUNT_PREDICTIONS = """
CREATE FUNCTION count_predictions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp
AS $$
BEGIN
    INSERT INTO quality_delta (minute, model_name, model_version, role, score_bin, predicted_class, label, rows,
        score_sum, score_square_sum, delay_sum)
    SELECT date_bin('1 minute', created_at, 'epoch'), model_name, model_version, role, score_bin(score),
        predicted_class, NULL, count(*), sum(score_billionths(score)), sum(score_square_billionths(score)), 0
    FROM changed
    WHERE created_at >= (SELECT dropped_before FROM prediction_retention)
    GROUP BY 1, 2, 3, 4, 5, 6;
    RETURN NULL;
END
$$
"""

COUNT_LABELS = """
CREATE FUNCTION {name}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp
AS $$
DECLARE
    first_id uuid := (SELECT prediction_id FROM changed WHERE label IS NOT NULL ORDER BY prediction_id LIMIT 1);
    last_id uuid;
BEGIN
    IF first_id IS NULL THEN
        RETURN NULL;
    END IF;
    last_id := (SELECT prediction_id FROM changed WHERE label IS NOT NULL ORDER BY prediction_id DESC LIMIT 1);
    INSERT INTO quality_delta (minute, model_name, model_version, role, score_bin, predicted_class, label, rows,
        score_sum, score_square_sum, delay_sum)
    SELECT date_bin('1 minute', p.created_at, 'epoch'), p.model_name, p.model_version, p.role, score_bin(p.score),
        p.predicted_class, l.label, {sign} count(*), {sign} sum(score_billionths(p.score)),
        {sign} sum(score_square_billionths(p.score)), {sign} sum(label_delay(p.created_at, l.received_at))
    FROM changed l
    LEFT JOIN LATERAL (
        SELECT created_at, model_name, model_version, role, score, predicted_class FROM prediction_log
        WHERE prediction_id = l.prediction_id AND prediction_id BETWEEN first_id AND last_id LIMIT 1
    ) p ON true
    WHERE l.label IS NOT NULL
        AND (p.created_at IS NULL OR p.created_at >= (SELECT dropped_before FROM prediction_retention))
    GROUP BY 1, 2, 3, 4, 5, 6, 7;
    RETURN NULL;
END
$$
"""
"""With the bounds of ids the planner leaves out the partitions of other days; else each statement would open all."""

LABEL_DELAY = """
CREATE FUNCTION label_delay(predicted_at timestamptz, received_at timestamptz) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN greatest(0, floor(extract(epoch FROM received_at - predicted_at) * 1000))::bigint
"""

TRIGGERS = (
    ("prediction_log", "count_predictions", "INSERT", "NEW", "count_predictions"),
    ("prediction_label", "count_new_labels", "INSERT", "NEW", "add_labels"),
    ("prediction_label", "count_old_labels_out", "UPDATE", "OLD", "remove_labels"),
    ("prediction_label", "count_changed_labels", "UPDATE", "NEW", "add_labels"),
    ("prediction_label", "count_deleted_labels_out", "DELETE", "OLD", "remove_labels"),
)

CREATE_TRIGGER = """
CREATE TRIGGER {name} AFTER {event} ON {table} REFERENCING {transition} TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION {function}()
"""

COUNT_WHAT_IS_THERE = """
WITH row AS (
    SELECT date_bin('1 minute', p.created_at, 'epoch') AS minute, p.model_name, p.model_version, p.role,
        score_bin(p.score) AS score_bin, p.predicted_class, l.label, count(*) AS rows,
        sum(score_billionths(p.score)) AS score_sum, sum(score_square_billionths(p.score)) AS score_square_sum,
        sum(CASE WHEN l.label IS NOT NULL THEN label_delay(p.created_at, l.received_at) ELSE 0 END) AS delay_sum
    FROM prediction_log p LEFT JOIN prediction_label l USING (prediction_id)
    GROUP BY 1, 2, 3, 4, 5, 6, 7
)
INSERT INTO quality_delta (minute, model_name, model_version, role, score_bin, predicted_class, label, rows,
    score_sum, score_square_sum, delay_sum)
SELECT minute, model_name, model_version, role, score_bin, predicted_class, NULL, sum(rows), sum(score_sum),
    sum(score_square_sum), 0
FROM row GROUP BY 1, 2, 3, 4, 5, 6
UNION ALL
SELECT * FROM row WHERE label IS NOT NULL
"""

DROP_OLDEST_PARTITIONS = """
CREATE FUNCTION drop_oldest_prediction_partitions(before date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '1s'
AS $$
DECLARE
    parent text;
    child text;
    day date;
    dropped integer := 0;
BEGIN
    IF before >= (now() AT TIME ZONE 'UTC')::date THEN
        RAISE EXCEPTION 'asked to drop the partitions before %, today is kept', before;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('make_prediction_partitions'));
    SELECT min(right(c.relname, 8)::date) INTO day FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = ANY (ARRAY['prediction_log', 'prediction_label', 'prediction_label_history']::regclass[])
        AND c.relname ~ '_[0-9]{{8}}$';
    IF day IS NULL OR day >= before THEN
        RETURN 0;
    END IF;
    FOREACH parent IN ARRAY ARRAY['prediction_log', 'prediction_label', 'prediction_label_history'] LOOP
        child := parent || to_char(day, '_YYYYMMDD');
        CONTINUE WHEN to_regclass(child) IS NULL;
        EXECUTE format('DROP TABLE %I', child);
        dropped := dropped + 1;
    END LOOP;
    UPDATE prediction_retention
    SET dropped_before = greatest(dropped_before, (day + 1)::timestamp AT TIME ZONE 'UTC');
    RETURN dropped;
END
$$
"""


def upgrade() -> None:
    """Create the ledger and count the existing rows; creating the triggers locks writers out until COMMIT."""
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    for function in (*SCORE_FUNCTIONS, LABEL_DELAY):
        op.execute(function)
    create_ledger()
    op.execute(COUNT_PREDICTIONS.format(schema=schema))
    op.execute(COUNT_LABELS.format(schema=schema, name="add_labels", sign="+"))
    op.execute(COUNT_LABELS.format(schema=schema, name="remove_labels", sign="-"))
    for table, name, event, transition, function in TRIGGERS:
        statement = CREATE_TRIGGER.format(name=name, event=event, table=table, transition=transition, function=function)
        op.execute(statement)
    op.execute(COUNT_WHAT_IS_THERE)
    op.execute(DROP_OLDEST_PARTITIONS.format(schema=schema))
    op.execute("REVOKE EXECUTE ON FUNCTION drop_oldest_prediction_partitions FROM PUBLIC")
    op.drop_table("quality_result")
    create_results()


def create_ledger() -> None:
    """Create the append-only table of changes, written by the triggers, and the table of buckets, filled by the job."""
    op.create_table(
        "prediction_retention",
        sa.Column("dropped_before", sa.TIMESTAMP(timezone=True), nullable=False),
        comment="one row: older rows have been dropped; what still comes for that time is not counted",
    )
    op.execute("INSERT INTO prediction_retention VALUES ('-infinity')")
    op.create_table(
        "quality_delta",
        sa.Column("minute", sa.TIMESTAMP(timezone=True), comment="of the prediction"),
        *make_cell_columns(),
        sa.CheckConstraint("minute IS NOT NULL", name="label_has_a_stored_prediction"),
        comment="signed changes of the ledger that are not in quality_bucket yet",
    )
    op.execute("ALTER TABLE quality_delta SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)")
    op.create_table(
        "quality_bucket",
        sa.Column("span", sa.Integer, nullable=False, comment="length in seconds: 60, 600, 3600, 21600 or 86400"),
        sa.Column("starts_at", sa.TIMESTAMP(timezone=True), nullable=False),
        *make_cell_columns(),
        comment="counts of predictions by time, version, role, score bin, class and label",
    )
    op.execute("ALTER TABLE quality_bucket SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)")
    op.create_index(
        "quality_bucket_cell",
        "quality_bucket",
        ["span", "starts_at", "model_name", "model_version", "role", "score_bin", "predicted_class", "label"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )


def make_cell_columns() -> tuple[sa.Column[object], ...]:
    """Return the columns that both tables of the ledger have: what is counted, and the counts."""
    return (
        sa.Column("model_name", sa.Text),
        sa.Column("model_version", sa.Text),
        sa.Column("role", sa.Text),
        sa.Column("score_bin", sa.SmallInteger, comment="b: b/100 <= score < (b+1)/100, the last one 1 too"),
        sa.Column("predicted_class", sa.Text),
        sa.Column("label", sa.Text, comment="null: every prediction, labelled or not"),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("score_sum", sa.BigInteger, nullable=False, comment="billionths"),
        sa.Column("score_square_sum", sa.BigInteger, nullable=False, comment="billionths"),
        sa.Column("delay_sum", sa.BigInteger, nullable=False, comment="ms from predictions to their labels"),
    )


def create_results() -> None:
    """Create the tables of the latest results, which every replica exports, and of their history."""
    key = ("model_name", "model_version", "role", "window_name")
    op.create_table(
        "quality_result",
        *(sa.Column(name, sa.Text, primary_key=True) for name in key),
        sa.Column("computed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("since", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("until", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("label_delay_seconds", sa.Double, comment="mean from predictions to their labels"),
        sa.Column("confusion", pg.JSONB, nullable=False, comment="{label: {predicted class: rows}}"),
        sa.Column("measures", pg.JSONB, nullable=False, comment="state and numbers; null: undefined"),
    )
    op.create_table(
        "quality_history",
        sa.Column("minute", sa.TIMESTAMP(timezone=True), primary_key=True, comment="its last result is kept"),
        *(sa.Column(name, sa.Text, primary_key=True) for name in key),
        sa.Column("since", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("until", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("predictions", sa.BigInteger, nullable=False),
        sa.Column("labelled", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("f1", "f1_lower", "f1_upper", "corrected_f1", "baseline_f1")),
        *(sa.Column(name, sa.Double) for name in ("precision", "recall", "accuracy")),
        comment="results over time: one a minute for a day, one an hour for 400 days",
    )
    op.create_table(
        "quality_check",
        sa.Column("minute", sa.TIMESTAMP(timezone=True), nullable=False, comment="the newest one that was checked"),
        sa.Column("mismatch_rows", sa.BigInteger, nullable=False, comment="0: the ledger was right"),
        comment="one row: the last check of the ledger against the rows",
    )
    op.execute("INSERT INTO quality_check VALUES ('epoch', 0)")


def downgrade() -> None:
    """Drop the ledger and the results; create the old table of results, empty: the job fills it."""
    for table, name, *_ in TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON {table}")
    for function in ("count_predictions", "add_labels", "remove_labels", "drop_oldest_prediction_partitions"):
        op.execute(f"DROP FUNCTION {function}")
    for table in (
        "quality_check",
        "quality_history",
        "quality_result",
        "quality_bucket",
        "quality_delta",
        "prediction_retention",
    ):
        op.drop_table(table)
    for function in ("score_bin", "score_billionths", "score_square_billionths", "label_delay"):
        op.execute(f"DROP FUNCTION {function}")
    op.create_table(
        "quality_result",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("model_name", "model_version", "window_name")),
        *(sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False) for name in ("computed_at", "since", "until")),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("average", sa.Text, nullable=False),
        sa.Column("f1", sa.Double, comment="null unless the state is ok"),
        sa.Column("predictions", sa.BigInteger, nullable=False),
        sa.Column("labelled", sa.BigInteger, nullable=False),
        sa.Column("confusion", pg.JSONB, nullable=False, comment="{label: {predicted class: rows}}"),
    )
