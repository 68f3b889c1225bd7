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
_STEP = Column("step", "steps taken before")
_REAL = "by real steps"
_TURN_COLUMNS = [
    _STEP,
    Column("training loss", "over all training samples"),
    Column("alignment", "θ, exact: the dominant subspace's share of the squared gradient"),
    Column(_REAL, "η* at which the mean alignment of real mini-batch steps turns, ± standard error"),
    Column("by the meter", "η* from its own noise probes, with its 90 % interval"),
    Column("meter over real", "1 is right; where the meter gives a value it trusts"),
    Column("moved by higher orders", "share by which they move the meter's η*, or the slope of the turn"),
    Column("off by, standard errors", "(exact prediction − real)/standard error of the real one"),
    Column("alignment, as predicted", "next step at η in use; open where the interval holds η", numeric=False),
    Column("alignment, really", "mean over the real steps at η in use; open within two standard errors", numeric=False),
]
_ORDER_COLUMNS = [
    _STEP,
    Column(_REAL, "η* at which the mean alignment of real mini-batch steps turns, ± standard error"),
    Column("quadratic model", "η* from ⟨Sg, Hv⟩ and ‖SHv‖² of the same batches"),
    Column("with third derivative", "η* with its linear term ⟨Sg, T[v,v]⟩ too"),
    Column("through η⁴", "η* with the energies through the fourth power of the step: the paired prediction"),
    Column("error of the last", "paired over real, less one"),
    Column("meter trusts η*", "whether higher orders move it little enough", numeric=False),
]
_THRESHOLD_COLUMNS = [
    _STEP,
    Column("update", "of which subspace", numeric=False),
    Column(_REAL, "step at which the mean loss change of real mini-batch updates changes sign, ± standard error"),
    Column("same batches", "predicted by the quadratic model of the batches that were stepped along"),
    Column("by the meter", "from its own probes, with its 90 % interval"),
    Column("meter over real", "1 is right"),
    Column("real over 2/λ₁", "far above 1 the quadratic model has no say"),
]
_COVERAGE_COLUMNS = [
    Column("loss meant", "training: of the given samples; population: the one they are drawn from", numeric=False),
    Column("quantity", numeric=False),
    Column("hold the exact value", "of the resolved 90 % intervals; exact: no sampling error, nothing to cover"),
    Column("unresolved", "measurements that give no interval, or one they do not trust, though there is a value"),
    Column("upper over lower end", "median of the resolved intervals: 1 is no uncertainty"),
    Column("without a value", "measurements where no exact value exists"),
    Column("of these, misled", "gave a trusted interval all the same"),
]
_TURN_CAPTION = (
    "Where the alignment turns: the step size η* at which real steps stop lowering it, beside the meter's own "
    "prediction, in the unit of η. Goal: where the meter's interval excludes the step in use, the predicted direction "
    "is the real one."
)
_ORDER_CAPTION = (
    "How far the expansion carries: η* by the same real steps, and predicted from their very batches, order by order, "
    "all in the unit of η. Goal of the last order: within 1 % (median) and 3 % (worst)."
)
_THRESHOLD_CAPTION = (
    "Where an update begins to raise the loss: real updates of each subspace, and both predictions, in the unit of η. "
    "No goal: far beyond 2/λ₁ it must fail."
)
_COVERAGE_CAPTION = (
    "How often the meter's 90 % intervals hold the exact value, over fresh remeasurements at all checkpoints. Goal: "
    "80 to 97 %."
)
_TITLES = {
    "η*": "alignment turns",
    "η_D": "dominant update",
    "η_B": "bulk update",
    "η_full": "full update",
}
_UPDATES = {"η_D": "dominant", "η_B": "bulk", "η_full": "full"}


def calibration_section(calibration: Calibration) -> Section:
    """Tables, figure and checks of one calibration."""
    plan, rows = calibration.plan, calibration.rows
    errors = calibration.paired_errors
    name = plan.recipe if plan.loss is None else f"{plan.recipe}, {plan.loss}"
    return Section(
        "calibration",
        f"Calibration on real steps: {name}",
        f"At {len(rows)} checkpoints of a run at η = {plan.step_size:g}, b = {plan.batch_size}, "
        f"{plan.batches} real mini-batch steps each, the dominant subspace held fixed. Real steps turn the "
        f"[[alignment]] at {len(errors)} of them" + (_WHY_NONE if len(errors) < len(rows) else "."),
        reading="Paired predictions know the mini-batches that were stepped along and derivatives of the loss at the "
        "checkpoint, but no gradient near the steps tested: they show that the expansion carries from the point to the "
        "turn, not that the meter's noise estimate is right. That is for its independent prediction, which differs "
        "from real steps by their sampling error too. A loss threshold many times 2/λ₁ lies where the quadratic model "
        "of the loss does not hold, and is predicted wrong.",
        checks=list(_checks(calibration)),
        figures=[_figure(calibration)],
        tables=[
            Table(_TURN_COLUMNS, [_turn_row(row, plan.step_size) for row in rows], _TURN_CAPTION),
            Table(_ORDER_COLUMNS, [_order_row(row) for row in rows], _ORDER_CAPTION),
            Table(_THRESHOLD_COLUMNS, [cells for row in rows for cells in _threshold_rows(row)], _THRESHOLD_CAPTION),
            Table(_COVERAGE_COLUMNS, _coverage_rows(calibration), _COVERAGE_CAPTION),
        ],
        data=calibration.to_json(),
    )


