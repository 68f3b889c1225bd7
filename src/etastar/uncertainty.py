"""Uncertainty of any criterion: the jackknife along a replicate axis of the moments.

Moments are averaged over the replicates before a ratio is formed; leaving one out at a time then gives the
standard error of the ratio (Efron and Stein 1981, doi:10.1214/aos/1176345462).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments

__all__ = ["Estimate", "exactly", "jackknife"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: The criterion at the mean moments; NaN where it does not exist.
        standard_error: Jackknife standard error, 0 for exact moments; NaN where unresolved.
        bias: Jackknife estimate of the bias of `value`; it is not subtracted.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Coverage the interval aims at.
        resolved: False where the criterion fails to exist for the mean or with some replicate left out.
    """

    value: Any
    standard_error: Any
    bias: Any
    low: Any
    high: Any
    level: float
    resolved: Any


def exactly(value: Any, level: float = 0.9) -> Estimate:
    """An estimate without uncertainty, from exact moments."""
    number = np.asarray(value, dtype=np.float64)[()]
    zero = np.where(np.isnan(number), np.nan, 0.0)[()]
    return Estimate(number, zero, zero, number, number, level, (~np.isnan(number))[()])


def jackknife(
    criterion: Callable[[SplitMoments], Any], split: SplitMoments, axis: int = 0, level: float = 0.9
) -> Estimate:
    """Estimate a criterion and its interval from replicated moments.

    Args:
        criterion: Takes moments, returns an array of their batch shape: ``lambda s: critical_step_size(s).value``.
        split: Moments with a replicate axis of n ≥ 2 independent measurements.
        axis: The replicate axis.
        level: Coverage of the interval, Student's t with n − 1 degrees of freedom.

    Returns:
        Estimates of the batch shape without the replicate axis.

    Raises:
        InvalidArgument: Fewer than two replicates, or a level outside (0, 1).

    Example:
        >>> from etastar import CurvatureMoments, SubspaceMoments, alignment
        >>> quiet = CurvatureMoments(0.0, 0.0, 0.0)
        >>> seen = [SubspaceMoments(CurvatureMoments(m, 0.0, 0.0), quiet) for m in ([1.0, 1.2, 0.8], [3.0, 2.9, 3.1])]
        >>> estimate = jackknife(alignment, SplitMoments(*seen))
        >>> round(float(estimate.value), 3), bool(estimate.low < 0.25 < estimate.high)
        (0.25, True)
    """
    if not 0 < level < 1:
        raise InvalidArgument("level", level, "must lie between 0 and 1")
    if not split.shape or not -len(split.shape) <= axis < len(split.shape) or split.shape[axis] < 2:
        raise InvalidArgument("split", split.shape, f"needs at least two replicates along axis {axis}")
    from scipy.special import stdtrit  # lazy: the waist itself is NumPy alone

    n = split.shape[axis]

    def without_each(moments: Array) -> Array:
        moments = np.moveaxis(moments, axis, 0)
        return np.stack([np.delete(moments, i, axis=0).mean(axis=0) for i in range(n)])

    value = np.asarray(criterion(split.mean(axis)), dtype=np.float64)
    left_out = np.asarray(criterion(split.map(without_each)), dtype=np.float64)
    centre = left_out.mean(axis=0)
    error = np.sqrt((n - 1) / n * np.sum((left_out - centre) ** 2, axis=0))
    half = float(stdtrit(n - 1, 0.5 * (1.0 + level))) * error
    resolved = np.isfinite(value) & np.isfinite(error)
    return Estimate(
        value[()],
        error[()],
        ((n - 1) * (centre - value))[()],
        (value - half)[()],
        (value + half)[()],
        level,
        resolved[()],
    )
