"""Panels in this project's style, made with Grafana's own builders."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, statetimeline, table, timeseries, trend
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_options
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="prometheus")
POSTGRES = models.DataSourceRef(type_val="grafana-postgresql-datasource", uid="postgres")
"""The uids of `provisioning/datasources`."""

Query = prometheus.Dataquery
Panel = TypeVar("Panel", stat.Panel, timeseries.Panel, heatmap.Panel, table.Panel, statetimeline.Panel, trend.Panel)

Panels = list[Builder[models.Panel]]


class Sql(Dataquery):
    """A query of the PostgreSQL data source, which Grafana's library has no type for."""

    def __init__(self, statement: str) -> None:
        self.statement = statement.strip()

    def to_json(self) -> Mapping[str, object]:
        """Return what the data source's editor writes."""
        return {
            "datasource": POSTGRES,
            "editorMode": "code",
            "format": "table",
            "rawQuery": True,
            "rawSql": self.statement,
            "refId": "A",
        }


class SqlBuilder(Builder[Sql]):
    """Builds a query for a panel."""

    def __init__(self, statement: str) -> None:
        self.statement = statement

    def build(self) -> Sql:
        """Return the query."""
        return Sql(self.statement)


def query(expression: str, legend: str = "__auto") -> Query:
    """Ask Prometheus for series over the dashboard's time range."""
    return Query().expr(expression).legend_format(legend).range()


def query_now(expression: str, legend: str = "__auto") -> Query:
    """Ask Prometheus for the latest value of series."""
    return Query().expr(expression).legend_format(legend).instant()


def make_stat(  # noqa: PLR0913  # a panel is what it shows
    title: str,
    description: str,
    unit: str,
    target: Query,
    *,
    size: tuple[int, int],
    limits: Sequence[tuple[float | None, str]] = ((None, "blue"),),
    decimals: int | None = None,
    no_value: str = "no data",
) -> stat.Panel:
    """Make one number; each of `limits` has a value and the colour from there on."""
    panel = place(stat.Panel(), title, description, unit, size)
    if decimals is not None:
        panel.decimals(decimals)
    return (
        panel.targets([target.datasource(PROMETHEUS).ref_id("A")])
        .datasource(PROMETHEUS)
        .no_value(no_value)
        .thresholds(make_limits(limits))
        .graph_mode(options.BigValueGraphMode.AREA)
        .color_mode(options.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def make_graph(
    title: str, description: str, unit: str, *targets: Query, size: tuple[int, int] = (12, 8), stacked: bool = False
) -> timeseries.Panel:
    """Make lines over time."""
    panel = place(timeseries.Panel(), title, description, unit, size)
    mode = options.StackingMode.NORMAL if stacked else options.StackingMode.NONE
    return (
        panel.targets(number(targets))
        .datasource(PROMETHEUS)
        .fill_opacity(40 if stacked else 5)
        .stacking(common.StackingConfig().mode(mode))
        .show_points(options.VisibilityMode.NEVER)
        .axis_soft_min(0)
        .tooltip(make_tooltip())
        .legend(make_legend())
    )


def make_heatmap(
    title: str, description: str, target: Query, unit: str, *, size: tuple[int, int] = (12, 8)
) -> heatmap.Panel:
    """Make a histogram over time; `unit` is that of the histogram's edges."""
    buckets = target.format(PromQueryFormat.HEATMAP).legend_format("{{le}}")
    return (
        place(heatmap.Panel(), title, description, unit, size)
        .targets(number([buckets]))
        .datasource(PROMETHEUS)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(options.AxisPlacement.LEFT))
        .cell_values(heatmap.CellValues().unit("short"))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_options.HeatmapColorMode.SCHEME)
            .scheme("Viridis")
            .exponent(0.5)
            .steps(64)
        )
    )


def make_states(title: str, description: str, target: Query, *, size: tuple[int, int] = (12, 8)) -> statetimeline.Panel:
    """Make a bar for each series over time, visible while the series exists."""
    return (
        place(statetimeline.Panel(), title, description, "none", size)
        .targets(number([target]))
        .datasource(PROMETHEUS)
        .show_value(options.VisibilityMode.NEVER)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    )


