"""The calibration as a section of a report: tables as they come out, one figure, and the goals as checks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from etastar.recipes.calibration.result import Calibration, CalibrationRow, Compared
from etastar.report import COLOURS, Band, Check, Column, Figure, Line, Panel, Points, Reference, Section, Table

__all__ = ["calibration_section"]

_LEAST_COVERAGE, _MOST_COVERAGE = 0.80, 0.97
_ENOUGH = 50  # intervals from which a share of them is judged: its own standard error is 4 % then
_WIDTH = 1.001  # high/low up to which a quantity counts as known exactly: it has no sampling error to cover
_WHY_NONE = (
    "; at the others it moves one way at every step size tried, which a quadratic model does not see: near the edge of "
    "stability the dominant motion feeds the bulk through the third derivative, and faster than it grows itself."
)
_THRESHOLDS = ("η_D", "η_B", "η_full")
_TURN_COLUMNS = [
    Column("step", "steps taken before"),
    Column("loss", "over all training samples"),
    Column("θ", "alignment, exact"),
    Column("η/η*", "the step in use over the measured η*"),
    Column("η* measured", "step at which the mean alignment of real mini-batch steps turns, ± standard error"),
    Column("quadratic", "paired prediction over measured: quadratic model of the same batches"),
    Column("+ T", "the same with the third derivative's linear term ⟨Sg, T[v,v]⟩"),
    Column("paired", "the same with the energies through η⁴: the paired prediction"),
    Column("η* predicted", "by the meter from its own probes, 90 % interval"),
    Column("ratio", "the meter's value over the measured one"),
    Column("z", "(exact prediction − measured)/standard error of the measured one"),
    Column(
        "shift",
        "share by which orders beyond the quadratic model move the meter's η*, or the turn's slope; trusted to 20 %",
    ),
    Column("sign", "of the change of alignment at the step in use: predicted, and of real steps", numeric=False),
]
_THRESHOLD_COLUMNS = [
    Column("step", "steps taken before"),
    *(
        Column(text, meaning)
        for name in _THRESHOLDS
        for text, meaning in (
            (f"{name} measured", "step at which the mean loss change of real mini-batch updates changes sign, ± s.e."),
            ("paired", "predicted from the same batches, over measured"),
            ("predicted", "by the meter, over measured, with its 90 % interval"),
        )
    ),
]
_COVERAGE_COLUMNS = [
    Column("target", "training: given samples are the loss; population: they are drawn from it", numeric=False),
    Column("quantity", numeric=False),
    Column("coverage", "share of resolved 90 % intervals that hold the exact value"),
    Column("resolved", "intervals, where an exact value exists"),
    Column("unresolved", "measurements that give none, or one they do not trust"),
    Column("median width", "upper over lower end"),
    Column("no value", "measurements where no exact value exists, and how many of them gave an interval all the same"),
]


def calibration_section(calibration: Calibration) -> Section:
    """Tables, figure and checks of one calibration."""
    plan, rows = calibration.plan, calibration.rows
    errors = calibration.paired_errors
    name = plan.recipe if plan.loss is None else f"{plan.recipe}, {plan.loss}"
    return Section(
        "calibration",
        f"Calibration on real steps: {name}",
        f"At {len(rows)} checkpoints of a run at η = {calibration.step_size:g}, b = {calibration.batch_size}, "
        f"{calibration.batches} real mini-batch steps each, the dominant subspace held fixed. Real steps turn the "
        f"[[alignment]] at {len(errors)} of them" + (_WHY_NONE if len(errors) < len(rows) else "."),
        reading="Paired predictions use the mini-batches whose steps were made, so that only the expansion is tested; "
        "the meter's are independent, and beside the measured ones they carry the sampling error of those. A loss "
        "threshold many times 2/λ₁ lies where the quadratic model of the loss does not hold, and is predicted wrong.",
        checks=list(_checks(calibration)),
        figures=[_figure(calibration)],
        tables=[
            Table(_TURN_COLUMNS, [_turn_row(row, calibration.step_size) for row in rows], "Where the alignment turns."),
            Table(_THRESHOLD_COLUMNS, [_threshold_row(row) for row in rows], "Where updates begin to raise the loss."),
            Table(_COVERAGE_COLUMNS, _coverage_rows(calibration), "Intervals, against the exact value."),
        ],
        data=calibration.to_json(),
    )


def _checks(calibration: Calibration) -> Iterator[Check]:
    errors = calibration.paired_errors
    if errors:
        median, worst = float(np.median(errors)), max(errors)
        yield Check(
            "The expansion holds: paired prediction of η* within 1 % (median) and 3 % (worst) of real steps",
            median <= 0.01 and worst <= 0.03,
            f"median {median:.2%}, worst {worst:.2%} over {len(errors)} checkpoints",
        )
    yield Check(
        "Whether the alignment turns at all is predicted",
        calibration.turns_agree == len(calibration.rows),
        f"{calibration.turns_agree} of {len(calibration.rows)} checkpoints",
    )
    yield Check(
        "No sign is predicted wrongly where the interval of η* excludes the step in use",
        calibration.wrong_signs == 0,
        f"{calibration.wrong_signs} wrong of {calibration.signs} that real steps decide",
    )
    for (target, name), found in calibration.coverage.items():
        if found.resolved >= _ENOUGH and found.width > _WIDTH:
            yield Check(
                f"90 % intervals of {name} cover as they should ({target})",
                _LEAST_COVERAGE <= found.share <= _MOST_COVERAGE,
                f"{found.share:.1%} of {found.resolved}, {found.unresolved} unresolved, width {found.width:.3g}",
            )


def _figure(calibration: Calibration) -> Figure:
    panels = [_panel(calibration, name) for name in ("η*", *_THRESHOLDS)]
    return Figure("calibration", "Real mini-batch steps (points, ± s.e.) and the meter's predictions (bands).", panels)


def _panel(calibration: Calibration, name: str) -> Panel:
    rows = calibration.rows
    steps = [row.step for row in rows]
    compared = [row.compared[name] for row in rows]

    def shown(attribute: str) -> list[float]:
        return [getattr(one, attribute) if one.resolved else float("nan") for one in compared]

    marks: list[Band | Line | Points | Reference] = [
        Band(steps, shown("low"), shown("high"), "predicted, 90 %", COLOURS["critical"]),
        Line(steps, shown("predicted"), "predicted", COLOURS["critical"]),
        Points(
            steps,
            [one.measured.value for one in compared],
            "real steps",
            COLOURS["exact"],
            [one.measured.standard_error for one in compared],
        ),
        Reference(calibration.step_size, "y", "η in use"),
    ]
    return Panel("step", name, marks, name, x_scale="log", y_scale="log")


def _turn_row(row: CalibrationRow, step_size: float) -> list[str]:
    one, paired = row.compared["η*"], row.paired
    measured = one.measured.value
    signs = {1: "rises", -1: "falls", 0: "open"}
    return [
        f"{row.step:,}",
        f"{row.loss:.4g}",
        f"{row.alignment:.3f}",
        _number(step_size / measured, ".3f"),
        _measured(one),
        *(_over(step, measured) for step in (paired.quadratic, paired.third, paired.whole)),
        _interval(one),
        _number(one.predicted / measured, ".3f") if one.resolved else "–",
        _number((one.exact - measured) / one.measured.standard_error, ".1f"),
        _number(row.shift, ".1%") if row.shift < 100 else "no turn",
        f"{signs[row.predicted_sign(step_size)]}, {signs[row.real_sign]}",
    ]


def _threshold_row(row: CalibrationRow) -> list[str]:
    cells = [f"{row.step:,}"]
    for name in _THRESHOLDS:
        one = row.compared[name]
        ratios = [value / one.measured.value for value in (one.predicted, one.low, one.high)]
        told = "{:.3f} ({:.3f} to {:.3f})".format(*ratios) if one.resolved and one.measured.found else "unresolved"
        cells += [_measured(one), _number(one.paired / one.measured.value, ".3f"), told]
    return cells


def _coverage_rows(calibration: Calibration) -> list[list[str]]:
    return [
        [
            target,
            name,
            "exact" if found.width <= _WIDTH and found.covered == found.resolved else _number(found.share, ".1%"),
            f"{found.resolved}",
            f"{found.unresolved}",
            _number(found.width, ".3f"),
            f"{found.nothing} ({found.misled})",
        ]
        for (target, name), found in calibration.coverage.items()
    ]


def _measured(one: Compared) -> str:
    low, high = one.measured.tried
    if not one.measured.found:
        return f"no turn from {low:.3g} to {high:.3g}"
    return f"{one.measured.value:.4g} ± {one.measured.standard_error:.2g}"


def _interval(one: Compared) -> str:
    return f"{one.predicted:.4g} ({one.low:.4g} to {one.high:.4g})" if one.resolved else "unresolved"


def _over(predicted: float, measured: float) -> str:
    """Their ratio; the prediction itself where real steps have no turn."""
    if np.isfinite(predicted) and not np.isfinite(measured):
        return f"at {predicted:.3g}"
    return _number(predicted / measured, ".3f")


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "–"
