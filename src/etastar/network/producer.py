"""The moments of one step of a network: the waist's third producer, after the exact and the sampled quadratic.

Two targets (theory §8). *Training*: the given batches are the loss, so that gradient, Hessian and the dominant part
of the noise are exact, and only the bulk's noise is probed. *Population*: the loss that samples represent; products
of independent batches take the bias out. Either way moments come with a replicate axis for the jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.moments import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments
from etastar.network.curvature import CurvatureOperator
from etastar.network.expansion import beyond_quadratic, least_step, scatters, with_beyond
from etastar.network.noise import SampleNoise, noise_outside, sample_noise
from etastar.network.rotation import basis_errors
from etastar.network.subspace import Subspace, SubspaceTracker

__all__ = ["Basis", "Direction", "Produced", "as_array", "recoverable_loss", "training_moments"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """A tracked dominant subspace with its image under the Hessian.

    Attributes:
        vectors: V, orthonormal columns, ``(P, k)``.
        images: H V, ``(P, k)``; or None for Ritz vectors: then Vᵀ H V is the diagonal of the Ritz values.
        eigenvalues: Ritz values, ``(k,)``.
        beyond: The tracker's next Ritz vectors, orthonormal and orthogonal to V, ``(P, m)``: never part of the
            subspace, but control variates for the bulk's noise. None for none.
        beyond_values: Their Ritz values, ``(m,)``.
    """

    vectors: Tensor
    images: Tensor | None
    eigenvalues: Tensor
    beyond: Tensor | None = None
    beyond_values: Tensor | None = None

    @classmethod
    def tracked(cls, tracker: SubspaceTracker, subspace: Subspace) -> Basis:
        """What a tracker found at its last refresh, with all that it carries."""
        state, rank = tracker.state_dict(), subspace.rank
        vectors, values = subspace.basis, subspace.eigenvalues.to(subspace.basis)
        if state["carried"] is None:
            return cls(vectors, None, values)
        return cls(vectors, None, values, state["carried"][:, rank:], state["values"][rank:].to(vectors))

    @property
    def explored(self) -> Tensor:
        """V with the vectors beyond it, ``(P, k + m)``."""
        return self.vectors if self.beyond is None else torch.cat([self.vectors.mT, self.beyond.mT]).mT

    @property
    def projected(self) -> Tensor:
        """Vᵀ H V, ``(k, k)``. Ritz values err by the square of what their vectors do."""
        return torch.diag(self.eigenvalues) if self.images is None else self.vectors.mT @ self.images

    def coordinates(self, rows: Tensor) -> Tensor:
        """Dominant coordinates of row vectors ``(…, P)``, shape ``(…, k)``."""
        return rows @ self.vectors

    def bulk(self, rows: Tensor) -> Tensor:
        """Row vectors with the dominant part taken out, twice, so that nothing of it is left by round-off."""
        for _ in range(2):
            rows = rows - self.coordinates(rows) @ self.vectors.mT
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """The update an optimizer makes where it is not the plain gradient: θ' = θ − η(h + noise_scale·ξ).

    Attributes:
        vector: h at the mean gradient, ``(P,)``.
        noise_scale: By how much the gradient noise enters the update (1 + β for Nesterov, 1 − dampening).
    """

    vector: Tensor
    noise_scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Produced:
    """What a producer returns.

    Attributes:
        moments: Batch shape ``(replicates,)``.
        recoverable: ½ Σ_D g_i²/λ_i per replicate, ``(replicates,)``, [loss]; NaN where a Ritz value is not positive.
        third_shift: By what share orders beyond the quadratic model move η*, or the slope of the turn there: inf where
            they make or unmake one, 0 where they were left out, NaN where they were not measured.
        basis_errors: What the error of the basis leaves open, see `rotation.basis_errors`; empty where not known.
    """

    moments: SplitMoments
    recoverable: Array
    third_shift: float
    basis_errors: Mapping[str, float] = field(default_factory=dict[str, float])


def training_moments(
    operator: CurvatureOperator,
    loss_fn: Callable[[Any, Any], Tensor],
    basis: Basis,
    batch_size: int,
    *,
    probes: int = 8,
    replace: bool = True,
    direction: Callable[[Tensor], Direction] | None = None,
    third_step: float | None = None,
    noise: SampleNoise | None = None,
    whole: CurvatureOperator | None = None,
    seed: int = 0,
) -> Produced:
    """Moments with the operator's own batches as the loss; replicates are noise probes.

    Args:
        operator: Hessian of the mean loss over the batches.
        loss_fn: The same loss; must be the mean over samples along the leading dimension.
        basis: The dominant subspace.
        batch_size: b, the size of the mini-batches whose noise is meant.
        probes: Random sign combinations of all per-sample deviations; one product each.
        replace: Mini-batches with replacement; else the factor (N − b)/(N − 1) applies.
        direction: From the gradient to the update made, where that is not the gradient.
        third_step: With a step size, second moments take in what steps do beyond the quadratic model, from gradients at
            that very step (see `expansion`), and as it is at the step where the alignment turns, so that η* is that
            step; at `third_step` itself where none is. A step so small beside η* that round-off would drown them is
            tried larger. One gradient a probe; two, its noise with either sign, where that scatters much.
        noise: Of a pass over the per-sample gradients made before with ``basis.explored``; its probes are taken.
        whole: Where the operator's batches are only a part of the training set: the whole of it, for the gradient. A
            part's own gradient is off by noise of covariance Σ(1/n − 1/N), which near a minimum is most of it.
        seed: Of the probes.

    Raises:
        InvalidArgument: A loss that is no mean over samples; fewer than two probes.
    """
    probes = probes if noise is None else len(noise.probes)
    if probes < 2:
        raise InvalidArgument("probes", probes, "must be at least 2 for an interval")
    own = operator.gradient()
    gradient, samples = (own, operator.samples) if whole is None else (whole.gradient(), whole.samples)
    update = None if direction is None else direction(gradient)
    noise = noise or sample_noise(operator, loss_fn, basis.explored, own, probes, seed)
    if not (replace or batch_size <= samples):
        raise InvalidArgument("batch_size", batch_size, f"without replacement at most the {samples} samples there are")
    scale = (1.0 if replace or samples == 1 else (samples - batch_size) / (samples - 1)) / batch_size
    scale *= 1.0 if update is None else update.noise_scale**2
    along = gradient if update is None else update.vector
    own_image = [] if update is None else [gradient[None]]
    block = operator @ torch.cat([along[None], noise.probes, *own_image]).mT
    image, block = block[:, 0 if update is None else -1], block[:, : 1 + probes]
    signal = _signal(basis, gradient, along, block[:, 0], update is not None)
    noise_dominant, noise_bulk, noise_coupling = _noise_moments(basis, noise, block[:, 1:].mT, scale)
    dominant, bulk = signal.sides(noise_dominant, noise_bulk)
    moments, shift = SplitMoments(dominant, bulk, Coupling(signal.coupling, noise_coupling)), 0.0
    errors = _basis_errors(basis, moments, (gradient, image), (along, block[:, 0]), (noise.probes, block[:, 1:]), scale)
    if third_step is not None:
        least = least_step(moments.mean(0), float(basis.eigenvalues[0]), operator.dtype)
        tried = max(third_step, least)
        known = operator, loss_fn, basis, gradient, own
        beyond = _beyond(known, moments, along, noise.probes, block, math.sqrt(scale), tried)
        moments, shift = with_beyond(moments, beyond, third_step)
    coordinates = as_array(basis.coordinates(gradient))
    recoverable = np.full(probes, recoverable_loss(coordinates**2, as_array(basis.eigenvalues)))
    return Produced(moments, recoverable, shift, errors)


def _basis_errors(
    basis: Basis,
    moments: SplitMoments,
    gradient: tuple[Tensor, Tensor],
    update: tuple[Tensor, Tensor],
    noise: tuple[Tensor, Tensor],
    scale: float,
) -> dict[str, float]:
    """`rotation.basis_errors` of vectors with their images under H, the noise's as probes; {} without λ_{k+1}."""
    if basis.beyond_values is None or not basis.beyond_values.numel():
        return {}

    def turned(rows: Tensor, images: Tensor) -> tuple[Array, Array]:
        inside = basis.coordinates(rows)
        return as_array(inside), as_array(basis.coordinates(images) - inside @ basis.projected)

    inside, beyond = turned(noise[0], noise[1].mT)
    jitter = scale * np.mean(inside * beyond, axis=0)
    values, following = as_array(basis.eigenvalues), float(basis.beyond_values[0])
    return basis_errors(moments.mean(0), values, following, turned(*gradient), turned(*update), jitter)


