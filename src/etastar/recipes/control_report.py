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
from etastar.network.ledger import UpdateLedger
from etastar.network.ledger_entries import LedgerEntry
from etastar.network.two_rate import Rates
from etastar.recipes.ledger_report import ledger_section
from etastar.report import (
    COLOURS,
    Band,
    Column,
    Figure,
    Line,
    Panel,
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
_DECISIONS = [
    Column("steps", "steps taken at the looks that agreed"),
    Column("step size", "η then [parameter²/loss]"),
    Column("decision", "what the controller found, and whether it acted", numeric=False),
    Column("reason", "with the numbers of the first of these looks and their 90 % intervals", numeric=False),
]
_PLAIN = (
    "Thresholds, verdicts and ledger are about a plain step of size lr: what this optimizer makes in neither subspace. "
    "In the dominant one its step is its own rate; in the bulk lr has momentum."
)
_RATES = [
    Column("steps", "steps taken at the looks that agreed"),
    Column("bulk", "rate of the update with momentum there, least to largest [parameter²/loss]"),
    Column("dominant", "rate of the plain step in the dominant subspace, where it has one of its own"),
    Column("K", "noise-kernel norm at lr of what has momentum: the share of the loss that its noise puts back"),
    Column("why", "what decided the dominant rate", numeric=False),
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
        ledger: One that was kept, or its entries as `load_ledger` reads them.
        rates: Of `TwoRateSGD`, ``(T,)``; empty for others.
    """

    name: str
    steps: Sequence[int]
    loss: Sequence[float]
    step_sizes: Sequence[float]
    history: History
    decisions: Sequence[Decision]
    held_out: Sequence[float] = field(default_factory=list[float])
    ledger: UpdateLedger | Sequence[LedgerEntry] = ()
    rates: Sequence[Rates] = field(default_factory=list[Rates])

    def __post_init__(self) -> None:
        columns = self.loss, self.step_sizes, self.held_out or self.steps, self.rates or self.steps
        lengths = [len(self.steps), *map(len, columns)]
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
    smooth = _smooth(run.history, [decision.step for decision in acted])
    caption = (
        f"Loss; step size beside the loss thresholds, moments averaged over {_WINDOW} measurements, none across "
        "a decay by the controller, with 90 % bands. "
        "Vertical lines: decisions to decay (acted: orange; only advised: grey)."
    )
    figures = [Figure("control", caption, [_losses(run), _step_sizes(run, smooth)])]
    if len(run.history):
        shares = "Dominant share of the energy of a mini-batch gradient, which is that of a plain SGD update; "
        figures.append(Figure("shares", f"{shares}largest eigenvalue beside 2/η.", [_shares(smooth), _largest(run)]))
    section = Section(
        "control",
        "Control of the step size",
        f"{_finding(run, acted)} {_ending(run)}",
        _PLAIN if run.rates else "",
        figures=figures,
        tables=[Table(_RATES, _rate_rows(run)) if run.rates else Table(_DECISIONS, _rows(run.decisions))],
        data={"decisions": len(run.decisions), "acted": [decision.step for decision in acted]},
    )
    entries = run.ledger.entries if isinstance(run.ledger, UpdateLedger) else run.ledger
    return [section, ledger_section(entries)] if entries else [section]


def _finding(run: ControlledRun, acted: Sequence[Decision]) -> str:
    if run.rates:
        apart = [one for one in run.rates if one.dominant is not None]
        held = [one for one, lr in zip(run.rates, run.step_sizes, strict=True) if one.bulk < lr]
        return f"Two rates at {len(apart)} of {len(run.rates)} looks; the bulk's was held below lr at {len(held)}."
    called = [decision for decision in run.decisions if decision.outcome.decays]
    if not run.decisions:
        return "There were too few measurements for the controller to judge."
    if not called:
        return f"The controller looked {_times(run.decisions)}, and the step size was to be kept each time."
    told = f"acted {_times(acted)}" if acted else f"called for a decay {_times(called)} and never acted"
    return f"The controller looked {_times(run.decisions)} and {told}."


def _ending(run: ControlledRun) -> str:
    last = run.loss[-1]
    return f"The loss ends at {last:.4g}." if math.isfinite(last) else "The run diverged: take a smaller step size."


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
    marks.append(Line(run.steps, run.step_sizes, "lr" if run.rates else "η in use", COLOURS["exact"], 1.8, "dash"))
    if run.rates:
        dominant = [one.bulk if one.dominant is None else one.dominant for one in run.rates]
        marks.append(Line(run.steps, [one.bulk for one in run.rates], "rate in the bulk", COLOURS["sampled"], 1.8))
        marks.append(Line(run.steps, dominant, "in the dominant subspace", COLOURS["accent"], 1.8))
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


def _rate_rows(run: ControlledRun) -> list[list[str]]:
    """Stretches with one outcome, the last of them where there are many."""
    stretches: list[list[int]] = []
    for index, one in enumerate(run.rates):
        if stretches and run.rates[stretches[-1][0]].outcome is one.outcome:
            stretches[-1].append(index)
        else:
            stretches.append([index])
    return [_rate_row(run, stretch) for stretch in stretches[-_MOST_ROWS:]]


def _rate_row(run: ControlledRun, stretch: Sequence[int]) -> list[str]:
    found, steps = [run.rates[i] for i in stretch], [run.steps[i] for i in stretch]
    norms = [one.kernel_norm for one in found if one.kernel_norm is not None]
    return [
        f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,} ({len(steps)} looks)",
        _range([one.bulk for one in found]),
        _range([one.dominant for one in found if one.dominant is not None]) or "as the bulk",
        _range(norms) or "–",
        found[0].outcome.value,
    ]


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _times(found: Sequence[Decision]) -> str:
    return f"{len(found)} time{'' if len(found) == 1 else 's'}"


def _row(run: Sequence[Decision]) -> list[str]:
    first, last = run[0], run[-1]
    steps = f"{first.step:,}" if len(run) == 1 else f"{first.step:,} to {last.step:,} ({len(run)} looks)"
    deed = f", acted: {first.step_size:.4g} → {first.proposed:.4g}" if first.acted else ""
    return [steps, f"{first.step_size:.4g}", f"{first.outcome.value}{deed}", first.numbers]
