"""The bulk-only interval: DSGD and BSGD across (η_D, η_B), predicted from moments and sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

import etastar
from etastar.quadratic import Quadratic
from etastar.recipes.demonstrations.sampled import Array, gradients_of, right_signs
from etastar.recipes.paper_figures import PaperRuns
from etastar.recipes.paper_figures.setting import STEP_SIZE
from etastar.report import COLOURS, Check, Figure, Line, Panel, Points, Reference, Section
from etastar.report.figures import Mark

__all__ = ["bulk_only_interval"]


def bulk_only_interval(run: PaperRuns, replicas: int, seed: int) -> Section:
    """DSGD and BSGD at steps across (η_D, η_B): inside it the one raises and the other lowers the loss."""
    problem, time = run.problem, 300
    path = problem.sample(
        gradient=run.gradients[0], step_size=STEP_SIZE, times=[time], seed=seed + 11, keep_gradient=True
    )
    state = gradients_of(path)[0, 0]
    bounds = etastar.loss_thresholds(problem.moments(gradient=state))
    low, high = float(bounds.dominant), float(bounds.bulk)
    steps = np.geomspace(0.3 * low, 3.0 * high, 11)
    updates = [
        _ProjectedUpdate.sampled(problem, state, "dominant", steps, replicas, seed + 200),
        _ProjectedUpdate.sampled(problem, state, "bulk", steps, replicas, seed + 100),
    ]
    scores = [update.worst for update in updates]
    right, resolved = (sum(column) for column in zip(*(update.signs() for update in updates), strict=True))
    inside = (steps > low) & (steps < high)
    pattern = bool(np.all(updates[0].predicted[inside] > 0) and np.all(updates[1].predicted[inside] < 0))
    gap, (inside_share, drawn) = _stationary_gap(problem), _share_inside(run, 400, seed)
    return Section(
        "bulk-only",
        "The bulk-only interval",
        f"At one state of the run (t = {time}) [[DSGD]] raises and [[BSGD]] lowers the loss for every step between "
        f"η_D = {low:.5f} and η_B = {high:.4f}; below, both lower it; above, both raise it.",
        "“The dominant update raises the loss” is true of single states: of "
        f"{drawn} states drawn from the stationary law, {inside_share:.0%} have the run's step inside their "
        "[[bulk-only interval]]. On average it is not: at the stationary moments η_D = η_B = η, and it is empty.",
        [
            Check(
                f"predicted and sampled loss changes agree at 11 steps ({replicas:,} runs each)",
                max(scores) <= 4.0,
                f"largest |[[z]]| = {max(scores):.2f}, limit 4",
            ),
            Check(
                "inside the interval DSGD raises and BSGD lowers the loss, outside not",
                right == resolved and pattern,
                f"{right} of {resolved} changes beyond 4 standard errors have the predicted sign",
            ),
            Check("at the stationary moments the interval is empty", gap < 1e-9, f"|η_B/η_D − 1| = {gap:.1g}"),
        ],
        [
            Figure(
                "bulk-only",
                "Loss change by one projected step, in units of its first-order decrease.",
                [_interval_panel(updates, low, high)],
            )
        ],
        data={"threshold_dominant": low, "threshold_bulk": high, "worst_z": scores, "share_inside": inside_share},
    )


@dataclass(frozen=True, slots=True)
class _ProjectedUpdate:
    """One projected step of several sizes: its loss change over η·‖Sg‖², predicted and sampled."""

    side: Literal["dominant", "bulk"]
    split: etastar.SplitMoments
    steps: Array
    predicted: Array
    change: Array
    error: Array

    @classmethod
    def sampled(
        cls,
        problem: Quadratic,
        state: Array,
        side: Literal["dominant", "bulk"],
        steps: Array,
        replicas: int,
        seed: int,
    ) -> _ProjectedUpdate:
        split = problem.moments(gradient=state)
        before = float(np.sum(problem.modes.loss_weights * state**2))
        change, error = np.empty(steps.size), np.empty(steps.size)
        for index, eta in enumerate(steps.tolist()):
            after = problem.simulate(
                gradient=state,
                step_size=eta,
                steps=1,
                record=[1],
                projection=side,
                replicas=replicas,
                seed=seed + index,
            ).loss[:, 0]
            change[index], error[index] = after.mean() - before, after.std(ddof=1) / np.sqrt(replicas)
        unit = steps * float(getattr(split, side).signal.zeroth)
        return cls(side, split, steps, _in_first_order(split, side, steps), change / unit, error / unit)

    @property
    def worst(self) -> float:
        return float(np.max(np.abs((self.change - self.predicted) / self.error)))

    def signs(self) -> tuple[int, int]:
        return right_signs(self.predicted, self.change, self.error)

    def marks(self) -> list[Mark]:
        label = "DSGD" if self.side == "dominant" else "BSGD"
        fine = np.geomspace(self.steps[0], self.steps[-1], 120)
        curve = _in_first_order(self.split, self.side, fine)
        return [
            Line(fine, curve, f"{label} predicted", COLOURS[self.side], 2.0),
            Points(self.steps, self.change, f"{label} sampled ± 2 s.e.", COLOURS[self.side], 2 * self.error),
        ]


def _in_first_order(split: etastar.SplitMoments, side: str, steps: Array) -> Array:
    """The predicted loss change of the projected step, over η·‖Sg‖²."""
    return np.asarray(getattr(etastar.loss_change(split, steps), side)) / (
        steps * float(getattr(split, side).signal.zeroth)
    )


def _interval_panel(updates: list[_ProjectedUpdate], low: float, high: float) -> Panel:
    marks = [
        *(mark for update in updates for mark in update.marks()),
        Reference(0.0),
        Reference(low, "x", "η_D", COLOURS["dominant"]),
        Reference(high, "x", "η_B", COLOURS["bulk"]),
    ]
    return Panel(
        "step size η",
        "loss change/(η·‖Sg‖²)",
        marks,
        "Below zero the update lowers the loss",
        x_scale="log",
        y_range=(-1.15, 4.0),
    )


def _share_inside(run: PaperRuns, draws: int, seed: int) -> tuple[float, int]:
    """Share of states of the stationary law whose bulk-only interval holds the run's own step."""
    settled = run.problem.sample(
        gradient=run.gradients[0],
        step_size=STEP_SIZE,
        times=[1_000_000],
        replicas=draws,
        seed=seed + 13,
        keep_gradient=True,
    )
    bounds = etastar.loss_thresholds(run.problem.moments(gradient=gradients_of(settled)[:, 0]))
    inside = (np.asarray(bounds.dominant) < STEP_SIZE) & (np.asarray(bounds.bulk) > STEP_SIZE)
    return float(inside.mean()), draws


def _stationary_gap(problem: Quadratic) -> float:
    bounds = etastar.loss_thresholds(problem.stationary(STEP_SIZE))
    return abs(float(bounds.bulk) / float(bounds.dominant) - 1.0)
