"""What there is to plot of a measurement: one table of names, with the definition of each and how it is read.

`History.columns` gives all of it; `metrics` gives what is resolved to a tracker, step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from etastar.criteria import Regime, loss_thresholds, neutrality
from etastar.measurement import Measurement
from etastar.uncertainty import Estimate, exactly

__all__ = ["ESTIMATES", "NUMBERS", "metrics"]

_UNIT = "[parameter²/loss]"
_MISSING = exactly(float("nan"))


def _certified(name: str) -> Callable[[Measurement], float]:
    return lambda row: float(row.certificate.get(name, np.nan))


def _stability_limit(row: Measurement) -> float:
    largest = _certified("largest_eigenvalue")(row)
    return 2.0 / largest if largest > 0 else float("nan")


def _threshold(name: str) -> Callable[[Measurement], Estimate]:
    return lambda row: getattr(row.loss_thresholds, name)


def _over_threshold(name: str) -> Callable[[Measurement], Estimate]:
    def ratio(row: Measurement) -> Estimate:
        with np.errstate(divide="ignore"):
            found = row.estimate(lambda split: np.divide(row.step_size, getattr(loss_thresholds(split), name)))
        more = abs(found.value) * float(row.certificate.get(f"threshold_{name}_error", 0.0))
        return replace(found, low=found.low - more, high=found.high + more)

    return ratio


def _chi(row: Measurement) -> Estimate:
    """The interval of θ, rooted."""
    theta = row.alignment
    value, low, high = (float(np.sqrt(end)) for end in (theta.value, theta.low, theta.high))
    error = theta.standard_error / (2.0 * value) if value else theta.standard_error
    return Estimate(value, error, float("nan"), low, high, theta.level, theta.resolved)


def _over_critical(row: Measurement) -> Estimate:
    """Fieller's interval of η*, turned over."""
    critical, eta = row.critical_step_size, row.step_size
    if not (critical.resolved and critical.low > 0):
        return _MISSING
    ends = eta / critical.value, eta / critical.high, eta / critical.low
    error = eta * critical.standard_error / critical.value**2
    return Estimate(ends[0], error, float("nan"), ends[1], ends[2], critical.level, True)


def _noise_share(name: str) -> Callable[[Measurement], Estimate]:
    return lambda row: row.noise_share(name)


def _regime_resolved(row: Measurement) -> bool:
    """Whether the signs of N and M, which make the regime, are exact or lie outside their intervals."""
    if row.moments.shape == () or row.regime is Regime.UNDEFINED:
        return row.regime is not Regime.UNDEFINED
    signs = [row.estimate(lambda split, which=which: neutrality(split)[which]) for which in (0, 1)]
    return all(bool(sign.low > 0 or sign.high < 0) for sign in signs)


NUMBERS: Mapping[str, tuple[str, Callable[[Measurement], Any]]] = {
    "step": ("steps taken before the measurement", lambda row: row.step),
    "step_size": (f"η in use {_UNIT}", lambda row: row.step_size),
    "largest_eigenvalue": ("λ₁ of the Hessian [loss/parameter²]", _certified("largest_eigenvalue")),
    "stability_limit": (f"2/λ₁ {_UNIT}", _stability_limit),
    "bulk_stability_limit": (
        f"2/λ_{{k+1}}: beyond it η_B is extrapolated {_UNIT}",
        lambda row: row.bulk_stability_limit,
    ),
    "third_derivative_shift": (
        "share by which orders beyond the quadratic model move η*",
        _certified("third_derivative_shift"),
    ),
    "regime": ("how the alignment responds to the step size", lambda row: row.regime.name),
    "regime_resolved": ("whether the intervals leave one regime only", _regime_resolved),
}
ESTIMATES: Mapping[str, tuple[str, Callable[[Measurement], Estimate]]] = {
    "alignment": ("alignment θ = ‖Pg‖²/‖g‖²", lambda row: row.alignment),
    "chi": ("√θ", _chi),
    "critical_step_size": (f"critical step size η* {_UNIT}", lambda row: row.critical_step_size),
    "threshold_dominant": (f"loss threshold η_D {_UNIT}", _threshold("dominant")),
    "threshold_bulk": (f"loss threshold η_B {_UNIT}", _threshold("bulk")),
    "threshold_full": (f"loss threshold η_full {_UNIT}", _threshold("full")),
    "step_over_critical": ("η/η*", _over_critical),
    "step_over_dominant": ("η/η_D", _over_threshold("dominant")),
    "step_over_bulk": ("η/η_B", _over_threshold("bulk")),
    "step_over_full": ("η/η_full", _over_threshold("full")),
    "recoverable_loss": (
        "½ Σ_D g²/λ, what decaying the step gives back [loss]",
        lambda r: r.recoverable_loss or _MISSING,
    ),
    "noise_share_dominant": ("share of noise in what limits the dominant subspace", _noise_share("dominant")),
    "noise_share_bulk": ("share of noise in what limits the bulk", _noise_share("bulk")),
    "noise_share_full": ("share of noise in what limits the whole step", _noise_share("full")),
}
_OF_THE_EXPANSION = ("critical_step_size", "step_over_critical")


def metrics(row: Measurement) -> dict[str, float | str]:
    """What a tracker is given: finite floats under the names of the columns, and ``regime`` as text.

    An estimate that is not resolved is left out with its interval, η* also where orders beyond the quadratic make it
    untrustworthy, and the regime where the intervals leave more than one.
    """
    values = {name: number(row) for name, (_, number) in NUMBERS.items()}
    found = {name: value for name, value in values.items() if isinstance(value, float)}
    for name, (_, quantity) in ESTIMATES.items():
        estimate = quantity(row)
        if estimate.resolved and (row.expansion_holds or name not in _OF_THE_EXPANSION):
            ends = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            found |= {end: float(value) for end, value in ends.items()}
    known: dict[str, float | str] = {name: value for name, value in found.items() if np.isfinite(value)}
    return {**known, "regime": values["regime"]} if values["regime_resolved"] else known
