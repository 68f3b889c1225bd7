"""What a ledger holds: its entries, what they say together, and their file of JSON lines.

Predictions are worth keeping only beside what then happened: an entry has both, of each part of the update, and its
numbers survive a file to the last bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidFile
from etastar.files import parse_json, read_text, write_text
from etastar.uncertainty import Estimate

__all__ = [
    "PARTS",
    "LedgerEntry",
    "LedgerSummary",
    "ledger_columns",
    "ledger_summary",
    "load_ledger",
    "save_ledger",
]

Array = npt.NDArray[np.float64]
PARTS = ("dominant", "bulk", "full")
_KINDS = ("descent", "predicted", "measured")
_NUMBERS = ("value", "standard_error", "bias", "low", "high")
_HEADER = json.dumps({"schema": "etastar.ledger", "version": 1})
_LEAST_SUM = 0.5  # of predicted changes, over the sum of their sizes
_SPELT_OUT = ("nan", "inf", "-inf")  # JSON has no numbers for them


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One checkpoint.

    Attributes:
        step: Steps taken before it.
        step_size: η of the updates, [parameter²/loss].
        batch_size: b behind them, [samples].
        updates: Mini-batches whose updates were made.
        descent: By part ("dominant", "bulk", "full"): first-order decrease η⟨Sg, h⟩ of the loss, [loss]; h = g without
            momentum and weight decay.
        predicted: By part: expected loss change from the meter's moments, [loss].
        measured: By part: mean loss change on the held-out batches, [loss]. Its standard error covers the draw of the
            mini-batches and, with two held-out batches or more, that of the held-out samples.
    """

    step: int
    step_size: float
    batch_size: int
    updates: int
    descent: Mapping[str, Estimate]
    predicted: Mapping[str, Estimate]
    measured: Mapping[str, Estimate]

    def encode(self) -> str:
        """One line of JSON, whose numbers survive to the last bit."""
        record: dict[str, Any] = {
            "step": self.step,
            "step_size": self.step_size,
            "batch_size": self.batch_size,
            "updates": self.updates,
        }
        record |= {kind: {part: _written(getattr(self, kind)[part]) for part in PARTS} for kind in _KINDS}
        return json.dumps(record, allow_nan=False)

    @classmethod
    def decode(cls, line: str) -> LedgerEntry:
        """Inverse of `encode`; ValueError, KeyError, TypeError or OverflowError where it is none."""
        record = parse_json(line)
        step_size = _number(record["step_size"])
        if not 0 <= step_size < math.inf:
            raise ValueError("not a step size")
        return cls(
            step=_count(record["step"], 0),
            step_size=step_size,
            batch_size=_count(record["batch_size"], 1),
            updates=_count(record["updates"], 2),
            **{kind: {part: _estimate(record[kind][part]) for part in PARTS} for kind in _KINDS},
        )


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """Prediction against measurement of one part over all entries.

    Attributes:
        part: "dominant", "bulk" or "full".
        entries: Those with both numbers.
        ratio: Sum of the measured over sum of the predicted changes; 1 where the moments say what happens. NaN where
            predicted falls and rises cancel to less than half of their sizes: their sum then says nothing.
        ratio_error: Its standard error, from those of the entries.
        deviation: Root mean square of (measured − predicted)/standard error of both; about 1 where errors are honest.
        lowered: Entries whose measured change lies below zero with its whole 90 % interval.
        raised: Those in which it lies above.
        met: Those in which measured − predicted is within the 90 % intervals of both, added in squares.
    """

    part: str
    entries: int
    ratio: float
    ratio_error: float
    deviation: float
    lowered: int
    raised: int
    met: int


def ledger_summary(entries: Sequence[LedgerEntry]) -> list[LedgerSummary]:
    """Of each part, over all entries; NaN where there is none."""
    return [_summary(part, entries) for part in PARTS]


