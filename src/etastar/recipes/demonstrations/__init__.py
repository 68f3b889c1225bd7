"""Three demonstrations of the criteria: one step against η*, the bulk-only interval, and the constant step.

Each prediction is made from moments alone and then sampled.
"""

from __future__ import annotations

from etastar.recipes.demonstrations.bulk_only import bulk_only_interval
from etastar.recipes.demonstrations.constant_step import every_step_looks_critical
from etastar.recipes.demonstrations.one_step import alignment_against_step
from etastar.recipes.paper_figures import PaperRuns
from etastar.report import Section

__all__ = ["demonstrations"]


def demonstrations(run: PaperRuns, quick: bool, seed: int) -> list[Section]:
    """All three, on the paper's quadratic at r = 100."""
    replicas = 2_000 if quick else 10_000
    return [
        alignment_against_step(run, replicas, seed),
        bulk_only_interval(run, replicas, seed),
        every_step_looks_critical(run),
    ]
