"""Coordinates of a mode's state in which many steps can be taken at once without losing digits.

They are (g, m, ḡ), except for modes whose larger root is negative, which a long step makes swing. There, with
r = 2 + 2β − (2a − 1)α, δ the determinant and q = −(δ + β)g − bα·m, a step is minus [[1 − r, −1], [rδ, δ]] on (g, q):
near the limit of stability, where r vanishes, this is graded as small steps are, and r is known to all its digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etastar.quadratic.exact import bounded_product
from etastar.quadratic.optimizers.leap import Leaps
from etastar.quadratic.optimizers.rules import Update, room_below

__all__ = ["Frame"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frame:
    """An update on modes at one step size; all arrays end in ``(modes,)``.

    Attributes:
        lag: What a step changes, but for `sign`, ``(size, size, modes)``.
        injection: What a unit of noise adds in a step, ``(size, modes)``.
        start: The state of a fresh run per unit of its gradient, ``(size, modes)``.
        gradient: The observed gradient as a row on the state.
        direction: The direction of the step as a row, or None.
        sign: What each step multiplies the state by besides, 1 or −1.
        log_ratio: See `Update.log_ratio`.
    """

    lag: Array
    injection: Array
    start: Array
    gradient: Array
    direction: Array | None
    sign: Array
    log_ratio: Array

    @classmethod
    def of(cls, update: Update, step_size: float, eigenvalues: Array) -> Frame:
        """The frame of an update.

        Raises:
            InvalidArgument: A step so long that the square of ηλ overflows.
        """
        product = bounded_product(step_size, eigenvalues)
        lag, injection = update.lag(product), update.injection(product)
        start, gradient = (np.repeat(row[:, None], product.size, axis=1) for row in (update.start, update.gradient))
        sign = np.ones(product.size)
        if update.direction is None:
            return cls(lag, injection, start, gradient, None, sign, update.log_ratio(product))
        direction = np.repeat(update.direction[:, None], product.size, axis=1)
        beta, a, b = update.beta, update.fresh, update.stale
        swings = 1.0 + beta < a * product
        alpha, room = product[swings], room_below(update, step_size, eigenvalues[swings])
        delta = beta - (a - 1.0) * alpha
        with np.errstate(over="ignore", invalid="ignore"):
            lag[:, :, swings] = np.array([[-room, -np.ones_like(room)], [room * delta, delta - 1.0]])
            injection[1, swings] = alpha * (a * (delta + beta) - b)
            start[1, swings] = -(delta + beta)
            direction[:, swings] = np.array([a - (delta + beta) / alpha, -1.0 / alpha])
        sign[swings] = -1.0
        return cls(lag, injection, start, gradient, direction, sign, update.log_ratio(product))

    def moments(self, energies: Array) -> Array:
        """Second moments of fresh runs ``(size, size, *batch, modes)`` from gradient energies ``(*batch, modes)``."""
        pairs = self.start[:, None] * self.start
        return pairs.reshape(*pairs.shape[:2], *(1,) * (energies.ndim - 1), -1) * energies

    def __getitem__(self, blocks: slice) -> Frame:
        direction = None if self.direction is None else self.direction[:, blocks]
        parts = (self.lag[:, :, blocks], self.injection[:, blocks], self.start[:, blocks], self.gradient[:, blocks])
        return Frame(*parts, direction, self.sign[blocks], self.log_ratio[blocks])

    def leaps(self, noise: Array, growth: float = 0.0) -> Leaps:
        """Leaps but for the sign, with energies over e^(growth·steps).

        Modes that outgrow `growth` hold nothing and are left out; so is noise that moves no gradient.

        Args:
            noise: Variances ``(modes,)``.
            growth: Below zero only without noise.
        """
        outgrown = self.log_ratio > growth
        lag = np.where(outgrown, -np.eye(len(self.lag))[..., None], self.lag)
        still = outgrown | (self.injection[0] == 0) | (growth < 0)
        return Leaps(lag, self.injection, np.where(still, 0.0, noise), growth)