def ledger_columns(entries: Sequence[LedgerEntry]) -> dict[str, Array]:
    """What a plot needs: ``step``, and by part ``descent_``, ``predicted_``, ``measured_`` and ``…_error``."""
    table = {"step": np.array([float(entry.step) for entry in entries])}
    for part in PARTS:
        for kind in _KINDS:
            found: list[Estimate] = [getattr(entry, kind)[part] for entry in entries]
            table[f"{kind}_{part}"] = np.array([float(e.value) for e in found])
            table[f"{kind}_{part}_error"] = np.array([float(e.standard_error) for e in found])
    return table


def save_ledger(entries: Sequence[LedgerEntry], path: str | Path) -> None:
    """Write JSON lines, whole or not at all.

    Raises:
        InvalidFile: It cannot be written.
    """
    write_text(path, "\n".join([_HEADER, *(entry.encode() for entry in entries)]) + "\n")


def load_ledger(path: str | Path) -> list[LedgerEntry]:
    """Read the entries that `UpdateLedger.save` wrote.

    Raises:
        InvalidFile: Not such a file, another schema version, or a line that is damaged or torn.
    """
    text = read_text(path, "ledger")
    header, *lines = text.splitlines()
    if header != _HEADER:
        raise InvalidFile("ledger", str(path), f"must begin with the line {_HEADER}")
    found: list[LedgerEntry] = []
    for number, line in enumerate(lines, start=2):
        try:
            found.append(LedgerEntry.decode(line))
        except (ValueError, KeyError, TypeError, OverflowError):
            raise InvalidFile("ledger", str(path), f"line {number} is damaged") from None
    return found


def _summary(part: str, entries: Sequence[LedgerEntry]) -> LedgerSummary:
    pairs = [(entry.predicted[part], entry.measured[part]) for entry in entries]
    known = [(p, m) for p, m in pairs if math.isfinite(float(p.value)) and math.isfinite(float(m.value))]
    if not known:
        return LedgerSummary(part, 0, math.nan, math.nan, math.nan, 0, 0, 0)
    (said, said_error, _, said_high), (seen, seen_error, seen_low, seen_high) = (
        np.array([[float(getattr(one, name)) for name in ("value", "standard_error", "low", "high")] for one in side]).T
        for side in zip(*known, strict=True)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        cancelled = abs(float(said.sum())) < _LEAST_SUM * float(np.abs(said).sum())
        ratio = math.nan if cancelled else float(seen.sum() / said.sum())
        error = float(np.sqrt(np.sum(seen_error**2 + (ratio * said_error) ** 2)) / np.abs(said.sum()))
        deviation = float(np.sqrt(np.mean(((seen - said) / np.hypot(said_error, seen_error)) ** 2)))
        met = np.abs(seen - said) <= np.hypot(said_high - said, seen_high - seen)
    lowered, raised = int(np.sum(seen_high < 0)), int(np.sum(seen_low > 0))
    return LedgerSummary(part, len(known), ratio, error, deviation, lowered, raised, int(np.sum(met)))


def _written(estimate: Estimate) -> dict[str, Any]:
    numbers = {name: float(getattr(estimate, name)) for name in _NUMBERS}
    plain = {name: x if math.isfinite(x) else repr(x) for name, x in numbers.items()}
    return {**plain, "level": estimate.level, "resolved": bool(estimate.resolved)}


def _estimate(record: Any) -> Estimate:
    level, resolved = _number(record["level"]), record["resolved"]
    if not 0 < level < 1 or not isinstance(resolved, bool):
        raise ValueError("not an estimate")
    return Estimate(*(_number(record[name]) for name in _NUMBERS), level=level, resolved=resolved)


def _number(value: Any) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not plain and not (isinstance(value, str) and value in _SPELT_OUT):
        raise TypeError("not a number as `encode` writes it")
    return float(value)


def _count(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"not a whole number, at least {least}")
    return value
