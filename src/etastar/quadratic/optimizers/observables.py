"""What is read off a state: the second moments of gradient and direction that make energies, losses and moments.

With the direction h of a step, ⟨g, g⟩ gives energy and loss, ⟨g, h⟩ the slope and the first moment, ⟨h, h⟩ the
curvature and the second; without momentum all of them come from ⟨g, g⟩.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.moments import CurvatureMoments, Descent, SplitMoments, SubspaceMoments
from etastar.quadratic.modes import Modes
from etastar.quadratic.optimizers.rules import Update

__all__ = ["POWERS", "Observable", "observables", "split_of", "split_of_blocks", "update_noise"]

Array = npt.NDArray[np.float64]
Noises = tuple[CurvatureMoments, CurvatureMoments]
# Columns of the sums, by the power of λ that multiplies the second moment:
# energy, loss, first and second moment, and with a direction the slope and curvature of its descent.
POWERS = np.array([0, -1, 1, 2, 0, 1])


@dataclass(frozen=True, slots=True)
class Observable:
    """A second moment E(left·z)(right·z) of a state, and the columns of the sums that it feeds.

    Attributes:
        left: Row on the state, ``(size,)`` or ``(size, modes)``.
        right: The other one.
        columns: Indices into the sums.
    """

    left: Array
    right: Array
    columns: list[int]

    def weights(self, eigenvalues: Array) -> Array:
        """What multiplies the moment of each mode, ``(modes, columns)``."""
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            loss = np.where(eigenvalues == 0, 0.0, 0.5 / eigenvalues)
            powers = [loss if POWERS[c] < 0 else eigenvalues ** POWERS[c] for c in self.columns]
        return np.stack(powers).T  # transposed from contiguous rows: BLAS multiplies by it several times faster


def observables(gradient: Array, direction: Array | None) -> list[Observable]:
    """The moments that sums are made of: four columns, or six where the direction is not the gradient."""
    g, h = gradient, direction
    if h is None:
        return [Observable(g, g, [0, 1, 2, 3])]
    return [Observable(g, g, [0, 1]), Observable(g, h, [2, 4]), Observable(h, h, [3, 5])]


def update_noise(modes: Modes, update: Update) -> Noises:
    """Moments of the noise in the observed update, over the dominant and the bulk blocks."""
    with np.errstate(over="ignore"):
        return modes.curvature_moments(update.noise_gain * modes.variances)


def split_of(noise: Noises, update: Update, dominant: Any, bulk: Any) -> SplitMoments:
    """The record of a step from its noise and sums over the dominant and the bulk modes, indexed by column first."""

    def part(sums: Any, quiet: CurvatureMoments) -> SubspaceMoments:
        descent = None if update.direction is None else Descent(sums[4], sums[5])
        return SubspaceMoments(CurvatureMoments(sums[0], sums[2], sums[3]), quiet, descent)

    return SplitMoments(part(dominant, noise[0]), part(bulk, noise[1]))


def split_of_blocks(
    modes: Modes, update: Update, gg: Array, gh: Array | None = None, hh: Array | None = None
) -> SplitMoments:
    """The record of a step from second moments summed over each block, ``(*batch, blocks)``.

    Args:
        modes: The blocks.
        update: The update.
        gg: E g².
        gh: E gh, where the step has a direction of its own.
        hh: E h², likewise.
    """
    noise = update_noise(modes, update)
    energy = modes.curvature_moments(gg)
    if update.direction is None or gh is None or hh is None:
        return split_of(noise, update, *((m.zeroth, None, m.first, m.second) for m in energy))
    slope, curvature = modes.curvature_moments(gh), modes.curvature_moments(hh)
    columns = zip(energy, slope, curvature, strict=True)
    return split_of(noise, update, *((e.zeroth, None, s.first, c.second, s.zeroth, c.first) for e, s, c in columns))
