"""The committed dashboards, and their queries with Grafana's variables filled in."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT

DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))

VALUES = {
    "$__rate_interval": "1m",
    "${model:sqlstring}": "'car-loan'",
    "${version:sqlstring}": "'1'",
    "${window:sqlstring}": "'1h'",
    "$model": "car-loan",
    "$version": "(1)",
    "$window": "1h",
}
"""What Grafana puts in for the demo's model: several versions become alternatives of a regular expression."""


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One query of one panel."""

    name: str
    kind: str
    text: str


def read_dashboard(path: Path) -> dict[str, Any]:
    """Return a dashboard's JSON."""
    dashboard: dict[str, Any] = json.loads(path.read_text())
    return dashboard


def list_panels() -> list[tuple[str, dict[str, Any]]]:
    """Return every panel but the titles of rows, each with a name for tests."""
    return [
        (f"{path.stem}: {panel['title']}", panel)
        for path in DASHBOARDS
        for panel in read_dashboard(path)["panels"]
        if panel["type"] != "row"
    ]


def list_queries(kind: str) -> list[PanelQuery]:
    """Return every query, filled in, of the data sources of a type: of panels, and of annotations."""
    return [query for query in _list_all() if query.kind == kind]


def _list_all() -> Iterator[PanelQuery]:
    for name, panel in list_panels():
        for target in panel["targets"]:
            text = target.get("expr") or target["rawSql"]
            yield PanelQuery(f"{name} {target['refId']}", target["datasource"]["type"], fill_in(text))
    for path in DASHBOARDS:
        for mark in read_dashboard(path)["annotations"]["list"]:
            yield PanelQuery(f"{path.stem}: {mark['name']}", mark["datasource"]["type"], fill_in(mark["expr"]))


def fill_in(text: str) -> str:
    """Put values in the place of variables; fail when one is left that these tests do not know."""
    for variable, value in VALUES.items():
        text = text.replace(variable, value)
    left = set(re.findall(r"\$\{?\w+", text)) - {"$__timeFrom", "$__timeTo"}
    assert not left, f"{text}: {left}"
    return text
