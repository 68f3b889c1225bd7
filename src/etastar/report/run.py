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


def run_section(history: History) -> Section:
    """The same as a section of a larger report."""
    if len(history) == 0:
        raise InvalidArgument("history", 0, "is empty: nothing was measured")
    columns = history.columns()
    step = columns["step"]

    def with_band(name: str, label: str, colour: str) -> list[Mark]:
        band = Band(step, columns[f"{name}_low"], columns[f"{name}_high"], "", colour)
        return [band, Line(step, columns[name], label, colour, 2.0)]

    alignment = Panel("step", "alignment θ", with_band("alignment", "θ", COLOURS["exact"]), y_range=(-0.02, 1.02))
    steps = Panel(
        "step",
        "step size",
        [
            *with_band("critical_step_size", "critical step size η*", COLOURS["critical"]),
            *with_band("threshold_dominant", "dominant threshold η_D", COLOURS["dominant"]),
            *with_band("threshold_bulk", "bulk threshold η_B", COLOURS["bulk"]),
            Line(step, columns["step_size"], "η in use", COLOURS["exact"], 1.6, "dash"),
        ],
        y_scale="log",
    )
    picked = np.unique(np.linspace(0, len(history) - 1, min(len(history), _VERDICTS_SHOWN)).round().astype(int))
    rows = [[f"{history[i].step:,}", history[i].regime.name, history[i].verdict] for i in picked.tolist()]
    table = Table(
        [
            Column("step", "steps taken before the measurement"),
            Column("regime", "how the alignment responds to the step size", numeric=False),
            Column("verdict", "which subspace still descends, which has equilibrated, what limits it", numeric=False),
        ],
        rows,
    )
    last = history[len(history) - 1]
    return Section(
        "run",
        f"{len(history)} measurements",
        f"At the last one, step {last.step:,}: {last.verdict}.",
        figures=[
            Figure("run", "Values with their intervals (bands), and the step in use (dashed).", [alignment, steps])
        ],
        tables=[table],
        data={"measurements": len(history)},
    )
