"""A spectrum and its noise resolved for computing: per-block arrays, and the state of a gradient on them.

Producers work on blocks of equal eigenvalues wherever the noise allows it, and on single modes otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments, real_array
from etastar.quadratic.noise import Noise
from etastar.quadratic.spectrum import Spectrum

__all__ = ["Modes", "State", "block_sums", "finite_rows", "read_state"]

Array = npt.NDArray[np.float64]
_EXPAND_LIMIT = 50_000_000  # single modes that we are willing to hold
_NULL_SHARE = 1e-20  # energy along λ = 0, over the whole, that is round-off of a rotation into the eigenbasis


@dataclass(frozen=True, slots=True)
class Modes:
    """Blocks of equal eigenvalue.

    Attributes:
        eigenvalues: λ per block, ``(blocks,)``.
        multiplicities: μ per block, ``(blocks,)``.
        variances: Trace of Σ over each block (κ² summed), ``(blocks,)``.
        cut: ``[:cut]`` is dominant.
        uniform: True where the noise within each block is isotropic and blocks are independent.
        covariance: The full covariance, only for single modes.
    """

    eigenvalues: Array
    multiplicities: npt.NDArray[np.int64]
    variances: Array
    cut: int
    uniform: bool
    covariance: Array | None = None

    @classmethod
    def resolve(cls, spectrum: Spectrum, noise: Noise) -> Modes:
        """Match a noise to a spectrum; InvalidArgument where the dimensions differ."""
        counts, variances = spectrum.multiplicities, noise.variances
        uniform = noise.matrix is None
        if variances.ndim == 0:
            traces = variances.astype(np.float64) * counts
        else:
            if variances.size != spectrum.dimension:
                raise InvalidArgument("noise", variances.shape, f"must fit the dimension {spectrum.dimension}")
            starts = np.cumsum(counts) - counts
            traces = np.add.reduceat(variances, starts)
            uniform = uniform and bool(np.all(variances == np.repeat(variances[starts], counts)))
        return cls(spectrum.eigenvalues, counts, traces, spectrum.cut, uniform)

    def total(self, per_block: Array) -> tuple[Array, Array]:
        """Sums over the dominant and the bulk blocks of an array ``(*batch, blocks)``."""
        return per_block[..., : self.cut].sum(axis=-1), per_block[..., self.cut :].sum(axis=-1)

    def curvature_moments(self, per_block: Array) -> tuple[CurvatureMoments, CurvatureMoments]:
        """Moments Σ λ^p·x over the dominant and the bulk blocks, p = 0, 1, 2, of ``(*batch, blocks)``."""
        with np.errstate(over="ignore", invalid="ignore"):
            first = per_block * self.eigenvalues  # λ² alone may leave float64's range
            powers = [self.total(values) for values in (per_block, first, first * self.eigenvalues)]
        return CurvatureMoments(*(p[0] for p in powers)), CurvatureMoments(*(p[1] for p in powers))

    def split_moments(self, energy: Array) -> SplitMoments:
        """The moments of a step from block energies ``(*batch, blocks)``."""
        dominant, bulk = self.curvature_moments(energy)
        noise_dominant, noise_bulk = self.curvature_moments(self.variances)
        return SplitMoments(SubspaceMoments(dominant, noise_dominant), SubspaceMoments(bulk, noise_bulk))

    def expand(self, spectrum: Spectrum, noise: Noise) -> Modes:
        """The same problem mode by mode, with its full covariance where it has one."""
        size = spectrum.dimension
        if size > _EXPAND_LIMIT:
            raise InvalidArgument("dimension", size, f"mode by mode at most {_EXPAND_LIMIT}; use isotropic blocks")
        return Modes(
            np.repeat(self.eigenvalues, self.multiplicities),
            np.ones(size, dtype=np.int64),
            np.broadcast_to(noise.variances, (size,)),
            spectrum.rank,
            noise.matrix is None,
            noise.matrix,
        )

    @property
    def loss_weights(self) -> Array:
        """½/λ, which makes loss out of gradient energy; zero where λ = 0, whose gradient vanishes."""
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(self.eigenvalues == 0, 0.0, 0.5 / self.eigenvalues)


@dataclass(frozen=True, slots=True)
class State:
    """A gradient in the eigenbasis, or only its energy per block.

    Attributes:
        energy: ‖g_block‖², shape ``(*batch, blocks)``, [loss²/parameter²].
        gradient: g, shape ``(*batch, d)``, or None where only energies were given.
    """

    energy: Array
    gradient: Array | None

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.energy.shape[:-1]


def read_state(spectrum: Spectrum, gradient: Any, energy: Any) -> State:
    """Validate the state given as `gradient` ``(*batch, d)`` or as `energy` ``(*batch, blocks)``.

    Round-off along λ = 0, which a gradient rotated into the eigenbasis carries, is taken for the zero that it is.

    Raises:
        InvalidArgument: Both or neither, wrong shape, empty, not finite, a negative energy, or a gradient along λ = 0.
    """
    if (gradient is None) == (energy is None):
        raise InvalidArgument("gradient, energy", "both or neither", "give exactly one of them")
    if gradient is not None:
        name, vector = "gradient", finite_rows("gradient", gradient, spectrum.dimension)
        with np.errstate(over="ignore", under="ignore"):
            blocks = block_sums(spectrum, vector * vector)
    else:
        name, vector = "energy", None
        blocks = finite_rows("energy", energy, spectrum.eigenvalues.size)
        if np.any(blocks < 0):
            raise InvalidArgument("energy", float(blocks.min()), "must not be negative")
    with np.errstate(over="ignore"):
        whole = blocks.sum(axis=-1, keepdims=True)
    if not np.all(np.isfinite(whole)):
        raise InvalidArgument(name, "an overflow", "the energy ‖g‖² must stay below 1.8e308")
    null = spectrum.eigenvalues == 0
    if np.any(null):
        if np.any(blocks[..., null] > _NULL_SHARE * whole):
            raise InvalidArgument(name, "non-zero where λ = 0", "the gradient Hx of a quadratic vanishes there")
        blocks = np.where(null, 0.0, blocks)
        vector = None if vector is None else np.where(np.repeat(null, spectrum.multiplicities), 0.0, vector)
    return State(blocks, vector)


def block_sums(spectrum: Spectrum, values: Array) -> Array:
    """Sums over each block of values mode by mode, ``(*batch, d)`` to ``(*batch, blocks)``."""
    if spectrum.eigenvalues.size == values.shape[-1]:
        return values
    starts = np.cumsum(spectrum.multiplicities) - spectrum.multiplicities
    return np.add.reduceat(values, starts, axis=-1)


def finite_rows(name: str, value: Any, size: int) -> Array:
    """Finite vectors ``(*batch, size)`` as float64, at least one."""
    array = real_array(name, value, "must be real numbers")
    if array.ndim == 0 or array.shape[-1] != size:
        raise InvalidArgument(name, array.shape, f"the last axis must have length {size}")
    if array.size == 0:
        raise InvalidArgument(name, array.shape, "must hold at least one vector")
    if not np.all(np.isfinite(array)):
        raise InvalidArgument(name, "NaN or inf", "must be finite")
    return array
