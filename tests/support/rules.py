"""Prometheus's rules, and whether what they read is exported."""

from collections.abc import Iterator
from typing import Any

import yaml
from prometheus_client import REGISTRY

from app import metrics
from tests.support.processes import ROOT
from tests.support.promql import Use, find_uses

RULE_FILES = sorted(ROOT.glob("prometheus/*.rules.yml"))

TARGET_LABELS = {"job", "instance"}
"""What Prometheus adds to every series that it scrapes."""

MADE_BY_PROMETHEUS = {"up", "ALERTS"}

SEED_QUERIES = (
    "model_f1_score",
    "rate(predictions_total[5m])",
    "rate(http_requests_total[5m])",
    "histogram_quantile(0.95, rate(prediction_score_distribution_bucket[5m]))",
)


def read_rules() -> list[dict[str, Any]]:
    """Return every rule of every file."""
    files = [yaml.safe_load(path.read_text()) for path in RULE_FILES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


RULES = read_rules()
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def list_exported() -> dict[str, set[str]]:
    """Return the labels of every sample that a server exports, by the sample's name."""
    exported = {name: set(read_labels(one, name)) for name, one in REGISTRY._names_to_collectors.items()}
    for metric in metrics.QUICK_METRICS:
        if isinstance(metric, metrics.QuickCounter):
            exported[f"{metric.name}_total"] = set(metric.labelnames)
        else:
            exported |= {f"{metric.name}{end}": set(metric.labelnames) for end in ("_count", "_sum")}
            exported[f"{metric.name}_bucket"] = {*metric.labelnames, "le"}
    return exported


def read_labels(collector: object, name: str) -> Iterator[str]:
    yield from getattr(collector, "_labelnames", ())
    if name.endswith("_bucket"):
        yield "le"


def find_unknown(expression: str) -> list[Use]:
    """Return what an expression reads and nobody exports: an unknown name, or a name with a label it does not have."""
    exported = list_exported()
    of_prometheus = MADE_BY_PROMETHEUS | RECORDED
    return [
        use
        for use in find_uses(expression)
        if use.metric not in of_prometheus
        and (use.metric not in exported or not use.labels <= exported[use.metric] | TARGET_LABELS)
    ]
