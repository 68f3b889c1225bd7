"""Figures 7–13 and 14: the laws the paper reads off its runs, beside what the exact curves follow."""

from __future__ import annotations

from collections.abc import Mapping
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
    rows, errors, panels = [], [], []
    for ratio in sorted(runs):
        run = runs[ratio]
        turn = run.problem.phases(gradient=run.gradients[0], step_size=STEP_SIZE).turns[0][0]
        times = np.arange(2 * turn + 1)
        theta = run.problem.expected(gradient=run.gradients[0], step_size=STEP_SIZE, times=times).alignment
        cubic, odds, rate = _fit_phase_one(times, theta, turn)
        inside, beyond = times <= turn, times > turn
        error = [
            float(np.sqrt(np.mean((fit[part] - theta[part]) ** 2)))
            for fit in (cubic, odds)
            for part in (inside, beyond)
        ]
        errors.append(error)
        rows.append([str(ratio), str(turn), *(f"{e:.4f}" for e in error), f"{rate:.3f}"])
        if ratio in (5, 100):
            marks = [
                Line(times, theta, "exact", COLOURS["exact"], 2.4),
                Line(
                    times, np.where(np.abs(cubic) < 1.6, cubic, np.nan), "degree 3, ridge", COLOURS["bulk"], 1.6, "dash"
                ),
                Line(times, odds, "exponential odds + floor", COLOURS["dominant"], 1.6, "dot"),
                Reference(turn, "x", "end of the fit (turn)"),
            ]
            panels.append(Panel("step t", "alignment θ", marks, f"r = {ratio}", y_range=(-0.3, 1.3)))
    table = np.array(errors)
    gain = float(np.min(table[:, 0] / table[:, 2]))
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
                bool(np.all(table[:, 3] < 0.05)),
                f"largest error beyond {np.max(table[:, 3]):.4f}; degree 3: at least {np.min(table[:, 1]):.2f}",
            ),
        ],
        [Figure("phase-one", "Fits to the exact curve up to its turn, and carried on as long again.", panels)],
        [
            Table(
                [
                    Column("r", "the paper's ratio parameter"),
                    Column("turn", "last step of phase I, seed 42"),
                    Column("degree 3", "root-mean-square error in phase I"),
                    Column("beyond", "the same, over as many steps after the turn"),
                    Column("exp. odds", "root-mean-square error in phase I"),
                    Column("beyond", "the same, over as many steps after the turn"),
                    Column("rate c", "fitted rate at which the odds fall, per step"),
                ],
                rows,
            )
        ],
        {"ratio": sorted(runs), "rms": table.tolist()},
    )


def logarithm_of_ratio(runs: Runs) -> Section:
    """Figure 14: the stationary alignment against log r, far beyond the paper's range."""
    paper = np.array(sorted(runs), dtype=np.float64)
    far = np.unique(np.concatenate([paper, np.geomspace(5, 50_000, 60)]))
    limit = np.array([float(etastar.alignment(paper_problem(r).stationary(STEP_SIZE))) for r in far])
    seen = np.isin(far, paper)
    slope, intercept = np.polyfit(np.log(paper), limit[seen], 1)
    logarithm = intercept + slope * np.log(far)

    def misfit(c: float) -> float:
        return float(np.sum((far / (far + c) - limit) ** 2))

    fit: Any = minimize_scalar(misfit, bounds=(0.01, 100.0), method="bounded")
    constant = float(fit.x)
    hyperbola = far / (far + constant)
    beyond = float(np.exp((1.0 - intercept) / slope))
    error_log = float(np.max(np.abs(logarithm - limit)[seen]))
    error_hyperbola = float(np.max(np.abs(hyperbola - limit)))
    window = [float(runs[int(r)].sampled.alignment[0][:, runs[int(r)].settled].mean()) for r in paper]
    panels = [
        Panel(
            "paper's ratio r",
            "alignment θ",
            [
                Line(far, limit, "exact θ∞", COLOURS["exact"], 2.4),
                Line(far, hyperbola, f"r/(r + {constant:.2f})", COLOURS["dominant"], 1.6, "dot"),
                Line(far, logarithm, "logarithm fitted on r ≤ 500", COLOURS["bulk"], 1.6, "dash"),
                Points(paper, window, "sampled window means", COLOURS["sampled"]),
            ],
            "Against log r",
            x_scale="log",
            y_range=(0.4, 1.6),
        ),
        Panel(
            "paper's ratio r",
            "1 − θ",
            [
                Line(far, 1 - limit, "exact 1 − θ∞", COLOURS["exact"], 2.4),
                Line(far, constant / far, f"{constant:.2f}/r", COLOURS["dominant"], 1.6, "dot"),
            ],
            "The distance to one falls like 1/r",
            x_scale="log",
            y_scale="log",
        ),
    ]
    return Section(
        "figure-14",
        "Figure 14: alignment against log r",
        f"1 − θ∞ falls like 1/r: θ∞ = r/(r + {constant:.2f}) holds within {error_hyperbola:.1g} from r = 5 to 50,000.",
        f"Over the paper's range a logarithm looks fair (largest error {error_log:.2f}); it passes 1, which no "
        f"alignment can, from r = {beyond:.0f}.",
        [
            Check("θ∞ = r/(r + C) within 0.001", error_hyperbola < 0.001, f"largest error {error_hyperbola:.2g}"),
            Check("a logarithm cannot hold: it passes 1", beyond < 50_000, f"from r = {beyond:.0f}"),
        ],
        [Figure("figure-14", "Exact stationary alignment and two laws for it.", panels)],
        data={
            "C": constant,
            "error_hyperbola": error_hyperbola,
            "error_logarithm": error_log,
            "log_passes_one": beyond,
        },
    )


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
