"""The mean of the ratio: E θ against the ratio of expected energies, over rank and dimension, and its critical step.

The paper's statements are of the ratio of expectations; a plotted run, and a mean over seeds, is of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

import etastar
from etastar.quadratic import (
    Noise,
    Quadratic,
    Spectrum,
    corrected_critical_step,
    expected_alignment_after,
    expected_alignment_stationary,
)
from etastar.recipes.beyond.agreement import Array, standard_error, worst_score
from etastar.report import COLOURS, Check, Column, Figure, Line, Panel, Points, Section, Table, sequence
from etastar.report.figures import Mark

__all__ = ["mean_ratio"]

_TOP, _STEP = 100.0, 0.003
_RANKS = (1, 2, 5, 20, 50)
_RANKS_STEP = (1, 2, 3, 5, 10, 20, 50, 100)


def mean_ratio(replicas: int, seed: int) -> Section:
    """The gap over d at fixed k and θ∞ = ½, and η* of E θ' by root finding beside its first-order correction."""
    gaps = {rank: _gaps(rank) for rank in _RANKS}
    limits = np.array([gaps[rank][1][-1] for rank in _RANKS])
    rank, dimension = 5, 50_000
    sampled, worst = _sampled(rank, dimension, replicas, seed)
    steps = [_CriticalSteps.of(rank) for rank in _RANKS_STEP]
    plain, corrected = (np.array([getattr(step, name) for step in steps]) for name in ("plain", "corrected"))
    wide = np.array(_RANKS_STEP) >= 5
    shrinks = float(np.polyfit(np.log(np.array(_RANKS_STEP)[wide]), np.log(np.abs(corrected[wide])), 1)[0])
    order = float(np.max(np.abs(limits[-2:] * np.array(_RANKS[-2:]) / -0.25 - 1.0)))
    steady = max(abs(float(gap[-1] / gap[-2]) - 1.0) for _, gap in gaps.values())
    return Section(
        "mean-ratio",
        "Beyond the paper: the mean of the ratio",
        "The mean [[alignment]] of stationary runs is not the ratio of mean energies. At θ∞ = ½ it is lower by "
        f"{-limits[0]:.2f} for k = 1, {-limits[2]:.3f} for k = 5 and {-limits[4]:.4f} for k = 50, however large the "
        "dimension: about 1/(4k) for large k.",
        "Only k random numbers make the dominant energy, whatever d is, so that it keeps fluctuating by √(2/k) and a "
        "ratio keeps its bias, θ̄(1 − θ̄)[(1 − θ̄)ν_B − θ̄ν_D]. “High dimension” does not justify replacing one mean by "
        "the other; a large rank does. η* moves by as much, and the correction brings it back to second order.",
        [
            Check(
                f"k = {rank}, d = {dimension:,}: the quadrature agrees with {replicas:,} sampled runs, which reject the "  # noqa: E501
                "ratio of means",
                worst[0] <= 4.0 < worst[1],
                f"|[[z]]| = {worst[0]:.2f} for the quadrature, limit 4; {worst[1]:.0f} for the ratio of means",
            ),
            Check(
                "at fixed k the gap does not vanish with d",
                steady < 1e-3,
                f"from d = 10⁴k to 10⁶k it changes by {steady:.1g} of itself at most",
            ),
            Check(
                "for large k it is −1/(4k)", order < 0.05, f"within {order:.1%} at k = {_RANKS[-2]} and {_RANKS[-1]}"
            ),
            Check(
                "corrected η* is nearer to the root of E θ' = θ than η*, and its error falls like 1/k²",
                bool(np.all(np.abs(corrected[wide]) < 0.2 * np.abs(plain[wide]))) and -2.4 < shrinks < -1.6,
                f"error at k = 5: {plain[wide][0]:.1%}, corrected {corrected[wide][0]:.2%}; slope {shrinks:.2f}",
            ),
        ],
        [Figure("mean-ratio", "Two levels, isotropic noise; exact.", [_gap_panel(gaps, sampled), _step_panel(steps)])],
        [_table(steps)],
        {
            "gap_times_k": {str(rank): (gaps[rank][1] * rank).tolist() for rank in _RANKS},
            "worst_z": worst,
            "plain": plain.tolist(),
            "corrected": corrected.tolist(),
        },
    )


def _even(rank: int, dimension: int) -> Quadratic:
    """Two levels whose stationary alignment is ½ at the step in use, whatever their dimension."""
    share = rank * _TOP / (2.0 - _STEP * _TOP) / (dimension - rank)  # λ/(2 − ηλ) of each bulk mode
    return Quadratic(
        Spectrum.two_level(dimension, rank, dominant=_TOP, bulk=2.0 * share / (1.0 + _STEP * share)),
        Noise.isotropic(1.0),
    )


