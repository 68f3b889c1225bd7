"""What is asked of a calibration and what it finds: the plan, one row a checkpoint, and the counts of coverage."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from etastar.errors import InvalidArgument
from etastar.recipes.calibration.checkpoints import is_large
from etastar.recipes.calibration.coverage import Coverage
from etastar.recipes.calibration.paired import PairedSteps
from etastar.recipes.calibration.real_steps import MeasuredStep
from etastar.recipes.networks import Network, RunPlan, at_least, load_run

__all__ = ["Calibration", "CalibrationPlan", "CalibrationRow", "Compared"]


@dataclass(frozen=True, slots=True)
class CalibrationPlan(RunPlan):
    """What to calibrate; a zero takes the recipe's own value, or the number that the size of the model allows.

    Attributes:
        checkpoints: How many; 10, or 4 for a large model.
        batches: Real mini-batch steps at each; 256, or 64 for a large model.
        remeasurements: At each checkpoint and for each target; 20, or 4 for a large model.
        samples: The first so many training samples are the loss; 0 takes all, or the recipe's curvature samples for a
            large model.
    """

    checkpoints: int = 0
    batches: int = 0
    remeasurements: int = 0
    samples: int = 0

    def load(self) -> tuple[Self, Network]:
        """As every plan's."""
        plan, network = load_run(self)
        large, most = is_large(network), len(network.train[0])
        plan = replace(
            plan,
            checkpoints=plan.checkpoints or (4 if large else 10),
            batches=plan.batches or (64 if large else 256),
            remeasurements=plan.remeasurements or (4 if large else 20),
            samples=plan.samples or (network.settings.curvature_samples if large else most),
        )
        at_least(plan, checkpoints=1, batches=2, remeasurements=1)
        if plan.checkpoints > plan.steps:
            raise InvalidArgument("checkpoints", plan.checkpoints, f"must be at most the {plan.steps} steps of the run")
        if not 1 <= plan.samples <= most:
            raise InvalidArgument("samples", plan.samples, f"must be between 1 and {most}")
        return plan, network


@dataclass(frozen=True, slots=True)
class Compared:
    """One step size: as real steps have it, and as predicted, [parameter²/loss]; NaN where there is none.

    Attributes:
        measured: By real mini-batch steps.
        paired: Predicted from those very batches.
        predicted: By the meter, from its own probes.
        low: Lower end of the meter's 90 % interval.
        high: Upper end.
        resolved: Whether the meter gives it, and trusts it.
        exact: The prediction without sampling error (`reference`).
    """

    measured: MeasuredStep
    paired: float
    predicted: float
    low: float
    high: float
    resolved: bool
    exact: float


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One checkpoint.

    Attributes:
        step: Steps taken before.
        loss: Over all training samples.
        alignment: θ, exact.
        stability_limit: 2/λ₁, [parameter²/loss].
        paired: The paired prediction of η* at three orders.
        shift: By what share orders beyond the quadratic model move the meter's η*; inf where they make or unmake one.
        trusted: Whether the meter trusts its η*.
        compared: η*, η_D, η_B and η_full.
        change: The real mean change of alignment at the step in use, up to a positive factor.
        change_error: Its standard error.
    """

    step: int
    loss: float
    alignment: float
    stability_limit: float
    paired: PairedSteps
    shift: float
    trusted: bool
    compared: dict[str, Compared]
    change: float
    change_error: float

    def predicted_sign(self, step_size: float) -> int:
        """Of the change of alignment at the step in use: +1 above the interval of η*, −1 below it, 0 within."""
        critical = self.compared["η*"]
        if not critical.resolved:
            return 0
        return int(step_size > critical.high) - int(step_size < critical.low)

    @property
    def real_sign(self) -> int:
        """The sign of `change`; 0 within two standard errors of zero."""
        return 0 if abs(self.change) <= 2.0 * self.change_error else int(np.sign(self.change))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration found.

    Attributes:
        plan: What was asked, zeros filled in.
        rows: By checkpoint.
        coverage: By target and quantity.
    """

    plan: CalibrationPlan
    rows: list[CalibrationRow]
    coverage: dict[tuple[str, str], Coverage]

    @property
    def paired_errors(self) -> list[float]:
        """|paired/measured − 1| of η* at the checkpoints where real steps turn; inf where nothing was predicted."""
        return self.paired_errors_trusted + self.paired_errors_apart

    @property
    def paired_errors_trusted(self) -> list[float]:
        """Those of checkpoints where higher orders move η* by little, so that the meter trusts it."""
        return self._paired_errors(trusted=True)

    @property
    def paired_errors_apart(self) -> list[float]:
        """Those of the other checkpoints: the meter gives no η* there."""
        return self._paired_errors(trusted=False)

    def _paired_errors(self, trusted: bool) -> list[float]:
        found = [row.compared["η*"] for row in self.rows if row.trusted == trusted]
        ratios = [one.paired / one.measured.value for one in found if one.measured.found]
        return [abs(ratio - 1.0) if np.isfinite(ratio) else float("inf") for ratio in ratios]

    @property
    def turns_agree(self) -> int:
        """Checkpoints where paired prediction and real steps agree whether the alignment turns at all."""
        found = [row.compared["η*"] for row in self.rows]
        return sum(bool(np.isfinite(one.paired)) == one.measured.found for one in found)

    @property
    def wrong_signs(self) -> int:
        """Checkpoints where the interval of η* excludes the step in use and the real change has the other sign."""
        return sum(row.predicted_sign(self.plan.step_size) * row.real_sign < 0 for row in self.rows)

    @property
    def signs(self) -> int:
        """Checkpoints where both the interval and real steps decide the sign."""
        return sum(row.predicted_sign(self.plan.step_size) * row.real_sign != 0 for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where a number does not exist."""
        return {
            "plan": _plain({**asdict(self.plan), "data": None if self.plan.data is None else str(self.plan.data)}),
            "rows": [_plain(asdict(row)) for row in self.rows],
            "coverage": [
                {
                    "target": target,
                    "quantity": quantity,
                    "covered": found.covered,
                    "resolved": found.resolved,
                    "unresolved": found.unresolved,
                    "nothing": found.nothing,
                    "misled": found.misled,
                    "width": _plain(found.width),
                }
                for (target, quantity), found in self.coverage.items()
            ],
            "wrong_signs": self.wrong_signs,
            "signs": self.signs,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not np.isfinite(value) else value
