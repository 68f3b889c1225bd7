"""Figures as data: what is drawn, said once, for the PNG of a paper and for the zoomable page alike.

A figure is a row of panels; a panel is a list of marks. ``png`` and ``interactive`` render them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "COLOURS",
    "Band",
    "Cells",
    "Figure",
    "Label",
    "Line",
    "Mark",
    "Panel",
    "Points",
    "Reference",
    "Shade",
    "present",
    "sequence",
]

Array = npt.NDArray[np.float64]
Scale = Literal["linear", "log"]

# Distinguishable with any colour vision (Okabe and Ito); one meaning each, everywhere.
COLOURS = {
    "dominant": "#d55e00",
    "bulk": "#0072b2",
    "full": "#555555",
    "exact": "#111111",
    "sampled": "#009e73",
    "critical": "#cc79a7",
    "accent": "#e69f00",
    "muted": "#999999",
}
_RAMP = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#d8c51b"]


def sequence(count: int) -> list[str]:
    """`count` colours for an ordered family of curves."""
    return [_RAMP[round(i * (len(_RAMP) - 1) / max(1, count - 1))] for i in range(count)]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve; NaN breaks it."""

    x: Any
    y: Any
    label: str = ""
    colour: str = COLOURS["exact"]
    width: float = 1.8
    dash: Literal["solid", "dash", "dot"] = "solid"
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Points:
    """Points, with error bars of ± `error` where given."""

    x: Any
    y: Any
    label: str = ""
    colour: str = COLOURS["sampled"]
    error: Any = None


@dataclass(frozen=True, slots=True)
class Band:
    """The region between two curves."""

    x: Any
    low: Any
    high: Any
    label: str = ""
    colour: str = COLOURS["sampled"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A straight line across the panel at a value of one axis."""

    value: float
    axis: Literal["x", "y"] = "y"
    label: str = ""
    colour: str = COLOURS["muted"]


@dataclass(frozen=True, slots=True)
class Shade:
    """A vertical stripe from x `low` to x `high`."""

    low: float
    high: float
    label: str = ""
    colour: str = COLOURS["accent"]


@dataclass(frozen=True, slots=True)
class Cells:
    """A map of cells, which sets the limits of both axes: of named categories, or of numbers on a colour scale.

    Attributes:
        x_edges: Borders of the columns, ``(columns + 1,)``, rising.
        y_edges: Borders of the rows, ``(rows + 1,)``, rising.
        values: ``(rows, columns)``: the index of a category, or a number; NaN is left blank.
        names: Of the categories; without any, `values` are numbers.
        colours: One per category, or those of the scale from low to high.
        label: Of the colour scale.
    """

    x_edges: Any
    y_edges: Any
    values: Any
    names: Sequence[str] = ()
    colours: Sequence[str] = tuple(_RAMP)
    label: str = ""


def present(cells: Cells) -> list[int]:
    """The categories that occur on the map, in their order."""
    values = np.asarray(cells.values, dtype=np.float64)
    return np.unique(values[np.isfinite(values)]).astype(int).tolist()


@dataclass(frozen=True, slots=True)
class Label:
    """Words at a place, centred."""

    x: float
    y: float
    text: str
    colour: str = "#222222"


Mark = Line | Points | Band | Reference | Shade | Cells | Label


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    x_label: str
    y_label: str
    marks: Sequence[Mark]
    title: str = ""
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    y_range: tuple[float, float] | None = None
    legend: bool = True


@dataclass(frozen=True, slots=True)
class Figure:
    """A named row of panels, each `size` inches in the PNG; `name` is also its file name."""

    name: str
    caption: str
    panels: list[Panel]
    alt: str = field(default="")
    size: tuple[float, float] = (4.6, 3.6)
