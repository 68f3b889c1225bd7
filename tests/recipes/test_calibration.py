"""Calibration where the truth is known: least squares, a two-layer linear network, and means that never turn."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from etastar import InvalidArgument
from etastar.network.noise import sample_noise
from etastar.recipes.calibration import CalibrationPlan, calibrate, calibration_section
from etastar.recipes.calibration.checkpoints import checkpoints
from etastar.recipes.calibration.coverage import Coverage, training_remeasurements
from etastar.recipes.calibration.coverage import estimates as estimates_of
from etastar.recipes.calibration.paired import paired_moments, paired_steps
from etastar.recipes.calibration.real_steps import MeasuredStep, RealSteps, measured_step
from etastar.recipes.calibration.reference import reference
from etastar.recipes.networks.catalogue import NETWORKS, Recipe
from etastar.recipes.networks.network import Network, Settings
from etastar.report import render_html
from etastar.uncertainty import Estimate

N, B = 90, 6
SETTINGS = Settings(step_size=0.02, batch_size=B, rank=2, steps=40, every=10, curvature_samples=N)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def squared(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1).mean()


def data(inputs, outputs):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N + 10, inputs)) * np.geomspace(3.0, 0.2, inputs)
    Y = X @ rng.standard_normal((inputs, outputs)) + 0.5 * rng.standard_normal((N + 10, outputs))
    X, Y = torch.tensor(X), torch.tensor(Y)
    return (X[:N], Y[:N]), (X[N:], Y[N:])


def linear():
    return nn.Linear(5, 1, bias=False).double()


def two_layers():
    return nn.Sequential(nn.Linear(5, 3, bias=False), nn.Linear(3, 2, bias=False)).double()


def network_of(build, outputs):
    torch.manual_seed(0)
    train, held_out = data(5, outputs)
    return Network("tiny", "mse", build(), squared, train, held_out, SETTINGS, 10)


def last(network, steps):
    *_, checkpoint = checkpoints(network, 2, steps, 0.02, B, 2, len(network.train[0]), 0)
    return checkpoint


def test_stops_are_spread_from_early_to_late():
    seen = [at.step for at in checkpoints(network_of(linear, 1), 4, 1000, 0.02, B, 2, 20, 0)]
    assert seen == [10, 46, 215, 1000]


def test_on_least_squares_the_expansion_is_exact():
    at = last(network_of(linear, 1), 40)
    X = at.network.train[0].numpy()
    H = X.T @ X / N
    V = np.linalg.eigh(H)[1][:, -2:]
    g = at.gradient.numpy()
    batches = at.batch_gradients(12, 3)
    v = batches.numpy()

    def change(eta):
        after = g - eta * v @ H
        inside = np.sum((after @ V) ** 2, axis=1).mean()
        whole = np.sum(after**2, axis=1).mean()
        return inside / whole - np.sum((g @ V) ** 2) / np.sum(g**2)

    moments, images = paired_moments(at, batches)
    paired = paired_steps(at, batches, moments, images)
    real = RealSteps(at, batches)
    turn = measured_step(real.alignment_change, paired.whole)
    truth = brentq(change, 0.3 * paired.whole, 3.0 * paired.whole, xtol=1e-14)
    for found in (paired.quadratic, paired.third, paired.whole, turn.value):
        np.testing.assert_allclose(found, truth, rtol=1e-5)  # the basis is exact to its tolerance
    np.testing.assert_allclose(turn.value, paired.quadratic, rtol=1e-9)
    for name, S in (("dominant", V @ V.T), ("bulk", np.eye(5) - V @ V.T), ("full", np.eye(5))):
        u = v @ S
        exact = 2 * np.mean(u @ g) / np.mean(np.sum(u @ H * u, axis=1))
        measured = measured_step(real.loss_change(name), 0.8 * exact)
        np.testing.assert_allclose(measured.value, exact, rtol=1e-3)


def test_orders_of_a_two_layer_linear_network_meet_nested_derivatives():
    """Its loss is of the fourth degree, so that central differences have no error either."""
    at = last(network_of(two_layers, 2), 60)
    X, Y = at.network.train
    batches = at.batch_gradients(5, 1)

    def loss(theta):
        outputs = X @ theta[:15].reshape(3, 5).T @ theta[15:].reshape(2, 3).T
        return 0.5 * (outputs - Y).square().sum(dim=1).mean()

    series = []
    for v in batches:
        theta = at.parameters.clone().requires_grad_()
        parts = [torch.autograd.grad(loss(theta), theta, create_graph=True)[0]]
        for _ in range(3):  # ∇(⟨∇ⁿL[v, …], v⟩): one order more, contracted with v
            parts.append(torch.autograd.grad(parts[-1] @ v, theta, create_graph=True)[0])
        factors = (1.0, -1.0, 0.5, -1.0 / 6.0)
        series.append(torch.stack([factor * part.detach() for factor, part in zip(factors, parts, strict=True)]))
    series = torch.stack(series)  # (R, order, P)
    V = at.basis.vectors
    inside = series @ V @ V.mT
    start = [float(part[0, 0].square().sum()) for part in (inside, series - inside)]

    def turn(order, keep):
        energies = []
        for part in (inside, series - inside):
            product = np.einsum("rip,rjp->ij", part[:, : order + 1], part[:, : order + 1])
            energies.append([np.trace(product[:, ::-1], order - power) for power in range(keep + 1)])
        change = start[1] * np.array(energies[0]) - start[0] * np.array(energies[1])
        roots = np.roots(change[:0:-1])
        return roots[(np.abs(roots.imag) < 1e-12) & (roots.real > 0)].real.min()

    moments, images = paired_moments(at, batches)
    paired = paired_steps(at, batches, moments, images)
    np.testing.assert_allclose(paired.quadratic, turn(1, 2), rtol=1e-8)
    np.testing.assert_allclose(paired.third, turn(2, 2), rtol=1e-6)
    np.testing.assert_allclose(paired.whole, turn(3, 4), rtol=1e-6)
    measured = measured_step(RealSteps(at, batches).alignment_change, paired.whole).value
    assert abs(paired.whole / measured - 1) < abs(paired.quadratic / measured - 1)
    assert abs(paired.whole / measured - 1) < 0.01


def test_a_mean_that_never_turns_is_said_to():
    never = measured_step(lambda step: np.array([-1.0, -1.2]) - step, 0.1)
    assert not never.found
    assert math.isnan(never.standard_error)
    assert never.tried[0] == pytest.approx(0.06)
    assert never.tried[1] == pytest.approx(0.15 * 1.6**3)


@pytest.mark.parametrize("guess", [0.02, 0.1, 0.35])
def test_the_zero_and_its_error_meet_brute_force(guess):
    rng = np.random.default_rng(2)
    offsets = 0.1 + 0.01 * rng.standard_normal(20)

    def change(step):
        return 3.0 * (step - offsets) - 4.0 * (step - offsets) ** 2

    found = measured_step(change, guess)
    assert found.value == pytest.approx(brentq(lambda step: change(step).mean(), 0.05, 0.2, xtol=1e-15), rel=1e-10)
    without = [brentq(lambda s, i=i: np.delete(change(s), i).mean(), 0.05, 0.2, xtol=1e-15) for i in range(20)]
    error = math.sqrt(19 / 20 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert found.standard_error == pytest.approx(error, rel=0.01)
    falling = measured_step(lambda step: -change(step), guess, rising=False)
    assert falling.value == pytest.approx(found.value, rel=1e-10)


def test_the_reference_is_that_of_dense_algebra_and_intervals_hold_it():
    at = last(network_of(two_layers, 2), 20)
    noise = sample_noise(at.operator, squared, at.basis.explored, at.gradient, 600, 4)
    found = reference(at, noise, exact=True)
    H = at.operator @ torch.eye(21, dtype=torch.float64)
    rows = []
    for x, y in zip(*at.network.train, strict=True):
        loss = squared(at.network.model, (x[None], y[None]))
        rows.append(torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss, list(at.network.model.parameters()))]))
    deviation = torch.stack(rows) - at.gradient
    sigma, P = deviation.T @ deviation / N / B, at.basis.vectors @ at.basis.vectors.T
    Q, g = torch.eye(21, dtype=torch.float64) - P, at.gradient
    for name, S in (("η_D", P), ("η_B", Q), ("η_full", P + Q)):
        exact = 2 * float(g @ S @ g) / float(g @ S @ H @ S @ g + torch.trace(S @ H @ S @ sigma))
        assert found.training[name] == pytest.approx(exact, rel=1e-6)
    energy = [float(g @ S @ g) for S in (P, Q)]
    w = [float((S @ H @ g).square().sum() + torch.trace(S @ H @ sigma @ H)) for S in (P, Q)]
    slopes = [float(g @ S @ H @ g) for S in (P, Q)]
    plain = 2 * (energy[1] * slopes[0] - energy[0] * slopes[1]) / (energy[1] * w[0] - energy[0] * w[1])
    assert found.population["η*"] == pytest.approx(plain, rel=1e-6)
    counts = {name: Coverage() for name in found.training}
    fresh = sample_noise(at.operator, squared, at.basis.explored, at.gradient, 8 * 60, 5)
    for row in training_remeasurements(at, fresh, 8):
        for name, estimate in estimates_of(row).items():
            counts[name].add(estimate, found.training[name])
    assert counts["θ"].share == 1.0
    for name in ("η*", "η_B", "η_full"):
        assert counts[name].resolved == 60
        assert 0.78 < counts[name].share < 0.985, name
        assert counts[name].width > 1


def test_what_coverage_counts():
    def interval(low, high, resolved=True):
        return Estimate(1.0, 0.1, 0.0, low, high, 0.9, resolved)

    counts = Coverage()
    for low, high, truth, trusted in ((0.5, 2, 1, True), (0.5, 0.8, 1, True), (0.5, 2, math.nan, True)):
        counts.add(interval(low, high), truth, trusted)
    counts.add(interval(0.5, 2), 1.0, trusted=False)
    counts.add(interval(math.nan, math.nan, False), 1.0)
    counts.add(interval(math.nan, math.nan, False), math.nan)
    assert (counts.covered, counts.resolved, counts.unresolved, counts.nothing, counts.misled) == (1, 2, 2, 2, 1)
    assert counts.share == 0.5
    assert counts.width == pytest.approx((4 + 1.6) / 2)
    assert math.isnan(Coverage().share)
    assert math.isnan(Coverage().width)


@pytest.fixture
def tiny(monkeypatch):
    recipe = Recipe(two_layers, lambda: data(5, 2), {"mse": replace(SETTINGS, steps=30)})
    monkeypatch.setitem(NETWORKS, "tiny", recipe)
    monkeypatch.setattr("etastar.recipes.networks.catalogue._LOSSES", {"mse": squared})
    return CalibrationPlan("tiny", checkpoints=2, batches=8, remeasurements=3)


def test_the_whole_is_strict_json_and_a_section(tiny):
    told = []
    calibration = calibrate(tiny, lambda name, done, total: told.append((name, done, total)))
    result = json.loads(json.dumps(calibration.to_json(), allow_nan=False))
    assert [row["step"] for row in result["rows"]] == [1, 30]
    assert set(result["rows"][0]["compared"]) == {"η*", "η_D", "η_B", "η_full"}
    assert {(row["target"], row["quantity"]) for row in result["coverage"]} == set(calibration.coverage)
    assert all(found.resolved + found.unresolved + found.nothing == 6 for found in calibration.coverage.values())
    assert told[0] == ("step 1: the meter", 0, 2)
    assert told[-1] == ("step 30: real steps", 1, 2)
    section = calibration_section(calibration)
    assert [len(table.rows) for table in section.tables] == [2, 2, 6, 10]
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)
    assert all(table.caption for table in section.tables)
    assert "Calibration on real steps: tiny" in render_html("t", "l", [section])
    again = calibrate(tiny)
    assert again.to_json() == calibration.to_json()


def test_signs_are_judged_where_both_sides_decide(tiny):
    calibration = calibrate(tiny)
    row = calibration.rows[0]
    critical = replace(row.compared["η*"], predicted=0.3, low=0.2, high=0.4, resolved=True)
    decided = replace(row, compared={**row.compared, "η*": critical}, change=1.0, change_error=0.1)
    assert [decided.predicted_sign(eta) for eta in (0.1, 0.3, 0.5)] == [-1, 0, 1]
    assert decided.real_sign == 1
    assert replace(decided, change_error=0.6).real_sign == 0
    wrong = replace(calibration, rows=[decided], plan=replace(calibration.plan, step_size=0.1))
    assert (wrong.wrong_signs, wrong.signs) == (1, 1)
    assert not all(check.passed for check in calibration_section(wrong).checks)


def test_checkpoints_that_the_meter_does_not_trust_are_counted_apart(tiny):
    calibration = calibrate(tiny)
    row = calibration.rows[0]

    def off(share, trusted):
        one = row.compared["η*"]
        turn = replace(one, measured=MeasuredStep(0.1, 0.01, (0.06, 0.15)), paired=0.1 * (1.0 + share))
        return replace(row, trusted=trusted, compared={**row.compared, "η*": turn})

    mixed = replace(calibration, rows=[off(0.002, True), off(0.15, False)])
    assert mixed.paired_errors_trusted == pytest.approx([0.002])
    assert mixed.paired_errors_apart == pytest.approx([0.15])
    assert mixed.paired_errors == pytest.approx([0.002, 0.15])
    check = calibration_section(mixed).checks[0]
    assert check.passed
    assert "apart, where higher orders are too large to trust: median 15.00%" in check.measured
    assert not calibration_section(replace(mixed, rows=[off(0.15, True)])).checks[0].passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "resnet"}, "recipe: got 'resnet'"),
        ({"batches": 1}, "batches: got 1; must be at least 2"),
        ({"checkpoints": -1}, "checkpoints: got -1"),
        ({"checkpoints": 4, "steps": 3}, "checkpoints: got 4; must be at most the 3 steps"),
        ({"step_size": math.inf}, "step_size: got inf"),
    ],
)
def test_bad_plans_are_refused_by_name(options, message):
    with pytest.raises(InvalidArgument, match=message):
        calibrate(CalibrationPlan(**{"recipe": "digits-mlp", **options}))
