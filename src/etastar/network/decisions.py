"""What a controller decided and why: the audit log of a run, in memory and as JSON lines.

Every look at a window of the run is one decision, also one to keep the step size; its numbers carry their intervals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from etastar.errors import InvalidFile
from etastar.files import parse_json, read_text, write_text
from etastar.uncertainty import Estimate

__all__ = ["Decision", "DecisionFile", "DecisionOutcome", "Interval", "interval", "load_decisions"]

Interval = tuple[float, float, float]
_HEADER = json.dumps({"schema": "etastar.decisions", "version": 1})


class DecisionOutcome(Enum):
    """Why the step size is kept or decayed."""

    EQUILIBRATED = "decay: at this step size no part of the update lowers the loss any longer"
    DESCENDS = "keep: part of the update still lowers the loss"
    DRIFTS = "keep: the gradient energy still falls"
    GIVES_BACK = "decay: it gives back more loss than the bulk's descent brings within the horizon"
    BRINGS_MORE = "keep: the bulk's descent brings more within the horizon than a decay gives back"
    UNRESOLVED = "keep: the intervals leave it open"

    @property
    def decays(self) -> bool:
        """Whether a smaller step is called for."""
        return self in (DecisionOutcome.EQUILIBRATED, DecisionOutcome.GIVES_BACK)


@dataclass(frozen=True, slots=True)
class Decision:
    """One look at the run.

    Attributes:
        step: Steps taken when it was made.
        step_size: η of the first parameter group then, [parameter²/loss].
        proposed: What it should be; `step_size` itself where it is to be kept.
        acted: Whether it was set.
        outcome: Why, by name.
        evidence: The numbers behind it: value with the ends of the 90 % interval, NaN where there is none.
    """

    step: int
    step_size: float
    proposed: float
    acted: bool
    outcome: DecisionOutcome
    evidence: Mapping[str, Interval]

    @property
    def numbers(self) -> str:
        """The evidence in words."""
        return "; ".join(f"{name} {_in_words(*found)}" for name, found in self.evidence.items())

    @property
    def reason(self) -> str:
        """Why, in words with the numbers."""
        return f"{self.outcome.value} ({self.numbers})"

    def encode(self) -> str:
        """One line of JSON, whose numbers survive to the last bit."""
        evidence = {name: [x if math.isfinite(x) else None for x in found] for name, found in self.evidence.items()}
        record = {
            "step": self.step,
            "step_size": self.step_size,
            "proposed": self.proposed,
            "acted": self.acted,
            "outcome": self.outcome.name,
            "reason": self.reason,
            "evidence": evidence,
        }
        return json.dumps(record, allow_nan=False, ensure_ascii=False)

    @classmethod
    def decode(cls, line: str) -> Decision:
        """Inverse of `encode`; ValueError, KeyError or TypeError where it is none."""
        record = parse_json(line)
        return cls(
            step=_typed(record["step"], int),
            step_size=_number(record["step_size"]),
            proposed=_number(record["proposed"]),
            acted=_typed(record["acted"], bool),
            outcome=DecisionOutcome[_typed(record["outcome"], str)],
            evidence={str(k): _interval(v) for k, v in _typed(record["evidence"], dict).items()},
        )


def interval(estimate: Estimate) -> Interval:
    """What the log keeps of an estimate; an end that is not resolved, or not finite, is NaN."""
    ends = (estimate.value, estimate.low, estimate.high) if estimate.resolved else (estimate.value, math.nan, math.nan)
    value, low, high = (float(end) if math.isfinite(end) else math.nan for end in ends)
    return value, low, high


def load_decisions(path: str | Path) -> list[Decision]:
    """Read a log of decisions; a last line torn by a crash is left out.

    Raises:
        InvalidFile: Not such a log, another schema version, or a damaged line that is not the last.
    """
    text = read_text(path, "decisions")
    header, *lines = text.splitlines()
    if header != _HEADER:
        raise InvalidFile("decisions", str(path), f"must begin with the line {_HEADER}")
    found: list[Decision] = []
    for number, line in enumerate(lines, start=2):
        try:
            found.append(Decision.decode(line))
        except (ValueError, KeyError, TypeError):
            if number == len(lines) + 1 and not text.endswith("\n"):
                break
            raise InvalidFile("decisions", str(path), f"line {number} is damaged") from None
    return found


class DecisionFile:
    """The log on disk, one line more with every decision.

    Args:
        path: A new file; or, for a run that is resumed, that of the run before: lines beyond `before` are dropped,
            since those steps are run again.
        before: Decisions of the run that is resumed; None for a new run.

    Raises:
        InvalidFile: The file exists and holds something else, or cannot be written.
    """

    def __init__(self, path: str | Path, before: Sequence[Decision] | None = None) -> None:
        self._path = Path(path)
        begin = "\n".join([_HEADER, *(decision.encode() for decision in before or ())]) + "\n"
        if self._path.exists():
            found = read_text(path, "decisions") if self._path.stat().st_size else ""
            whole = found[: found.rfind("\n") + 1]
            same = whole.startswith(begin) or (whole and begin.startswith(whole))
            if not (begin.startswith(found) or (before is not None and same)):
                raise InvalidFile("path", str(path), "exists and holds another log; name a new file")
        write_text(path, begin)

    def append(self, decision: Decision) -> None:
        """Write one line; it has left the process when this returns.

        Raises:
            InvalidFile: It cannot be written.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(decision.encode() + "\n")
        except OSError as error:
            raise InvalidFile("path", str(self._path), f"cannot be written: {error.strerror or error}") from None


def _in_words(value: float, low: float, high: float) -> str:
    if math.isnan(low):
        return "unresolved"
    return f"at least {low:.3g}" if math.isnan(high) else f"{value:.3g} ({low:.3g} to {high:.3g})"


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    return float(value)


def _interval(value: Any) -> Interval:
    first, low, high = (math.nan if x is None else _number(x) for x in _typed(value, list))
    return first, low, high


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"not a {kind.__name__}")
    return value
