"""Our own claims are sharp: without a hypothesis, or with a constant changed, the search refutes them."""

from dataclasses import replace

import numpy as np
import pytest

from etastar.claims import own
from etastar.claims.claim import equal, less
from etastar.claims.search import examine


def verdict(claim, instances=4000):
    return examine(claim, instances, np.random.default_rng(0)).verdict


def without(claim, *positions):
    return replace(claim, when=tuple(h for i, h in enumerate(claim.when) if i not in positions), draw=None)


@pytest.mark.parametrize(
    ("claim", "positions"),
    [
        (own.ONE_TURN, (1,)),  # the step
        (own.ONE_TURN, (2, 3, 4)),  # energies above their floors
        (own.TWO_LEVEL, (0,)),
        (own.TURN_NOT_AFTER, (5,)),
        (own.TURN_NOT_BEFORE, (5,)),
    ],
)
def test_a_hypothesis_left_out_is_missed(claim, positions):
    assert verdict(without(claim, *positions)) == "refuted"


def test_the_borders_do_not_coincide():
    swapped = replace(
        own.BORDERS,
        when=(*own.BORDERS.when[:2], lambda s: own.regime_border(s).balance(s.signal(2)) >= 0),
        then=lambda s: [less(0, own.loss_border(s).balance(s.signal(2)))],
    )
    assert verdict(swapped) == "refuted"


def test_heavy_ball_is_not_sgd_at_its_own_step():
    def at_the_same_step(s):
        alpha = s.step_size[:, None] * s.eigenvalues
        X, plain = s.split(alpha * s.noise / (3 - alpha)), s.stationary().signal(2)  # β = 1/2, common factors dropped
        return [equal(X.dominant * plain.bulk, X.bulk * plain.dominant)]

    assert verdict(replace(own.HEAVY_BALL, then=at_the_same_step)) == "refuted"


def test_turns_are_looked_for_early_and_late():
    times = {own.draw_above_floors(np.random.default_rng(seed), 2).time for seed in range(40)}
    assert 0 in times
    assert max(times) > 10
