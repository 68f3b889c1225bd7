"""Training a named network with constant-step SGD, measured by the meter and the gauge while it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from etastar.errors import InvalidArgument
from etastar.history import History, Measurement
from etastar.network import AlignmentMeter, GaugeOutcome, GaugeSummary, StepGauge
from etastar.recipes.networks import Network, RunPlan, at_least, load_run
from etastar.uncertainty import Estimate

__all__ = ["TrainedRun", "TrainingPlan", "train"]

Progress = Callable[[str, int, int], None]
_NO_TURN = 100.0  # a shift this large stands for one that makes or unmakes a turn
_GAUGE_EVERY = 64  # steps between second gradients: 3 % of a step's cost


@dataclass(frozen=True, slots=True)
class TrainingPlan(RunPlan):
    """The options of ``etastar train``; a zero takes the recipe's own value.

    Attributes:
        every: Steps between measurements, at least.
        overhead: Share of the run's time that measuring may take; None for no limit.
        curvature_samples: The first so many training samples are the loss that is measured.
        metered: Whether meter and gauge are attached.
        live: Where to write the history while the run goes.
    """

    every: int = 0
    overhead: float | None = None
    curvature_samples: int = 0
    metered: bool = True
    live: Path | None = None

    def load(self) -> tuple[Self, Network]:
        """As every plan's, with the training samples there are where none are named."""
        plan, network = load_run(self)
        own, most = network.settings, len(network.train[0])
        plan = replace(
            plan, every=plan.every or own.every, curvature_samples=plan.curvature_samples or own.curvature_samples
        )
        at_least(plan, every=1)
        if not 1 <= plan.curvature_samples <= most:
            raise InvalidArgument("curvature_samples", plan.curvature_samples, f"must be between 1 and {most}")
        return plan, network


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRun:
    """A run and what was measured on the way.

    Attributes:
        plan: What was asked, zeros filled in.
        history: Measurements; empty without the meter.
        steps: Steps at which losses were evaluated, ``(T,)``.
        training_loss: Loss over all training samples, ``(T,)``.
        held_out_loss: Loss over the samples kept aside, ``(T,)``.
        skipped: Measurements that failed: step and reason.
        gauge: The last window of the gauge; None without the meter.
    """

    plan: TrainingPlan
    history: History
    steps: list[int]
    training_loss: list[float]
    held_out_loss: list[float]
    skipped: list[tuple[int, str]]
    gauge: GaugeSummary | None

    @property
    def gauge_verdict(self) -> str:
        """What the gauge says, with advice for those who have this run's options only; empty without it."""
        if self.gauge is None:
            return ""
        if not np.isfinite(self.training_loss[-1]):
            return "the run diverged: take a smaller step size"
        few = self.gauge.outcome is GaugeOutcome.TOO_FEW_STEPS
        return "not enough steps for the gauge: train longer" if few else self.gauge.verdict

    def rows(self, most: int = 16, window: int = 8) -> list[list[str]]:
        """Formatted rows of windows of measurements: step, θ and η* with intervals, verdict; about `most` of them."""
        shown = self.history.rolling(window) if len(self.history) > window else self.history
        return [
            [f"{row.step:,}", _in_short(row.alignment, ".3f"), _critical_step(row), row.verdict]
            for row in list(shown)[:: max(1, len(shown) // most)]
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where a number does not exist."""
        columns = {
            name: [_plain(value) for value in column.tolist()] for name, column in self.history.columns().items()
        }
        return {
            "recipe": self.plan.recipe,
            "loss": self.plan.loss,
            "seed": self.plan.seed,
            "steps": self.steps,
            "training_loss": [_plain(value) for value in self.training_loss],
            "held_out_loss": [_plain(value) for value in self.held_out_loss],
            "measurements": columns,
            "verdicts": [row.verdict for row in self.history],
            "skipped": [list(entry) for entry in self.skipped],
        }


def train(plan: TrainingPlan, progress: Progress | None = None) -> TrainedRun:
    """Train and measure; mini-batches are drawn with replacement from `plan.seed`.

    Raises:
        InvalidArgument: An unknown recipe, or a number out of range.
    """
    plan, network = plan.load()
    everything = len(network.train[0])
    partial = plan.curvature_samples < everything
    optimizer = torch.optim.SGD(network.model.parameters(), lr=plan.step_size)
    meter = handle = gauge = None
    if plan.metered:
        meter = AlignmentMeter(
            network.model,
            network.loss_fn,
            network.curvature_batches(plan.curvature_samples),
            plan.rank,
            gradient_batches=network.curvature_batches(everything) if partial else None,
            every=plan.every,
            overhead=plan.overhead,
            seed=plan.seed,
        )
        handle = meter.attach(optimizer, plan.batch_size, path=plan.live)
        gauge = StepGauge(
            optimizer,
            parameters=network.model.named_parameters(),
            every=_GAUGE_EVERY,
            batch_size=plan.batch_size,
            sampling="independent",
            seed=plan.seed,
        )
    seen, training, held_out = _run(network, optimizer, plan, gauge, progress)
    if handle is not None:
        handle.remove()
    history, skipped = (History(), []) if meter is None else (meter.history, meter.skipped)
    summary = None if gauge is None else gauge.summary()
    return TrainedRun(plan, history, seen, training, held_out, skipped, summary)


def _run(
    network: Network,
    optimizer: torch.optim.Optimizer,
    plan: TrainingPlan,
    gauge: StepGauge | None,
    progress: Progress | None,
) -> tuple[list[int], list[float], list[float]]:
    generator, second = (torch.Generator().manual_seed(plan.seed + offset) for offset in (0, 1))
    count = plan.steps

    def loss_of(source: torch.Generator) -> Callable[[], torch.Tensor]:
        batch = network.draw(source, plan.batch_size)
        return lambda: network.loss_fn(network.model, batch)

    looked = max(1, count // 100)
    steps: list[int] = []
    losses: list[tuple[float, float]] = []
    for step in range(count + 1):
        if step % looked == 0 or step == count:
            steps.append(step)
            losses.append(network.losses())
            if progress is not None:
                progress(f"training, loss {losses[-1][0]:.4g}", step, count)
        if step == count:
            break
        if gauge is not None and gauge.due:
            gauge.second(loss_of(second))
        optimizer.zero_grad()
        loss_of(generator)().backward()
        optimizer.step()
    return steps, [first for first, _ in losses], [second for _, second in losses]


def _critical_step(row: Measurement) -> str:
    estimate, shift = row.critical_step_size, float(row.certificate.get("third_derivative_shift", 0.0))
    if shift >= _NO_TURN:
        return "none: beyond the quadratic model θ turns at no step near it"
    if not row.expansion_holds:
        return f"not to be trusted: orders beyond the quadratic model move it by {shift:.0%}"
    return _in_short(estimate, ".4g")


def _in_short(estimate: Estimate, form: str) -> str:
    if not estimate.resolved:
        return "unresolved"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
