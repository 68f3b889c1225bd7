"""Expected curves under mini-batch noise: in closed form for SGD, by the linear recursion with momentum.

Noise couples the modes through the loss alone. In u = E/λ per block, w = ηλ√μ and u = w·z, a step of SGD is
z' = (1 − d)z + w(w·z + s²)/b with d = ηλ(2 − ηλ(1 + 1/b)): one symmetric matrix, a diagonal less a rank-one one,
whose eigenvectors give every time (theory §7).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import CurvatureMoments, Descent, SplitMoments, SubspaceMoments
from etastar.quadratic.arguments import Times, read_times, single_step_size
from etastar.quadratic.curve import Curve
from etastar.quadratic.exact import VANISHED, scaled_powers
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.minibatch.rank_one import decompose
from etastar.quadratic.minibatch.recursion import run
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.optimizers.rules import PLAIN, Update

__all__ = ["expected"]

Array = npt.NDArray[np.float64]
# Columns of the sums by the power of λ that multiplies E g² (four), E gh (two) and E h² (two).
_POWERS = np.array([0, -1, 1, 2, 0, 1, 1, 2])
_LARGEST = 1.0e60  # ηλ beyond it: products of its squares leave float64's range
_WIDEST = 1.0e100  # λ₁/λ_d beyond it: as above
_MOST = 6000  # blocks that a dense decomposition may have


def expected(
    modes: Modes, noise: MinibatchNoise, state: State, step_size: Any, times: Any, update: Update = PLAIN
) -> Curve:
    """The exact expected curve from `state` at a constant step and strictly increasing whole times ≥ 0.

    SGD costs O(blocks²) once and O(blocks) a time; with momentum every step in between is taken, or leapt over
    where that is less work.

    Raises:
        InvalidArgument: An indefinite H, an averaged iterate, too many blocks, or numbers beyond float64's range.
    """
    eta, when = single_step_size(step_size), read_times(times)
    noise.check(modes.eigenvalues, update.averaging)
    _check_range(modes, eta)
    rows = state.energy.reshape(-1, state.energy.shape[-1])
    # In units of λ₁ and of the largest energy, so that no product overflows.
    _, top = np.frexp(modes.eigenvalues[0])
    label = float(np.ldexp(noise.label_variance, top))
    _, unit = np.frexp(max(float(rows.max()), label))
    scaled = replace(modes, eigenvalues=np.ldexp(modes.eigenvalues, -top))
    arguments = (scaled, noise.batch_size, float(np.ldexp(label, -unit)), np.ldexp(rows, -unit), np.ldexp(eta, top))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        sums, growth = run(*arguments, when, update) if not update.plain else _closed_form(*arguments, when)
        total = sums[0, 0] + sums[1, 0]
        alignment = np.where(total > 0, sums[0, 0] / np.where(total > 0, total, 1.0), np.nan)
        back = unit + top * _POWERS[: sums.shape[1], None, None]
        sums = np.where(sums == 0, 0.0, np.ldexp(sums * np.exp(growth), back))
    shape = (*state.batch, when.size)
    sums = sums.reshape(*sums.shape[:2], *shape)
    split = _record(modes, noise, update, sums)
    return Curve(when, eta, alignment.reshape(shape), sums[0, 1] + sums[1, 1], split)


def _weights(modes: Modes) -> Array:
    """What makes energy, loss, first and second moment of both subspaces of block energies, ``(2, 4, blocks)``."""
    powers = np.stack([np.ones_like(modes.eigenvalues), modes.loss_weights, modes.eigenvalues, modes.eigenvalues**2])
    dominant = np.arange(modes.eigenvalues.size) < modes.cut
    return np.stack([powers * dominant, powers * ~dominant])


def _closed_form(
    modes: Modes, batch_size: int, label: float, rows: Array, eta: float, times: Times
) -> tuple[Array, Array]:
    """Sums ``(2, 4, rows, T)`` over e^exponent, ``(rows, T)``."""
    live = modes.eigenvalues > 0  # where λ = 0 there is no gradient
    eigenvalues, counts = modes.eigenvalues[live], modes.multiplicities[live]
    product = eta * eigenvalues
    w = product * np.sqrt(counts)
    matrix = decompose(product * ((2.0 - product) - product / batch_size), w / np.sqrt(batch_size))
    z = rows[:, live] / (eigenvalues * w)
    onto = (_weights(modes)[..., live] * (eigenvalues * w)).reshape(8, -1)
    # Components: those that couple, and the rest within blocks of equal decay.
    decay = np.concatenate([matrix.eigenvalues, matrix.poles[matrix.tied]])
    start = np.concatenate([z @ matrix.vectors, matrix.remainder(z)[:, matrix.tied]], axis=1)
    seen = np.concatenate([onto @ matrix.vectors, onto[:, matrix.tied]], axis=1)
    fed = np.zeros(decay.size)
    fed[: matrix.eigenvalues.size] = (label / batch_size) * (w @ matrix.vectors)
    with np.errstate(divide="ignore"):
        log_ratio = np.maximum(np.log1p(-np.minimum(decay, 1.0)), VANISHED)
    slowest = float(log_ratio[0])
    noisy = label > 0
    growth = max(slowest, 0.0) if noisy else slowest
    kept, gone = scaled_powers(log_ratio, times[:, None].astype(np.float64), growth, noisy)
    sums = np.einsum("tk,rk,ck->crt", kept, start, seen, optimize=True)
    if noisy:
        still = decay == 0
        accrued = np.where(still, times[:, None] * np.exp(-growth * times)[:, None], gone / np.where(still, 1.0, decay))
        sums += np.einsum("tk,k,ck->ct", accrued, fed, seen, optimize=True)[:, None]
    sums = np.maximum(sums, 0.0)  # where all cancels, round-off has either sign
    if times[0] == 0:
        sums[..., 0] = onto @ z.T
    exponent = np.tile(growth * times.astype(np.float64), (len(rows), 1))
    return sums.reshape(2, 4, len(rows), times.size), exponent


def _record(modes: Modes, noise: MinibatchNoise, update: Update, sums: Array) -> SplitMoments:
    """Moments from sums over both subspaces, ``(2, 4 or 8, *batch, T)``."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        residual = 2.0 * (sums[0, 1] + sums[1, 1]) + noise.label_variance
        traces = modes.curvature_moments(modes.multiplicities * modes.eigenvalues)
        gain = update.noise_gain / noise.batch_size

        def part(column: Array, trace: CurvatureMoments) -> SubspaceMoments:
            quiet = CurvatureMoments(
                gain * (column[0] + residual * trace.zeroth),
                gain * (column[2] + residual * trace.first),
                gain * (column[3] + residual * trace.second),
            )
            if update.direction is None:
                return SubspaceMoments(CurvatureMoments(column[0], column[2], column[3]), quiet)
            signal = CurvatureMoments(column[0], column[5], column[7])
            return SubspaceMoments(signal, quiet, Descent(column[4], column[6]))

        return SplitMoments(part(sums[0], traces[0]), part(sums[1], traces[1]))


def _check_range(modes: Modes, eta: float) -> None:
    eigenvalues = modes.eigenvalues[modes.eigenvalues > 0]
    if eta * eigenvalues[0] > _LARGEST:
        raise InvalidArgument("step_size", eta, f"times an eigenvalue must stay below {_LARGEST:g}")
    if eigenvalues[0] > _WIDEST * eigenvalues[-1]:
        raise InvalidArgument(
            "eigenvalues", float(eigenvalues[-1]), f"with mini-batch noise λ₁/λ_d must be ≤ {_WIDEST:g}"
        )
    if eigenvalues.size > _MOST:
        raise InvalidArgument("eigenvalues", eigenvalues.size, f"at most {_MOST} blocks couple here; merge close ones")
