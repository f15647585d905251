"""Every Prometheus object: name, help, labels and buckets."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Summary
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector


class QuickCounter:
    """A counter whose `add` costs one look-up in a dictionary; prometheus_client's own takes a lock and five calls."""

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str]) -> None:
        self.name = name
        self.labelnames = labelnames
        self._documentation = documentation
        self._counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self._heads: dict[tuple[str, ...], str] = {}
        QUICK_METRICS.append(self)

    def add(self, labels: tuple[str, ...], count: int = 1) -> None:
        """Count; 0 makes the series begin at 0. Call this on the event loop only."""
        self._counts[labels] += count

    def render(self, *, is_openmetrics: bool) -> str:
        """Return the samples as text."""
        family = self.name if is_openmetrics else f"{self.name}_total"
        for labels in self._counts.keys() - self._heads.keys():
            self._heads[labels] = f"{self.name}_total{{{_spell_pairs(self.labelnames, labels)}}}"
        lines = [f"{self._heads[labels]} {count}.0\n" for labels, count in self._counts.items()]
        return _describe_family(family, self._documentation, "counter") + "".join(lines)


class BatchHistogram:
    """A histogram that counts a whole batch of values at about the cost of one value."""

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str], edges: Sequence[float]) -> None:
        self.name = name
        self.labelnames = labelnames
        self._documentation = documentation
        self._edges = np.array(edges)
        self._counts: defaultdict[tuple[str, ...], NDArray[np.int64]] = defaultdict(self._make_counts)
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._waiting: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
        self._heads: dict[tuple[str, ...], list[str]] = {}
        if not labelnames:
            self.observe((), [])  # without labels there is one series, from the start
        QUICK_METRICS.append(self)

    def add(self, labels: tuple[str, ...], value: float) -> None:
        """Collect one value; collected values are counted together, at 1000 of them or at the next scrape."""
        waiting = self._waiting[labels]
        waiting.append(value)
        if len(waiting) >= 1000:
            self._fold(labels)

    def _fold(self, labels: tuple[str, ...]) -> None:
        self.observe(labels, self._waiting.pop(labels))

    def observe(self, labels: tuple[str, ...], values: ArrayLike) -> None:
        """Count finite values; one equal to an edge is in the bucket below it. No values: the series begins at 0."""
        buckets = np.searchsorted(self._edges, values, side="left")
        self._counts[labels] += np.bincount(buckets, minlength=len(self._edges) + 1)
        self._sums[labels] += float(np.sum(values))

    def render(self, *, is_openmetrics: bool) -> str:  # noqa: ARG002  # the same text in both formats
        """Return the samples as text."""
        for labels in list(self._waiting):
            self._fold(labels)
        for labels in self._counts.keys() - self._heads.keys():
            self._heads[labels] = self._spell_heads(labels)
        lines = [_describe_family(self.name, self._documentation, "histogram")]
        for labels, counts in self._counts.items():
            totals = np.cumsum(counts).tolist()
            values = [*(f"{total}.0" for total in (*totals, totals[-1])), repr(self._sums[labels])]
            lines += [f"{head} {value}\n" for head, value in zip(self._heads[labels], values, strict=True)]
        return "".join(lines)

    def _spell_heads(self, labels: tuple[str, ...]) -> list[str]:
        """Spell what is before the values of a series: its buckets, its count and its sum."""
        bounds = [*map(str, self._edges.tolist()), "+Inf"]
        buckets = [_spell_pairs([*self.labelnames, "le"], [*labels, bound]) for bound in bounds]
        pairs = _spell_pairs(self.labelnames, labels)
        shown = f"{{{pairs}}}" if pairs else ""
        heads = [f"{self.name}_bucket{{{bucket}}}" for bucket in buckets]
        return [*heads, f"{self.name}_count{shown}", f"{self.name}_sum{shown}"]

    def _make_counts(self) -> NDArray[np.int64]:
        return np.zeros(len(self._edges) + 1, dtype=np.int64)


def _describe_family(family: str, documentation: str, kind: str) -> str:
    return f"# HELP {family} {documentation}\n# TYPE {family} {kind}\n"


def _spell_pairs(names: Sequence[str], values: Sequence[str]) -> str:
    escaped = [value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for value in values]
    return ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True))


QUICK_METRICS: list[QuickCounter | BatchHistogram] = []
"""The metrics of every request and row; all others are in prometheus_client's registry."""


