"""Files, written whole or not at all, and read as strict UTF-8 text: nothing here ever executes what it reads."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from etastar.errors import InvalidFile

__all__ = ["read_text", "write_bytes", "write_text"]

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


def read_text(path: str | Path) -> str:
    """A whole text file.

    Raises:
        InvalidFile: Missing, a directory, empty, not UTF-8, or larger than 1 GiB.
    """
    source = Path(path)
    try:
        if source.stat().st_size > _SIZE_LIMIT:
            raise InvalidFile("path", str(source), "is larger than 1 GiB")
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidFile("path", str(source), "is not UTF-8 text") from None
    except OSError as error:
        raise InvalidFile("path", str(source), f"cannot be read: {error.strerror or error}") from None
    if not text.strip():
        raise InvalidFile("path", str(source), "is empty")
    return text


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
