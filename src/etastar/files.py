"""Files, written whole or not at all, and read as strict UTF-8 text: nothing here ever executes what it reads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from etastar.errors import InvalidFile

__all__ = ["output_directory", "parse_json", "read_text", "write_bytes", "write_text", "write_together"]

_SIZE_LIMIT = 1 << 30


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text so that a reader, a crash or a full disk sees the old file or the new one, never a part.

    Raises:
        InvalidFile: The path is a directory, or cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
    target = Path(path)
    scratch: str | None = None
    try:
        if target.is_dir():
            raise InvalidFile("path", str(target), "is a directory; name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o666 & ~_umask())
        os.replace(scratch, target)
        scratch = None
    except OSError as error:
        raise InvalidFile("path", str(target), f"cannot be written: {error.strerror or error}") from None
    finally:
        if scratch is not None and os.path.exists(scratch):
            os.unlink(scratch)


def output_directory(path: str | Path) -> Path:
    """The directory to write into, tried out before anything is computed; nothing stays there.

    Raises:
        InvalidFile: It is a file, or nothing can be made in it or where it would be made.
    """
    target = Path(path)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.lstat()  # refuses a name that is too long
        existing = next(p for p in (target.absolute(), *target.absolute().parents) if os.path.lexists(p))
        if not existing.is_dir():
            raise InvalidFile("out", str(target), f"{existing.name} is a file; name a directory")
        os.rmdir(tempfile.mkdtemp(dir=existing, prefix=".etastar-"))
    except OSError as error:
        raise InvalidFile("out", str(target), f"cannot be written: {error.strerror or error}") from None
    return target


def write_together(directory: str | Path, makers: Mapping[str, Callable[[Path], object]]) -> list[Path]:
    """Make several files elsewhere first, then move them into `directory` in their order; returns their paths.

    Until all are made, and on disk, what the directory holds stays as it was.

    Args:
        directory: Made where it is missing.
        makers: By name of the file, what writes it to the path it is given.

    Raises:
        InvalidFile: The directory cannot be written.
    """
    target = output_directory(directory)
    scratch: str | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        in_the_way = next((name for name in makers if (target / name).is_dir()), None)
        if in_the_way is not None:
            raise InvalidFile("out", str(target / in_the_way), "is a directory; name another place")
        scratch = tempfile.mkdtemp(dir=target, prefix=".writing-")
        for name, make in makers.items():
            make(made := Path(scratch, name))
            with made.open("rb") as file:
                os.fsync(file.fileno())
        return [Path(scratch, name).replace(target / name) for name in makers]
    except OSError as error:
        raise InvalidFile("out", str(target), f"cannot be written: {error.strerror or error}") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def read_text(path: str | Path, name: str = "path") -> str:
    """A whole text file; `name` is what the caller's user knows it by.

    Raises:
        InvalidFile: Missing, a directory, empty, not UTF-8, or larger than 1 GiB.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            data = file.read(_SIZE_LIMIT + 1)  # not by its size: a device or a pipe tells none
        if len(data) > _SIZE_LIMIT:
            raise InvalidFile(name, str(source), "is larger than 1 GiB")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidFile(name, str(source), "is not UTF-8 text") from None
    except OSError as error:
        raise InvalidFile(name, str(source), f"cannot be read: {error.strerror or error}") from None
    if not text.strip():
        raise InvalidFile(name, str(source), "is empty")
    return text


def parse_json(text: str) -> Any:
    """What strict JSON says: each key once, no NaN or Infinity.

    Raises:
        ValueError: It is not such; the message reads on after the name of the file.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"holds the key {key[:40]!r} twice")
        fields[key] = value
    return fields


def _refuse(literal: str) -> NoReturn:
    raise ValueError(f"holds {literal}, which is not JSON")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
