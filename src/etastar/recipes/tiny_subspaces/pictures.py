"""The pictures of the experiment: losses, alignment, thresholds at the switch, and the largest eigenvalue."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from etastar.recipes.tiny_subspaces.findings import Findings
from etastar.recipes.tiny_subspaces.run import SeedRun, Series, TinySubspacesRun
from etastar.recipes.tiny_subspaces.stage import BRANCHES, SPACING, WINDOW
from etastar.report import COLOURS, Figure, Line, Panel, Points, Reference
from etastar.report.figures import Mark
from etastar.uncertainty import Estimate

__all__ = ["pictures"]

Array = npt.NDArray[np.float64]
_SHOWN = 300  # points of a curve: means of as many stretches of equal length
_MOST = 3.0  # times the loss at the start: what a picture has room for
_LOOKS = {
    "sgd": ("SGD", COLOURS["exact"]),
    "dominant": ("Dom-SGD", COLOURS["dominant"]),
    "bulk": ("Bulk-SGD", COLOURS["bulk"]),
    "gd": ("GD", COLOURS["accent"]),
}


def pictures(run: TinySubspacesRun, rows: list[Findings]) -> list[Figure]:
    """Two rows of panels; the second without thresholds where no seed got to the switch."""
    four = Figure(
        "four-runs",
        ("SGD, and the four runs that start at the switch (vertical line: first seed). " if rows else "SGD. ")
        + "Thick: the first seed; thin: the others. Each point is a mean over neighbouring steps. "
        f"A curve ends where the loss passes {_MOST:g} times that at the start.",
        [
            Panel("step", "training loss", _curves(run, "loss"), y_scale="log"),
            Panel("step", "χ, alignment of the gradient", _curves(run, "chi"), y_range=(-0.02, 1.02)),
        ],
    )
    limit = Reference(2.0 / run.plan.step_size, "y", "2/η", COLOURS["critical"])
    sharpness = Panel("step", "largest eigenvalue λ₁", [*_curves(run, "largest_eigenvalue"), limit], y_scale="log")
    panels = [_thresholds(run), sharpness] if rows else [sharpness]
    edge = Figure(
        "switch",
        ("Loss thresholds of the window after the switch, seed by seed, with 90 % intervals; " if rows else "")
        + "λ₁ beside 2/η, the edge of stability of the step in use; thick: the first seed.",
        panels,
    )
    return [four, edge]


def _curves(run: TinySubspacesRun, column: str) -> list[Mark]:
    marks: list[Mark] = []
    most = _MOST * max((float(one.approach["loss"][0]) for one in run.seeds if len(one.approach)), default=np.inf)
    for one in run.seeds:
        first = one is run.seeds[0]
        width, opacity = (1.9, 1.0) if first else (0.8, 0.4)
        marks.append(_line(one.approach, column, most, "", COLOURS["exact"], width, opacity))
        for branch in reversed(BRANCHES):
            if branch in one.branches:
                label, colour = _LOOKS[branch]
                shown = label if first else ""
                marks.append(_line(one.branches[branch], column, most, shown, colour, width, opacity))
    if (switch := run.seeds[0].switch) is not None:
        marks.append(Reference(float(switch), "x"))
    return marks


def _line(series: Series, column: str, most: float, label: str, colour: str, width: float, opacity: float) -> Line:
    over = np.flatnonzero(series["loss"] > most)
    end = int(over[0]) if len(over) else len(series)
    return Line(_means(series.steps[:end]), _means(series[column][:end]), label, colour, width, opacity=opacity)


def _means(values: Array) -> Array:
    return (
        np.array([part.mean() for part in np.array_split(values, min(_SHOWN, len(values)))]) if len(values) else values
    )


def _thresholds(run: TinySubspacesRun) -> Panel:
    shown = [one for one in run.seeds if one.window is not None]
    x = [one.switch for one in shown]
    marks: list[Mark] = []
    for name, label in (("bulk", "η_B"), ("dominant", "η_D")):
        found = [_threshold(one, name) for one in shown]
        # A logarithmic axis has no zero for an interval to end at.
        half = [min(0.5 * (each.high - each.low), 0.95 * abs(each.value)) for each in found]
        marks.append(Points(x, [each.value for each in found], label, COLOURS[name], half))
    edges = [2.0 / float(one.branches["sgd"]["largest_eigenvalue"][: WINDOW * SPACING].mean()) for one in shown]
    marks.append(Points(x, edges, "2/λ₁", COLOURS["muted"]))
    marks.append(Reference(run.plan.step_size, "y", "η in use", COLOURS["exact"]))
    return Panel("step of the switch, one for each seed", "step size", marks, y_scale="log")


def _threshold(one: SeedRun, name: str) -> Estimate:
    assert one.window is not None  # noqa: S101  # of those shown
    return getattr(one.window.loss_thresholds, name)
