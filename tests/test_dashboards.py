"""The committed dashboards are those of the script, fit Grafana's types and read what is exported."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from grafana.build import BUILDERS, encode
from tests.support.dashboards import DASHBOARDS, PanelQuery, fill_in, list_panels, list_queries, read_dashboard
from tests.support.processes import ROOT
from tests.support.rules import find_unknown

PREDICTIONS = ROOT / "grafana" / "dashboards" / "ml-predictions.json"
PROVISIONING = ROOT / "grafana" / "provisioning"

EACH = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)

SCHEMA = json.loads((ROOT / "tests" / "grafana_schema.json").read_text())
"""Grafana's types of a dashboard and of panels' options, independent of the library that builds them."""

KNOWN_TO_THE_DATA_SOURCE = (
    r"^\$\.annotations\.list\[\d\]: .*\('expr', 'step', 'textFormat', 'titleFormat' were unexpected\)"
)
"""The types name no field of an annotation's query but those of Grafana's own data source; Prometheus reads these."""


@EACH
def test_committed_dashboard_is_what_the_script_builds(path: Path) -> None:
    assert path.read_text() == encode(BUILDERS[path.name]()), "run `make dashboards`"


def test_every_dashboard_is_committed() -> None:
    assert [path.name for path in DASHBOARDS] == sorted(BUILDERS)


@EACH
def test_dashboard_fits_grafanas_published_types(path: Path) -> None:
    assert set(find_misfits(read_dashboard(path))) == set()


def test_misfits_are_found() -> None:
    dashboard = read_dashboard(PREDICTIONS)
    dashboard["graph_tooltip"] = 1
    dashboard["panels"][0]["fieldConfig"]["defaults"]["thresholds"]["mode"] = "relative"
    dashboard["panels"][0]["options"]["graphMode"] = "curve"
    dashboard["panels"][2]["fieldConfig"]["defaults"]["custom"]["lineStyle"] = {"fill": "dotted"}

    assert len(set(find_misfits(dashboard))) >= 4


def find_misfits(dashboard: dict[str, Any]) -> Iterator[str]:
    """Yield what Grafana's types have no place for: of the dashboard, and of each panel's own options."""
    yield from explain(SCHEMA["dashboard"], dashboard)
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            schemas = SCHEMA["panels"][panel["type"]]
            yield from explain(schemas["options"], panel["options"])
            if "custom" in panel["fieldConfig"]["defaults"]:
                yield from explain(schemas["fieldConfig"], panel["fieldConfig"]["defaults"]["custom"])


def explain(schema: dict[str, Any], value: object) -> Iterator[str]:
    for error in Draft7Validator(schema).iter_errors(value):
        message = f"{error.json_path}: {error.message}"
        if not re.search(KNOWN_TO_THE_DATA_SOURCE, message):
            yield message


def test_first_five_panels_are_the_overview() -> None:
    dashboard = read_dashboard(PREDICTIONS)

    assert dashboard["title"] == "ML Predictions Dashboard"
    assert dashboard["refresh"] == "10s"
    assert dashboard["time"] == {"from": "now-6h", "to": "now"}
    assert [(panel["title"], panel["type"]) for panel in dashboard["panels"][:5]] == [
        ("Model F1 Score", "stat"),
        ("Predictions per Minute", "stat"),
        ("Request Rate & Latency", "timeseries"),
        ("Prediction Score Distribution", "heatmap"),
        ("Predictions by Class", "timeseries"),
    ]


@pytest.mark.parametrize(("name", "panel"), list_panels(), ids=lambda value: value if isinstance(value, str) else "")
def test_panel_says_what_it_shows_and_in_which_unit(name: str, panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]


@EACH
def test_panels_do_not_overlap_and_have_numbers_of_their_own(path: Path) -> None:
    panels = read_dashboard(path)["panels"]

    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_on_call_fits_on_one_screen() -> None:
    panels = read_dashboard(PREDICTIONS.with_name("ml-on-call.json"))["panels"]

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    assert rows * 38 <= 1080  # pixels: a row of Grafana's grid with its gap


@pytest.mark.parametrize("query", list_queries("prometheus"), ids=lambda query: query.name)
def test_query_reads_what_is_exported(query: PanelQuery) -> None:
    assert find_unknown(query.text) == []


def test_variables_are_values_of_labels_that_exist() -> None:
    variables = read_dashboard(PREDICTIONS)["templating"]["list"]
    asked = [re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]) for variable in variables]

    assert [variable["name"] for variable in variables] == ["model", "version", "window"]
    for match in asked:
        assert match is not None
        assert find_unknown(f"sum by ({match[2]}) ({fill_in(match[1])})") == []


def test_data_sources_are_provisioned_under_the_uids_that_panels_name() -> None:
    sources = yaml.safe_load((PROVISIONING / "datasources" / "datasources.yml").read_text())["datasources"]
    provisioned = {(source["type"], source["uid"]) for source in sources}

    used = {
        (target["datasource"]["type"], target["datasource"]["uid"])
        for _, panel in list_panels()
        for target in panel["targets"]
    }
    assert used <= provisioned
    assert {source["url"] for source in sources} == {"http://prometheus:9090", "http://alertmanager:9093", "db:5432"}


def test_dashboards_are_provisioned_into_the_folder_mlops() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "dashboards.yml").read_text())["providers"]

    assert provider["folder"] == "MLOps"


def test_prometheus_scrapes_the_services_of_the_stack_every_15_seconds() -> None:
    configuration = yaml.safe_load((ROOT / "prometheus.yml").read_text())

    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in configuration["scrape_configs"]}
    assert targets == {
        "scorekeeper": ["app:8000"],
        "prometheus": ["localhost:9090"],
        "alertmanager": ["alertmanager:9093"],
    }
    assert configuration["global"]["scrape_interval"] == "15s"
    alerting = configuration["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert alerting == targets["alertmanager"]
