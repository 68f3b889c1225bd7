"""The quadratic model of a loss at a checkpoint, and expected losses of SGD on it, checked where they lead.

Gradient, Hessian and noise are reduced to a few Ritz pairs, in which any number of steps of any size has a closed
form. The point that the model predicts is then looked at, which makes good most of what the model misses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from etastar.network.batches import tensors_of
from etastar.network.curvature import CurvatureOperator
from etastar.network.isolation import moved
from etastar.network.krylov import RitzSpace, quadrature, ritz_space
from etastar.network.noise import noise_outside, sample_noise
from etastar.network.persample import gradient_at, loss_at
from etastar.network.producer import Basis
from etastar.network.relaxation import geometric, path_drop, put_back, response
from etastar.uncertainty import Estimate, mean_of

__all__ = ["ForecastOutcome", "LocalModel", "LossForecast", "Plan"]

Array = npt.NDArray[np.float64]
LossFunction = Callable[[Any, Any], Tensor]
_DEPTH = 4  # products a noise probe: the noise's share of the drop is small, and smooth in λ over the bulk
_TOLERANCE = 1e-3  # of the drop: where Lanczos stops
_LATER_PROBES = 8  # of the trace that the space does not see, at the predicted end


class ForecastOutcome(Enum):
    """Whether there is a forecast; the value says why not."""

    FORECAST = "the interval excludes zero change"
    UNRESOLVED = "the interval includes zero change"
    UNSTABLE = (
        "the quadratic model has no say over so many steps: the step reaches 2/λ₁, negative curvature grows, or the "
        "loss is not finite where it leads"
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps of plain SGD to come.

    Attributes:
        step_size: η' from here on, [parameter²/loss].
        batch_size: b' from here on.
        steps: T.
        noise: Covariance of a mini-batch's gradient over that of a single sample: 1/b' with replacement.
    """

    step_size: float
    batch_size: int
    steps: int
    noise: float


@dataclass(frozen=True, slots=True)
class LossForecast:
    """The expected loss drop after a plan from a checkpoint.

    The drop is that to the point which the quadratic model predicts, less what noise puts back. Intervals hold the
    sampling error of the noise probes and, added to it, two allowances: for changing curvature, what the gradient
    found at that point beyond the predicted one would change had it acted from the first step; for changing noise,
    half the difference between Σ here and there. How much a single run wanders about its mean is `run_deviation`.

    Attributes:
        plan: What is done from here on.
        drop: L(θ) − E L(θ_T), [loss]; negative where the loss rises.
        dominant: What the dominant subspace gives of it; where both interact, each is credited half.
        bulk: The same for the bulk.
        quadratic: The drop by the quadratic model alone; NaN where unstable.
        noise: Loss that the noise of the T steps puts back, taken off in `drop`.
        run_deviation: Standard deviation of a single run's drop, by the quadratic model and the noise in the dominant
            subspace and the gradient's Krylov space.
        outcome: Whether there is a forecast.
    """

    plan: Plan
    drop: Estimate
    dominant: Estimate
    bulk: Estimate
    quadratic: float
    noise: float
    run_deviation: float
    outcome: ForecastOutcome


@dataclass(frozen=True, slots=True, eq=False)
class _ClosedForm:
    """A plan on the quadratic model, in the coordinates of the space.

    Attributes:
        shift: Expected displacement after the plan, ``(n,)``.
        predicted: Expected gradient there, ``(n,)``.
        drop: Loss that the noise-free path gives back.
        kept: Covariance of the end point over that of a single sample, entry by entry, ``(n, n)``.
        returned: Loss that the bulk's noise puts back, by each probe, ``(probes,)``.
    """

    shift: Array
    predicted: Array
    drop: float
    kept: Array
    returned: Array


@dataclass(frozen=True, slots=True, eq=False)
class _Noise:
    """Loss that the noise of a plan puts back.

    Attributes:
        quadratic: All of it, with Σ as it is at the checkpoint.
        dominant: Of the dominant subspace, exact for this Σ.
        bulk: Of the bulk, from probes.
        bulk_error: Standard error of it.
        allowance: Half-widths of both intervals.
        spread: Covariance of the end point in the coordinates of the space, ``(n, n)``.
    """

    quadratic: float
    dominant: float
    bulk: float
    bulk_error: float
    allowance: tuple[float, float]
    spread: Array


