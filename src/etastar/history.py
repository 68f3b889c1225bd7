"""The history of a run: measurements in the order they were made.

A history is saved as JSON lines, one measurement a line under a header with the schema version. Nothing in
such a file is ever executed; numbers survive to the last bit, and a torn last line is tolerated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from etastar.errors import InvalidArgument, InvalidFile, MissingExtra
from etastar.files import parse_json, read_text, write_text
from etastar.measurement import Measurement, decode, encode
from etastar.moments import SplitMoments
from etastar.uncertainty import Estimate

__all__ = ["History", "Measurement"]

_SCHEMA = "etastar.history"
_VERSION = 1
_COLUMNS = ("alignment", "critical_step_size", "threshold_dominant", "threshold_bulk", "threshold_full")


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

    def window(self, count: int) -> Measurement:
        """The last `count` measurements as one: moments are averaged before any ratio is formed (theory §3).

        Its replicates are the measurements, so that the intervals hold what varies along the run; measurements that
        lie close together are correlated, and their intervals too narrow.

        Raises:
            InvalidArgument: Fewer than two, or more than there are.
        """
        if not 2 <= count <= len(self):
            raise InvalidArgument("count", count, f"must be between 2 and the {len(self)} measurements there are")
        rows = self._measurements[-count:]
        means = [row.moments if row.moments.shape == () else row.moments.mean(0) for row in rows]
        shifts = [float(row.certificate[key]) for row in rows if (key := "third_derivative_shift") in row.certificate]
        known = [row.recoverable for row in rows if row.recoverable is not None]
        return Measurement(
            step=rows[-1].step,
            step_size=rows[-1].step_size,
            moments=SplitMoments.stack(means),
            batch_size=rows[-1].batch_size,
            recoverable=np.array([float(np.mean(value)) for value in known]) if len(known) == count else None,
            certificate={"third_derivative_shift": float(np.median(shifts))} if shifts else {},
            provenance={**rows[-1].provenance, "window": count},
        )

    def rolling(self, count: int) -> History:
        """Windows of `count` measurements, one ending at each measurement from the `count`-th on; as `window`."""
        return History([History(self._measurements[: end + 1]).window(count) for end in range(count - 1, len(self))])

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """One array per quantity, each of shape ``(len,)``: values, and ``_low``/``_high`` of their intervals."""
        table: dict[str, list[Any]] = {"step": [], "step_size": [], "regime": []}
        for name in _COLUMNS:
            table |= {name: [], f"{name}_low": [], f"{name}_high": []}
        for row in self:
            table["step"].append(row.step)
            table["step_size"].append(row.step_size)
            table["regime"].append(row.regime.name)
            for name, estimate in _estimates(row).items():
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
        lines = [json.dumps({"schema": _SCHEMA, "version": _VERSION}), *map(encode, self)]
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
                history.append(decode(parse_json(line)))
            except (ValueError, KeyError, TypeError, OverflowError):
                if torn and number == len(lines):
                    break
                raise InvalidFile("history", str(path), f"line {number} is damaged") from None
        return history


def _estimates(row: Measurement) -> dict[str, Estimate]:
    thresholds = row.loss_thresholds
    values = (row.alignment, row.critical_step_size, thresholds.dominant, thresholds.bulk, thresholds.full)
    return dict(zip(_COLUMNS, values, strict=True))


def _check_header(path: str, line: str) -> None:
    try:
        header = parse_json(line)
        schema, version = header["schema"], header["version"]
    except (ValueError, KeyError, TypeError):
        raise InvalidFile("history", path, "does not start with an etastar history header") from None
    if (schema, version) != (_SCHEMA, _VERSION):
        raise InvalidFile("history", [schema, version], f"{path} has another schema; this reads {_SCHEMA} {_VERSION}")
