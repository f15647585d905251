"""The dashboard "ML Predictions Dashboard": five panels of overview, quality, the log, HTTP and the latest rows."""

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import timeseries
from grafana_foundation_sdk.models import dashboard as models

from grafana import queries
from grafana.expressions import JOB, VERSION, WINDOW, ask_answers, ask_delay, ask_latency, ask_quantile, newest
from grafana.panels import (
    Panels,
    make_graph,
    make_heatmap,
    make_stat,
    make_states,
    make_table,
    make_trend,
    query,
    query_now,
    style,
)

SECONDS_ON_THE_RIGHT = style(unit="s", custom_axisPlacement="right", custom_lineStyle={"fill": "dash", "dash": [6, 4]})


def list_overview_panels() -> Panels:
    """List the five panels at the top."""
    return [
        make_stat(
            "Model F1 Score",
            "F1 over the labelled predictions of the chosen window. Unknown: see the quality state below.",
            "none",
            query(newest("model_f1_score"), "{{model}} {{model_version}}"),
            size=(6, 8),
            decimals=3,
            no_value="unknown",
        ),
        make_stat(
            "Predictions per Minute",
            "Answered predictions, all replicas together.",
            "cpm",
            query(f"60 * sum by (model, model_version) (rate(predictions_total{{{VERSION}}}[$__rate_interval]))"),
            size=(6, 8),
            decimals=1,
        ),
        graph_requests(),
        make_heatmap(
            "Prediction Score Distribution",
            "How many predictions had which score: the probability of the positive class; with more than two "
            "classes, of the predicted one. A band that moves is drift.",
            query(f"sum by (le) (increase(prediction_score_distribution_bucket{{{VERSION}}}[$__rate_interval]))"),
            "none",
        ),
        make_graph(
            "Predictions by Class",
            "Answered predictions per second, by predicted class.",
            "cps",
            query(f"sum by (class) (rate(predictions_total{{{VERSION}}}[$__rate_interval]))", "class {{class}}"),
            stacked=True,
        ),
    ]


def graph_requests() -> timeseries.Panel:
    """Draw requests by status on the left, latency of /predict on the right."""
    panel = make_graph(
        "Request Rate & Latency",
        "Left: answers per second by status, without health checks and scrapes. Right, dashed: how long answers of "
        "/predict take; the agreement is 99 % within 100 ms.",
        "reqps",
        ask_answers(),
        *(ask_latency(quantile, f'{JOB}, route="/predict"') for quantile in ("0.5", "0.95", "0.99")),
    )
    return panel.override_by_regexp("/^p[0-9]+$/", SECONDS_ON_THE_RIGHT)


