"""What ``etastar train`` is asked: the run, how it is measured, and what may act on the measurements."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

from etastar.errors import InvalidArgument
from etastar.network.schedule import Policy
from etastar.recipes.networks import Network, RunPlan, at_least, load_run

__all__ = ["OptimizerName", "TrainingPlan"]

OptimizerName = Literal["sgd", "two-rate"]
_FORMAT = 1  # of a run's state


@dataclass(frozen=True, slots=True)
class TrainingPlan(RunPlan):
    """The options of ``etastar train``; a zero takes the recipe's own value.

    Attributes:
        every: Steps between measurements, at least.
        overhead: Share of the run's time that measuring may take; None for no limit.
        curvature_samples: The first so many training samples are the loss that is measured.
        metered: Whether meter and gauge are attached.
        optimizer: Plain SGD, or `TwoRateSGD` with its own momentum.
        policy: Of `CriticalStepSizeLR`; None keeps the step size.
        act: Whether the policy sets the step size, or only says what it would do.
        out: Where ``running.jsonl`` and ``running.pt`` are while the run goes; None keeps neither.
    """

    every: int = 0
    overhead: float | None = None
    curvature_samples: int = 0
    metered: bool = True
    optimizer: OptimizerName = "sgd"
    policy: Policy | None = None
    act: bool = False
    out: Path | None = None

    @property
    def controlled(self) -> bool:
        """Whether anything reads the measurements."""
        return self.optimizer == "two-rate" or self.policy is not None

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
        plan.check_control()
        return plan, network

    def check_control(self) -> None:
        """Refuse what does not go together.

        Raises:
            InvalidArgument: The first such option.
        """
        if self.optimizer not in ("sgd", "two-rate"):
            raise InvalidArgument("optimizer", self.optimizer, "must be sgd or two-rate")
        if self.policy not in (None, "equilibrated", "forecast"):
            raise InvalidArgument("policy", self.policy, "must be equilibrated or forecast")
        if self.policy is not None and self.optimizer != "sgd":
            raise InvalidArgument("policy", self.policy, "judges plain SGD; leave --optimizer at sgd")
        if self.act and self.policy is None:
            raise InvalidArgument("act", self.act, "needs a --policy to act on")
        if self.controlled and not self.metered:
            raise InvalidArgument("meter", self.metered, "must stay on: optimizer and policy read it")
        if self.controlled and self.overhead is not None:
            raise InvalidArgument("overhead", self.overhead, "must be None: the clock must not steer a run")

    def key(self, network: Network) -> str:
        """Hash of all that the run depends on, versions and samples included."""
        own = asdict(replace(self, out=None, data=None))
        versions = [_FORMAT, version("etastar"), version("torch")]
        text = json.dumps([own, versions, network.digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]
