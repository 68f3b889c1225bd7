"""How often 90 % intervals hold the exact value: remeasurements at a checkpoint, each with fresh randomness.

With the training target the randomness is that of the noise probes; with the population target the training samples
are the population, and every remeasurement draws its own gradient batches, curvature batches and basis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from etastar.measurement import Measurement
from etastar.network.meter import AlignmentMeter
from etastar.network.noise import SampleNoise
from etastar.network.producer import training_moments
from etastar.recipes.calibration.checkpoints import Checkpoint
from etastar.recipes.calibration.reference import QUANTITIES
from etastar.uncertainty import Estimate

__all__ = ["Coverage", "estimates", "population_remeasurements", "training_remeasurements"]

_ROUNDOFF = 1e-5  # relative: what counts as the same number where an interval has no width
_GRADIENT_BATCHES, _CURVATURE_BATCHES, _CURVATURE_SHARE = 12, 10, 3


@dataclass(slots=True)
class Coverage:
    """One quantity under one target, pooled over checkpoints.

    Attributes:
        covered: Intervals that hold the exact value.
        resolved: Intervals there were where an exact value exists.
        unresolved: Measurements without one, counted apart.
        nothing: Measurements where no exact value exists: resolved, trusted ones among them in `misled`.
        misled: Intervals given where there is nothing to hold.
        widths: high/low of each resolved interval.
    """

    covered: int = 0
    resolved: int = 0
    unresolved: int = 0
    nothing: int = 0
    misled: int = 0
    widths: list[float] = field(default_factory=list[float])

    def add(self, estimate: Estimate, truth: float, trusted: bool = True) -> None:
        """Count one interval against the exact value; one that is not trusted counts as unresolved."""
        given = bool(estimate.resolved) and trusted
        if not np.isfinite(truth):
            self.nothing += 1
            self.misled += given
        elif not given:
            self.unresolved += 1
        else:
            self.resolved += 1
            slack = _ROUNDOFF * abs(truth)
            self.covered += bool(estimate.low - slack <= truth <= estimate.high + slack)
            if estimate.low > 0:
                self.widths.append(float(estimate.high / estimate.low))

    @property
    def share(self) -> float:
        """Of the resolved intervals, those that hold the exact value; NaN where there is none."""
        return self.covered / self.resolved if self.resolved else float("nan")

    @property
    def width(self) -> float:
        """Median of high/low; NaN where there is none."""
        return float(np.median(self.widths)) if self.widths else float("nan")


def estimates(row: Measurement) -> dict[str, Estimate]:
    """`QUANTITIES` of a measurement, with intervals."""
    bounds = row.loss_thresholds
    values = (row.alignment, row.critical_step_size, bounds.dominant, bounds.bulk, bounds.full)
    return dict(zip(QUANTITIES, values, strict=True))


def training_remeasurements(checkpoint: Checkpoint, noise: SampleNoise, probes: int) -> Iterator[Measurement]:
    """Measurements with `probes` probes each out of those of `noise`, as the meter makes them."""
    at = checkpoint
    for begin in range(0, len(noise.probes), probes):
        part = replace(noise, probes=noise.probes[begin : begin + probes])
        produced = training_moments(
            at.operator, at.network.loss_fn, at.basis, at.batch_size, noise=part, third_step=at.step_size
        )
        yield Measurement(
            step=at.step,
            step_size=at.step_size,
            moments=produced.moments,
            batch_size=at.batch_size,
            certificate={"third_derivative_shift": min(produced.third_shift, 1e3)},
        )


def population_remeasurements(checkpoint: Checkpoint, count: int, seed: int) -> Iterator[Measurement]:
    """Measurements of the population that the training samples are, with batches drawn from them."""
    at, network = checkpoint, checkpoint.network
    generator = torch.Generator().manual_seed(seed)
    size = max(1, at.operator.samples // _CURVATURE_SHARE // _CURVATURE_BATCHES)
    for index in range(count):
        meter = AlignmentMeter(
            network.model,
            network.loss_fn,
            [network.draw(generator, size) for _ in range(_CURVATURE_BATCHES)],
            at.basis.vectors.shape[1],
            target="population",
            gradient_batches=[network.draw(generator, at.batch_size) for _ in range(_GRADIENT_BATCHES)],
            seed=seed + index,
        )
        yield meter.measure(at.step_size, at.batch_size)