def list_quality_panels() -> Panels:
    """List the panels that show the model's quality, and how well it is known."""
    return [
        graph_f1(),
        make_states(
            "Quality State",
            "ok: the numbers are reliable. Other states say why they are missing or weak; stale: the job does not run. "
            "docs/quality.md says what to do.",
            query(
                f"max by (model_version, state) (model_quality_state{{{WINDOW}}}) == 1", "{{model_version}} {{state}}"
            ),
        ),
        make_graph(
            "Precision, Recall, Accuracy",
            "Precision: how far a positive prediction can be trusted. Recall: how many positives are found.",
            "percentunit",
            query(newest("model_precision"), "precision {{model_version}}"),
            query(newest("model_recall"), "recall {{model_version}}"),
            query(newest("model_accuracy"), "accuracy {{model_version}}"),
        ),
        make_graph(
            "Label Coverage",
            "Share of the window's predictions that have a label (left), and how many have one (right). If it "
            "falls while F1 is steady, labels have stopped.",
            "percentunit",
            query(newest("model_label_coverage_ratio"), "coverage {{model_version}}"),
            query(newest("model_labelled_predictions"), "labelled {{model_version}}"),
        ).override_by_regexp("/^labelled/", style(unit="short", custom_axisPlacement="right")),
        make_graph(
            "Labels Received",
            "Labels per minute by what became of them: pending ones wait for their prediction's row, rejected ones "
            "name an unknown class.",
            "cpm",
            query("60 * sum by (outcome) (rate(model_labels_total[$__rate_interval]))", "{{outcome}}"),
            stacked=True,
        ),
        make_graph(
            "Label Delay",
            "From a prediction to its first label, over the labels that came within an hour.",
            "s",
            *(ask_delay(quantile) for quantile in ("0.5", "0.9")),
        ),
        make_table(
            "Confusion",
            "Labelled predictions of the window: a row for each label, a column for each predicted class.",
            "short",
            queries.CONFUSION,
        ).with_transformation(
            models.DataTransformerConfig(
                id_val="groupingToMatrix",
                options={"columnField": "predicted", "rowField": "label", "valueField": "rows", "emptyValue": "zero"},
            )
        ),
        make_trend(
            "F1 by Threshold",
            "F1 that each threshold would have had on the window's labelled predictions, of the newest chosen version. "
            "The peak is the best threshold, in hindsight. Two classes only.",
            "none",
            queries.F1_BY_THRESHOLD,
            "threshold",
        ),
        make_table(
            "Results",
            "What the quality job has stored, every window: best threshold and the F1 there, AUC, Brier score, "
            "calibration error (ECE), and F1 corrected for labels that come for some predictions more often than for "
            "others.",
            "none",
            queries.RESULTS,
            size=(24, 7),
        ).decimals(3),
    ]


def graph_f1() -> timeseries.Panel:
    """Draw F1 with its bounds, the objective and the baseline; one panel for each version."""
    panel = make_graph(
        "F1 of Version $version",
        "The band holds the true F1 in 95 % of windows. All of it under the objective: the model is worse than agreed. "
        "Corrected: labels weighted to stand for all predictions. Baseline: always predicting one class.",
        "none",
        query(newest("model_f1_score"), "F1"),
        query(newest("model_f1_score_lower_bound"), "lower bound"),
        query(newest("model_f1_score_upper_bound"), "upper bound"),
        query(newest("model_f1_score_corrected"), "corrected"),
        query(newest("model_baseline_f1_score"), "baseline"),
        query("max(model_f1_objective)", "objective"),
    )
    band = {"color": {"mode": "fixed", "fixedColor": "blue"}, "custom_lineWidth": 0}
    return (
        panel.repeat("version")
        .repeat_direction("h")
        .max_per_row(2)
        .decimals(3)
        .override_by_name("F1", style(color={"mode": "fixed", "fixedColor": "blue"}, custom_lineWidth=2))
        .override_by_name("lower bound", style(**band))
        .override_by_name("upper bound", style(**band, custom_fillBelowTo="lower bound", custom_fillOpacity=15))
        .override_by_name("objective", style(color={"mode": "fixed", "fixedColor": "red"}, custom_fillOpacity=0))
    )


