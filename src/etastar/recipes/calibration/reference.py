"""The exact values behind a checkpoint's intervals: all samples, a product with the Hessian for each of them.

Where a model is too large for that, many more probes than a measurement has stand in, and the reference has a small
error of its own. Orders beyond the quadratic model are always averaged over such probes: they involve the fourth
moments of the noise, which no number of products gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from etastar.criteria import critical_step_size, loss_thresholds
from etastar.moments import Coupling, CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.network.noise import SampleNoise
from etastar.network.persample import per_sample_gradients
from etastar.network.producer import training_moments
from etastar.recipes.calibration.checkpoints import Checkpoint

__all__ = ["QUANTITIES", "Reference", "quantities", "reference"]

Array = npt.NDArray[np.float64]
QUANTITIES = ("θ", "η*", "η_D", "η_B", "η_full")
_BLOCK = 256  # samples in one block of products


@dataclass(frozen=True, slots=True)
class Reference:
    """Values of `QUANTITIES` at a checkpoint, NaN where one does not exist.

    Attributes:
        training: For the training target: η* with the orders beyond the quadratic model.
        population: For the population target: η* of the quadratic model.
    """

    training: dict[str, float]
    population: dict[str, float]


def reference(checkpoint: Checkpoint, noise: SampleNoise, exact: bool) -> Reference:
    """The reference values; `noise` holds probes that no remeasurement uses.

    Args:
        checkpoint: Where.
        noise: Of all samples.
        exact: Whether to take a product for every sample.
    """
    at = checkpoint
    produced = training_moments(
        at.operator, at.network.loss_fn, at.basis, at.batch_size, noise=noise, third_step=at.step_size
    )
    bent = produced.moments.mean(0)
    if exact:
        dominant, bulk, coupling = _exact_noise(checkpoint)
        assert bent.coupling is not None  # noqa: S101  # the training target always has it
        bent = SplitMoments(
            SubspaceMoments(bent.dominant.signal, dominant),
            SubspaceMoments(bent.bulk.signal, bulk),
            Coupling(bent.coupling.signal, coupling),
        )
    second = at.sides((at.operator @ at.gradient)[None])[:, 0]
    sides = [
        replace(part, signal=replace(part.signal, second=second[side]))
        for side, part in enumerate((bent.dominant, bent.bulk))
    ]
    plain = SplitMoments(sides[0], sides[1], bent.coupling)
    training = quantities(bent)
    if not np.isfinite(produced.third_shift):
        training["η*"] = float("nan")
    return Reference(training, quantities(plain))


def quantities(split: SplitMoments) -> dict[str, float]:
    """`QUANTITIES` of mean moments."""
    energy = split.dominant.signal.zeroth, split.bulk.signal.zeroth
    bounds = loss_thresholds(split)
    values = (energy[0] / (energy[0] + energy[1]), critical_step_size(split).value)
    return dict(zip(QUANTITIES, map(float, (*values, bounds.dominant, bounds.bulk, bounds.full)), strict=True))


def _exact_noise(checkpoint: Checkpoint) -> tuple[CurvatureMoments, CurvatureMoments, Array]:
    """Noise moments in both subspaces and their coupling, from H applied to every sample's deviation."""
    operator, basis, network = checkpoint.operator, checkpoint.basis, checkpoint.network
    sums, coupling = np.zeros((3, 2)), 0.0
    for begin in range(0, operator.samples, _BLOCK):
        batch = network.train[0][begin : begin + _BLOCK], network.train[1][begin : begin + _BLOCK]
        for rows in per_sample_gradients(network.model, network.loss_fn, operator.vector, batch):
            deviations = rows.detach() - checkpoint.gradient
            images = (operator @ deviations.mT).mT
            found = [
                checkpoint.sides(deviations),
                checkpoint.sides(deviations, images),
                checkpoint.sides(images),
            ]
            sums += np.stack([values.sum(axis=1) for values in found])
            inside = basis.coordinates(deviations)
            coupling += float((inside * (basis.coordinates(images) - inside @ basis.projected)).double().sum())
    scale = 1.0 / (operator.samples * checkpoint.batch_size)
    dominant, bulk = (CurvatureMoments(*(scale * column)) for column in sums.T)
    return dominant, bulk, np.asarray(scale * coupling)
