"""A phase diagram as data: axes, maps of cells, borders; told as JSON, as a section of a report, and as files.

What a cell is worth is computed elsewhere in this package, each diagram in its own module; here it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.quadratic import Quadratic, Spectrum
from etastar.quadratic.arguments import finite_number, whole_number
from etastar.report import Cells, Figure, Label, Line, Panel, Section, Table, write_report

__all__ = [
    "GREY",
    "Axis",
    "Border",
    "Category",
    "CellMap",
    "Diagram",
    "axis",
    "described",
    "positive_curvature",
    "read_cells",
    "read_limits",
    "tiles",
]

Array = npt.NDArray[np.float64]
GREY = "#cfcfcf"
_MOST_CELLS = 4_000_000
_CLEAR = 0.035  # half the height of a region's name, over that of the map
_WIDER = 0.45  # heights over widths of such names


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One axis of a diagram.

    Attributes:
        name: Key of the JSON.
        label: With symbol and unit.
        scale: Which mean of its edges the centre of a cell is.
        edges: Borders of the cells, ``(cells + 1,)``.
    """

    name: str
    label: str
    scale: Literal["linear", "log"]
    edges: Array

    @property
    def centres(self) -> Array:
        """Where each cell is evaluated, ``(cells,)``."""
        low, high = self.edges[:-1], self.edges[1:]
        return np.sqrt(low) * np.sqrt(high) if self.scale == "log" else 0.5 * (low + high)


@dataclass(frozen=True, slots=True)
class Category:
    """A named kind of cell: key of the JSON, what the legend says, what is written on the map, colour."""

    key: str
    text: str
    short: str
    colour: str


@dataclass(frozen=True, slots=True, eq=False)
class Border:
    """A curve on the map; NaN parts its pieces. Without a label it stays out of the legend."""

    name: str
    label: str
    x: Array
    y: Array
    colour: str
    dash: Literal["solid", "dash", "dot"] = "solid"
    width: float = 1.9


@dataclass(frozen=True, slots=True, eq=False)
class CellMap:
    """One map on the axes of a diagram.

    Attributes:
        name: Key of the JSON.
        title: Above the map.
        values: ``(y, x)``: indices of `categories`, or numbers, NaN where there is none.
        categories: In the order of their indices; none for numbers.
        label: Of the colour scale.
        borders: Drawn over it.
        labels: Words on it, besides the names of regions.
    """

    name: str
    title: str
    values: npt.NDArray[Any]
    categories: tuple[Category, ...] = ()
    label: str = ""
    borders: tuple[Border, ...] = ()
    labels: tuple[Label, ...] = ()

    def share(self, *keys: str) -> float:
        """The part of the cells, as drawn, that is of one of these categories."""
        wanted = [i for i, category in enumerate(self.categories) if category.key in keys]
        return float(np.mean(np.isin(self.values, wanted)))


