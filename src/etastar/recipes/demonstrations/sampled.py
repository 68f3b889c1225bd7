"""Predictions of one step beside samples of it: the states they start from, and whether signs agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "gradients_of", "right_signs"]

Array = npt.NDArray[np.float64]


def gradients_of(path: Any) -> Array:
    """The gradients that a record was asked to keep."""
    if path.gradient is None:
        raise AssertionError("the record was asked to keep its gradients")
    return path.gradient


def right_signs(predicted: Array, measured: Array, error: Array) -> tuple[int, int]:
    """Of the predictions beyond 4 standard errors: how many have the measured sign, and how many there are."""
    clear = np.abs(predicted) > 4 * error
    return int(np.sum(np.sign(measured[clear]) == np.sign(predicted[clear]))), int(np.sum(clear))
