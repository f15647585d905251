"""Rules and their documentation fit the code. What Prometheus itself says to them is in tests/system."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.support.pages import list_anchors
from tests.support.processes import ROOT
from tests.support.rules import ALERTS, RULES, SEED_QUERIES, find_unknown

UIDS = {json.loads(path.read_text())["uid"] for path in ROOT.glob("grafana/dashboards/*.json")}

ALERTS_PAGE = ROOT / "docs" / "alerts.md"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rule_reads_what_is_exported(rule: dict[str, Any]) -> None:
    assert find_unknown(rule["expr"]) == []


@pytest.mark.parametrize("query", SEED_QUERIES)
def test_query_of_the_seed_reads_what_is_exported(query: str) -> None:
    assert find_unknown(query) == []


@pytest.mark.parametrize(
    "query",
    ["model_f1", "sum by (route) (rate(predictions_total[5m]))", 'up == 1 and model_info{file="a"}', "job:no:rule"],
)
def test_unknown_names_and_labels_are_found(query: str) -> None:
    assert len(find_unknown(query)) == 1


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_says_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    annotations = rule["annotations"]

    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["labels"]["area"]
    assert annotations["summary"]
    assert annotations["description"]
    page, _, anchor = annotations["runbook_url"].partition("#")
    assert page == "{{ $externalLabels.runbook_base }}/alerts.md"
    assert anchor == rule["alert"].lower()
    dashboard = re.match(r"{{ \$externalLabels\.dashboard_base }}/d/([\w-]+)", annotations["dashboard_url"])
    assert dashboard is not None
    assert dashboard[1] in UIDS
    assert anchor in list_anchors(ALERTS_PAGE)


def test_alerts_page_says_of_each_alert_whether_it_pages() -> None:
    sections = re.findall(r"^### (\w+)\n+\*\*(page|ticket)\.\*\*", ALERTS_PAGE.read_text(), re.MULTILINE)

    assert dict(sections) == {rule["alert"]: rule["labels"]["severity"] for rule in ALERTS}


def test_every_alert_has_a_case_that_fires_and_every_file_one_in_which_nothing_does() -> None:
    fires = set()
    for path in ROOT.glob("prometheus/*.test.yml"):
        cases = yaml.safe_load(path.read_text())["tests"]
        fires |= {check["alertname"] for check in find_checks(cases, "alert_rule_test") if check.get("exp_alerts")}
        expected = [check for check in find_checks(cases, "promql_expr_test") if check.get("exp_samples")]
        fires |= set(re.findall(r'ALERTS\{alertname="(\w+)"', str(expected)))
        silent = [check for check in find_checks(cases, "promql_expr_test") if not check.get("exp_samples")]
        assert any(check["expr"].startswith(("ALERTS", "count_over_time(ALERTS")) for check in silent), path

    assert fires == {rule["alert"] for rule in ALERTS}


def find_checks(cases: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [check for case in cases for check in case.get(kind, [])]
