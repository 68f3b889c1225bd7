"""Assumption 14 as formulas: the step size and the large start that the claims on the dynamics share."""

from __future__ import annotations

from etastar.claims.instances import Instances
from etastar.claims.number import Number, Truth

__all__ = ["above_floor", "short_step", "squared_contractions"]


def short_step(s: Instances) -> Truth:
    """The step size of Assumption 14."""
    return s.is_stable() & (s.step_size * (s.lambda_1**2 - s.lambda_d**2) < 2 * s.gap)


def above_floor(s: Instances) -> Truth:
    """x_{i,0}² > β_i on D, as Assumption 14 asks."""
    return (s.square - s.floor)[:, : s.rank].min(-1) > 0


def squared_contractions(s: Instances) -> Number:
    """(1−ηλ_i)² on D."""
    return (1 - s.step_size[:, None] * s.eigenvalues[:, : s.rank]) ** 2
