"""The laboratory's answer to a question, as table, JSON, picture and page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import etastar
from etastar.errors import InvalidArgument
from etastar.quadratic import Curve, Phases, expected_alignment
from etastar.recipes.lab.question import LabQuestion, pose, stable_below, times_of
from etastar.report import (
    COLOURS,
    Column,
    Figure,
    Line,
    Panel,
    Reference,
    Section,
    Shade,
    Table,
    write_report,
)

__all__ = ["COLUMNS", "LabAnswer", "ask", "write_answer"]

Array = npt.NDArray[np.float64]
_MOST_INTEGRALS = 2_000_000  # blocks times times, each at a thousand nodes: half a minute
_FEW = 4  # more turns than these are told by the first and the last


@dataclass(frozen=True, slots=True)
class LabAnswer:
    """The exact answer.

    Attributes:
        title: What was computed, in words.
        curve: The expected curve from one start.
        phases: Its turns, limit and bounds.
        dimension: d.
        rank: k.
        ratio: λ_k/λ_{k+1}.
        stability_limit: The largest stable step: 2/λ₁ for SGD.
        mean_of_ratio: E θ_t at the times of the curve, where asked for; `curve` has the ratio of expected energies.
        averaged: Whether the curve is that of an averaged iterate.
    """

    title: str
    curve: Curve
    phases: Phases
    dimension: int
    rank: int
    ratio: float
    stability_limit: float
    mean_of_ratio: Array | None = None
    averaged: bool = False

    @property
    def reading(self) -> str:
        """What the thresholds beside the curve are."""
        if self.averaged:
            return (
                "η*, η_D and η_B are those of a step of plain SGD from the averaged iterate, which takes no steps "
                "of its own: at rest they are not η."
            )
        return (
            "η* is the critical step size of the next step; η/η_D and η/η_B are the step over the loss thresholds, "
            "1 where a subspace has equilibrated."
        )

    @property
    def columns(self) -> list[Column]:
        """Of `rows`."""
        mean = [] if self.mean_of_ratio is None else [_MEAN_COLUMN]
        return [*COLUMNS[:2], *mean, *COLUMNS[2:]]

    def rows(self, most: int = 16) -> list[list[str]]:
        """Formatted rows of the curve, thinned to `most`, with its turns if they are few."""
        curve, step, bounds = self.curve, self.curve.critical_step_size, self.curve.loss_thresholds
        last = curve.times.size - 1
        turns = np.flatnonzero(np.isin(curve.times, self._told_turns))
        with np.errstate(divide="ignore", invalid="ignore"):  # a threshold may be zero, or none
            over_dominant, over_bulk = curve.step_size / bounds.dominant, curve.step_size / bounds.bulk
        picked = np.union1d(np.linspace(0, last, min(most, last + 1)).round().astype(int), turns)
        picked = picked[np.isfinite(curve.loss[picked])]  # beyond float64 there is nothing to show
        return [
            [
                f"{curve.times[i]:,}",
                _shown(curve.alignment[i]),
                *([] if self.mean_of_ratio is None else [_shown(self.mean_of_ratio[i])]),
                _shown(step.value[i]),
                step.regime[i].name,
                _shown(over_dominant[i]),
                _shown(over_bulk[i]),
                _shown(curve.loss[i]),
            ]
            for i in picked.tolist()
        ]

    @property
    def _told_turns(self) -> list[int]:
        """Times of all turns where they are few, of the first and the last where they are many."""
        turns = [t for t, _ in self.phases.turns]
        return turns if len(turns) <= _FEW else [turns[0], turns[-1]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where a number does not exist."""
        curve, step, bounds, phases = self.curve, self.curve.critical_step_size, self.curve.loss_thresholds, self.phases
        return {
            "title": self.title,
            "dimension": self.dimension,
            "rank": self.rank,
            "ratio": _plain(self.ratio),
            "step_size": curve.step_size,
            "stability_limit": _plain(self.stability_limit),
            "times": curve.times.tolist(),
            "alignment": [_plain(x) for x in curve.alignment],
            "mean_of_ratio": None if self.mean_of_ratio is None else [_plain(x) for x in self.mean_of_ratio],
            "loss": [_plain(x) for x in curve.loss],
            "critical_step_size": [_plain(x) for x in step.value],
            "regime": [regime.name for regime in step.regime],
            "threshold_dominant": [_plain(x) for x in bounds.dominant],
            "threshold_bulk": [_plain(x) for x in bounds.bulk],
            "threshold_full": [_plain(x) for x in bounds.full],
            "phases": {
                "turns": [list(turn) for turn in phases.turns],
                "complete": phases.complete,
                "alignment_start": _plain(phases.alignment_start),
                "alignment_min": _plain(phases.alignment_min),
                "alignment_limit": _plain(phases.alignment_limit),
                "turn_bounds": list(phases.turn_bounds) if phases.turn_bounds else None,
                "t_star": phases.t_star,
                "t_star_sharp": phases.t_star_sharp,
                "stability": phases.stability,
                "shape": phases.shape,
            },
        }

    def section(self) -> Section:
        """The answer as a section of a report."""
        curve, phases = self.curve, self.phases
        x = curve.times + 1
        theta = [Line(x, curve.alignment, "exact θ", COLOURS["exact"], 2.2), *self._turn_marks()]
        if self.mean_of_ratio is not None:
            theta.insert(1, Line(x, self.mean_of_ratio, "E θ, mean of the ratio", COLOURS["sampled"], 1.6, "dash"))
        if np.isfinite(phases.alignment_limit):
            theta.append(Reference(phases.alignment_limit, "y", "stationary θ∞", COLOURS["dominant"]))
        ratio = [
            Line(x, np.asarray(curve.critical_step_size.value) / curve.step_size, "η*ₜ/η", COLOURS["critical"], 2.2),
            Reference(1.0, "y", "η"),
            *_regime_stripes(curve, "a plain step from x̄ raises θ" if self.averaged else "θ rises"),
        ]
        panels = [
            Panel("step t + 1", "alignment θ", list(theta), "Alignment", x_scale="log", y_range=(-0.02, 1.02)),
            Panel("step t + 1", "η*ₜ/η", list(ratio), "Critical step size over η", x_scale="log", y_scale="log"),
            Panel(
                "step t + 1",
                "loss",
                [Line(x, curve.loss, "expected loss", COLOURS["full"], 2.2)],
                "Loss",
                x_scale="log",
                y_scale="log",
            ),
        ]
        return Section(
            "lab",
            self.title,
            f"The [[alignment]] {phases.shape}.",
            self.reading,
            figures=[Figure("lab", "Closed form of the expected run.", panels)],
            tables=[Table(self.columns, self.rows(40))],
            data=self.to_json(),
        )

    def _turn_marks(self) -> list[Reference | Shade]:
        told, count = self._told_turns, len(self.phases.turns)
        if count > _FEW:
            return [Shade(told[0] + 1, told[1] + 1, f"{count} turns, t = {told[0]:,} … {told[1]:,}")]
        return [Reference(t + 1, "x", f"turn at t = {t:,}") for t in told]


