"""Zoomable figures for the page: a ``Figure`` as the JSON that plotly.js draws.

Only the JSON is made here; the page carries plotly.js itself, so that it needs no network.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from etastar.report.figures import Band, Cells, Figure, Label, Line, Panel, Points, Reference, Shade, present

__all__ = ["plotly_figure", "plotly_script"]

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13, "color": "#222"}


def plotly_script() -> str:
    """The source of plotly.js, from the installed plotly package."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def plotly_figure(figure: Figure) -> dict[str, Any]:
    """A figure as plotly JSON: ``data``, ``layout``."""
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "font": _FONT,
        "margin": {"l": 64, "r": 40, "t": 34, "b": 92},
        "height": round(figure.size[1] * 420 / 3.6),
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "modebar": {"orientation": "v"},
        "legend": {"orientation": "h", "y": -0.24 * 3.6 / figure.size[1], "yanchor": "top", "font": {"size": 11}},
        "shapes": [],
        "annotations": [],
    }
    count = len(figure.panels)
    maps = [mark for panel in figure.panels for mark in panel.marks if isinstance(mark, Cells)]
    if any(cells.names for cells in maps):  # there are many names: beside the map
        layout["legend"] = {"y": 1.0, "yanchor": "top", "x": 1.02, "font": {"size": 11}}
        layout["modebar"] = {"orientation": "h"}
    if any(not cells.names for cells in maps):
        layout["margin"]["r"] = 110  # the scale of the last panel
    gap = (0.17 if maps else 0.09) if count > 1 else 0.0
    width = (1.0 - gap * (count - 1)) / count
    for index, panel in enumerate(figure.panels):
        left = index * (width + gap)
        _add_panel(data, layout, panel, index, (left, left + width))
    _name_each_once(data)
    return {"data": data, "layout": layout}