@dataclass(frozen=True, slots=True, eq=False)
class LocalModel:
    """The quadratic model at a checkpoint, in the coordinates that matter.

    Attributes:
        operator: Its batches are the loss.
        loss_fn: That loss.
        here: θ, ``(P,)``.
        loss: L(θ).
        space: Ritz pairs and the gradient.
        covariance: Σ of a single sample in the space, ``(n, n)``.
        outside: tr Σ outside the space.
        nodes: Of the spectral measure of each bulk noise probe, ``(probes, depth)``.
        weights: The same.
    """

    operator: CurvatureOperator
    loss_fn: LossFunction
    here: Tensor
    loss: float
    space: RitzSpace
    covariance: Array
    outside: float
    nodes: Array
    weights: Array

    @classmethod
    def at(
        cls,
        operator: CurvatureOperator,
        loss_fn: LossFunction,
        basis: Basis,
        plan: Plan,
        probes: int,
        seed: int,
    ) -> LocalModel:
        """Reduce the operator's loss to what forecasts need; `plan` is the one that Lanczos must be fine enough for."""
        gradient = operator.gradient()

        def drop(values: Array, coordinates: Array) -> float:
            with np.errstate(over="ignore", invalid="ignore"):
                return float(np.sum(path_drop(plan.step_size, values, plan.steps) * coordinates**2))

        space = ritz_space(operator, basis, gradient, drop, _TOLERANCE)
        noise = sample_noise(operator, loss_fn, space.vectors, gradient, probes, seed)
        dominant = Basis(space.vectors[:, : space.rank], None, basis.eigenvalues)
        nodes, weights = quadrature(operator, dominant.bulk(noise.probes), _DEPTH)
        outside = float(noise_outside(noise, space.vectors).mean())
        here, loss = operator.vector.current(), operator.loss()
        return cls(operator, loss_fn, here, loss, space, noise.dominant.numpy(), outside, nodes, weights)

    def simple(self, noise: float) -> float:
        """The formula of theory §3; `noise` is η/b."""
        k, values = self.space.rank, self.space.values
        if not np.all(values[:k] > 0):
            return math.nan
        bulk = float(np.diag(self.covariance)[k:].sum()) + self.outside
        return float(0.5 * np.sum(self.space.gradient[:k] ** 2 / values[:k])) + noise * bulk / 4

    def forecast(self, plan: Plan) -> LossForecast:
        """What the plan brings."""
        form = _closed_form(self, plan)
        if form is None:
            return _no_forecast(plan)
        path, end = self._look(form.shift)
        if not (math.isfinite(sum(path)) and bool(end.isfinite().all())):
            return _no_forecast(plan)
        noise, bent = self._noise(form, end), self._allowance(plan, form, end)
        dominant = _widened(path[0] - noise.dominant, 0.0, noise.allowance[0] + bent[0])
        bulk = _widened(path[1] - noise.bulk, noise.bulk_error, noise.allowance[1] + bent[1])
        drop = _widened(dominant.value + bulk.value, noise.bulk_error, sum(noise.allowance) + sum(bent))
        slope, bend = self.space.coordinates(end), self.space.values[:, None] * noise.spread
        variance = float(slope @ noise.spread @ slope + 0.5 * np.sum(bend * bend.T))
        return LossForecast(
            plan=plan,
            drop=drop,
            dominant=dominant,
            bulk=bulk,
            quadratic=form.drop - noise.quadratic,
            noise=noise.dominant + noise.bulk,
            run_deviation=math.sqrt(max(variance, 0.0)),
            outcome=ForecastOutcome.FORECAST if drop.low > 0 or drop.high < 0 else ForecastOutcome.UNRESOLVED,
        )

    def _look(self, shift: Array) -> tuple[tuple[float, float], Tensor]:
        """Loss given back by the dominant and the bulk part of a displacement, and the gradient at its end."""
        inside = np.where(np.arange(len(shift)) < self.space.rank, shift, 0.0)
        points = [self.here + self.space.lift(part) for part in (inside, shift - inside, shift)]
        losses, end = [0.0, 0.0, 0.0], self.here.new_zeros(self.here.shape)
        operator, known = self.operator, (self.operator.model, self.loss_fn, self.operator.vector)
        with operator.reading() as batches:
            for batch in batches:
                weight = next(tensors_of(batch)).shape[0] / operator.samples
                for index, point in enumerate(points):
                    losses[index] += weight * float(loss_at(*known, batch, point))
                end.add_(gradient_at(*known, batch, points[2]), alpha=weight)
        alone, other, both = losses
        dominant = 0.5 * (self.loss - alone + other - both)
        return (dominant, self.loss - both - dominant), end

    def _noise(self, form: _ClosedForm, end: Tensor) -> _Noise:
        """The loss that noise puts back, with Σ the mean of what it is here and what it is at the predicted end.

        The truth lies between them where Σ changes one way only; hence half the difference is allowed for.
        """
        k, parameters = self.space.rank, self.operator.vector
        with moved(parameters.tensors, parameters.split(self.space.lift(form.shift))):
            later = sample_noise(self.operator, self.loss_fn, self.space.vectors, end, _LATER_PROBES, 0)
        covariances = self.covariance, later.dominant.numpy()
        bulks = [float(np.diag(covariance)[k:].sum()) for covariance in covariances]
        share = (
            (bulks[1] + float(noise_outside(later, self.space.vectors).mean())) / (bulks[0] + self.outside)
            if bulks[0] + self.outside
            else 1.0
        )
        first, last = (
            float(0.5 * np.sum((self.space.values * np.diag(covariance * form.kept))[:k])) for covariance in covariances
        )
        probed = mean_of(form.returned)
        begin, factor = float(probed.value), 0.5 * (1 + share)
        return _Noise(
            quadratic=first + begin,
            dominant=0.5 * (first + last),
            bulk=factor * begin,
            bulk_error=factor * float(probed.standard_error),
            allowance=(
                0.5 * abs(last - first),
                0.5 * abs(share - 1) * begin + factor * float(probed.high - probed.value),
            ),
            spread=0.5 * (covariances[0] + covariances[1]) * form.kept,
        )

    def _allowance(self, plan: Plan, form: _ClosedForm, end: Tensor) -> tuple[float, float]:
        """How much the force f = ∇L(θ_T) − predicted could change the loss, had it acted all along; by subspace.

        It would move the end by −φf, φ = (1 − (1 − ηλ)^T)/λ, and the loss there by −⟨∇L, φf⟩ + ½⟨φf, Hφf⟩. The true
        force grows from zero.
        """
        k, values = self.space.rank, self.space.values
        found = self.space.coordinates(end)
        missed = response(plan.step_size, values, plan.steps) * (found - form.predicted)
        change = np.abs(found * missed - 0.5 * values * missed**2)
        nodes, weights = quadrature(self.operator, (end - self.space.lift(found))[None], _DEPTH)
        reach = response(plan.step_size, nodes, plan.steps)
        outside = np.sum(weights * (reach - 0.5 * nodes * reach**2))
        return float(change[:k].sum()), float(change[k:].sum() + abs(outside))


