"""The waist: what the records accept, how they map, and that criteria read them as dense matrices say."""

from fractions import Fraction

import numpy as np
import pytest

import etastar
from etastar import Coupling, CurvatureMoments, Descent, InvalidArgument, SplitMoments, SubspaceMoments
from oracles import dense, stepping


def record(batch=(), coupling=False, descent=False, seed=0):
    rng = np.random.default_rng(seed)

    def part():
        moments = [CurvatureMoments(*rng.standard_normal((3, *batch))) for _ in range(2)]
        return SubspaceMoments(*moments, Descent(*rng.standard_normal((2, *batch))) if descent else None)

    return SplitMoments(part(), part(), Coupling(*rng.standard_normal((2, *batch))) if coupling else None)


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.leaves(), b.leaves(), strict=True))


@pytest.mark.parametrize("value", [1, 1.5, np.float32(2), np.int64(3), True, Fraction(1, 3), [1, 2], [[1.0], [2.0]]])
def test_real_numbers_become_float64(value):
    moments = CurvatureMoments(value, 0, 0)
    assert moments.zeroth.dtype == np.float64
    assert moments.shape == np.shape(value)


@pytest.mark.parametrize("bad", ["1", None, 1j, np.array([1 + 1j]), [1, [2, 3]], object(), ["a"], 10**400])
@pytest.mark.parametrize("field", ["zeroth", "first", "second"])
def test_what_is_not_real_is_refused_by_its_field(bad, field):
    values = {"zeroth": 0.0, "first": 0.0, "second": 0.0} | {field: bad}
    with pytest.raises(InvalidArgument, match=f"^{field}: got ") as caught:
        CurvatureMoments(**values)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_number_beyond_float64_is_infinite_without_a_warning():
    assert CurvatureMoments(np.longdouble(10) ** 400, 0, 0).zeroth in (np.inf, 1e400)


def test_fields_are_copies():
    source = np.ones(3)
    moments = CurvatureMoments(source, 0, 0)
    source[:] = 7
    assert np.all(moments.zeroth == 1)


def test_shapes_must_broadcast():
    with pytest.raises(InvalidArgument, match=r"^CurvatureMoments: got .*one batch shape"):
        CurvatureMoments(np.ones(2), np.ones(3), 0)
    with pytest.raises(InvalidArgument, match=r"^SplitMoments: got .*one batch shape"):
        SplitMoments(record((2,)).dominant, record((3,)).bulk)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda m, p: SubspaceMoments(1.0, m), "signal"),
        (lambda m, p: SubspaceMoments(m, None), "noise"),
        (lambda m, p: SubspaceMoments(m, m, m), "descent"),
        (lambda m, p: SplitMoments(m, p), "dominant"),
        (lambda m, p: SplitMoments(p, m), "bulk"),
        (lambda m, p: SplitMoments(p, p, m), "coupling"),
        (lambda m, p: SplitMoments(p, SubspaceMoments(m, m, Descent(1, 1))), "descent"),
    ],
)
def test_wrong_records_are_named(make, name):
    moments = CurvatureMoments(1, 1, 1)
    with pytest.raises(InvalidArgument, match=f"^{name}: got "):
        make(moments, SubspaceMoments(moments, moments))


@pytest.mark.parametrize("coupling", [False, True])
@pytest.mark.parametrize("descent", [False, True])
def test_map_index_mean_and_stack(coupling, descent):
    records = [record((), coupling, descent, seed) for seed in range(5)]
    stacked = SplitMoments.stack(records)
    assert stacked.shape == (5,)
    assert all(leaves_equal(stacked[i], one) for i, one in enumerate(records))
    assert leaves_equal(stacked.map(lambda a: 2 * a).mean(), stacked.mean().map(lambda a: 2 * a))
    assert len(stacked.leaves()) == 12 + 4 * descent + 2 * coupling
    wide = SplitMoments.stack([stacked, stacked])
    assert wide.shape == (2, 5)
    assert wide.mean(axis=(0, 1)).shape == ()
    assert wide.mean(axis=1).shape == (2,)


def test_stack_refuses_mixtures():
    with pytest.raises(InvalidArgument, match=r"^splits: got \[\]; give at least one record"):
        SplitMoments.stack([])
    with pytest.raises(InvalidArgument, match=r"^splits: got .*one batch shape and the same fields"):
        SplitMoments.stack([record(), record(coupling=True)])
    with pytest.raises(InvalidArgument, match=r"^splits: got .*one batch shape"):
        SplitMoments.stack([record(), record((2,))])
    with pytest.raises(InvalidArgument, match=r"^splits\[1\]: got 3; must be a SplitMoments"):
        SplitMoments.stack([record(), 3])


