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

from etastar.criteria import critical_step_size, neutrality
from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments

__all__ = ["Estimate", "critical_step_interval", "exactly", "jackknife", "mean_of"]

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


def mean_of(values: Any, level: float = 0.9) -> Estimate:
    """The mean of n ≥ 2 independent replicates, ``(n,)``, with Student's interval; a number without axis is exact."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        return exactly(array, level)
    if len(array) < 2:
        raise InvalidArgument("values", array.shape, "an interval needs two replicates at least")
    mean = array.mean(axis=0)
    error = array.std(axis=0, ddof=1) / np.sqrt(len(array))
    half = _student(len(array), level) * error
    return Estimate(mean, error, np.zeros_like(mean)[()], mean - half, mean + half, level, np.isfinite(mean + error))


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
    _check(split, axis, level)
    n = split.shape[axis]
    value = np.asarray(criterion(split.mean(axis)), dtype=np.float64)
    left_out = np.asarray(criterion(_left_out(split, axis)), dtype=np.float64)
    centre = left_out.mean(axis=0)
    error = np.sqrt((n - 1) / n * np.sum((left_out - centre) ** 2, axis=0))
    half = _student(n, level) * error
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


def critical_step_interval(split: SplitMoments, axis: int = 0, level: float = 0.9) -> Estimate:
    """The critical step size η* = 2N/M with its Fieller interval: the steps at which ηM − 2N may be zero.

    Unlike an interval for the ratio itself it stays right where M is not much larger than its error; where M may be
    zero the interval is unbounded, and the estimate unresolved (Fieller 1954).

    Args:
        split: Moments with a replicate axis of n ≥ 2 independent measurements.
        axis: The replicate axis.
        level: Coverage of the interval, Student's t with n − 1 degrees of freedom.
    """
    _check(split, axis, level)
    mean = split.mean(axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.asarray(1.0 / (np.abs(mean.dominant.signal.zeroth) + np.abs(mean.bulk.signal.zeroth)))
        N, M = neutrality(mean.map(lambda moments: moments * scale))
        left_out = _left_out(split, axis).map(lambda moments: moments * scale)
    n = split.shape[axis]
    N_each, M_each = neutrality(left_out)
    d_N, d_M = N_each - N_each.mean(axis=0), M_each - M_each.mean(axis=0)
    factor = (n - 1) / n * _student(n, level) ** 2
    # (ηM − 2N)² ≤ t²·Var(ηM − 2N), as a·η² − 4b·η + 4c ≤ 0
    a = M**2 - factor * np.sum(d_M**2, axis=0)
    b = M * N - factor * np.sum(d_M * d_N, axis=0)
    c = N**2 - factor * np.sum(d_N**2, axis=0)
    step = critical_step_size(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.sqrt(np.maximum(b**2 - a * c, 0.0))
        bounded = (a > 0) & np.isfinite(step.value)
        low, high = (np.where(bounded, 2.0 * (b + sign * half) / a, np.nan) for sign in (-1.0, 1.0))
        # At η* the difference ηM − 2N has this standard deviation; its slope there is M.
        error = np.sqrt((n - 1) / n * np.sum((step.value * d_M - 2.0 * d_N) ** 2, axis=0)) / np.abs(M)
        bias = (n - 1) * (critical_step_size(left_out).value.mean(axis=0) - step.value)
    return Estimate(step.value, error[()], bias[()], low[()], high[()], level, (bounded & (low > 0))[()])


def _check(split: SplitMoments, axis: int, level: float) -> None:
    if not 0 < level < 1:
        raise InvalidArgument("level", level, "must lie between 0 and 1")
    if not split.shape or not -len(split.shape) <= axis < len(split.shape) or split.shape[axis] < 2:
        raise InvalidArgument("split", split.shape, f"needs at least two replicates along axis {axis}")


def _left_out(split: SplitMoments, axis: int) -> SplitMoments:
    """Mean moments without each replicate in turn, along a new leading axis."""
    n = split.shape[axis]
    others = (1.0 - np.eye(n)) / (n - 1)
    with np.errstate(invalid="ignore"):  # an infinite moment leaves NaN: unresolved
        return split.map(lambda moments: np.tensordot(others, np.moveaxis(moments, axis, 0), axes=1))


def _student(n: int, level: float) -> float:
    """Two-sided quantile of Student's t with n − 1 degrees of freedom."""
    from scipy.special import stdtrit  # lazy: the waist itself is NumPy alone

    return float(stdtrit(n - 1, 0.5 * (1.0 + level)))
