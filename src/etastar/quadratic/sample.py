"""Runs at a constant step, exact in law at recorded times only: the steps between are never taken.

A mode is an AR(1): s steps on, g' = (1 − ηλ)^s g + N(0, V_s), V_s = (ηλ)²κ²·(1 − ρ^s)/(1 − ρ) (theory §5). With
momentum or averaging it is the same of a state of two or three vectors. Cost is blocks × recorded times, whatever
the number of steps and whatever the multiplicities.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.quadratic.arguments import read_times, single_step_size
from etastar.quadratic.exact import Decay
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.noise import Noise
from etastar.quadratic.optimizers.frame import Frame
from etastar.quadratic.optimizers.leap import Leaps
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.paths import Ensemble, Paths, joint_root, lead_triangle
from etastar.quadratic.spectrum import Spectrum

__all__ = ["sample"]

Array = npt.NDArray[np.float64]
_CHUNK = 4096  # numbers held by one random stream: enough to hide call overhead, small enough for the cache
_AHEAD = 16  # recorded times drawn at once


@dataclass(frozen=True)
class _Leap:
    """The law of `steps` steps taken at once: state' = factor·state + noise."""

    factor: Array  # (blocks,), or (size, size, blocks)
    deviation: Array  # of the lead, (blocks,), or the lower triangle of a root of the covariance, (size, size, blocks)
    root: Array | None  # (size·d, size·d), S with S·Sᵀ the joint covariance, where modes are correlated

    @cached_property
    def unbounded(self) -> bool:
        """Whether a factor left float64's range: then anything times zero stays zero."""
        return not np.all(np.isfinite(self.factor))

    def spread(self, normals: Array) -> None:
        """Turn normals ``(size, columns, rows, blocks)`` into the noise of the leap, in place."""
        size, _, rows, blocks = normals.shape
        if self.root is not None:
            joint = normals[:, 0].transpose(1, 0, 2).reshape(rows, -1) @ self.root.T
            normals[:, 0] = joint.reshape(rows, size, blocks).transpose(1, 0, 2)
        elif self.deviation.ndim == 1:
            normals *= self.deviation
        else:
            for i in reversed(range(size)):
                normals[i] *= self.deviation[i, i]
                for j in range(i):
                    normals[i] += self.deviation[i, j] * normals[j]

    def carry(self, state: Array, onto: Array, scratch: Array) -> None:
        """Add factor·state to `onto`, both ``(size, columns, rows, blocks)``."""
        if self.factor.ndim == 1:
            self._add(state[0], self.factor, onto[0], scratch)
            return
        for target, factors in zip(onto, self.factor, strict=True):
            for source, factor in zip(state, factors, strict=True):
                self._add(source, factor, target, scratch)

    def _add(self, source: Array, factor: Array, target: Array, scratch: Array) -> None:
        np.multiply(source, factor, out=scratch)
        if self.unbounded:
            scratch[source == 0] = 0.0
        target += scratch


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
    update: Update = PLAIN,
) -> Paths:
    """Exact-in-law runs; see `Quadratic.sample`."""
    eta, when = single_step_size(step_size), read_times(times)
    ensemble = Ensemble.of(spectrum, noise, modes, state, replicas, keep_gradient, update)
    decay = Decay.of(ensemble.modes, eta)
    spacings = np.diff(when, prepend=0)
    frame = Frame.of(update, eta, ensemble.modes.eigenvalues)
    take = partial(_leap, ensemble, decay) if update.plain else _LinearLeaps(ensemble, frame).take
    leaps = {int(s): take(int(s)) for s in np.unique(spacings)}
    rows, blocks = ensemble.start.shape
    sums = np.empty((rows, when.size, 4))
    gradient = np.empty((rows, when.size, blocks)) if keep_gradient else None
    plan = [leaps[int(s)] for s in spacings]

    def run(chunk: tuple[slice, np.random.Generator]) -> None:
        part, rng = chunk
        _run(ensemble, frame.start, plan, rng, part, sums, gradient)

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


