"""The moments of the next mini-batch step: those of an additive one whose noise is what it is at the state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from etastar.moments import SplitMoments
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.modes import Modes, read_state
from etastar.quadratic.optimizers.one_step import one_step
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.spectrum import Spectrum

__all__ = ["blocks_of", "moments"]


def blocks_of(spectrum: Spectrum) -> Modes:
    """The blocks of a spectrum: all that mini-batch noise needs, its variances follow from the state."""
    quiet = np.zeros_like(spectrum.eigenvalues)
    return Modes(spectrum.eigenvalues, spectrum.multiplicities, quiet, spectrum.cut, True)


def moments(
    spectrum: Spectrum,
    noise: MinibatchNoise,
    gradient: Any = None,
    energy: Any = None,
    momentum: Any = None,
    update: Update = PLAIN,
) -> SplitMoments:
    """The moments of one step, as `Quadratic.moments` has them."""
    modes = blocks_of(spectrum)
    noise.check(modes.eigenvalues, update.averaging)
    state = read_state(spectrum, gradient, energy)
    variances = noise.variances_at(modes.eigenvalues, modes.multiplicities, state.energy)
    return one_step(spectrum, replace(modes, variances=variances), update, gradient, energy, momentum)
