"""Figures 3 and 6: the alignment over the last 10,000 steps, which the paper takes as stationary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr

import etastar
from etastar.quadratic import expected_alignment_stationary
from etastar.recipes.paper_figures.setting import SEEDS, STEP_SIZE, PaperRuns
from etastar.report import (
    COLOURS,
    Band,
    Check,
    Column,
    Figure,
    Line,
    Panel,
    Points,
    Reference,
    Section,
    Table,
    sequence,
)

__all__ = ["seed_by_seed", "window_statistics"]

Runs = Mapping[int, PaperRuns]


def window_statistics(runs: Runs) -> Section:
    """Figure 3: mean and standard deviation of θ over the paper's last 10,000 steps, beside the exact values."""
    rows = [_Window.of(run) for _, run in sorted(runs.items())]
    ratios = [row.ratio for row in rows]
    limits = [row.limit for row in rows]
    offset = np.array([row.mean - row.exact for row in rows])
    panels = [
        Panel(
            "paper's ratio r",
            "alignment θ, last 10,000 steps",
            [
                Points(
                    ratios, [row.mean for row in rows], "sampled, mean ± std", COLOURS["sampled"], [r.std for r in rows]
                ),
                Line(ratios, limits, "stationary θ∞", COLOURS["dominant"], 1.6),
            ],
            "Mean and spread",
            x_scale="log",
            y_range=(0.45, 1.02),
        ),
        Panel(
            "paper's ratio r",
            "sampled mean − exact θ",
            [
                Points(ratios, offset, "sampled, mean ± s.e.", COLOURS["sampled"], [row.mean_error for row in rows]),
                Line(
                    ratios, [r.mean_of_ratio - r.limit for r in rows], "E θ − θ∞, by quadrature", COLOURS["exact"], 1.6
                ),
                Reference(0.0),
            ],
            "The mean of a ratio is not the ratio of means",
            x_scale="log",
        ),
    ]
    late = {row.ratio: row.drift for row in rows if not row.settled}
    lowest = min(row.p_value for row in rows) * 2 * len(rows)
    return Section(
        "figure-3",
        "Figure 3: the last 10,000 steps",
        "[[sampled|Sampled]] window energies meet the [[exact]] ones at every ratio. The mean of θ itself lies a "
        "little below the ratio of mean energies, by what the quadrature for E θ says (it would not vanish with d).",
        "The paper takes this window as stationary. Not yet for every r: the slow end of the bulk is still falling at "
        + (", ".join(f"r = {r} (drift {d:+.4f})" for r, d in late.items()) or "no ratio shown here")
        + ".",
        [
            Check(
                "sampled window energies meet the exact ones at every ratio",
                lowest > 1e-3,
                f"smallest p-value × {2 * len(rows)} tests = {lowest:.2g}, limit 0.001 (Student, between seeds)",
            ),
        ],
        [Figure("figure-3", "Steps 20,000–30,000, all seeds.", panels)],
        [Table(_WINDOW_COLUMNS, [row.cells() for row in rows])],
        {"rows": [row.data() for row in rows]},
    )


_WINDOW_COLUMNS = [
    Column("r", "the paper's ratio parameter; the spectrum's ratio is r + 0.1"),
    Column("sampled θ", "mean ± standard deviation of θ over steps 20,000–30,000 and all seeds"),
    Column("± s.e.", "standard error of that mean, from the spread between seeds"),
    Column("exact θ", "alignment of expected energies, mean over the same steps and seeds"),
    Column("θ∞", "alignment of the stationary moments (T16)"),
    Column("E θ", "stationary expectation of the ratio itself, by quadrature"),
    Column("drift", "change of the exact θ from step 20,000 to 30,000"),
    Column("stationary", "whether the drift is below 0.0001", numeric=False),
]


