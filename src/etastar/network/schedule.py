"""A learning-rate scheduler that reads the meter or the gauge: by default it advises, told to it acts.

`decisions` is the audit log of the run: what the scheduler would do, or did, at which step and from which numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from etastar.errors import InvalidArgument
from etastar.network.batches import whole_number
from etastar.network.decisions import Decision, DecisionFile, interval
from etastar.network.gauge import StepGauge
from etastar.network.meter import AlignmentMeter
from etastar.network.policies import Verdict, equilibrated, equilibrated_gauge, forecast, settled_window
from etastar.network.wrapped import WrappedOptimizer

__all__ = ["CriticalStepSizeLR", "Mode", "Policy"]

Policy = Literal["equilibrated", "forecast"]
Mode = Literal["advise", "act"]
_LEAST_BLOCKS = 5  # of the gauge, in a window


class CriticalStepSizeLR(LRScheduler):
    """Decays the step size when measurements say that it no longer earns anything, or only says so.

    ``scheduler.step()`` goes after every ``optimizer.step()``, as with any scheduler. It looks again when the attached
    meter has measured, or the gauge has closed a block, and judges the later half of what was seen since its last
    decay:

    * ``"equilibrated"``: decay when η/η_D and η/η_B both lie above 0.8 with confidence and may be 1, and neither
      gradient energy falls, so that neither the dominant nor the bulk update is seen to lower the loss (with a gauge
      that has no basis: the whole update).
    * ``"forecast"``: decay when the dominant update is at rest, and the loss that a decay gives back there,
      ½ Σ_D g²/λ, exceeds what `horizon` more steps of the bulk's measured descent bring.

    Neither asks for the step that lowers the loss most *next*, η_full/2: that greedy rule decays too early (the sign
    of consecutive gradients' product, Pflug's statistic, is the same rule; it fails on quadratics already, Pesme,
    Dieuleveut and Flammarion, arXiv 2007.00534; short horizons favour small steps, Wu et al., arXiv 1803.02021).

    Where noise falls with the loss, as in an interpolating network under cross-entropy, the bulk never equilibrates,
    and the answer is to keep the step size.

    Args:
        optimizer: Of the run.
        source: A meter, attached to `optimizer` with ``overhead=None`` where the mode is "act": the clock must not
            steer a run. Or a gauge, for "equilibrated" only.
        policy: See above.
        mode: "advise" leaves the step size alone; "act" multiplies that of every group.
        factor: What a decay multiplies by, between 0 and 1.
        horizon: Of "forecast", [steps]: as many as remain is a natural choice.
        path: Where to write the decisions while the run goes, as JSON lines. A new file; or that of the run being
            resumed, followed by `load_state_dict`.

    Attributes:
        decisions: One for each look, oldest first.

    Raises:
        InvalidArgument: An argument that is none of these, a clock-driven meter with mode "act", a gauge with policy
            "forecast", a meter beside an optimizer of `etastar.network`: it describes the update inside.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> scheduler = CriticalStepSizeLR(optimizer, StepGauge(optimizer))
        >>> scheduler.decisions
        []
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        source: AlignmentMeter | StepGauge,
        policy: Policy = "equilibrated",
        mode: Mode = "advise",
        *,
        factor: float = 0.3,
        horizon: int = 1000,
        path: str | Path | None = None,
    ) -> None:
        _check(source, policy, mode, factor)
        if isinstance(source, AlignmentMeter) and isinstance(optimizer, WrappedOptimizer):
            remedy = "corrects the update that the meter describes: give the scheduler a StepGauge"
            raise InvalidArgument("optimizer", type(optimizer).__name__, remedy)
        self.source, self.policy, self.mode = source, policy, mode
        self.factor, self.horizon = float(factor), whole_number("horizon", horizon, 1)
        self.decisions: list[Decision] = []
        self._path, self._resumed = path, False
        self._file: DecisionFile | None = None
        self._pending = self._scale = 1.0
        self._since = 0  # step of the last decay
        self._looked = self._place()
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """After ``optimizer.step()``: look where there is something new to see, and decay where that is called for."""
        place = self._place()
        if place != self._looked:
            self._looked = place
            verdict = self._judge()
            if verdict is not None:
                self._decide(verdict)
        super().step(epoch)
        self._pending = 1.0

    def get_lr(self) -> list[float | Tensor]:
        """The step size of each group times what was just decided: whatever another scheduler makes of it stays."""
        return [_copy(group["lr"]) * self._pending for group in self.optimizer.param_groups]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        """What `SequentialLR` starts from when it gets here: the first step size, with the decays so far."""
        return [_copy(lr) * self._scale for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """All but optimizer and source, which save their own; safe for ``weights_only`` loading."""
        left = ("optimizer", "source", "policy", "mode", "factor", "horizon", "_path", "_file", "_resumed")
        state = {name: value for name, value in self.__dict__.items() if name not in left}
        return {**state, "decisions": [decision.encode() for decision in self.decisions]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; optimizer and source continue from theirs.

        Raises:
            InvalidArgument: Not a state of this scheduler.
        """
        try:
            decisions = [Decision.decode(line) for line in state_dict["decisions"]]
        except (KeyError, TypeError, ValueError):
            allowed = "must come from CriticalStepSizeLR.state_dict()"
            raise InvalidArgument("state_dict", sorted(state_dict), allowed) from None
        super().load_state_dict({**state_dict, "decisions": decisions})
        self._file, self._resumed = None, True

    def _place(self) -> int:
        """What changes when there is something new to see: the last measured step, or the blocks closed."""
        if isinstance(self.source, StepGauge):
            return self.source.steps // self.source.every
        return self.source.history[-1].step if len(self.source.history) else -1

    def _judge(self) -> Verdict | None:
        source = self.source
        if isinstance(source, StepGauge):
            blocks = (source.steps - self._since) // (2 * source.every)
            return equilibrated_gauge(source.summary(blocks * source.every)) if blocks >= _LEAST_BLOCKS else None
        window = settled_window(source.history, self._since)
        if window is None:
            return None
        return equilibrated(window) if self.policy == "equilibrated" else forecast(window, self.horizon)

    def _decide(self, verdict: Verdict) -> None:
        step_size, decays = float(self.optimizer.param_groups[0]["lr"]), verdict.outcome.decays
        acted = decays and self.mode == "act"
        evidence = {name: interval(estimate) for name, estimate in verdict.evidence.items()}
        decision = Decision(
            step=self.source.steps if isinstance(self.source, StepGauge) else self.source.step,
            step_size=step_size,
            proposed=step_size * self.factor if decays else step_size,
            acted=acted,
            outcome=verdict.outcome,
            evidence=evidence,
        )
        if self._path is not None and self._file is None:
            self._file = DecisionFile(self._path, self.decisions if self._resumed else None)
        self.decisions.append(decision)
        if self._file is not None:
            self._file.append(decision)
        if acted:
            self._pending, self._scale, self._since = self.factor, self._scale * self.factor, decision.step


def _check(source: Any, policy: Any, mode: Any, factor: Any) -> None:
    if not isinstance(source, AlignmentMeter | StepGauge):
        raise InvalidArgument("source", type(source).__name__, "must be an AlignmentMeter or a StepGauge")
    for name, value, allowed in (
        ("policy", policy, ("equilibrated", "forecast")),
        ("mode", mode, ("advise", "act")),
    ):
        if value not in allowed:
            raise InvalidArgument(name, value, f'must be "{allowed[0]}" or "{allowed[1]}"')
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1:
        raise InvalidArgument("factor", factor, "must lie between 0 and 1")
    if isinstance(source, StepGauge):
        if policy == "forecast":
            raise InvalidArgument("source", "StepGauge", '"forecast" needs eigenvalues: give it an AlignmentMeter')
    elif mode == "act" and source.overhead is not None:
        raise InvalidArgument("source.overhead", source.overhead, "must be None: the clock must not steer a run")


def _copy(value: float | Tensor) -> float | Tensor:
    return value.clone() if isinstance(value, Tensor) else value
