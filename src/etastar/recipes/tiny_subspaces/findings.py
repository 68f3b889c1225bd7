"""What one seed's runs say: how far each loss falls, where the alignment goes, and what the thresholds foretold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.budget import step_budget
from etastar.criteria import loss_thresholds
from etastar.measurement import Measurement
from etastar.recipes.tiny_subspaces.run import SeedRun, Series
from etastar.recipes.tiny_subspaces.stage import BRANCHES
from etastar.uncertainty import Estimate

__all__ = ["Findings", "findings"]

Array = npt.NDArray[np.float64]
_AFTER = 50  # steps of SGD after the switch whose mean loss the falls start from
_TURNED = 1.1  # times the lowest loss of a run: it has risen again
_LEAST_CALM = 10  # steps of GD below the edge from which its alignment is judged


@dataclass(frozen=True, slots=True)
class Findings:
    """The numbers of one seed that got to the switch.

    Attributes:
        seed: Which.
        switch: Steps of SGD before the switch.
        first_chi: Mean χ over the first ten steps of the run.
        loss: Mean loss of SGD over the first 50 steps after the switch: where all falls start, [loss].
        ends: Mean loss over the last tenth of each run, by branch; inf where it diverged, [loss].
        bulk_turn: Where Bulk-SGD's loss rises again: steps to its lowest running mean (50 steps), that mean [loss], and
            ηλ₁/2 there; None where it ends within a tenth of it.
        calm: Steps of GD before its λ₁ reaches 2/η; all of them where it does not.
        gd_chi: Median χ of GD over the second half of those; NaN where they are fewer than ten.
        sgd_chi: Median χ of SGD over the same steps; NaN where it diverged before their end.
        late_chi: Median χ of GD over the last tenth of its run.
        dominant: η/η_D over the window after the switch, with its interval.
        bulk: η/η_B, the same.
        noise_share: q₁/(m₁ + q₁) of the dominant subspace over that window.
        edge: Mean ηλ₁/2 of SGD over that window, and over the last tenth of its run: 1 is the edge of stability.
    """

    seed: int
    switch: int
    first_chi: float
    loss: float
    ends: dict[str, float]
    bulk_turn: tuple[int, float, float] | None
    calm: int
    gd_chi: float
    sgd_chi: float
    late_chi: float
    dominant: Estimate
    bulk: Estimate
    noise_share: Estimate
    edge: tuple[float, float]

    def fall(self, branch: str) -> float:
        """log(loss at the switch/loss at the end); −inf where it diverged."""
        return math.log(self.loss) - math.log(self.ends[branch])

    def share(self, branch: str) -> float:
        """Its fall over that of SGD; NaN where SGD's loss does not fall."""
        own = self.fall("sgd")
        return self.fall(branch) / own if own > 0 else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where a number does not exist."""
        return {
            "seed": self.seed,
            "switch": self.switch,
            "first_chi": _plain(self.first_chi),
            "loss_at_switch": _plain(self.loss),
            "final_loss": {name: _plain(value) for name, value in self.ends.items()},
            "share_of_fall": {name: _plain(self.share(name)) for name in ("dominant", "bulk", "gd")},
            "bulk_turn": None if self.bulk_turn is None else list(self.bulk_turn),
            "gd_steps_below_edge": self.calm,
            "chi": {"gd": _plain(self.gd_chi), "sgd": _plain(self.sgd_chi), "gd_at_the_end": _plain(self.late_chi)},
            "step_over_threshold": {"dominant": _interval(self.dominant), "bulk": _interval(self.bulk)},
            "noise_share": _interval(self.noise_share),
            "edge": {"switch": _plain(self.edge[0]), "end": _plain(self.edge[1])},
        }


def findings(run: SeedRun, step_size: float) -> Findings | None:
    """The numbers of one seed; None where it did not get to the switch, or diverged within the window after it."""
    if run.switch is None or run.window is None:
        return None
    sgd, gd = run.branches["sgd"], run.branches["gd"]
    over = np.flatnonzero(gd["largest_eigenvalue"] >= 2.0 / step_size)
    calm = int(over[0]) if len(over) else len(gd)
    second_half = slice(calm // 2, calm)
    judged = calm >= _LEAST_CALM
    half_step = 0.5 * step_size * sgd["largest_eigenvalue"]
    span = _span(run.window, run.switch)
    return Findings(
        seed=run.seed,
        switch=run.switch,
        first_chi=float(run.approach["chi"][:10].mean()),
        loss=float(sgd["loss"][:_AFTER].mean()),
        ends={name: _end(run.branches[name]) for name in BRANCHES},
        bulk_turn=_turn(run.branches["bulk"], step_size),
        calm=calm,
        gd_chi=float(np.median(gd["chi"][second_half])) if judged else math.nan,
        sgd_chi=float(np.median(sgd["chi"][second_half])) if judged and len(sgd) >= calm else math.nan,
        late_chi=float(np.median(_tail(gd["chi"]))),
        dominant=run.window.estimate(lambda split: step_size / loss_thresholds(split).dominant),
        bulk=run.window.estimate(lambda split: step_size / loss_thresholds(split).bulk),
        noise_share=_noise_share(run.window),
        edge=(float(half_step[:span].mean()), float(_tail(half_step).mean())),
    )


def _span(window: Measurement, switch: int) -> int:
    """Steps that the window covers."""
    return window.step - switch + 1


def _noise_share(window: Measurement) -> Estimate:
    batch = window.batch_size or 1
    return window.estimate(lambda split: step_budget(split, window.step_size, batch).dominant.noise_share)


def _turn(series: Series, step_size: float) -> tuple[int, float, float] | None:
    loss = series["loss"]
    if len(loss) < _AFTER:
        return None
    means = np.convolve(loss, np.full(_AFTER, 1.0 / _AFTER), "valid")
    lowest = int(np.argmin(means))
    if _end(series) <= _TURNED * means[lowest]:
        return None
    largest = series["largest_eigenvalue"][lowest : lowest + _AFTER].mean()
    return lowest + _AFTER, float(means[lowest]), float(0.5 * step_size * largest)


def _end(series: Series) -> float:
    return float(_tail(series["loss"]).mean()) if series.complete else math.inf


def _tail(values: Array) -> Array:
    return values[-max(1, len(values) // 10) :]


def _interval(estimate: Estimate) -> dict[str, float | None]:
    return {name: _plain(float(getattr(estimate, name))) for name in ("value", "low", "high", "level")}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
