"""Runs at a constant step, exact in law at recorded times only: the steps between are never taken.

A mode is an AR(1): s steps on, g' = (1 − ηλ)^s g + N(0, V_s), V_s = (ηλ)²κ²·(1 − ρ^s)/(1 − ρ) (theory §5).
Cost is blocks × recorded times, whatever the number of steps and whatever the multiplicities.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.compensated import dot
from etastar.quadratic.arguments import read_times, single_step_size
from etastar.quadratic.exact import Decay
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.noise import Noise
from etastar.quadratic.paths import Ensemble, Paths
from etastar.quadratic.spectrum import Spectrum

__all__ = ["sample"]

Array = npt.NDArray[np.float64]
_CHUNK = 4096  # numbers held by one random stream: enough to hide call overhead, small enough for the cache
_AHEAD = 16  # recorded times drawn at once


@dataclass(frozen=True, slots=True)
class _Leap:
    """The law of `steps` steps taken at once: g' = factor·g + noise."""

    factor: Array  # (blocks,)
    deviation: Array  # (blocks,), of the lead
    root: Array | None  # (d, d), S with S·Sᵀ the joint covariance, where modes are correlated


def sample(
    spectrum: Spectrum,
    noise: Noise,
    modes: Modes,
    state: State,
    step_size: Any,
    times: Any,
    replicas: int,
    seed: int,
    keep_gradient: bool,
) -> Paths:
    """Exact-in-law runs; see `Quadratic.sample`."""
    eta, when = single_step_size(step_size), read_times(times)
    ensemble = Ensemble.of(spectrum, noise, modes, state, replicas, keep_gradient)
    decay = Decay.of(ensemble.modes, eta)
    spacings = np.diff(when, prepend=0)
    leaps = {int(s): _leap(ensemble.modes, decay, eta, int(s)) for s in np.unique(spacings)}
    rows, blocks = ensemble.start.shape
    sums = np.empty((rows, when.size, 4))
    gradient = np.empty((rows, when.size, blocks)) if keep_gradient else None
    plan = [leaps[int(s)] for s in spacings]

    def run(chunk: tuple[slice, np.random.Generator]) -> None:
        part, rng = chunk
        _run(ensemble, plan, rng, part, sums, gradient)

    chunks = ensemble.streams(seed, _CHUNK)
    with ThreadPoolExecutor(min(len(chunks), os.cpu_count() or 1)) as pool:
        list(pool.map(run, chunks))
    taken = np.full((rows, when.size), eta)
    return ensemble.paths(when, sums, taken, gradient)


def _leap(modes: Modes, decay: Decay, eta: float, steps: int) -> _Leap:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sign = np.where(decay.contraction < 0, -1.0, 1.0) ** (steps % 2)
        factor = sign * np.exp(0.5 * steps * decay.log_ratio)
        if modes.covariance is not None:
            return _Leap(factor, np.zeros(0), _joint_root(modes, decay, eta, steps))
        spread = np.where(
            decay.loss_of_energy == 0, float(steps), -np.expm1(steps * decay.log_ratio) / decay.loss_of_energy
        )
        return _Leap(factor, np.sqrt(decay.injected / modes.multiplicities * spread), None)


def _joint_root(modes: Modes, decay: Decay, eta: float, steps: int) -> Array:
    """Root of Cov_ij = η²λ_iλ_jΣ_ij·(1 − r^s)/(1 − r), r = (1 − ηλ_i)(1 − ηλ_j); Σ may be singular."""
    covariance = modes.covariance
    if covariance is None or steps == 0:
        return np.zeros((modes.eigenvalues.size,) * 2)
    alpha = eta * modes.eigenvalues
    contraction = decay.contraction
    # 1 − r = α_i + α_j − α_iα_j, compensated: it vanishes where two modes do not decay.
    lack = dot((alpha[:, None], 1.0), (alpha[None, :], 1.0), (-alpha[:, None], alpha[None, :])).to_float()
    log_r = 0.5 * (decay.log_ratio[:, None] + decay.log_ratio[None, :])
    negative = np.signbit(contraction)[:, None] != np.signbit(contraction)[None, :]
    power = np.exp(steps * log_r)
    gone = np.where(negative, 1.0 - (-1.0) ** (steps % 2) * power, -np.expm1(steps * log_r))
    geometric = np.where(lack == 0, float(steps), gone / np.where(lack == 0, 1.0, lack))
    values, vectors = np.linalg.eigh(np.outer(alpha, alpha) * covariance * geometric)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _run(
    ensemble: Ensemble,
    plan: list[_Leap],
    rng: np.random.Generator,
    part: slice,
    sums: Array,
    gradient: Array | None,
) -> None:
    lead = ensemble.start[part].copy()
    weights, several = ensemble.weights, ensemble.chi_square
    shape = (ensemble.modes.multiplicities[several] - 1) / 2
    scratch = np.empty((_AHEAD, *lead.shape))
    moved = np.empty_like(lead)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for first in range(0, len(plan), _AHEAD):
            leaps = plan[first : first + _AHEAD]
            drawn = scratch[: len(leaps)]
            rng.standard_normal(out=drawn)
            for leap, value in zip(leaps, drawn, strict=True):
                if leap.root is None:
                    value *= leap.deviation
                else:
                    value[...] = value @ leap.root.T
                np.multiply(lead, leap.factor, out=moved)
                value += moved
                if several.size:
                    _rest_of_block(value, several, shape, leap.deviation, rng)
                lead = value
            lead = lead.copy()
            if gradient is not None:
                gradient[part, first : first + len(leaps)] = drawn.transpose(1, 0, 2)
            np.square(drawn, out=drawn)
            sums[part, first : first + len(leaps)] = (drawn @ weights).transpose(1, 0, 2)


def _rest_of_block(
    value: Array, several: npt.NDArray[np.intp], shape: Array, deviation: Array, rng: np.random.Generator
) -> None:
    """Add the χ² energy of the other μ − 1 modes of each block, and rotate all of it into the lead."""
    rest = 2.0 * rng.standard_gamma(shape, size=(value.shape[0], several.size))
    value[:, several] = np.sqrt(np.square(value[:, several]) + np.square(deviation[several]) * rest)
