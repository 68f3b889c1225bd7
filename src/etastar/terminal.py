"""What the command line says: tables, JSON and progress, and complaints in one line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "console",
    "end_workers",
    "json_text",
    "one_line",
    "print_json",
    "print_section",
    "print_table",
    "printable",
    "progress_bar",
    "without_marks",
    "writer_of",
]


def end_workers() -> None:
    """Python would wait at exit until each worker has finished what it is at, which may take minutes."""
    from multiprocessing import active_children

    for worker in active_children():
        worker.terminate()


def printable(text: str) -> str:
    """One line without control characters, whatever a hostile file put into it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def one_line(complaint: str) -> str:
    """What tyro says in a box, as one line: the complaint and the nearest names, without help and inner details."""
    boxed = [line for line in complaint.splitlines() if not line.startswith(("╭", "╰"))]
    rows = [line.strip("│ ") for line in boxed]
    blocks = " ".join("\n" if row and set(row) <= {"─", "-"} else row for row in rows).split("\n")
    if "╭" not in complaint:  # without its frame, where the terminal has none, the title is a block of its own
        del blocks[0]
    kept = [" ".join(b.split()) for b in blocks if not b.strip().startswith(("Argument helptext", "For full helptext"))]
    line = "; ".join(block.partition(" Got errors:")[0] for block in kept if block) or "bad arguments"
    return line.replace("{None}|", "").replace(", 'None')", ")").replace("('None', ", "(")


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """A table without a frame; cells are text, never markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def print_section(section: Any) -> None:
    """A section of a report without its pictures: finding, checks, tables, reading."""
    screen = console()
    screen.print(f"\n[bold]{without_marks(section.title)}[/]")
    screen.print(without_marks(section.finding), soft_wrap=True)
    for check in section.checks:
        mark = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
        statement = f"  {mark}  {without_marks(check.statement)} [dim]({without_marks(check.measured)})[/]"
        screen.print(statement, soft_wrap=True)
    for table in section.tables:
        print_table([column.name for column in table.columns], table.rows)
    if section.reading:
        screen.print(without_marks(section.reading), soft_wrap=True)


def console() -> Console:
    """Where results go; a reader that closes the pipe is no failed verdict."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # answered by `main`; rich's own answer is the exit code of a failed verdict

    width = None if sys.stdout.isatty() else 160
    return Output(file=sys.stdout, width=width, highlight=False)


@contextlib.contextmanager
def progress_bar() -> Generator[Callable[[str, int, int], None]]:
    """A bar on stderr where it is a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _name, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


def without_marks(text: str) -> str:
    """Text of a report without its [[term]] marks, safe for rich."""
    from rich.markup import escape

    parts = text.split("[[")
    out = parts[0]
    for part in parts[1:]:
        inside, closed, rest = part.partition("]]")
        out += (inside.partition("|")[2] or inside.partition("|")[0]) + rest if closed else "[[" + part
    return escape(out)


def writer_of(text: str) -> Callable[[Path], object]:
    """What writes `text` to a path, for files that are written together."""
    return lambda path: path.write_text(text, encoding="utf-8")


def print_json(value: Any) -> None:
    """A value as strict JSON on stdout."""
    print(json_text(value), end="")


def json_text(value: Any) -> str:
    """Strict JSON, readable, with its last line end."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
