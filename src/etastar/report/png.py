"""PNGs for papers: a ``Figure`` drawn with matplotlib, without any global state."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from etastar.report.figures import Band, Cells, Figure, Label, Line, Mark, Panel, Points, Reference, Shade, present

__all__ = ["render_png"]

_DASHES = {"solid": "-", "dash": "--", "dot": ":"}


def render_png(figure: Figure, dpi: int = 150) -> bytes:
    """The PNG of a figure: one row of panels; the same bytes for the same data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from matplotlib.image import imsave

    count = len(figure.panels)
    canvas = Canvas(figsize=(figure.size[0] * count + 0.4, figure.size[1]), dpi=dpi, layout="constrained")
    drawn = FigureCanvasAgg(canvas)
    axes = canvas.subplots(1, count, squeeze=False)[0]
    for axis, panel in zip(axes, figure.panels, strict=True):
        _draw_panel(axis, panel)
    buffer = io.BytesIO()
    drawn.draw()  # once; savefig would draw twice
    nameless: Any = {"Software": None}  # no version in the file
    imsave(buffer, np.asarray(drawn.buffer_rgba()), format="png", dpi=dpi, metadata=nameless)
    return buffer.getvalue()


def _draw_panel(axis: Any, panel: Panel) -> None:
    axis.set_xscale(panel.x_scale)
    axis.set_yscale(panel.y_scale)
    for mark in panel.marks:
        _draw_mark(axis, mark)
    axis.set_xlabel(panel.x_label, parse_math=False)  # a name with two dollar signs is no formula
    axis.set_ylabel(panel.y_label, parse_math=False)
    axis.set_title(panel.title, fontsize=10, loc="left", parse_math=False)
    if panel.y_range is not None:
        axis.set_ylim(*panel.y_range)
    axis.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    maps = [mark for mark in panel.marks if isinstance(mark, Cells)]
    for cells in maps:
        axis.set_xlim(cells.x_edges[0], cells.x_edges[-1])
        axis.set_ylim(cells.y_edges[0], cells.y_edges[-1])
    _thin(axis)
    handles, labels = axis.get_legend_handles_labels()
    if panel.legend and handles:
        place = _beside(maps, len(handles)) if maps else {"framealpha": 0.85}
        legend = axis.legend(handles, labels, fontsize=7.5, frameon=True, edgecolor="none", **place)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _thin(axis: Any) -> None:
    """No ticks between decades where there are more than three: they would be most of the time of a picture."""
    from matplotlib.ticker import NullLocator

    for one, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        if one.get_scale() == "log" and high > 1e3 * low:
            one.set_minor_locator(NullLocator())


def _beside(maps: list[Cells], count: int) -> dict[str, Any]:
    """Where a legend goes that must not cover a map: to the right, or below where a colour scale stands there."""
    if any(cells.names for cells in maps):
        return {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02), "labelspacing": 0.75}
    return {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": min(count, 2)}


def _draw_mark(axis: Any, mark: Mark) -> None:
    label = (not isinstance(mark, Cells | Label) and mark.label) or "_nolegend_"
    match mark:
        case Line():
            style: dict[str, Any] = {"color": mark.colour, "lw": mark.width, "alpha": mark.opacity}
            axis.plot(mark.x, _drawable(mark.y), _DASHES[mark.dash], label=label, **style)
        case Points() if mark.error is None:
            axis.plot(mark.x, _drawable(mark.y), "o", ms=3.5, color=mark.colour, label=label)
        case Points():
            y, error = _drawable(mark.y), _drawable(mark.error)
            axis.errorbar(mark.x, y, error, fmt="o", ms=3, lw=1, color=mark.colour, label=label)
        case Band():
            axis.fill_between(
                mark.x, _drawable(mark.low), _drawable(mark.high), color=mark.colour, alpha=0.2, lw=0, label=label
            )
        case Reference():
            draw = axis.axhline if mark.axis == "y" else axis.axvline
            draw(mark.value, color=mark.colour, lw=1.0, ls="--", label=label)
        case Shade():
            axis.axvspan(mark.low, mark.high, color=mark.colour, alpha=0.15, lw=0, label=label)
        case Cells():
            _draw_cells(axis, mark)
        case Label():
            from matplotlib.patheffects import withStroke

            words = axis.text(mark.x, mark.y, mark.text, color=mark.colour, fontsize=8, ha="center", va="center")
            words.set(parse_math=False, path_effects=[withStroke(linewidth=2.0, foreground="#ffffffb0")], clip_on=True)


def _draw_cells(axis: Any, cells: Cells) -> None:
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    values = np.ma.masked_invalid(np.asarray(cells.values, dtype=np.float64))
    if not cells.names:
        palette = LinearSegmentedColormap.from_list("scale", list(cells.colours))
        drawn = axis.pcolormesh(cells.x_edges, cells.y_edges, values, cmap=palette)
        scale = axis.figure.colorbar(drawn, ax=axis, pad=0.02)
        scale.ax.set_ylabel(cells.label, parse_math=False)
        scale.outline.set_visible(False)
        return
    limits = {"vmin": -0.5, "vmax": len(cells.names) - 0.5}
    axis.pcolormesh(cells.x_edges, cells.y_edges, values, cmap=ListedColormap(list(cells.colours)), **limits)
    for index in present(cells):
        label = cells.names[index] or "_nolegend_"
        axis.plot([], [], "s", ms=8, color=cells.colours[index], mec="#00000030", label=label)


def _drawable(values: Any) -> Any:
    """What matplotlib can find a scale for: a run that diverges passes 1e200, where its axes overflow."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.abs(numbers) < 1e200, numbers, np.nan)
