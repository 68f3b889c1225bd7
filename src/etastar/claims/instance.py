"""One concrete problem in fractions: what a claim is decided on and what a certificate holds.

A diagonal quadratic L(x) = ½ Σ λ_i x_i², a state x, noise variances κ_i², and, where a claim speaks of them, a constant
step size η and a time t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import isqrt

from etastar.errors import InvalidArgument

__all__ = ["Instance"]


@dataclass(frozen=True, slots=True)
class Instance:
    """One problem in exact numbers; what a certificate holds.

    Attributes:
        eigenvalues: λ_1 ≥ … ≥ λ_d > 0, with λ_k > λ_{k+1}.
        rank: k, the size of the dominant block, 0 < k < d.
        state: x_i in the eigenbasis.
        noise: κ_i² ≥ 0, the variances of the gradient noise.
        step_size: η > 0.
        time: Steps taken from `state` before the claim is examined.
        copies: Each base mode stands in this many consecutive equal modes (a lift, see `repeated`).

    Raises:
        InvalidArgument: A field breaks one of these conditions.
    """

    eigenvalues: tuple[Fraction, ...]
    rank: int
    state: tuple[Fraction, ...]
    noise: tuple[Fraction, ...]
    step_size: Fraction = Fraction(1)
    time: int = 0
    copies: int = 1

    def __post_init__(self) -> None:
        spectrum = self.eigenvalues
        if not 0 < self.rank < len(spectrum):
            raise InvalidArgument("rank", self.rank, "an integer between 1 and the number of eigenvalues less 1")
        for name in ("state", "noise"):
            if len(getattr(self, name)) != len(spectrum):
                raise InvalidArgument(name, len(getattr(self, name)), f"needs {len(spectrum)} numbers, as eigenvalues")
        if spectrum[-1] <= 0 or any(a < b for a, b in pairwise(spectrum)):
            raise InvalidArgument("eigenvalues", [str(v) for v in spectrum], "must be positive and must not increase")
        if spectrum[self.rank - 1] == spectrum[self.rank]:
            raise InvalidArgument("rank", self.rank, "the eigenvalues on both sides of the rank must differ")
        if min(self.noise) < 0:
            raise InvalidArgument("noise", str(min(self.noise)), "variances must not be negative")
        if self.step_size <= 0:
            raise InvalidArgument("step_size", str(self.step_size), "must be positive")

    def repeated(self, copies: int, *, keep_state: bool = False) -> Instance:
        """Return the lift to `copies` times the dimension: every mode repeated, x_i² and κ_i² divided by `copies`.

        Args:
            copies: A perfect square, so that the state stays rational.
            keep_state: Leave x_i undivided, so that only the noise is spread.
        """
        shrink = Fraction(1) if keep_state else Fraction(1, isqrt(copies))

        def spread(values: Sequence[Fraction], factor: Fraction) -> tuple[Fraction, ...]:
            return tuple(value * factor for value in values for _ in range(copies))

        return Instance(
            eigenvalues=spread(self.eigenvalues, Fraction(1)),
            rank=self.rank * copies,
            state=spread(self.state, shrink),
            noise=spread(self.noise, Fraction(1, copies)),
            step_size=self.step_size,
            time=self.time,
            copies=self.copies * copies,
        )
