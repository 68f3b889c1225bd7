"""The picture of a ledger: whether each part of the update lowers the loss, and whether that was predicted.

Loss changes span orders of magnitude along a run, so that every checkpoint is drawn in a unit of its own: the sizes of
the first- and second-order terms behind the prediction, together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from etastar.network.ledger_entries import PARTS, LedgerEntry, LedgerSummary, ledger_summary
from etastar.report import COLOURS, Band, Column, Figure, Label, Line, Panel, Points, Reference, Section, Table
from etastar.uncertainty import Estimate

__all__ = ["ledger_section"]

Array = npt.NDArray[np.float64]
_ENDS = ("value", "low", "high")
_LEAST_RANGE, _MOST_RANGE = 1.2, 3.0  # of the axis, in units of a checkpoint: predictions lie in [−1, 1]
_CAPTION = (
    "Change of the loss by each part of the update alone, made on real mini-batches, over |first-order term| + "
    "|second-order term| of its prediction: −1, it falls as the gradient says; 0, no change; +1, it rises as curvature "
    "and noise say. Where the part descends, the prediction is (η − η_S)/(η + η_S), η_S its loss threshold. Bars and "
    "bands: 90 % intervals; a triangle: beyond the axis, its number is in the table."
)
_READING = (
    "Predictions are those of the quadratic model at the checkpoint: a dominant part that misses them says that "
    "steps of this size leave the region where it holds. On held-out samples, what the training loss does not share "
    "with theirs is seen too."
)
_PARTS = [
    Column("part", "the update projected on the dominant subspace or the bulk, or the whole", numeric=False),
    Column("checkpoints", "checkpoints with both numbers"),
    Column("lowered", "checkpoints at which the 90 % interval of the measured change lies below zero"),
    Column("raised", "checkpoints at which it lies above zero"),
    Column("met", "checkpoints at which measured − predicted is within the 90 % intervals of both, added in squares"),
    Column(
        "measured/predicted",
        "sum of measured over sum of predicted loss changes ± standard error; none where predicted changes cancel",
    ),
    Column("deviation", "root mean square of (measured − predicted)/standard error; about 1 where errors are honest"),
]
_CHECKPOINTS = [
    Column("step", "steps taken before the checkpoint"),
    Column("step size", "η then [parameter²/loss]"),
    *(Column(part, "loss change: predicted, then measured ± standard error [loss]") for part in PARTS),
]


def ledger_section(entries: Sequence[LedgerEntry]) -> Section:
    """The entries of a ledger, one at least, as a section of a report."""
    summaries = ledger_summary(entries)
    told = "; ".join(
        f"{one.part}: lowered the loss at {one.lowered} and raised it at {one.raised}, as predicted at {one.met}"
        for one in summaries
    )
    return Section(
        "ledger",
        "Ledger: updates tried, part by part",
        f"Of {len(entries)} checkpoints, {told}.",
        _READING,
        figures=[Figure("ledger", _CAPTION, [_panel(entries, part) for part in PARTS])],
        tables=[Table(_PARTS, list(map(_part_row, summaries))), Table(_CHECKPOINTS, list(map(_row, entries)))],
        data={one.part: _data(one) for one in summaries},
    )


def _panel(entries: Sequence[LedgerEntry], part: str) -> Panel:
    steps = np.array([float(entry.step) for entry in entries])
    unit = np.array([_unit(entry, part) for entry in entries])
    with np.errstate(invalid="ignore"):  # an update may lead to where the loss is infinite
        said, low, high = (_ends([entry.predicted[part] for entry in entries], end) / unit for end in _ENDS)
        seen, _, top = (_ends([entry.measured[part] for entry in entries], end) / unit for end in _ENDS)
        bar = top - seen
    reach = float(np.nanmax([_LEAST_RANGE, *(1.05 * (np.abs(seen) + np.nan_to_num(bar)))]))
    limit = min(reach, _MOST_RANGE)
    beyond = np.abs(seen) > limit
    marks = [
        *(Reference(value, colour="#d5d5d5") for value in (-1.0, 1.0)),
        Reference(0.0, colour=COLOURS["exact"]),
        Band(steps, low, high, "", COLOURS["muted"]),
        Line(steps, said, "predicted", COLOURS["muted"], 2.0),
        Points(steps, said, "", COLOURS["muted"]),
        Points(steps[~beyond], seen[~beyond], "measured", COLOURS[part], bar[~beyond]),
        *(
            Label(x, float(np.copysign(0.95 * limit, y)), "▲" if y > 0 else "▼", COLOURS[part])
            for x, y in zip(steps[beyond].tolist(), seen[beyond].tolist(), strict=True)
        ),
    ]
    first = part == PARTS[0]  # its label and legend serve all three
    label = "lowers  ←  loss change, scaled  →  raises" if first else ""
    return Panel("step", label, marks, f"{part} update", y_range=(-limit, limit), legend=first)


def _ends(found: Sequence[Estimate], end: str) -> Array:
    return np.array([float(getattr(estimate, end)) for estimate in found])


def _unit(entry: LedgerEntry, part: str) -> float:
    """Both terms of the prediction, in size; NaN where there is neither."""
    first = float(entry.descent[part].value)
    return abs(first) + abs(float(entry.predicted[part].value) + first) or np.nan


def _part_row(one: LedgerSummary) -> list[str]:
    counts = [f"{count}" for count in (one.entries, one.lowered, one.raised, one.met)]
    ratio = "they cancel" if math.isnan(one.ratio) else f"{one.ratio:.3f} ± {one.ratio_error:.2g}"
    return [one.part, *counts, ratio, f"{one.deviation:.2f}"]


def _data(one: LedgerSummary) -> dict[str, float | None]:
    known = not math.isnan(one.ratio)
    return {"ratio": one.ratio if known else None, "error": one.ratio_error if known else None, "met": one.met}


def _row(entry: LedgerEntry) -> list[str]:
    def numbers(part: str) -> str:
        said, seen = entry.predicted[part], entry.measured[part]
        return f"{said.value:.3g}, {seen.value:.3g} ± {seen.standard_error:.2g}"

    return [f"{entry.step:,}", f"{entry.step_size:.4g}", *map(numbers, PARTS)]
