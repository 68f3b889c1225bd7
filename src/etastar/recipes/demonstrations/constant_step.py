"""The trap of a constant step: whatever the step, it ends at its threshold."""

from __future__ import annotations

import numpy as np

from etastar.recipes.paper_figures import PaperRuns
from etastar.report import Check, Column, Figure, Line, Panel, Reference, Section, Table, sequence

__all__ = ["every_step_looks_critical"]


def every_step_looks_critical(run: PaperRuns) -> Section:
    """The trap of a constant step: η/η_D settles at one for every step; η/η_B later, when the bulk settles."""
    steps = (0.0004, 0.002, 0.01)
    times = np.unique(np.geomspace(1, 1_000_000, 300).astype(np.int64))
    dominant_marks, bulk_marks, rows, ratios, behind, at_end = [], [], [], [], [], []
    for eta, colour in zip(steps, sequence(len(steps)), strict=True):
        bounds = run.problem.expected(gradient=run.gradients[0], step_size=eta, times=times).loss_thresholds
        dominant, bulk = eta / np.asarray(bounds.dominant), eta / np.asarray(bounds.bulk)
        settled = int(np.argmax(np.abs(dominant - 1) < 0.01))
        ratios.append(float(dominant[settled]))
        behind.append(float(bulk[settled]))
        at_end.append(float(bulk[-1]))
        dominant_marks.append(Line(times, dominant, f"η = {eta}", colour, 2.0))
        bulk_marks.append(Line(times, bulk, f"η = {eta}", colour, 2.0))
        rows.append([f"{eta}", f"{times[settled]:,}", f"{ratios[-1]:.3f}", f"{behind[-1]:.4f}", f"{at_end[-1]:.4f}"])
    panels = [
        Panel("step t", "η/η_D", [*dominant_marks, Reference(1.0)], "Dominant", x_scale="log", y_range=(0, 1.1)),
        Panel("step t", "η/η_B", [*bulk_marks, Reference(1.0)], "Bulk", x_scale="log", y_range=(0, 1.1)),
    ]
    return Section(
        "constant-step",
        "Every constant step looks critical",
        f"For steps that span {steps[-1] / steps[0]:.0f}×, η/η_D of the expected moments settles at 1 all the same. "
        "The ratio then says “equilibrated”, not “too large”. η/η_B stays below 1 until the bulk has settled too.",
        "So average the moments over a window before forming ratios, and read them as: which subspace still descends "
        "(ratio well below 1), which has equilibrated (at 1).",
        [
            Check(
                "η/η_D settles within 1 % of 1 for every step",
                all(abs(r - 1) < 0.01 for r in ratios),
                ", ".join(f"{r:.3f}" for r in ratios),
            ),
            Check("at that time the bulk still descends", max(behind) < 0.5, f"η/η_B at most {max(behind):.3f}"),
            Check(
                "and settles in the end",
                all(abs(r - 1) < 0.01 for r in at_end),
                f"η/η_B after a million steps: {', '.join(f'{r:.3f}' for r in at_end)}",
            ),
        ],
        [Figure("constant-step", "r = 100, expected moments, three constant steps.", panels)],
        [
            Table(
                [
                    Column("η", "the constant step"),
                    Column("dominant settles at", "first recorded step with η/η_D within 1 % of 1"),
                    Column("η/η_D there", "step over the dominant threshold"),
                    Column("η/η_B there", "step over the bulk threshold"),
                    Column("η/η_B at 10⁶", "the same after a million steps"),
                ],
                rows,
            )
        ],
        {"step_size": list(steps), "bulk_when_dominant_settles": behind, "bulk_at_end": at_end},
    )
