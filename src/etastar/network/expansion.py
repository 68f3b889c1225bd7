"""What a step does beyond the quadratic model: the higher orders of a real loss, from gradients at steps really made.

Near the edge of stability the bulk's gradient is small, and what the dominant motion adds to it through the third
derivative T is not: ‖Qg + ½η²QT[v,v]‖² has a linear term, often negative, *and* a square, which undoes it. Taking
the first without the second is worse than neither, so that the gradient is expanded, and then squared whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etastar.criteria import critical_step_size, neutrality
from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.network.batches import tensors_of
from etastar.network.curvature import CurvatureOperator
from etastar.network.persample import gradient_at

__all__ = ["beyond_quadratic", "least_step", "scatters", "turn_of", "with_beyond"]

Array = npt.NDArray[np.float64]
_LITTLE = 0.3  # of a standard deviation: one more scatter of that size, independent, widens an interval by 5 %


class _Basis(Protocol):
    def coordinates(self, rows: Tensor) -> Tensor: ...

    def bulk(self, rows: Tensor) -> Tensor: ...


def beyond_quadratic(
    operator: CurvatureOperator,
    loss_fn: Callable[[Any, Any], Tensor],
    basis: _Basis,
    gradient: Tensor,
    middle: Tensor,
    updates: Tensor,
    images: Tensor,
    step: float,
) -> Array:
    """Coefficients of η², η³ and η⁴ that the energies of the next gradient have beyond the quadratic model.

    g(θ − ηv) = g − ηHv + ½η²T, with T from the gradient at the very step, so that the energies are exact there:
    ⟨Sg, T⟩, −⟨SHv, T⟩ and ¼‖ST‖². At other steps what is left out is of the fourth derivative. One gradient a row.

    Args:
        operator: Hessian of the loss; its batches are the loss.
        loss_fn: The same loss.
        basis: The dominant subspace.
        gradient: g, ``(P,)``.
        middle: The operator's own gradient: g, unless its batches are a part of the training set.
        updates: v, ``(m, P)``.
        images: H v, ``(m, P)``.
        step: η, [parameter²/loss].

    Returns:
        ``(3, 2, m)``: the power of η less two; dominant and bulk; one for each update.
    """
    found = step * images - middle
    here = operator.vector.current()
    with operator.reading() as batches:
        for batch in batches:
            weight = next(tensors_of(batch)).shape[0] / operator.samples
            for row, update in enumerate(updates):
                found[row] += weight * gradient_at(
                    operator.model, loss_fn, operator.vector, batch, here - step * update
                )
    bent = found * (2.0 / step**2)
    sides: list[Tensor] = []
    for part in (basis.coordinates, basis.bulk):
        onto, own = part(bent).double(), part(gradient).double()
        cross = (part(images).double() * onto).sum(dim=1)
        sides.append(torch.stack([onto @ own, -cross, 0.25 * onto.square().sum(dim=1)]))
    return torch.stack(sides, dim=1).cpu().numpy()


def least_step(plain: SplitMoments, largest: float, dtype: torch.dtype) -> float:
    """The smallest step at which `beyond_quadratic` sees more than round-off: 4·eps^¼ of η*, or of 2/λ₁ without one.

    A step s leaves round-off eps·‖g‖ over ½s² to the third derivative, and so eps·(η*/s)² = √eps/16 of ‖g‖ at η*.

    Args:
        plain: Mean moments of the quadratic model, batch shape ``()``.
        largest: λ₁, [loss/parameter²].
        dtype: Of the gradients.
    """
    critical = float(critical_step_size(plain).value)
    limit = 2.0 / largest if largest > 0 else 0.0
    return 4.0 * torch.finfo(dtype).eps ** 0.25 * (critical if np.isfinite(critical) else limit)


def turn_of(plain: SplitMoments, beyond: Array) -> float:
    """The smallest step at which the alignment of expected energies turns; NaN where it turns at none.

    Args:
        plain: Mean moments of the quadratic model, batch shape ``()``.
        beyond: Mean of `beyond_quadratic` over the updates, ``(3, 2)``.
    """
    return _smallest_root(_polynomial(plain, beyond))


def scatters(split: SplitMoments, beyond: Array, step: float) -> bool:
    """Whether the higher orders scatter over the probes by more than a little of what the quadratic noise does.

    Most of that scatter is odd in the noise, so that each probe with the other sign too takes it out. Scatter against
    scatter: were their sum asked, a chance compensation would pass, and the interval of η* come out too narrow.

    Args:
        split: Moments of the quadratic model, replicates ``(n,)``.
        beyond: `beyond_quadratic` of each replicate, ``(3, 2, n)``.
        step: Where to look if the alignment never turns.
    """
    turn = turn_of(split.mean(0), beyond.mean(axis=2))
    powers = (turn if np.isfinite(turn) else step) ** np.arange(3)
    dominant, bulk = split.dominant.signal.zeroth, split.bulk.signal.zeroth
    higher = bulk * (powers @ beyond[:, 0]) - dominant * (powers @ beyond[:, 1])
    return not float(np.std(higher)) <= _LITTLE * float(np.std(neutrality(split)[1]))


def with_beyond(split: SplitMoments, beyond: Array, step: float) -> tuple[SplitMoments, float]:
    """Moments whose second ones take in the orders beyond the quadratic model, as they are where the alignment turns.

    So η* = 2N/M is that turn, and its interval the turn's: with jackknife pseudo-values as replicates, since a turn
    without one probe is another step. Where it never turns, they are those at `step`.

    Args:
        split: Moments of the quadratic model, replicates ``(n,)``.
        beyond: `beyond_quadratic` of each replicate, ``(3, 2, n)``.
        step: The step in use, [parameter²/loss].

    Returns:
        The moments, and by what share the higher orders move η*, or the slope with which the alignment turns there,
        whichever is more: a turn that is nearly a touch may be none. 0 where there is no η* with them or without; inf
        where one is made or unmade, where a single probe decides on it, or where the alignment turns back below `step`.
    """
    n = beyond.shape[2]
    others = np.array([np.delete(np.arange(n), left) for left in range(n)])
    plain, less = split.mean(0), split[others].mean(1)
    higher, fewer = beyond.mean(axis=2), beyond[:, :, others].mean(axis=3)
    turns = np.array([turn_of(plain, higher), *map(_smallest_root, _polynomial(less, fewer))])
    over = np.where(np.isfinite(turns), turns, step)
    sides: list[SubspaceMoments] = []
    for side, name in enumerate(("dominant", "bulk")):
        powers, orders = np.vander(over, 3, True), np.column_stack([higher[:, side], fewer[:, side]])
        noise = [np.broadcast_to(getattr(one, name).noise.second, size) for one, size in ((plain, 1), (less, n))]
        values = np.einsum("np,pn->n", powers, orders) + np.concatenate(noise)
        pseudo = values[0] - (n - 1) * (values[1:] - values[1:].mean())
        part: SubspaceMoments = getattr(split, name)
        sides.append(_with_second(part, part.signal.second + pseudo - part.noise.second))
    shift = _shift(plain, higher, turns[0], step)
    decided = np.isfinite(turns).all() or not np.isfinite(turns).any()
    return SplitMoments(sides[0], sides[1], split.coupling), shift if decided else float("inf")


def _with_second(part: SubspaceMoments, second: Array) -> SubspaceMoments:
    return SubspaceMoments(CurvatureMoments(part.signal.zeroth, part.signal.first, second), part.noise, part.descent)


def _shift(plain: SplitMoments, beyond: Array, turn: float, step: float) -> float:
    """The share that `with_beyond` returns, of mean moments."""
    critical = float(critical_step_size(plain).value)
    if np.isnan(turn) or np.isnan(critical):
        return 0.0 if np.isnan(turn) and np.isnan(critical) else float("inf")
    change = np.polynomial.Polynomial(_polynomial(plain, beyond))
    start = change.coef[0]
    if change(step) * (step - turn) * start > 0:
        return float("inf")
    steepness = float(change.deriv()(turn)) * turn / -start  # 1 in the quadratic model
    return max(abs(turn / critical - 1.0), abs(steepness - 1.0))


def _polynomial(plain: SplitMoments, beyond: Array) -> Array:
    """Coefficients in η, ``(*batch, 4)``, lowest first, of the change of alignment over η: −2N + ηM and beyond."""
    N, M = neutrality(plain)
    dominant, bulk = (part.signal.zeroth for part in (plain.dominant, plain.bulk))
    higher = bulk * beyond[:, 0] - dominant * beyond[:, 1]
    coefficients = np.stack(np.broadcast_arrays(-2.0 * N, M + higher[0], higher[1], higher[2]), axis=-1)
    finite = np.where(np.isfinite(coefficients), coefficients, 0.0)
    scale = np.abs(finite).max(axis=-1, keepdims=True)
    return finite / np.where(scale > 0, scale, 1.0)


def _smallest_root(polynomial: Array) -> float:
    """The smallest positive root of coefficients lowest first; NaN for none."""
    roots = np.roots(polynomial[::-1])
    steps = roots[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0)].real
    return float(steps.min()) if len(steps) else float("nan")
