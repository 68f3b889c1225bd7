"""The stationary state in closed form, for every optimizer (T16, theory §7).

With α = ηλ, δ = β − (a − 1)α, r = 2 + 2β − (2a − 1)α, c = (1 − δ)r and a as in `Update`, in units of ακ²/c:
E g² is 1 + β + (a − 1)(2a − 1)α, E gh is 1 + 2a(a − 1)(1 − β) + a(a − 1)(2a − 1)α, and α·E h² is 2·E gh − a²c.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import as_step_size
from etastar.errors import UnstableStep
from etastar.moments import SplitMoments
from etastar.quadratic.modes import Modes
from etastar.quadratic.optimizers.observables import split_of_blocks
from etastar.quadratic.optimizers.rules import PLAIN, Update, room_below

__all__ = ["room_below", "stationary"]

Array = npt.NDArray[np.float64]


def stationary(modes: Modes, step_size: Any, update: Update = PLAIN) -> SplitMoments:
    """Moments of the stationary state at step sizes ``(*batch)``.

    Raises:
        UnstableStep: A step size that is not positive or reaches the limit of stability, or a negative eigenvalue.
    """
    eta = as_step_size(step_size)
    top, bottom = float(modes.eigenvalues[0]), float(modes.eigenvalues[-1])
    if bottom < 0:
        raise UnstableStep(f"eigenvalues: got λ_d = {bottom:g}; no stationary state exists on an indefinite quadratic")
    unstable = (eta <= 0) | ~(room_below(update, eta, top) > 0)  # NaN where the product overflows
    if np.any(unstable):
        limit = update.longest_product
        needed = f"a stationary state needs 0 < step_size < {limit:g}/λ₁ = {limit / top!r}"
        raise UnstableStep(f"step_size: got {float(eta[unstable].flat[0])!r}; {needed}")
    beta, a, noise, stay = update.beta, update.fresh, modes.variances, 1.0 - update.beta
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        alpha = eta[..., None] * modes.eigenvalues
        if update.plain:
            return split_of_blocks(modes, update, alpha * noise / room_below(update, eta[..., None], modes.eigenvalues))
        more = (a - 1.0) * alpha
        room, spring = room_below(update, eta[..., None], modes.eigenvalues), stay + more  # r and 1 − δ
        c = spring * room
        gradient = 1.0 + beta + (2.0 * a - 1.0) * more
        if update.averaging is not None:
            omega, delta = update.averaging, beta - more
            kept = (1.0 - omega) * (1.0 + omega * delta) * gradient + omega * c
            left = (1.0 + omega) * ((1.0 - omega) * (1.0 - omega * delta) + omega * alpha)
            gradient = (1.0 - omega) * kept / left
        gg = alpha * noise * gradient / c
        if update.direction is None:
            return split_of_blocks(modes, update, gg)
        slope = 1.0 + 2.0 * a * (a - 1.0) * stay + a * (2.0 * a - 1.0) * more
        linear = (2.0 * a - 1.0) * (2.0 * (a - 1.0) + a * stay) - 2.0 * a * (a - 1.0) * (1.0 + beta)
        direction = 2.0 * update.stale**2 + a * alpha * (linear + a * (2.0 * a - 1.0) * more)
        return split_of_blocks(modes, update, gg, alpha * noise * slope / c, noise * direction / c)
