"""Measurements and their history: moments, the verdict drawn from them, and where they came from.

A history is saved as JSON lines, one measurement a line under a header with the schema version. Nothing in
such a file is ever executed; numbers survive to the last bit, and a torn last line is tolerated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from etastar.budget import StepBudget, step_budget
from etastar.criteria import Outcome, Regime, alignment, as_step_size, critical_step_size, loss_thresholds
from etastar.errors import InvalidArgument, InvalidFile, MissingExtra
from etastar.files import parse_json, read_text, write_text
from etastar.moments import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments
from etastar.uncertainty import Estimate, exactly, jackknife

__all__ = ["History", "Measurement"]

_SCHEMA = "etastar.history"
_VERSION = 1
_EQUILIBRATED = (0.8, 1.25)  # η/η_S inside this band counts as equilibrated
_SPELT_OUT = ("nan", "inf", "-inf")  # JSON has no numbers for them


@dataclass(frozen=True, slots=True)
class Measurement:
    """The moments of one step with what they say.

    Attributes:
        step: Steps taken before it.
        step_size: η in use, [parameter²/loss].
        moments: Batch shape ``()`` when exact, or ``(replicates,)``: then every criterion gets an interval.
        batch_size: b behind the noise moments, or None where there is none (a laboratory).
        provenance: What made it: names and plain numbers.

    Raises:
        InvalidArgument: A count that is none, a step size that is negative or not finite, provenance that is not plain.
    """

    step: int
    step_size: float
    moments: SplitMoments
    batch_size: int | None = None
    provenance: Mapping[str, str | int | float | bool] = field(default_factory=dict[str, "str | int | float | bool"])

    def __post_init__(self) -> None:
        if len(self.moments.shape) > 1:
            raise InvalidArgument("moments", self.moments.shape, "must be one measurement or one axis of replicates")
        size = as_step_size(self.step_size)
        if size.ndim:
            raise InvalidArgument("step_size", self.step_size, "must be one number")
        object.__setattr__(self, "step", _count("step", self.step, 0))
        object.__setattr__(self, "step_size", float(size))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", _count("batch_size", self.batch_size, 1))
        object.__setattr__(self, "provenance", _plain_provenance(self.provenance))

    @property
    def alignment(self) -> Estimate:
        """θ."""
        return self.estimate(alignment)

    @property
    def critical_step_size(self) -> Estimate:
        """η*, [parameter²/loss]."""
        return self.estimate(lambda split: critical_step_size(split).value)

    @property
    def threshold_dominant(self) -> Estimate:
        """η_D."""
        return self.estimate(lambda split: loss_thresholds(split).dominant)

    @property
    def threshold_bulk(self) -> Estimate:
        """η_B."""
        return self.estimate(lambda split: loss_thresholds(split).bulk)

    @property
    def regime(self) -> Regime:
        """The regime at the mean moments."""
        return critical_step_size(self._mean).regime

    @property
    def step_budget(self) -> StepBudget:
        """The step budget at the mean moments; noise scales are per sample, NaN-free only with a batch size."""
        return step_budget(self._mean, self.step_size, self.batch_size or 1)

    @property
    def verdict(self) -> str:
        """Which subspace still descends, which has equilibrated, and what limits it, in words."""
        budget, bounds, eta = self.step_budget, loss_thresholds(self._mean), self.step_size
        dominant = self.threshold_dominant if bounds.dominant_outcome is Outcome.BELOW else None
        bulk = self.threshold_bulk if bounds.bulk_outcome is Outcome.BELOW else None
        return "; ".join(
            [
                _subspace_verdict("dominant", eta, dominant, budget.dominant.noise_share),
                _subspace_verdict("bulk", eta, bulk, budget.bulk.noise_share),
            ]
        )

    def estimate(self, criterion: Callable[[SplitMoments], Any], level: float = 0.9) -> Estimate:
        """Any criterion of these moments, with its interval where there are replicates."""
        if self.moments.shape == ():
            return exactly(criterion(self.moments), level)
        return jackknife(criterion, self.moments, level=level)

    @property
    def _mean(self) -> SplitMoments:
        return self.moments if self.moments.shape == () else self.moments.mean(0)


class History:
    """A table of measurements, in the order they were made.

    Example:
        >>> History().columns()["step"].tolist()
        []
    """

    def __init__(self, measurements: list[Measurement] | None = None) -> None:
        self._measurements = list(measurements or [])

    def __len__(self) -> int:
        return len(self._measurements)

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._measurements)

    def __getitem__(self, index: int) -> Measurement:
        return self._measurements[index]

    def append(self, measurement: Measurement) -> None:
        """Add a measurement at the end."""
        self._measurements.append(measurement)

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """One array per quantity, each of shape ``(len,)``: values, and ``_low``/``_high`` of their intervals."""
        table: dict[str, list[Any]] = {"step": [], "step_size": [], "regime": []}
        names = ("alignment", "critical_step_size", "threshold_dominant", "threshold_bulk")
        for name in names:
            table |= {name: [], f"{name}_low": [], f"{name}_high": []}
        for row in self:
            table["step"].append(row.step)
            table["step_size"].append(row.step_size)
            table["regime"].append(row.regime.name)
            for name in names:
                estimate: Estimate = getattr(row, name)
                table[name].append(estimate.value)
                table[f"{name}_low"].append(estimate.low)
                table[f"{name}_high"].append(estimate.high)
        return {name: np.array(column) for name, column in table.items()}

    def to_xarray(self) -> Any:
        """The columns as an ``xarray.Dataset`` along ``step``; MissingExtra where xarray is not installed."""
        try:
            import xarray
        except ImportError:
            raise MissingExtra("History.to_xarray", "xarray") from None
        columns = self.columns()
        step = columns.pop("step")
        return xarray.Dataset({name: ("step", column) for name, column in columns.items()}, coords={"step": step})

    def save(self, path: str | Path) -> None:
        """Write JSON lines, whole or not at all."""
        lines = [json.dumps({"schema": _SCHEMA, "version": _VERSION}), *map(_encode, self)]
        write_text(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote.

        Raises:
            InvalidFile: Not a history, another schema version, or a damaged line that is not the last.
        """
        text = read_text(path, "history")
        lines = text.splitlines()
        torn = not text.endswith("\n")  # by a crash while its last line was written
        _check_header(str(path), lines[0])
        history = cls()
        for number, line in enumerate(lines[1:], start=2):
            try:
                history.append(_decode(parse_json(line)))
            except (ValueError, KeyError, TypeError, OverflowError):
                if torn and number == len(lines):
                    break
                raise InvalidFile("history", str(path), f"line {number} is damaged") from None
        return history


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InvalidArgument(name, value, f"must be a whole number, at least {least}")
    return int(value)


