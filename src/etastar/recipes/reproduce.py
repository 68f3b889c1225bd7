"""The main job: the paper reproduced and audited, as one report, PNGs and machine-readable results.

Everything is computed before the first file is written, and ``report.html`` comes last, so that an interruption
leaves an old report or a new one, never half of one.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from etastar.claims import audit
from etastar.recipes.beyond import beyond_the_paper
from etastar.recipes.claims_audit import audit_section
from etastar.recipes.demonstrations import demonstrations
from etastar.recipes.paper_figures import paper_sections, run_paper
from etastar.recipes.real_least_squares import real_section
from etastar.report import Section, write_report

__all__ = ["Reproduction", "reproduce", "write_reproduction"]

Progress = Callable[[str, int, int], None]
_SCHEMA = "etastar.reproduction"
_LEAD = (
    "“Suspicious Alignment of SGD” (Deng et al., ALT 2026, arXiv 2601.11789), item by item: the [[exact]] curve, "
    "[[sampled]] runs, the statistic that the paper plots, and our reading. The [[critical step size]] η* says whether "
    "the next step lowers or raises the [[alignment]]; the [[dominant threshold]] and the [[bulk threshold]] say which "
    "subspace a step helps. Hover over a dotted term or a table's head for its definition."
)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """All sections, with how long each group took.

    Attributes:
        sections: In reading order.
        seed: Seed of everything that is drawn.
        quick: Whether it was the short form.
        seconds: Wall time per group, [s].
        title: Of the page.
        lead: Its first paragraph.
        command: What makes it again.
    """

    sections: list[Section]
    seed: int
    quick: bool
    seconds: dict[str, float]
    title: str = "Suspicious alignment of SGD, reproduced and audited"
    lead: str = _LEAD
    command: str = "etastar reproduce"

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(section.passed for section in self.sections)

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds: the same for the same seed, ``environment`` and ``seconds`` apart."""
        return {
            "schema": _SCHEMA,
            "version": 1,
            "seed": self.seed,
            "quick": self.quick,
            "passed": self.passed,
            "sections": [_section_results(section) for section in self.sections],
            "environment": _environment(),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def reproduce(quick: bool = False, seed: int = 0, progress: Progress | None = None, workers: int = 1) -> Reproduction:
    """Run everything: figures, demonstrations, real data, beyond the paper, and the audit of the claims.

    The audit has 10,000 instances a claim, 300 when `quick`.
    More than one worker process needs a script guarded by ``if __name__ == "__main__"``; results do not depend on it.
    """
    told = progress or _silent
    seconds: dict[str, float] = {}
    sections: list[Section] = []

    def timed(name: str, done: int, work: Callable[[], list[Section]]) -> None:
        told(name, done, 6)
        begin = time.perf_counter()
        sections.extend(work())
        seconds[name] = time.perf_counter() - begin

    runs: dict[int, Any] = {}

    def figures() -> list[Section]:
        runs.update(run_paper(quick, seed))
        return paper_sections(runs, quick, seed)

    def audited() -> list[Section]:
        return [audit_section(audit(None, 300 if quick else 10_000, seed, workers, inner))]

    def inner(claim: str, done: int, total: int) -> None:
        told(f"audit of the claims ({claim}, {done} of {total})", 4, 6)

    timed("figures of the paper", 0, figures)
    timed("criteria demonstrated", 1, lambda: demonstrations(runs[100], quick, seed))
    timed("real least squares", 2, lambda: [real_section(quick, seed)])
    timed("beyond the paper", 3, lambda: beyond_the_paper(runs[100], quick, seed))
    timed("audit of the claims", 4, audited)
    told("writing the report", 5, 6)
    return Reproduction(sections, seed, quick, seconds)


def _silent(_name: str, _done: int, _total: int) -> None:
    pass


def write_reproduction(reproduction: Reproduction, out: str | Path) -> list[Path]:
    """Write ``results.json``, PNGs and, last, ``report.html``, all or none; returns their paths.

    Raises:
        InvalidFile: The directory cannot be written.
    """
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in reproduction.seconds.items())
    footer = (
        f"etastar {version('etastar')} · seed {reproduction.seed} · {seconds}\nRemake it with: {reproduction.command}"
    )
    results = json.dumps(reproduction.results(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return write_report(
        out,
        "report.html",
        reproduction.title,
        reproduction.lead,
        reproduction.sections,
        files={"results.json": results},
        footer=footer,
        dpi=80 if reproduction.quick else 150,
    )


def _section_results(section: Section) -> dict[str, Any]:
    checks = [{"statement": c.statement, "passed": c.passed, "measured": c.measured} for c in section.checks]
    return {
        "name": section.name,
        "title": section.title,
        "passed": section.passed,
        "checks": checks,
        "data": section.data,
    }


def _environment() -> dict[str, str]:
    packages = ("etastar", "numpy", "scipy", "matplotlib", "plotly", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
