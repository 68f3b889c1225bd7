"""Runs at a constant step, exact in law at recorded times only: the steps between are never taken.

A mode is an AR(1): s steps on, g' = (1 − ηλ)^s g + N(0, V_s), V_s = (ηλ)²κ²·(1 − ρ^s)/(1 − ρ) (theory §5).
Cost is blocks × recorded times, whatever the number of steps and whatever the multiplicities.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.quadratic.arguments import read_times, single_step_size
from etastar.quadratic.exact import Decay
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.noise import Noise
from etastar.quadratic.paths import Ensemble, Paths, joint_root
from etastar.quadratic.spectrum import Spectrum

__all__ = ["sample"]

Array = npt.NDArray[np.float64]
_CHUNK = 4096  # numbers held by one random stream: enough to hide call overhead, small enough for the cache
_AHEAD = 16  # recorded times drawn at once


@dataclass(frozen=True)
class _Leap:
    """The law of `steps` steps taken at once: g' = factor·g + noise."""

    factor: Array  # (blocks,)
    deviation: Array  # (blocks,), of the lead
    root: Array | None  # (d, d), S with S·Sᵀ the joint covariance, where modes are correlated

    @cached_property
    def unbounded(self) -> bool:
        """Whether a factor left float64's range: then zero times it stays zero."""
        return bool(np.any(np.isinf(self.factor)))


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
    leaps = {int(s): _leap(ensemble, decay, int(s)) for s in np.unique(spacings)}
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
    taken[:, -1] = np.nan
    return ensemble.paths(when, sums, taken, gradient)


def _leap(ensemble: Ensemble, decay: Decay, steps: int) -> _Leap:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sign = np.where(decay.contraction < 0, -1.0, 1.0) ** (steps % 2)
        factor = sign * np.exp(0.5 * steps * decay.log_ratio)
        lost = decay.loss_of_energy
        spread = np.where(lost == 0, float(steps), -np.expm1(steps * decay.log_ratio) / lost)
        per_step = np.abs(decay.product) * ensemble.deviation
        deviation = np.where(per_step == 0, 0.0, per_step * np.sqrt(spread))
        covariance = ensemble.modes.covariance
        root = None if covariance is None else joint_root(deviation, _correlation(covariance, decay, steps))
    return _Leap(factor, deviation, root)


def _correlation(covariance: Array, decay: Decay, steps: int) -> Array:
    """Of the noise of `steps` steps, whose covariance is η²λ_iλ_jΣ_ij·(1 − r^s)/(1 − r), r = (1 − ηλ_i)(1 − ηλ_j).

    Both 1 − r and 1 − r^s come from log |r|: they stay consistent where two modes hardly decay.
    """
    negative = np.signbit(decay.contraction)
    differ = negative[:, None] != negative
    log_r = 0.5 * (decay.log_ratio[:, None] + decay.log_ratio)
    power, one = np.exp(steps * log_r), np.exp(log_r)
    lack = np.where(differ, 1.0 + one, -np.expm1(log_r))
    gone = np.where(differ, 1.0 - (-1.0) ** (steps % 2) * power, -np.expm1(steps * log_r))
    geometric = np.where(lack == 0, float(steps), gone / lack)
    signed = np.sign(decay.product)[:, None] * np.sign(decay.product) * covariance * geometric
    scale = np.sqrt(np.diag(covariance) * np.diag(geometric))
    return signed / scale[:, None] / scale


def _run(
    ensemble: Ensemble,
    plan: list[_Leap],
    rng: np.random.Generator,
    part: slice,
    sums: Array,
    gradient: Array | None,
) -> None:
    lead = ensemble.start[part].copy()
    weights, several, cut = ensemble.weights, ensemble.chi_square, ensemble.modes.cut
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
                if leap.unbounded:
                    moved[lead == 0] = 0.0
                value += moved
                if several.size:
                    _rest_of_block(value, several, shape, leap.deviation, rng)
                lead = value
            lead = lead.copy()
            if gradient is not None:
                gradient[part, first : first + len(leaps)] = drawn.transpose(1, 0, 2)
            np.square(drawn, out=drawn)
            block = sums[part, first : first + len(leaps)]
            # Per subspace, so that one that overflows leaves the other's sums alone.
            block[..., 0::2] = (drawn[..., :cut] @ weights[:cut]).transpose(1, 0, 2)
            block[..., 1::2] = (drawn[..., cut:] @ weights[cut:]).transpose(1, 0, 2)


def _rest_of_block(
    value: Array, several: npt.NDArray[np.intp], shape: Array, deviation: Array, rng: np.random.Generator
) -> None:
    """Add the χ² energy of the other μ − 1 modes of each block, and rotate all of it into the lead."""
    rest = 2.0 * rng.standard_gamma(shape, size=(value.shape[0], several.size))
    value[:, several] = np.sqrt(np.square(value[:, several]) + np.square(deviation[several]) * rest)
