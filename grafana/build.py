"""Write `dashboards/*.json`: python -m grafana.build [DIRECTORY]."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType

from grafana import on_call, predictions
from grafana.panels import Annotation, AnnotationBuilder, make_variable

HERE = Path(__file__).parent

VERSION_CHANGES = Annotation(
    "Version changes",
    "count by (model, model_version) (model_info) unless count by (model, model_version) (model_info offset 1m)",
    "{{model}} {{model_version}} is loaded",
    "",
    "blue",
)
FIRING_ALERTS = Annotation(
    "Alerts", 'ALERTS{alertstate="firing", job="scorekeeper"}', "{{alertname}}", "{{severity}} {{instance}}", "red"
)


def build_predictions() -> Dashboard:
    """Build the dashboard of the models and their predictions."""
    dashboard = start("ML Predictions Dashboard", "ml-predictions", "What the models predict, and how good they are.")
    dashboard.time("now-6h", "now")
    dashboard.variables(
        [
            make_variable("model", "One model", "label_values(model_quality_state, model)"),
            make_variable(
                "version", "Its versions", 'label_values(model_quality_state{model="$model"}, model_version)', many=True
            ),
            make_variable("window", "Of QUALITY_WINDOWS", 'label_values(model_quality_state{model="$model"}, window)'),
        ]
    )
    return predictions.add_panels(dashboard)


def build_on_call() -> Dashboard:
    """Build the dashboard of the on-call engineer."""
    dashboard = start("On Call", "ml-on-call", "Is it up, is it fast, is it right, is anything lost?")
    dashboard.time("now-3h", "now")
    return on_call.add_panels(dashboard)


def start(title: str, uid: str, description: str) -> Dashboard:
    """Start a dashboard with what both have."""
    link = DashboardLink("Scorekeeper").type(DashboardLinkType.DASHBOARDS).tags(["scorekeeper"]).keep_time(True)
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["scorekeeper"])
        .timezone("browser")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(link)
        .annotations([AnnotationBuilder(VERSION_CHANGES), AnnotationBuilder(FIRING_ALERTS)])
    )


BUILDERS: dict[str, Callable[[], Dashboard]] = {
    "ml-predictions.json": build_predictions,
    "ml-on-call.json": build_on_call,
}


def encode(dashboard: Dashboard) -> str:
    """Return a dashboard as JSON, its panels numbered."""
    plain: dict[str, Any] = json.loads(json.dumps(dashboard.build(), cls=JSONEncoder))
    for number, panel in enumerate(plain["panels"], start=1):
        panel["id"] = number
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def main(directory: Path) -> None:
    """Write every dashboard."""
    for name, build in BUILDERS.items():
        (directory / name).write_text(encode(build()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "dashboards")
