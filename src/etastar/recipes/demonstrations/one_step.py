"""One step against η*: where the change of the alignment crosses zero, predicted from moments and sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import etastar
from etastar.quadratic import Quadratic
from etastar.recipes.demonstrations.sampled import Array, gradients_of, right_signs
from etastar.recipes.paper_figures import PaperRuns
from etastar.recipes.paper_figures.setting import STEP_SIZE
from etastar.report import COLOURS, Check, Column, Figure, Line, Panel, Points, Reference, Section, Table

__all__ = ["alignment_against_step"]

_RATIOS = np.array([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0])  # steps tried, in units of η*
_ONE_STEP_COLUMNS = [
    Column("t", "step of the run at which the state was taken"),
    Column("θ", "alignment of that state"),
    Column("η*", "its critical step size"),
    Column("η/η*", "the run's own step in units of it"),
    Column("change at η*", "sampled change of alignment at η = η*, ± standard error; exact value 0"),
    Column("|z|", "largest deviation from the prediction over the seven steps, in standard errors"),
]


def alignment_against_step(run: PaperRuns, replicas: int, seed: int) -> Section:
    """The change of alignment by one step against η/η*, at states along a run, predicted and sampled."""
    times = (3, 15, 27, 600)
    path = run.problem.sample(
        gradient=run.gradients[0], step_size=STEP_SIZE, times=times, seed=seed + 7, keep_gradient=True
    )
    states = [
        _OneState.sampled(run.problem, time, state, replicas, seed + 50 * number)
        for number, (time, state) in enumerate(zip(times, gradients_of(path)[0], strict=True))
    ]
    worst = max(state.worst for state in states)
    right, resolved = (sum(column) for column in zip(*(state.signs() for state in states), strict=True))
    return Section(
        "one-step",
        "One step against η*",
        "From four states of a sampled run, the change of the [[alignment]] by one step of size η, predicted from the "
        "moments and sampled: it crosses zero at η = η*.",
        checks=[
            Check(
                f"predicted and sampled changes agree at {_RATIOS.size * len(states)} steps ({replicas:,} runs each)",
                worst <= 4.0,
                f"largest |[[z]]| = {worst:.2f}, limit 4",
            ),
            Check(
                "no resolved sign is predicted wrongly",
                right == resolved,
                f"{right} of {resolved} changes beyond 4 standard errors",
            ),
        ],
        figures=[
            Figure(
                "one-step",
                "Change of alignment by one step against η/η*, r = 100.",
                [state.panel(legend=state is states[0]) for state in states],
            )
        ],
        tables=[Table(_ONE_STEP_COLUMNS, [state.row() for state in states])],
        data={"worst_z": [state.worst for state in states]},
    )


@dataclass(frozen=True, slots=True)
class _OneState:
    """One state of a run, and what a step of several sizes does to its alignment."""

    time: int
    split: etastar.SplitMoments
    critical: float
    predicted: Array
    change: Array
    error: Array

    @classmethod
    def sampled(cls, problem: Quadratic, time: int, state: Array, replicas: int, seed: int) -> _OneState:
        split = problem.moments(gradient=state)
        critical = float(etastar.critical_step_size(split).value)
        predicted = np.asarray(etastar.alignment_change(split, _RATIOS * critical))
        measured, error = _one_step_alignment(problem, state, _RATIOS * critical, replicas, seed)
        return cls(time, split, critical, predicted, measured - float(etastar.alignment(split)), error)

    @property
    def worst(self) -> float:
        return float(np.max(np.abs((self.change - self.predicted) / self.error)))

    def signs(self) -> tuple[int, int]:
        return right_signs(self.predicted, self.change, self.error)

    def panel(self, legend: bool) -> Panel:
        fine = np.linspace(0.05, 2.2, 120)
        curve = etastar.alignment_change(self.split, fine * self.critical)
        marks = [
            Line(fine, curve, "predicted", COLOURS["critical"], 2.0),
            Points(_RATIOS, self.change, "sampled ± 2 s.e.", COLOURS["sampled"], 2 * self.error),
            Reference(0.0),
            Reference(1.0, "x"),
        ]
        return Panel("η/η*", "θ′ − θ", marks, f"t = {self.time}", legend=legend)

    def row(self) -> list[str]:
        at_critical = int(np.flatnonzero(_RATIOS == 1.0)[0])
        return [
            str(self.time),
            f"{float(etastar.alignment(self.split)):.4f}",
            f"{self.critical:.5f}",
            f"{STEP_SIZE / self.critical:.3f}",
            f"{self.change[at_critical]:+.5f} ± {self.error[at_critical]:.5f}",
            f"{self.worst:.2f}",
        ]


def _one_step_alignment(
    problem: Quadratic, state: Array, steps: Array, replicas: int, seed: int
) -> tuple[Array, Array]:
    """Ratio of mean energies after one step, with its standard error (first-order propagation)."""
    value, error = np.empty(steps.size), np.empty(steps.size)
    for index, eta in enumerate(steps.tolist()):
        paths = problem.sample(gradient=state, step_size=eta, times=[1], replicas=replicas, seed=seed + index)
        dominant, bulk = paths.dominant_energy[:, 0], paths.bulk_energy[:, 0]
        theta = dominant.mean() / (dominant.mean() + bulk.mean())
        influence = ((1 - theta) * dominant - theta * bulk) / (dominant.mean() + bulk.mean())
        value[index], error[index] = theta, influence.std(ddof=1) / np.sqrt(replicas)
    return value, error
