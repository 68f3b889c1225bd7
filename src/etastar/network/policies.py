"""When to decay a step size, judged from a window of a run: what each part of the update still does to the loss.

A step of size η that has equilibrated in a subspace has η/η_S = 1 there, as it has at *every* stable step size: so the
question is never whether a step is too large, but whether anything still descends (theory §3, "the trap of a constant
step"). Sums over the window are formed before any ratio, and ratios have Fieller's intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etastar.criteria import loss_change
from etastar.history import History, Measurement
from etastar.moments import SplitMoments
from etastar.network.decisions import DecisionOutcome
from etastar.network.gauge import GaugePart, GaugeSummary
from etastar.network.gauge.estimate import Mean, absent, linear, ratio
from etastar.uncertainty import Estimate, mean_of

__all__ = ["Verdict", "equilibrated", "equilibrated_gauge", "forecast", "settled_window"]

Array = npt.NDArray[np.float64]
_LEAST, _UNITS = 8, 10
_DESCENDS = 0.8  # η/η_S that may be below it may be descending, as in the verdicts of measurements
_LEVEL = 0.9
_PARTS = ("dominant", "bulk")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of a window, with the numbers it is said from."""

    outcome: DecisionOutcome
    evidence: Mapping[str, Estimate]


def settled_window(history: History, since: int) -> list[Measurement] | None:
    """The later half of the measurements made since step `since`; None while it is too short to be judged.

    It needs eight measurements, and to last ten correlation times of the dominant energy, 1/(2ηλ_k) each. It goes back
    no further than the step size is less than a factor of two off the last: another scheduler may have changed it.
    """
    rows = [row for row in history if row.step >= since and _kind(row) == _kind(history[-1])]
    far = [at for at, row in enumerate(rows) if not 0.5 * rows[-1].step_size < row.step_size < 2 * rows[-1].step_size]
    rows = rows[far[-1] + 1 :] if far else rows
    window = rows[len(rows) // 2 :]
    if len(window) < _LEAST:
        return None
    smallest = float(window[-1].certificate.get("smallest_dominant_eigenvalue", 0.0))
    rate = 2 * smallest * float(np.mean([row.step_size for row in window]))
    lasted = window[-1].step - window[0].step
    return window if smallest <= 0 or rate * lasted >= _UNITS else None


def equilibrated(window: Sequence[Measurement]) -> Verdict:
    """Decay when η/η_D and η/η_B both exceed 0.8 with confidence, may be 1, and neither gradient energy m0 falls.

    The fractions alone are not enough: where momentum carries noise, descent is a small difference of large terms.
    """
    slopes, changes = _moved(window)
    fractions = {part: _fraction(slopes[part], changes[part]) for part in _PARTS}
    trends = {f"{part} m0, relative change": _trend(window, part) for part in _PARTS}
    outcome = _outcome(fractions)
    if outcome is DecisionOutcome.EQUILIBRATED and not all(trend.high >= 0 for trend in trends.values()):
        outcome = DecisionOutcome.DRIFTS
    return Verdict(outcome, {**_named(fractions), **trends})


def equilibrated_gauge(summary: GaugeSummary) -> Verdict:
    """The same fractions from a gauge: of both subspaces where it has a basis, else of the whole update."""
    parts = [part for part in (summary.dominant, summary.bulk) if part is not None] or [summary.total]
    fractions = {part.name: _at_least(part) for part in parts}
    return Verdict(_outcome(fractions), _named(fractions))


def forecast(window: Sequence[Measurement], horizon: int) -> Verdict:
    """Decay when ½ Σ_D g²/λ exceeds what `horizon` steps of bulk descent bring, with the dominant part at rest.

    A decay by f gives back the (1 − f)-th part of the one and forgoes that of the other: f is not in the balance.
    """
    slopes, changes = _moved(window)
    dominant = _fraction(slopes["dominant"], changes["dominant"])
    known = [math.nan if row.recoverable is None else float(np.mean(row.recoverable)) for row in window]
    back, brings = _mean(np.array(known)), _mean(changes["bulk"]) * -float(horizon)
    margin = linear(back - brings, _LEVEL)
    evidence = {
        **_named({"dominant": dominant}),
        "recoverable loss": linear(back, _LEVEL),
        f"bulk descent in {horizon} steps": linear(brings, _LEVEL),
    }
    if not (margin.resolved and dominant.resolved):
        return Verdict(DecisionOutcome.UNRESOLVED, evidence)
    if dominant.high < 1:
        return Verdict(DecisionOutcome.DESCENDS, evidence)
    if margin.high < 0:
        return Verdict(DecisionOutcome.BRINGS_MORE, evidence)
    decays = margin.low > 0 and dominant.low > _DESCENDS
    return Verdict(DecisionOutcome.GIVES_BACK if decays else DecisionOutcome.UNRESOLVED, evidence)


def _at_least(part: GaugePart) -> Estimate:
    """η/η_S; where its slope is lost in noise, a lower end for it all the same, ½K over D, from the ends of both."""
    found, slope, curvature = part.threshold_fraction, part.slope, part.curvature
    if found.resolved or not (slope.resolved and curvature.resolved and slope.high > 0):
        return found
    return Estimate(found.value, math.nan, math.nan, 0.5 * curvature.low / slope.high, math.inf, _LEVEL, True)


def _outcome(fractions: Mapping[str, Estimate]) -> DecisionOutcome:
    known = [fraction for fraction in fractions.values() if fraction.resolved]
    if any(fraction.high < 1 for fraction in known):
        return DecisionOutcome.DESCENDS
    settled = len(known) == len(fractions) and all(fraction.low > _DESCENDS for fraction in known)
    return DecisionOutcome.EQUILIBRATED if settled else DecisionOutcome.UNRESOLVED


def _named(fractions: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {f"{part} η/η_S": fraction for part, fraction in fractions.items()}


def _moved(window: Sequence[Measurement]) -> tuple[dict[str, Array], dict[str, Array]]:
    """First-order decrease of the loss by each measured step, and its whole change, of both projected updates."""
    split, eta = SplitMoments.stack(map(_average, window)), np.array([row.step_size for row in window])
    change = loss_change(split, eta)
    slopes = {part: eta * np.broadcast_to(getattr(split, part).slope, eta.shape) for part in _PARTS}
    return slopes, {part: np.asarray(getattr(change, part)) for part in _PARTS}


def _fraction(slope: Array, change: Array) -> Estimate:
    """η/η_S = ½(curvature + noise)/slope of the steps together; unresolved where they have no slope."""
    below = _mean(slope)
    return ratio(_mean(change + slope), below, _LEVEL) if below.value > 0 else absent(_LEVEL)


def _trend(window: Sequence[Measurement], part: str) -> Estimate:
    """Change of m0 from one half of the window to the other over its mean, from units half a window apart."""
    energies = np.array([float(getattr(_average(row), part).signal.zeroth) for row in window])
    units = np.array([float(unit.mean()) for unit in _units(energies)])
    mean, half = float(energies.mean()), len(units) // 2
    return mean_of((units[-half:] - units[:half]) / mean, _LEVEL) if mean > 0 else absent(_LEVEL)


def _average(row: Measurement) -> SplitMoments:
    return row.moments if row.moments.shape == () else row.moments.mean(0)


def _kind(row: Measurement) -> tuple[bool, bool]:
    """What moments must share to be averaged: the optimizer may have been changed on the way."""
    return row.moments.coupling is None, row.moments.dominant.descent is None


def _units(values: Array) -> list[Array]:
    """Runs of consecutive measurements, ten at most: neighbours may be correlated."""
    return np.array_split(values, min(_UNITS, len(values)))


def _mean(values: Array) -> Mean:
    units = _units(values)
    return Mean.of(np.array([unit.sum() for unit in units]), np.array([float(len(unit)) for unit in units]))
