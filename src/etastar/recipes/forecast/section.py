"""The decay forecast as a section of a report: one picture, one table, and what it cost."""

from __future__ import annotations

import math

import numpy as np

from etastar.network.forecast import ForecastOutcome, LossForecast
from etastar.recipes.forecast.run import WITHIN, CheckpointForecast, ForecastRun
from etastar.report import COLOURS, Band, Column, Figure, Line, Panel, Points, Section, Table
from etastar.report.figures import Mark

__all__ = ["forecast_rows", "forecast_section"]

_COLUMNS = [
    Column("step", "steps taken before the checkpoint"),
    Column("T", "decayed steps"),
    Column("drop", "loss at the checkpoint minus the mean final loss of the decayed runs, with its standard error"),
    Column("forecast", "expected drop, from the checkpoint alone, with its interval"),
    Column("ratio", "forecast over drop"),
    Column("simple", "½ Σ_D g²/λ + η q₀_B/4, over the drop"),
    Column("dominant", "share of the forecast that comes from the dominant subspace"),
    Column("larger batch", "the drop that a larger batch brings at the same step, and the forecast of it over it"),
]


def forecast_section(run: ForecastRun) -> Section:
    """The forecasts beside the drops: one picture, one table."""
    count, plan = len(run.rows), run.plan
    unresolved = sum(row.forecast.decayed.outcome is not ForecastOutcome.FORECAST for row in run.rows)
    within = {kind: run.within(kind) for kind in ("decayed", "quadratic", "simple")}
    finding = (
        f"{within['decayed']} of {count} forecasts lie within {WITHIN:.0%} of the drop that came, from the checkpoint "
        f"alone and with no fitted constant; the quadratic model alone {within['quadratic']}, the simple formula "
        f"{within['simple']}. {unresolved} unresolved; at {run.covered()} the intervals of both meet."
    )
    caption = (
        f"{plan.recipe}, {plan.loss}: η = {plan.step_size:g}, b = {plan.batch_size}, then a step of "
        f"{plan.factor * plan.step_size:.3g} for T steps. Intervals of 90 %; drops are means of {plan.repeats} runs. "
        f"The cone is ± {WITHIN:.0%}; error bars end at zero."
    )
    return Section(
        "forecast",
        "What decaying the step gives back",
        finding,
        reading=_cost(run),
        figures=[Figure("forecast", caption, _panels(run))],
        tables=[Table(_COLUMNS, forecast_rows(run))],
        data=run.to_json(),
    )


def forecast_rows(run: ForecastRun) -> list[list[str]]:
    """Formatted rows, one per checkpoint, under the columns of `forecast_section`."""
    return [_formatted(row) for row in run.rows]


def _panels(run: ForecastRun) -> list[Panel]:
    shown = [row for row in run.rows if row.forecast.decayed.outcome is not ForecastOutcome.UNSTABLE]
    drops = np.array([row.decayed.value for row in shown])
    forecasts = [row.forecast.decayed.drop for row in shown]
    steps = [row.step for row in run.rows]
    middle = [forecast.value for forecast in forecasts]
    # An interval that reaches beyond zero would shrink everything else.
    half = [min(0.5 * (forecast.high - forecast.low), abs(forecast.value)) for forecast in forecasts]
    ends = np.array([0.9 * drops.min(), 1.1 * drops.max()]) if len(drops) else np.array([0.0, 1.0])
    against: list[Mark] = [
        Band(ends, (1 - WITHIN) * ends, (1 + WITHIN) * ends, f"± {WITHIN:.0%}", COLOURS["muted"]),
        Line(ends, ends, "forecast = drop", COLOURS["exact"], 1.0, "dash"),
        Points(drops, [row.forecast.simple for row in shown], "simple formula", COLOURS["accent"]),
        Points(drops, middle, "forecast", COLOURS["sampled"], half),
    ]
    error = [row.decayed.high - row.decayed.value for row in run.rows]
    measured = Points(steps, [row.decayed.value for row in run.rows], "drop that came", COLOURS["exact"], error)
    along: list[Mark] = [
        Line(steps, [row.forecast.decayed.drop.value for row in run.rows], "forecast", COLOURS["sampled"]),
        Line(steps, [row.forecast.decayed.dominant.value for row in run.rows], "dominant part", COLOURS["dominant"]),
        Line(steps, [row.forecast.decayed.bulk.value for row in run.rows], "bulk part", COLOURS["bulk"]),
        measured,
    ]
    return [
        Panel("drop that came", "forecast from the checkpoint", against),
        Panel("step", "loss drop", along),
    ]


def _cost(run: ForecastRun) -> str:
    forecast, decayed = (float(np.median([row.seconds[i] for row in run.rows])) for i in range(2))
    cheaper = "trying" if decayed * run.plan.repeats < forecast else "the forecast"
    return (
        f"A forecast takes {forecast:.2g} s with its basis, a decayed run {decayed:.2g} s (medians): {cheaper} is the "
        "cheaper here. The forecast says besides in which subspace the loss would fall, how much of it noise puts "
        "back, and what a larger batch would give. Left out of its interval: that a single run wanders about the mean."
    )


def _formatted(row: CheckpointForecast) -> list[str]:
    forecast, drop = row.forecast.decayed, row.decayed.value
    larger = row.forecast.larger_batch
    more = f"{row.larger_batch.value:.4f}"
    unstable = ForecastOutcome.UNSTABLE
    return [
        f"{row.step:,}",
        str(forecast.plan.steps),
        f"{drop:.5f} ± {row.decayed.standard_error:.5f}",
        _interval(forecast),
        "–" if forecast.outcome is unstable else f"{forecast.drop.value / drop:.3f}",
        f"{row.forecast.simple / drop:.3f}" if math.isfinite(row.forecast.simple) else "–",
        "–" if forecast.outcome is unstable else f"{forecast.dominant.value / forecast.drop.value:.0%}",
        more + (", unstable" if larger.outcome is unstable else f", {larger.drop.value / row.larger_batch.value:.3f}"),
    ]


def _interval(forecast: LossForecast) -> str:
    if forecast.outcome is ForecastOutcome.UNSTABLE:
        return "unstable"
    drop = forecast.drop
    note = ", unresolved" if forecast.outcome is ForecastOutcome.UNRESOLVED else ""
    return f"{drop.value:.5f} ({drop.low:.5f} to {drop.high:.5f}){note}"
