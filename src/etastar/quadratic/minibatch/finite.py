"""Mini-batch SGD on a finite data set, exactly: the whole second moment of the run instead of a model of its noise.

With x = w − w*, samples a, residuals r = y − aᵀw* and H₀ = XᵀX/n, the covariance of a batch gradient at x is
(E[aaᵀ(aᵀx − r)²] − ḡḡᵀ)·c/b, ḡ = H₀x − E[ra], with c = 1 with replacement and (n − b)/(n − 1) without: quadratic in
x, so that E x and E xxᵀ obey a closed linear recursion whatever the distribution of the rows. It is d × d, not d.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import root_scalar
from scipy.sparse.linalg import LinearOperator, cg, eigsh

from etastar.errors import InvalidArgument, UnstableStep
from etastar.moments import SplitMoments
from etastar.quadratic.arguments import design_matrix, read_times, real_vector, single_step_size, whole_number
from etastar.quadratic.curve import Curve
from etastar.quadratic.minibatch.one_step import blocks_of
from etastar.quadratic.spectrum import Spectrum

__all__ = ["FiniteLeastSquares"]

Array = npt.NDArray[np.float64]
_TOLERANCE = 1e-12  # relative residual of the stationary state


@dataclass(frozen=True, slots=True, eq=False)
class FiniteLeastSquares:
    """½·mean((Xw − y)²) + ½·ridge·‖w‖² under SGD whose batches are independent of each other.

    Attributes:
        spectrum: That of XᵀX/n + ridge·I, with its rank and eigenvectors.
        minimum: w*, ``(d,)``; no component where λ is zero to round-off.
        rows: Samples in the eigenbasis, ``(n, d)``.
        residual: y − Xw*, ``(n,)``.
        ridge: The ridge.
        batch_size: b.
        shrink: c/b, which turns the covariance of a sample's gradient into that of a batch.

    Example:
        >>> from etastar import critical_step_size
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((50, 3)) * [3.0, 1.0, 0.5]
        >>> problem = FiniteLeastSquares.of(X, X @ [1.0, 2.0, 3.0] + rng.standard_normal(50), rank=1, batch_size=4)
        >>> step = 0.1 * problem.largest_stable_step()
        >>> round(float(critical_step_size(problem.stationary(step)).value / step), 9)
        1.0
    """

    spectrum: Spectrum
    minimum: Array
    rows: Array
    residual: Array
    ridge: float
    batch_size: int
    shrink: float

    @classmethod
    def of(
        cls,
        X: Any,
        y: Any,
        *,
        rank: int,
        batch_size: int,
        sampling: Literal["replacement", "distinct"] = "replacement",
        ridge: float = 0.0,
    ) -> FiniteLeastSquares:
        """From data ``(n, d)`` and targets ``(n,)``; see `simulate_batches` for the arguments.

        Raises:
            InvalidArgument: A bad argument, or sampling by epochs, whose batches depend on each other.
        """
        data, target = samples(X, y)
        if sampling not in ("replacement", "distinct"):
            allowed = 'must be "replacement" or "distinct"; epochs can be simulated only'
            raise InvalidArgument("sampling", sampling, allowed)
        size, n = batch_of(batch_size, len(data)), len(data)
        spectrum = Spectrum.from_least_squares(data, rank=rank, ridge=ridge)
        minimum, rows = least_squares_minimum(data, target, spectrum), spectrum.to_eigenbasis(data)
        correction = 1.0 if sampling == "replacement" or n == 1 else (n - size) / (n - 1)
        return cls(spectrum, minimum, rows, target - data @ minimum, float(ridge), size, correction / size)

    def expected(self, start: Any = None, *, step_size: float, times: Any) -> Curve:
        """The exact expected curve from weights ``(d,)``, zero unless given; every step costs O(n·d²).

        θ, moments and thresholds are those of expected energies, as in `Quadratic.expected`.
        """
        eta, when = single_step_size(step_size), read_times(times)
        weights = np.zeros_like(self.minimum) if start is None else weights_of(start, self.minimum.size)
        mean = self.spectrum.to_eigenbasis(weights - self.minimum)
        second, keep = np.outer(mean, mean), 1.0 - eta * self.spectrum.eigenvalues
        splits: list[SplitMoments] = []
        losses: list[float] = []
        wanted = set(when.tolist())
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(int(when[-1]) + 1):
                covariance = self.covariance(second, mean)
                if step in wanted:
                    splits.append(self._split(second, covariance))
                    losses.append(0.5 * float(self.spectrum.eigenvalues @ np.diag(second)))
                second = keep[:, None] * second * keep + eta**2 * covariance
                mean = keep * mean
            split = SplitMoments.stack(splits)
            dominant, bulk = split.dominant.signal.zeroth, split.bulk.signal.zeroth
            total = dominant + bulk
            alignment = np.where(total > 0, dominant / np.where(total > 0, total, 1.0), np.nan)
        return Curve(when, eta, alignment, np.array(losses), split)

    def stationary(self, step_size: float) -> SplitMoments:
        """Moments of the stationary state, by conjugate gradients.

        Raises:
            UnstableStep: No stationary state, with the condition that fails and the largest stable step.
        """
        eta = single_step_size(step_size)
        kernel = self.kernel(eta)
        if kernel >= 1:
            top = float(self.spectrum.eigenvalues[0])
            needed = f"K(η) < 1, got {kernel:.6g}" if eta * top < 2 else f"0 < step_size < 2/λ₁ = {2 / top!r}"
            limit = self.largest_stable_step()
            why = f"a stationary state needs {needed}; the largest stable step is {limit!r}"
            raise UnstableStep(f"step_size: got {eta!r}; {why}")
        root, size = self._root(eta), self.minimum.size
        zero = np.zeros((size, size))
        target = (root * self.covariance(zero, np.zeros(size))).ravel()
        if not np.any(target):  # every sample is fitted: the run ends at the minimum
            return self._split(zero, zero)
        solution, failed = cg(_Loop(self, root, -1.0), target, rtol=_TOLERANCE, maxiter=size**2 + 1000)
        if failed:
            raise UnstableStep(
                f"step_size: got {eta!r}; too close to the limit of stability to resolve, K = {kernel!r}"
            )
        second = root * solution.reshape(size, size)
        return self._split(second, self.covariance(second, np.zeros(size)))

    def kernel(self, step_size: float) -> float:
        """K(η), the gain of the loop by which noise feeds itself: stable in mean square below 1; inf from 2/λ₁ on."""
        eta, size = single_step_size(step_size), self.minimum.size
        if eta * float(self.spectrum.eigenvalues[0]) >= 2:
            return float("inf")
        loop, start = _Loop(self, self._root(eta)), np.eye(size).ravel()
        if not np.any(loop.matvec(start)):  # a positive map that vanishes on the identity: no noise feeds itself
            return 0.0
        values = eigsh(loop, k=1, which="LA", v0=start, return_eigenvectors=False)
        return max(0.0, float(values[0]))

    def largest_stable_step(self) -> float:
        """The root of K(η) = 1, to 1e-10: smaller steps are stable in mean square."""
        longest = 2.0 / float(self.spectrum.eigenvalues[0])

        def excess(step: float) -> float:
            return min(self.kernel(step), 2.0) - 1.0 if step < longest else 1.0  # K jumps there without noise

        return float(root_scalar(excess, bracket=(1e-12 * longest, longest), xtol=1e-12 * longest, rtol=1e-10).root)

    def _root(self, eta: float) -> Array:
        """η/√(1 − (1 − ηλ_i)(1 − ηλ_j)), which makes the loop symmetric; zero where nothing moves, ``(d, d)``."""
        product = eta * self.spectrum.eigenvalues
        lost = product[:, None] + product - np.outer(product, product)
        return np.divide(eta, np.sqrt(lost), out=np.zeros_like(lost), where=lost > 0)

    def covariance(self, second: Array, mean: Array) -> Array:
        """Of a batch gradient, ``(d, d)``, averaged over x of the given mean ``(d,)`` and second moment ``(d, d)``."""
        rows, r, n = self.rows, self.residual, len(self.rows)
        square = np.einsum("nd,nd->n", rows @ second, rows) - 2.0 * r * (rows @ mean) + r * r
        h, pull = self.spectrum.eigenvalues - self.ridge, rows.T @ r / n
        cross = np.outer(h * mean, pull)
        drift = h[:, None] * second * h - cross - cross.T + np.outer(pull, pull)
        return self.shrink * ((rows.T * square) @ rows / n - drift)

    def _split(self, second: Array, covariance: Array) -> SplitMoments:
        modes = blocks_of(self.spectrum)
        variances = np.maximum(np.diag(covariance), 0.0)
        return replace(modes, variances=variances).split_moments(modes.eigenvalues**2 * np.diag(second))


class _Loop(LinearOperator):
    """How noise feeds itself, on second moments, symmetric in the Frobenius inner product; or one less it."""

    def __init__(self, problem: FiniteLeastSquares, root: Array, sign: float = 1.0) -> None:
        super().__init__(np.float64, (root.size, root.size))
        self.quiet = replace(problem, residual=np.zeros_like(problem.residual))
        self.root, self.sign = root, sign

    def _matvec(self, x: Array) -> Array:
        moment = self.root * x.reshape(self.root.shape)
        fed = self.root * self.quiet.covariance(0.5 * (moment + moment.T), np.zeros(len(moment)))
        return fed.ravel() if self.sign > 0 else x.ravel() - fed.ravel()


def least_squares_minimum(X: Array, y: Array, spectrum: Spectrum) -> Array:
    """The minimum w* ``(d,)`` of the ridge problem of the spectrum; no component where λ is zero to round-off."""
    pull, eigenvalues = spectrum.to_eigenbasis(X.T @ y / len(X)), spectrum.eigenvalues
    cutoff = eigenvalues[0] * (max(X.shape) * np.finfo(np.float64).eps) ** 2  # singular values are known to ε
    return spectrum.from_eigenbasis(np.divide(pull, eigenvalues, out=np.zeros_like(pull), where=eigenvalues > cutoff))


def samples(X: Any, y: Any) -> tuple[Array, Array]:
    """Checked data and targets of one length."""
    data, target = design_matrix(X), real_vector("y", y)
    if target.size != len(data):
        raise InvalidArgument("y", target.shape, f"must have one target for each of {len(data)} samples")
    return data, target


def weights_of(start: Any, size: int) -> Array:
    """Checked weights ``(d,)``."""
    weights = real_vector("start", start)
    if weights.size != size:
        raise InvalidArgument("start", weights.shape, f"must have one weight for each of {size} features")
    return weights


def batch_of(batch_size: Any, n: int) -> int:
    """A checked batch size, 1 ≤ b ≤ n."""
    size = whole_number("batch_size", batch_size)
    if not 1 <= size <= n:
        raise InvalidArgument("batch_size", batch_size, f"must be between 1 and the number of samples, {n}")
    return size
