"""The expectation of the ratio: E θ' itself, exactly by quadrature, and what it does to the critical step.

The criteria judge the ratio of expected energies. With Gaussian noise the expected ratio E θ' is one integral
(theory §6), and both differ by terms that do not vanish with the dimension at a fixed rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import alignment, critical_step_size
from etastar.errors import InvalidArgument
from etastar.quadratic import exact
from etastar.quadratic.arguments import read_times, single_step_size
from etastar.quadratic.modes import Modes, read_state
from etastar.quadratic.noise import Noise
from etastar.quadratic.problem import Quadratic
from etastar.quadratic.stationary import stationary

__all__ = [
    "RatioExpectation",
    "corrected_critical_step",
    "expected_alignment",
    "expected_alignment_after",
    "expected_alignment_stationary",
    "ratio_bound",
]

Array = npt.NDArray[np.float64]
# The integrand in v = log s is analytic in a strip of half-width π/2 and decays at least like e^(−|v|/2):
# the trapezoidal rule at this spacing errs by e^(−2π·(π/2)/h) ≈ 1e-43, and the ends by e^(−42).
_SPACING, _LEFT, _RIGHT = 0.1, -42.0, 84.0
_TILE = 64  # blocks at a time: their integrands stay in the cache


@dataclass(frozen=True, slots=True)
class RatioExpectation:
    """Critical steps for other averages than the ratio of expected energies, to first order in the noise ratio ν.

    Attributes:
        ratio_of_means: η*, of the ratio of expected energies, ``(*batch)``.
        mean_of_ratio: Where E θ' = θ, to first order; not to be used for k ≤ 2.
        mean_of_log: Where E log(E_D'/E_B') is unchanged, to first order.
    """

    ratio_of_means: Any
    mean_of_ratio: Any
    mean_of_log: Any


def expected_alignment_after(problem: Quadratic, gradient: Any = None, *, energy: Any = None, step_size: float) -> Any:
    """E θ' after one step with independent Gaussian noise, by quadrature to near round-off; ``(*batch)``.

    E θ' = ∫₀^∞ [Σ_D μτ²/w + y²/w²]·Π w^{−μ/2} e^{−s y²/w} ds, w = 1 + 2sτ², τ² = η²λ²κ², y = (1 − ηλ)g.

    Raises:
        InvalidArgument: A full covariance, or noise that differs within a block and only energies given.
    """
    eta = single_step_size(step_size)
    modes, squares = _independent(problem, gradient, energy)
    decay = exact.Decay.of(modes, eta)
    with np.errstate(over="ignore"):
        mean = decay.contraction**2 * squares
        spread = decay.injected / modes.multiplicities
    flat = mean.reshape(-1, mean.shape[-1])
    values = [_quadrature(row, spread, modes.multiplicities, modes.cut) for row in flat]
    return np.array(values).reshape(mean.shape[:-1])[()]


def expected_alignment(
    problem: Quadratic, gradient: Any = None, *, energy: Any = None, step_size: float, times: Any
) -> Array:
    """E θ_t along a run of plain SGD with independent Gaussian noise, by the same quadrature; ``(*batch, T)``.

    Raises:
        InvalidArgument: A full covariance, noise that differs within a block and only energies given, or bad times.
    """
    eta, when = single_step_size(step_size), read_times(times)
    modes, squares = _independent(problem, gradient, energy)
    decay = exact.Decay.of(modes, eta)
    lost, injected = decay.loss_of_energy, decay.injected / modes.multiplicities
    rows = squares.reshape(-1, squares.shape[-1])
    found = np.empty((len(rows), when.size))
    for column, t in enumerate(when.astype(np.float64)):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            kept = np.exp(t * decay.log_ratio)
            spread = injected * np.where(lost == 0, t, -np.expm1(t * decay.log_ratio) / lost)
        for index, row in enumerate(rows):
            found[index, column] = _quadrature(kept * row, spread, modes.multiplicities, modes.cut)
    return found.reshape(*squares.shape[:-1], when.size)


def expected_alignment_stationary(problem: Quadratic, step_size: float) -> float:
    """E θ in the stationary state of independent Gaussian noise, by the same quadrature.

    Differs from θ_∞, the ratio of stationary energies, by a term that shrinks with the rank and not with d.

    Raises:
        UnstableStep: No stationary state.
        InvalidArgument: A full covariance.
    """
    noise = _diagonal(problem)
    stationary(problem.modes, step_size)  # refuses steps without a stationary state
    modes = problem.modes if problem.modes.uniform else problem.modes.expand(problem.spectrum, noise)
    floor = exact.Decay.of(modes, single_step_size(step_size)).floor / modes.multiplicities
    return _quadrature(np.zeros_like(floor), floor, modes.multiplicities, modes.cut)


def corrected_critical_step(problem: Quadratic, gradient: Any = None, *, energy: Any = None) -> RatioExpectation:
    """Critical steps for E θ' and for E log(E_D'/E_B'), to first order (theory §6); NaN where η* does not exist.

    η* + φ[θν_D − (1 − θ)ν_B]/(2(a_D − a_B)) and η* + φ(ν_D − ν_B)/(4(a_D − a_B)), φ = 1 − 2η*a_D + η*²(b_D + r_D).

    Raises:
        InvalidArgument: A full covariance, or noise that differs within a block and only energies given.
    """
    modes, squares = _independent(problem, gradient, energy)
    split = modes.split_moments(squares)
    eta, theta = np.asarray(critical_step_size(split).value), np.asarray(alignment(split))
    lam, D, B = modes.eigenvalues, split.dominant, split.bulk
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        injected = (eta[..., None] * lam) ** 2 * (modes.variances / modes.multiplicities)
        kept = (1.0 - eta[..., None] * lam) ** 2 * squares
        spread_dominant, spread_bulk = modes.total(2.0 * modes.multiplicities * injected**2 + 4.0 * kept * injected)
        energy_dominant, energy_bulk = modes.total(kept + modes.multiplicities * injected)
        nu_dominant, nu_bulk = spread_dominant / energy_dominant**2, spread_bulk / energy_bulk**2
        slope = D.signal.first / D.signal.zeroth - B.signal.first / B.signal.zeroth
        phi = energy_dominant / D.signal.zeroth
        ratio = eta + phi * (theta * nu_dominant - (1.0 - theta) * nu_bulk) / (2.0 * slope)
        log = eta + phi * (nu_dominant - nu_bulk) / (4.0 * slope)
    return RatioExpectation(eta[()], ratio[()], log[()])


def ratio_bound(problem: Quadratic, gradient: Any = None, *, energy: Any = None, step_size: float) -> Any:
    """Bound 2η√(‖HΣH‖/E‖g'‖²) on |E θ' − θ̄|, θ̄ the ratio of expected energies; any Gaussian noise (theory §6)."""
    eta = single_step_size(step_size)
    modes, state = problem.modes, read_state(problem.spectrum, gradient, energy)
    decay = exact.Decay.of(modes, eta)
    noise = problem.additive("ratio_bound")
    product = np.repeat(decay.product, modes.multiplicities) if noise.variances.ndim else decay.product
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        after = (decay.contraction**2 * state.energy + decay.injected).sum(axis=-1)
        if noise.matrix is not None:
            norm = float(np.linalg.norm(np.outer(product, product) * noise.matrix, 2))  # η²‖HΣH‖
        else:
            norm = float(np.max(product**2 * noise.variances))
        return (2.0 * np.sqrt(norm / after))[()]


def _independent(problem: Quadratic, gradient: Any, energy: Any) -> tuple[Modes, Array]:
    """Blocks of independent noise, isotropic within each, and the squared gradient on them."""
    noise = _diagonal(problem)
    modes, state = problem.modes, read_state(problem.spectrum, gradient, energy)
    if modes.uniform:
        return modes, state.energy
    if state.gradient is None:
        raise InvalidArgument("energy", "block energies", "this noise differs within a block; give gradient=")
    return modes.expand(problem.spectrum, noise), state.gradient**2


def _diagonal(problem: Quadratic) -> Noise:
    noise = problem.additive("the expectation of the ratio")
    if noise.matrix is not None:
        raise InvalidArgument("noise", "a full covariance", "the quadrature takes isotropic or diagonal noise")
    return noise


def _quadrature(mean: Array, spread: Array, counts: npt.NDArray[np.int64], cut: int) -> float:
    total = float(np.sum(mean + counts * spread))
    if not (total > 0 and np.isfinite(total)):
        return float("nan")
    v = np.arange(_LEFT, _RIGHT, _SPACING)
    s = np.exp(v)
    mean, spread = mean / total, spread / total
    log_density, share = np.zeros(v.size), np.zeros(v.size)
    for begin in range(0, mean.size, _TILE):
        part = slice(begin, begin + _TILE)
        y, tau, count = mean[part, None], spread[part, None], counts[part, None]
        w = 1.0 + 2.0 * s * tau
        log_density -= np.sum(0.5 * count * np.log1p(2.0 * s * tau) + s * y / w, axis=0)
        inside = slice(0, max(0, cut - begin))
        share += np.sum((count * tau / w + y / w**2)[inside], axis=0)
    return float(np.sum(share * np.exp(log_density + v)) * _SPACING)
