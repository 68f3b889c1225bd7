"""The named outcomes of the criteria: degenerate mathematics has a name here, never an exception or a silent NaN."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Outcome", "Regime", "outcome_of", "regime_of"]

Signs = npt.NDArray[np.int64]


class Regime(Enum):
    """How the alignment θ of expected energies responds to the step size η of the next step."""

    LOW = "falls for steps below the critical step size, rises above it"
    HIGH = "falls for every step size"
    RISES = "rises for every step size"
    REVERSED = "rises for steps below the critical step size, falls above it"
    NEUTRAL = "stays as it is for every step size"
    UNDEFINED = "is undefined: a moment is not finite, or the gradient is zero"


class Outcome(Enum):
    """How the expected loss responds to the size of an update along one subspace."""

    BELOW = "lowers the loss for steps below the threshold"
    ALWAYS = "lowers the loss for every step size: no positive curvature along the update"
    NEVER = "raises the loss for every step size: no descent along the update"
    ABOVE = "lowers the loss only for steps above the threshold: negative slope and curvature"
    NEUTRAL = "leaves the loss as it is"
    UNDEFINED = "is undefined: a moment is not finite"


_REGIMES = np.array(
    [
        [Regime.REVERSED, Regime.RISES, Regime.RISES],
        [Regime.HIGH, Regime.NEUTRAL, Regime.RISES],
        [Regime.HIGH, Regime.HIGH, Regime.LOW],
    ]
)  # indexed by the signs (N, M) + 1: the table of the module's theory, row by row
_OUTCOMES = np.array(
    [
        [Outcome.ABOVE, Outcome.NEVER, Outcome.NEVER],
        [Outcome.ALWAYS, Outcome.NEUTRAL, Outcome.BELOW],
        [Outcome.ALWAYS, Outcome.ALWAYS, Outcome.BELOW],
    ]
)  # indexed by the signs (slope, curvature) + 1; slope 0 against curvature is a threshold at 0


def regime_of(sign_N: Signs, sign_M: Signs, undefined: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The regime of each element from the signs of N and M: rising in η where M is positive, falling where N is."""
    return _named(_REGIMES[sign_N + 1, sign_M + 1], undefined, Regime.UNDEFINED)


def outcome_of(sign_slope: Signs, sign_bend: Signs, undefined: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The outcome of each element from the signs of its first- and second-order loss change."""
    return _named(_OUTCOMES[sign_slope + 1, sign_bend + 1], undefined, Outcome.UNDEFINED)


def _named(table: Any, undefined: npt.NDArray[np.bool_], otherwise: Enum) -> npt.NDArray[Any]:
    named = np.array(table, dtype=object)
    named[undefined] = otherwise
    return named
