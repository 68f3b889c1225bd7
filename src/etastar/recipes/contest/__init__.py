"""Optimizers that read the meter against tuned baselines: who won, in steps, gradient evaluations and seconds.

A baseline is tuned by successive halving; what is measured instead of tuned runs as it is. Every run is one small file,
so that a contest may be killed at any time and goes on where it was.
"""

from etastar.recipes.contest.configuration import PROBLEMS, Problem
from etastar.recipes.contest.contest import Contest, ContestPlan, hold_contest
from etastar.recipes.contest.section import contest_sections

__all__ = ["PROBLEMS", "Contest", "ContestPlan", "Problem", "contest_sections", "hold_contest"]
