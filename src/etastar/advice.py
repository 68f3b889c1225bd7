"""How large a batch to take at a given step size: the smallest one whose loss threshold is above the step.

Gradient noise enters a threshold as its covariance does, in proportion to 1/b: η_S(b') = 2m0/(m1 + q1·b/b'). So one
measurement at one batch size says what any other would do to the next step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import loss_change
from etastar.errors import InvalidArgument
from etastar.measurement import Measurement
from etastar.uncertainty import Estimate

__all__ = ["BatchAdvice", "BatchOutcome", "BatchSize", "batch_size_advice"]

Array = npt.NDArray[np.float64]


class BatchOutcome(Enum):
    """What a batch size can do for a step size."""

    ALREADY = "the present batch keeps the step below its threshold"
    LARGER = "a larger batch brings the threshold up to the step"
    CURVATURE = "no larger batch suffices: curvature alone keeps the threshold below the step; take a smaller step"
    NO_DESCENT = "no larger batch suffices: the update has no descent here"
    UNRESOLVED = "the interval leaves it open: average over more measurements or samples"


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The smallest batch for one part of the update.

    Attributes:
        part: "dominant", "bulk" or "full".
        outcome: What it amounts to.
        smallest: Batch size at which the threshold equals the step, [samples], not rounded; NaN where there is none.
            At ALREADY it may be far below the present one, and negative where any will do. Its interval is Fieller's.
    """

    part: str
    outcome: BatchOutcome
    smallest: Estimate

    @property
    def verdict(self) -> str:
        """In words, with the interval."""
        if not self.smallest.resolved:
            return f"{self.part}: {self.outcome.value}"
        value, low, high = (_rounded(x) for x in (self.smallest.value, self.smallest.low, self.smallest.high))
        return f"{self.part}: {self.outcome.value}; it takes {value:,} samples ({low:,} to {high:,})"


@dataclass(frozen=True, slots=True)
class BatchAdvice:
    """The advice for both projected updates and the whole one, at a step size and the batch size of the moments."""

    step_size: float
    batch_size: int
    dominant: BatchSize
    bulk: BatchSize
    full: BatchSize


def batch_size_advice(
    measurement: Measurement, step_size: float | None = None, *, fraction: float = 1.0, level: float = 0.9
) -> BatchAdvice:
    """The smallest batch at which a step stays below the loss thresholds η_D, η_B and η_full.

    It speaks of the state that was measured. A state that has equilibrated answers with the batch in use, whatever
    that is; a larger one then lowers the loss to a new equilibrium, and `fraction` = ½ asks for the fastest way there.
    Where the update carries momentum, noise of earlier batches counts as part of the direction.

    Args:
        measurement: With a batch size; a window of a history (`History.window`) where single states are too noisy.
        step_size: η, [parameter²/loss]; that of the measurement unless given.
        fraction: Share of the threshold that the step may reach; at ½ a step lowers the loss most.
        level: Coverage of the intervals.

    Raises:
        InvalidArgument: A measurement without a batch size, a step size, fraction or level out of range.

    Example:
        >>> from etastar.quadratic import Noise, Quadratic, Spectrum
        >>> q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(4.0))
        >>> seen = Measurement(step=0, step_size=0.3, moments=q.moments(gradient=[1.0, 3.0]), batch_size=8)
        >>> advice = batch_size_advice(seen)
        >>> round(float(advice.dominant.smallest.value), 6), advice.dominant.outcome.name, advice.bulk.outcome.name
        (48.0, 'LARGER', 'ALREADY')
    """
    eta = measurement.step_size if step_size is None else float(step_size)
    batch = measurement.batch_size
    if batch is None:
        raise InvalidArgument("measurement.batch_size", None, "noise moments are those of a batch: give its size")
    if not (math.isfinite(eta) and eta > 0):
        raise InvalidArgument("step_size", eta, "must be finite and positive")
    for name, value in (("fraction", fraction), ("level", level)):
        if not 0 < value <= 1 or (name == "level" and value == 1):
            raise InvalidArgument(name, value, "must lie between 0 and 1")
    split = measurement.moments
    change = loss_change(split, eta)
    gamma_noise: Any = 0.0 if split.coupling is None else split.coupling.noise
    noise = {part: getattr(split, part).noise.first - gamma_noise for part in ("dominant", "bulk")}
    noise["full"] = split.dominant.noise.first + split.bulk.noise.first
    slopes = {"dominant": split.dominant.slope, "bulk": split.bulk.slope}
    slopes["full"] = slopes["dominant"] + slopes["bulk"]

    def of(part: str) -> BatchSize:
        slope, q1 = np.asarray(slopes[part]), np.asarray(noise[part])
        bend = 2 * (getattr(change, part) / eta + slope) / eta  # m1 − γ + q1 − γ_noise, as the thresholds take it
        return _advise(part, batch, batch * q1, 2 * fraction * slope / eta - (bend - q1), slope, level)

    return BatchAdvice(eta, batch, of("dominant"), of("bulk"), of("full"))


