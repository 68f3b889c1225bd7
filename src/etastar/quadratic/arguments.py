"""Arguments of the laboratory, checked: each bad one is an InvalidArgument with its name, value and remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import as_step_size
from etastar.errors import InvalidArgument
from etastar.moments import real_array

__all__ = [
    "design_matrix",
    "finite_number",
    "read_record",
    "read_times",
    "real_vector",
    "single_step_size",
    "symmetric_matrix",
    "whole_number",
]

Array = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """A Python or NumPy integer, not below `least`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise InvalidArgument(name, value, "must be a whole number")
    if least is not None and value < least:
        raise InvalidArgument(name, value, f"must be at least {least}")
    return int(value)


def finite_number(name: str, value: Any, least: float | None = None) -> float:
    """One finite number as float, not below `least`."""
    array = real_array(name, value, "must be a number")
    if array.ndim or not np.isfinite(array):
        raise InvalidArgument(name, value, "must be one finite number")
    if least is not None and array < least:
        raise InvalidArgument(name, value, f"must be at least {least:g}")
    return float(array)


def single_step_size(step_size: Any) -> float:
    """One positive, finite step size as float."""
    eta = as_step_size(step_size)
    if eta.ndim or eta == 0:
        raise InvalidArgument("step_size", step_size, "must be one positive number")
    return float(eta)


def read_times(times: Any, name: str = "times") -> Times:
    """Strictly increasing whole numbers ≥ 0, at least one."""
    try:
        array = np.asarray(times)
        if array.dtype.kind not in "iuf":
            raise TypeError
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.int64)
        if np.any(whole != array):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(name, times, "must be whole numbers") from None
    if whole.ndim != 1 or whole.size == 0 or whole[0] < 0 or np.any(np.diff(whole) <= 0):
        raise InvalidArgument(name, times, "must be a non-empty, strictly increasing sequence of steps ≥ 0")
    return whole


def read_record(steps: Any, record: Any) -> Times:
    """The times to record in a run of so many steps: all unless given."""
    last = whole_number("steps", steps, least=0)
    when = np.arange(last + 1) if record is None else read_times(record, "record")
    if when[-1] > last:
        raise InvalidArgument("record", int(when[-1]), f"must not exceed the number of steps, {last}")
    return when


def real_vector(name: str, value: Any) -> Array:
    """A non-empty, finite vector as float64."""
    vector = real_array(name, value, "must be real numbers")
    if vector.ndim != 1 or vector.size == 0:
        raise InvalidArgument(name, vector.shape, "must be a non-empty one-dimensional sequence")
    if not np.all(np.isfinite(vector)):
        where = int(np.argmax(~np.isfinite(vector)))
        raise InvalidArgument(f"{name}[{where}]", float(vector[where]), "must be finite")
    return vector


def symmetric_matrix(name: str, value: Any) -> Array:
    """A finite square matrix, symmetrised; InvalidArgument where it is asymmetric beyond round-off."""
    matrix = real_array(name, value, "must be a real square matrix")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise InvalidArgument(name, matrix.shape, "must be a square matrix")
    if not np.all(np.isfinite(matrix)):
        raise InvalidArgument(name, "NaN or inf", "must be finite")
    with np.errstate(over="ignore"):
        asymmetry = float(np.max(np.abs(matrix - matrix.T)))
    if asymmetry > 1e-10 * float(np.max(np.abs(matrix))):
        raise InvalidArgument(name, f"asymmetry {asymmetry:.3g}", "must be symmetric; symmetrise it if that is meant")
    return 0.5 * matrix + 0.5 * matrix.T


def design_matrix(X: Any) -> Array:
    """A data matrix ``(n, d)`` as float64; InvalidArgument unless it is finite, with n ≥ 1 and d ≥ 2."""
    matrix = real_array("X", X, "must be a real matrix (samples, features)")
    if matrix.ndim != 2 or matrix.shape[0] < 1 or matrix.shape[1] < 2:
        raise InvalidArgument("X", matrix.shape, "must have shape (samples, features) with at least 2 features")
    if not np.all(np.isfinite(matrix)):
        raise InvalidArgument("X", "NaN or inf", "must be finite; drop or impute incomplete samples")
    return matrix