def _closed_form(model: LocalModel, plan: Plan) -> _ClosedForm | None:
    """The plan on the quadratic model, or None where that grows without bound."""
    eta, steps, values, gradient = plan.step_size, plan.steps, model.space.values, model.space.gradient
    if eta * max(float(values.max()), float(model.nodes.max())) >= 2:
        return None
    x = eta * values
    with np.errstate(over="ignore", invalid="ignore"):
        form = _ClosedForm(
            shift=-response(eta, values, steps) * gradient,
            predicted=(1 - x) ** steps * gradient,
            drop=float(np.sum(path_drop(eta, values, steps) * gradient**2)),
            kept=plan.noise * eta**2 * geometric(x[:, None] + x - np.outer(x, x), steps),
            returned=plan.noise * np.sum(model.weights * put_back(eta, model.nodes, steps), axis=1),
        )
    parts = (form.shift, form.predicted, form.drop, form.kept, form.returned)
    return form if all(bool(np.all(np.isfinite(part))) for part in parts) else None


def _no_forecast(plan: Plan) -> LossForecast:
    nothing, nan = _widened(math.nan, math.nan, math.nan), math.nan
    return LossForecast(plan, nothing, nothing, nothing, nan, nan, nan, ForecastOutcome.UNSTABLE)


def _widened(value: float, error: float, half: float) -> Estimate:
    return Estimate(value, error, 0.0 * value, value - half, value + half, 0.9, bool(np.isfinite(value)))