def _add_panel(
    data: list[dict[str, Any]], layout: dict[str, Any], panel: Panel, index: int, domain: tuple[float, float]
) -> None:
    suffix = "" if index == 0 else str(index + 1)
    axis: dict[str, Any] = {"gridcolor": "#ececec", "zeroline": False, "linecolor": "#bbb", "ticks": "outside"}
    x_axis = axis | {"title": {"text": _label(panel.x_label)}, "type": panel.x_scale, "domain": list(domain)}
    y_axis = axis | {"title": {"text": _label(panel.y_label)}, "type": panel.y_scale, "anchor": f"x{suffix}"}
    for one, scale in ((x_axis, panel.x_scale), (y_axis, panel.y_scale)):
        if scale == "log":
            one["exponentformat"] = "power"
    if panel.y_scale == "log":
        y_axis["nticks"] = 6  # else every digit of every power is labelled, one over the other
    if panel.x_scale == "log" and domain[1] - domain[0] < 0.3:
        x_axis["dtick"] = 1  # whole powers only: a narrow panel has no room for the labels between
    if panel.y_range is not None:
        limits = np.log10(panel.y_range) if panel.y_scale == "log" else np.asarray(panel.y_range)
        y_axis["range"] = limits.tolist()
    layout[f"xaxis{suffix}"], layout[f"yaxis{suffix}"] = x_axis, y_axis
    if panel.title:
        place = {"x": domain[0], "y": 1.02, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        layout["annotations"].append(
            place | {"text": f"<b>{_label(panel.title)}</b>", "showarrow": False, "font": {"size": 13}}
        )
    for mark in panel.marks:
        if isinstance(mark, Cells):
            for one, scale, edges in ((x_axis, panel.x_scale, mark.x_edges), (y_axis, panel.y_scale, mark.y_edges)):
                ends = np.asarray([edges[0], edges[-1]], dtype=np.float64)
                one["range"] = (np.log10(ends) if scale == "log" else ends).tolist()
        traces, shapes = _cells(mark, domain) if isinstance(mark, Cells) else _mark(mark, suffix)
        for trace in traces:
            trace |= {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
            if not panel.legend:
                trace["showlegend"] = False
        data += traces
        layout["shapes"] += shapes


def _name_each_once(data: list[dict[str, Any]]) -> None:
    """One legend serves all panels: a label drawn alike in several of them is listed once, and hides together."""
    seen: set[str] = set()
    for trace in data:
        key = repr((trace.get("name"), trace["type"], trace.get("mode"), trace.get("line"), trace.get("marker")))
        if trace.get("showlegend") and key in seen:
            trace["showlegend"] = False
        seen.add(key)


def _cells(cells: Cells, domain: tuple[float, float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The map, and for each category that occurs a square of the legend; numbers in four bytes, categories in one."""
    values = np.asarray(cells.values, dtype=np.float64)
    kind = "u1" if cells.names and np.all(np.isfinite(values)) else "f4"
    packed = b64encode(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()).decode("ascii")
    shape = ", ".join(map(str, values.shape))
    trace: dict[str, Any] = {"type": "heatmap", "z": {"dtype": kind, "bdata": packed, "shape": shape}}
    trace |= {"x": _numbers(cells.x_edges), "y": _numbers(cells.y_edges), "zsmooth": False, "showlegend": False}
    count = len(cells.colours)
    if not cells.names:
        scale = [[i / (count - 1), colour] for i, colour in enumerate(cells.colours)]
        bar: dict[str, Any] = {"x": domain[1], "xpad": 6, "thickness": 14, "outlinewidth": 0}
        bar |= {"title": {"text": _label(cells.label), "side": "right"}}
        shown = {"hovertemplate": "x %{x:.4g}<br>y %{y:.4g}<br>%{z:.4g}<extra></extra>"}
        return [trace | shown | {"colorscale": scale, "colorbar": bar}], []
    steps = [[(i + more) / count, colour] for i, colour in enumerate(cells.colours) for more in (0, 1)]
    trace |= {"zmin": -0.5, "zmax": count - 0.5, "colorscale": steps, "showscale": False}
    trace["hovertemplate"] = "x %{x:.4g}<br>y %{y:.4g}<extra></extra>"
    stand_in: dict[str, Any] = {"type": "scatter", "mode": "markers", "x": [None], "y": [None], "showlegend": True}
    squares = [
        stand_in
        | {"name": _label(cells.names[i]), "marker": {"color": cells.colours[i], "size": 13, "symbol": "square"}}
        for i in present(cells)
        if cells.names[i]
    ]
    return [trace, *squares], []


def _mark(
    mark: Line | Points | Band | Reference | Shade | Label, suffix: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    label = "" if isinstance(mark, Label) else mark.label
    named: dict[str, Any] = {"name": _label(label), "showlegend": bool(label), "legendgroup": label or None}
    hover: dict[str, Any] = {} if label else {"hoverinfo": "x+y"}
    match mark:
        case Line():
            line = {"color": mark.colour, "width": mark.width, "dash": mark.dash, "simplify": False}
            trace = {"type": "scatter", "mode": "lines", "line": line, "opacity": mark.opacity}
            return [trace | {"x": _numbers(mark.x), "y": _numbers(mark.y)} | named | hover], []
        case Points():
            trace: dict[str, Any] = {"type": "scatter", "mode": "markers", "marker": {"color": mark.colour, "size": 6}}
            if mark.error is not None:
                trace["error_y"] = {"type": "data", "array": _numbers(mark.error), "thickness": 1.2, "width": 2}
            return [trace | {"x": _numbers(mark.x), "y": _numbers(mark.y)} | named | hover], []
        case Band():
            x, y = _outline(mark)
            trace = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "fill": "toself", "hoverinfo": "skip"}
            return [trace | {"x": x, "y": y, "fillcolor": _transparent(mark.colour)} | named], []
        case Reference():
            across, along = ("y", "x") if mark.axis == "y" else ("x", "y")
            (value,) = _numbers(mark.value)
            shape = {"type": "line", "line": {"color": mark.colour, "width": 1.2, "dash": "dash"}}
            shape |= {f"{along}ref": f"{along}{suffix} domain", f"{along}0": 0, f"{along}1": 1}
            shape |= {f"{across}ref": f"{across}{suffix}", f"{across}0": value, f"{across}1": value}
            # An empty trace stands in the legend for the line.
            stand_in = {"type": "scatter", "mode": "lines", "x": [None], "y": [None]}
            stand_in |= {"line": {"color": mark.colour, "width": 1.2, "dash": "dash"}}
            return ([stand_in | named] if mark.label else []), [shape] if value is not None else []
        case Shade():
            low, high = _numbers([mark.low, mark.high])
            shape = {"type": "rect", "fillcolor": _transparent(mark.colour), "line": {"width": 0}, "layer": "below"}
            shape |= {"xref": f"x{suffix}", "x0": low, "x1": high}
            shape |= {"yref": f"y{suffix} domain", "y0": 0, "y1": 1}
            stand_in = {"type": "scatter", "mode": "markers", "x": [None], "y": [None]}
            stand_in |= {"marker": {"color": _transparent(mark.colour), "size": 12, "symbol": "square"}}
            return ([stand_in | named] if mark.label else []), [shape] if None not in (low, high) else []
        case Label():
            words = "<br>".join(map(_label, mark.text.split("\n")))
            trace = {"type": "scatter", "mode": "text", "x": _numbers(mark.x), "y": _numbers(mark.y), "text": [words]}
            style = {"textfont": {"color": mark.colour, "size": 12}, "hoverinfo": "skip", "showlegend": False}
            return [trace | style], []


def _numbers(values: Any) -> list[float | None]:
    """Six significant digits are more than a screen shows; NaN breaks a line."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in flat.tolist()]


def _outline(band: Band) -> tuple[list[float | None], list[float | None]]:
    """A closed outline around each stretch without gaps; plotly would fill the gaps between two curves."""
    x, low, high = (np.asarray(values, dtype=np.float64).ravel() for values in (band.x, band.low, band.high))
    there = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    around_x, around_y = [np.empty(0)], [np.empty(0)]
    for stretch in np.split(np.arange(x.size), np.flatnonzero(np.diff(there)) + 1):
        if np.all(there[stretch]):
            back = stretch[::-1]
            around_x.append(np.concatenate([x[stretch], x[back], [np.nan]]))
            around_y.append(np.concatenate([low[stretch], high[back], [np.nan]]))
    return _numbers(np.concatenate(around_x)), _numbers(np.concatenate(around_y))


def _label(text: str) -> str:
    """Plotly reads a little HTML in labels; ours are text."""
    return escape(text, quote=False)


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"
