"""What panels of both dashboards ask Prometheus."""

from grafana.panels import Query, query

VERSION = 'model="$model", model_version=~"$version"'
WINDOW = f'{VERSION}, window="$window"'
JOB = 'job="scorekeeper"'
"""Other services may have metrics with the names of the log and of HTTP: this selects those of our scrape job."""


def newest(metric: str) -> str:
    """Return the expression of a quality gauge: every replica exports the same one."""
    return f"max without (instance) ({metric}{{{WINDOW}}})"


def ask_answers() -> Query:
    """Ask for answers per second by status, without health checks and scrapes."""
    asked = f'{JOB}, route!~"(/v2)?/health.*|/metrics"'
    return query(f"sum by (status) (rate(http_requests_total{{{asked}}}[$__rate_interval]))", "{{status}}")


def ask_latency(quantile: str, selector: str) -> Query:
    """Ask for a quantile of how long answers take, e.g. `p99`."""
    return ask_quantile(quantile, "http_request_duration_seconds", selector)


def ask_quantile(quantile: str, histogram: str, selector: str) -> Query:
    """Ask for a quantile of a histogram, named e.g. `p99`."""
    buckets = f"sum by (le) (rate({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    return query(f"histogram_quantile({quantile}, {buckets})", f"p{round(float(quantile) * 100)}")


def ask_delay(quantile: str) -> Query:
    """Ask for a quantile of the delay of labels over the last hour: labels may be rare."""
    buckets = "sum by (le) (rate(model_label_delay_seconds_bucket[1h]))"
    return query(f"histogram_quantile({quantile}, {buckets})", f"p{round(float(quantile) * 100)}")
