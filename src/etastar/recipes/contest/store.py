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
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise InvalidFile("out", str(path), "is not a regular file")
        content = parse_json(read_text(path, "out"))
        result = RunResult(**_decoded(content["result"]))
        # A run of the tuning is looked at from its end alone: one that diverged before has no looks.
        unseen = not content["configuration"]["curve"] and result.final_loss == math.inf
        if _sound(result) and (unseen or result.steps):
            return result
    except InvalidFile:
        raise
    except OSError as error:
        raise InvalidFile("out", str(path), f"cannot be read: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        pass
    raise InvalidFile("out", str(path), "is no run of the contest; delete it, and it is run again")


def _sound(result: Any) -> bool:
    """Whether every number is one that a run can have come to."""
    columns = (result.steps, result.losses, result.gradients, result.seconds, result.step_sizes)
    ends = (result.held_out_loss, result.accuracy, result.largest_eigenvalue)
    return (
        all(isinstance(column, list) and len(column) == len(result.steps) for column in columns)
        and all(_is_number(value) and value >= 0 for column in columns for value in column)
        and all(map(math.isfinite, (*result.steps, *result.gradients, *result.seconds, *result.step_sizes)))
        and _is_number(result.final_loss)
        and result.final_loss >= 0
        and all(map(_is_number, ends))
        and isinstance(result.outcomes, dict)
        and all(type(steps) is int and steps >= 0 for steps in result.outcomes.values())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


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
