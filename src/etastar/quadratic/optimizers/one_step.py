"""The moments of the next step from a gradient and a momentum buffer as they are (theory §7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments
from etastar.quadratic.modes import Modes, block_sums, finite_rows, read_state
from etastar.quadratic.optimizers.observables import split_of_blocks
from etastar.quadratic.optimizers.rules import Update
from etastar.quadratic.spectrum import Spectrum

__all__ = ["AVERAGED", "one_step"]

Array = npt.NDArray[np.float64]
AVERAGED = "an averaged iterate does not step along a direction; ask for the moments of its inner optimizer"


def one_step(
    spectrum: Spectrum, modes: Modes, update: Update, gradient: Any, energy: Any, momentum: Any
) -> SplitMoments:
    """See `Quadratic.moments`.

    Raises:
        InvalidArgument: A buffer that the optimizer has not, or one without the gradient; an averaged iterate.
    """
    state = read_state(spectrum, gradient, energy)
    if update.averaging is not None:
        raise InvalidArgument("optimizer", "Averaged", AVERAGED)
    if momentum is None:  # an empty buffer
        fresh, gg = update.fresh, state.energy
        return split_of_blocks(modes, update, gg, fresh * gg, fresh * fresh * gg)
    if update.memory is None:
        raise InvalidArgument("momentum", "a buffer", "SGD carries none; name HeavyBall or Nesterov as the optimizer")
    if state.gradient is None:
        raise InvalidArgument("momentum", "a buffer", "needs gradient= beside it, not energies")
    g, m = state.gradient, finite_rows("momentum", momentum, spectrum.dimension)
    try:
        np.broadcast_shapes(g.shape, m.shape)
    except ValueError:
        raise InvalidArgument("momentum", m.shape, f"must broadcast against the gradient {g.shape}") from None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        h = update.fresh * g + update.stale * m
        return split_of_blocks(modes, update, state.energy, block_sums(spectrum, g * h), block_sums(spectrum, h * h))
