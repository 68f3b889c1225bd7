"""The moments of one step of a network: the waist's third producer, after the exact and the sampled quadratic.

Two targets (theory §8). *Training*: the given batches are the loss, so that gradient, Hessian and the dominant part
of the noise are exact, and only the bulk's noise is probed. *Population*: the loss that samples represent; products
of independent batches take the bias out. Either way moments come with a replicate axis for the jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etastar.criteria import critical_step_size
from etastar.errors import InvalidArgument
from etastar.moments import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments
from etastar.network.batches import tensors_of
from etastar.network.curvature import CurvatureOperator
from etastar.network.persample import gradient_at, per_sample_gradients

__all__ = ["Basis", "Direction", "Produced", "population_moments", "training_moments"]

Array = npt.NDArray[np.float64]
_MEAN_TOLERANCE = 1e-3  # how far the mean of per-sample gradients may lie from the gradient of the mean loss


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """A tracked dominant subspace with its image under the Hessian.

    Attributes:
        vectors: V, orthonormal columns, ``(P, k)``.
        images: H V, ``(P, k)``.
        eigenvalues: Ritz values, ``(k,)``.
    """

    vectors: Tensor
    images: Tensor
    eigenvalues: Tensor

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
        third_shift: By what share the third derivative moves η*: small where the expansion behind η* holds; inf where
            it makes or unmakes one, 0 where it was left out, NaN where it was not measured.
    """

    moments: SplitMoments
    recoverable: Array
    third_shift: float


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
        third_step: With a step size, the third derivative enters the second moments (theory §8: w_S → w_S + t_S), as a
            central difference of gradients over that very step; two gradients for the update and for each probe.
        seed: Of the probes.

    Raises:
        InvalidArgument: A loss that is no mean over samples; fewer than two probes.
    """
    if probes < 2:
        raise InvalidArgument("probes", probes, "must be at least 2 for an interval")
    gradient = operator.gradient()
    update = None if direction is None else direction(gradient)
    noise, sources = _exact_noise(operator, loss_fn, basis, gradient, probes, seed)
    samples = operator.samples
    scale = (1.0 if replace or samples == 1 else (samples - batch_size) / (samples - 1)) / batch_size
    scale *= 1.0 if update is None else update.noise_scale**2
    along = gradient if update is None else update.vector
    block = operator @ torch.cat([along[None], sources]).mT
    signal = _signal(basis, gradient, along, block[:, 0], update is not None)
    bent = None
    if third_step is not None:
        bent = _third_derivative(operator, loss_fn, torch.cat([along[None], sources * math.sqrt(scale)]), third_step)
    images = block[:, 1:].mT
    bulk_probe = basis.bulk(sources)
    first = (bulk_probe * images).sum(dim=1)
    second = basis.bulk(images).square().sum(dim=1)
    dominant, bulk = signal.sides(
        CurvatureMoments(*(scale * noise[f"dominant_{p}"] for p in range(3))),
        CurvatureMoments(scale * noise["bulk_0"], scale * _array(first), scale * _array(second)),
    )
    plain = dominant, bulk
    if bent is not None:
        dominant = _with_third(dominant, _array(basis.coordinates(bent) @ basis.coordinates(gradient)))
        bulk = _with_third(bulk, _array(basis.bulk(bent) @ basis.bulk(gradient)))
    coupling = Coupling(signal.coupling, scale * noise["coupling"])
    coordinates = _array(basis.coordinates(gradient))
    recoverable = np.full(probes, _recoverable(coordinates**2, _array(basis.eigenvalues)))
    shift = _relative_shift(SplitMoments(*plain), SplitMoments(dominant, bulk))
    return Produced(SplitMoments(dominant, bulk, coupling), recoverable, shift)


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
    dominant_images = coordinates @ basis.images.mT
    scale = gradient_batch / batch_size
    sides: dict[str, SubspaceMoments] = {}
    for name, grams in tables.items():
        pairs = [_pseudo_values(_array(gram)) for gram in grams]
        sides[name] = SubspaceMoments(
            CurvatureMoments(*(signal for signal, _ in pairs)), CurvatureMoments(*(scale * noise for _, noise in pairs))
        )
    signal, noise = _pseudo_values(_array(dominant_images @ bulk.mT))
    squares = np.stack(
        [_pseudo_values(np.outer(c, c))[0] for c in _array(coordinates).T], axis=1
    )  # unbiased g_i² per eigenvector, (n, k)
    recoverable = np.array([_recoverable(row, _array(basis.eigenvalues)) for row in squares])
    moments = SplitMoments(sides["dominant"], sides["bulk"], Coupling(signal, scale * noise))
    return Produced(moments, recoverable, float("nan"))


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
    lifted = basis.images @ along_inside  # H P h
    coupling = _array(lifted @ along_outside)
    dominant = (inside @ inside, inside @ image_inside, image_inside @ image_inside)
    bulk = (outside @ outside, outside @ image, image_outside @ image_outside)
    descent = None
    if other:
        inner = along_inside @ basis.coordinates(lifted)
        outer = along_outside @ image - along_outside @ lifted
        descent = (
            Descent(_array(inside @ along_inside), _array(inner)),
            Descent(_array(outside @ along_outside), _array(outer)),
        )
    return _Signal(CurvatureMoments(*map(_array, dominant)), CurvatureMoments(*map(_array, bulk)), coupling, descent)


def _exact_noise(
    operator: CurvatureOperator,
    loss_fn: Callable[[Any, Any], Tensor],
    basis: Basis,
    gradient: Tensor,
    probes: int,
    seed: int,
) -> tuple[dict[str, Array], Tensor]:
    """Per-sample covariance: its exact dominant moments and bulk trace, and probes z with E zzᵀ = Σ, ``(m, P)``.

    A probe combines the deviations of *all* samples with random signs: far lighter tails than single samples have.
    """
    model, vector, total = operator.model, operator.vector, operator.samples
    generator = torch.Generator(device=operator.device).manual_seed(seed)
    inner = basis.vectors.mT @ basis.images
    sums = torch.zeros(5, dtype=operator.dtype, device=operator.device)
    sources = torch.zeros(probes, vector.size, dtype=operator.dtype, device=operator.device)
    mean = torch.zeros_like(gradient)
    with operator.reading() as batches:
        for batch in batches:
            for rows in per_sample_gradients(model, loss_fn, vector, batch):
                rows = rows.detach()
                mean += rows.sum(dim=0) / total
                deviation = rows - gradient
                inside, image = basis.coordinates(deviation), deviation @ basis.images
                sums[0] += inside.square().sum()
                sums[1] += (inside * image).sum()
                sums[2] += image.square().sum()
                sums[3] += basis.bulk(deviation).square().sum()
                sums[4] += ((inside @ inner) * inside).sum()
                signs = torch.randint(0, 2, (probes, len(rows)), generator=generator, device=operator.device)
                sources += (2.0 * signs.to(operator.dtype) - 1.0) @ deviation
    off = float((mean - gradient).norm() / gradient.norm())
    if not off <= _MEAN_TOLERANCE:
        remedy = "must be the mean over samples along the leading dimension; the population target needs no such loss"
        raise InvalidArgument("loss_fn", f"per-sample gradients off their mean by {off:.2g}", remedy)
    values = _array(sums / total)
    names = ("dominant_0", "dominant_1", "dominant_2", "bulk_0", "kept_inside")
    found = {name: value[()] for name, value in zip(names, values, strict=True)}
    found["coupling"] = found["dominant_1"] - found.pop("kept_inside")
    return found, sources / math.sqrt(total)


def _third_derivative(
    operator: CurvatureOperator, loss_fn: Callable[[Any, Any], Tensor], directions: Tensor, step: float
) -> Tensor:
    """T[v, v] of each row v ``(m, P)``: (∇L(θ + ηv) + ∇L(θ − ηv) − 2∇L(θ))/η², over the step η itself."""
    here = operator.vector.current()
    found = torch.zeros_like(directions)
    with operator.reading() as batches:
        for batch in batches:
            weight = next(tensors_of(batch)).shape[0] / operator.samples
            middle = gradient_at(operator.model, loss_fn, operator.vector, batch, here)
            for row, direction in enumerate(directions):
                ends = [
                    gradient_at(operator.model, loss_fn, operator.vector, batch, here + sign * step * direction)
                    for sign in (1.0, -1.0)
                ]
                found[row] += weight * (ends[0] - middle + (ends[1] - middle)) / step**2
    return found


def _with_third(part: SubspaceMoments, bent: Array) -> SubspaceMoments:
    """Second moments with ⟨Sg, T[h, h]⟩ (first row) added to the signal's and ⟨Sg, T[ξ, ξ]⟩ to the noise's."""
    signal, noise = part.signal, part.noise
    return SubspaceMoments(
        CurvatureMoments(signal.zeroth, signal.first, signal.second + bent[0]),
        CurvatureMoments(noise.zeroth, noise.first, noise.second + bent[1:]),
        part.descent,
    )


def _relative_shift(plain: SplitMoments, bent: SplitMoments) -> float:
    """|η* with the third derivative / η* without it − 1|, of the mean moments; inf where either does not exist."""
    without, within = (critical_step_size(split.mean(0)).value for split in (plain, bent))
    shift = abs(float(within / without) - 1.0)
    return shift if math.isfinite(shift) else math.inf


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


def _recoverable(squares: Array, eigenvalues: Array) -> float:
    return float(0.5 * np.sum(squares / eigenvalues)) if np.all(eigenvalues > 0) else float("nan")


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
