"""How far samples lie from a closed form, in standard errors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from etastar.quadratic import Curve, Paths

__all__ = ["Array", "energy_scores", "standard_error", "worst_score"]

Array = npt.NDArray[np.float64]


def standard_error(values: Array) -> Array:
    """Of the mean over the first axis."""
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def worst_score(values: Array, expected: Array) -> float:
    """Largest |z| of the mean over the first axis against what it should be."""
    return float(np.max(np.abs((values.mean(axis=0) - expected) / standard_error(values))))


def energy_scores(paths: Paths, curve: Curve) -> float:
    """Largest |z| of both subspaces' mean energies along a run, start apart: there nothing is random."""
    later = curve.times > 0
    pairs = ((paths.dominant_energy, curve.split.dominant), (paths.bulk_energy, curve.split.bulk))
    return max(worst_score(seen[..., later], np.asarray(part.signal.zeroth)[later]) for seen, part in pairs)