@dataclass(frozen=True, slots=True)
class _Signal:
    """The signal's moments, still without the noise."""

    dominant: CurvatureMoments
    bulk: CurvatureMoments
    coupling: Array
    descent: tuple[Descent, Descent] | None

    def sides(self, noise_dominant: CurvatureMoments, noise_bulk: CurvatureMoments) -> tuple[Any, Any]:
        descent = (None, None) if self.descent is None else self.descent
        return (
            SubspaceMoments(self.dominant, noise_dominant, descent[0]),
            SubspaceMoments(self.bulk, noise_bulk, descent[1]),
        )


def _signal(basis: Basis, gradient: Tensor, along: Tensor, image: Tensor, other: bool) -> _Signal:
    """Moments of g with h = `along` and H h = `image`; descent pairs where h is not g."""
    inside, outside = basis.coordinates(gradient), basis.bulk(gradient)
    image_inside, image_outside = basis.coordinates(image), basis.bulk(image)
    along_inside, along_outside = basis.coordinates(along), basis.bulk(along)
    lifted = basis.projected @ along_inside  # VᵀHPh
    coupling = as_array(along_inside @ (basis.coordinates(image) - lifted))  # ⟨Ph, HQh⟩
    dominant = (inside @ inside, inside @ image_inside, image_inside @ image_inside)
    bulk = (outside @ outside, outside @ image, image_outside @ image_outside)
    descent = None
    if other:
        inner = along_inside @ lifted
        outer = along_outside @ image - (along_inside @ basis.coordinates(image) - inner)
        descent = (
            Descent(as_array(inside @ along_inside), as_array(inner)),
            Descent(as_array(outside @ along_outside), as_array(outer)),
        )
    return _Signal(
        CurvatureMoments(*map(as_array, dominant)), CurvatureMoments(*map(as_array, bulk)), coupling, descent
    )


