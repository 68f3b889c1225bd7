"""The proof on real data: predicted step sizes beside those at which real mini-batch steps really turn.

At each checkpoint of a run, real steps say where the alignment turns and where updates begin to raise the loss; the
paired prediction checks the expansion on the same batches, the independent one is what a user of the meter gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from etastar.criteria import loss_thresholds
from etastar.history import Measurement
from etastar.network.meter import AlignmentMeter
from etastar.network.noise import sample_noise
from etastar.recipes.calibration.checkpoints import Checkpoint, checkpoints, is_large
from etastar.recipes.calibration.coverage import (
    Coverage,
    estimates,
    population_remeasurements,
    training_remeasurements,
)
from etastar.recipes.calibration.paired import paired_moments, paired_steps
from etastar.recipes.calibration.real_steps import RealSteps, measured_step
from etastar.recipes.calibration.reference import QUANTITIES, reference
from etastar.recipes.calibration.result import Calibration, CalibrationPlan, CalibrationRow, Compared

__all__ = ["calibrate"]

Progress = Callable[[str, int, int], None]
_PROBES = 8  # of the meter's default
_REFERENCE_PROBES = 256
_SIDES = {"η_D": "dominant", "η_B": "bulk", "η_full": "full"}


def calibrate(plan: CalibrationPlan, progress: Progress | None = None) -> Calibration:
    """Train the recipe's network and calibrate the meter on the way.

    Raises:
        InvalidArgument: An unknown recipe, or a number out of range.
    """
    plan, network = plan.load()
    eta, size = plan.step_size, plan.batch_size
    coverage = {(target, name): Coverage() for target in ("training", "population") for name in QUANTITIES}
    rows: list[CalibrationRow] = []
    meter: AlignmentMeter | None = None
    count = plan.checkpoints
    for at in checkpoints(network, count, plan.steps, eta, size, plan.rank, plan.samples, plan.seed):
        done = len(rows)

        def told(part: str, done: int = done, step: int = at.step) -> None:
            if progress is not None:
                progress(f"step {step:,}: {part}", done, count)

        told("the meter")
        meter = meter or AlignmentMeter(
            network.model, network.loss_fn, at.batches, plan.rank, overhead=None, seed=plan.seed
        )
        meter.step = at.step
        measured = meter.measure(eta, size)
        exact = _covered(at, coverage, plan.remeasurements, not is_large(network), plan.seed, told)
        rows.append(_row(at, measured, exact, plan.batches, plan.seed, told))
    return Calibration(plan, rows, coverage)


def _covered(
    at: Checkpoint,
    coverage: dict[tuple[str, str], Coverage],
    again: int,
    products: bool,
    seed: int,
    told: Callable[[str], None],
) -> dict[str, float]:
    """Count remeasurements against the exact values, which are returned (training target)."""
    operator, loss_fn = at.operator, at.network.loss_fn

    def noise(probes: int, offset: int) -> Any:
        return sample_noise(operator, loss_fn, at.basis.explored, at.gradient, probes, seed + 2 * at.step + offset)

    told("exact values")
    truth = reference(at, noise(_REFERENCE_PROBES if products else _REFERENCE_PROBES // 8, 0), products)
    told("remeasurements")
    for row in training_remeasurements(at, noise(_PROBES * again, 1), _PROBES):
        for name, estimate in estimates(row).items():
            trusted = row.expansion_holds or name != "η*"
            coverage["training", name].add(estimate, truth.training[name], trusted)
    for row in population_remeasurements(at, again, seed + at.step):
        for name, estimate in estimates(row).items():
            coverage["population", name].add(estimate, truth.population[name])
    return truth.training


def _row(
    at: Checkpoint,
    measured: Measurement,
    exact: dict[str, float],
    batches: int,
    seed: int,
    told: Callable[[str], None],
) -> CalibrationRow:
    told("paired prediction")
    drawn = at.batch_gradients(batches, seed + at.step)
    moments, images = paired_moments(at, drawn)
    paired = paired_steps(at, drawn, moments, images)
    told("real steps")
    real = RealSteps(at, drawn)
    here = {at.step_size: real.alignment_change(at.step_size)}
    guesses = [paired.whole, paired.quadratic, at.step_size]
    guess = next(step for step in guesses if np.isfinite(step))
    steps = {"η*": (measured_step(real.alignment_change, guess, here), paired.whole)}
    bounds = loss_thresholds(moments.mean(0))
    for name, side in _SIDES.items():
        predicted = float(getattr(bounds, side))
        guess = predicted if np.isfinite(predicted) else at.step_size
        steps[name] = measured_step(real.loss_change(side), guess), predicted
    shift = float(measured.certificate["third_derivative_shift"])
    found = estimates(measured)
    compared = {
        name: Compared(
            step,
            predicted,
            float(found[name].value),
            float(found[name].low),
            float(found[name].high),
            bool(found[name].resolved) and (name != "η*" or measured.expansion_holds),
            exact[name],
        )
        for name, (step, predicted) in steps.items()
    }
    change = here[at.step_size]
    return CalibrationRow(
        step=at.step,
        loss=at.loss_at(at.parameters),
        alignment=exact["θ"],
        stability_limit=2.0 / float(at.basis.eigenvalues[0]),
        paired=paired,
        shift=shift,
        trusted=measured.expansion_holds,
        compared=compared,
        change=float(change.mean()),
        change_error=float(change.std(ddof=1) / np.sqrt(len(change))),
    )
