"""Which optimizer runs on a quadratic: the public descriptions, and the linear update that each one is.

Everything that can be asked of a run (curves, stationary states, turns, samples, steps) is written once, for an
`Update`; an optimizer only says which one it is. Formulas are for α = ηλ, one mode at a time (theory §7).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from etastar.compensated import dot
from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import finite_number, real_vector, symmetric_matrix
from etastar.quadratic.exact import VANISHED

__all__ = [
    "PLAIN",
    "SGD",
    "Averaged",
    "HeavyBall",
    "Nesterov",
    "Optimizer",
    "Preconditioned",
    "Update",
    "room_below",
    "update_of",
]

if TYPE_CHECKING:
    from etastar.quadratic.optimizers.precondition import Transformed
    from etastar.quadratic.problem import Quadratic

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


@dataclass(frozen=True, slots=True)
class SGD:
    """Plain SGD, x' = x − η(g + ξ): the default everywhere."""


@dataclass(frozen=True, slots=True)
class HeavyBall:
    """Heavy ball, m' = βm + g + ξ, x' = x − ηm' (PyTorch's ``momentum``; no damping), from an empty buffer.

    Stable for 0 < ηλ₁ < 2(1 + β).

    Attributes:
        beta: β, 0 ≤ β < 1.
    """

    beta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", _share("beta", self.beta))


@dataclass(frozen=True, slots=True)
class Nesterov:
    """Nesterov's momentum as PyTorch has it, m' = βm + g + ξ, x' = x − η(g + ξ + βm'), from an empty buffer.

    Stable for 0 < ηλ₁ < 2(1 + β)/(1 + 2β).

    Attributes:
        beta: β, 0 ≤ β < 1.
    """

    beta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", _share("beta", self.beta))


@dataclass(frozen=True, slots=True)
class Averaged:
    """The exponential moving average x̄' = ωx̄ + (1 − ω)x' of another optimizer's iterates, from x̄ = x.

    What is reported is of the averaged iterate: its alignment, its loss, and the moments of a step of plain SGD
    from there.

    Attributes:
        omega: ω, 0 ≤ ω < 1.
        inner: SGD(), HeavyBall or Nesterov.
    """

    omega: float
    inner: SGD | HeavyBall | Nesterov = field(default_factory=SGD)

    def __post_init__(self) -> None:
        object.__setattr__(self, "omega", _share("omega", self.omega))
        if not isinstance(self.inner, (SGD, HeavyBall, Nesterov)):  # pyright: ignore[reportUnnecessaryIsInstance]
            remedy = "averages SGD(), HeavyBall or Nesterov; write Preconditioned(M, Averaged(omega, …))"
            raise InvalidArgument("inner", self.inner, remedy)


@dataclass(frozen=True, slots=True, eq=False)
class Preconditioned:
    """Steps along M⁻¹ times another optimizer's direction, M fixed: RMSprop or Adam after warm-up, M = diag(√v).

    In y = M^½x it is the inner optimizer on the Hessian M^−½HM^−½, and so is everything reported: alignment is
    that of M^−½g with the top k eigenvectors of M^−½HM^−½. `Quadratic.moments` also has the Euclidean view.

    Attributes:
        matrix: M, in the coordinates of the parameters: its diagonal ``(d,)``, or symmetric ``(d, d)``.
        inner: SGD(), HeavyBall, Nesterov or Averaged.

    Raises:
        InvalidArgument: M is not positive definite.
    """

    matrix: Any
    inner: SGD | HeavyBall | Nesterov | Averaged = field(default_factory=SGD)

    def __post_init__(self) -> None:
        if not isinstance(self.inner, (SGD, HeavyBall, Nesterov, Averaged)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument("inner", self.inner, "must be SGD(), HeavyBall, Nesterov or Averaged")
        if np.ndim(self.matrix) == 2:
            matrix = symmetric_matrix("matrix", self.matrix)
            least = float(np.linalg.eigvalsh(matrix)[0])
        else:
            matrix = real_vector("matrix", self.matrix)
            least = float(matrix.min())
        if least <= 0:
            raise InvalidArgument("matrix", f"smallest eigenvalue {least:.3g}", "must be positive definite; add to it")
        object.__setattr__(self, "matrix", matrix)

    def transform(self, problem: Quadratic) -> Transformed:
        """The problem in the inner product of M, to be kept where it is asked more than once.

        Raises:
            InvalidArgument: M does not fit the dimension, a full M without eigenvectors, or a rank that now cuts
                through equal eigenvalues.
        """
        from etastar.quadratic.optimizers.precondition import transform

        return transform(self, problem)


Optimizer = SGD | HeavyBall | Nesterov | Averaged | Preconditioned


def update_of(optimizer: Any) -> Update:
    """The linear update of an optimizer; of a preconditioned one, that in the coordinates y = M^½x.

    Raises:
        InvalidArgument: Not one of the optimizers.
    """
    match optimizer:
        case SGD():
            return PLAIN
        case HeavyBall(beta):
            return Update(1.0, beta, beta)
        case Nesterov(beta):
            return Update(1.0 + beta, beta * beta, beta)
        case Averaged(omega, inner):
            within = update_of(inner)
            return Update(within.fresh, within.stale, within.memory, omega)
        case Preconditioned():
            return update_of(optimizer.inner)
        case _:
            allowed = "must be SGD(), HeavyBall(beta), Nesterov(beta), Averaged(omega, …) or Preconditioned(M, …)"
            raise InvalidArgument("optimizer", optimizer, allowed)


def room_below(update: Update, step_size: Any, eigenvalues: Any) -> Array:
    """2 + 2β − (2a − 1)ηλ, positive below the limit of stability; exact at it for SGD and heavy ball."""
    with np.errstate(over="ignore"):
        scaled = (1.0 - 2.0 * update.fresh) * np.asarray(step_size)
    return dot((2.0, 1.0), (2.0, update.beta), (scaled, eigenvalues)).to_float()


def _share(name: str, value: Any) -> float:
    number = finite_number(name, value)
    if not 0 <= number < 1:
        raise InvalidArgument(name, value, "must be at least 0 and below 1")
    return number
