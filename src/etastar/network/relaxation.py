"""What T steps of SGD do to one mode of a quadratic, in closed form: the functions of λ that forecasts integrate.

With ρ = (1 − ηλ)² (theory §4); any sign of λ, and no cancellation where ηλ is small.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["geometric", "path_drop", "put_back", "response"]

Array = npt.NDArray[np.float64]


def path_drop(eta: float, values: Array, steps: int) -> Array:
    """(1 − ρ^T)/(2λ), ρ = (1 − ηλ)²: the loss that T noise-free steps give back, per gradient energy."""
    x = eta * values
    return 0.5 * eta * (2 - x) * geometric(x * (2 - x), steps)


def put_back(eta: float, values: Array, steps: int) -> Array:
    """½η²λ(1 − ρ^T)/(1 − ρ): the loss that the noise of T steps adds, per noise energy."""
    x = eta * values
    return 0.5 * eta * x * geometric(x * (2 - x), steps)


def response(eta: float, values: Array, steps: int) -> Array:
    """(1 − (1 − ηλ)^T)/λ: how far T noise-free steps go, per gradient."""
    return eta * geometric(eta * values, steps)


def geometric(gap: Array, steps: int) -> Array:
    """Σ_{s<T} (1 − gap)^s without cancellation; T where the gap is zero."""
    near = np.abs(gap) < 0.5
    small = np.where(near & (gap != 0), gap, 0.25)
    close = -np.expm1(steps * np.log1p(-small)) / small
    far = (1 - (1 - gap) ** steps) / np.where(near, 1.0, gap)
    return np.where(near, np.where(gap == 0, float(steps), close), far)
