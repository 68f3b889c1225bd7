"""The report of a controlled run: what the step size was, what the controller decided and why, and if it was right.

Loss · step size beside its thresholds with the decisions marked · the dominant share of the update · λ₁ · what the
ledger saw of predicted loss changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.history import History, Measurement
from etastar.network.decisions import Decision
from etastar.network.ledger import PARTS, UpdateLedger
from etastar.report import (
    COLOURS,
    Band,
    Column,
    Figure,
    Line,
    Panel,
    Points,
    Reference,
    Section,
    Table,
    write_report,
)
from etastar.uncertainty import Estimate, exactly

__all__ = ["ControlledRun", "control_sections", "write_control"]

Array = npt.NDArray[np.float64]
_WINDOW = 8
_LEAST_SHOWN = 0.05  # of the value: where a band is cut, since a logarithmic axis has no zero
_MOST_ROWS = 40
_FAR = 20
_PLOTTED = (("predicted", ""), ("measured", ""), ("measured", "_error"))
_DECISIONS = [
    Column("steps", "steps taken at the looks that agreed"),
    Column("step size", "η then [parameter²/loss]"),
    Column("decision", "what the controller found, and whether it acted", numeric=False),
    Column("reason", "with the numbers of the first of these looks and their 90 % intervals", numeric=False),
]
_LEDGER = [
    Column("part", "the update projected on the dominant subspace or the bulk, or the whole", numeric=False),
    Column("checkpoints", "checkpoints with both numbers"),
    Column("measured/predicted", "sum of measured over sum of predicted loss changes ± standard error"),
    Column("deviation", "root mean square of (measured − predicted)/standard error; about 1 where errors are honest"),
    Column("same sign", "checkpoints at which prediction and measurement agree that the loss falls or rises"),
]


@dataclass(frozen=True, slots=True, eq=False)
class ControlledRun:
    """What there is to show of a run.

    Attributes:
        name: Of the run.
        steps: At which losses and step sizes were taken, ``(T,)``.
        loss: Training loss, ``(T,)``.
        step_sizes: η in use, ``(T,)``, [parameter²/loss].
        history: Of the meter; may be empty.
        decisions: Of the controller.
        held_out: Held-out loss, ``(T,)``; empty where it was not looked at.
        ledger: With its entries, where one was kept.
    """

    name: str
    steps: Sequence[int]
    loss: Sequence[float]
    step_sizes: Sequence[float]
    history: History
    decisions: Sequence[Decision]
    held_out: Sequence[float] = field(default_factory=list[float])
    ledger: UpdateLedger | None = None

    def __post_init__(self) -> None:
        lengths = [len(self.steps), len(self.loss), len(self.step_sizes), len(self.held_out) or len(self.steps)]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise InvalidArgument("steps", lengths, "steps, losses and step sizes must be of one length, not empty")


def write_control(run: ControlledRun, out: str | Path) -> list[Path]:
    """Write ``control.html`` and the pictures into the directory `out`; returns their paths, the page last.

    Raises:
        InvalidFile: A directory that cannot be written.
    """
    lead = "A controlled run: what was decided, and from what."
    return write_report(out, "control.html", run.name, lead, control_sections(run))


def control_sections(run: ControlledRun) -> list[Section]:
    """The same as sections of a larger report: the control, and the ledger where there is one."""
    acted = [decision for decision in run.decisions if decision.acted]
    called = [decision for decision in run.decisions if decision.outcome.decays]
    told = f"acted {_times(acted)}" if acted else f"called for a decay {_times(called)} and never acted"
    smooth = _smooth(run.history, [decision.step for decision in acted])
    caption = (
        f"Loss; step size beside the loss thresholds, moments averaged over {_WINDOW} measurements, none across "
        "a decay by the controller, with 90 % bands. "
        "Vertical lines: decisions to decay (acted: orange; only advised: grey)."
    )
    figures = [Figure("control", caption, [_losses(run), _step_sizes(run, smooth)])]
    if len(run.history):
        shares = "Dominant share of the energy of a mini-batch gradient, which is that of a plain SGD update; "
        figures.append(Figure("shares", f"{shares}largest eigenvalue beside 2/η.", [_shares(smooth), _largest(run)]))
    section = Section(
        "control",
        "Control of the step size",
        f"The controller looked {_times(run.decisions)} and {told}. The loss ends at {run.loss[-1]:.4g}.",
        figures=figures,
        tables=[Table(_DECISIONS, _rows(run.decisions))],
        data={"decisions": len(run.decisions), "acted": [decision.step for decision in acted]},
    )
    ledger = [] if run.ledger is None or not run.ledger.entries else [_ledger_section(run.ledger)]
    return [section, *ledger]


def _smooth(history: History, acted: Sequence[int]) -> History:
    """Windows of measurements that do not reach across a decay."""
    stretches: dict[int, list[Measurement]] = {}
    for row in history:
        stretches.setdefault(sum(step <= row.step for step in acted), []).append(row)
    windows = [History(rows).rolling(min(_WINDOW, len(rows))) for rows in stretches.values() if len(rows) > 1]
    return History([row for rows in windows for row in rows]) if windows else history


def _losses(run: ControlledRun) -> Panel:
    marks = [*_marked(run), Line(run.steps, run.loss, "training", COLOURS["exact"], 2.0)]
    if len(run.held_out):
        marks.append(Line(run.steps, run.held_out, "held out", COLOURS["accent"], 1.6, "dash"))
    return Panel("step", "loss", marks, y_scale="log")


def _step_sizes(run: ControlledRun, smooth: History) -> Panel:
    marks = list(_marked(run))
    for name, label in (("dominant", "η_D"), ("bulk", "η_B"), ("full", "η_full")):
        marks += _banded(smooth, lambda row, name=name: getattr(row.loss_thresholds, name), label, COLOURS[name])
    marks.append(Line(run.steps, run.step_sizes, "η in use", COLOURS["exact"], 1.8, "dash"))
    return Panel("step", "step size [parameter²/loss]", marks, y_scale="log")


def _shares(smooth: History) -> Panel:
    def share(row: Measurement) -> Estimate:
        def of(split: object) -> Array:
            energy = [
                getattr(split, name).signal.zeroth + getattr(split, name).noise.zeroth for name in ("dominant", "bulk")
            ]
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(energy[0] / (energy[0] + energy[1]))

        return row.estimate(of)

    marks = _banded(smooth, share, "of the update: (m₀ + q₀)_D over all", COLOURS["dominant"])
    marks += _banded(smooth, lambda row: row.alignment, "of the mean gradient: θ", COLOURS["exact"])
    return Panel("step", "dominant share", marks, y_range=(-0.02, 1.02))


def _largest(run: ControlledRun) -> Panel:
    steps = [row.step for row in run.history]
    largest = np.array([float(row.certificate.get("largest_eigenvalue", math.nan)) for row in run.history])
    edge = [2.0 / row.step_size if row.step_size else math.nan for row in run.history]
    marks = [
        Line(steps, np.where(largest > 0, largest, np.nan), "λ₁", COLOURS["dominant"], 2.0),
        Line(steps, edge, "2/η", COLOURS["exact"], 1.6, "dash"),
    ]
    return Panel("step", "eigenvalue [loss/parameter²]", marks, y_scale="log")


def _marked(run: ControlledRun) -> list[Reference]:
    """Decisions to decay; of several in a row that were only advised, the first."""
    marks: list[Reference] = []
    before = False
    for decision in run.decisions:
        decays = decision.outcome.decays
        if decision.acted or (decays and not before):
            colour = COLOURS["accent"] if decision.acted else COLOURS["muted"]
            marks.append(Reference(float(decision.step), "x", colour=colour))
        before = decays and not decision.acted
    return marks


def _banded(rows: History, quantity: Callable[[Measurement], Estimate], label: str, colour: str) -> list[Band | Line]:
    missing = exactly(math.nan)
    found = [estimate if estimate.resolved else missing for estimate in map(quantity, rows)]
    value, low, high = (np.array([float(getattr(e, end)) for e in found]) for end in ("value", "low", "high"))
    value = np.where(value > 0, value, np.nan)
    steps = [row.step for row in rows]
    return [Band(steps, np.maximum(low, _LEAST_SHOWN * value), high, "", colour), Line(steps, value, label, colour)]


def _rows(decisions: Sequence[Decision]) -> list[list[str]]:
    """Runs of looks that agree, the last of them where there are many."""
    runs: list[list[Decision]] = []
    for decision in decisions:
        same = runs and runs[-1][-1].outcome is decision.outcome and not (decision.acted or runs[-1][-1].acted)
        if same:
            runs[-1].append(decision)
        else:
            runs.append([decision])
    return [_row(run) for run in runs[-_MOST_ROWS:]]


def _times(found: Sequence[Decision]) -> str:
    return f"{len(found)} time{'' if len(found) == 1 else 's'}"


def _row(run: Sequence[Decision]) -> list[str]:
    first, last = run[0], run[-1]
    steps = f"{first.step:,}" if len(run) == 1 else f"{first.step:,} to {last.step:,} ({len(run)} looks)"
    deed = f", acted: {first.step_size:.4g} → {first.proposed:.4g}" if first.acted else ""
    return [steps, f"{first.step_size:.4g}", f"{first.outcome.value}{deed}", first.numbers]


def _ledger_section(ledger: UpdateLedger) -> Section:
    table = ledger.columns()
    panels: list[Panel] = []
    left_out = 0
    for part in PARTS:
        said, seen, error = (table[f"{name}_{part}{end}"] for name, end in _PLOTTED)
        shown = np.abs(said) <= _FAR * np.nanmedian(np.abs(said))
        left_out += int((~shown).sum())
        ends = [np.nanmin([said[shown], seen[shown]]), np.nanmax([said[shown], seen[shown]])] if shown.any() else []
        marks = [
            Reference(0.0),
            Line(ends, ends, "as predicted", COLOURS["exact"], 1.0, "dash"),
            Points(said[shown], seen[shown], "checkpoints, ± standard error", COLOURS[part], error[shown]),
        ]
        panels.append(Panel("predicted loss change", "measured loss change", marks, part))
    summaries = ledger.summary()
    rows = [
        [
            one.part,
            f"{one.entries}",
            f"{one.ratio:.3f} ± {one.ratio_error:.2g}",
            f"{one.deviation:.2f}",
            f"{one.same_sign}",
        ]
        for one in summaries
    ]
    caption = "Each part of the update made alone on real mini-batches, and the loss looked at."
    far = (
        f" {left_out} points with changes more than {_FAR} times the median are in the table only." if left_out else ""
    )
    told = ", ".join(f"{one.part} {one.ratio:.2f} ± {one.ratio_error:.2g}" for one in summaries)
    return Section(
        "ledger",
        "Ledger: updates tried, part by part",
        f"Measured over predicted loss change, all {len(ledger.entries)} checkpoints together: {told}.",
        "Predictions are those of the quadratic model at the checkpoint: a dominant ratio away from 1 says that steps "
        "of this size leave the region where it holds.",
        figures=[Figure("ledger", f"{caption}{far}", panels)],
        tables=[Table(_LEDGER, rows)],
        data={one.part: {"ratio": one.ratio, "error": one.ratio_error} for one in summaries},
    )
