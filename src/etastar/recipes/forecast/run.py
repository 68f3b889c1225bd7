"""Forecasts along a run and the drops that really come: training, decaying copies, and the numbers of both."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch

from etastar.errors import InvalidArgument
from etastar.network.curvature import HessianOperator
from etastar.network.forecast import DecayForecast, LossForecast, decay_forecast
from etastar.network.producer import Basis
from etastar.network.subspace import SubspaceTracker
from etastar.recipes.networks import Network, RunPlan, at_least, load_run
from etastar.uncertainty import Estimate, mean_of

__all__ = ["WITHIN", "CheckpointForecast", "ForecastPlan", "ForecastRun", "forecast_decay"]

Progress = Callable[[str, int, int], None]
Kind = Literal["decayed", "quadratic", "simple", "larger_batch"]
_KINDS: tuple[Kind, ...] = ("decayed", "quadratic", "simple", "larger_batch")
WITHIN = 0.15  # of the drop measured: how near a forecast is asked to come
_SMALL = 100_000  # parameters


@dataclass(frozen=True, slots=True)
class ForecastPlan(RunPlan):
    """What to run; a zero takes the recipe's own value.

    Attributes:
        checkpoints: How many, evenly spread, the last one at the end: the first part of the run is the transient, in
            which nothing has equilibrated and the noise matters little.
        factor: By what the step is multiplied, and the larger batch divided.
        decayed_steps: T; 0 takes ⌈3/(factor·η·λ_k)⌉ at each checkpoint: until the dominant subspace has settled.
        repeats: Decayed runs at each checkpoint.
        samples: The run has only the first so many training samples, and they are its loss; 0 for all there are.
    """

    checkpoints: int = 10
    factor: float = 0.1
    decayed_steps: int = 0
    repeats: int = 4
    samples: int = 0

    def load(self) -> tuple[Self, Network]:
        """As every plan's, the network with the training samples of the run alone."""
        plan, network = load_run(self)
        most = len(network.train[0])
        plan = replace(plan, samples=plan.samples or most)
        at_least(plan, decayed_steps=0, checkpoints=1, repeats=2)
        if not 1 <= plan.samples <= most:
            raise InvalidArgument("samples", plan.samples, f"must be between 1 and {most}")
        if plan.checkpoints > plan.steps:
            raise InvalidArgument("checkpoints", plan.checkpoints, f"must be at most the {plan.steps} steps of the run")
        if not 0 < plan.factor < 1:
            raise InvalidArgument("factor", plan.factor, "must lie between 0 and 1")
        return plan, replace(network, train=(network.train[0][: plan.samples], network.train[1][: plan.samples]))