def _noise_moments(
    basis: Basis, noise: SampleNoise, images: Tensor, scale: float
) -> tuple[CurvatureMoments, CurvatureMoments, Array]:
    """Moments of the noise and its coupling, from probes z and their images H z ``(m, P)``.

    With VᵀHz = M Vᵀz + e, M = VᵀHV: what M carries is exact, and the probes add only what e does, which is small. In
    the bulk, Σ_j μ_j^p (u_jᵀz)² over the Ritz pairs beyond V is taken from each probe, and its exact mean put back.
    """
    probes, k = noise.probes, basis.vectors.shape[1]
    inside, image = as_array(basis.coordinates(probes)), as_array(basis.coordinates(images))
    seen = noise.dominant.numpy()
    M, C, guards = as_array(basis.projected), seen[:k, :k], np.diag(seen)[k:]
    carried = inside @ M
    e = image - carried
    coupling = scale * np.sum(inside * e, axis=1)
    dominant = CurvatureMoments(
        scale * np.trace(C),
        scale * np.trace(M @ C) + coupling,
        scale * (np.trace(M @ C @ M) + np.sum((2.0 * carried + e) * e, axis=1)),
    )
    first = as_array((basis.bulk(probes) * images).sum(dim=1))
    second = as_array(basis.bulk(images).square().sum(dim=1))
    if basis.beyond is not None and basis.beyond_values is not None:
        missed, values = guards - as_array(probes @ basis.beyond) ** 2, as_array(basis.beyond_values)
        first, second = first + missed @ values, second + missed @ values**2
    unseen = as_array(noise_outside(noise, basis.explored))
    bulk = CurvatureMoments(scale * (guards.sum() + unseen), scale * first, scale * second)
    return dominant, bulk, coupling


def _beyond(
    known: tuple[CurvatureOperator, Callable[[Any, Any], Tensor], Basis, Tensor, Tensor],
    moments: SplitMoments,
    along: Tensor,
    probes: Tensor,
    block: Tensor,
    noise: float,
    step: float,
) -> Array:
    """`beyond_quadratic` for updates h + noise·z, ``(3, 2, probes)``.

    Averaged with h − noise·z, so that odd terms go, where these scatter much.
    """

    def one(sign: float) -> Array:
        updates, images = along + sign * noise * probes, block[:, :1] + sign * noise * block[:, 1:]
        return beyond_quadratic(*known, updates, images.mT, step)

    found = one(1.0)
    return 0.5 * (found + one(-1.0)) if scatters(moments, found, step) else found


def recoverable_loss(squares: Array, eigenvalues: Array) -> float:
    """½ Σ g_i²/λ_i; NaN where an eigenvalue is not positive."""
    return float(0.5 * np.sum(squares / eigenvalues)) if np.all(eigenvalues > 0) else float("nan")


def as_array(tensor: Tensor) -> Array:
    """Float64 on the CPU."""
    return tensor.detach().double().cpu().numpy()
