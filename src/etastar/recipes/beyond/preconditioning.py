"""Preconditioning: the bulk-only interval as M goes from I to H, along M = H^s, without and with noise.

Everything is said in the inner product of M, in which a preconditioned step is a plain one on H^(1−s).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import etastar
from etastar.quadratic import Noise, Preconditioned, Quadratic
from etastar.recipes.beyond.agreement import Array, standard_error
from etastar.recipes.demonstrations.sampled import gradients_of
from etastar.recipes.paper_figures import PaperRuns
from etastar.recipes.paper_figures.setting import STEP_SIZE
from etastar.report import COLOURS, Band, Check, Column, Figure, Line, Panel, Section, Table

__all__ = ["preconditioning"]

_POWERS = np.concatenate([np.linspace(0.0, 0.98, 50), [0.99, 0.995, 0.999]])
_TRIED = (0.0, 0.5, 0.9)
_SIDES: tuple[Literal["dominant", "bulk"], ...] = ("dominant", "bulk")


def preconditioning(run: PaperRuns, replicas: int, seed: int) -> Section:
    """η_D, η_B and η* over s at one state of the run, with samples of projected steps inside the interval."""
    time = 300
    arguments: dict[str, Any] = {
        "gradient": run.gradients[0],
        "step_size": STEP_SIZE,
        "times": [time],
        "seed": seed + 11,
    }
    state = gradients_of(run.problem.sample(**arguments, keep_gradient=True))[0, 0]
    quiet = _Sweep.of(Quadratic(run.problem.spectrum, Noise.isotropic(0.0)), state)
    noisy = _Sweep.of(run.problem, state)
    newton, formula = _at_newton(run.problem, state)
    limit_error = float(np.max(np.abs(newton / formula - 1.0)))
    gap = float(np.max(np.abs(np.array([quiet.dominant[-1], quiet.bulk[-1]]) / 2.0 - 1.0)))
    worst, right = _sampled(run.problem, state, replicas, seed)
    width = [noisy.bulk[0] / noisy.dominant[0], formula[1] / formula[0]]
    return Section(
        "preconditioning",
        "Beyond the paper: preconditioning",
        f"At one state of the run (t = {time}), as M = H^s goes from I to H: without noise the [[bulk-only interval]] "
        f"closes on 2, Newton's own limit. With the run's noise it narrows from η_B/η_D = {width[0]:.0f} to "
        f"{width[1]:.2f} and stays open: η_D → {formula[0]:.3f}, η_B → {formula[1]:.3f}.",
        "Preconditioning equalises curvature; it leaves the ratio of noise to signal in each subspace, η_S → "
        "2/(1 + Σκ²λ⁻¹/Σg²λ⁻¹). A dominant subspace at its noise floor is not helped by a better M, only by a larger "
        "batch or a smaller step. η* says less and less: at M = H nothing but noise moves the [[alignment]]; without "
        "noise η* → 1, with it η* → 0.",
        [
            Check(
                "without noise the interval closes on 2", gap < 0.02, f"|η_S/2 − 1| ≤ {gap:.2g} at s = {_POWERS[-1]}"
            ),
            Check(
                "with noise it ends at 2/(1 + noise over signal), M = H",
                limit_error < 1e-12,
                f"largest relative difference {limit_error:.1g}",
            ),
            Check(
                "η_B/η_D falls with s, with and without noise",
                all(np.all(np.diff(sweep.bulk / sweep.dominant) < 0) for sweep in (quiet, noisy)),
                f"from {width[0]:.3g} with noise, from {quiet.bulk[0] / quiet.dominant[0]:.3g} without",
            ),
            Check(
                f"inside it [[DSGD]] raises and [[BSGD]] lowers the loss at s = 0, 0.5, 0.9 ({replicas:,} runs each)",
                right and worst <= 4.0,
                f"largest |[[z]]| against the prediction {worst:.2f}, limit 4",
            ),
        ],
        [
            Figure(
                "preconditioning",
                "Thresholds in the inner product of M = H^s at one state; shaded: only the bulk update descends.",
                [quiet.panel("Without noise", legend=True), noisy.panel("With the run's noise", legend=False)],
            )
        ],
        [_table(quiet, noisy)],
        {"power": _POWERS.tolist(), "noise_free": quiet.to_json(), "noisy": noisy.to_json(), "worst_z": worst},
    )


@dataclass(frozen=True, slots=True)
class _Sweep:
    """Thresholds, critical step and stability limit at each power s."""

    dominant: Array
    bulk: Array
    critical: Array
    stability: Array

    @classmethod
    def of(cls, problem: Quadratic, state: Array) -> _Sweep:
        eigenvalues = _eigenvalues(problem)
        rows: list[list[float]] = []
        for power in _POWERS.tolist():
            split = problem.moments(gradient=state, optimizer=Preconditioned(eigenvalues**power))
            bounds, step = etastar.loss_thresholds(split), etastar.critical_step_size(split)
            longest = 2.0 / float(eigenvalues[0]) ** (1.0 - power)
            rows.append([float(bounds.dominant), float(bounds.bulk), float(step.value), longest])
        return cls(*np.array(rows).T)

    def panel(self, title: str, legend: bool) -> Panel:
        marks = [
            Band(_POWERS, self.dominant, self.bulk, "bulk-only interval", COLOURS["accent"]),
            Line(_POWERS, self.bulk, "η_B", COLOURS["bulk"], 2.2),
            Line(_POWERS, self.dominant, "η_D", COLOURS["dominant"], 2.2),
            Line(_POWERS, self.critical, "η*", COLOURS["critical"], 1.8, "dash"),
            Line(_POWERS, self.stability, "stable below 2/λ₁ of M^(−½)HM^(−½)", COLOURS["exact"], 1.4, "dot"),
        ]
        return Panel("s, M = H^s", "step size η", marks, title, y_scale="log", y_range=(1e-3, 8.0), legend=legend)

    def row(self, power: float) -> list[str]:
        i = int(np.argmin(np.abs(_POWERS - power)))
        return [f"{value[i]:.4g}" for value in (self.dominant, self.bulk, self.critical)]

    def to_json(self) -> dict[str, list[float]]:
        return {name: getattr(self, name).tolist() for name in ("dominant", "bulk", "critical")}


def _eigenvalues(problem: Quadratic) -> Array:
    return np.repeat(problem.spectrum.eigenvalues, problem.spectrum.multiplicities)


def _at_newton(problem: Quadratic, state: Array) -> tuple[Array, Array]:
    """(η_D, η_B) at M = H from the moments of the step in x, and from noise over signal."""
    eigenvalues, k = _eigenvalues(problem), problem.spectrum.rank
    split = problem.moments(gradient=state, optimizer=Preconditioned(eigenvalues), euclidean=True)
    bounds = etastar.loss_thresholds(split)
    noise = np.broadcast_to(np.asarray(problem.additive("this section").variances), eigenvalues.shape) / eigenvalues
    signal = state**2 / eigenvalues
    share = np.array([noise[part].sum() / signal[part].sum() for part in (slice(None, k), slice(k, None))])
    return np.array([float(bounds.dominant), float(bounds.bulk)]), 2.0 / (1.0 + share)


def _sampled(problem: Quadratic, state: Array, replicas: int, seed: int) -> tuple[float, bool]:
    """Worst |z| of sampled loss changes of projected steps amid the interval, and whether all signs are as said."""
    scores: list[float] = []
    right = True
    for number, power in enumerate(_TRIED):
        optimizer = Preconditioned(_eigenvalues(problem) ** power)
        split = problem.moments(gradient=state, optimizer=optimizer)
        bounds = etastar.loss_thresholds(split)
        eta = float(np.sqrt(bounds.dominant * bounds.bulk))
        before = float(problem.expected(gradient=state, step_size=eta, times=[0]).loss[0])
        predicted = etastar.loss_change(split, eta)
        for side in _SIDES:
            after = problem.simulate(
                gradient=state,
                step_size=eta,
                steps=1,
                record=[1],
                projection=side,
                replicas=replicas,
                seed=seed + 340 + number,
                optimizer=optimizer,
            ).loss[:, 0]
            change, said = float(after.mean()) - before, float(getattr(predicted, side))
            scores.append(abs(change - said) / float(standard_error(after)))
            right = right and (change > 0) == (side == "dominant")
    return max(scores), right


def _table(quiet: _Sweep, noisy: _Sweep) -> Table:
    meanings = {"η_D": "dominant loss threshold", "η_B": "bulk loss threshold", "η*": "critical step size"}
    columns = [Column("s", "M = H^s: 0 is plain SGD, 1 is Newton")]
    columns += [
        Column(f"{name}{mark}", f"{what}, {kind}")
        for mark, kind in ((", no noise", "without noise"), ("", "with the run's noise"))
        for name, what in meanings.items()
    ]
    rows = [[f"{power:g}", *quiet.row(power), *noisy.row(power)] for power in (0.0, 0.5, 0.9, 0.99, 0.999)]
    return Table(columns, rows, "Steps in the inner product of M")
