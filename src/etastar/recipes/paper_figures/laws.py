"""Figures 7–13 and 14: the laws the paper reads off its runs, beside what the exact curves follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import curve_fit, minimize_scalar

import etastar
from etastar.recipes.paper_figures.setting import STEP_SIZE, PaperRuns, paper_problem
from etastar.report import COLOURS, Check, Column, Figure, Line, Panel, Points, Reference, Section, Table

__all__ = ["logarithm_of_ratio", "phase_one_fits"]

Array = npt.NDArray[np.float64]
Runs = Mapping[int, PaperRuns]


def phase_one_fits(runs: Runs) -> Section:
    """Figures 7–13: the paper's degree-3 fit of phase I, beside an exponential fall of the odds to a floor."""
    fits = [_PhaseOne.of(ratio, runs[ratio]) for ratio in sorted(runs)]
    errors = np.array([fit.errors for fit in fits])
    gain = float(np.min(errors[:, 0] / errors[:, 2]))
    return Section(
        "phase-one",
        "Figures 7–13: how phase I falls",
        "The [[odds]] θ/(1 − θ) fall exponentially to a floor, θ = 1/(1 + 1/(a·e^(−ct) + f)): three numbers fit "
        f"phase I at least {gain:.0f} times better than a polynomial of degree 3, which leaves [0, 1] as soon as it is "
        "carried past the turn.",
        "The paper reads the fall as polynomial from the quality of such fits. The exact curve is a ratio of sums of "
        "exponentials; a cubic bends to it inside the window and nowhere else. The rate c is close to "
        "−2·log(1 − ηλ) of the dominant eigenvalues, 0.55 to 0.71.",
        [
            Check(
                "exponential odds fit phase I at least 5 times better than degree 3, at every ratio",
                gain >= 5,
                f"least gain in root-mean-square error {gain:.1f}",
            ),
            Check(
                "and hold for as long again after it",
                bool(np.all(errors[:, 3] < 0.05)),
                f"largest error beyond {np.max(errors[:, 3]):.4f}; degree 3: at least {np.min(errors[:, 1]):.2f}",
            ),
        ],
        [
            Figure(
                "phase-one",
                "Fits to the exact curve up to its turn, and carried on as long again.",
                [fit.panel() for fit in fits if fit.ratio in (5, 100)],
            )
        ],
        [Table(_FIT_COLUMNS, [fit.row() for fit in fits])],
        {"ratio": [fit.ratio for fit in fits], "rms": errors.tolist()},
    )


_FIT_COLUMNS = [
    Column("r", "the paper's ratio parameter"),
    Column("turn", "last step of phase I, seed 42"),
    Column("degree 3", "root-mean-square error in phase I"),
    Column("beyond", "the same, over as many steps after the turn"),
    Column("exp. odds", "root-mean-square error in phase I"),
    Column("beyond", "the same, over as many steps after the turn"),
    Column("rate c", "fitted rate at which the odds fall, per step"),
]


@dataclass(frozen=True, slots=True, eq=False)
class _PhaseOne:
    """The exact curve of one ratio up to twice its turn, and two fits to its first half."""

    ratio: int
    turn: int
    times: npt.NDArray[np.int64]
    theta: Array
    cubic: Array
    odds: Array
    rate: float

    @classmethod
    def of(cls, ratio: int, run: PaperRuns) -> _PhaseOne:
        start: dict[str, Any] = {"gradient": run.gradients[0], "step_size": STEP_SIZE}
        turn = run.problem.phases(**start).turns[0][0]
        times = np.arange(2 * turn + 1)
        theta = run.problem.expected(**start, times=times).alignment
        return cls(ratio, turn, times, theta, *_fit_phase_one(times, theta, turn))

    @property
    def errors(self) -> list[float]:
        """Root mean squares: the cubic's in phase I and beyond, then the odds'."""
        parts = (self.times <= self.turn, self.times > self.turn)
        return [
            float(np.sqrt(np.mean((fit[part] - self.theta[part]) ** 2)))
            for fit in (self.cubic, self.odds)
            for part in parts
        ]

    def row(self) -> list[str]:
        """The row of the table, as `_FIT_COLUMNS`."""
        return [str(self.ratio), str(self.turn), *(f"{e:.4f}" for e in self.errors), f"{self.rate:.3f}"]

    def panel(self) -> Panel:
        """The curve and both fits."""
        drawn = np.where(np.abs(self.cubic) < 1.6, self.cubic, np.nan)
        marks = [
            Line(self.times, self.theta, "exact", COLOURS["exact"], 2.4),
            Line(self.times, drawn, "degree 3, ridge", COLOURS["bulk"], 1.6, "dash"),
            Line(self.times, self.odds, "exponential odds + floor", COLOURS["dominant"], 1.6, "dot"),
            Reference(self.turn, "x", "end of the fit (turn)"),
        ]
        return Panel("step t", "alignment θ", marks, f"r = {self.ratio}", y_range=(-0.3, 1.3))


