"""The kinds of panels that the dashboards are made of: all look alike, and each says what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, stat, statetimeline, table, text, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as choices
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# Grafana's own names of colours; it has a shade of each for its light and its dark theme.
GREEN, AMBER, RED, BLUE, GREY = "green", "orange", "red", "blue", "text"

# From which value upwards which colour; the first is of all below.
Levels = Sequence[tuple[float | None, str]]
FINE: Levels = ((None, GREEN),)

_Panel = TypeVar("_Panel", timeseries.Panel, stat.Panel, bargauge.Panel, statetimeline.Panel, table.Panel)


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what a series is called: `{{label}}` stands for a label's value."""

    expr: str
    legend: str = ""


def data_source(kind: str) -> DataSourceRef:
    """The one that is chosen at the top of the dashboard: `prometheus`, `tempo` or `loki`."""
    return DataSourceRef(type_val=kind, uid=f"${{{kind}}}")


def over_time(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    width: int = 6,
    height: int = 8,
    stacked: bool = False,
    shares: bool = False,
    bars: bool = False,
    lines_at: Levels = (),
    colors: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    most: float | None = None,
    exemplars: bool = False,
    none: str = "",
    beside: bool = False,
    log: bool = False,
    shades_of: str = "",
) -> timeseries.Panel:
    """Curves over time. `stacked` on each other, as `shares` of their sum, or as `bars`; dashed `lines_at` limits.

    `colors` and `names` are by legend; `names` replaces what stands there. `beside`: the legend is a table with means.
    `none` is what it says where there are no data. `log`: tenfold is as high as tenfold, for what takes milliseconds or minutes.
    `shades_of` a colour, for what is never good.
    """
    legend = common.VizLegendOptions().show_legend(True)
    if beside:
        legend.display_mode(choices.LegendDisplayMode.TABLE).placement(choices.LegendPlacement.RIGHT)
        legend.calcs(["mean", "max"])
    else:
        legend.display_mode(choices.LegendDisplayMode.LIST).placement(choices.LegendPlacement.BOTTOM)
    panel = (
        _framed(timeseries.Panel(), title, about, width, height)
        .unit(unit)
        .line_width(2)
        .fill_opacity(80 if stacked or bars else 0)
        .draw_style(choices.GraphDrawStyle.BARS if bars else choices.GraphDrawStyle.LINE)
        .show_points(choices.VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(choices.TooltipDisplayMode.MULTI).sort(choices.SortOrder.DESCENDING))
    )
    if log:
        panel.scale_distribution(common.ScaleDistributionConfig().type(choices.ScaleDistribution.LOG).log(10))
    else:
        panel.min(0)
    if shades_of:
        panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.SHADES).fixed_color(shades_of))
    if stacked or shares or bars:
        mode = choices.StackingMode.PERCENT if shares else choices.StackingMode.NORMAL
        panel.stacking(common.StackingConfig().mode(mode).group("A"))
    if most is not None:
        panel.max(most)
    if none:
        panel.no_value(none)
    if lines_at:
        panel.thresholds(_thresholds(lines_at))
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(choices.GraphThresholdsStyleMode.DASHED)  # a line at each
        )
    for query in queries:
        target = Dataquery().expr(query.expr).legend_format(query.legend).range()
        panel.with_target(target.exemplar(True) if exemplars else target)
    for legend_name in dict.fromkeys([*(colors or {}), *(names or {})]):
        properties = []
        if colors and legend_name in colors:
            properties.append(_fixed_color(colors[legend_name]))
        if names and legend_name in names:
            properties.append(DynamicConfigValue("displayName", names[legend_name]))
        panel.override_by_name(legend_name, properties)
    return panel


