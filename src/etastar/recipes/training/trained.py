"""What came of a run: losses and step sizes along it, measurements, decisions, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from etastar.history import History, Measurement
from etastar.network import Decision, GaugeOutcome, GaugeSummary, LedgerEntry, Rates
from etastar.network.two_rate import RateOutcome
from etastar.recipes.training.plan import TrainingPlan
from etastar.uncertainty import Estimate

__all__ = ["Looks", "TrainedRun"]

_NO_TURN = 100.0  # a shift this large stands for one that makes or unmakes a turn


@dataclass(slots=True)
class Looks:
    """What was seen along the run, look by look.

    Attributes:
        steps: Steps taken before each look, ``(T,)``.
        training_loss: Over all training samples, ``(T,)``, [loss].
        held_out_loss: Over the samples kept aside, ``(T,)``, [loss].
        step_sizes: In use there, ``(T,)``, [parameter²/loss].
        rates: Of `TwoRateSGD`, ``(T,)``; empty for others.
    """

    steps: list[int] = field(default_factory=list[int])
    training_loss: list[float] = field(default_factory=list[float])
    held_out_loss: list[float] = field(default_factory=list[float])
    step_sizes: list[float] = field(default_factory=list[float])
    rates: list[Rates] = field(default_factory=list[Rates])

    def add(self, step: int, losses: tuple[float, float], step_size: float, rates: Rates | None) -> None:
        """One look."""
        self.steps.append(step)
        self.training_loss.append(losses[0])
        self.held_out_loss.append(losses[1])
        self.step_sizes.append(step_size)
        if rates is not None:
            self.rates.append(rates)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "rates": [{**asdict(one), "outcome": one.outcome.name} for one in self.rates]}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Looks:
        """Inverse of `state_dict`."""
        plain: dict[str, Any] = {**state, "rates": [_rates(**one) for one in state["rates"]]}
        return cls(**plain)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRun:
    """A run and what was measured on the way.

    Attributes:
        plan: What was asked, zeros filled in.
        history: Measurements; empty without the meter.
        looks: Losses and step sizes along the run.
        skipped: Measurements that failed: step and reason.
        gauge: The last window of the gauge; None without the meter.
        decisions: Of the policy; empty without one.
        ledger: Updates tried at checkpoints; empty where nothing controls the run.
    """

    plan: TrainingPlan
    history: History
    looks: Looks
    skipped: list[tuple[int, str]]
    gauge: GaugeSummary | None
    decisions: list[Decision]
    ledger: list[LedgerEntry]

    @property
    def gauge_verdict(self) -> str:
        """What the gauge says, with advice for those who have this run's options only; empty without it."""
        if self.gauge is None:
            return ""
        if not np.isfinite(self.looks.training_loss[-1]):
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
        looks = self.looks
        return {
            "recipe": self.plan.recipe,
            "loss": self.plan.loss,
            "seed": self.plan.seed,
            "steps": looks.steps,
            "training_loss": [_plain(value) for value in looks.training_loss],
            "held_out_loss": [_plain(value) for value in looks.held_out_loss],
            "step_sizes": looks.step_sizes,
            "dominant_step_sizes": [one.dominant for one in looks.rates],
            "measurements": columns,
            "verdicts": [row.verdict for row in self.history],
            "decisions": [{"step": one.step, "acted": one.acted, "reason": one.reason} for one in self.decisions],
            "skipped": [list(entry) for entry in self.skipped],
        }


def _rates(outcome: str, **numbers: Any) -> Rates:
    return Rates(outcome=RateOutcome[outcome], **numbers)


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
