"""The moments of the loss that samples represent: products of independent batches take the bias out (theory §8).

Replicates are jackknife pseudo-values of U-statistics over the gradient batches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.moments import Coupling, CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.network.curvature import CurvatureOperator
from etastar.network.producer import Basis, Produced, as_array, recoverable_loss

__all__ = ["population_moments"]

Array = npt.NDArray[np.float64]


def population_moments(
    operators: tuple[CurvatureOperator, CurvatureOperator],
    gradients: Tensor,
    gradient_batch: int,
    basis: Basis,
    batch_size: int,
) -> Produced:
    """Unbiased moments of the population's loss; replicates are jackknife pseudo-values over the gradients.

    Args:
        operators: Hessians on two independent sets of samples, neither used for the gradients.
        gradients: Gradients of n ≥ 3 independent batches, ``(n, P)``; independent of the basis too.
        gradient_batch: Samples behind each of them.
        basis: The dominant subspace, from other data than the gradients.
        batch_size: b, the size of the mini-batches whose noise is meant.

    Raises:
        InvalidArgument: Fewer than three gradients.
    """
    n = gradients.shape[0]
    if n < 3:
        raise InvalidArgument("gradients", n, "at least three independent batches are needed")
    left, right = (operator @ gradients.mT for operator in operators)
    left, right = left.mT, right.mT
    image = 0.5 * (left + right)
    coordinates, coordinates_left, coordinates_right = map(basis.coordinates, (gradients, left, right))
    bulk, bulk_left, bulk_right = map(basis.bulk, (gradients, left, right))
    half = 0.5 * (coordinates_left + coordinates_right)
    tables = {
        "dominant": (coordinates @ coordinates.mT, coordinates @ half.mT, coordinates_left @ coordinates_right.mT),
        "bulk": (bulk @ bulk.mT, bulk @ image.mT, bulk_left @ bulk_right.mT),
    }
    scale = gradient_batch / batch_size
    sides: dict[str, SubspaceMoments] = {}
    for name, grams in tables.items():
        pairs = [_pseudo_values(as_array(gram)) for gram in grams]
        sides[name] = SubspaceMoments(
            CurvatureMoments(*(signal for signal, _ in pairs)), CurvatureMoments(*(scale * noise for _, noise in pairs))
        )
    signal, noise = _pseudo_values(as_array(coordinates @ (half - coordinates @ basis.projected).mT))
    squares = np.stack(
        [_pseudo_values(np.outer(c, c))[0] for c in as_array(coordinates).T], axis=1
    )  # unbiased g_i² per eigenvector, (n, k)
    recoverable = np.array([recoverable_loss(row, as_array(basis.eigenvalues)) for row in squares])
    moments = SplitMoments(sides["dominant"], sides["bulk"], Coupling(signal, scale * noise))
    return Produced(moments, recoverable, float("nan"))


def _pseudo_values(gram: Array) -> tuple[Array, Array]:
    """From a Gram table ⟨a_i, b_j⟩: pseudo-values of the U-statistic over i ≠ j, and of the diagonal beyond it.

    Their mean is the U-statistic, and their leave-one-out means are those without one batch: the jackknife of any
    criterion of the moments is that of the U-statistics.
    """
    n = len(gram)
    diagonal = np.diag(gram)
    off = gram.sum() - diagonal.sum()
    cross = gram.sum(axis=0) + gram.sum(axis=1) - 2.0 * diagonal
    whole = off / (n * (n - 1))
    without = (off - cross) / ((n - 1) * (n - 2))
    signal = n * whole - (n - 1) * without
    return signal, diagonal - signal
