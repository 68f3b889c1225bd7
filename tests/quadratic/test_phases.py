"""Turns of the exact curve against many-digit and dense evaluation; bounds, limits, t*, and degenerate starts."""

from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import etastar
from etastar import InvalidArgument
from etastar.quadratic import HeavyBall, Noise, Quadratic, Spectrum
from oracles import assert_close
from oracles.curve import Problem
from oracles.strategies import states

DENSE = 3000


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


def make(eigenvalues, counts, rank, variances):
    spectrum = Spectrum(eigenvalues, rank=rank, multiplicities=counts)
    quadratic = Quadratic(spectrum, Noise.diagonal(np.repeat(variances, counts)))
    return quadratic, Problem(np.asarray(eigenvalues), np.asarray(counts), rank, np.asarray(variances))


def random_problem(seed):
    """A start above its floor or anywhere, a step from gentle to nearly unstable, noise in some blocks or none."""
    rng = np.random.default_rng(seed)
    blocks = int(rng.integers(2, 6))
    lam = np.sort(rng.lognormal(0, 1, blocks))[::-1]
    counts = rng.integers(1, 4, blocks)
    variances = rng.lognormal(-1, 1, blocks) * (
        0.0 if seed % 11 == 0 else rng.random(blocks) < (0.8 if seed % 3 else 2)
    )
    eta = rng.uniform(0.02, 1.99) / lam[0]
    alpha = eta * lam
    floor = alpha * variances * counts / (2 - alpha)
    energies = floor + rng.lognormal(0, 2, blocks) if seed % 2 else rng.lognormal(-1, 2, blocks)
    return (*make(lam, counts, int(counts[: rng.integers(1, blocks)].sum()), variances), energies, eta)


def dense_turns(quadratic, energies, eta):
    """Turns up to DENSE that stand out from the round-off of θ; a plateau of round-off may hide the exact step."""
    theta = quadratic.expected(energy=energies, step_size=eta, times=np.arange(DENSE)).alignment
    change = np.diff(theta)
    clear = np.flatnonzero(np.abs(change) > 1e-12 * np.minimum(theta[:-1], 1 - theta[:-1]) + 1e-15)
    flips = np.flatnonzero(np.diff(np.sign(change[clear])))
    return [(int(clear[f]) + 1, int(clear[f + 1]), "min" if change[clear[f]] < 0 else "max") for f in flips]


@pytest.mark.parametrize("group", range(10))
def test_turns_are_those_of_the_exact_curve(group):
    proved = 0
    for seed in range(group * 40, group * 40 + 40):
        quadratic, problem, energies, eta = random_problem(seed)
        phases = quadratic.phases(energy=energies, step_size=eta)
        proved += phases.complete
        for time, kind in phases.turns:
            before, there, after = (problem.alignment(energies, eta, t) for t in (time - 1, time, time + 1))
            if time < 400:  # later, energies sit at their floors to more digits than float64 has
                assert (there < before) if kind == "min" else (there > before), (seed, time)
                assert (there <= after) if kind == "min" else (there >= after), (seed, time)
        kinds = [kind for _, kind in phases.turns]
        assert all(a != b for a, b in pairwise(kinds)), seed
        assert [t for t, _ in phases.turns] == sorted({t for t, _ in phases.turns}), seed
        if phases.complete:
            assert kinds in ([], ["min"]), seed
        for first, last, kind in dense_turns(quadratic, energies, eta):
            assert any(first <= t <= last and k == kind for t, k in phases.turns), (seed, first, last, kind, phases)
    assert proved > 0


