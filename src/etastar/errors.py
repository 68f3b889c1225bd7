"""Every exception that etastar raises on purpose, as one tree.

::

    EtastarError
    ├── InvalidArgument (ValueError)   an argument, a file's field or an option; names it, its value and the remedy
    │   └── InvalidFile                a file that cannot be read as what it should be
    ├── UnstableStep (ValueError)      a stationary state was asked for at a step size that has none
    └── MissingExtra (ImportError)     an optional dependency is not installed; names the extra

Degenerate mathematics is no error: it is a named outcome (``Regime``, ``Outcome``) in the result.
"""

from __future__ import annotations

from typing import Any

__all__ = ["EtastarError", "InvalidArgument", "InvalidFile", "MissingExtra", "UnstableStep"]


class EtastarError(Exception):
    """Base of all of etastar's own exceptions."""


class InvalidArgument(EtastarError, ValueError):
    """A bad argument, told in one line: its name, its value, what is allowed.

    Args:
        name: The argument or field as the caller knows it.
        value: What was given; shown shortened to one line.
        allowed: What would have been accepted, or the remedy.
    """

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        self.name = name
        self.value = value
        self.allowed = allowed
        super().__init__(f"{name}: got {_one_line(value)}; {allowed}")

    def __reduce__(self) -> tuple[type[InvalidArgument], tuple[str, Any, str]]:
        return type(self), (self.name, self.value, self.allowed)  # a worker process raises it in ours


class InvalidFile(InvalidArgument):
    """A file that is missing, unreadable, or not of the form it should have."""


class UnstableStep(EtastarError, ValueError):
    """A stationary state was asked for at a step size that has none (0 < step < 2/λ₁ is needed)."""


class MissingExtra(EtastarError, ImportError):
    """An optional dependency is missing; the message names the extra to install."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs an extra that is not installed; run: pip install 'etastar[{extra}]'")


def _one_line(value: Any, limit: int = 80) -> str:
    try:
        text = " ".join(repr(value).split())
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    half = limit // 2  # the end of a path says more than its start
    return text if len(text) <= limit else f"{text[: half - 1]}…{text[-half:]}"