@dataclass(frozen=True, slots=True)
class _Window:
    """What figure 3 says at one ratio."""

    ratio: int
    mean: float
    std: float
    mean_error: float
    exact: float
    limit: float
    mean_of_ratio: float
    drift: float
    p_value: float

    @classmethod
    def of(cls, run: PaperRuns) -> _Window:
        window = run.sampled.alignment[0][:, run.settled]
        exact = run.exact.alignment[:, run.settled]
        return cls(
            run.ratio,
            float(window.mean()),
            float(window.std()),
            float(window.mean(axis=1).std(ddof=1) / np.sqrt(len(window))),
            float(exact.mean()),
            float(etastar.alignment(run.problem.stationary(STEP_SIZE))),
            expected_alignment_stationary(run.problem, STEP_SIZE),
            float(np.mean(exact[:, -1] - exact[:, 0])),
            _window_p_value(run),
        )

    @property
    def settled(self) -> bool:
        return abs(self.drift) < 1e-4

    def cells(self) -> list[str]:
        numbers = (self.exact, self.limit, self.mean_of_ratio)
        return [
            str(self.ratio),
            f"{self.mean:.4f} ± {self.std:.4f}",
            f"{self.mean_error:.4f}",
            *(f"{number:.4f}" for number in numbers),
            f"{self.drift:+.5f}",
            "yes" if self.settled else "not yet",
        ]

    def data(self) -> dict[str, Any]:
        return asdict(self)


def seed_by_seed(runs: Runs) -> Section:
    """Figure 6: figure 3 for each seed."""
    ratios = sorted(runs)
    count = len(runs[100].gradients)
    marks: list[Any] = []
    table = np.array([[runs[r].sampled.alignment[0, s][runs[r].settled] for r in ratios] for s in range(count)])
    means, spreads = table.mean(axis=-1), table.std(axis=-1)
    exact = np.array([runs[r].exact.alignment[:, runs[r].settled].mean() for r in ratios])
    for index, colour in enumerate(sequence(count)):
        marks.append(Line(ratios, means[index] - exact, f"seed {SEEDS[index]}", colour, 1.4))
    marks.append(Reference(0.0, "y", "exact θ"))
    band = spreads.mean(axis=0)
    around = [
        Band(ratios, means.mean(axis=0) - band, means.mean(axis=0) + band, "± std along a path"),
        *(Line(ratios, row, "", colour, 1.2) for row, colour in zip(means, sequence(count), strict=True)),
    ]
    between = float(np.max(means.std(axis=0, ddof=1)))
    within = float(np.max(spreads))
    panels = [
        Panel(
            "paper's ratio r", "alignment θ, last 10,000 steps", around, "Means", x_scale="log", y_range=(0.45, 1.02)
        ),
        Panel("paper's ratio r", "window mean − exact θ", marks, "Seeds apart", x_scale="log"),
    ]
    return Section(
        "figure-6",
        "Figure 6: seed by seed",
        "The seeds differ less from each other than one run differs from itself: the plateau forgets its start.",
        checks=[
            Check(
                "spread between seeds below the spread along a path",
                between < within,
                f"largest standard deviation between seeds {between:.4f}, along a path {within:.4f}",
            )
        ],
        figures=[Figure("figure-6", "Mean over steps 20,000–30,000 for each seed.", panels)],
        data={"ratio": ratios, "between_seeds": between, "along_path": within, "means": means.tolist()},
    )


def _window_p_value(run: PaperRuns) -> float:
    """Smaller two-sided p-value of the window's mean energies against the exact ones, by Student's t between seeds."""
    smallest = 1.0
    for seen, part in (
        (run.sampled.dominant_energy, run.exact.split.dominant),
        (run.sampled.bulk_energy, run.exact.split.bulk),
    ):
        difference = (seen[0] - part.signal.zeroth)[:, run.settled].mean(axis=1)
        error = difference.std(ddof=1) / np.sqrt(difference.size)
        smallest = min(smallest, 2.0 * float(stdtr(difference.size - 1, -abs(difference.mean()) / error)))
    return smallest
