"""The contest as sections of a report: the aims first, then one table and one picture for every cell, losses included.

What explains an outcome is put beside it in numbers: what the meter said beforehand and during the run, what momentum
does without tuning, what basis and metering cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from etastar.recipes.contest.configuration import BASELINES, RULES, Rule
from etastar.recipes.contest.contest import Cell, Contest, Entry
from etastar.recipes.contest.judging import (
    LEVEL,
    Currency,
    Interval,
    aims,
    best_baseline,
    costs,
    geometric_mean,
    paired_ratio,
    separates,
    winner,
)
from etastar.recipes.contest.tuning import BUDGET
from etastar.report import COLOURS, Band, Column, Figure, Line, Panel, Section, Table
from etastar.report.figures import Mark

__all__ = ["contest_sections"]

_SHOWN = 3.0  # times the loss at the start: what a picture has room for
_LOOKS: dict[Rule, tuple[str, float, Any]] = {
    "SGD": (COLOURS["muted"], 1.4, "solid"),
    "momentum": (COLOURS["bulk"], 1.6, "solid"),
    "Adam": (COLOURS["sampled"], 1.6, "solid"),
    "BSFA's rule": (COLOURS["accent"], 1.6, "solid"),
    "momentum, untuned": (COLOURS["bulk"], 1.4, "dot"),
    "TwoRateSGD": (COLOURS["dominant"], 2.2, "solid"),
    "TwoRateSGD, tuned": (COLOURS["dominant"], 1.6, "dash"),
    "equilibrated": (COLOURS["critical"], 1.6, "dash"),
    "forecast": (COLOURS["exact"], 1.4, "dash"),
}
_COLUMNS = [
    Column("contestant", "tuned ones by successive halving on the training loss", numeric=False),
    Column("settings", "step size, β, factors of dominant and bulk update, schedule", numeric=False),
    Column("training loss", f"median of the last 5 % of the run; geometric mean over seeds, {LEVEL:.0%} t-interval"),
    Column("over best", "final loss over that of the best tuned baseline, paired by seed, with its interval"),
    Column("held out", "loss on the samples kept aside, geometric mean; never used for tuning"),
    Column("accuracy", "on the samples kept aside, mean over seeds"),
    Column("log₁₀ λ₁", "at the end, over the recipe's curvature samples; mean over seeds ± standard error"),
    Column("gradients", "evaluations of a batch in the whole run, basis and metering included; – where a run diverged"),
    Column("s", "training and metering, processor time of one thread; not repeatable"),
    Column(
        "steps to reach",
        "until the best tuned baseline's final loss, seen at 60 looks of a run; – where some seed never got there",
    ),
    Column("gradients to reach", "the same in gradient evaluations"),
    Column("s to reach", "the same in seconds"),
]
_AIM_COLUMNS = [
    Column("cell", "problem and batch size", numeric=False),
    Column("meter beforehand", "share of steps with two rates in a quarter-length pilot on the tuning seed", False),
    Column("who", numeric=False),
    Column("aim", numeric=False),
    Column("measured", f"ratio that decides, with its {LEVEL:.0%} interval"),
    Column(
        "verdict",
        "met, missed, or open: the interval lies on both sides, or what it is held against diverged",
        numeric=False,
    ),
    Column("won by loss", "lowest final training loss", numeric=False),
    Column("by steps", "first at the best tuned baseline's final loss, counted in steps", numeric=False),
    Column("by gradients", "counted in gradient evaluations", numeric=False),
    Column("by seconds", "counted in seconds", numeric=False),
]


def contest_sections(contest: Contest) -> list[Section]:
    """The aims, then cell by cell."""
    return [_aims_section(contest), *(_cell_section(cell, contest) for cell in contest.cells)]


def _aims_section(contest: Contest) -> Section:
    plan = contest.plan
    judged = [(cell, aim) for cell in contest.cells for aim in aims(cell)]
    counts = ", ".join(
        f"{sum(aim.verdict.name == name for _, aim in judged)} {name.lower()}" for name in ("MET", "OPEN", "MISSED")
    )
    finding = (
        f"Of {len(judged)} aims {counts}. {plan.steps:,} steps, {plan.seeds} seeds; {', '.join(BASELINES)} tuned with "
        f"{BUDGET} full runs each on the training loss, at other seeds; TwoRateSGD and the policies untuned. No aim is "
        "judged by the tuned TwoRateSGD."
    )
    reading = (
        "TwoRateSGD is asked to reach the best tuned baseline's final loss in half the steps where a pilot on the "
        "tuning seed says that the thresholds separate, and to end within 1.2 times of it elsewhere. The best baseline "
        "is chosen by its finals, which favours it. Nothing was tuned on samples kept aside."
    )
    rows = [_aim_row(cell, index, aim) for cell in contest.cells for index, aim in enumerate(aims(cell))]
    data = {"steps": plan.steps, "seeds": plan.seeds, "aims": [_aim_data(cell, aim) for cell, aim in judged]}
    return Section("aims", "The contest", finding, reading, tables=[Table(_AIM_COLUMNS, rows)], data=data)


def _aim_row(cell: Cell, index: int, aim: Any) -> list[str]:
    first = index == 0
    kinds: tuple[Currency | None, ...] = (None, "steps", "gradients", "seconds")
    return [
        _name(cell) if first else "",
        f"{cell.pilot.apart:.0%}: {'separate' if separates(cell) else 'together'}" if first else "",
        aim.rule,
        aim.statement,
        _interval(aim.measured),
        aim.verdict.name.lower(),
        *(winner(cell, kind).rule if first else "" for kind in kinds),
    ]


def _aim_data(cell: Cell, aim: Any) -> dict[str, Any]:
    return {
        "problem": cell.problem,
        "batch_size": cell.batch_size,
        "pilot_apart": cell.pilot.apart,
        "rule": aim.rule,
        "aim": aim.statement,
        "measured": _plain(aim.measured),
        "verdict": aim.verdict.name.lower(),
    }


def _cell_section(cell: Cell, contest: Contest) -> Section:
    best = best_baseline(cell)
    rows = [_row(entry, best) for entry in cell.entries]
    lowest = winner(cell)
    finding = (
        f"{lowest.rule} ends lowest, at {_interval(geometric_mean(_losses(lowest)))}; the best tuned baseline is "
        f"{best.rule} ({best.configuration.settings}), at {_interval(geometric_mean(_losses(best)))}."
    )
    return Section(
        f"{cell.problem}-{cell.batch_size}",
        _name(cell),
        finding,
        _explanation(cell, best),
        figures=[_figure(cell, best)],
        tables=[Table(_COLUMNS, rows)],
        data={"entries": [_entry_data(entry, best) for entry in cell.entries]},
    )


def _explanation(cell: Cell, best: Entry) -> str:
    two_rates, untuned = cell.entry("TwoRateSGD"), cell.entry("momentum, untuned")
    counted: dict[str, int] = {}
    for run in two_rates.runs:
        for name, steps in run.outcomes.items():
            counted[name] = counted.get(name, 0) + steps
    total = sum(counted.values()) or 1
    seen = ", ".join(f"{name} {steps / total:.0%}" for name, steps in sorted(counted.items(), key=lambda one: -one[1]))
    steps = two_rates.configuration.steps
    extra = np.mean([run.gradients[-1] for run in two_rates.runs]) / steps - 1
    pilot = max(cell.pilot.outcomes, key=lambda name: cell.pilot.outcomes[name], default="nothing")
    return (
        f"The pilot mostly said {pilot}; in the finals the rates were decided by: {seen}. Final loss of TwoRateSGD "
        f"over that of momentum with the same step size and β: {_interval(paired_ratio(two_rates, untuned))}; of that "
        f"momentum over the best tuned baseline: {_interval(paired_ratio(untuned, best))}. The first factor is what "
        f"two rates do, the second what tuning does. Basis and metering cost TwoRateSGD {extra:.2g} more gradients a "
        f"step. {_decays(cell)}{_edges(cell)}"
    )


def _decays(cell: Cell) -> str:
    told: list[str] = []
    for rule in ("equilibrated", "forecast"):
        runs = cell.entry(rule).runs
        told.append(f"{rule} {', '.join(f'{run.step_sizes[0] / run.step_sizes[-1]:.3g}' for run in runs)}")
    return f"The policies divided the step size by (1: never decayed), seed by seed: {'; '.join(told)}."


def _edges(cell: Cell) -> str:
    failed = [entry.rule for entry in cell.entries if not math.isfinite(geometric_mean(_losses(entry)).value)]
    return f" Diverged at some seed: {', '.join(failed)}." if failed else ""


def _figure(cell: Cell, best: Entry) -> Figure:
    panels = [_panel(cell, best, "steps", "step"), _panel(cell, best, "gradients", "gradient evaluations")]
    caption = (
        f"{_name(cell)}: training loss, geometric mean over {len(best.runs)} seeds; bands of {LEVEL:.0%} for TwoRateSGD"
        f" and the best tuned baseline, {best.rule}. Basis and metering are included on the right. "
        f"A curve ends where a run diverged or the loss passes {_SHOWN:g} times that at the start."
    )
    return Figure(f"contest-{cell.problem}-{cell.batch_size}", caption, panels, size=(5.6, 4.2))


def _panel(cell: Cell, best: Entry, against: Currency, label: str) -> Panel:
    marks: list[Mark] = []
    most = _SHOWN * max(run.losses[0] for entry in cell.entries for run in entry.runs)
    for entry in cell.entries:
        colour, width, dash = _LOOKS[entry.rule]
        reached = min(len(run.losses) for run in entry.runs)
        curve = [geometric_mean([run.losses[i] for run in entry.runs]) for i in range(reached)]
        x = np.mean([getattr(run, against)[:reached] for run in entry.runs], axis=0)
        if entry.rule in ("TwoRateSGD", best.rule):
            low, high = (_column(curve, end, most) for end in ("low", "high"))
            marks.append(Band(x, low, high, colour=colour))
        marks.append(Line(x, _column(curve, "value", most), entry.rule, colour, width, dash))
    return Panel(label, "training loss", marks, y_scale="log", legend=against == "steps")


def _column(curve: Sequence[Interval], name: str, most: float) -> list[float]:
    """One end of the intervals; a run on its way to infinity would leave the others a flat line."""
    return [getattr(one, name) if one.value <= most else math.nan for one in curve]


def _row(entry: Entry, best: Entry) -> list[str]:
    runs = entry.runs
    held_out = geometric_mean([run.held_out_loss for run in runs])
    logs = np.log10([max(run.largest_eigenvalue, 1e-300) for run in runs])
    whole = all(math.isfinite(run.final_loss) for run in runs)
    currencies: tuple[Currency, ...] = ("steps", "gradients", "seconds")
    return [
        entry.rule,
        entry.configuration.settings,
        _interval(geometric_mean(_losses(entry))),
        "1" if entry is best else _interval(paired_ratio(entry, best)),
        _number(held_out.value),
        _number(float(np.mean([run.accuracy for run in runs])), ".3f"),
        f"{logs.mean():.2f} ± {logs.std(ddof=1) / math.sqrt(len(logs)):.2f}" if whole else "–",
        *(
            _number(float(np.mean([getattr(run, name)[-1] for run in runs])) if whole else math.nan, form)
            for name, form in (("gradients", ",.0f"), ("seconds", ",.3g"))
        ),
        *(_number(costs(entry, best, name).value, ",.3g" if name == "seconds" else ",.0f") for name in currencies),
    ]


def _entry_data(entry: Entry, best: Entry) -> dict[str, Any]:
    return {
        "rule": entry.rule,
        "what": RULES[entry.rule],
        "settings": entry.configuration.settings,
        "tuned_with": entry.spent,
        "final_loss": _plain(geometric_mean(_losses(entry))),
        "over_best": _plain(paired_ratio(entry, best)),
        "held_out_loss": [_finite(run.held_out_loss) for run in entry.runs],
        "accuracy": [_finite(run.accuracy) for run in entry.runs],
        "largest_eigenvalue": [_finite(run.largest_eigenvalue) for run in entry.runs],
        "gradients": [run.gradients[-1] for run in entry.runs],
        "seconds": [run.seconds[-1] for run in entry.runs],
        "apart": [run.apart for run in entry.runs],
        "to_reach": {name: _plain(costs(entry, best, name)) for name in ("steps", "gradients", "seconds")},
    }


def _losses(entry: Entry) -> list[float]:
    return [run.final_loss for run in entry.runs]


def _name(cell: Cell) -> str:
    return f"{cell.problem}, batch {cell.batch_size}"


def _interval(one: Interval) -> str:
    if math.isnan(one.value):
        return "the other diverged"
    if not math.isfinite(one.value):
        return "never, or diverged"
    return f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"  # two digits would show 1.02 as a border of 1


def _number(value: float, form: str = ".3g") -> str:
    if not math.isfinite(value):
        return "–"
    return format(value, form)


def _plain(one: Interval) -> dict[str, float | None]:
    return {name: _finite(getattr(one, name)) for name in ("value", "low", "high")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
