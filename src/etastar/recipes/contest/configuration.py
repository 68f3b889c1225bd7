"""What one run of the contest is: a problem, an optimizer with its settings, a length and a seed, and nothing else.

A run's key is a hash of all that, of the data and of the versions behind it: the same key, the same result.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import product
from typing import Literal

import numpy as np

from etastar.recipes.networks import NETWORKS, LossName

__all__ = [
    "BASELINES",
    "CONFIGURATIONS",
    "FINAL_SEED",
    "MOMENTUM",
    "PROBLEMS",
    "RULES",
    "TUNED",
    "UNTUNED",
    "Problem",
    "Rule",
    "RunConfiguration",
    "candidates",
    "final",
    "pilot",
    "untuned",
]

Problem = Literal[
    "digits-mlp-mse",
    "digits-mlp-cross-entropy",
    "digits-cnn-mse",
    "mnist5k-mlp-mse",
    "text-transformer-cross-entropy",
]
Schedule = Literal["constant", "linear", "cosine"]
Rule = Literal[
    "SGD",
    "momentum",
    "Adam",
    "BSFA's rule",
    "momentum, untuned",
    "TwoRateSGD",
    "TwoRateSGD, tuned",
    "equilibrated",
    "forecast",
]

PROBLEMS: dict[str, tuple[str, LossName]] = {
    "digits-mlp-mse": ("digits-mlp", "mse"),
    "digits-mlp-cross-entropy": ("digits-mlp", "cross-entropy"),
    "digits-cnn-mse": ("digits-cnn", "mse"),
    "mnist5k-mlp-mse": ("mnist5k-mlp", "mse"),
    "text-transformer-cross-entropy": ("text-transformer", "cross-entropy"),
}
RULES: dict[Rule, str] = {
    "SGD": "tuned: step size and schedule",
    "momentum": "SGD with momentum, tuned: step size, β and schedule",
    "Adam": "tuned: step size and schedule",
    "BSFA's rule": "momentum, its update scaled by two factors, tuned: step size, β, schedule and both factors",
    "momentum, untuned": "SGD with momentum as TwoRateSGD gets it, constant: what that one adds is the difference",
    "TwoRateSGD": "untuned: the recipe's step size, its own β",
    "TwoRateSGD, tuned": "tuned: step size and schedule, β as untuned",
    "equilibrated": "untuned: SGD from the recipe's step size, CriticalStepSizeLR(policy='equilibrated', mode='act')",
    "forecast": "untuned: SGD from the recipe's step size, CriticalStepSizeLR(policy='forecast', mode='act')",
}
BASELINES: tuple[Rule, ...] = ("SGD", "momentum", "Adam", "BSFA's rule")
TUNED: tuple[Rule, ...] = (*BASELINES, "TwoRateSGD, tuned")  # the last is no baseline: no aim is judged by it
UNTUNED: tuple[Rule, ...] = ("momentum, untuned", "TwoRateSGD", "equilibrated", "forecast")
MOMENTUM = 0.95  # the default of TwoRateSGD
CONFIGURATIONS = 24  # of whoever is tuned, at the start of it
_CHEAP, _CLOSE, _NONE = (64, 200, 0.3), (250, 100, 0.1), (0, 0, 0.0)
_BASES: dict[Rule, tuple[int, int, float]] = {
    "BSFA's rule": _CHEAP,
    "TwoRateSGD": _CHEAP,
    "TwoRateSGD, tuned": _CHEAP,
    "equilibrated": _CLOSE,
    "forecast": _CLOSE,
}
FINAL_SEED = 16  # of the first final; the seeds below it are for tuning and for whoever develops a rule
_TUNING_SEED = 0  # of its first round; every other has the next one
_FORMAT = 3
_SCHEDULES: tuple[Schedule, ...] = ("constant", "linear", "cosine")
_PILOT = 4  # the pilot is this part of a run


@dataclass(frozen=True, slots=True)
class RunConfiguration:
    """One run.

    Attributes:
        problem: One of `PROBLEMS`.
        batch_size: b.
        rule: The contestant.
        step_size: At the first step, [parameter²/loss]; Adam's own for Adam.
        momentum: β; 0 where the rule has none.
        schedule: Of the step size over the run's own length.
        factors: Of the update's dominant and bulk part; BSFA's rule alone.
        basis: Samples of its curvature, steps between refreshes or measurements, tolerance; zeros where it has none.
        steps: Length.
        seed: Of initialisation, mini-batches and probes.
        curve: Whether the loss is followed along the run, and the end looked at in full; tuning looks at its loss only.
        data: Digest of the training samples.
    """

    problem: str
    batch_size: int
    rule: Rule
    step_size: float
    momentum: float
    schedule: Schedule
    factors: tuple[float, float]
    basis: tuple[int, int, float]
    steps: int
    seed: int
    curve: bool
    data: str

    @property
    def key(self) -> str:
        """Hash of everything that the result depends on, versions included."""
        text = json.dumps({**asdict(self), **_versions()}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def settings(self) -> str:
        """What a reader needs to repeat it."""
        words = [f"{self.step_size:.3g}"]
        words += [f"β {self.momentum:g}"] if self.momentum else []
        words += [f"{self.factors[0]:g} and {self.factors[1]:g}"] if self.rule == "BSFA's rule" else []
        return ", ".join([*words, self.schedule])


@cache
def _versions() -> dict[str, str | int]:
    return {"format": _FORMAT, "etastar": version("etastar"), "torch": version("torch")}


def candidates(problem: str, batch_size: int, rule: Rule, data: str) -> list[RunConfiguration]:
    """The configurations that a tuning starts from; lengths are still to be set.

    The whole grid, or as many of it, drawn without replacement: the same for every problem.
    """
    base, basis = _own_step_size(problem), _BASES.get(rule, _NONE)
    grid = [
        RunConfiguration(problem, batch_size, rule, step, beta, schedule, factors, basis, 0, _TUNING_SEED, False, data)
        for step, beta, schedule, factors in product(*_axes(rule, base))
    ]
    drawn = np.random.default_rng(0).permutation(len(grid))[:CONFIGURATIONS]
    return [grid[index] for index in sorted(drawn.tolist())]


def _axes(rule: Rule, base: float) -> tuple[list[float], list[float], tuple[Schedule, ...], list[tuple[float, float]]]:
    """Step sizes, momenta, schedules and factors of whoever is tuned."""
    plain, betas = [(1.0, 1.0)], [0.9, 0.95]
    if rule in ("SGD", "TwoRateSGD, tuned"):
        beta = 0.0 if rule == "SGD" else MOMENTUM
        return [base * 2.0**i for i in range(-2, 6)], [beta], _SCHEDULES, plain
    if rule == "Adam":
        return [0.0005 * 2.0**i for i in range(8)], [0.0], _SCHEDULES, plain
    steps = [base * 2.0**i for i in range(-1, 3)]
    if rule == "momentum":
        return steps, betas, _SCHEDULES, plain
    return steps, betas, _SCHEDULES, [(dominant, bulk) for dominant in (0.1, 0.01) for bulk in (1.0, 2.0)]


def untuned(problem: str, batch_size: int, rule: Rule, steps: int, data: str) -> RunConfiguration:
    """What runs without tuning: the recipe's own step size, one β; none for the policies."""
    step, beta = _own_step_size(problem), MOMENTUM if rule in ("momentum, untuned", "TwoRateSGD") else 0.0
    return RunConfiguration(
        problem,
        batch_size,
        rule,
        step,
        beta,
        "constant",
        (1.0, 1.0),
        _BASES.get(rule, _NONE),
        steps,
        _TUNING_SEED,
        True,
        data,
    )


def final(configuration: RunConfiguration, steps: int, seed: int) -> RunConfiguration:
    """The same, at full length, its curve followed, with a seed that tuning has not seen."""
    return replace(configuration, steps=steps, seed=seed, curve=True)


def pilot(problem: str, batch_size: int, steps: int, data: str) -> RunConfiguration:
    """The first quarter of a TwoRateSGD run on the tuning seed: what the meter says before the finals."""
    return untuned(problem, batch_size, "TwoRateSGD", steps // _PILOT, data)


def _own_step_size(problem: str) -> float:
    recipe, loss = PROBLEMS[problem]
    return NETWORKS[recipe].settings[loss].step_size
