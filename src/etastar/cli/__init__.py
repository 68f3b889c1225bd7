"""The command line: parses, calls recipes, prints. Nothing is computed here.

Exit codes: 0 success, 1 the run's own verdict failed, 2 bad input (one line on stderr, no file written),
130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from etastar import __version__
from etastar.cli.experiments import contest, tiny_subspaces
from etastar.cli.laboratory import diagram, lab
from etastar.cli.networks import doctor, train
from etastar.cli.paper import audit, reproduce
from etastar.errors import EtastarError, InvalidArgument
from etastar.terminal import end_workers, one_line, printable

__all__ = ["main"]

# Commands of their own, found under the one that they belong to.
_NESTED = {("lab", "diagram"), ("train", "tiny-subspaces"), ("train", "contest")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    commands: dict[str, Callable[..., int]] = {
        "reproduce": reproduce,
        "audit": audit,
        "lab": lab,
        "diagram": diagram,
        "train": train,
        "tiny-subspaces": tiny_subspaces,
        "contest": contest,
        "doctor": doctor,
    }
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  # closed by whoever started us
        sys.stdout = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters is no reason to fail
    if arguments is None:  # a process of our own: ended from outside, it cleans up and takes its workers along
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = _parse_and_run(commands, list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except EtastarError as error:
        text = str(error)
        if isinstance(error, InvalidArgument):  # named as the option is
            text = text.replace(error.name, error.name.replace("_", "-"), 1)
        print(f"etastar: {printable(text)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        end_workers()
        print("etastar: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None:  # files answer for themselves: this is a mistake of ours
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # python would complain once more at exit
        if isinstance(error, BrokenPipeError):  # the reader of our output has closed it
            return 141
        print(f"etastar: stdout: cannot be written: {error.strerror}; redirect it elsewhere", file=sys.stderr)
        return 2


def _parse_and_run(commands: dict[str, Callable[..., int]], arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"etastar {__version__}")
        return 0
    program = "etastar"
    if tuple(arguments[:2]) in _NESTED:
        program, arguments = f"etastar {arguments[0]}", arguments[1:]
    _refuse_empty(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            run = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in commands.items()},
                prog=program,
                description="The critical step size of SGD, exactly.",
                args=arguments,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            return 0
        print(f"etastar: {one_line(complaint.getvalue())}", file=sys.stderr)
        return 2
    return run()


def _refuse_empty(arguments: list[str]) -> None:
    """An empty value comes from a variable of a shell that is not set, and would be taken for the current directory."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, assigned, value = argument.partition("=")
        if not argument or (option.startswith("--") and assigned and not value):
            named = option or (before if before.startswith("--") else "argument")
            raise InvalidArgument(named.lstrip("-"), "", "must not be empty")


def _deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Parsing returns the call to make, so that what the command itself prints is not captured."""
    import functools

    @functools.wraps(command)
    def parse(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return lambda: command(*args, **kwargs)

    return parse