def list_log_panels() -> Panels:
    """List the panels that show whether rows reach PostgreSQL."""
    return [
        make_graph(
            "Rows Answered and Stored",
            "Predictions answered 200, and rows that PostgreSQL has committed. Refused ones were answered 503 "
            "because the log could not take them.",
            "cps",
            query(f"sum(rate(prediction_log_answered_rows_total{{{JOB}}}[$__rate_interval]))", "answered"),
            query(f"sum(rate(prediction_log_stored_rows_total{{{JOB}}}[$__rate_interval]))", "stored"),
            query(f"sum(rate(prediction_log_refused_rows_total{{{JOB}}}[$__rate_interval]))", "refused"),
            size=(8, 8),
        ),
        make_graph(
            "Waiting for PostgreSQL",
            "Rows promised and not stored yet (left), and the age of the oldest (right).",
            "short",
            query(f"sum by (instance) (prediction_log_pending_rows{{{JOB}}})", "pending {{instance}}"),
            query(f"max by (instance) (prediction_log_lag_seconds{{{JOB}}})", "lag {{instance}}"),
            size=(8, 8),
        ).override_by_regexp("/^lag/", SECONDS_ON_THE_RIGHT),
        make_graph(
            "Spool",
            "Size of the spool on disk, including stored segments that are kept for a while, and SPOOL_MAX_BYTES, at "
            "which predictions are refused.",
            "bytes",
            query(f"prediction_log_spool_bytes{{{JOB}}}", "used {{instance}}"),
            query(f"max(prediction_log_spool_max_bytes{{{JOB}}})", "SPOOL_MAX_BYTES"),
            size=(8, 8),
        ),
        make_graph(
            "Time of a COMMIT",
            "Insert and COMMIT of one batch.",
            "s",
            *(ask_quantile(quantile, "prediction_log_commit_seconds", JOB) for quantile in ("0.5", "0.99")),
            size=(8, 8),
        ),
        make_graph(
            "Failed Attempts",
            "Attempts to store a batch that failed, by kind. Transient ones are tried again; the others need a person.",
            "cpm",
            query(
                f"60 * sum by (kind) (rate(prediction_log_failures_total{{{JOB}}}[$__rate_interval])) or vector(0)",
                "{{kind}}",
            ),
            size=(8, 8),
        ),
        make_graph(
            "Rows to Look After",
            "Dead: PostgreSQL refuses them. Damaged: damaged places in the spool. Unaccounted: answered 200 and "
            "missing. All must be 0.",
            "short",
            query(f"sum(prediction_log_dead_rows_total{{{JOB}}})", "dead"),
            query(f"sum(prediction_log_spool_damaged_total{{{JOB}}})", "damaged"),
            query("sum(clamp_min(instance:prediction_log_unaccounted:rows, 0))", "unaccounted"),
            size=(8, 8),
        ),
    ]


def list_http_panels() -> Panels:
    """List the panels that show requests, and the cost of the model."""
    return [
        make_graph(
            "Requests by Route",
            "Answers per second by route template.",
            "reqps",
            query(f"sum by (route) (rate(http_requests_total{{{JOB}}}[$__rate_interval]))", "{{route}}"),
        ),
        make_graph(
            "Latency by Route",
            "95 % of the answers take at most this long.",
            "s",
            query(
                "histogram_quantile(0.95, sum by (le, route) "
                f"(rate(http_request_duration_seconds_bucket{{{JOB}}}[$__rate_interval])))",
                "{{route}}",
            ),
        ),
        make_graph(
            "Time of a Run",
            "One run of the model, including reading its outputs.",
            "s",
            *(ask_quantile(quantile, "inference_seconds", VERSION) for quantile in ("0.5", "0.99")),
        ),
        make_graph(
            "Rows of a Run",
            "Requests that wait at the same time share a run: under more load a run has more rows.",
            "short",
            *(ask_quantile(quantile, "inference_batch_rows", VERSION) for quantile in ("0.5", "0.99")),
        ),
        make_table(
            "Loaded Models",
            "Every model file that a replica has loaded.",
            "none",
            query_now("count by (model, model_version, sha256) (model_info)"),
            size=(24, 5),
        ),
    ]


def list_rows() -> Panels:
    """List the panel with the newest rows of the log."""
    return [
        make_table(
            "Latest Predictions",
            "The newest 100 rows of the dashboard's time range, with their labels, from PostgreSQL.",
            "none",
            queries.LATEST_PREDICTIONS,
            size=(24, 12),
        )
    ]


ROWS = {
    "Quality": list_quality_panels,
    "Prediction log": list_log_panels,
    "HTTP and inference": list_http_panels,
    "Rows": list_rows,
}


def add_panels(dashboard: builders.Dashboard) -> builders.Dashboard:
    """Put every panel on the dashboard."""
    for panel in list_overview_panels():
        dashboard.with_panel(panel)
    for title, list_panels in ROWS.items():
        dashboard.with_row(builders.Row(title))
        for panel in list_panels():
            dashboard.with_panel(panel)
    return dashboard
