"""The report: sections with checks, figures and tables, as one self-contained HTML page.

The page needs no network, runs no script but its own, and treats every name it shows as text. A number's
definition is a hover (or a tab stop) away: table columns and marked terms carry it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from typing import Any

from etastar.report.figures import Figure
from etastar.report.glossary import GLOSSARY
from etastar.report.interactive import plotly_figure, plotly_script

__all__ = ["Check", "Column", "Section", "Table", "render_html"]


@dataclass(frozen=True, slots=True)
class Check:
    """One pass/fail statement with its figure."""

    statement: str
    passed: bool
    measured: str


@dataclass(frozen=True, slots=True)
class Column:
    """A table column: its head, and what its numbers are."""

    name: str
    definition: str = ""
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of already formatted text."""

    columns: list[Column]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One item of a report.

    Attributes:
        name: Short identifier, used for links, files and JSON.
        title: Heading.
        finding: What it shows, in a sentence or two; may mark terms of the glossary as [[term]].
        reading: Our reading of it, same markup.
        checks: Its pass/fail statements.
        figures: Drawn below the finding.
        tables: Shown below the figures.
        data: Numbers for the machine-readable results.
    """

    name: str
    title: str
    finding: str
    reading: str = ""
    checks: list[Check] = field(default_factory=list[Check])
    figures: list[Figure] = field(default_factory=list[Figure])
    tables: list[Table] = field(default_factory=list[Table])
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def render_html(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """The whole page; figures are zoomable, and nothing is fetched.

    Args:
        title: Heading of the page.
        lead: First paragraph; may mark terms as [[term]].
        sections: In reading order.
        footer: Provenance: versions, seed, timings.
    """
    figures = [figure for section in sections for figure in section.figures]
    payload = json.dumps([plotly_figure(figure) for figure in figures], allow_nan=False, ensure_ascii=False)
    numbers = count()
    links = "".join(map(_link, sections)) if len(sections) > 1 else ""
    body = "".join(_section(section, numbers) for section in sections)
    script = plotly_script() if figures else ""
    return _fill(
        _asset("page.html"),
        {
            "title": _text(title),
            "lead": _marked(lead),
            "summary": _summary([check for section in sections for check in section.checks]),
            "links": links,
            "body": body,
            "footer": _text(footer),
            "style": _asset("style.css"),
            "plotly": script.replace("</script", "<\\/script"),
            "payload": _script_safe(payload),
            "draw": _asset("draw.js"),
        },
    )


def _summary(checks: list[Check]) -> str:
    passed = sum(check.passed for check in checks)
    kind = "pass" if passed == len(checks) else "fail"
    return f'<p class="summary {kind}">{passed} of {len(checks)} checks passed</p>' if checks else ""


def _asset(name: str) -> str:
    return (files("etastar.report") / "page" / name).read_text(encoding="utf-8")


def _fill(page: str, parts: dict[str, str]) -> str:
    """Replace each @name@ of the page once; what is filled in is not looked at again."""
    pieces = re.split(r"@(\w+)@", page)
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _link(section: Section) -> str:
    badge = _badge(section.passed) if section.checks else ""
    return f'<li><a href="#{_text(section.name)}">{_text(section.title)}</a> {badge}</li>'


def _section(section: Section, numbers: Iterator[int]) -> str:
    parts = [f'<section id="{_text(section.name)}"><h2>{_text(section.title)}</h2>']
    parts.append(f'<p class="finding">{_marked(section.finding)}</p>')
    for check in section.checks:
        parts.append(
            f'<p class="check">{_badge(check.passed)} {_marked(check.statement)}'
            f' <span class="measured">{_marked(check.measured)}</span></p>'
        )
    for figure in section.figures:
        alt = _text(figure.alt or figure.caption)
        parts.append(
            f'<figure><div class="plot" data-figure="{next(numbers)}" role="img" aria-label="{alt}"></div>'
            f"<figcaption>{_marked(figure.caption)}</figcaption></figure>"
        )
    parts += map(_table, section.tables)
    if section.reading:
        parts.append(f'<p class="reading">{_marked(section.reading)}</p>')
    return "".join([*parts, "</section>"])


def _table(table: Table) -> str:
    heads = "".join(
        f'<th class="{"number" if column.numeric else "words"}">'
        + (_defined(_text(column.name), column.definition) if column.definition else _text(column.name))
        + "</th>"
        for column in table.columns
    )

    def cell(column: Column, value: str) -> str:
        hint = f' title="{_text(column.definition)}"' if column.definition else ""
        return f'<td class="{"number" if column.numeric else "words"}"{hint}>{_marked(value)}</td>'

    rows = "".join(
        "<tr>" + "".join(cell(c, v) for c, v in zip(table.columns, row, strict=True)) + "</tr>" for row in table.rows
    )
    caption = f"<caption>{_marked(table.caption)}</caption>" if table.caption else ""
    head_and_body = f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="table"><table>{caption}{head_and_body}</table></div>'


def _badge(passed: bool) -> str:
    return '<b class="badge pass">pass</b>' if passed else '<b class="badge fail">fail</b>'


def _defined(shown: str, definition: str) -> str:
    return f'<span class="term" tabindex="0" data-definition="{_text(definition)}">{shown}</span>'


def _marked(text: str) -> str:
    """Escape, then turn [[term]] and [[term|as shown]] into terms that carry their definition, and keep line ends."""
    parts = text.split("[[")
    out = [_text(parts[0])]
    for part in parts[1:]:
        inside, closed, rest = part.partition("]]")
        term, _, shown = inside.partition("|")
        if closed and term in GLOSSARY:
            out.append(_defined(_text(shown or term), GLOSSARY[term]) + _text(rest))
        else:
            out.append(_text("[[" + part))
    return "".join(out).replace("\n", "<br>")


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _script_safe(payload: str) -> str:
    """JSON inside a script element: no character that could end it or open another."""
    return payload.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
