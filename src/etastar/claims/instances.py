"""Many problems of one shape as arrays, with every quantity that the paper's claims compare, written once.

The arrays hold fractions, float64 with error bounds, or, while they are drawn, plain float64 (see `number`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from etastar.claims.instance import Instance
from etastar.claims.number import Bounded, Number, Truth, as_floats, as_number, exactly

__all__ = ["Instances", "Split"]


@dataclass(frozen=True, slots=True)
class Split:
    """A sum over the dominant modes and over the bulk modes."""

    dominant: Number
    bulk: Number

    @property
    def total(self) -> Number:
        """The sum over all modes."""
        return self.dominant + self.bulk

    @property
    def share(self) -> Number:
        """The dominant share of the total."""
        return self.dominant / self.total

    def at_most(self, other: Split) -> Truth:
        """Whether this share is at most the other's, without division."""
        return self.dominant * other.bulk <= self.bulk * other.dominant


@dataclass(frozen=True, slots=True)
class Instances:
    """Many problems of one shape (d, k), as arrays of numbers.

    Attributes:
        eigenvalues: λ_i, shape (n, d).
        state: x_i at time 0, (n, d).
        square: E x_i² at the moment that the methods speak of, (n, d).
        noise: κ_i², (n, d).
        step_size: η, (n,).
        rank: k.
        time: t.
        copies: As in `Instance`.
    """

    eigenvalues: Number
    state: Number
    square: Number
    noise: Number
    step_size: Number
    rank: int
    time: int = 0
    copies: int = 1
    # Formulas ask for the same sums again and again; a batch derived by `replace` starts empty.
    _sums: dict[tuple[str, int], Split] = field(init=False, repr=False, default_factory=dict[tuple[str, int], Split])

    @staticmethod
    def exact(problems: Sequence[Instance]) -> Instances:
        """Stack problems of one shape for exact arithmetic."""
        first = problems[0]
        rows = [(p.eigenvalues, p.state, p.noise, p.step_size) for p in problems]
        spectrum, state, noise, step = (np.array(column, dtype=object) for column in zip(*rows, strict=True))
        numbers = [as_number(values) for values in (spectrum, state, state**2, noise, step)]
        return Instances(*numbers, rank=first.rank, time=first.time, copies=first.copies)

    def bounded(self) -> Instances:
        """Return the same problems in float64 with error bounds."""
        return self._converted(Bounded.of)

    def exactly(self) -> Instances:
        """Return the same problems, drawn in float64, as the rational numbers that they are."""
        return self._converted(exactly)

    def _converted(self, convert: Callable[[Any], Number]) -> Instances:
        state = convert(self.state)
        return replace(
            self,
            eigenvalues=convert(self.eigenvalues),
            state=state,
            square=state**2,
            noise=convert(self.noise),
            step_size=convert(self.step_size),
        )

    def __len__(self) -> int:
        held = self.step_size
        return len(held.value if isinstance(held, Bounded) else as_floats(held))

    def __getitem__(self, rows: Any) -> Instances:
        return replace(
            self,
            eigenvalues=self.eigenvalues[rows],
            state=self.state[rows],
            square=self.square[rows],
            noise=self.noise[rows],
            step_size=self.step_size[rows],
        )

    def problem(self, row: int) -> Instance:
        """Return one row, drawn in float64 or fractions, as the exact rational numbers that it is."""

        def fractions(number: Number) -> tuple[Fraction, ...]:
            return tuple(Fraction(value) for value in as_floats(number))

        return Instance(
            eigenvalues=fractions(self.eigenvalues[row]),
            rank=self.rank,
            state=fractions(self.state[row]),
            noise=fractions(self.noise[row]),
            step_size=fractions(self.step_size[row : row + 1])[0],
            time=self.time,
            copies=self.copies,
        )

    # --- the spectrum -------------------------------------------------------------------------------------------

    @property
    def lambda_1(self) -> Number:
        """λ_1, the largest eigenvalue."""
        return self.eigenvalues[:, 0]

    @property
    def lambda_k(self) -> Number:
        """λ_k, the smallest dominant eigenvalue."""
        return self.eigenvalues[:, self.rank - 1]

    @property
    def lambda_k1(self) -> Number:
        """λ_{k+1}, the largest bulk eigenvalue."""
        return self.eigenvalues[:, self.rank]

    @property
    def lambda_d(self) -> Number:
        """λ_d, the smallest eigenvalue."""
        return self.eigenvalues[:, -1]

    @property
    def gap(self) -> Number:
        """λ_k − λ_{k+1}."""
        return self.lambda_k - self.lambda_k1

    @property
    def ratio(self) -> Number:
        """R = λ_k/λ_{k+1} (the paper's m)."""
        return self.lambda_k / self.lambda_k1

    @property
    def dimension(self) -> int:
        """d, the number of modes."""
        held = self.eigenvalues
        return (held.value if isinstance(held, Bounded) else as_floats(held)).shape[-1]

    @property
    def odds_of_dimensions(self) -> Fraction:
        """ρ = k/(d − k)."""
        return Fraction(self.rank, self.dimension - self.rank)

    # --- sums over the two blocks -------------------------------------------------------------------------------

    def split(self, values: Number) -> Split:
        """Sum values (n, d) over the dominant and over the bulk modes."""
        return Split(values[:, : self.rank].sum(-1), values[:, self.rank :].sum(-1))

    def signal(self, power: int) -> Split:
        """Σ λ^power x²: powers 2, 3, 4 are the signal moments m0, m1, m2."""
        return self._remembered("signal", power, self.square)

    def variance(self, power: int) -> Split:
        """Σ λ^power κ²: powers 0, 1, 2 are the noise moments q0, q1, q2."""
        return self._remembered("noise", power, self.noise)

    def _remembered(self, name: str, power: int, weights: Number) -> Split:
        if (name, power) not in self._sums:
            self._sums[name, power] = self.split(self.eigenvalues**power * weights)
        return self._sums[name, power]

    @property
    def alignment(self) -> Number:
        """θ, the dominant share of the squared gradient."""
        return self.signal(2).share

    @property
    def drift(self) -> Number:
        """N = m0_B m1_D − m0_D m1_B: what pulls the alignment down at small steps."""
        m0, m1 = self.signal(2), self.signal(3)
        return m0.bulk * m1.dominant - m0.dominant * m1.bulk

    @property
    def kick(self) -> Number:
        """M = m0_B w_D − m0_D w_B with w = m2 + q2: what pushes the alignment up at large steps."""
        m0, m2, q2 = self.signal(2), self.signal(4), self.variance(2)
        return m0.bulk * (m2.dominant + q2.dominant) - m0.dominant * (m2.bulk + q2.bulk)

    @property
    def critical_step_size(self) -> Number:
        """η* = 2N/M (the paper's equation 2); M must not vanish."""
        return 2 * self.drift / self.kick

    # --- common hypotheses --------------------------------------------------------------------------------------

    def is_moving(self) -> Truth:
        """The gradient is not zero."""
        return self.signal(2).total > 0

    def is_moving_in_both(self) -> Truth:
        """Both blocks hold gradient, 0 < θ < 1."""
        m0 = self.signal(2)
        return (m0.dominant > 0) & (m0.bulk > 0)

    def is_noisy(self) -> Truth:
        """Σ ≠ 0."""
        return self.noise.max(-1) > 0

    def is_noisy_in_both(self) -> Truth:
        """n_D, n_B > 0."""
        trace = self.variance(0)
        return (trace.dominant > 0) & (trace.bulk > 0)

    def is_noisy_throughout(self) -> Truth:
        """Σ ≻ 0."""
        return self.noise.min(-1) > 0

    def is_isotropic(self) -> Truth:
        """Σ = σ²I."""
        return self.noise.max(-1) <= self.noise.min(-1)

    def is_low(self) -> Truth:
        """N, M > 0: a critical step size separates falling from rising."""
        return (self.drift > 0) & (self.kick > 0)

    def is_stable(self) -> Truth:
        """ηλ_1 < 2."""
        return self.step_size * self.lambda_1 < 2

    # --- one step and many --------------------------------------------------------------------------------------

    def _after_one(self, square: Number) -> Number:
        step = self.step_size[:, None]
        return (1 - step * self.eigenvalues) ** 2 * square + step**2 * self.noise

    def next_energy(self) -> Split:
        """E‖S g'‖² after one step of SGD, mode by mode, not from the moments."""
        return self.split(self.eigenvalues**2 * self._after_one(self.square))

    def loss_change(self) -> Split:
        """E[L(x') − L(x)] of the update projected on each block (the paper's 3 and 4)."""
        return self.split(self.eigenvalues * (self._after_one(self.square) - self.square) / 2)

    def after(self, steps: int) -> Instances:
        """Return the problems with E x_i² after so many steps of SGD."""
        square = self.square
        for _ in range(steps):
            square = self._after_one(square)
        return replace(self, square=square)

    @property
    def floor(self) -> Number:
        """β_i = ηκ_i²/(2λ_i − ηλ_i²), the stationary E x_i² (0 < ηλ_1 < 2), shape (n, d)."""
        step, spectrum = self.step_size[:, None], self.eigenvalues
        return step * self.noise / (spectrum * (2 - step * spectrum))

    def stationary(self) -> Instances:
        """Return the problems at their stationary moments."""
        return replace(self, square=self.floor)

    def stretched(self, factor: Any) -> Instances:
        """Return the problems with every dominant eigenvalue multiplied by an integer or a column (n, 1) of numbers."""
        inside = np.array([1] * self.rank + [0] * (self.dimension - self.rank), dtype=object)
        return replace(self, eigenvalues=self.eigenvalues * (inside * (factor - 1) + 1))
