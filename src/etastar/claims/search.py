"""The search: screen drawn instances in bounded float64, decide what is left in fractions, report a verdict.

An instance counts only if its hypotheses and conclusions are proved, by error bound or by fractions; a claim counts as
refuted only by an instance on which fractions show the violation. Nothing drawn is dropped undecided, but for numeric
claims, where an instance within the error bound counts neither way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import reduce
from operator import and_

import numpy as np
from numpy.typing import NDArray

from etastar.claims.certificate import Verdict, certify, verdict_of
from etastar.claims.claim import Claim, Comparison, surely
from etastar.claims.draw import SHAPES, draw
from etastar.claims.instance import Instance
from etastar.claims.instances import Instances
from etastar.claims.number import Bounded, Truth
from etastar.claims.registry import CLAIMS, chosen
from etastar.claims.shrink import complexity, shrunk
from etastar.errors import InvalidArgument
from etastar.workers import WorkerPool

__all__ = ["audit", "examine"]

# Draws are given up after this many times the instances asked for.
PATIENCE = 30
# Batches that instances are spread over, twice through all shapes; where a counterexample is expected, they are all
# drawn before the search gives up, however few instances are asked for.
BATCHES = 2 * len(SHAPES)
# How many candidates are certified, and of these how many are shrunk to pick the simplest.
CERTIFIED = 12
SHRUNK = 3


def audit(
    claims: Sequence[str] | None = None,
    instances: int = 100_000,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Verdict]:
    """Put the paper's claims to the test; the verdicts come in the order of the paper.

    Args:
        claims: Names such as "T8" (all its forms); None for all.
        instances: How many instances that meet the hypotheses to try for each algebraic claim.
        seed: Decides the draws, claim by claim: the choice of claims and of workers changes nothing.
        workers: Processes; 1 stays in this one.
        progress: Called as (name, done, total) after each claim.

    Raises:
        InvalidArgument: An unknown claim, or a number that is not positive.
    """
    selected = chosen(claims)
    for name, value, least in (("instances", instances, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value < least:
            raise InvalidArgument(name, value, f"an integer of at least {least}")
    indices = [CLAIMS.index(claim) for claim in selected]
    verdicts: dict[int, Verdict] = {}
    for index, verdict in _results(indices, instances, seed, workers):
        verdicts[index] = verdict
        if progress:
            progress(CLAIMS[index].name, len(verdicts), len(indices))
    return [verdicts[index] for index in indices]


def _results(indices: list[int], instances: int, seed: int, workers: int) -> Iterator[tuple[int, Verdict]]:
    if workers == 1:
        for index in indices:
            yield index, _examined(index, instances, seed)
        return
    with WorkerPool(workers) as pool:
        waiting = {pool.submit(_examined, index, instances, seed): index for index in indices}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _examined(index: int, instances: int, seed: int) -> Verdict:
    """Examine one claim with a generator of its own: the index-th child of the seed."""
    return examine(CLAIMS[index], instances, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,))))


def examine(claim: Claim, instances: int, rng: np.random.Generator) -> Verdict:
    """Draw instances until enough met the hypotheses or one refutes the claim.

    Args:
        claim: What to examine.
        instances: How many that meet the hypotheses are enough.
        rng: Decides the draws.
    """
    wanted = min(instances, claim.samples or instances)
    least = BATCHES if claim.expected == "refuted" and not claim.draw else 1
    tried = 1 if claim.draw else SHRUNK  # the instances of a claim's own setting are not shrunk: show the worst
    held = unproved = 0
    for number, drawn in enumerate(_batches(claim, wanted, rng), start=1):
        proved, wrong, suspects = _sifted(claim, drawn)
        held, unproved = held + proved, unproved + wrong
        if suspects:
            best = min((shrunk(claim, suspect) for suspect in suspects[:tried]), key=complexity)
            return verdict_of(claim, "refuted", held + unproved, certify(claim, best))
        if held >= wanted and number >= least:
            break
    # Violations that the claim's further test did not confirm refute nothing, but forbid saying that it holds.
    return verdict_of(claim, "holds" if held and not unproved else "vacuous", held)


def _batches(claim: Claim, wanted: int, rng: np.random.Generator) -> Iterator[Instances]:
    """Draw batches of one shape each, small shapes first and larger batches in each round, until patience ends."""
    shapes = [shape for shape in SHAPES if shape[0] <= claim.largest]
    size, drawn = min(2048, max(64, wanted // BATCHES)), 0
    while drawn < PATIENCE * max(wanted, 64):
        for shape in shapes:
            yield claim.draw(rng, size) if claim.draw else draw(rng, size, *shape)
            drawn += size
        size = min(2048, 2 * size)


def _sifted(claim: Claim, drawn: Instances) -> tuple[int, int, list[Instance]]:
    """Return how many instances hold, how many do not, and certified counterexamples, worst violation first."""
    with np.errstate(all="ignore"):
        screened = drawn.bounded()
        rows, applying = claim.applying(screened)
        if not len(rows):
            return 0, 0, []
        comparisons = claim.then(screened[rows])
        holds, excess = _conjunction(comparisons), _excess(comparisons, len(rows))
    wrong, right = applying & surely(~holds), applying & surely(holds)
    worst = rows[wrong][np.argsort(-excess[wrong], kind="stable")]
    found = _certified(claim, drawn, worst)
    if found or claim.kind == "numeric":
        return int(right.sum()), len(worst), found
    held, violating = _decided(claim, drawn, rows[~(wrong | right)])
    return int(right.sum()) + held, len(worst) + len(violating), _certified(claim, drawn, violating)


def _decided(claim: Claim, drawn: Instances, rows: NDArray[np.intp]) -> tuple[int, NDArray[np.intp]]:
    """Decide rows in fractions: how many hold, and which ones do not."""
    exact = drawn[rows].exactly()
    kept, _ = claim.applying(exact)
    if not len(kept):
        return 0, kept
    rows, holds = rows[kept], surely(_conjunction(claim.then(exact[kept])))
    return int(holds.sum()), rows[~holds]


def _certified(claim: Claim, drawn: Instances, rows: NDArray[np.intp]) -> list[Instance]:
    problems = [drawn.problem(int(row)) for row in rows[:CERTIFIED]]
    return [problem for problem in problems if claim.refuted_by(problem)]


def _conjunction(comparisons: Sequence[Comparison]) -> Truth:
    return reduce(and_, (comparison.holds() for comparison in comparisons))


def _excess(comparisons: Sequence[Comparison], count: int) -> NDArray[np.float64]:
    """How badly the comparisons fail, relative to the size of their sides: violations with room round off best."""
    excess = np.zeros(count)
    for comparison in comparisons:
        left, right = (Bounded.of(side).value for side in (comparison.left, comparison.right))
        relative = np.abs(left - right) / (np.abs(left) + np.abs(right))
        excess = np.fmax(excess, np.where(surely(~comparison.holds()), relative, 0.0))
    return excess
