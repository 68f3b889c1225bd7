"""The history of a run: measurements in the order they were made.

A history is saved as JSON lines, one measurement a line under a header with the schema version; `HistoryFile` writes
them while the run goes. Nothing in such a file is ever executed; numbers survive to the last bit, and a torn last line
is tolerated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from etastar.errors import InvalidArgument, InvalidFile, MissingExtra
from etastar.files import parse_json, read_text, write_text
from etastar.measurement import Measurement, decode, encode
from etastar.moments import SplitMoments
from etastar.quantities import ESTIMATES, NUMBERS

__all__ = ["History", "HistoryFile", "Measurement"]

_SCHEMA = "etastar.history"
_VERSION = 1
# Of a window's certificates. Medians: in single states they may be without bound.
_AVERAGES = {
    "third_derivative_shift": np.median,
    "alignment_error": np.median,
    "threshold_dominant_error": np.median,
    "threshold_bulk_error": np.median,
    "largest_eigenvalue": np.mean,
    "smallest_dominant_eigenvalue": np.mean,
    "gap": np.mean,
}


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
        seen = {name: [float(row.certificate[name]) for row in rows if name in row.certificate] for name in _AVERAGES}
        certificate = {name: float(_AVERAGES[name](values)) for name, values in seen.items() if values}
        known = [row.recoverable for row in rows if row.recoverable is not None]
        return Measurement(
            step=rows[-1].step,
            step_size=rows[-1].step_size,
            moments=SplitMoments.stack(means),
            batch_size=rows[-1].batch_size,
            recoverable=np.array([float(np.mean(value)) for value in known]) if len(known) == count else None,
            certificate=certificate,
            provenance={**rows[-1].provenance, "window": count},
        )

    def rolling(self, count: int) -> History:
        """Windows of `count` measurements, one ending at each measurement from the `count`-th on; as `window`."""
        ends = range(max(count, 1), len(self) + 1)
        return History([History(self._measurements[end - count : end]).window(count) for end in ends])

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """One array per quantity, each of shape ``(len,)``; `quantities` defines them.

        Estimates come as ``name``, ``name_low`` and ``name_high``, the ends of their 90 % intervals; NaN where there
        is none. The regime is text.
        """
        table = {name: np.array([number(row) for row in self]) for name, (_, number) in NUMBERS.items()}
        for name, (_, quantity) in ESTIMATES.items():
            found = [quantity(row) for row in self]
            for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                table[name + suffix] = np.array([getattr(estimate, end) for estimate in found], dtype=np.float64)
        return table

    def to_xarray(self) -> Any:
        """The columns as an ``xarray.Dataset`` along ``step``, each with its definition as ``long_name``.

        Raises:
            MissingExtra: xarray is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise MissingExtra("History.to_xarray", "xarray") from None
        columns = self.columns()
        step = columns.pop("step")
        dataset = xarray.Dataset({name: ("step", column) for name, column in columns.items()}, coords={"step": step})
        for name, (definition, _) in {**NUMBERS, **ESTIMATES}.items():
            dataset[name].attrs["long_name"] = definition
        return dataset

    def save(self, path: str | Path) -> None:
        """Write JSON lines, whole or not at all."""
        write_text(path, _text(self))

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


class HistoryFile:
    """A history on disk that grows with the run: the header at once, then one line a measurement as it is made.

    What a failed write (a full disk) leaves is taken back, and its line goes out with the next one.

    Args:
        path: A new file, or with `history` the one to go on with.
        history: What a resumed run has measured already. Rows of the file beyond it are dropped, since those steps
            are run again.

    Raises:
        InvalidFile: The file exists and holds something else, or cannot be written.
    """

    def __init__(self, path: str | Path, history: History | None = None) -> None:
        self._path, self._pending = Path(path), b""
        resumed, begin = bool(history), _text(history or History()).encode()
        try:
            if self._path.exists() and not self._path.is_file():
                raise InvalidFile("path", str(path), "is no regular file; name another")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                file.seek(0)
                found = file.read()
                whole = found[: found.rfind(b"\n") + 1]  # a torn last line goes
                same = begin.startswith(whole) or whole.startswith(begin)
                if not (begin.startswith(found) or (resumed and whole and same)):
                    raise InvalidFile("path", str(path), "exists and holds another history; name a new file")
                self._end = min(len(whole), len(begin))
                file.truncate(self._end)
        except OSError as error:
            raise self._unwritable(error) from None
        self._write(begin[self._end :])

    def append(self, measurement: Measurement) -> None:
        """Write one line; it has left the process when this returns.

        Raises:
            InvalidFile: It could not be written, or somebody else writes to the file too.
        """
        self._write(encode(measurement).encode() + b"\n")

    def _write(self, lines: bytes) -> None:
        self._pending += lines
        try:
            if self._path.stat().st_size != self._end:
                raise InvalidFile("path", str(self._path), "was changed by somebody else since the last measurement")
            try:
                with self._path.open("ab") as file:
                    file.write(self._pending)
            except BaseException:  # Ctrl-C too
                os.truncate(self._path, self._end)
                raise
        except OSError as error:
            raise self._unwritable(error) from None
        self._end += len(self._pending)
        self._pending = b""

    def _unwritable(self, error: OSError) -> InvalidFile:
        return InvalidFile("path", str(self._path), f"cannot be written: {error.strerror or error}")


def _text(history: History) -> str:
    return "\n".join([json.dumps({"schema": _SCHEMA, "version": _VERSION}), *map(encode, history)]) + "\n"


def _check_header(path: str, line: str) -> None:
    try:
        header = parse_json(line)
        schema, version = header["schema"], header["version"]
    except (ValueError, KeyError, TypeError):
        raise InvalidFile("history", path, "does not start with an etastar history header") from None
    if (schema, version) != (_SCHEMA, _VERSION):
        raise InvalidFile("history", [schema, version], f"{path} has another schema; this reads {_SCHEMA} {_VERSION}")