def _gaps(rank: int) -> tuple[Array, Array]:
    """E θ less the ratio of means, both stationary, over the dimension."""
    dimensions = np.unique((rank * np.geomspace(3.0, 1e6, 29)).round().astype(np.int64))
    dimensions = np.append(dimensions[dimensions < 10_000 * rank], [10_000 * rank, 1_000_000 * rank])
    problems = [_even(rank, int(d)) for d in dimensions]
    return dimensions.astype(np.float64), np.array([expected_alignment_stationary(p, _STEP) - 0.5 for p in problems])


def _sampled(rank: int, dimension: int, replicas: int, seed: int) -> tuple[Points, list[float]]:
    """The gap from stationary runs, with |z| against the quadrature and against the ratio of means."""
    problem = _even(rank, dimension)
    theta = problem.sample(
        energy=[1.0, 1.0], step_size=_STEP, times=[10**12], replicas=replicas, seed=seed + 390
    ).alignment
    exact = expected_alignment_stationary(problem, _STEP)
    ratio = float(etastar.alignment(problem.stationary(_STEP)))
    scores = [worst_score(theta, np.array([value])) for value in (exact, ratio)]
    gap = ratio - theta.mean(axis=0)
    return Points([dimension], gap, "sampled ± 2 s.e., k = 5", error=2.0 * standard_error(theta)), scores


@dataclass(frozen=True, slots=True)
class _CriticalSteps:
    """At one state: η* of the ratio of means, corrected, and the step that keeps E θ'; relative errors of the two."""

    rank: int
    ratio_of_means: float
    mean_of_ratio: float
    root: float

    @classmethod
    def of(cls, rank: int) -> _CriticalSteps:
        """At four times the dominant floor: noise and signal both matter."""
        problem = Quadratic(Spectrum.two_level(100 * rank, rank, dominant=_TOP, bulk=_TOP / 10.0), Noise.isotropic(1.0))
        energy = np.array([1.0 * rank, 4.0 * rank])
        said, theta = corrected_critical_step(problem, energy=energy), float(energy[0] / energy.sum())

        def change(step_size: float) -> float:
            return float(expected_alignment_after(problem, energy=energy, step_size=step_size)) - theta

        first = float(said.ratio_of_means)
        found: Any = brentq(change, 0.3 * first, 3.0 * first, xtol=1e-14)
        root = float(found)
        return cls(rank, first, float(said.mean_of_ratio), root)

    @property
    def plain(self) -> float:
        return self.ratio_of_means / self.root - 1.0

    @property
    def corrected(self) -> float:
        return self.mean_of_ratio / self.root - 1.0


def _gap_panel(gaps: dict[int, tuple[Array, Array]], sampled: Points) -> Panel:
    marks: list[Mark] = [
        Line(dimensions, -gap, f"k = {rank}", colour, 2.0)
        for (rank, (dimensions, gap)), colour in zip(gaps.items(), sequence(len(gaps)), strict=True)
    ]
    marks.append(sampled)
    title = "Ratio of means less mean of ratio, θ∞ = ½"
    scales: dict[str, Any] = {"x_scale": "log", "y_scale": "log"}
    return Panel("dimension d", "θ∞ − E θ", marks, title, **scales, y_range=(3e-4, 0.3))


def _step_panel(steps: list[_CriticalSteps]) -> Panel:
    ranks = [step.rank for step in steps]
    marks = [
        Line(ranks, [abs(step.plain) for step in steps], "η*", COLOURS["critical"], 2.2),
        Line(ranks, [abs(step.corrected) for step in steps], "corrected η*", COLOURS["exact"], 2.2),
    ]
    title = "Distance from the step that keeps E θ"
    return Panel("rank k (d = 100k)", "relative error", marks, title, x_scale="log", y_scale="log")


def _table(steps: list[_CriticalSteps]) -> Table:
    columns = [
        Column("k", "rank; d = 100k, two levels with ratio 10, θ = 0.2, gradient energies k and 4k, noise variance 1"),
        Column("η*", "critical step of the ratio of means"),
        Column("corrected", "the same for E θ', to first order in 1/k; not to be used for k ≤ 2"),
        Column("root", "the step at which E θ' = θ, by root finding on the quadrature"),
        Column("error of η*", "relative to the root"),
        Column("corrected", "the same of the corrected one"),
    ]
    rows = [
        [
            str(step.rank),
            *(f"{value:.6f}" for value in (step.ratio_of_means, step.mean_of_ratio, step.root)),
            f"{step.plain:+.2%}",
            f"{step.corrected:+.3%}",
        ]
        for step in steps
    ]
    return Table(columns, rows)