def _advise(part: str, batch: int, needed: Array, room: Array, slope: Array, level: float) -> BatchSize:
    """The quotient b' = needed/room, where the room that curvature leaves to noise is positive with confidence."""
    found = _quotient(needed, room, level)
    low, high = _interval(room, level)
    if _interval(room - needed / batch, level)[0] > 0:  # also where noise helps, along negative curvature
        outcome = BatchOutcome.ALREADY
    elif high <= 0:
        outcome = BatchOutcome.NO_DESCENT if _interval(slope, level)[1] <= 0 else BatchOutcome.CURVATURE
    elif not (low > 0 and found.resolved):
        outcome = BatchOutcome.UNRESOLVED
    elif found.high <= batch:
        outcome = BatchOutcome.ALREADY
    else:
        outcome = BatchOutcome.LARGER if found.low > batch else BatchOutcome.UNRESOLVED
    if high <= 0 or low <= 0:
        nan = math.nan
        found = Estimate(nan, nan, nan, nan, nan, level, False)
    return BatchSize(part, outcome, found)


def _quotient(top: Array, bottom: Array, level: float) -> Estimate:
    """Ratio of the means with Fieller's interval; exact without replicates."""
    a, b = float(top.mean()), float(bottom.mean())
    value = a / b if b else math.nan
    n = max(top.size, bottom.size)
    if n == 1:
        return Estimate(value, 0.0, 0.0, value, value, level, math.isfinite(value))
    t2 = _quantile(n, level) ** 2
    d_a, d_b = (np.broadcast_to(x - x.mean(), (n,)) for x in (top, bottom))
    aa, ab, bb = (float(x @ y) / (n * (n - 1)) for x, y in ((d_a, d_a), (d_a, d_b), (d_b, d_b)))
    lead, middle, last = b * b - t2 * bb, a * b - t2 * ab, a * a - t2 * aa
    if not (lead > 0 and math.isfinite(value)):
        return Estimate(value, math.nan, math.nan, math.nan, math.nan, level, False)
    half = math.sqrt(max(middle * middle - lead * last, 0.0))
    error = math.sqrt(max(aa - 2 * value * ab + value * value * bb, 0.0)) / abs(b)
    bias = (value * bb - ab) / (b * b)
    return Estimate(value, error, bias, (middle - half) / lead, (middle + half) / lead, level, True)


def _interval(values: Array, level: float) -> tuple[float, float]:
    mean = float(values.mean())
    if values.size == 1:
        return mean, mean
    half = _quantile(values.size, level) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return mean - half, mean + half


def _quantile(n: int, level: float) -> float:
    from scipy.special import stdtrit  # lazy: importing etastar loads NumPy alone

    return float(stdtrit(n - 1, 0.5 * (1.0 + level)))


def _rounded(samples: Any) -> int:
    return max(1, math.ceil(float(samples)))
