"""The borders of the alignment as polynomials: roots are compared by sign and never taken.

θ* (T4), θ_crit (T11) and the sharper θ† are all the root in (0, 1) of s θ(1−θ) + t (1−θ) − u θ: positive below the
root, negative above it, when t, u > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np

from etastar.claims.claim import Comparison
from etastar.claims.instances import Instances, Split
from etastar.claims.number import Number

__all__ = ["Border", "high_border", "loss_border", "low_border", "regime_border"]


@dataclass(frozen=True, slots=True)
class Border:
    """F(t, u, s), the root in (0, 1) of s θ(1−θ) + t (1−θ) − u θ.

    Attributes:
        t: Pull upward, of the dominant noise.
        u: Pull downward, of the bulk noise.
        s: Pull upward, of the curvature.
    """

    t: Number
    u: Number
    s: Number

    def balance(self, at: Split) -> Number:
        """The polynomial at θ = D/(D + B), times (D + B)²: positive exactly where θ lies below the border.

        Both parts are given because 1 − θ would cancel for θ near 1.
        """
        return self.s * at.dominant * at.bulk + (self.t * at.bulk - self.u * at.dominant) * at.total

    def below_one_by_at_most(self, distance: Any) -> Comparison:
        """State that 1 − border ≤ distance."""
        return Comparison(0, "<=", self.balance(_below_one(distance)), lambda: self._shown(distance, "<="))

    def below_one_by_at_least(self, distance: Any) -> Comparison:
        """State that 1 − border ≥ distance, for a distance between 0 and 1."""
        return Comparison(self.balance(_below_one(distance)), "<=", 0, lambda: self._shown(distance, ">="))

    def enclosure(self) -> tuple[Fraction, Fraction]:
        """Return rationals around 1 − border, closer than one in a thousand, for one exact instance with t, u > 0."""
        low, high = Fraction(0), Fraction(1)
        while (high - low) * 1000 > high:
            middle = (low + high) / 2
            above = bool(cast(Any, self.balance(Split(cast(Any, 1 - middle), cast(Any, middle))) > 0)[0])
            low, high = (low, middle) if above else (middle, high)
        return low, high

    def _shown(self, distance: Any, relation: str) -> dict[str, Any]:
        low, high = self.enclosure()
        bound = str(np.broadcast_to(np.asarray(distance, dtype=object), (1,))[0])
        return {"one_minus_border_between": [str(low), str(high)], "should_be": f"{relation} {bound}"}


def _below_one(distance: Any) -> Split:
    """The alignment 1 − distance, or 0 if that is negative."""
    rest = 1 - distance
    return Split((rest + abs(rest)) / 2, distance)


def high_border(s: Instances) -> Border:
    """θ* = r₀/(1+r₀) of Theorem 4, from the worst case of spectrum and noise."""
    psi, spread = s.split(s.eigenvalues**2), s.lambda_1**2 - s.lambda_d**2
    return Border(s.noise.max(-1) * psi.dominant, s.noise.min(-1) * psi.bulk, s.signal(2).total * spread)


def low_border(s: Instances) -> Split:
    """g_gap = 1/(1 + (s_max/s_min)(1/ρ)(λ_{k+1}/λ_k)²) of Theorem 3, as the two parts of g_gap = D/(D + B)."""
    rho = s.odds_of_dimensions
    return Split(
        s.noise.min(-1) * s.lambda_k**2 * rho.numerator,
        s.noise.max(-1) * s.lambda_k1**2 * rho.denominator,
    )


def regime_border(s: Instances) -> Border:
    """θ†, below which a critical step size exists: F(q2_D, q2_B, (b_D − b_B)G) with b = m2/m0."""
    m0, m2, q2 = s.signal(2), s.signal(4), s.variance(2)
    return Border(q2.dominant, q2.bulk, (m2.dominant / m0.dominant - m2.bulk / m0.bulk) * m0.total)


def loss_border(s: Instances) -> Border:
    """θ_crit of Theorem 11, below which η_D < η_B: F(q1_D, q1_B, (a_D − a_B)G) with a = m1/m0."""
    m0, m1, q1 = s.signal(2), s.signal(3), s.variance(1)
    return Border(q1.dominant, q1.bulk, (m1.dominant / m0.dominant - m1.bulk / m0.bulk) * m0.total)
