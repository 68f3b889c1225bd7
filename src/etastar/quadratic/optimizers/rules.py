"""Which optimizer runs on a quadratic: the public descriptions, and which linear update each of them is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import finite_number, real_vector, symmetric_matrix
from etastar.quadratic.optimizers.update import PLAIN, Update, room_below

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


def _share(name: str, value: Any) -> float:
    number = finite_number(name, value)
    if not 0 <= number < 1:
        raise InvalidArgument(name, value, "must be at least 0 and below 1")
    return number