def test_every_proved_case_is_a_minimum_that_dense_evaluation_finds():
    """The single-turn regime, 300 times: complete, at most one turn, exactly the argmin of θ."""
    checked = 0
    for seed in range(300):
        rng = np.random.default_rng(10_000 + seed)
        blocks = int(rng.integers(2, 6))
        lam = np.sort(rng.lognormal(0, 1, blocks))[::-1]
        cut = int(rng.integers(1, blocks))
        eta = rng.uniform(0.05, 0.98) * 2 / (lam[0] + lam[cut])
        variances = rng.lognormal(-2, 1, blocks)
        floor = eta * lam * variances / (2 - eta * lam)
        energies = floor * (1 + rng.lognormal(1, 2, blocks))
        quadratic, problem = make(lam, np.ones(blocks, dtype=int), cut, variances)
        phases = quadratic.phases(energy=energies, step_size=eta)
        assert phases.complete
        assert phases.stability == "stable"
        longest = int(60 / (eta * lam[-1])) + 10
        if longest > 20_000:
            continue
        checked += 1
        theta = quadratic.expected(energy=energies, step_size=eta, times=np.arange(longest)).alignment
        where = int(np.argmin(theta))
        if not phases.turns:
            assert theta[1] >= theta[0] - 1e-15
            assert where == 0 or theta[where] == pytest.approx(theta[0], rel=1e-13)
            continue
        ((turn, kind),) = phases.turns
        assert kind == "min"
        assert theta[turn] == pytest.approx(theta[where], rel=1e-13)
        before, there, after = (problem.alignment(energies, eta, t) for t in (turn - 1, turn, turn + 1))
        assert there < before
        assert there <= after
        assert phases.alignment_min == pytest.approx(theta[where], rel=1e-12)
    assert checked > 200


@given(
    st.floats(1.05, 100.0),
    st.floats(0.02, 0.98),
    st.integers(1, 50),
    st.integers(1, 10**6),
    st.floats(1e-3, 1e6),
    st.floats(1e-3, 1e6),
)
def test_two_level_bounds_contain_the_turn(ratio, step, rank, rest, above, above_bulk):
    lam = np.array([ratio, 1.0])
    eta = 2 * step / (ratio + 1)
    counts = np.array([rank, rest])
    quadratic, problem = make(lam, counts, rank, np.array([0.3, 0.3]))
    floor = np.array([float(f) for f in problem.floors(eta)])
    energies = floor * [1 + above, 1 + above_bulk]
    phases = quadratic.phases(energy=energies, step_size=eta)
    assert phases.complete
    if not phases.turns:
        return
    ((turn, _),) = phases.turns
    low, high = phases.turn_bounds
    assert low - 1e-6 <= turn <= high + 1e-6
    decayed = turn * eta * ratio
    with mpmath.workdps(60 + int(min(decayed, 3000))):  # far down its floor, θ moves in digits that float64 has not
        before, there, after = (problem.alignment(energies, eta, t) for t in (turn - 1, turn, turn + 1))
        assert there < before or decayed > 3000
        assert there <= after


@given(states(), st.floats(0.01, 1.9))
def test_alignment_falls_up_to_t_star(state, product):
    """T15, as printed and sharpened: every difference up to there is negative, in 60 digits."""
    eigenvalues, counts, rank, variances, energies = state
    quadratic, problem = make(eigenvalues, counts, rank, variances)
    eta = product / eigenvalues[0]
    phases = quadratic.phases(energy=energies, step_size=eta)
    for until in (phases.t_star, phases.t_star_sharp):
        if until is None or until < 1:
            continue
        for time in {*range(min(until, 8)), until - 1}:
            if time > 500:
                continue  # below float64's resolution of the start
            fall = problem.alignment(energies, eta, time + 1) - problem.alignment(energies, eta, time)
            assert fall < 0, (time, until)
    if phases.t_star is not None:
        assert phases.assumption_14
        assert phases.t_star <= (phases.t_star_sharp or 0)


def test_t_star_as_printed():
    """A start far above the floor, by the formula of the theorem in mpmath."""
    lam, eta, variance, squares = [4.0, 3.5, 1.0, 0.9], 0.02, 1e-6, [25.0, 16.0, 1.0, 1.0]
    q = Quadratic(Spectrum(lam, rank=2), Noise.isotropic(variance))
    phases = q.phases(energy=np.array(squares) * np.square(lam), step_size=eta)
    beta = [eta * variance / (2 * x - eta * x**2) for x in lam[:2]]
    psi = lam[0] ** 2 + lam[1] ** 2
    room = 2 * (3.5 - 1.0) / eta - (16.0 - 0.81)
    delta = variance * psi * 16.0 / (0.81 * 3.5**2 * room)
    excess = 41.0 - sum(beta)
    expected = mpmath.floor(mpmath.log(excess / (delta - sum(beta))) / (-2 * mpmath.log(1 - eta * 4)))
    assert phases.assumption_14
    assert phases.t_star == int(expected)
    far = q.phases(energy=np.array(squares) * np.square(lam), step_size=0.4)
    assert (far.assumption_14, far.t_star) == (False, None)


