"""The report of a run: a history as one page, with the step beside its thresholds, and verdicts in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from etastar.errors import InvalidArgument
from etastar.files import write_together
from etastar.history import History
from etastar.report.document import Column, Section, Table, render_html
from etastar.report.figures import COLOURS, Band, Figure, Line, Mark, Panel
from etastar.report.png import render_png

__all__ = ["run", "run_section"]

_VERDICTS_SHOWN = 40
_LEAST_SHOWN = 0.05  # of the value: where a band is cut, since a logarithmic axis has no zero
_COLUMNS = [
    Column("step", "steps taken before the (last) measurement"),
    Column("regime", "how the alignment responds to the step size", numeric=False),
    Column("verdict", "which subspace still descends, which has equilibrated, what limits it", numeric=False),
]


def run(history: History, out: str | Path) -> list[Path]:
    """Write ``run.html`` and ``run.png`` of a history into the directory `out`; returns their paths.

    Raises:
        InvalidArgument: An empty history.
        InvalidFile: A directory that cannot be written.
    """
    section = run_section(history)
    picture = render_png(section.figures[0])
    page = render_html("A run, measured", "The [[alignment]] and the steps that matter.", [section])
    return write_together(
        out,
        {
            "run.png": lambda path: path.write_bytes(picture),
            "run.html": lambda path: path.write_text(page, encoding="utf-8"),
        },
    )


def run_section(history: History, window: int = 8) -> Section:
    """The same as a section of a larger report.

    A single state of a stationary run wanders widely about η/η_S = 1, so that verdicts are those of windows: moments
    averaged over `window` measurements before any ratio is formed. Shorter histories show their measurements alone.
    """
    if len(history) == 0:
        raise InvalidArgument("history", 0, "is empty: nothing was measured")
    smooth = history.rolling(window) if len(history) > window else history
    alone, averaged = history.columns(), smooth.columns()

    def curves(name: str, label: str, colour: str) -> list[Mark]:
        value, low, high = (averaged[f"{name}{end}"] for end in ("", "_low", "_high"))
        band = Band(averaged["step"], np.maximum(low, _LEAST_SHOWN * value), high, "", colour)
        thin = Line(alone["step"], alone[name], "", colour, 0.8, opacity=0.45)
        return [band, thin, Line(averaged["step"], value, label, colour, 2.0)]

    alignment = Panel("step", "alignment θ", curves("alignment", "θ", COLOURS["exact"]), y_range=(-0.02, 1.02))
    steps = Panel(
        "step",
        "step size",
        [
            *curves("critical_step_size", "critical step size η*", COLOURS["critical"]),
            *curves("threshold_dominant", "dominant threshold η_D", COLOURS["dominant"]),
            *curves("threshold_bulk", "bulk threshold η_B", COLOURS["bulk"]),
            Line(alone["step"], alone["step_size"], "η in use", COLOURS["exact"], 1.6, "dash"),
        ],
        y_scale="log",
    )
    picked = np.unique(np.linspace(0, len(smooth) - 1, min(len(smooth), _VERDICTS_SHOWN)).round().astype(int))
    rows = [[f"{smooth[i].step:,}", smooth[i].regime.name, smooth[i].verdict] for i in picked.tolist()]
    drawn = (
        f"windows of {window} measurements (thick, with bands), single ones (thin)"
        if smooth is not history
        else "alone"
    )
    last = smooth[len(smooth) - 1]
    return Section(
        "run",
        f"{len(history)} measurements",
        f"At the end, step {last.step:,}: {last.verdict}.",
        figures=[Figure("run", f"Measurements: {drawn}; the step in use (dashed).", [alignment, steps])],
        tables=[Table(_COLUMNS, rows)],
        data={"measurements": len(history)},
    )