def expose(accept: str) -> tuple[bytes, str]:
    """Return all metrics as text and its media type: OpenMetrics if the client accepts it, else Prometheus's own.

    prometheus_client takes 16 to 28 us for a line, and the quick metrics have more than a thousand: they write theirs.
    """
    encode, content_type = choose_encoder(accept)
    is_openmetrics = content_type.startswith("application/openmetrics-text")
    quick = "".join([metric.render(is_openmetrics=is_openmetrics) for metric in QUICK_METRICS])
    return quick.encode() + encode(REGISTRY), content_type


class OptionalGauge(Collector):
    """A gauge without a sample until it has a value; prometheus_client's own gauge would start at 0."""

    def __init__(self, name: str, documentation: str) -> None:
        self._describe = (name, documentation)
        self.value: float | None = None
        REGISTRY.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the sample, for Prometheus."""
        yield GaugeMetricFamily(*self._describe, value=self.value)


HTTP_REQUESTS = QuickCounter("http_requests", "Answers by method, route and status", ["method", "route", "status"])
HTTP_REQUEST_DURATION = BatchHistogram(
    "http_request_duration_seconds",
    "From the request's last byte received to the answer's last byte handed to the socket",
    ["method", "route"],
    edges=[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
)


@cache
def _spell_labels(method: str, route: str, status: int) -> tuple[str, str, str]:
    return method, route, str(status)


def begin_request_series(method: str, route: str, statuses: Iterable[int]) -> None:
    """Let the series of a route begin at 0: `increase` does not see the value that a series is born with."""
    for status in statuses:
        HTTP_REQUESTS.add(_spell_labels(method, route, status), 0)
    HTTP_REQUEST_DURATION.observe((method, route), [])


def begin_model_series(model: str, version: str, classes: Iterable[str]) -> None:
    """Let the series of a version begin at 0; `classes` as text."""
    for name in classes:
        PREDICTIONS.add((model, version, name), 0)
    PREDICTION_SCORES.observe((model, version), [])
    for outcome in ("success", "fail"):
        OPEN_INFERENCE_SECONDS.labels(model, version, outcome)


def count_request(method: str, route: str, status: int, seconds: float | None) -> None:
    """Count an answer and, unless None, its duration; callers keep method, route and status to a bounded set."""
    HTTP_REQUESTS.add(_spell_labels(method, route, status))
    if seconds is not None:
        HTTP_REQUEST_DURATION.add((method, route), seconds)


ACCESS_LOG_DROPPED = Counter(
    "access_log_dropped_lines_total",
    "Lines of the access log that were dropped because standard error did not take them",
)


CLOCK_SKEW = OptionalGauge(
    "clock_skew_seconds", "How far this server's clock is ahead of the database's; no sample: it was never read"
)

PREDICTIONS = QuickCounter(
    "predictions", "Answered predictions by predicted class", ["model", "model_version", "class"]
)
PREDICTION_SCORES = BatchHistogram(
    "prediction_score_distribution",
    "Scores of answered predictions: probability of the positive class; with more than two, of the predicted one",
    ["model", "model_version"],
    edges=[round(0.05 * edge, 2) for edge in range(1, 21)],
)
MODEL_INFO = Gauge("model_info", "1 for each loaded model file", ["model", "model_version", "sha256"])
MODEL_VERSION_DEFAULT = Gauge(
    "model_version_default",
    "1 for the loaded version that answers requests that name no version, 0 for the model's other loaded versions",
    ["model", "model_version"],
)
MODEL_LOAD_FAILURES = Counter(
    "model_load_failures_total", "Model files that were refused since the start, and scans of MODEL_DIR that failed"
)
INFERENCE_SECONDS = Histogram(
    "inference_seconds",
    "Time of one run of a model, including reading its outputs",
    ["model", "model_version"],
    buckets=(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
INFERENCE_BATCH_ROWS = Histogram(
    "inference_batch_rows",
    "Rows scored by one onnxruntime run",
    ["model", "model_version"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384),
)
MODEL_OUTPUT_REFUSED = Counter(
    "model_output_refused_rows_total",
    "Rows whose request was answered 503 because the model's output for them was not probabilities of its classes",
    ["model", "model_version"],
)
OPEN_INFERENCE_SECONDS = Summary(
    "open_inference_request_seconds",
    "Time of an inference request under /v2 to a known model, by outcome: success or fail",
    ["model", "model_version", "outcome"],
)

LOG_ANSWERED = Counter("prediction_log_answered_rows_total", "Rows that the log has promised to store")
LOG_STORED = Counter(
    "prediction_log_stored_rows_total",
    "Rows that PostgreSQL has committed, including rows that earlier processes promised",
)
LOG_REPEATED = Counter("prediction_log_repeated_rows_total", "Rows sent to PostgreSQL that it had stored before")
LOG_REFUSED = Counter(
    "prediction_log_refused_rows_total", "Rows whose request was answered 503 because the log could not take them"
)
LOG_DEAD = Counter(
    "prediction_log_dead_rows_total", "Rows that PostgreSQL refuses for their content, kept in the spool's folder dead/"
)
LOG_PENDING = Gauge(
    "prediction_log_pending_rows", "Rows that were promised or wait for their promise, and are not stored yet"
)
LOG_LAG = Gauge("prediction_log_lag_seconds", "Age of the oldest row that was promised and is not stored yet")
LOG_COMMIT_SECONDS = Histogram(
    "prediction_log_commit_seconds",
    "Time of one batch's insert and COMMIT",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
LOG_BATCH_ROWS = Histogram(
    "prediction_log_batch_rows", "Rows stored by one batch", buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384)
)
LOG_FAILURES = Counter("prediction_log_failures_total", "Failed attempts to store a batch, by kind", ["kind"])
SPOOL_BYTES = Gauge("prediction_log_spool_bytes", "Size of the spool on disk, including stored segments that are kept")
SPOOL_MAX_BYTES = OptionalGauge("prediction_log_spool_max_bytes", "SPOOL_MAX_BYTES; no sample: there is no spool")
SPOOL_FAILURES = Counter("prediction_log_spool_failures_total", "Groups that could not be written or synced to disk")
SPOOL_TORN_TAILS = Counter(
    "prediction_log_spool_torn_tails_total",
    "Incomplete ends of segments that were dropped; their rows were never promised",
)
SPOOL_DAMAGED = Counter(
    "prediction_log_spool_damaged_total", "Damaged places in promised segments, kept in the spool's folder corrupt/"
)

LABELS = Counter("model_labels_total", "Received labels by outcome", ["outcome"])
PENDING_LABELS = OptionalGauge(
    "model_pending_labels", "Labels that wait for their prediction, as PostgreSQL counts them for all replicas"
)
REJECTED_LABELS = OptionalGauge(
    "model_rejected_labels", "Labels of the last 24 hours that no class of their model fits, on all replicas"
)
LABEL_DELAY = BatchHistogram(
    "model_label_delay_seconds",
    "From a prediction to the arrival of its first label",
    [],
    edges=[1, 10, 60, 600, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400, 14 * 86400, 30 * 86400, 90 * 86400],
)

QUALITY_LABELS = ["model", "model_version", "window"]
MODEL_MEASURES = {
    measure: Gauge(name, f"{documentation}; no sample: undefined", QUALITY_LABELS)
    for measure, name, documentation in (
        ("f1", "model_f1_score", "F1 over the labelled predictions of the window"),
        ("f1_lower", "model_f1_score_lower_bound", "Lower end of the 95 % interval of F1"),
        ("f1_upper", "model_f1_score_upper_bound", "Upper end of the 95 % interval of F1"),
        ("corrected_f1", "model_f1_score_corrected", "F1 with labels weighted to stand for all predictions"),
        ("precision", "model_precision", "Share of the predictions of a class that are right"),
        ("recall", "model_recall", "Share of the labels of a class that were predicted"),
        ("accuracy", "model_accuracy", "Share of labelled predictions that were right"),
        ("baseline_f1", "model_baseline_f1_score", "F1 of always predicting one class"),
        ("coverage", "model_label_coverage_ratio", "Labelled share of the window's predictions"),
        ("labelled", "model_labelled_predictions", "Predictions of the window that have a label"),
    )
}
"""Each gauge by the field of `app.measures.measure.Measures` that it exports."""
MODEL_QUALITY_STATE = Gauge(
    "model_quality_state", "1 for the state that holds, 0 for the others", [*QUALITY_LABELS, "state"]
)
MODEL_F1_OBJECTIVE = OptionalGauge("model_f1_objective", "F1_OBJECTIVE; no sample: it is not set")
LEDGER_MISMATCH = OptionalGauge(
    "model_quality_ledger_mismatch_rows",
    "Rows by which the ledger differed from the log at the last check; 0: exact; no sample: it took too long",
)
QUALITY_LAST_SUCCESS = Gauge(
    "model_quality_last_success_timestamp_seconds", "When the exported quality results were computed, by any replica"
)
QUALITY_FAILURES = Counter("model_quality_failures_total", "Runs of the quality job that failed")
LABEL_SWEEP_FAILURES = Counter(
    "model_label_sweep_failures_total", "Failed runs of the job that applies labels once their prediction is stored"
)
PARTITION_FAILURES = Counter(
    "prediction_log_partition_failures_total", "Failed runs of the job that makes and drops partitions"
)
