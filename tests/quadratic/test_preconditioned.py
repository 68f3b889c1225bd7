"""Preconditioned runs: the transformed problem against dense stepping in x, both inner products, and refusals."""

import numpy as np
import pytest

import etastar
from etastar import InvalidArgument
from etastar.quadratic import SGD, Averaged, HeavyBall, Nesterov, Noise, Preconditioned, Quadratic, Spectrum
from oracles import dense, stepping

SIZE, RANK = 5, 2


def random_problem(seed, full):
    """H ≻ 0, Σ and M in the coordinates of the parameters, and the laboratory's problem of them."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((SIZE, SIZE))
    H, covariance = root @ root.T / SIZE + 0.1 * np.eye(SIZE), stepping.random_covariance(rng, SIZE)
    mixed = rng.standard_normal((SIZE, SIZE))
    M = mixed @ mixed.T / SIZE + 0.2 * np.eye(SIZE) if full else rng.lognormal(0, 1, SIZE)
    spectrum = Spectrum.from_matrix(H, rank=RANK)
    V = spectrum.basis
    problem = Quadratic(spectrum, Noise.covariance(V.T @ covariance @ V))
    return rng, H, covariance, M, np.linalg.inv(M if full else np.diag(M)), problem


def inverse_root(inverse):
    values, vectors = np.linalg.eigh(inverse)
    return (vectors * np.sqrt(values)) @ vectors.T


def top(H, rank):
    vectors = np.linalg.eigh(H)[1][:, ::-1][:, :rank]
    return vectors @ vectors.T


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_expectations_are_those_of_dense_recursions_in_x(seed, full):
    """E xxᵀ by the matrix recursion of the run as it is, read in the inner product of M; with momentum as well."""
    rng, H, covariance, M, inverse, q = random_problem(seed, full)
    V, R = q.spectrum.basis, inverse_root(inverse)
    P = top(R @ H @ R, RANK)
    x = rng.standard_normal(SIZE)
    beta = 0.0 if seed % 2 else 0.7
    inner = SGD() if beta == 0 else HeavyBall(beta)
    eta = rng.uniform(0.1, 0.9) * 2 * (1 + beta) / np.linalg.eigvalsh(R @ H @ R)[-1]
    curve = q.expected(gradient=V.T @ H @ x, step_size=eta, times=range(9), optimizer=Preconditioned(M, inner))
    # State (x, m): m' = βm + Hx + ξ, x' = x − ηM⁻¹m'.
    step = np.block([[np.eye(SIZE) - eta * inverse @ H, -eta * beta * inverse], [H, beta * np.eye(SIZE)]])
    added = np.vstack([-eta * inverse, np.eye(SIZE)])
    second = np.zeros((2 * SIZE, 2 * SIZE))
    second[:SIZE, :SIZE] = np.outer(x, x)
    for time in range(9):
        g = R @ H @ second[:SIZE, :SIZE] @ H @ R
        assert curve.alignment[time] == pytest.approx(np.trace(P @ g) / np.trace(g), rel=1e-9)
        assert curve.loss[time] == pytest.approx(0.5 * np.trace(H @ second[:SIZE, :SIZE]), rel=1e-9)
        second = step @ second @ step.T + added @ covariance @ added.T
    split = q.stationary(eta, optimizer=Preconditioned(M, inner))
    assert etastar.critical_step_size(split).value == pytest.approx(eta, rel=1e-9)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_one_step_in_both_inner_products(seed, full):
    rng, H, covariance, M, inverse, q = random_problem(seed, full)
    V, R = q.spectrum.basis, inverse_root(inverse)
    g, m = rng.standard_normal((2, SIZE))
    for inner, a, b in ((SGD(), 1.0, 0.0), (HeavyBall(0.8), 1.0, 0.8), (Nesterov(0.5), 1.5, 0.25)):
        buffer = None if b == 0 else m @ V
        h = a * g + b * m
        arguments = {"gradient": g @ V, "momentum": buffer, "optimizer": Preconditioned(M, inner)}
        inside = dense.split_moments(R @ H @ R, top(R @ H @ R, RANK), a * a * R @ covariance @ R, R @ g, R @ h)
        euclidean = dense.split_moments(H, top(H, RANK), a * a * inverse @ covariance @ inverse, g, inverse @ h)
        for split, truth in (
            (q.moments(**arguments), inside),
            (q.moments(**arguments, euclidean=True), euclidean),
        ):
            for part, exact in ((split.dominant, truth.dominant), (split.bulk, truth.bulk)):
                for mine, his in zip(part.leaves(), exact.leaves(), strict=False):
                    assert np.allclose(mine, his, rtol=1e-8, atol=1e-10)
            assert etastar.critical_step_size(split).regime == etastar.critical_step_size(truth).regime
        # What the record says of a step in x, by stepping: energy and loss of the projected update.
        split, P = q.moments(**arguments, euclidean=True), top(H, RANK)
        eta = 0.1
        spread = a * a * inverse @ covariance @ inverse
        energies = [dense.energy_after(H, S, spread, g, inverse @ h, eta) for S in (P, np.eye(SIZE) - P)]
        assert etastar.alignment_after(split, eta) == pytest.approx(energies[0] / sum(energies), rel=1e-9)
        lost = dense.loss_change(H, P, spread, g, inverse @ h, eta)
        assert etastar.loss_change(split, eta).dominant == pytest.approx(lost, rel=1e-8)


def test_diagonal_in_the_eigenbasis_needs_no_eigenvectors_and_agrees_with_full():
    lam, M = np.array([4.0, 3.0, 1.0, 0.5]), np.array([8.0, 1.0, 0.5, 2.0])
    sigma = stepping.random_covariance(np.random.default_rng(0), 4)
    g = np.array([1.0, -2.0, 3.0, 0.5])
    for noise in (Noise.isotropic(0.2), Noise.diagonal([0.1, 0.2, 0.3, 0.4]), Noise.covariance(sigma)):
        plain, rotated = (
            Quadratic(spectrum, noise) for spectrum in (Spectrum(lam, rank=2), Spectrum(lam, rank=2, basis=np.eye(4)))
        )
        arguments = {"gradient": g, "step_size": 0.2, "times": [0, 1, 5, 40], "optimizer": Preconditioned(M)}
        a, b = plain.expected(**arguments), rotated.expected(**arguments)
        np.testing.assert_allclose(a.alignment, b.alignment, rtol=1e-10)
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-10)
        one = {"gradient": g, "optimizer": Preconditioned(M), "euclidean": True}
        for mine, his in zip(plain.moments(**one).leaves(), rotated.moments(**one).leaves(), strict=True):
            assert np.allclose(mine, his, rtol=1e-12)


def test_the_transformed_problem_can_be_kept():
    _, _, _, M, _, q = random_problem(0, False)
    kept, g = Preconditioned(M, HeavyBall(0.5)).transform(q), np.ones(SIZE)
    a = q.expected(gradient=g, step_size=0.05, times=[0, 3, 9], optimizer=Preconditioned(M, HeavyBall(0.5)))
    b = kept.problem.expected(gradient=kept.gradient(g), step_size=0.05, times=[0, 3, 9], optimizer=HeavyBall(0.5))
    assert np.array_equal(a.alignment, b.alignment)
    assert kept.problem.spectrum.rank == RANK


@pytest.mark.parametrize("inner", [SGD(), HeavyBall(0.5), Averaged(0.8, Nesterov(0.5))])
def test_samples_steps_and_phases_run_on_the_transformed_problem(inner):
    _, _, _, M, _, q = random_problem(3, True)
    g, optimizer = np.arange(1.0, 6.0), Preconditioned(M, inner)
    eta = 0.5 / Preconditioned(M).transform(q).problem.spectrum.eigenvalues[0]
    curve = q.expected(gradient=g, step_size=eta, times=[0, 4, 9], optimizer=optimizer)
    runs = {"gradient": g, "step_size": eta, "replicas": 4000, "optimizer": optimizer}
    for paths in (q.sample(**runs, times=[0, 4, 9]), q.simulate(**runs, steps=9, record=[0, 4, 9])):
        for index in (1, 2):
            assert stepping.standard_errors(paths.loss[:, index], curve.loss[index]) < 4
    phases = q.phases(gradient=g, step_size=eta, optimizer=optimizer)
    assert phases.alignment_limit == pytest.approx(
        float(etastar.alignment(q.stationary(eta, optimizer=optimizer))), rel=1e-12
    )
    assert phases.complete <= isinstance(inner, SGD)


def test_directions_without_curvature_stay_so():
    X = np.random.default_rng(0).standard_normal((3, SIZE))
    q = Quadratic(Spectrum.from_least_squares(X, rank=2), Noise.isotropic(0.0))
    gradient = q.gradient_at(np.ones(SIZE))
    view = Preconditioned(np.arange(1.0, 6.0)).transform(q)
    assert np.count_nonzero(view.problem.spectrum.eigenvalues == 0) == 2
    curve = view.problem.expected(gradient=view.gradient(gradient), step_size=0.1, times=[0, 5])
    assert curve.loss[0] == pytest.approx(float(q.expected(gradient=gradient, step_size=0.1, times=[0]).loss[0]))
    indefinite = Quadratic(Spectrum.from_matrix(np.diag([2.0, 1.0, -1.0]), rank=1), Noise.isotropic(0.1))
    assert Preconditioned([1.0, 2.0, 4.0]).transform(indefinite).problem.spectrum.eigenvalues[-1] == -0.25


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: HeavyBall(1.0), r"^beta: got 1.0; must be at least 0 and below 1$"),
        (lambda: HeavyBall(-0.1), r"^beta: got -0.1; must be at least 0"),
        (lambda: Nesterov(float("nan")), r"^beta: got nan; must be one finite number$"),
        (lambda: Nesterov("0.9"), r"^beta: got '0.9'; must be a number$"),
        (lambda: Averaged(1.0), r"^omega: got 1.0; must be at least 0 and below 1$"),
        (lambda: Averaged(0.5, Preconditioned([1.0, 2.0])), r"^inner: got .*write Preconditioned\(M, Averaged\(omega"),
        (lambda: Averaged(0.5, Averaged(0.5)), r"^inner: got Averaged"),
        (lambda: Preconditioned([1.0, 0.0]), r"^matrix: got .*must be positive definite"),
        (lambda: Preconditioned([[1.0, 2.0], [2.0, 1.0]]), r"^matrix: got 'smallest eigenvalue -1'; must be positive"),
        (lambda: Preconditioned([[1.0, 2.0], [0.0, 1.0]]), r"^matrix: got .*must be symmetric"),
        (lambda: Preconditioned([1.0], SGD), r"^inner: got .*must be SGD\(\)"),
    ],
)
def test_bad_optimizers_are_refused_in_one_line(build, line):
    with pytest.raises(InvalidArgument, match=line) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda q, g: q.expected(g, step_size=0.1, times=[1], optimizer="sgd"), r"^optimizer: got 'sgd'; must be SGD"),
        (lambda q, g: q.moments(g, optimizer=Averaged(0.5)), r"^optimizer: got .*ask for the moments of its inner"),
        (
            lambda q, g: q.moments(g, optimizer=Preconditioned([1.0, 2.0], Averaged(0.5))),
            r"^optimizer: got .*ask for the moments of its inner",
        ),
        (lambda q, g: q.moments(g, momentum=g), r"^momentum: got .*SGD carries none"),
        (lambda q, g: q.moments(energy=g, momentum=g, optimizer=HeavyBall(0.5)), r"^momentum: got .*needs gradient="),
        (lambda q, g: q.moments(g, momentum=[1.0], optimizer=HeavyBall(0.5)), r"^momentum: got .*length 2"),
        (
            lambda q, g: q.moments([g] * 2, momentum=[g] * 3, optimizer=HeavyBall(0.5)),
            r"^momentum: got \(3, 2\); must broadcast",
        ),
        (lambda q, g: q.moments(g, euclidean=True), r"^euclidean: got True; only with optimizer=Preconditioned"),
        (
            lambda q, g: q.expected(energy=g, step_size=0.1, times=[1], optimizer=Preconditioned([1.0, 2.0])),
            r"^gradient: got None; a preconditioner needs gradient=",
        ),
        (lambda q, g: q.stationary(0.1, optimizer=Preconditioned([1.0])), r"^matrix: got .*must fit the dimension 2"),
        (
            lambda q, g: q.stationary(0.1, optimizer=Preconditioned(np.eye(2))),
            r"^matrix: got .*needs eigenvectors; make the spectrum by from_matrix",
        ),
        (lambda q, g: q.stationary(0.1, optimizer=Preconditioned([4.0, 1.0])), r"^rank: got 1; cuts through equal"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(call, line):
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
    with pytest.raises(InvalidArgument, match=line) as caught:
        call(q, np.array([1.0, 3.0]))
    assert "\n" not in str(caught.value)
