"""A fixed preconditioner M in two views: the inner product of y = M^½x, in which it is plain, and the Euclidean one.

In y the Hessian is M^−½HM^−½, the gradient M^−½g, the noise M^−½ΣM^−½, and the inner optimizer runs on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments
from etastar.quadratic.modes import finite_rows, read_state
from etastar.quadratic.noise import Noise
from etastar.quadratic.optimizers.observables import split_of_blocks
from etastar.quadratic.optimizers.rules import Preconditioned, Update, update_of
from etastar.quadratic.spectrum import Spectrum

if TYPE_CHECKING:
    from etastar.quadratic.problem import Quadratic

__all__ = ["Transformed", "euclidean_moments", "transform"]

Array = npt.NDArray[np.float64]
# What leaves float64's range is refused by the spectrum and the noise made of it.
_UNBOUNDED = np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore")


@dataclass(frozen=True, slots=True, eq=False)
class Transformed:
    """A quadratic in the inner product of its preconditioner.

    Attributes:
        problem: The problem in y = M^½x; its dominant subspace are the top k eigenvectors of M^−½HM^−½.
        order: Where each of its modes was before, ``(d,)``, where M is diagonal in the eigenbasis; else None.
        factor: M^−½ of each of its modes ``(d,)``, or the matrix ``(d, d)`` that takes g to it.
    """

    problem: Quadratic
    order: npt.NDArray[np.intp] | None
    factor: Array

    def gradient(self, gradient: Any) -> Array:
        """Gradients (or buffers of them) ``(*batch, d)`` in the eigenbasis of H, in that of the new problem."""
        vectors = finite_rows("gradient", gradient, self.factor.shape[-1])
        with np.errstate(over="ignore", under="ignore"):
            return vectors @ self.factor.T if self.order is None else vectors[..., self.order] * self.factor


@_UNBOUNDED
def transform(optimizer: Preconditioned, problem: Quadratic) -> Transformed:
    """The problem in the preconditioner's inner product, at the same rank.

    Raises:
        InvalidArgument: M does not fit the dimension, a full M without eigenvectors, or a rank that now cuts
            through equal eigenvalues.
    """
    spectrum, noise = problem.spectrum, problem.additive("Preconditioned")
    M, basis = _fitted(optimizer, spectrum), spectrum.basis
    if basis is None:
        modes = problem.modes.expand(spectrum, noise)
        factor = 1.0 / np.sqrt(M)
        order = np.argsort(-modes.eigenvalues / M, kind="stable")
        factor = factor[order]
        eigenvalues = modes.eigenvalues[order] * factor**2
        if noise.matrix is None:
            moved = Noise.diagonal(modes.variances[order] * factor**2)
        else:
            moved = Noise.covariance(noise.matrix[np.ix_(order, order)] * np.outer(factor, factor))
        eigenvalues = np.minimum.accumulate(eigenvalues)  # sorted, to the last digit
        return Transformed(type(problem)(Spectrum(eigenvalues, spectrum.rank), moved), order, factor)
    root = _inverse_root(M)
    eigenvalues, vectors = _congruent(np.repeat(spectrum.eigenvalues, spectrum.multiplicities), basis, root)
    factor = vectors.T @ root @ basis
    sigma = noise.matrix if noise.matrix is not None else np.diag(np.broadcast_to(noise.variances, len(M)))
    moved = Noise.covariance(factor @ sigma @ factor.T)
    return Transformed(type(problem)(Spectrum(eigenvalues, spectrum.rank, basis=vectors), moved), None, factor)


@_UNBOUNDED
def euclidean_moments(optimizer: Preconditioned, problem: Quadratic, gradient: Any, momentum: Any) -> SplitMoments:
    """The moments of one step as they are in x, h = M⁻¹(a·g + b·m), split by the eigenvectors of H itself."""
    spectrum, noise = problem.spectrum, problem.additive("Preconditioned")
    M, basis, inner = _fitted(optimizer, spectrum), spectrum.basis, update_of(optimizer.inner)
    if gradient is None:
        raise InvalidArgument("gradient", None, "a preconditioner needs gradient=, mode by mode")
    g = read_state(spectrum, gradient, None).gradient
    assert g is not None  # noqa: S101 (for the type checker)
    m = np.zeros_like(g) if momentum is None else finite_rows("momentum", momentum, spectrum.dimension)
    direction, modes = inner.fresh * g + inner.stale * m, problem.modes.expand(spectrum, noise)
    if basis is None:
        direction = direction / M
        variances = modes.variances / M / M
    else:
        inverse = basis.T @ (basis / M[:, None] if M.ndim == 1 else np.linalg.solve(M, basis))
        direction = direction @ inverse
        sigma = inverse * modes.variances if noise.matrix is None else inverse @ noise.matrix
        variances = np.einsum("ij,ij->i", sigma, inverse)
    # Even without momentum the direction is not the gradient.
    directed = Update(inner.fresh, inner.stale, inner.beta)
    return split_of_blocks(replace(modes, variances=variances), directed, g * g, g * direction, direction**2)


def _fitted(optimizer: Preconditioned, spectrum: Spectrum) -> Array:
    M: Array = optimizer.matrix
    if M.shape[0] != spectrum.dimension:
        raise InvalidArgument("matrix", M.shape, f"must fit the dimension {spectrum.dimension}")
    if M.ndim == 2 and spectrum.basis is None:
        raise InvalidArgument("matrix", M.shape, "a full M needs eigenvectors; make the spectrum by from_matrix")
    return M


def _inverse_root(M: Array) -> Array:
    if M.ndim == 1:
        return np.diag(1.0 / np.sqrt(M))
    values, vectors = np.linalg.eigh(M)
    return (vectors / np.sqrt(values)) @ vectors.T


def _congruent(eigenvalues: Array, basis: Array, root: Array) -> tuple[Array, Array]:
    """Eigenvalues, largest first, and eigenvectors of R·H·R, by SVD where H ⪰ 0: nothing is squared first.

    Their signs are those of H (Sylvester), so that as many are zero as before.
    """
    if eigenvalues[-1] >= 0:
        vectors, singular, _ = np.linalg.svd(root @ basis * np.sqrt(eigenvalues))
        values = singular**2
    else:
        values, vectors = np.linalg.eigh(root @ (basis * eigenvalues) @ basis.T @ root)
        values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
    positive, negative = np.count_nonzero(eigenvalues > 0), np.count_nonzero(eigenvalues < 0)
    values[positive : values.size - negative] = 0.0
    return values, vectors