def make_table(
    title: str, description: str, unit: str, target: Query | str, *, size: tuple[int, int] = (12, 8)
) -> table.Panel:
    """Make a table of the latest values of series, or of what SQL returns."""
    panel = place(table.Panel().show_header(True), title, description, unit, size)
    if isinstance(target, str):
        return panel.targets([SqlBuilder(target)]).datasource(POSTGRES)
    return panel.targets(number([target.format(PromQueryFormat.TABLE)])).datasource(PROMETHEUS)


def make_trend(
    title: str, description: str, unit: str, statement: str, x: str, *, size: tuple[int, int] = (12, 8)
) -> trend.Panel:
    """Make a curve over the numbers of the column `x`."""
    panel = place(trend.Panel(), title, description, unit, size)
    panel.targets([SqlBuilder(statement)]).datasource(POSTGRES).x_field(x)
    return panel.tooltip(make_tooltip()).legend(make_legend(show=False))


def place(panel: Panel, title: str, description: str, unit: str, size: tuple[int, int]) -> Panel:
    """Give a panel what each must have; `size` is width, of 24, and height."""
    return panel.title(title).description(description).unit(unit).span(size[0]).height(size[1])


def number(targets: Sequence[Query]) -> list[Builder[Dataquery]]:
    """Name queries A, B, C, ..., as Grafana does."""
    return [target.datasource(PROMETHEUS).ref_id(chr(ord("A") + at)) for at, target in enumerate(targets)]


def make_legend(*, show: bool = True) -> common.VizLegendOptions:
    """Name the series below a graph."""
    return (
        common.VizLegendOptions()
        .show_legend(show)
        .display_mode(options.LegendDisplayMode.LIST)
        .placement(options.LegendPlacement.BOTTOM)
    )


def make_tooltip() -> common.VizTooltipOptions:
    """Show every series at the time under the mouse, the largest first."""
    return common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING)


def make_limits(limits: Sequence[tuple[float | None, str]]) -> builders.ThresholdsConfig:
    """Make colours, each from a value on; None is below all values."""
    steps = [models.Threshold(value, color) for value, color in limits]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def style(**properties: object) -> list[models.DynamicConfigValue]:
    """Make what an override sets: `unit`, or with `_` for `.`, e.g. `custom_axisPlacement`."""
    return [models.DynamicConfigValue(name.replace("_", "."), value) for name, value in properties.items()]


class Annotation(models.AnnotationQuery):
    """A mark on every graph of a dashboard where a Prometheus query has a series."""

    def __init__(self, name: str, expression: str, title: str, text: str, color: str) -> None:
        super().__init__(name=name, datasource=PROMETHEUS, enable=True, icon_color=color, expr=expression)
        self.title = title
        self.text = text

    def to_json(self) -> dict[str, object]:
        """Add what the Prometheus data source reads and Grafana's library does not know."""
        return {**super().to_json(), "step": "15s", "titleFormat": self.title, "textFormat": self.text}


class AnnotationBuilder(Builder[models.AnnotationQuery]):
    """Builds an annotation for a dashboard."""

    def __init__(self, annotation: Annotation) -> None:
        self.annotation = annotation

    def build(self) -> models.AnnotationQuery:
        """Return the annotation."""
        return self.annotation


def make_variable(name: str, description: str, values: str, *, many: bool = False) -> builders.QueryVariable:
    """Make a choice among the values that a label has in the dashboard's time range."""
    variable = (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .description(description)
        .datasource(PROMETHEUS)
        .query({"query": values, "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
        .multi(many)
        .include_all(many)
    )
    only_of_intervals = variable.build()
    only_of_intervals.auto = only_of_intervals.auto_count = only_of_intervals.auto_min = None
    return variable.current(models.VariableOption(text="All", value="$__all")) if many else variable