def logarithm_of_ratio(runs: Runs) -> Section:
    """Figure 14: the stationary alignment against log r, far beyond the paper's range."""
    laws = _Laws.of(np.array(sorted(runs), dtype=np.float64))
    error_log = float(np.max(np.abs(laws.logarithm - laws.limit)[np.isin(laws.far, laws.paper)]))
    error_hyperbola = float(np.max(np.abs(laws.hyperbola - laws.limit)))
    window = [float(runs[int(r)].sampled.alignment[0][:, runs[int(r)].settled].mean()) for r in laws.paper]
    return Section(
        "figure-14",
        "Figure 14: alignment against log r",
        f"1 − θ∞ falls like 1/r: θ∞ = r/(r + {laws.constant:.2f}) holds within {error_hyperbola:.1g} from r = 5 to "
        "50,000.",
        f"Over the paper's range a logarithm looks fair (largest error {error_log:.2f}); it passes 1, which no "
        f"alignment can, from r = {laws.passes_one:.0f}.",
        [
            Check("θ∞ = r/(r + C) within 0.001", error_hyperbola < 0.001, f"largest error {error_hyperbola:.2g}"),
            Check("a logarithm cannot hold: it passes 1", laws.passes_one < 50_000, f"from r = {laws.passes_one:.0f}"),
        ],
        [Figure("figure-14", "Exact stationary alignment and two laws for it.", laws.panels(window))],
        data={
            "C": laws.constant,
            "error_hyperbola": error_hyperbola,
            "error_logarithm": error_log,
            "log_passes_one": laws.passes_one,
        },
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Laws:
    """The exact stationary alignment over r, a logarithm fitted on the paper's ratios, and r/(r + constant)."""

    paper: Array
    far: Array
    limit: Array
    logarithm: Array
    passes_one: float
    constant: float

    @classmethod
    def of(cls, paper: Array) -> _Laws:
        far = np.unique(np.concatenate([paper, np.geomspace(5, 50_000, 60)]))
        limit = np.array([float(etastar.alignment(paper_problem(r).stationary(STEP_SIZE))) for r in far])
        slope, intercept = np.polyfit(np.log(paper), limit[np.isin(far, paper)], 1)

        def misfit(c: float) -> float:
            return float(np.sum((far / (far + c) - limit) ** 2))

        fit: Any = minimize_scalar(misfit, bounds=(0.01, 100.0), method="bounded")
        beyond = float(np.exp((1.0 - intercept) / slope))
        return cls(paper, far, limit, intercept + slope * np.log(far), beyond, float(fit.x))

    @property
    def hyperbola(self) -> Array:
        """r/(r + constant)."""
        return self.far / (self.far + self.constant)

    def panels(self, window: list[float]) -> list[Panel]:
        """θ∞ against log r with the sampled window means, and its distance to one."""
        far, constant = self.far, self.constant
        alignment = [
            Line(far, self.limit, "exact θ∞", COLOURS["exact"], 2.4),
            Line(far, self.hyperbola, f"r/(r + {constant:.2f})", COLOURS["dominant"], 1.6, "dot"),
            Line(far, self.logarithm, "logarithm fitted on r ≤ 500", COLOURS["bulk"], 1.6, "dash"),
            Points(self.paper, window, "sampled window means", COLOURS["sampled"]),
        ]
        distance = [
            Line(far, 1 - self.limit, "exact 1 − θ∞", COLOURS["exact"], 2.4),
            Line(far, constant / far, f"{constant:.2f}/r", COLOURS["dominant"], 1.6, "dot"),
        ]
        above = "The distance to one falls like 1/r"
        return [
            Panel("paper's ratio r", "alignment θ", alignment, "Against log r", x_scale="log", y_range=(0.4, 1.6)),
            Panel("paper's ratio r", "1 − θ", distance, above, x_scale="log", y_scale="log"),
        ]


def _fit_phase_one(times: Array | Any, theta: Array, turn: int) -> tuple[Array, Array, float]:
    """The paper's ridge fit of degree 3, and an exponential fall of the odds to a floor; both fitted up to `turn`."""
    inside = times <= turn
    powers = np.vander(times / turn, 4, increasing=True)
    seen = powers[inside]
    penalty = 1e-3 * np.diag([0.0, 1.0, 1.0, 1.0])
    cubic = powers @ np.linalg.solve(seen.T @ seen + penalty, seen.T @ theta[inside])

    def log_odds(t: Array, start: float, rate: float, floor: float) -> Array:
        return np.logaddexp(start - rate * t, floor)

    observed = np.log(theta / (1.0 - theta))
    guess = (observed[0], 0.6, observed[turn])
    (start, rate, floor), _ = curve_fit(log_odds, times[inside].astype(np.float64), observed[inside], p0=guess)
    odds = np.exp(log_odds(times.astype(np.float64), start, rate, floor))
    return cubic, odds / (1.0 + odds), float(rate)