@pytest.mark.parametrize("product", [0.01, 0.7, 1.0, 1.5, 1.99])
def test_the_limit_is_the_stationary_alignment(product):
    q = Quadratic(Spectrum([4.0, 2.0, 1.0, 0.0], rank=1), Noise.diagonal([0.3, 0.2, 0.7, 5.0]))
    phases = q.phases(energy=[1.0, 2.0, 3.0, 0.0], step_size=product / 4)
    assert phases.alignment_limit == pytest.approx(float(etastar.alignment(q.stationary(product / 4))), rel=1e-13)
    assert phases.stability == "stable"


@pytest.mark.parametrize(
    ("variances", "energies", "eta"),
    [
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], 0.1),  # quiet: the slowest mode is in the bulk
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], 0.45),  # quiet: the slowest mode is dominant
        ([0.0, 0.0, 0.0], [0.0, 2.0, 0.0], 0.1),
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], 0.5),  # marginal: noise accumulates in the first
        ([0.0, 0.1, 0.1], [1.0, 2.0, 3.0], 0.5),  # marginal and quiet: its energy stays for ever
        ([0.0, 0.1, 0.1], [0.0, 2.0, 3.0], 0.5),  # marginal and dead
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], 0.6),  # one unstable
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], 1.2),  # two unstable, in either subspace
        ([0.0, 0.1, 0.1], [0.0, 2.0, 3.0], 0.6),  # unstable but dead
        ([0.0, 0.0, 0.1], [0.0, 2.0, 3.0], 1.1),
    ],
)
def test_limits_of_quiet_marginal_and_unstable_runs(variances, energies, eta):
    quadratic, problem = make([4.0, 2.0, 1.0], [1, 1, 1], 1, variances)
    phases = quadratic.phases(energy=energies, step_size=eta)
    with mpmath.workdps(200):
        exact = problem.alignment(energies, eta, 10**15)
    assert_close(phases.alignment_limit, exact, 1e-12)
    assert phases.stability == ("stable" if eta < 0.5 else "marginal" if eta == 0.5 else "unstable")


def test_a_gradient_that_vanishes_after_a_step_has_no_limit():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.0))
    phases = q.phases(gradient=[1.0, 0.0], step_size=0.25)
    assert np.isnan(phases.alignment_limit)
    assert phases.alignment_min == 1.0


def test_late_turns_of_runs_without_noise_are_found():
    """Two modes that decay at almost one rate take thousands of steps to overtake."""
    quadratic, problem = make([1.5, 1.49, 0.505], [1, 1, 1], 2, [0.0, 0.0, 0.0])
    energies = np.array([1e-30, 1.0, 1.0])
    phases = quadratic.phases(energy=energies, step_size=1.0)
    assert [kind for _, kind in phases.turns] == ["min"]
    ((turn, _),) = phases.turns
    before, there, after = (problem.alignment(energies, 1.0, t) for t in (turn - 1, turn, turn + 1))
    assert there < before
    assert there <= after
    assert turn > 1500


def test_turns_of_unstable_runs_are_found_after_the_energies_overflow():
    """Dominant and bulk both explode, the dominant one faster but from almost nothing."""
    quadratic, problem = make([2.5, 2.49, 0.5], [1, 1, 1], 1, [1e-300, 0.1, 0.1])
    energies = np.array([1e-280, 1.0, 1.0])
    phases = quadratic.phases(energy=energies, step_size=1.0)
    theta = quadratic.expected(energy=energies, step_size=1.0, times=[0, 10**6]).alignment
    assert phases.alignment_limit == pytest.approx(1.0)
    assert theta[1] == pytest.approx(1.0)
    assert "min" in [kind for _, kind in phases.turns]
    for turn, kind in phases.turns:
        before, there, after = (problem.alignment(energies, 1.0, t) for t in (turn - 1, turn, turn + 1))
        assert (there < before) == (kind == "min")
        assert (there <= after) == (kind == "min")


@pytest.mark.parametrize("scale", [1e-290, 1e-150, 1e150, 1e290])
def test_the_course_does_not_depend_on_the_unit_of_energy(scale):
    spectrum, energies = Spectrum([4.0, 2.0, 1.0], rank=1), np.array([3.0, 2.0, 1.0])
    usual = Quadratic(spectrum, Noise.isotropic(0.01)).phases(energy=energies, step_size=1e-6)
    scaled = Quadratic(spectrum, Noise.isotropic(0.01 * scale)).phases(energy=scale * energies, step_size=1e-6)
    assert scaled.turns == usual.turns
    assert scaled.alignment_limit == pytest.approx(usual.alignment_limit, rel=1e-12)
    assert (scaled.t_star, scaled.t_star_sharp, scaled.shape) == (usual.t_star, usual.t_star_sharp, usual.shape)


