"""The paper's figures 1–3, 5, 6, 14 and its phase-I fits: exact curve, sampled paths, and the statistic it plots.

Beside each stands our reading: what the exact curve says of "two phases", "polynomial" and "logarithmic".
``setting`` has the experiment, ``curves`` the runs, ``window`` their last 10,000 steps, ``laws`` the fits.
"""

from __future__ import annotations

from collections.abc import Mapping

from etastar.recipes.paper_figures.curves import all_ratios, four_ratios, two_phases
from etastar.recipes.paper_figures.laws import logarithm_of_ratio, phase_one_fits
from etastar.recipes.paper_figures.setting import PaperRuns, run_paper
from etastar.recipes.paper_figures.window import seed_by_seed, window_statistics
from etastar.report import Section

__all__ = ["PaperRuns", "paper_sections", "run_paper"]


def paper_sections(runs: Mapping[int, PaperRuns], quick: bool, seed: int) -> list[Section]:
    """All of them, in the paper's order."""
    return [
        two_phases(runs[100], 100 if quick else 400, seed),
        four_ratios(runs),
        window_statistics(runs),
        all_ratios(runs),
        seed_by_seed(runs),
        phase_one_fits(runs),
        logarithm_of_ratio(runs),
    ]
