"""Random runs: their record, and the layout of an ensemble that the two samplers share.

An ensemble holds, for every run and block, *leads*. By rotation within a block of μ equal eigenvalues and
isotropic noise the gradient is (lead, 0, …, 0), so that a step needs one normal for the lead and one χ² of μ − 1
degrees of freedom for the rest: exact in law, and free of μ. A state of several vectors (gradient, buffer, average)
is a lower triangle of leads in the same way, the root of its Gram matrix, and the rest a Wishart matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import whole_number
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.noise import Noise
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.spectrum import Spectrum

__all__ = ["Ensemble", "Paths", "joint_root", "lead_triangle"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """Random runs at recorded times; R replicas of each start.

    Attributes:
        times: Steps, ``(T,)``.
        alignment: θ = ‖Pg‖²/‖g‖² of each run, ``(R, *batch, T)``; NaN where the gradient is zero or diverged.
        dominant_energy: ‖Pg‖², same shape, [loss²/parameter²].
        bulk_energy: ‖Qg‖², same shape.
        loss: Loss above the minimum, same shape, [loss].
        diverged: True for runs that left the range of float64, ``(R, *batch)``.
        step_size: The step taken from each recorded time, same shape as `alignment`; NaN at the very end,
            from which none was taken.
        gradient: g in the eigenbasis, ``(R, *batch, T, d)``, only where asked for.
    """

    times: npt.NDArray[np.int64]
    alignment: Array
    dominant_energy: Array
    bulk_energy: Array
    loss: Array
    diverged: npt.NDArray[np.bool_]
    step_size: Array
    gradient: Array | None = None


@dataclass(frozen=True, slots=True)
class Ensemble:
    """How runs are laid out: `rows` = replicas × starts, and the blocks they live on.

    Attributes:
        modes: Blocks, or single modes where the noise is not isotropic within blocks.
        start: Lead coordinates at time 0, ``(rows, blocks)``.
        replicas: R.
        batch: Leading axes of the start.
        deviation: κ, the standard deviation of the noise of the lead, ``(blocks,)``.
        update: What steps.
    """

    modes: Modes
    start: Array
    replicas: int
    batch: tuple[int, ...]
    deviation: Array
    update: Update = PLAIN

    @classmethod
    def of(
        cls,
        spectrum: Spectrum,
        noise: Noise,
        modes: Modes,
        state: State,
        replicas: int,
        by_mode: bool,
        update: Update = PLAIN,
    ) -> Ensemble:
        """Lay out runs by block where that is exact, else (or when asked for) mode by mode.

        Raises:
            InvalidArgument: Single modes are needed and only energies were given; replicas < 1.
        """
        replicas = whole_number("replicas", replicas, least=1)
        if by_mode or not modes.uniform:
            if state.gradient is None:
                raise InvalidArgument("energy", "block energies", "a record mode by mode needs gradient=")
            modes, lead = modes.expand(spectrum, noise), state.gradient
        else:
            single = np.all(modes.multiplicities == 1)
            lead = state.gradient if single and state.gradient is not None else np.sqrt(state.energy)
        flat = lead.reshape(-1, lead.shape[-1])
        start = np.broadcast_to(flat, (replicas, *flat.shape)).reshape(-1, flat.shape[-1])
        deviation = np.sqrt(modes.variances / modes.multiplicities)
        return cls(modes, start, replicas, state.batch, deviation, update)

    @property
    def chi_square(self) -> npt.NDArray[np.intp]:
        """The blocks of more than one mode."""
        return np.flatnonzero(self.modes.multiplicities > 1)

    @property
    def columns(self) -> int:
        """Leads that each vector of a state has: one where all modes are single, else as many as there are vectors."""
        return self.update.size if self.chi_square.size else 1

    def absent(self, column: int) -> npt.NDArray[np.intp]:
        """Blocks of too few modes to have this column."""
        return np.flatnonzero(self.modes.multiplicities <= column)

    def states(self, rows: slice = slice(None), start: Array | None = None) -> Array:
        """The states at time 0, ``(size, columns, rows, blocks)``; `start` is the update's unless given per block."""
        lead = self.start[rows]
        state = np.zeros((self.update.size, self.columns, *lead.shape))
        unit = self.update.start[:, None] if start is None else start
        state[:, 0] = unit[:, None] * lead
        return state

    @property
    def weights(self) -> Array:
        """Weights that turn squared leads of one subspace into its energy and loss, ``(blocks, 2)``.

        Transposed from contiguous rows: BLAS multiplies by it several times faster than by columns.
        """
        loss = self.modes.loss_weights
        return np.stack([np.ones_like(loss), loss]).T

    def streams(self, seed: Any, elements: int) -> list[tuple[slice, np.random.Generator]]:
        """Chunks of rows with a random stream each: about `elements` numbers, and at least two chunks if possible.

        The chunks depend on the problem alone, so that a result is the same on any number of cores.
        """
        rows, blocks = self.start.shape
        height = min(max(1, elements // blocks), (rows + 1) // 2)
        starts = range(0, rows, height)
        seeds = np.random.SeedSequence(whole_number("seed", seed, least=0)).spawn(len(starts))
        return [
            (slice(first, min(first + height, rows)), np.random.Generator(np.random.SFC64(child)))
            for first, child in zip(starts, seeds, strict=True)
        ]

    def paths(self, times: npt.NDArray[np.int64], sums: Array, steps: Array, gradient: Array | None) -> Paths:
        """Assemble the record from sums ``(rows, T, 4)`` and steps ``(rows, T)``."""
        shape = (self.replicas, *self.batch, times.size)
        dominant, bulk = sums[..., 0].reshape(shape), sums[..., 1].reshape(shape)
        total = dominant + bulk
        finite = np.isfinite(total)
        with np.errstate(invalid="ignore", divide="ignore"):
            alignment = np.where(finite & (total > 0), dominant / total, np.nan)
            loss = (sums[..., 2] + sums[..., 3]).reshape(shape)
        if gradient is not None:
            gradient = gradient.reshape(*shape, gradient.shape[-1])
        diverged = ~np.all(finite, axis=-1)
        return Paths(times, alignment, dominant, bulk, loss, diverged, steps.reshape(shape), gradient)


def lead_triangle(vectors: Array) -> Array:
    """Vectors ``(size, coordinates, …)`` rotated into a lower triangle ``(size, size, …)`` of the same Gram matrix."""
    rows, size = vectors.copy(), len(vectors)
    triangle = np.zeros((size, size, *vectors.shape[2:]))
    for i, row in enumerate(rows):
        length = np.sqrt(np.einsum("c...,c...->...", row, row))
        triangle[i, i] = length
        unit = row / np.where(length == 0, 1.0, length) if i + 1 < size else row
        for j in range(i + 1, size):
            triangle[j, i] = np.einsum("c...,c...->...", rows[j], unit)
            rows[j] -= triangle[j, i] * unit
    return triangle


def joint_root(deviation: Array, correlation: Array) -> Array:
    """S with S·Sᵀ the covariance, singular or not: scaled last, so that small variances keep all their digits."""
    values, vectors = np.linalg.eigh(np.nan_to_num(correlation, posinf=0.0, neginf=0.0))
    return deviation[:, None] * (vectors * np.sqrt(np.maximum(values, 0.0)))
