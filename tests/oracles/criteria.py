"""Every criterion in exact arithmetic: mpmath with so many digits that sums of products of float64 do not round.

Written from the definitions (theory §2, §3): the change of θ from its two values, thresholds from the loss.
"""

from dataclasses import dataclass
from fractions import Fraction

import mpmath
from mpmath import mpf

from etastar import Outcome, Regime

DIGITS = 1400  # products of float64 span 2^−2148 … 2^2048
_NEAR_ZERO = Fraction(1, 2**20000)


@dataclass(frozen=True)
class Exact:
    """A number, and the sum of the absolute terms that it is the sum of."""

    value: mpf
    magnitude: mpf

    @property
    def condition(self):
        return mpf(1) if self.magnitude == 0 else (mpf("inf") if self.value == 0 else self.magnitude / abs(self.value))


def fraction(number):
    """An mpf as the rational number that it is."""
    sign, mantissa, exponent, _ = number._mpf_
    return (-1) ** sign * int(mantissa) * Fraction(2) ** exponent


def total(*terms):
    return Exact(mpmath.fsum(terms), mpmath.fsum(abs(term) for term in terms))


def part_numbers(part):
    """(m0, m1, m2, q0, q1, q2, slope, bend) of a subspace as mpf."""
    moments = [mpf(float(x)) for m in (part.signal, part.noise) for x in (m.zeroth, m.first, m.second)]
    return (*moments, mpf(float(part.slope)), mpf(float(part.bend)))


def coupling_numbers(split):
    if split.coupling is None:
        return mpf(0), mpf(0)
    return mpf(float(split.coupling.signal)), mpf(float(split.coupling.noise))


def alignment(split):
    d0, b0 = part_numbers(split.dominant)[0], part_numbers(split.bulk)[0]
    whole = total(d0, b0)
    return None if whole.value == 0 else Exact(d0 / whole.value, abs(d0) * whole.magnitude / whole.value**2)


def energy_after(part, eta):
    m0, m1, m2, _, _, q2, _, _ = part_numbers(part)
    return total(m0, -2 * eta * m1, eta**2 * m2, eta**2 * q2)


def neutrality(split):
    """N and M, as what the first and the second order in η of E_D'·E_B − E_D·E_B' are."""
    d0, d1, d2, _, _, dq, _, _ = part_numbers(split.dominant)
    b0, b1, b2, _, _, bq, _, _ = part_numbers(split.bulk)
    return total(b0 * d1, -d0 * b1), total(b0 * d2, b0 * dq, -d0 * b2, -d0 * bq)


def regime_of(split):
    """From the sign of θ' − θ at a tiny and at a huge step: no table."""
    if part_numbers(split.dominant)[0] == 0 and part_numbers(split.bulk)[0] == 0:
        return Regime.UNDEFINED
    small, large = (sign_of_change(split, eta) for eta in (_NEAR_ZERO, 1 / _NEAR_ZERO))
    return {
        (-1, 1): Regime.LOW,
        (-1, -1): Regime.HIGH,
        (1, 1): Regime.RISES,
        (1, -1): Regime.REVERSED,
        (0, 0): Regime.NEUTRAL,
    }[small, large]


def sign_of_change(split, eta):
    """Sign of E_D'·E_B − E_D·E_B', which is that of θ' − θ for positive energies; in rational arithmetic."""
    D, B = ([Fraction(float(x)) for x in part_numbers(part)] for part in (split.dominant, split.bulk))
    after_D, after_B = (m0 - 2 * eta * m1 + eta**2 * (m2 + q2) for m0, m1, m2, _, _, q2, *_ in (D, B))
    difference = after_D * B[0] - D[0] * after_B
    return (difference > 0) - (difference < 0)


def projected_loss_terms(split, part):
    """Coefficients of −η and of ½η² in the loss of the projected update: (slope, bend) as sums."""
    numbers, (gamma, gamma_noise) = part_numbers(part), coupling_numbers(split)
    own = gamma if part.descent is None else mpf(0)
    return total(numbers[6]), total(numbers[7], numbers[4], -own, -gamma_noise)


def full_loss_terms(split):
    D, B, (gamma, _) = part_numbers(split.dominant), part_numbers(split.bulk), coupling_numbers(split)
    both = mpf(0) if split.dominant.descent is None else 2 * gamma
    return total(D[6], B[6]), total(D[7], B[7], D[4], B[4], both)


def outcome_of(slope, bend):
    """From the sign of the loss change at a tiny and at a huge step."""
    if slope == 0 and bend == 0:
        return Outcome.NEUTRAL
    # The sum of a few float64 is an exact fraction.
    near, far = (
        (change > 0) - (change < 0)
        for change in (-eta * fraction(slope) + eta**2 * fraction(bend) / 2 for eta in (_NEAR_ZERO, 1 / _NEAR_ZERO))
    )
    if slope == 0 and bend > 0:
        return Outcome.BELOW  # a threshold at zero
    return {
        (-1, 1): Outcome.BELOW,
        (-1, -1): Outcome.ALWAYS,
        (1, 1): Outcome.NEVER,
        (1, -1): Outcome.ABOVE,
    }[near, far]


def border(split, power):
    """(θ, tolerance per ε): the root in [0, 1] of −sθ² + (s − t − u)θ + t, and its sensitivity to t, u, s."""
    D, B = part_numbers(split.dominant), part_numbers(split.bulk)
    gamma, gamma_noise = coupling_numbers(split) if power == 1 else (mpf(0), mpf(0))
    t, u = D[3 + power] - gamma_noise, B[3 + power] - gamma_noise
    if D[0] * B[0] == 0 or t < 0 or u < 0:
        return None
    s = ((D[power] - gamma) / D[0] - (B[power] - gamma) / B[0]) * (D[0] + B[0])
    return quadratic_root(t, u, s)


def quadratic_root(t, u, s):
    if t == 0 and u == 0 and s == 0:
        return None
    if s == 0:
        root, theta = t + u, t / (t + u)
    else:
        root = mpmath.sqrt((s - t - u) ** 2 + 4 * s * t)
        candidates = [((s - t - u) + sign * root) / (2 * s) for sign in (1, -1)]
        theta = min(candidates, key=lambda x: max(-x, x - 1, 0))
        if root == 0:
            return theta, mpf("inf")
        if t == 0 and s <= u:  # the root at zero is the border: above it θ falls whatever its value
            theta = mpf(0)
    sensitivity = (abs(s) * theta * (1 - theta) + t * (1 - theta) + u * theta) / root
    return theta, abs(sensitivity) + theta