@dataclass(frozen=True, slots=True, eq=False)
class Diagram:
    """The answer to a question about a plane of settings.

    Attributes:
        name: Short identifier.
        title: What was computed.
        x: Columns.
        y: Rows.
        maps: One or two maps on the same axes.
        finding: What it shows, in words.
        reading: What to take from it.
        settings: What was asked, for the JSON.
        tables: Numbers read off the borders.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    maps: tuple[CellMap, ...]
    finding: str
    reading: str
    settings: dict[str, Any]
    tables: tuple[Table, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: categories run by run along each row, [index, cells, index, cells, …]; null for NaN."""
        return {
            "diagram": self.name,
            "title": self.title,
            "settings": self.settings,
            "x": _axis_json(self.x),
            "y": _axis_json(self.y),
            "maps": [_map_json(one) for one in self.maps],
            "finding": self.finding,
        }

    def section(self) -> Section:
        """The diagram as a section of a report; its data are the settings and borders, without the cells."""
        many = len(self.maps) > 1
        figure = Figure(
            "diagram",
            "Exact, cell by cell: each is evaluated at its centre, nothing is sampled.",
            [self._panel(one) for one in self.maps],
            alt=self.title,
            size=(5.9, 5.4) if many else (8.4, 5.2),
        )
        data = {"title": self.title, "settings": self.settings, "borders": self.to_json_borders()}
        return Section(
            self.name, self.title, self.finding, self.reading, figures=[figure], tables=list(self.tables), data=data
        )

    def to_json_borders(self) -> dict[str, Any]:
        """The borders of all maps by name, as lists of x and y; null parts the pieces."""
        return {border.name: _border_json(border) for one in self.maps for border in one.borders}

    def write(self, out: str | Path) -> list[Path]:
        """Write ``diagram.json``, ``diagram.png`` and ``diagram.html`` into a directory, all or none."""
        section = replace(self.section(), title="Diagram")
        told = json.dumps(self.to_json(), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        lead, files = "Phase diagram of a quadratic, exact.", {"diagram.json": told + "\n"}
        return write_report(out, "diagram.html", self.title, lead, [section], files=files)

    def _panel(self, one: CellMap) -> Panel:
        names, colours = ([getattr(c, what) for c in one.categories] for what in ("text", "colour"))
        chosen: dict[str, Any] = {"names": names, "colours": colours} if names else {"label": one.label}
        there = [border for border in one.borders if np.any(np.isfinite(border.x) & np.isfinite(border.y))]
        # Under each line a wider white one, so that it is seen on every ground.
        lines = [Line(border.x, border.y, "", "#ffffff", border.width + 1.7, opacity=0.85) for border in there]
        lines += [Line(b.x, b.y, b.label, b.colour, b.width, b.dash) for b in there]
        words = [*_region_names(one, self.x, self.y), *one.labels]
        cells = Cells(self.x.edges, self.y.edges, one.values, **chosen)
        marks = [cells, *lines, *words]
        return Panel(self.x.label, self.y.label, marks, one.title, x_scale=self.x.scale, y_scale=self.y.scale)


def axis(name: str, label: str, scale: Literal["linear", "log"], limits: tuple[float, float], cells: int) -> Axis:
    """An axis of equal cells between two limits."""
    between = np.geomspace if scale == "log" else np.linspace
    return Axis(name, label, scale, between(limits[0], limits[1], cells + 1))


def tiles(rows: int, width: int, cells: int) -> Iterator[slice]:
    """Slices of rows of `width` numbers, at least a row and otherwise about `cells` numbers at a time."""
    step = max(1, cells // width)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def read_cells(cells: Any) -> tuple[int, int]:
    """Columns and rows: two whole numbers, not more cells together than a page can carry."""
    try:
        columns, rows = cells
    except (TypeError, ValueError):
        raise InvalidArgument("cells", cells, "must be two whole numbers, columns and rows") from None
    columns, rows = (whole_number("cells", count, least=2) for count in (columns, rows))
    if columns * rows > _MOST_CELLS:
        raise InvalidArgument("cells", (columns, rows), f"must be at most {_MOST_CELLS:,} cells together")
    return columns, rows


def read_limits(name: str, limits: Any, where: str, least: float, below: float = np.inf) -> tuple[float, float]:
    """Two rising, finite numbers, the first at least `least` and the last less than `below`: `where`, in words."""
    try:
        low, high = limits
    except (TypeError, ValueError):
        raise InvalidArgument(name, limits, "must be two numbers, from and to") from None
    low, high = (finite_number(name, value) for value in (low, high))
    if not (least <= low < high < below):
        raise InvalidArgument(name, (low, high), f"must rise, {where}")
    return low, high


def positive_curvature(problem: Any) -> Quadratic:
    """A Quadratic with λ₁ > 0 and noise, without which neither batch nor stability means anything."""
    if not isinstance(problem, Quadratic):
        raise InvalidArgument("problem", problem, "must be a Quadratic")
    top = float(problem.spectrum.eigenvalues[0])
    if top <= 0:
        raise InvalidArgument("eigenvalues", top, "the largest must be positive; there is no stability limit otherwise")
    if not np.any(problem.modes.variances[problem.modes.eigenvalues != 0] > 0):
        raise InvalidArgument("noise", 0.0, "must reach a direction with curvature: nothing depends on it otherwise")
    return problem


def described(spectrum: Spectrum) -> dict[str, Any]:
    """What identifies a spectrum, for the JSON."""
    ends = {"largest_eigenvalue": float(spectrum.eigenvalues[0]), "ratio": spectrum.ratio}
    known = {name: value if np.isfinite(value) else None for name, value in ends.items()}
    return {"dimension": spectrum.dimension, "rank": spectrum.rank, **known}


def _region_names(one: CellMap, x: Axis, y: Axis) -> list[Label]:
    """The name of each region at its most inner cell, where it is wide enough to carry it."""
    from scipy import ndimage

    found: list[Label] = []
    sampling = [1.0 / one.values.shape[0], _WIDER / one.values.shape[1]]
    for index, category in enumerate(one.categories):
        here = np.pad(one.values == index, 1)
        depth, regions = np.zeros(here.shape), np.zeros(here.shape, dtype=np.int32)
        ndimage.distance_transform_edt(here, sampling=sampling, distances=depth)
        ndimage.label(here, output=regions)
        # Only what is deep enough is looked at, so that specks cost nothing.
        for region in np.unique(regions[depth > _CLEAR]).tolist():
            row, column = np.unravel_index(int(np.argmax(np.where(regions == region, depth, 0.0))), depth.shape)
            found.append(Label(float(x.centres[column - 1]), float(y.centres[row - 1]), category.short))
    return found


def _axis_json(one: Axis) -> dict[str, Any]:
    ends = [float(one.edges[0]), float(one.edges[-1])]
    return {"name": one.name, "label": one.label, "scale": one.scale, "limits": ends, "cells": one.edges.size - 1}


def _map_json(one: CellMap) -> dict[str, Any]:
    told: dict[str, Any] = {"name": one.name, "title": one.title}
    if one.categories:
        told["categories"] = {category.key: category.text for category in one.categories}
        told["runs"] = [_runs(row) for row in one.values]
    else:
        told |= {"quantity": one.label, "values": [_rounded(row) for row in one.values]}
    return told | {"borders": {border.name: _border_json(border) for border in one.borders}}


def _border_json(border: Border) -> dict[str, Any]:
    return {"label": border.label, "x": _rounded(border.x), "y": _rounded(border.y)}


def _runs(row: npt.NDArray[Any]) -> list[int]:
    starts = np.concatenate([[0], np.flatnonzero(np.diff(row)) + 1])
    counts = np.diff(np.append(starts, row.size))
    return np.stack([row[starts], counts], axis=1).astype(int).ravel().tolist()


def _rounded(values: Array) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]
