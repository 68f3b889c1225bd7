"""When a step has a stationary state under mini-batch noise, and which: two conditions instead of one.

With R_i = E g_i²/κ²_i the stationary gain of a mode under additive noise, each mode must be stable by itself, R_i < b
(for SGD ηλ₁(b + 1) < 2b), and so must the loop through the loss, K = Σ R_i/(b − R_i) < 1 (theory §7; the noise
kernel of Paquette et al., arXiv 2102.04396). Then xᵀHx + s² = s²/(1 − K).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import as_step_size
from etastar.errors import UnstableStep
from etastar.moments import SplitMoments
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.modes import Modes
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.stationary import room_below
from etastar.quadratic.stationary import stationary as additive_stationary

__all__ = ["Stability", "conditions", "largest_stable_step", "stability", "stationary", "stationary_residual"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stability:
    """The two conditions of mean-square stability at step sizes ``(*batch)``.

    Attributes:
        mode_share: Largest R_i/b; a mode is stable by itself below 1. inf beyond the noise-free limit.
        kernel: K(η); the loop through the loss is stable below 1. inf where a mode is not stable by itself.
        stable: Both.
        largest_step: The step at which K reaches 1: smaller ones are stable, [parameter²/loss].
    """

    mode_share: Any
    kernel: Any
    stable: Any
    largest_step: float


def stability(modes: Modes, noise: MinibatchNoise, step_size: Any, update: Update = PLAIN) -> Stability:
    """Mean-square stability of constant steps under mini-batch noise."""
    eta = as_step_size(step_size)
    share, kernel = conditions(modes, noise, eta, update)
    stable = (eta > 0) & (kernel < 1)
    return Stability(share[()], kernel[()], stable[()], largest_stable_step(modes, noise, update))


def largest_stable_step(modes: Modes, noise: MinibatchNoise, update: Update = PLAIN) -> float:
    """The root of K(η) = 1, by bisection to neighbouring floats: K rises with η."""
    low, high = 0.0, update.longest_product / float(modes.eigenvalues[0])
    while (middle := 0.5 * (low + high)) not in (low, high):
        _, kernel = conditions(modes, noise, np.array(middle), update)
        low, high = (middle, high) if kernel < 1 else (low, middle)
    return low


def stationary(modes: Modes, noise: MinibatchNoise, step_size: Any, update: Update = PLAIN) -> SplitMoments:
    """Moments of the stationary state at step sizes ``(*batch)``: the additive one at the noise it sustains itself.

    Raises:
        UnstableStep: No stationary state, with the condition that fails and the largest stable step.
    """
    eta = as_step_size(step_size)
    share, kernel = conditions(modes, noise, eta, update)
    failing = (eta <= 0) | ~(kernel < 1)
    if np.any(failing):
        first = int(np.argmax(failing))
        _refuse(modes, noise, float(eta.flat[first]), float(share.flat[first]), float(kernel.flat[first]), update)
    gain = _gains(modes, eta, update)
    residual = noise.label_variance / (1.0 - kernel[..., None])
    sustained = modes.multiplicities * modes.eigenvalues * residual / (noise.batch_size - gain)
    return additive_stationary(replace(modes, variances=sustained), eta, update)


def stationary_residual(modes: Modes, noise: MinibatchNoise, step_size: Any) -> Any:
    """Mean squared residual xᵀHx + s² of the stationary state, s²/(1 − K), ``(*batch)``; NaN where there is none."""
    eta = as_step_size(step_size)
    _, kernel = conditions(modes, noise, eta)
    stable = (eta > 0) & (kernel < 1)
    return (noise.label_variance / np.where(stable, 1.0 - kernel, np.nan))[()]


def _gains(modes: Modes, eta: Array, update: Update) -> Array:
    """R = E g²/κ² of each mode under additive noise, ``(*batch, blocks)``; inf where it is unstable."""
    beta, a = update.beta, update.fresh
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        alpha = eta[..., None] * modes.eigenvalues
        more = (a - 1.0) * alpha
        room = room_below(update, eta[..., None], modes.eigenvalues)
        gain = alpha * (1.0 + beta + (2.0 * a - 1.0) * more) / ((1.0 - beta + more) * room)
    return np.where(room > 0, gain, np.inf)


def conditions(modes: Modes, noise: MinibatchNoise, eta: Array, update: Update = PLAIN) -> tuple[Array, Array]:
    """Largest R_i/b and K at step sizes ``(*batch)``, inf where there is none: stable where both are below 1."""
    noise.check(modes.eigenvalues, update.averaging)
    gain = _gains(modes, eta, update)
    share = gain.max(axis=-1) / noise.batch_size
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        kernel = (modes.multiplicities * gain / (noise.batch_size - gain)).sum(axis=-1)
    return share, np.where(share < 1, kernel, np.inf)


def _refuse(modes: Modes, noise: MinibatchNoise, eta: float, share: float, kernel: float, update: Update) -> None:
    limit = largest_stable_step(modes, noise, update)
    if eta <= 0:
        why = "a stationary state needs a positive step"
    elif share >= 1:
        needed = f"ηλ₁(b + 1) < 2b = {2 * noise.batch_size}" if update.plain else f"R₁ < b = {noise.batch_size}"
        why = f"noise makes the mode of λ₁ diverge by itself: a stationary state needs {needed}"
    else:
        why = f"noise makes the loss feed itself: a stationary state needs K(η) < 1, got {kernel:.6g}"
    raise UnstableStep(f"step_size: got {eta!r}; {why}; the largest stable step is {limit!r}")
