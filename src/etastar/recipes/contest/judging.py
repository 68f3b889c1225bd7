"""Who won, and by how much: geometric means over seeds, ratios paired by seed, and what a given loss cost.

Losses are compared on a log scale with Student's interval; initialisation and mini-batches of a seed are the same for
all contestants, so that ratios are taken seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Literal

import numpy as np

from etastar.recipes.contest.configuration import BASELINES, UNTUNED, Rule
from etastar.recipes.contest.contest import Cell, Entry
from etastar.recipes.contest.store import RunResult
from etastar.recipes.contest.training import LAST
from etastar.uncertainty import mean_of

__all__ = [
    "LEVEL",
    "Aim",
    "Currency",
    "Interval",
    "Verdict",
    "aims",
    "best_baseline",
    "cost_to_reach",
    "geometric_mean",
    "paired_ratio",
    "winner",
]

LEVEL = 0.9
Currency = Literal["steps", "gradients", "seconds"]
_HALF, _WORST = 0.5, 1.2


class Verdict(Enum):
    """Of an aim; the value says when."""

    MET = "the whole interval lies on the right side"
    OPEN = "the interval lies on both sides, or what it is held against diverged: more seeds would tell"
    MISSED = "the whole interval lies on the wrong side, or a run failed"


@dataclass(frozen=True, slots=True)
class Interval:
    """A geometric mean with its interval; infinite where any run diverged or never got there, NaN where undefined."""

    value: float
    low: float
    high: float

    def against(self, most: float) -> Verdict:
        """Whether it is at most `most`."""
        if math.isinf(self.value):
            return Verdict.MISSED
        return Verdict.MET if self.high <= most else Verdict.MISSED if self.low > most else Verdict.OPEN


@dataclass(frozen=True, slots=True)
class Aim:
    """One aim in one cell.

    Attributes:
        rule: Whose.
        statement: What was aimed at.
        measured: The ratio that decides.
        verdict: Three-valued.
    """

    rule: Rule
    statement: str
    measured: Interval
    verdict: Verdict


def geometric_mean(values: Sequence[float]) -> Interval:
    """Exponential of the mean log of two or more positive values, with Student's interval at `LEVEL`.

    Example:
        >>> geometric_mean([1.0, 4.0]).value
        2.0
    """
    if math.inf in values:
        return Interval(math.inf, math.inf, math.inf)
    if any(math.isnan(value) for value in values):
        return Interval(math.nan, math.nan, math.nan)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = mean_of(np.log(np.asarray(values, dtype=np.float64)), LEVEL)
        return Interval(*(float(np.exp(value)) for value in (found.value, found.low, found.high)))


def paired_ratio(first: Entry, second: Entry) -> Interval:
    """Final loss of the first over that of the second, seed by seed; NaN where the second alone diverged."""
    pairs = zip(first.runs, second.runs, strict=True)
    return geometric_mean([_over(one.final_loss, other.final_loss) for one, other in pairs])


def cost_to_reach(run: RunResult, target: float, currency: Currency) -> float:
    """What a run had spent when the median of three looks in a row first was at most `target`; inf for never."""
    if not math.isfinite(target):
        return math.inf
    for index in range(LAST - 1, len(run.losses)):
        if median(run.losses[index - LAST + 1 : index + 1]) <= target:
            return float(getattr(run, currency)[index])
    return math.inf


def costs(entry: Entry, best: Entry, currency: Currency) -> Interval:
    """What a contestant had spent when it reached the best baseline's final loss, of the same seed."""
    pairs = zip(entry.runs, best.runs, strict=True)
    return geometric_mean([cost_to_reach(run, other.final_loss, currency) for run, other in pairs])


def best_baseline(cell: Cell) -> Entry:
    """The tuned contestant whose finals end lowest: the hardest to beat, chosen after the fact."""
    return min((cell.entry(rule) for rule in BASELINES), key=lambda entry: _mean_loss(entry))


def winner(cell: Cell, currency: Currency | None = None) -> Entry:
    """Who ended lowest; or reached the best baseline's final loss with the least of a currency."""
    if currency is None:
        return min(cell.entries, key=_mean_loss)
    best = best_baseline(cell)
    return min(cell.entries, key=lambda entry: costs(entry, best, currency).value)


def separates(cell: Cell) -> bool:
    """What the meter says beforehand: two rates in more than half of the pilot's steps."""
    return cell.pilot.apart > _HALF


def aims(cell: Cell) -> list[Aim]:
    """The aims in a cell, as they came out."""
    best, two_rates = best_baseline(cell), cell.entry("TwoRateSGD")
    steps = two_rates.configuration.steps
    if separates(cell):
        reached = [
            cost_to_reach(a, b.final_loss, "steps") / steps for a, b in zip(two_rates.runs, best.runs, strict=True)
        ]
        statement, measured, most = (
            f"reaches the final loss of {best.rule} in half the steps",
            geometric_mean(reached),
            _HALF,
        )
    else:
        statement, measured, most = (
            f"ends at 1.2 times the loss of {best.rule} at most",
            paired_ratio(two_rates, best),
            _WORST,
        )
    found = [Aim("TwoRateSGD", statement, measured, measured.against(most))]
    tuned = cell.entry("SGD")  # what the policies decay
    for rule in UNTUNED[2:]:
        ratio = paired_ratio(cell.entry(rule), tuned)
        # Worse beyond seed noise: missed. An interval too wide to exclude a fifth more is no success either.
        verdict = Verdict.MISSED if ratio.low > 1 else ratio.against(_WORST)
        found.append(Aim(rule, "within seed noise of SGD's best tuned schedule", ratio, verdict))
    return found


def _mean_loss(entry: Entry) -> float:
    return geometric_mean([run.final_loss for run in entry.runs]).value


def _over(first: float, second: float) -> float:
    if not math.isfinite(first):
        return math.inf
    if not math.isfinite(second):
        return math.nan
    return first / second if second > 0 else math.inf