def number(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    width: int = 3,
    height: int = 4,
    levels: Levels = FINE,
    levels_of: Mapping[str, Levels] | None = None,
    decimals: int | None = None,
    none: str = "",
) -> stat.Panel:
    """The value of now, large, in the colour of its level. `levels_of`: of some legends their own."""
    panel = (
        _framed(stat.Panel(), title, about, width, height)
        .unit(unit)
        .thresholds(_thresholds(levels))
        .color_mode(choices.BigValueColorMode.BACKGROUND)
        .graph_mode(choices.BigValueGraphMode.NONE)
        .text_mode(
            choices.BigValueTextMode.VALUE_AND_NAME
            if len(queries) > 1 or "{{" in queries[0].legend
            else choices.BigValueTextMode.VALUE
        )
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel.decimals(decimals)
    if none:
        panel.no_value(none)
    for query in queries:
        panel.with_target(Dataquery().expr(query.expr).legend_format(query.legend).instant())
    for legend, own in (levels_of or {}).items():
        panel.override_by_name(legend, [DynamicConfigValue("thresholds", _thresholds(own).build())])
    return panel


def distribution(title: str, about: str, histogram: str, *, width: int = 4, height: int = 8) -> bargauge.Panel:
    """How many scans of the time shown are in each bin of a Prometheus histogram; the bins by their upper bounds."""
    expr = f'sum by (le) (increase({histogram}_bucket{{job=~"$job"}}[$__range]))'
    return (
        _horizontal_bars(title, about, width, height)
        .unit("short")
        .decimals(0)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(BLUE))
        .with_target(Dataquery().expr(expr).legend_format("{{le}}").format(PromQueryFormat.HEATMAP).instant())
    )


def bars(
    title: str,
    about: str,
    query: Query,
    *,
    unit: str,
    width: int,
    height: int,
    colors: Mapping[str, str],
    names: Mapping[str, str],
) -> bargauge.Panel:
    """The values of now side by side."""
    panel = (
        _horizontal_bars(title, about, width, height)
        .unit(unit)
        .with_target(Dataquery().expr(query.expr).legend_format(query.legend).instant())
    )
    for legend, name in names.items():
        panel.override_by_name(legend, [_fixed_color(colors[legend]), DynamicConfigValue("displayName", name)])
    return panel


def states(
    title: str,
    about: str,
    query: Query,
    *,
    says: Mapping[int, tuple[str, str]],
    width: int = 12,
    height: int = 8,
    none: str = "",
) -> statetimeline.Panel:
    """What is in which state, and since when. `says`: text and colour of each value."""
    mapping = {str(value): ValueMappingResult(text=words, color=color) for value, (words, color) in says.items()}
    panel = (
        _framed(statetimeline.Panel(), title, about, width, height)
        .mappings([ValueMap(options=mapping)])
        .merge_values(True)
        .show_value(choices.VisibilityMode.AUTO)
        .row_height(0.8)
        .legend(common.VizLegendOptions().show_legend(False))
        .with_target(Dataquery().expr(query.expr).legend_format(query.legend).range())
    )
    return panel.no_value(none) if none else panel


def rows_of(
    title: str, about: str, query: Query, *, columns: Mapping[str, str], width: int = 12, height: int = 8
) -> table.Panel:
    """A table of what a query gives now: of its labels and `Value`, those in `columns`, in that order, under those names."""
    return (
        _framed(table.Panel(), title, about, width, height)
        .with_target(Dataquery().expr(query.expr).format(PromQueryFormat.TABLE).instant())
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {label: place for place, label in enumerate(columns)},
                    "renameByName": dict(columns),
                },
            )
        )
    )


def words(title: str, content: str, *, width: int, height: int) -> text.Panel:
    """Text, in Markdown."""
    return text.Panel().title(title).content(content).span(width).height(height)


def _framed(panel: _Panel, title: str, about: str, width: int, height: int) -> _Panel:
    """What every panel of Prometheus' data has."""
    return panel.title(title).description(about).datasource(data_source("prometheus")).span(width).height(height)


def _horizontal_bars(title: str, about: str, width: int, height: int) -> bargauge.Panel:
    return (
        _framed(bargauge.Panel(), title, about, width, height)
        .min(0)
        .orientation(choices.VizOrientation.HORIZONTAL)
        .display_mode(choices.BarGaugeDisplayMode.BASIC)
        .show_unfilled(False)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _thresholds(levels: Levels) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=value, color=color) for value, color in levels]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _fixed_color(color: str) -> DynamicConfigValue:
    return DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})