@dataclass(frozen=True, slots=True)
class CheckpointForecast:
    """One checkpoint.

    Attributes:
        step: Steps taken before.
        forecast: From the checkpoint alone.
        basis_products: Products that its basis took, besides the forecast's own.
        decayed: Measured drop of the decayed runs, mean over the repeats, [loss].
        larger_batch: The same for the larger batch.
        seconds: Wall-clock time of the forecast with its basis, and of one decayed run.
    """

    step: int
    forecast: DecayForecast
    basis_products: int
    decayed: Estimate
    larger_batch: Estimate
    seconds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class ForecastRun:
    """Forecasts and what came.

    Attributes:
        plan: What was asked, zeros filled in.
        rows: One per checkpoint.
    """

    plan: ForecastPlan
    rows: list[CheckpointForecast]

    def ratios(self, kind: Kind = "decayed") -> list[float]:
        """Forecast over measured drop; "quadratic" and "simple" forecast the decay too. NaN where unstable."""
        picks: dict[Kind, Callable[[CheckpointForecast], float]] = {
            "decayed": lambda row: row.forecast.decayed.drop.value / row.decayed.value,
            "larger_batch": lambda row: row.forecast.larger_batch.drop.value / row.larger_batch.value,
            "quadratic": lambda row: row.forecast.decayed.quadratic / row.decayed.value,
            "simple": lambda row: row.forecast.simple / row.decayed.value,
        }
        return [float(picks[kind](row)) for row in self.rows]

    def within(self, kind: Kind = "decayed") -> int:
        """At how many checkpoints the forecast came within `WITHIN` of the drop."""
        return sum(abs(ratio - 1) <= WITHIN for ratio in self.ratios(kind))

    def covered(self, kind: Literal["decayed", "larger_batch"] = "decayed") -> int:
        """At how many checkpoints the intervals of forecast and measured drop meet."""
        pairs = ((getattr(row.forecast, kind).drop, getattr(row, kind)) for row in self.rows)
        return sum(bool(forecast.low <= drop.high and drop.low <= forecast.high) for forecast, drop in pairs)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where a number does not exist."""
        plan = self.plan
        return {
            "recipe": plan.recipe,
            "loss": plan.loss,
            "seed": plan.seed,
            "step_size": plan.step_size,
            "batch_size": plan.batch_size,
            "rank": plan.rank,
            "factor": plan.factor,
            "repeats": plan.repeats,
            "samples": plan.samples,
            "within": {kind: self.within(kind) for kind in _KINDS},
            "covered": {kind: self.covered(kind) for kind in ("decayed", "larger_batch")},
            "checkpoints": [
                {
                    "step": row.step,
                    "loss": row.forecast.loss,
                    "simple": _plain(row.forecast.simple),
                    "products": row.forecast.products,
                    "basis_products": row.basis_products,
                    "decayed": _side(row.forecast.decayed, row.decayed),
                    "larger_batch": _side(row.forecast.larger_batch, row.larger_batch),
                    "seconds": {"forecast": row.seconds[0], "decayed_run": row.seconds[1]},
                }
                for row in self.rows
            ],
        }


def forecast_decay(plan: ForecastPlan, progress: Progress | None = None) -> ForecastRun:
    """Train, forecast, and really decay, at each checkpoint; the loss is the mean over all of the run's samples.

    Raises:
        InvalidArgument: An unknown recipe, or a number out of range.
    """
    plan, network = plan.load()
    # Small models take all samples at once; large ones no more than a graph can hold.
    batches = network.curvature_batches(plan.samples, 2048 if _parameters(network) < _SMALL else 64)
    operator = HessianOperator(network.model, network.loss_fn, batches)
    tracker = SubspaceTracker(operator, plan.rank, seed=plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    rows: list[CheckpointForecast] = []
    done = 0
    for index in range(plan.checkpoints):
        _tell(progress, "training and decaying", index, plan.checkpoints)
        step = round((index + 1) * plan.steps / plan.checkpoints)
        _take_steps(network.model, network, step - done, plan.step_size, plan.batch_size, generator)
        done = step
        rows.append(_at(network, operator, tracker, step, plan))
    _tell(progress, "training and decaying", plan.checkpoints, plan.checkpoints)
    return ForecastRun(plan, rows)


def _at(
    network: Network, operator: HessianOperator, tracker: SubspaceTracker, step: int, plan: ForecastPlan
) -> CheckpointForecast:
    begin = time.perf_counter()
    with operator.held():
        found = tracker.refresh()
        basis = Basis(found.basis, None, found.eigenvalues.to(found.basis))
        forecast = decay_forecast(
            operator,
            network.loss_fn,
            basis,
            plan.batch_size,
            plan.step_size,
            factor=plan.factor,
            steps=plan.decayed_steps or None,
            seed=plan.seed + step,
        )
    middle = time.perf_counter()
    decayed = _measured(network, operator, step, forecast.loss, forecast.decayed, plan)
    seconds = middle - begin, (time.perf_counter() - middle) / plan.repeats
    larger = _measured(network, operator, step, forecast.loss, forecast.larger_batch, plan)
    return CheckpointForecast(step, forecast, found.products, decayed, larger, seconds)


def _measured(
    network: Network, operator: HessianOperator, step: int, loss: float, forecast: LossForecast, plan: ForecastPlan
) -> Estimate:
    """The drop that comes when copies of the network take the steps of a forecast."""
    drops: list[float] = []
    for repeat in range(plan.repeats):
        model = copy.deepcopy(network.model)
        seed = np.random.SeedSequence((plan.seed, step, repeat)).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        _take_steps(model, network, forecast.plan.steps, forecast.plan.step_size, forecast.plan.batch_size, generator)
        with operator.reading() as batches, torch.no_grad():
            parts = [len(batch[0]) * float(network.loss_fn(model, batch)) for batch in batches]
        drops.append(loss - sum(parts) / operator.samples)
    return mean_of(drops)


def _take_steps(
    model: torch.nn.Module, network: Network, steps: int, step_size: float, size: int, generator: torch.Generator
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=step_size)
    for _ in range(steps):
        optimizer.zero_grad()
        network.loss_fn(model, network.draw(generator, size)).backward()
        optimizer.step()


def _parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.model.parameters())


def _side(forecast: LossForecast, measured: Estimate) -> dict[str, Any]:
    return {
        "step_size": forecast.plan.step_size,
        "batch_size": forecast.plan.batch_size,
        "steps": forecast.plan.steps,
        "outcome": forecast.outcome.name,
        "forecast": _estimate(forecast.drop),
        "dominant": _estimate(forecast.dominant),
        "bulk": _estimate(forecast.bulk),
        "quadratic": _plain(forecast.quadratic),
        "noise": _plain(forecast.noise),
        "run_deviation": _plain(forecast.run_deviation),
        "measured": _estimate(measured),
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    names = ("value", "standard_error", "low", "high", "level")
    return {name: _plain(getattr(estimate, name)) for name in names}


def _plain(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _tell(progress: Progress | None, name: str, done: int, total: int) -> None:
    if progress is not None:
        progress(name, done, total)
