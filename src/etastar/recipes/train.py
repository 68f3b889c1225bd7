"""Training a named network with constant-step SGD, measured: history, report, and the numbers in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etastar.errors import InvalidArgument
from etastar.history import History, Measurement
from etastar.network.meter import AlignmentMeter
from etastar.recipes.networks import LossName, Network, load_network
from etastar.report import COLOURS, Figure, Line, Panel, Section, render_html, render_png, run_section

__all__ = ["TrainedRun", "TrainingPlan", "train", "write_run"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The options of ``etastar train``; a zero takes the recipe's own value."""

    recipe: str
    loss: LossName = "mse"
    steps: int = 2000
    step_size: float = 0.0
    batch_size: int = 0
    rank: int = 0
    every: int = 50
    overhead: float | None = None
    curvature_samples: int = 500
    metered: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRun:
    """A run and what was measured on the way.

    Attributes:
        plan: What was asked.
        history: Measurements; empty without the meter.
        steps: Steps at which losses were evaluated, ``(T,)``.
        training_loss: Loss over all training samples, ``(T,)``.
        held_out_loss: Loss over the samples kept aside, ``(T,)``.
        skipped: Measurements that failed: step and reason.
    """

    plan: TrainingPlan
    history: History
    steps: list[int]
    training_loss: list[float]
    held_out_loss: list[float]
    skipped: list[tuple[int, str]]

    def rows(self, most: int = 16, window: int = 8) -> list[list[str]]:
        """Formatted rows of windows of measurements: step, θ, η* with its interval, verdict; about `most` of them."""
        shown = self.history.rolling(window) if len(self.history) > window else self.history
        return [
            [f"{row.step:,}", f"{row.alignment.value:.4f}", _critical_step(row), row.verdict]
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
    if plan.steps < 1:
        raise InvalidArgument("steps", plan.steps, "must be at least 1")
    network = load_network(plan.recipe, plan.loss, plan.seed)
    size = plan.batch_size or network.batch_size
    eta = plan.step_size or network.step_size
    if not (np.isfinite(eta) and eta > 0):
        raise InvalidArgument("step_size", eta, "must be finite and positive")
    if not 1 <= size <= len(network.train[0]):
        raise InvalidArgument("batch_size", size, f"must be between 1 and {len(network.train[0])}")
    optimizer = torch.optim.SGD(network.model.parameters(), lr=eta)
    meter = handle = None
    if plan.metered:
        meter = AlignmentMeter(
            network.model,
            network.loss_fn,
            network.curvature_batches(plan.curvature_samples),
            plan.rank or network.rank,
            every=plan.every,
            overhead=plan.overhead,
            seed=plan.seed,
        )
        handle = meter.attach(optimizer, size)
    steps, training, held_out = _run(network, optimizer, size, plan, progress)
    if handle is not None:
        handle.remove()
    history = History() if meter is None else meter.history
    return TrainedRun(plan, history, steps, training, held_out, [] if meter is None else meter.skipped)


def write_run(run: TrainedRun, out: Path) -> list[Path]:
    """Write ``history.jsonl``, ``run.png`` and, last, ``run.html``; returns their paths."""
    from etastar.files import write_bytes, write_text

    sections = [_loss_section(run)]
    if len(run.history):
        sections.append(run_section(run.history))
    title = f"{run.plan.recipe}, {run.plan.loss}: {run.plan.steps:,} steps of SGD"
    page = render_html(title, "Losses, and what the meter saw.", sections)
    paths = [out / "history.jsonl", out / "run.png", out / "run.html"]
    run.history.save(paths[0])
    write_bytes(paths[1], render_png(sections[-1].figures[0]))
    write_text(paths[2], page)
    return paths


def _run(
    network: Network, optimizer: torch.optim.Optimizer, size: int, plan: TrainingPlan, progress: Progress | None
) -> tuple[list[int], list[float], list[float]]:
    inputs, targets = network.train
    generator = torch.Generator().manual_seed(plan.seed)
    looked = max(1, plan.steps // 100)
    steps: list[int] = []
    losses: tuple[list[float], list[float]] = ([], [])
    for step in range(plan.steps + 1):
        if step % looked == 0 or step == plan.steps:
            steps.append(step)
            with torch.no_grad():
                for values, samples in zip(losses, (network.train, network.held_out), strict=True):
                    values.append(float(network.loss_fn(network.model, samples)))
            if progress is not None:
                progress(f"training, loss {losses[0][-1]:.4g}", step, plan.steps)
        if step == plan.steps:
            break
        drawn = torch.randint(len(inputs), (size,), generator=generator)
        optimizer.zero_grad()
        network.loss_fn(network.model, (inputs[drawn], targets[drawn])).backward()
        optimizer.step()
    return steps, *losses


def _loss_section(run: TrainedRun) -> Section:
    marks = [
        Line(run.steps, run.training_loss, "training samples", COLOURS["exact"], 2.0),
        Line(run.steps, run.held_out_loss, "held out", COLOURS["accent"], 2.0, "dash"),
    ]
    panel = Panel("step", "loss", marks, y_scale="log")
    return Section(
        "losses",
        "Losses",
        f"The training loss ends at {run.training_loss[-1]:.4g}, the held-out loss at {run.held_out_loss[-1]:.4g}.",
        figures=[Figure("losses", "Over all samples of each set.", [panel])],
    )


def _critical_step(row: Measurement) -> str:
    estimate = row.critical_step_size
    if not estimate.resolved:
        return "unresolved"
    if not row.expansion_holds:
        return f"not to be trusted: the third derivative moves it by {row.certificate['third_derivative_shift']:.0%}"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
