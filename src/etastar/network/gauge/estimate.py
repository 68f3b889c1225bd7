"""Means over a window of steps with errors that respect what a training run is: correlated, and drifting.

A window is cut into at most twenty units of consecutive blocks (batch means: steps within a unit may be correlated
as they like; ten to thirty batches, Schmeiser 1982, doi:10.1287/opre.30.3.556). Deleting one unit at a time gives
jackknife pseudo-values; a straight line is taken out of them before their covariance is formed, for a run that
descends is no sample of one mean: its drift moves the unit means, and says nothing about the error of their average.
Ratios are formed from averages, and their intervals are Fieller's, exact where a delta method would need a
denominator far from zero (doi:10.1111/j.2517-6161.1954.tb00159.x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etastar.uncertainty import Estimate

__all__ = ["LEAST_UNITS", "Mean", "absent", "cut", "linear", "ratio", "scatter", "significant"]

Array = npt.NDArray[np.float64]
LEAST_UNITS = 5
_MOST_UNITS = 20


@dataclass(frozen=True, slots=True)
class Mean:
    """A window mean with its pseudo-values; sums and multiples of means are means.

    Attributes:
        value: Over the whole window.
        units: Pseudo-values, ``(n,)``.
    """

    value: float
    units: Array

    @classmethod
    def of(cls, sums: Array, counts: Array) -> Mean:
        """From the sum and the number of rows in each unit, ``(n,)`` each."""
        n, total, rows = sums.size, sums.sum(), counts.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            value = total / rows
            units = n * value - (n - 1) * ((total - sums) / (rows - counts))
        return cls(float(value), units)

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.value + other.value, self.units + other.units)

    def __sub__(self, other: Mean) -> Mean:
        return Mean(self.value - other.value, self.units - other.units)

    def __mul__(self, factor: float) -> Mean:
        return Mean(self.value * factor, self.units * factor)


def cut(counts: Array) -> list[slice]:
    """Units of consecutive blocks: at most twenty, each with a row of every kind that the window has.

    Args:
        counts: Rows per block and kind, ``(blocks, kinds)``; kinds without any row are disregarded.
    """
    present = counts[:, counts.sum(0) > 0]
    least = math.ceil(len(counts) / _MOST_UNITS)
    units: list[slice] = []
    start = 0
    for end in range(1, len(counts) + 1):
        if end - start >= least and np.all(present[start:end].sum(0) > 0):
            units.append(slice(start, end))
            start = end
    if units and start < len(counts):  # what is left joins the last unit
        units[-1] = slice(units[-1].start, len(counts))
    return units


def linear(mean: Mean, level: float) -> Estimate:
    """A mean and its interval, Student's t."""
    error = math.sqrt(_covariance(mean, mean))
    half = _quantile(mean, level) * error
    bias = float(mean.units.mean()) - mean.value
    resolved = math.isfinite(mean.value) and math.isfinite(half)
    return Estimate(mean.value, error, -bias, mean.value - half, mean.value + half, level, resolved)


def ratio(top: Mean, bottom: Mean, level: float) -> Estimate:
    """Top over bottom with Fieller's interval; unresolved where the bottom is not told from zero."""
    if bottom.value == 0 or not math.isfinite(top.value + bottom.value):
        return absent(level)
    t2 = _quantile(bottom, level) ** 2
    value = top.value / bottom.value
    tt, tb, bb = _covariance(top, top), _covariance(top, bottom), _covariance(bottom, bottom)
    error = math.sqrt(max(tt - 2 * value * tb + value * value * bb, 0.0)) / abs(bottom.value)
    a, b = bottom.value**2 - t2 * bb, top.value * bottom.value - t2 * tb
    inside = b * b - a * (top.value**2 - t2 * tt)
    n = bottom.units.size
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = (n * top.value - top.units) / (n * bottom.value - bottom.units)  # units are pseudo-values
    bias = float((n - 1) * (left_out.mean() - value))
    if not a > 0 or not math.isfinite(inside):
        return Estimate(value, error, bias, math.nan, math.nan, level, False)
    half = math.sqrt(max(inside, 0.0))
    return Estimate(value, error, bias, (b - half) / a, (b + half) / a, level, True)


def scatter(mean: Mean) -> float:
    """Squared standard error."""
    return _covariance(mean, mean)


def significant(mean: Mean, level: float) -> bool:
    """The interval at `level` excludes zero."""
    return abs(mean.value) > _quantile(mean, level) * math.sqrt(_covariance(mean, mean))


def absent(level: float) -> Estimate:
    """No number: every field NaN, unresolved."""
    return Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, level, False)


def _covariance(a: Mean, b: Mean) -> float:
    n = a.units.size
    if n < LEAST_UNITS:
        return math.nan
    return float(_residual(a.units) @ _residual(b.units)) / ((n - 2) * n)


def _residual(units: Array) -> Array:
    line = np.arange(units.size) - 0.5 * (units.size - 1)
    centred = units - units.mean()
    return centred - line * (line @ centred) / (line @ line)


def _quantile(mean: Mean, level: float) -> float:
    from scipy.special import stdtrit  # lazy: importing the gauge should not load SciPy

    return float(stdtrit(max(mean.units.size - 2, 1), 0.5 * (1.0 + level)))
