"""One phase diagram: what the next step does over step size and batch size, with cells of it sampled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from etastar.quadratic import Noise, Quadratic
from etastar.recipes.beyond.agreement import Array, standard_error
from etastar.recipes.diagram import Diagram, StepBatch, step_batch
from etastar.recipes.paper_figures import PaperRuns
from etastar.recipes.paper_figures.setting import STEP_SIZE
from etastar.report import Check, Section

__all__ = ["phase_diagram"]

_WARM_UP = 2_000
_CELLS = (200, 200)
_COLUMNS, _ROWS = (0.2, 0.6, 0.8, 0.88), (0.05, 0.3, 0.7)  # of cells to sample, as shares of the map


def phase_diagram(run: PaperRuns, replicas: int, seed: int) -> Section:
    """The first step after a shared warm-up, exact in every cell; a few cells against sampled steps."""
    question = StepBatch(
        run.problem,
        {"gradient": run.gradients[0]},
        title=f"The paper's quadratic, r = {run.ratio}",
        warm_up=(STEP_SIZE, _WARM_UP),
        batch_sizes=(1.0, 1024.0),
        cells=_CELLS,
    )
    found = step_batch(question)
    right, resolved, cells = _sampled(question, found, replicas, seed)
    (one,) = found.maps
    unstable = float(np.mean(found.x.edges[:-1] > 2.0 / run.problem.spectrum.eigenvalues[0]))
    drawn = one.share("unstable")
    section = found.section()
    return replace(
        section,
        name="phase-diagram",
        title="Beyond the paper: a phase diagram",
        finding=f"After {_WARM_UP:,} steps at η = {STEP_SIZE:g}. {section.finding}",
        checks=[
            Check(
                f"{cells} cells agree with sampled steps: which way θ goes, which projected updates lower the loss "
                f"({replicas:,} runs each)",
                right == resolved >= cells,
                f"{right} of {resolved} signs that samples resolve beyond 4 standard errors",
            ),
            Check(
                "exactly the columns beyond 2/λ₁ are unstable",
                abs(drawn - unstable) <= 1.0 / _CELLS[0],
                f"{drawn:.1%} of the map",
            ),
        ],
        figures=[replace(figure, name="phase-diagram") for figure in section.figures],
    )


def _sampled(question: StepBatch, found: Diagram, replicas: int, seed: int) -> tuple[int, int, int]:
    """Signs that samples resolve and that the map has right, all that they resolve, and the number of cells."""
    (one,) = found.maps
    right = resolved = 0
    places = [(row, column) for row in _ROWS for column in _COLUMNS]
    for number, (row, column) in enumerate(places):
        i, j = int(row * _CELLS[1]), int(column * _CELLS[0])
        batch, eta = float(found.y.centres[i]), float(found.x.centres[j])
        key = one.categories[int(one.values[i, j])].key
        way, _, descends = key.partition("_")
        said = {
            "rises": way == "rises",
            "dominant": descends not in ("both", "dominant"),
            "bulk": descends not in ("both", "bulk"),
        }
        for name, (change, error) in _steps(question, batch, eta, replicas, seed + 400 + number).items():
            if abs(change) > 4.0 * error:
                resolved += 1
                right += (change > 0) == said[name]
    return right, resolved, len(places)


def _steps(question: StepBatch, batch: float, eta: float, replicas: int, seed: int) -> dict[str, tuple[float, float]]:
    """Sampled change, with its standard error, of the alignment and of the loss by each projected update."""
    variance = float(question.problem.additive("the diagram").variances) / batch
    problem = Quadratic(question.problem.spectrum, Noise.isotropic(variance))
    start: dict[str, Any] = {"energy": question.energy, "step_size": eta}
    before = problem.expected(**start, times=[0])
    theta, loss = float(before.alignment[0]), float(before.loss[0])
    taken = problem.sample(**start, times=[1], replicas=replicas, seed=seed)
    dominant, bulk = taken.dominant_energy[:, 0], taken.bulk_energy[:, 0]
    found = {"rises": _mean((1.0 - theta) * dominant - theta * bulk)}
    for side in ("dominant", "bulk"):
        moved = problem.simulate(**start, steps=1, record=[1], projection=side, replicas=replicas, seed=seed)
        found[side] = _mean(moved.loss[:, 0] - loss)
    return found


def _mean(values: Array) -> tuple[float, float]:
    return float(values.mean()), float(standard_error(values))
