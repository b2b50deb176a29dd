"""The shapes of Grafana's dashboard JSON that ours needs, and their layout.

Plain dicts, as in Grafana's reference of the dashboard JSON model; whatever is omitted has
Grafana's default.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

JSON = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
METRIC = re.compile(r"\b(funnel_\w+)(\{)?")
"""A metric of the service in an expression, and the brace of its labels if it names any."""
COLUMNS = 24
"""Width of Grafana's grid."""


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the name of its series."""

    expr: str
    legend: str

    @property
    def of_instance(self) -> str:
        """The expression on the services that the variable ``instance`` chooses."""
        return METRIC.sub(
            lambda found: f'{found[1]}{{instance=~"$instance"{"," if found[2] else "}"}',
            self.expr,
        )


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[JSON]


def timeseries(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    limits: tuple[float | None, float | None] = (None, None),
    log: bool = False,
    style: JSON | None = None,
    overrides: Sequence[JSON] = (),
    width: int = 8,
) -> JSON:
    """Return a panel of lines over time.

    Args:
        title: in a few words.
        description: what it is, what is good and what is bad.
        queries: what to draw.
        unit: of Grafana's, or ``suffix: …``.
        limits: of the axis, as far as they are fixed.
        log: draw on a logarithmic axis.
        style: how lines are drawn, where it differs from Grafana's default.
        overrides: how single series are drawn (see `override`).
        width: columns of 24.
    """
    scale = {"type": "log", "log": 10} if log else {"type": "linear"}
    drawn = {"lineWidth": 1, "showPoints": "never", "scaleDistribution": scale} | (style or {})
    defaults: JSON = {"unit": unit, "custom": drawn}
    defaults |= {k: v for k, v in zip(("min", "max"), limits, strict=True) if v is not None}
    legend = {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]}
    return _panel("timeseries", title, description, queries, (width, 8)) | {
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
    }


def stat(
    title: str,
    description: str,
    query: Query,
    steps: Iterable[tuple[float | None, str]] = ((None, "text"),),
    texts: Iterable[tuple[str, str]] = (),
    names: Iterable[tuple[str, str]] = (),
    width: int = 4,
) -> JSON:
    """Return a panel of one number, or of the name of its series.

    Args:
        title, description, query, width: see `timeseries`.
        steps: the colour from each value on; the first value is None.
        texts: values, and what to write in their place.
        names: of series, and their colours; the name is shown then, not the number.
    """
    thresholds = [{"value": value, "color": color} for value, color in steps]
    mapped = {value: {"text": text} for value, text in texts}
    defaults = {
        "unit": "short",
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": thresholds},
        "mappings": [{"type": "value", "options": mapped}] if mapped else [],
    }
    colored = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
        }
        for name, color in names
    ]
    return _panel("stat", title, description, [query], (width, 4)) | {
        "fieldConfig": {"defaults": defaults, "overrides": colored},
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "background_solid",
            "textMode": "name" if colored else "auto",
        },
    }


def heatmap(title: str, description: str, buckets: str, width: int = 8) -> JSON:
    """Return a panel of a histogram over time; ``buckets`` is an expression with a label ``le``."""
    panel = _panel("heatmap", title, description, [Query(buckets, "{{le}}")], (width, 8))
    panel["targets"][0]["format"] = "heatmap"
    return panel | {
        "options": {
            "calculate": False,
            "rowsFrame": {"layout": "le"},
            "color": {"mode": "scheme", "scheme": "Viridis", "scale": "exponential",
                      "exponent": 0.5, "steps": 64},
            "filterValues": {"le": 1e-9},
            "yAxis": {"axisPlacement": "left"},
            "tooltip": {"mode": "single", "yHistogram": True},
            "legend": {"show": True},
        },
    }  # fmt: skip


def override(series: str, **style: Any) -> JSON:
    """Draw the series of one name in another style."""
    properties = [{"id": f"custom.{key}", "value": value} for key, value in style.items()]
    return {"matcher": {"id": "byName", "options": series}, "properties": properties}


def variable(name: str, metric: str, several: bool) -> JSON:
    """Return a template variable: the values that a label of a metric has."""
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "values"},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "current": {"text": "All", "value": "$__all"} if several else {},
    }


def annotation(name: str, description: str, query: Query, color: str) -> JSON:
    """Mark the times at which an expression is above 0 in all panels."""
    target = {
        "datasource": DATASOURCE,
        "refId": "Anno",
        "expr": query.of_instance,
        "interval": "5s",
    }
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": color,
        "expr": query.of_instance,
        "step": "5s",
        "target": target,
        "titleFormat": name,
        "textFormat": f"{query.legend}: {description}",
    }


def dashboard(
    title: str,
    description: str,
    rows: Iterable[Row],
    variables: Iterable[JSON],
    annotations: Iterable[JSON],
) -> JSON:
    """Return a dashboard with its panels numbered and laid out, row by row, from left to right."""
    return {
        "uid": title.lower(),
        "title": title,
        "description": description,
        "tags": ["funnel"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one cross hair in all panels
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {"list": list(variables)},
        "annotations": {"list": list(annotations)},
        "panels": [panel | {"id": k} for k, panel in enumerate(_laid_out(rows), 1)],
    }


def _panel(
    kind: str, title: str, description: str, queries: Sequence[Query], size: tuple[int, int]
) -> JSON:
    targets = [
        {
            "datasource": DATASOURCE,
            "refId": letter,
            "expr": query.of_instance,
            "legendFormat": query.legend,
            "range": True,
        }
        for letter, query in zip(ascii_uppercase, queries, strict=False)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": targets,
        "gridPos": {"w": size[0], "h": size[1]},
    }


def _laid_out(rows: Iterable[Row]) -> Iterable[JSON]:
    y = 0
    for row in rows:
        heading = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {"type": "row", "title": row.title, "collapsed": False, "gridPos": heading,
               "panels": []}  # fmt: skip
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            size = panel["gridPos"]
            if x + size["w"] > COLUMNS:
                x, y, height = 0, y + height, 0
            yield panel | {"gridPos": {"x": x, "y": y} | size}
            x, height = x + size["w"], max(height, size["h"])
        y += height
