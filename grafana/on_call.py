"""The dashboard "On Call": is it up, is it fast, is it right, is anything lost, on one screen."""

from grafana_foundation_sdk.builders import dashboard as builders

from grafana.expressions import JOB, ask_answers, ask_latency
from grafana.panels import Panels, make_graph, make_stat, make_table, query, query_now

OK, WARN, BAD = "green", "orange", "red"

SERVED = "on (job, model, model_version) job:model_served:group"
"""With `and`: only versions that are served; the windows go on showing one that was rolled back."""

STAT, GRAPH = (3, 4), (6, 8)


def list_numbers() -> Panels:
    """List one number for each question that an alert asks; green means that there is no alert."""
    return [
        make_stat(
            "Up",
            "Share of the replicas that Prometheus can scrape.",
            "percentunit",
            query(f"avg(up{{{JOB}}})"),
            size=STAT,
            limits=((None, BAD), (1, OK)),
        ),
        make_stat(
            "Predictions that Fail",
            "Share of predictions answered 5xx in the last 5 minutes. Agreed: 0.1 % in a month. No data: no requests.",
            "percentunit",
            query("max(job:predict_failed:ratio_rate5m)"),
            size=STAT,
            limits=((None, OK), (0.001, WARN), (0.0144, BAD)),
            decimals=2,
        ),
        make_stat(
            "Slow Predictions",
            "Share of answers of /predict that took longer than 100 ms in the last 5 minutes. Agreed: 1 % in a month.",
            "percentunit",
            query("max(job:predict_slow:ratio_rate5m)"),
            size=STAT,
            limits=((None, OK), (0.01, WARN), (0.144, BAD)),
            decimals=2,
        ),
        make_stat(
            "F1 above Objective",
            "Upper bound of F1 minus F1_OBJECTIVE, of the worst served version and window with enough "
            "labels. Below 0: worse than agreed, and chance does not explain it.",
            "none",
            query(
                "min(max without (instance) (model_f1_score_upper_bound) "
                "- on (job) group_left max by (job) (model_f1_objective) "
                f"and job:model_quality_ok:max == 1 and {SERVED})"
            ),
            size=STAT,
            limits=((None, BAD), (0, OK)),
            decimals=3,
            no_value="none",
        ),
        make_stat(
            "Versions that Are Known",
            "Served versions with a window in the state ok. The quality of the others is unknown.",
            "short",
            query(f"sum(max without (window) (job:model_quality_ok:max) and {SERVED})"),
            size=STAT,
            limits=((None, WARN), (1, OK)),
        ),
        make_stat(
            "Age of the Numbers",
            "Time since the quality job last computed them, on any replica.",
            "s",
            query("time() - max(model_quality_last_success_timestamp_seconds)"),
            size=STAT,
            limits=((None, OK), (60, WARN), (300, BAD)),
            decimals=0,
        ),
        make_stat(
            "Rows Lost",
            "Rows answered 200 that are missing, that PostgreSQL refuses, or that are damaged. Must be 0.",
            "short",
            query(
                "sum(clamp_min(instance:prediction_log_unaccounted:rows, 0)) "
                f"+ sum(prediction_log_dead_rows_total{{{JOB}}}) + sum(prediction_log_spool_damaged_total{{{JOB}}})"
            ),
            size=STAT,
            limits=((None, OK), (1, BAD)),
        ),
        make_stat(
            "Log Behind",
            "Age of the oldest promised row that PostgreSQL does not have yet.",
            "s",
            query(f"max(prediction_log_lag_seconds{{{JOB}}})"),
            size=STAT,
            limits=((None, OK), (60, WARN), (900, BAD)),
            decimals=1,
        ),
    ]


def list_graphs() -> Panels:
    """List the graphs that show when a problem began: one column for each question."""
    every = "max without (instance) ({}) "
    return [
        make_graph(
            "Is It Up",
            "Answers per second by status, without health checks and scrapes.",
            "reqps",
            ask_answers(),
            size=GRAPH,
            stacked=True,
        ),
        make_graph(
            "Is It Fast",
            "How long answers of /predict take.",
            "s",
            *(ask_latency(quantile, f'{JOB}, route="/predict"') for quantile in ("0.5", "0.95", "0.99")),
            size=GRAPH,
        ),
        make_graph(
            "Is It Right",
            "Upper bound of F1 of every version and window, and the objective.",
            "none",
            query(every.format("model_f1_score_upper_bound"), "{{model}} {{model_version}} {{window}}"),
            query("max(model_f1_objective)", "objective"),
            size=GRAPH,
        ).decimals(3),
        make_graph(
            "Is Anything Lost",
            "Rows promised and not stored yet, by replica.",
            "short",
            query(f"sum by (instance) (prediction_log_pending_rows{{{JOB}}})", "pending {{instance}}"),
            size=GRAPH,
        ),
        make_graph(
            "Error Budget",
            "How many times faster than agreed the budget of failures is spent, over an hour. 14.4 pages somebody.",
            "none",
            query("max(job:predict_failed:ratio_rate1h) / 0.001", "failures"),
            size=GRAPH,
        ),
        make_graph(
            "Latency Budget",
            "How many times faster than agreed the budget of slow answers is spent, over an hour. 14.4 pages somebody.",
            "none",
            query("max(job:predict_slow:ratio_rate1h) / 0.01", "slow answers"),
            size=GRAPH,
        ),
        make_graph(
            "Label Coverage",
            "Share of predictions that have a label, of every version and window.",
            "percentunit",
            query(every.format("model_label_coverage_ratio"), "{{model}} {{model_version}} {{window}}"),
            size=GRAPH,
        ),
        make_graph(
            "Spool",
            "Used share of SPOOL_MAX_BYTES. At 100 % predictions are refused; no data at level `database`.",
            "percentunit",
            query("instance:prediction_log_spool_used:ratio", "{{instance}}"),
            size=GRAPH,
        ),
    ]


def add_panels(dashboard: builders.Dashboard) -> builders.Dashboard:
    """Put every panel on the dashboard."""
    alerts = make_table(
        "Alerts",
        "Alerts that fire now. docs/alerts.md says what each means and what to do.",
        "none",
        query_now('sum by (severity, alertname, model, model_version, window, instance) (ALERTS{alertstate="firing"})'),
        size=(24, 6),
    )
    for panel in (*list_numbers(), alerts, *list_graphs()):
        dashboard.with_panel(panel)
    return dashboard
