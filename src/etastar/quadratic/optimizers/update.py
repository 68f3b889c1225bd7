"""The linear update that every optimizer is, one mode at a time: maps, stability, decay and oscillation (theory §7).

Everything that can be asked of a run (curves, stationary states, turns, samples, steps) is written once for it.
Formulas are in α = ηλ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.compensated import dot
from etastar.quadratic.exact import VANISHED

__all__ = ["PLAIN", "Update", "room_below"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Update:
    """x' = x − η·(h + a·ξ) with h = a·g + b·m, m' = β·m + g + ξ, and perhaps x̄' = ω·x̄ + (1 − ω)·x'.

    The state of a mode is (g, m, ḡ), without the parts that the optimizer has not. The gain is normalised,
    a(1 − β) + b = 1, so that the characteristic polynomial T has T(1) = α and T(−1) = 2 + 2β − (2a − 1)α.

    Attributes:
        fresh: a, the weight of the newest gradient in the direction.
        stale: b, the weight of the buffer.
        memory: β, or None without a buffer.
        averaging: ω, or None without an averaged iterate; with one it is what is observed.
    """

    fresh: float = 1.0
    stale: float = 0.0
    memory: float | None = None
    averaging: float | None = None

    @property
    def size(self) -> int:
        """Components of the state of a mode."""
        return 1 + (self.memory is not None) + (self.averaging is not None)

    @property
    def plain(self) -> bool:
        """Whether this is SGD, whose closed form needs no matrices."""
        return self.size == 1

    @property
    def beta(self) -> float:
        """β, zero without a buffer."""
        return self.memory or 0.0

    @property
    def start(self) -> Array:
        """The state of a fresh run per unit of its gradient: an empty buffer, and x̄ = x."""
        return self._row(gradient=1.0, average=1.0)

    @property
    def gradient(self) -> Array:
        """What is observed of a state: the gradient, or that of the averaged iterate."""
        return self._row(gradient=1.0) if self.averaging is None else self._row(average=1.0)

    @property
    def direction(self) -> Array | None:
        """What the step follows, h; None where it is the observed gradient (an averaged iterate takes no steps)."""
        if self.memory is None or self.averaging is not None:
            return None
        return self._row(gradient=self.fresh, buffer=self.stale)

    @property
    def noise_gain(self) -> float:
        """a², which turns Σ into the covariance of the noise in the observed update."""
        return 1.0 if self.direction is None else self.fresh**2

    def lag(self, product: Array) -> Array:
        """T − I per mode, ``(size, size, modes)``, from α ``(modes,)``: T itself would round off small α."""
        lag = np.zeros((self.size, self.size, product.size))
        lag[0, 0] = -self.fresh * product
        if self.memory is not None:
            lag[0, 1] = -self.stale * product
            lag[1, 0], lag[1, 1] = 1.0, self.memory - 1.0
        if self.averaging is not None:
            left = 1.0 - self.averaging
            lag[-1, :-1] = left * lag[0, :-1]
            lag[-1, 0] += left
            lag[-1, -1] = -left
        return lag

    def injection(self, product: Array) -> Array:
        """What a unit of noise adds to the state in one step, ``(size, modes)``."""
        added = np.zeros((self.size, product.size))
        added[0] = -self.fresh * product
        if self.memory is not None:
            added[1] = 1.0
        if self.averaging is not None:
            added[-1] = (1.0 - self.averaging) * added[0]
        return added

    @property
    def longest_product(self) -> float:
        """The ηλ below which a step is stable: 2, 2(1 + β) or 2(1 + β)/(1 + 2β)."""
        return 2.0 * (1.0 + self.beta) / (2.0 * self.fresh - 1.0)

    def log_ratio(self, product: Array) -> Array:
        """Twice the log of the spectral radius of a mode; −1e4 stands for −∞. Accurate near radius one."""
        ratio = self._inner_log_ratio(product)
        return ratio if self.averaging is None else np.maximum(ratio, 2.0 * self._log_averaging)

    def oscillation(self, product: Array) -> Array:
        """Log of what a step leaves of the part of a mode's energy that changes its sign; −∞ where none does.

        It is a product of two roots: of a complex pair, of roots of two signs, or of a root and ω.
        """
        trace, determinant, discriminant = self._polynomial(product)
        with np.errstate(divide="ignore"):
            own = np.where((discriminant < 0) | (determinant < 0), np.log(np.abs(determinant)), -np.inf)
        if self.averaging is None:
            return own
        turning = (discriminant < 0) | (determinant < 0) | (trace < 0)
        mixed = 0.5 * self._inner_log_ratio(product) + self._log_averaging
        return np.maximum(own, np.where(turning, mixed, -np.inf))

    def _inner_log_ratio(self, product: Array) -> Array:
        """As `log_ratio`, of gradient and buffer alone."""
        trace, determinant, discriminant = self._polynomial(product)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            room = 2.0 + 2.0 * self.beta - (2.0 * self.fresh - 1.0) * product
            root = np.sqrt(np.maximum(discriminant, 0.0))
            # One minus the larger modulus, from the product of both distances to 1 or to −1.
            lack = 2.0 * np.where(trace >= 0, product, room) / ((2.0 - np.abs(trace)) + root)
            larger = np.log(0.5 * (np.abs(trace) + root))
            real = np.where(np.abs(lack) < 0.5, np.log1p(-np.clip(lack, -0.5, 0.5)), larger)
            return np.maximum(np.where(discriminant < 0, np.log(np.abs(determinant)), 2.0 * real), VANISHED)

    def _polynomial(self, product: Array) -> tuple[Array, Array, Array]:
        """Trace, determinant and discriminant of the map of gradient and buffer."""
        trace = 1.0 + self.beta - self.fresh * product
        determinant = self.beta - (self.fresh - 1.0) * product
        with np.errstate(over="ignore"):
            return trace, determinant, trace * trace - 4.0 * determinant

    @property
    def _log_averaging(self) -> float:
        return float(np.log(self.averaging)) if self.averaging else VANISHED / 2

    def _row(self, gradient: float = 0.0, buffer: float = 0.0, average: float = 0.0) -> Array:
        parts = [gradient]
        if self.memory is not None:
            parts.append(buffer)
        if self.averaging is not None:
            parts.append(average)
        return np.array(parts)


PLAIN = Update()


def room_below(update: Update, step_size: Any, eigenvalues: Any) -> Array:
    """2 + 2β − (2a − 1)ηλ, positive below the limit of stability; exact at it for SGD and heavy ball."""
    with np.errstate(over="ignore"):
        scaled = (1.0 - 2.0 * update.fresh) * np.asarray(step_size)
    return dot((2.0, 1.0), (2.0, update.beta), (scaled, eigenvalues)).to_float()
