"""Beyond the paper: what momentum, preconditioning, averaging, real mini-batches and means of ratios change.

The paper leaves them to future work; on quadratics they have closed forms, each here beside samples or a second route.
"""

from __future__ import annotations

from etastar.recipes.beyond.averaging import averaging
from etastar.recipes.beyond.four_edges import four_edges
from etastar.recipes.beyond.mean_ratio import mean_ratio
from etastar.recipes.beyond.minibatches import minibatches
from etastar.recipes.beyond.momentum import momentum
from etastar.recipes.beyond.phase_diagram import phase_diagram
from etastar.recipes.beyond.preconditioning import preconditioning
from etastar.recipes.paper_figures import PaperRuns
from etastar.report import Section

__all__ = ["beyond_the_paper"]


def beyond_the_paper(run: PaperRuns, quick: bool, seed: int) -> list[Section]:
    """All of them; where they need a quadratic it is the paper's, at the ratio of `run`."""
    replicas = 100 if quick else 200
    return [
        momentum(run, replicas, seed),
        preconditioning(run, 10 * replicas, seed),
        averaging(run, replicas, seed),
        minibatches(quick, seed),
        four_edges(run, 4 * replicas, seed),
        mean_ratio(20 * replicas, seed),
        phase_diagram(run, 5 * replicas, seed),
    ]
