"""One report on disk: its page, a PNG of each figure, and the data beside them, all or none.

Every command that leaves files behind writes them here, the page last: where there is a page, all it names is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from etastar.files import write_together
from etastar.report.document import Section, render_html
from etastar.report.figures import Figure
from etastar.report.png import render_png

__all__ = ["write_report"]


def write_report(
    out: str | Path,
    page: str,
    title: str,
    lead: str,
    sections: Sequence[Section],
    *,
    files: Mapping[str, str | Callable[[Path], object]] | None = None,
    footer: str = "",
    dpi: int = 150,
) -> list[Path]:
    """Write `files`, the pictures and, last, the page into a directory; returns their paths in this order.

    Args:
        out: The directory; made where it is missing.
        page: Name of the HTML file.
        title: Of the page.
        lead: Its first paragraph.
        sections: What it shows; each figure becomes ``<figure name>.png`` too.
        files: By name: a text, or what writes the file to the path it is given.
        footer: Last lines of the page.
        dpi: Of the PNGs.

    Raises:
        InvalidFile: The directory cannot be written.
    """
    makers: dict[str, Callable[[Path], object]] = {
        name: _text(content) if isinstance(content, str) else content for name, content in (files or {}).items()
    }
    figures = [figure for section in sections for figure in section.figures]
    makers |= {f"{figure.name}.png": _picture(figure, dpi) for figure in figures}
    return write_together(out, {**makers, page: _text(render_html(title, lead, sections, footer))})


def _text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content, encoding="utf-8")


def _picture(figure: Figure, dpi: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(render_png(figure, dpi))
