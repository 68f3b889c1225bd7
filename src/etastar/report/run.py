"""The report of a run: the step beside its thresholds, what limits each subspace, and verdicts in words.

A single state of a stationary run wanders widely about η/η_S = 1, so that verdicts are those of windows: moments
averaged over several measurements before any ratio is formed. Shorter histories show their measurements alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from etastar.errors import InvalidArgument
from etastar.history import History, Measurement
from etastar.measurement import ThresholdEstimates
from etastar.quantities import ESTIMATES, NUMBERS
from etastar.report.document import Column, Section, Table
from etastar.report.figures import COLOURS, Band, Figure, Line, Mark, Panel, Points, Reference, Shade
from etastar.report.written import write_report
from etastar.uncertainty import Estimate, exactly

__all__ = ["run", "run_section"]

Quantity = Callable[[Measurement], Estimate]
_VERDICTS_SHOWN = 40
_LEAST_SHOWN = 0.05  # of the value: where a band is cut, since a logarithmic axis has no zero
_COLUMNS = [
    Column("step", "steps taken before the (last) measurement"),
    Column("regime", "how the alignment responds to the step size", numeric=False),
    Column("verdict", "which subspace still descends, which has equilibrated, what limits it", numeric=False),
]
_REGIMES = {
    "LOW": COLOURS["sampled"],
    "HIGH": COLOURS["accent"],
    "RISES": COLOURS["critical"],
    "REVERSED": COLOURS["bulk"],
    "NEUTRAL": COLOURS["muted"],
}
_UNTRUSTED, _UNRESOLVED = "η* not to be trusted", "unresolved"


def run(history: History, out: str | Path) -> list[Path]:
    """Write ``run.html`` and the pictures of a history into the directory `out`; returns their paths, the page last.

    Raises:
        InvalidArgument: An empty history.
        InvalidFile: A directory that cannot be written.
    """
    lead = "The [[alignment]] and the steps that matter."
    return write_report(out, "run.html", "A run, measured", lead, [run_section(history)])


def run_section(history: History, window: int = 8) -> Section:
    """The same as a section of a larger report.

    Args:
        history: At least one measurement.
        window: Measurements to average; a history that is no longer is shown alone.

    Raises:
        InvalidArgument: An empty history.
    """
    if len(history) == 0:
        raise InvalidArgument("history", 0, "is empty: nothing was measured")
    shown = _Shown(history, history.rolling(window) if len(history) > window else history)
    smooth = shown.smooth
    picked = np.unique(np.linspace(0, len(smooth) - 1, min(len(smooth), _VERDICTS_SHOWN)).round().astype(int))
    rows = [[f"{smooth[i].step:,}", _regime(smooth[i]), smooth[i].verdict] for i in picked.tolist()]
    drawn = (
        f"windows of {window} measurements (thick, with 90 % bands), single ones (thin)"
        if smooth is not history
        else "alone, with 90 % bands"
    )
    last = smooth[len(smooth) - 1]
    return Section(
        "run",
        f"{len(history)} measurement{'' if len(history) == 1 else 's'}",
        f"At the end, step {last.step:,}: {last.verdict}.",
        figures=[
            Figure(
                "run",
                f"Measurements: {drawn}; the step in use (dashed). [[regime|Regimes]] shaded where they "
                "are resolved. Thresholds judge one step: above 2/λ₁ (dotted) repeated ones diverge.",
                shown.steps(),
            ),
            Figure(
                "limits",
                "What limits each subspace: a step over its threshold is 1 where the subspace has equilibrated. A "
                "[[noise share]] of 1 says that noise limits it (decay or larger batches help), 0 that curvature does.",
                shown.limits(),
            ),
            Figure(
                "curvature",
                "Eigenvalues beside the stability limit of the step in use, and what decaying the step would give back "
                "in the dominant subspace ([[recoverable loss]]).",
                shown.curvature(),
            ),
        ],
        tables=[Table(_COLUMNS, rows)],
        data={"measurements": len(history)},
    )


@dataclass(frozen=True)
class _Shown:
    """A history with its windows, and the panels that show both."""

    alone: History
    smooth: History

    @cached_property
    def _thresholds(self) -> dict[int, ThresholdEstimates]:
        """Of every row, by identity: the dearest of the estimates, shown twice."""
        return {id(row): row.loss_thresholds for row in [*self.alone, *self.smooth]}

    def _threshold(self, row: Measurement, name: str) -> Estimate:
        return getattr(self._thresholds[id(row)], name)

    def steps(self) -> list[Panel]:
        """Alignment, and every step size that matters."""
        alignment = self._curves(lambda row: row.alignment, "θ", COLOURS["exact"])
        marks = [
            *self._curves(lambda row: row.critical_step_size, "critical step size η*", COLOURS["critical"]),
            *self._curves(lambda row: self._threshold(row, "dominant"), "dominant threshold η_D", COLOURS["dominant"]),
            *self._curves(lambda row: self._threshold(row, "bulk"), "bulk threshold η_B", COLOURS["bulk"]),
            *self._curves(lambda row: self._threshold(row, "full"), "full threshold η_full", COLOURS["full"]),
            *_curve(self._steps, 2.0 / self._eigenvalues("largest_eigenvalue"), "2/λ₁", COLOURS["muted"], 1.2, "dot"),
            *_curve(self._steps, self._in_use, "η in use", COLOURS["exact"], 1.6, "dash"),
        ]
        return [
            Panel("step", "alignment θ", [*self._regimes(), *alignment], y_range=(-0.02, 1.02)),
            Panel("step", "step size", marks, y_scale="log"),
        ]

    def limits(self) -> list[Panel]:
        """The step over each threshold, and the share of noise in what limits it."""
        ratios: list[Mark] = [Reference(1.0)]
        shares: list[Mark] = []
        for name in ("dominant", "bulk", "full"):
            ratios += self._curves(
                lambda row, name=name: _over(row.step_size, self._threshold(row, name)), name, COLOURS[name]
            )
            shares += self._curves(ESTIMATES[f"noise_share_{name}"][1], name, COLOURS[name])
        return [
            Panel("step", "step over its loss threshold, η/η_S", ratios, y_scale="log"),
            Panel("step", "noise share q₁/(m₁ + q₁)", shares, y_range=(-0.02, 1.02)),
        ]

    def curvature(self) -> list[Panel]:
        """Eigenvalues and, where a basis was there, the recoverable loss."""
        marks: list[Mark] = [
            *_curve(self._steps, self._eigenvalues("largest_eigenvalue"), "λ₁", COLOURS["dominant"]),
            *_curve(self._steps, self._eigenvalues("smallest_dominant_eigenvalue"), "λ_k", COLOURS["accent"]),
            *_curve(self._steps, 2.0 / self._in_use, "2/η", COLOURS["exact"], 1.6, "dash"),
        ]
        missing = exactly(float("nan"))
        recoverable = self._curves(lambda row: row.recoverable_loss or missing, "recoverable loss", COLOURS["dominant"])
        return [
            Panel("step", "eigenvalue", marks, y_scale="log"),
            Panel("step", "recoverable loss ½ Σ_D g²/λ", recoverable, y_scale="log"),
        ]

    @cached_property
    def _steps(self) -> np.ndarray:
        return np.array([row.step for row in self.alone])

    @cached_property
    def _smooth_steps(self) -> np.ndarray:
        return np.array([row.step for row in self.smooth])

    @cached_property
    def _in_use(self) -> np.ndarray:
        return np.array([row.step_size or np.nan for row in self.alone])

    def _eigenvalues(self, name: str) -> np.ndarray:
        values = np.array([float(row.certificate.get(name, np.nan)) for row in self.alone])
        return np.where(values > 0, values, np.nan)

    def _curves(self, quantity: Quantity, label: str, colour: str) -> list[Mark]:
        estimates = [quantity(row) for row in self.smooth]
        value, low, high = (np.array([getattr(e, end) for e in estimates]) for end in ("value", "low", "high"))
        low = np.maximum(low, _LEAST_SHOWN * value)
        band = Band(self._smooth_steps, low, high, "", colour)
        lone, nothing = _lone(value), np.full(np.sum(_lone(value)), np.nan)
        ends = np.stack([low[lone], high[lone], nothing], axis=1).ravel()
        bars = [Line(np.repeat(self._smooth_steps[lone], 3), ends, "", colour, 1.2)] if lone.any() else []
        single = [quantity(row).value for row in self.alone] if self.smooth is not self.alone else []
        thin = _curve(self._steps, single, "", colour, 0.8, opacity=0.45) if single else []
        return [band, *bars, *thin, *_curve(self._smooth_steps, value, label, colour, 2.0)]

    def _regimes(self) -> list[Mark]:
        """Stripes of equal regime where it is resolved, each halfway to its neighbours; named once."""
        rows = list(self.smooth)
        names = [_regime(row) for row in rows]
        edges = np.concatenate([self._smooth_steps[:1], _halfway(self._smooth_steps), self._smooth_steps[-1:]])
        stripes: list[Mark] = []
        begin, seen = 0, set[str]()
        for i, name in enumerate(names):
            if i + 1 < len(names) and names[i + 1] == name:
                continue
            if name != _UNRESOLVED:
                colour = _REGIMES.get(name, COLOURS["muted"])
                stripes.append(Shade(float(edges[begin]), float(edges[i + 1]), "" if name in seen else name, colour))
                seen.add(name)
            begin = i + 1
        return stripes


def _regime(row: Measurement) -> str:
    if not row.expansion_holds:
        return _UNTRUSTED
    return row.regime.name if NUMBERS["regime_resolved"][1](row) else _UNRESOLVED


def _curve(x: np.ndarray, y: Any, label: str, colour: str, width: float = 1.8, *style: Any, **more: Any) -> list[Mark]:
    """A line, with points where it would show nothing: at values whose neighbours are missing."""
    values = np.asarray(y, dtype=np.float64)
    lone = _lone(values)
    points = [Points(x[lone], values[lone], "", colour)] if lone.any() else []
    return [Line(x, values, label, colour, width, *style, **more), *points]


def _lone(values: np.ndarray) -> np.ndarray:
    there = np.concatenate([[False], np.isfinite(values), [False]])
    return there[1:-1] & ~there[:-2] & ~there[2:]


def _halfway(steps: np.ndarray) -> np.ndarray:
    return 0.5 * (steps[1:] + steps[:-1])


def _over(step_size: float, threshold: Estimate) -> Estimate:
    """η/η_S, whose interval is that of the threshold turned over; NaN where the threshold is not resolved."""
    if not (threshold.resolved and threshold.low > 0):
        return exactly(float("nan"))
    ends = step_size / threshold.value, step_size / threshold.high, step_size / threshold.low
    return Estimate(ends[0], float("nan"), float("nan"), ends[1], ends[2], threshold.level, True)
