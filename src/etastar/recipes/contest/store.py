"""The runs on disk: one small JSON file each, written whole or not at all, named by the key of its configuration."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from etastar.errors import InvalidFile
from etastar.files import parse_json, read_text, write_text
from etastar.recipes.contest.configuration import RunConfiguration

__all__ = ["RunResult", "load_runs", "save_run"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of one run.

    Attributes:
        final_loss: Median training loss of the last three looks: the last 5 % of the run; inf where it diverged.
        steps: Of each look, steps taken before it.
        losses: Training loss there; inf from where it diverged.
        gradients: Gradient evaluations of a batch spent before it, basis and metering included.
        seconds: Of training and metering before it: processor time of one thread, whatever else runs.
        held_out_loss: At the end; NaN where it was not looked at.
        accuracy: Held out, at the end.
        largest_eigenvalue: λ₁ over the recipe's curvature samples, at the end, [loss/parameter²].
        outcomes: TwoRateSGD: steps by name of the `RateOutcome` that decided their rates.
        step_sizes: At each look: what a schedule or policy had made of it.
    """

    final_loss: float
    steps: list[int]
    losses: list[float]
    gradients: list[float]
    seconds: list[float]
    held_out_loss: float = math.nan
    accuracy: float = math.nan
    largest_eigenvalue: float = math.nan
    outcomes: dict[str, int] = field(default_factory=dict[str, int])
    step_sizes: list[float] = field(default_factory=list[float])

    @property
    def apart(self) -> float:
        """Share of steps with two rates."""
        total = sum(self.outcomes.values())
        separate = sum(self.outcomes.get(name, 0) for name in ("THRESHOLD", "STABILITY"))
        return separate / total if total else 0.0


def save_run(directory: Path, run: RunConfiguration, result: RunResult) -> None:
    """Write one run; another process may write the same."""
    content = {"configuration": asdict(run), "result": _coded(asdict(result))}
    write_text(directory / f"{run.key}.json", json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n")


def load_runs(directory: Path) -> dict[str, RunResult]:
    """All runs in a directory by key; empty where there is none.

    Raises:
        InvalidFile: A file that is no run.
    """
    return {path.stem: _load(path) for path in sorted(directory.glob("*.json"))} if directory.is_dir() else {}


def _load(path: Path) -> RunResult:
    remedy = "is no run of the contest; delete it, and it is run again"
    try:
        values = _decoded(parse_json(read_text(path, "out"))["result"])
        if not all(isinstance(values[name], float | int) for name in ("final_loss", "accuracy")):
            raise TypeError
        result = RunResult(**values)
        if len({len(result.steps), len(result.losses), len(result.gradients), len(result.seconds)}) != 1:
            raise TypeError
    except InvalidFile:
        raise
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InvalidFile("out", str(path), remedy) from None
    return result


def _coded(value: Any) -> Any:
    """Strict JSON has no NaN and no infinity: their names instead."""
    if isinstance(value, dict):
        return {name: _coded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_coded(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decoded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