def test_a_start_at_the_floor_stays():
    q = Quadratic(Spectrum([4.0, 2.0, 1.0], rank=1), Noise.isotropic(0.3))
    eta = 0.2
    alpha = eta * q.spectrum.eigenvalues
    phases = q.phases(energy=alpha * 0.3 / (2 - alpha), step_size=eta)
    assert phases.turns == []
    assert phases.alignment_start == pytest.approx(phases.alignment_limit, rel=1e-14)
    assert phases.shape.startswith("stays as it is")


def test_a_start_at_its_critical_step_rises_and_says_so():
    """θ_1 = θ_0 to the last digit, then it rises: no turn, yet not a curve that stays."""
    q = Quadratic(Spectrum([2.0, 1.0], rank=1), Noise.diagonal([1.0, 1.0]))
    energies = np.array([1.0, 1.0])
    eta = float(etastar.critical_step_size(q.moments(energy=energies)).value)
    phases = q.phases(energy=energies, step_size=eta)
    theta = q.expected(energy=energies, step_size=eta, times=[0, 1, 2, 50]).alignment
    assert theta[1] == pytest.approx(theta[0], rel=1e-14)
    assert theta[3] != pytest.approx(theta[0], rel=1e-3)
    assert not phases.shape.startswith("stays")


def test_a_turn_beyond_the_horizon_is_not_proved_absent():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.01))
    phases = q.phases(gradient=[2.0, 2.0], step_size=1e-19)
    assert phases.turns == []
    assert not phases.complete
    assert phases.t_star_sharp is None


@pytest.mark.parametrize("product", [1e-5, 1e-8, 1e-11])
def test_turns_of_tiny_steps_are_exact_to_round_off(product):
    """Turning times up to 1e12: the reported θ is the minimum to every digit that it has."""
    quadratic, problem = make([4.0, 1.0], [1, 5], 1, [0.3, 0.2])
    energies, eta = np.array([1.0, 2.0]), product / 4
    phases = quadratic.phases(energy=energies, step_size=eta)
    ((turn, _),) = phases.turns
    low, high = phases.turn_bounds
    assert low <= turn <= high
    there = problem.alignment(energies, eta, turn)
    assert_close(phases.alignment_min, there, 1e-13 * there)
    for away in (turn // 1000, turn // 10):
        assert problem.alignment(energies, eta, turn - away) > there
        assert problem.alignment(energies, eta, turn + away) > there


def test_shape_in_words():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.01))
    assert q.phases(gradient=[2.0, 2.0], step_size=0.1).shape.startswith("falls until t = ")
    assert "(turns found by search: others are not ruled out)" in q.phases(gradient=[0.0, 1.0], step_size=0.1).shape
    assert "unstable" in q.phases(gradient=[1.0, 1.0], step_size=0.6).shape
    assert "marginal" in q.phases(gradient=[1.0, 1.0], step_size=0.5).shape


def test_bad_arguments_are_named():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.01))
    for change, name in (
        ({"gradient": [0.0, 0.0]}, "gradient"),
        ({"gradient": [[1.0, 1.0]]}, "gradient"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": 1e200}, "step_size"),
        ({"step_size": [0.1, 0.2]}, "step_size"),
        ({"gradient": None}, "gradient, energy"),
    ):
        with pytest.raises(InvalidArgument, match=f"^{name}: got ") as caught:
            q.phases(**({"gradient": [1.0, 1.0], "step_size": 0.1} | change))
        assert "\n" not in str(caught.value)


def test_an_oscillation_that_does_not_die_out_is_not_pursued_for_ever():
    """Far apart times show it at random: each turn between two of them would cost a bisection."""
    q = Quadratic(Spectrum.power_law(40, 5), Noise.isotropic(1e-3))
    phases = q.phases(gradient=q.gradient_at(np.ones(40)), step_size=0.5, optimizer=HeavyBall(1 - 1e-12))
    assert len([t for t, _ in phases.turns if t < 10_000]) > 1000
    assert 0 < len([t for t, _ in phases.turns if t > 20_000]) <= 16
    assert not phases.complete