class _LinearLeaps:
    """Leaps of a state of several vectors, for any number of steps."""

    def __init__(self, ensemble: Ensemble, frame: Frame) -> None:
        covariance = ensemble.modes.covariance
        noise = np.square(ensemble.deviation) if covariance is None else covariance
        self.joint, self.quiet = covariance is not None, ensemble.deviation == 0
        unit = np.eye(len(frame.lag))[..., None]
        # Modes that noise correlates must share the signs of their steps.
        lag = frame.sign * (unit + frame.lag) - unit if self.joint else frame.lag
        self.sign = np.ones(1) if self.joint else frame.sign
        self.leaps = Leaps(lag, frame.injection, noise)

    def take(self, steps: int) -> _Leap:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            leap = self.leaps.at(np.array([steps]))
            factor, spread = leap.power[:, :, 0] * self.sign**steps, leap.spread[:, :, 0]
            if not self.joint:
                return _Leap(factor, _lower_root(np.where(self.quiet, 0.0, spread), steps), None)
            size, _, d, _ = spread.shape
            joint = spread.transpose(0, 2, 1, 3).reshape(size * d, size * d)
            deviation = np.sqrt(np.maximum(np.diag(joint), 0.0))
            root = joint_root(deviation, joint / deviation[:, None] / deviation)
        return _Leap(factor, deviation, root)


def _lower_root(spread: Array, steps: int) -> Array:
    """Cholesky roots of covariances ``(size, size, blocks)`` of rank at most `steps`, semi-definite ones included."""
    size = len(spread)
    root = np.zeros_like(spread)
    for j in range(min(size, steps)):
        left = spread[j:, j] - np.einsum("ik...,k...->i...", root[j:, :j], root[j, :j])
        pivot = np.sqrt(np.maximum(left[0], 0.0))
        root[j, j] = pivot
        root[j + 1 :, j] = np.where(pivot > 0, left[1:] / np.where(pivot > 0, pivot, 1.0), 0.0)
    return root


def _run(
    ensemble: Ensemble,
    start: Array,
    plan: list[_Leap],
    rng: np.random.Generator,
    part: slice,
    sums: Array,
    gradient: Array | None,
) -> None:
    state = ensemble.states(part, start)
    weights, several, cut = ensemble.weights, ensemble.chi_square, ensemble.modes.cut
    absent = [(column, ensemble.absent(column)) for column in range(1, ensemble.columns)]
    freedom = ensemble.modes.multiplicities[several] - ensemble.columns
    shown = int(np.argmax(ensemble.update.gradient))
    scratch = np.empty((_AHEAD, *state.shape))
    moved = np.empty(state.shape[1:])
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for first in range(0, len(plan), _AHEAD):
            leaps = plan[first : first + _AHEAD]
            drawn = scratch[: len(leaps)]
            rng.standard_normal(out=drawn)
            for leap, value in zip(leaps, drawn, strict=True):
                leap.spread(value)
                for column, blocks in absent:
                    value[:, column, :, blocks] = 0.0
                leap.carry(state, value, moved)
                if several.size:
                    _rest_of_block(value, several, freedom, leap.deviation, rng)
                state = value
            state = state.copy()
            seen = drawn[:, shown]
            if gradient is not None:
                gradient[part, first : first + len(leaps)] = seen[:, 0].transpose(1, 0, 2)
            np.square(seen, out=seen)
            energy = seen[:, 0] if ensemble.columns == 1 else seen.sum(axis=1)
            block = sums[part, first : first + len(leaps)]
            # Per subspace, so that one that overflows leaves the other's sums alone.
            block[..., 0::2] = (energy[..., :cut] @ weights[:cut]).transpose(1, 0, 2)
            block[..., 1::2] = (energy[..., cut:] @ weights[cut:]).transpose(1, 0, 2)


def _rest_of_block(
    value: Array,
    several: npt.NDArray[np.intp],
    freedom: npt.NDArray[np.int64],
    deviation: Array,
    rng: np.random.Generator,
) -> None:
    """Add the noise of the other `freedom` modes of each block, and rotate all of it into the leads.

    Its Gram matrix is Wishart; by Bartlett its root has χ on the diagonal and normals below it.
    """
    size, _, rows, blocks = value.shape
    if size == 1:
        rest = 2.0 * rng.standard_gamma(freedom / 2, size=(rows, several.size))
        lead = value[0, 0]
        lead[:, several] = np.sqrt(np.square(lead[:, several]) + np.square(deviation[several]) * rest)
        return
    root = deviation.reshape(size, size, blocks)[..., several]
    other = np.zeros((size, size, rows, several.size))
    for i in range(size):
        shape = np.maximum(freedom - i, 0) / 2
        other[i, i] = np.sqrt(2.0 * rng.standard_gamma(shape, size=(rows, several.size)))
        for j in range(i):
            other[i, j] = rng.standard_normal((rows, several.size)) * (freedom > j)
    noise = np.einsum("ij...b,jk...b->ik...b", root[:, :, None], other)
    value[..., several] = lead_triangle(np.concatenate([value[..., several], noise], axis=1))
