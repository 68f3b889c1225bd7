"""Reports: figures, tables and checks as PNGs and one self-contained HTML page.

It reads plain data; producers and reports meet only in ``etastar.recipes`` and the command line.
"""

from __future__ import annotations

from etastar.report.document import Check, Column, Section, Table, render_html
from etastar.report.figures import COLOURS, Band, Cells, Figure, Label, Line, Panel, Points, Reference, Shade, sequence
from etastar.report.png import render_png
from etastar.report.run import run, run_section
from etastar.report.written import write_report

__all__ = [
    "COLOURS",
    "Band",
    "Cells",
    "Check",
    "Column",
    "Figure",
    "Label",
    "Line",
    "Panel",
    "Points",
    "Reference",
    "Section",
    "Shade",
    "Table",
    "render_html",
    "render_png",
    "run",
    "run_section",
    "sequence",
    "write_report",
]