def _checks(calibration: Calibration) -> Iterator[Check]:
    errors, apart = calibration.paired_errors_trusted, calibration.paired_errors_apart
    if errors:
        yield Check(
            "The expansion holds where the meter trusts it: paired prediction of η* within 1 % (median), 3 % (worst)",
            float(np.median(errors)) <= 0.01 and max(errors) <= 0.03,
            _errors(errors)
            + (f"; apart, where higher orders are too large to trust: {_errors(apart)}" if apart else ""),
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
    panels = [_panel(calibration, name) for name in ("η*", *_UPDATES)]
    return Figure(
        "calibration",
        "Step sizes at which the alignment turns, and from which updates raise the loss: by real steps (points, "
        "± standard error) and by the meter (line, 90 % band; none where it is not trusted). Dashed: the step in use.",
        panels,
    )


def _panel(calibration: Calibration, name: str) -> Panel:
    rows = calibration.rows
    steps = [row.step for row in rows]
    compared = [row.compared[name] for row in rows]

    def shown(attribute: str) -> list[float]:
        return [getattr(one, attribute) if one.resolved else float("nan") for one in compared]

    marks: list[Band | Line | Points | Reference] = [
        Band(steps, shown("low"), shown("high"), "predicted, 90 %", COLOURS["critical"]),
        Line(steps, shown("predicted"), "predicted", COLOURS["critical"]),
        Points(steps, shown("predicted"), "", COLOURS["critical"]),  # a lone one would be no line
        Points(
            steps,
            [one.measured.value for one in compared],
            "real steps",
            COLOURS["exact"],
            [one.measured.standard_error for one in compared],
        ),
        Reference(calibration.plan.step_size, "y", "η in use"),
    ]
    return Panel("step", f"{name}, step size", marks, _TITLES[name], x_scale="log", y_scale="log")


def _turn_row(row: CalibrationRow, step_size: float) -> list[str]:
    one = row.compared["η*"]
    measured = one.measured.value
    signs = {1: "rises", -1: "falls", 0: "open"}
    return [
        f"{row.step:,}",
        f"{row.loss:.4g}",
        f"{row.alignment:.3f}",
        _measured(one),
        _interval(one) if row.trusted else "not trusted",
        _number(one.predicted / measured, ".3f") if one.resolved else "–",
        _number(row.shift, ".1%") if row.shift < 100 else "no turn",
        _number((one.exact - measured) / one.measured.standard_error, ".1f"),
        signs[row.predicted_sign(step_size)],
        signs[row.real_sign],
    ]


def _order_row(row: CalibrationRow) -> list[str]:
    one, paired = row.compared["η*"], row.paired
    orders = [_number(step, ".4g") for step in (paired.quadratic, paired.third, paired.whole)]
    error = _number(paired.whole / one.measured.value - 1.0, "+.2%")
    return [f"{row.step:,}", _measured(one), *orders, error, "yes" if row.trusted else "no"]


def _threshold_rows(row: CalibrationRow) -> Iterator[list[str]]:
    for name, update in _UPDATES.items():
        one = row.compared[name]
        measured = one.measured.value
        yield [
            f"{row.step:,}",
            f"{update} ({name})",
            _measured(one),
            _number(one.paired, ".4g"),
            _interval(one),
            _number(one.predicted / measured, ".3f") if one.resolved else "–",
            _number(measured / row.stability_limit, ".2f"),
        ]


def _coverage_rows(calibration: Calibration) -> list[list[str]]:
    return [
        [
            target,
            name,
            "exact"
            if found.width <= _WIDTH and found.covered == found.resolved
            else f"{_number(found.share, '.1%')} of {found.resolved}",
            f"{found.unresolved}",
            _number(found.width, ".3f"),
            f"{found.nothing}",
            f"{found.misled}" if found.nothing else "–",
        ]
        for (target, name), found in calibration.coverage.items()
    ]


def _errors(errors: list[float]) -> str:
    return f"median {np.median(errors):.2%}, worst {max(errors):.2%} over {len(errors)} checkpoints"


def _measured(one: Compared) -> str:
    low, high = one.measured.tried
    if not one.measured.found:
        return f"no turn from {low:.3g} to {high:.3g}"
    return f"{one.measured.value:.4g} ± {one.measured.standard_error:.2g}"


def _interval(one: Compared) -> str:
    return f"{one.predicted:.4g} ({one.low:.4g} to {one.high:.4g})" if one.resolved else "unresolved"


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "–"
