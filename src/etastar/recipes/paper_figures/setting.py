"""The paper's experiment (Section 7): spectrum, noise, step and seeds, computed exactly and sampled once.

``linspace(100, 80, 50)`` above ``linspace(7, 1, 450)`` rescaled to a ratio of r + 0.1, noise variance 0.25,
step 0.003, 30,000 steps, x₀ ~ N(0, I). The paper's code draws from another generator: its seeds name our runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.quadratic import Curve, Noise, Paths, Quadratic, Spectrum

__all__ = ["RATIOS", "SEEDS", "STEPS", "STEP_SIZE", "WINDOW", "PaperRuns", "paper_problem", "run_paper"]

RATIOS = (5, 10, 20, 50, 100, 200, 300, 400, 500)
SEEDS = (42, 87, 568, 1101, 12138, 70425, 4008001)
STEP_SIZE = 0.003
STEPS = 30_000
WINDOW = 20_000  # the paper averages over the steps from here on


@dataclass(frozen=True, slots=True, eq=False)
class PaperRuns:
    """All runs at one ratio r.

    Attributes:
        ratio: The paper's r.
        problem: The quadratic.
        gradients: Starts, one per seed, ``(seeds, d)``.
        exact: Exact curves, batch ``(seeds,)``.
        sampled: One sampled path per seed, at the same times.
        settled: Indices of the recorded times inside the paper's window.
    """

    ratio: int
    problem: Quadratic
    gradients: npt.NDArray[np.float64]
    exact: Curve
    sampled: Paths
    settled: slice


def paper_problem(ratio: float) -> Quadratic:
    """The paper's quadratic at its parameter r."""
    return Quadratic(Spectrum.paper(ratio=ratio), Noise.isotropic(0.25))


def run_paper(quick: bool, seed: int) -> dict[int, PaperRuns]:
    """Exact curves and sampled paths for every ratio; `quick` keeps four ratios and two seeds."""
    ratios = (5, 20, 50, 200, 100) if quick else RATIOS
    starts = SEEDS[:2] if quick else SEEDS
    runs = {}
    for number, ratio in enumerate(sorted(ratios)):
        runs[ratio] = _run(ratio, starts, seed + number)
    return runs


def _run(ratio: int, starts: tuple[int, ...], seed: int) -> PaperRuns:
    problem = paper_problem(ratio)
    points = np.stack([np.random.default_rng(start).standard_normal(problem.spectrum.dimension) for start in starts])
    gradients = problem.gradient_at(points)
    early = np.unique(np.concatenate([np.arange(101), np.geomspace(100, WINDOW, 220).astype(np.int64)]))[:-1]
    late = np.arange(WINDOW, STEPS + 1, 10)
    times = np.concatenate([early, late])
    arguments: dict[str, Any] = {"gradient": gradients, "step_size": STEP_SIZE, "times": times}
    exact = problem.expected(**arguments)
    sampled = problem.sample(**arguments, seed=seed)
    return PaperRuns(ratio, problem, gradients, exact, sampled, slice(early.size, times.size))