def _plain_provenance(given: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    plain: dict[str, str | int | float | bool] = {}
    for name, value in given.items():
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidArgument(f"provenance.{name}", value, "must be text or a finite number")
        plain[str(name)] = value
    return plain


def _subspace_verdict(name: str, step_size: float, threshold: Estimate | None, noise_share: Any) -> str:
    if threshold is None or not threshold.resolved or (threshold.low <= 0 < threshold.high):
        return f"{name}: no threshold resolved"
    ratio, low, high = (step_size / x if x else math.inf for x in (threshold.value, threshold.high, threshold.low))
    limit = "noise" if float(noise_share) > 0.5 else "curvature"
    if high < _EQUILIBRATED[0]:
        word = "still descends"
    elif low > _EQUILIBRATED[1]:
        word = f"is raised by this step, limited by {limit}"
    elif _EQUILIBRATED[0] <= low and high <= _EQUILIBRATED[1]:
        word = f"has equilibrated, limited by {limit}"
    else:
        word = "unresolved between descending and equilibrated"
    return f"{name}: {word} (step is {ratio:.3g} of its loss threshold)"


def _encode(measurement: Measurement) -> str:
    def plain(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            return (
                [x if math.isfinite(x) else repr(x) for x in value.ravel().tolist()] if value.ndim else plain(value[()])
            )
        return float(value) if math.isfinite(value) else repr(float(value))

    def part(side: SubspaceMoments) -> dict[str, Any]:
        return {
            "signal": [plain(x) for x in side.signal.leaves()],
            "noise": [plain(x) for x in side.noise.leaves()],
            "descent": None if side.descent is None else [plain(x) for x in side.descent.leaves()],
        }

    moments = measurement.moments
    record = {
        "step": measurement.step,
        "step_size": plain(measurement.step_size),
        "batch_size": measurement.batch_size,
        "dominant": part(moments.dominant),
        "bulk": part(moments.bulk),
        "coupling": None if moments.coupling is None else [plain(x) for x in moments.coupling.leaves()],
        "provenance": dict(measurement.provenance),
    }
    return json.dumps(record, allow_nan=False)


def _decode(record: dict[str, Any]) -> Measurement:
    def number(value: Any) -> float:
        plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not plain and not (isinstance(value, str) and value in _SPELT_OUT):
            raise TypeError("not a number as `_encode` writes it")
        return float(value)

    def numbers(values: list[Any]) -> list[Any]:
        return [np.array([number(x) for x in v]) if isinstance(v, list) else number(v) for v in _typed(values, list)]

    def part(side: dict[str, Any]) -> SubspaceMoments:
        descent = None if side["descent"] is None else Descent(*numbers(side["descent"]))
        return SubspaceMoments(
            CurvatureMoments(*numbers(side["signal"])), CurvatureMoments(*numbers(side["noise"])), descent
        )

    coupling = None if record["coupling"] is None else Coupling(*numbers(record["coupling"]))
    return Measurement(
        step=record["step"],
        step_size=number(record["step_size"]),
        moments=SplitMoments(part(record["dominant"]), part(record["bulk"]), coupling),
        batch_size=record["batch_size"],
        provenance=_typed(record["provenance"], dict),
    )


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"not a {kind.__name__}")
    return value


def _check_header(path: str, line: str) -> None:
    try:
        header = parse_json(line)
        schema, version = header["schema"], header["version"]
    except (ValueError, KeyError, TypeError):
        raise InvalidFile("history", path, "does not start with an etastar history header") from None
    if (schema, version) != (_SCHEMA, _VERSION):
        raise InvalidFile("history", [schema, version], f"{path} has another schema; this reads {_SCHEMA} {_VERSION}")