def test_means_of_the_hopeless_are_told_or_propagated():
    with pytest.raises(InvalidArgument, match="empty batch of moments has no mean"):
        record((0,)).mean()
    bad = record((2,)).map(lambda a: np.array([np.inf, -np.inf]))
    assert np.isnan(bad.mean().dominant.signal.zeroth)
    assert record((2,)).map(lambda a: np.full(2, 1.7e308)).mean().bulk.noise.first == np.inf


def problems():
    """Random H (indefinite at times), a projector that does not commute with it, a full Σ, and a direction h."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(3, 8))
        V = stepping.random_orthogonal(rng, size)
        lam = np.sort(rng.lognormal(0, 1, size))[::-1] * (
            np.where(np.arange(size) == size - 1, -1, 1) ** (seed % 3 == 0)
        )
        H = V @ np.diag(lam) @ V.T
        basis = stepping.random_orthogonal(rng, size)[:, : int(rng.integers(1, size))]
        covariance = stepping.random_covariance(rng, size, rank=1 if seed % 4 == 0 else None)
        g, m = rng.standard_normal((2, size))
        yield rng, H, basis @ basis.T, covariance, g, [None, g + 0.9 * m, rng.lognormal(0, 1, size) * g][seed % 3]


def test_projected_energies_and_losses_are_those_of_dense_matrices():
    """Non-invariant projectors with coupling; momentum and preconditioned directions through `descent`."""
    for rng, H, P, covariance, g, direction in problems():
        split = dense.split_moments(H, P, covariance, g, direction)
        eta, Q = float(rng.lognormal(-1, 1)), np.eye(len(H)) - P
        h = g if direction is None else direction
        D, B = (dense.energy_after(H, S, covariance, g, h, eta) for S in (P, Q))
        assert etastar.alignment_after(split, eta) == pytest.approx(D / (D + B), rel=1e-10)
        before = g @ P @ g / (g @ g)
        assert etastar.alignment_change(split, eta) == pytest.approx(D / (D + B) - before, abs=1e-10)
        change = etastar.loss_change(split, eta)
        scale = 1e-10 * (eta * abs(g @ h) + eta**2 * (h @ h + np.trace(covariance)) * np.linalg.norm(H, 2))
        for name, S in (("dominant", P), ("bulk", Q), ("full", np.eye(len(H)))):
            exact = dense.loss_change(H, S, covariance, g, h, eta)
            assert getattr(change, name) == pytest.approx(exact, abs=scale), name


def test_thresholds_and_critical_step_of_dense_matrices_are_zero_crossings():
    for _, H, P, covariance, g, direction in problems():
        split = dense.split_moments(H, P, covariance, g, direction)
        h = g if direction is None else direction
        bounds, step = etastar.loss_thresholds(split), etastar.critical_step_size(split)
        for name, S in (("dominant", P), ("bulk", np.eye(len(H)) - P), ("full", np.eye(len(H)))):
            threshold = getattr(bounds, name)
            if not np.isnan(threshold):
                size = threshold * abs(g @ S @ h) + 1e-300
                assert abs(dense.loss_change(H, S, covariance, g, h, threshold)) < 1e-9 * size
        if not np.isnan(step.value):
            after = [dense.energy_after(H, S, covariance, g, h, step.value) for S in (P, np.eye(len(H)) - P)]
            assert after[0] / sum(after) == pytest.approx(g @ P @ g / (g @ g), rel=1e-8)


def test_heavy_ball_step_through_descent():
    """x' = x − η(g + βm + ξ): the same record with h = g + βm, against 400,000 sampled steps."""
    rng = np.random.default_rng(7)
    H = np.diag([5.0, 2.0, 1.0, 0.5])
    P = np.diag([1.0, 1.0, 0.0, 0.0])
    covariance, g, m = stepping.random_covariance(rng, 4), rng.standard_normal(4), rng.standard_normal(4)
    h, eta = g + 0.9 * m, 0.2
    noisy = h + stepping.gaussian(rng, covariance, 400_000)
    after = g - eta * noisy @ H
    split = dense.split_moments(H, P, covariance, g, h)
    ratio = (after @ P * after).sum(1).mean() / (after * after).sum(1).mean()
    assert etastar.alignment_after(split, eta) == pytest.approx(ratio, abs=4e-3)
    x = np.linalg.solve(H, g)
    for name, S in (("dominant", P), ("bulk", np.eye(4) - P), ("full", np.eye(4))):
        moved = x - eta * noisy @ S
        losses = 0.5 * np.einsum("ri,ij,rj->r", moved, H, moved) - 0.5 * x @ H @ x
        assert stepping.standard_errors(losses, getattr(etastar.loss_change(split, eta), name)) < 4