COLUMNS = [
    Column("t", "steps taken"),
    Column("θ", "alignment of expected energies"),
    Column("η*", "critical step size of the next step; – where the regime has none"),
    Column("regime", "how θ responds to the step size", numeric=False),
    Column("η/η_D", "step over the dominant loss threshold"),
    Column("η/η_B", "step over the bulk loss threshold"),
    Column("loss", "expected loss above the minimum"),
]


_MEAN_COLUMN = Column("E θ", "expectation of the alignment itself, by quadrature; θ is the ratio of expected energies")


def ask(question: LabQuestion) -> LabAnswer:
    """Build the problem, and answer.

    Raises:
        InvalidArgument: An option out of range, or two sources of a spectrum.
        InvalidFile: A spectrum file that is none.
    """
    posed = pose(question)
    problem, spectrum, step_size = posed.problem, posed.problem.spectrum, question.step_size
    phases = problem.phases(**posed.start, step_size=step_size, optimizer=posed.optimizer)
    times = times_of(question.times, [t for t, _ in phases.turns])
    curve = problem.expected(**posed.start, step_size=step_size, times=times, optimizer=posed.optimizer)
    mean = None
    if question.expectation == "mean-of-ratio":
        count = spectrum.eigenvalues.size * times.size
        if count > _MOST_INTEGRALS:
            many = f"takes {count:,} integrands, one for each eigenvalue and time; at most {_MOST_INTEGRALS:,}"
            raise InvalidArgument("expectation", question.expectation, f"{many}: give a few --times")
        mean = expected_alignment(problem, **posed.start, step_size=step_size, times=times)
    limit = stable_below(question.optimizer, question.momentum, float(spectrum.eigenvalues[0]))
    size, k, averaged = spectrum.dimension, spectrum.rank, question.averaging > 0
    return LabAnswer(posed.title, curve, phases, size, k, spectrum.ratio, limit, mean, averaged)


def write_answer(answer: LabAnswer, out: str | Path) -> list[Path]:
    """Write ``curve.csv``, ``lab.png`` and ``lab.html`` into a directory, all or none; returns their paths."""
    lead, files = "Exact, in closed form.", {"curve.csv": answer.curve.to_csv}
    return write_report(out, "lab.html", "etastar lab", lead, [answer.section()], files=files)


def _regime_stripes(curve: Curve, label: str) -> list[Shade]:
    """Shade the times at which the next step raises the alignment."""
    change = np.asarray(etastar.alignment_change(curve.split, curve.step_size))
    rising = np.concatenate([[False], change > 0, [False]])
    starts, ends = np.flatnonzero(~rising[:-1] & rising[1:]), np.flatnonzero(rising[:-1] & ~rising[1:])
    x = curve.times + 1
    return [
        Shade(float(x[a]), float(x[min(b, x.size - 1)]), label if i == 0 else "")
        for i, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
    ]


def _shown(value: Any) -> str:
    return f"{float(value):.5g}" if np.isfinite(value) else "–"


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
