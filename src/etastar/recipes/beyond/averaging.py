"""Averaged iterates: the alignment of x̄' = ωx̄ + (1 − ω)x', whose noise the average forgets."""

from __future__ import annotations

from typing import Any

import numpy as np

import etastar
from etastar.quadratic import SGD, Averaged, Quadratic
from etastar.recipes.beyond.agreement import Array, energy_scores
from etastar.recipes.paper_figures import PaperRuns
from etastar.recipes.paper_figures.setting import STEP_SIZE
from etastar.report import COLOURS, Check, Figure, Line, Panel, Points, Reference, Section, sequence
from etastar.report.figures import Mark

__all__ = ["averaging"]

_OMEGAS = (0.0, 0.9, 0.99, 0.999)


def averaging(run: PaperRuns, replicas: int, seed: int) -> Section:
    """Curves of the averaged iterate beside runs, and its stationary alignment against the averaging time."""
    curves, worst = _curves(run, replicas, seed)
    problem = run.problem
    spans = np.geomspace(1.0, 1e8, 81)
    omegas = 1.0 - 1.0 / spans
    engine = np.array([float(etastar.alignment(_at_rest(problem, omega))) for omega in omegas.tolist()])
    dominant, bulk = problem.modes.total(np.stack([_closed_form(problem, omega) for omega in omegas.tolist()]))
    error = float(np.max(np.abs(engine - dominant / (dominant + bulk))))
    dominant, bulk = problem.modes.total(np.asarray(problem.modes.variances))
    share = float(dominant / (dominant + bulk))
    marks = [
        Line(spans, engine, "averaged iterate", COLOURS["exact"], 2.2),
        Reference(float(engine[0]), "y", "last iterate", COLOURS["dominant"]),
        Reference(share, "y", "noise itself", COLOURS["bulk"]),
    ]
    settled = Panel("averaging time 1/(1 − ω) [steps]", "θ∞", marks, "Stationary alignment", x_scale="log")
    hundred = float(np.interp(np.log(100.0), np.log(spans), engine))
    return Section(
        "averaging",
        "Beyond the paper: averaging",
        f"The iterate of constant-step SGD ends with a gradient {engine[0]:.1%} aligned; the average over about 100 "
        f"steps with {hundred:.0%}, and the longer the average the nearer to {share:.0%}, the noise's own share in the "
        "dominant subspace.",
        "A stationary average is H⁻¹ times a mean of noise, so that its gradient is that mean: as white as the noise. "
        "What is suspicious about the [[alignment]] of the last iterate, that steep directions carry their noise "
        "floor, is gone from the average.",
        [
            Check(
                f"exact curves agree with sampled ones for ω = 0.9, 0.99, 0.999 ({replicas} runs each)",
                worst <= 4.0,
                f"largest |[[z]]| of the energies of both subspaces = {worst:.2f}, limit 4",
            ),
            Check(
                "f(1 − ω)(1 + ωρ)/((1 + ω)(1 − ωρ)), ρ = 1 − ηλ, is the stationary energy of a mode",
                error < 1e-12,
                f"largest difference in θ∞ {error:.1g}",
            ),
            Check(
                "θ∞ falls with ω, from the iterate's to the noise's",
                bool(np.all(np.diff(engine) < 0) and abs(engine[-1] - share) < 1e-3),
                f"{engine[0]:.4f} to {engine[-1]:.4f}; the noise has {share:.4f}",
            ),
        ],
        [Figure("averaging", f"The paper's quadratic, r = {run.ratio}, η = {STEP_SIZE:g}.", [curves, settled])],
        data={"worst_z": worst, "limit": share, "averaging_time": spans.tolist(), "alignment": engine.tolist()},
    )


def _curves(run: PaperRuns, replicas: int, seed: int) -> tuple[Panel, float]:
    fine = np.unique(np.geomspace(1, 100_000, 240).astype(np.int64))
    few = np.unique(np.geomspace(1, 100_000, 16).astype(np.int64))
    marks: list[Mark] = []
    worst = 0.0
    for number, (omega, colour) in enumerate(zip(_OMEGAS, sequence(len(_OMEGAS)), strict=True)):
        optimizer = Averaged(omega) if omega else SGD()
        start: dict[str, Any] = {"gradient": run.gradients[0], "step_size": STEP_SIZE, "optimizer": optimizer}
        exact = run.problem.expected(**start, times=fine).alignment
        marks.append(Line(fine, exact, f"ω = {omega:g}", colour, 2.0))
        if not omega:
            continue
        paths = run.problem.sample(**start, times=few, replicas=replicas, seed=seed + 320 + number)
        worst = max(worst, energy_scores(paths, run.problem.expected(**start, times=few)))
        dominant, bulk = paths.dominant_energy.mean(axis=0), paths.bulk_energy.mean(axis=0)
        marks.append(Points(few, dominant / (dominant + bulk), "sampled" if omega == _OMEGAS[-1] else ""))
    title = "Exact curves, sampled runs"
    return Panel("step t", "alignment θ of x̄", marks, title, x_scale="log", y_range=(-0.02, 1.02)), worst


def _at_rest(problem: Quadratic, omega: float) -> etastar.SplitMoments:
    return problem.stationary(STEP_SIZE, optimizer=Averaged(omega))


def _closed_form(problem: Quadratic, omega: float) -> Array:
    """Stationary energies of the averaged iterate, per block (theory §7)."""
    product = STEP_SIZE * problem.modes.eigenvalues
    floor, kept = product * problem.modes.variances / (2.0 - product), 1.0 - product
    return floor * (1.0 - omega) * (1.0 + omega * kept) / ((1.0 + omega) * (1.0 - omega * kept))
