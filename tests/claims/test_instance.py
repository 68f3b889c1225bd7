"""Instances: one formula for fractions and floats, moments against brute force, validation, lifts."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from etastar.claims.draw import SHAPES, draw
from etastar.claims.expectation import gaussian_alignment, two_point_alignment
from etastar.claims.instance import Instance
from etastar.claims.instances import Instances
from etastar.errors import InvalidArgument

F = Fraction

PROBLEM = Instance((F(3), F(2), F(1, 2)), 1, (F(1), F(-2), F(3)), (F(1), F(4), F(1, 9)), step_size=F(1, 3), time=2)


def outcomes(problem):
    """Every two-point outcome of one step, mode by mode, in plain Python."""
    roots = (F(1), F(2), F(1, 3))
    for signs in product((1, -1), repeat=3):
        yield [
            (1 - problem.step_size * v) * x - problem.step_size * sign * root
            for v, x, root, sign in zip(problem.eigenvalues, problem.state, roots, signs, strict=True)
        ]


def test_expected_energies_are_the_mean_over_all_noise_outcomes():
    s, rank = Instances.exact([PROBLEM]), PROBLEM.rank
    energies = [[(v * x) ** 2 for v, x in zip(PROBLEM.eigenvalues, state, strict=True)] for state in outcomes(PROBLEM)]
    split = s.next_energy()
    assert split.dominant[0] == sum(sum(e[:rank]) for e in energies) / 8
    assert split.bulk[0] == sum(sum(e[rank:]) for e in energies) / 8
    assert two_point_alignment(s)[0] == sum(sum(e[:rank]) / sum(e) for e in energies) / 8


def test_expected_loss_change_is_the_mean_over_all_noise_outcomes():
    s = Instances.exact([PROBLEM])

    def loss(state, part):
        return sum(v * x**2 / 2 for v, x in list(zip(PROBLEM.eigenvalues, state, strict=True))[part])

    for part, value in ((slice(0, 1), s.loss_change().dominant), (slice(1, 3), s.loss_change().bulk)):
        assert value[0] == sum(loss(x, part) for x in outcomes(PROBLEM)) / 8 - loss(PROBLEM.state, part)


def test_moments_give_the_next_energy_and_the_floor_is_stationary():
    s = Instances.exact([PROBLEM])
    for name in ("dominant", "bulk"):
        m0, m1, m2, q2 = (getattr(v, name) for v in (s.signal(2), s.signal(3), s.signal(4), s.variance(2)))
        eta = s.step_size
        assert getattr(s.next_energy(), name)[0] == (m0 - 2 * eta * m1 + eta**2 * (m2 + q2))[0]
    still = s.stationary()
    assert (still.after(3).square == still.square).all()
    assert s.critical_step_size[0] == (2 * s.drift / s.kick)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_float_and_fraction_formulas_agree(shape):
    drawn = draw(np.random.default_rng(5), 40, *shape)
    with np.errstate(all="ignore"):
        screened, exact = drawn.bounded(), drawn.exactly()
        for quantity in (
            lambda s: s.drift,
            lambda s: s.kick,
            lambda s: s.after(2).signal(2).total,
            lambda s: s.loss_change().bulk,
            lambda s: s.stretched(3).signal(4).dominant,
        ):
            near, true = quantity(screened), quantity(exact)
            for value, error, decided in zip(near.value, near.error, true, strict=True):
                assert abs(F(float(value)) - decided) <= F(float(error))


def test_a_drawn_row_is_taken_over_exactly():
    drawn = draw(np.random.default_rng(1), 5, 4, 2)
    problem = drawn.problem(3)
    assert [float(v) for v in problem.eigenvalues] == list(drawn.eigenvalues[3])
    assert len(drawn[np.array([0, 2])]) == 2
    assert len(drawn.bounded()) == 5


def test_the_lift_keeps_every_moment_and_the_law_of_the_energies():
    base, lifted = (Instances.exact([p]) for p in (PROBLEM, PROBLEM.repeated(4)))
    for power in range(5):
        assert base.signal(power).dominant[0] == lifted.signal(power).dominant[0]
        assert base.variance(power).bulk[0] == lifted.variance(power).bulk[0]
    assert two_point_alignment(base)[0] == two_point_alignment(lifted)[0]
    near = gaussian_alignment(base.bounded()) - gaussian_alignment(lifted.bounded())
    assert abs(near.value[0]) <= near.error[0]
    kept = PROBLEM.repeated(4, keep_state=True)
    assert kept.state[:4] == (F(1),) * 4
    assert kept.noise[0] == F(1, 4)


def test_gaussian_expectation_agrees_with_simulation_and_with_a_known_case():
    s = Instances.exact([PROBLEM]).bounded()
    rng = np.random.default_rng(0)
    spectrum, x, kappa = np.array([3, 2, 0.5]), np.array([1, -2, 3]), np.array([1, 2, 1 / 3])
    g = spectrum * ((1 - spectrum / 3) * x - rng.normal(size=(400_000, 3)) * kappa / 3)
    theta = g[:, 0] ** 2 / (g**2).sum(1)
    assert gaussian_alignment(s).value[0] == pytest.approx(theta.mean(), abs=4 * theta.std() / 400_000**0.5)
    # Equal modes of pure noise: the alignment has a Beta(1/2, 1/2) law, mean 1/2.
    even = replace(PROBLEM, eigenvalues=(F(2), F(1)), state=(F(0), F(0)), noise=(F(1), F(4)))
    result = gaussian_alignment(Instances.exact([replace(even, noise=(F(1), F(16)))]).bounded())
    assert abs(result.value[0] - 1 / 3) <= 1e-9


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 3}, "rank"),
        ({"state": (F(1),)}, "state"),
        ({"noise": (F(1), F(1), F(-1))}, "noise"),
        ({"eigenvalues": (F(1), F(2), F(3))}, "eigenvalues"),
        ({"eigenvalues": (F(3), F(2), F(0))}, "eigenvalues"),
        ({"eigenvalues": (F(2), F(2), F(1))}, "rank"),
        ({"step_size": F(0)}, "step_size"),
    ],
)
def test_what_is_no_instance_is_refused_by_name(change, name):
    with pytest.raises(InvalidArgument) as caught:
        replace(PROBLEM, **change)
    assert caught.value.name == name
