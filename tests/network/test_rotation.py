"""What the error of the basis leaves open, against the same numbers with a dense eigen-decomposition."""

import numpy as np
import pytest
import torch
from torch import nn

from etastar.measurement import Measurement
from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.network import HessianOperator, SubspaceTracker
from etastar.network.noise import SampleNoise
from etastar.network.population import population_moments
from etastar.network.producer import Basis, Direction, training_moments
from etastar.network.rotation import basis_errors

D, K, SAMPLES, STEP = 60, 4, 300, 0.05


def squared(model, batch):
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()


def problem(seed):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(3.0, 0.3, D, dtype=torch.float64)
    X = torch.randn(SAMPLES, D, generator=generator, dtype=torch.float64) * scales
    y = torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
    model = nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, D, generator=generator, dtype=torch.float64))
    return model, HessianOperator(model, squared, [(X, y)]), X, y


def dense(X):
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(X.T @ X / SAMPLES))
    return Basis(vectors[:, :K], None, values[:K], vectors[:, K : K + 1], values[K : K + 1])


def measured(operator, basis, X, y, weights, direction):
    """With the deviations of all samples for probes, so that nothing is left to chance: the basis is all there is."""
    rows = X * (X @ weights - y)[:, None]
    deviations = rows - rows.mean(0)
    seen = deviations @ basis.explored
    noise = SampleNoise(seen.mT @ seen / SAMPLES, deviations)
    produced = training_moments(operator, squared, basis, 20, noise=noise, direction=direction)
    return Measurement(0, STEP, produced.moments, 20, certificate=produced.basis_errors)


@pytest.mark.parametrize("direction", [None, lambda gradient: Direction(gradient + 0.3 * gradient.flip(0))])
def test_the_half_widths_hold_the_true_numbers_and_are_no_wider_than_needed(direction):
    names, missed, widths, errors = ("alignment", "dominant", "bulk"), 0, [], []
    for seed in range(12):
        model, operator, X, y = problem(seed)
        tracker = SubspaceTracker(operator, K, seed=seed)
        basis = Basis.tracked(tracker, tracker.refresh(5e-2))
        weights = model.weight.detach()[0]
        seen, true = (measured(operator, one, X, y, weights, direction) for one in (basis, dense(X)))
        keys = ("alignment_error", "threshold_dominant_error", "threshold_bulk_error")
        half = np.array([seen.certificate[key] for key in keys])
        values = [
            np.array([row.alignment.value, row.loss_thresholds.dominant.value, row.loss_thresholds.bulk.value])
            for row in (seen, true)
        ]
        error = np.abs(values[0] - values[1]) / np.array([1.0, *np.abs(values[0][1:])])
        missed += int(np.sum(error > half))
        widths.append(half)
        errors.append(error)
        assert max(true.certificate.values()) < 1e-9
    assert missed <= 0.1 * len(names) * 12
    assert np.all(np.median(widths, 0) < 30 * np.median(errors, 0))


def test_a_population_basis_of_the_hessians_own_samples_leaves_the_bulk_too_calm_by_one_over_n():
    """What docs/measuring.md says of it: by brute force, against the population's own Hessian and the same basis."""
    rng = np.random.default_rng(0)
    values = np.array([4.0, 3.0, 1.5, 1.0, 0.6, 0.3])
    gradients = torch.ones(3, 6, dtype=torch.float64)  # exact, so that only the Hessians are random

    def sampled(n):
        X = rng.standard_normal((n, 6)) * np.sqrt(values)
        return X.T @ X / n

    def bias(n, draws=1500):
        off = []
        for _ in range(draws):
            halves = [sampled(n), sampled(n)]
            V = torch.tensor(np.linalg.eigh(sum(halves) / 2)[1][:, :-3:-1].copy())
            mean = torch.tensor(sum(halves) / 2)
            basis = Basis(V, mean @ V, torch.ones(2, dtype=torch.float64))
            found = population_moments(tuple(map(torch.tensor, halves)), gradients, 1, basis, 1).moments.bulk.signal
            bulk = np.eye(6) - (V @ V.mT).numpy()
            off.append([found.second.mean(), np.sum((bulk @ (values * np.ones(6))) ** 2)])
        return np.mean(np.array(off)[:, 0] / np.array(off)[:, 1]) - 1

    assert bias(20) == pytest.approx(-0.43, abs=0.06)
    assert bias(200) == pytest.approx(-0.03, abs=0.02)


def test_without_a_gap_there_is_no_bound_and_without_a_threshold_no_error_of_one():
    energy = CurvatureMoments(1.0, 1.0, 1.0)
    bulk = SubspaceMoments(CurvatureMoments(1.0, -1.0, 1.0), CurvatureMoments(0.0, 0.0, 0.0))
    split = SplitMoments(SubspaceMoments(energy, energy), bulk)
    vectors = np.array([1.0]), np.array([0.1])
    found = basis_errors(split, np.array([2.0]), 1.0, vectors, vectors, np.array([0.0]))
    assert set(found) == {"alignment_error", "threshold_dominant_error"}  # the bulk is lowered by every step
    assert found["alignment_error"] == pytest.approx((2 * 0.1 + 0.1**2) / 2)
    equal = basis_errors(split, np.array([1.0]), 1.0, vectors, vectors, np.array([0.0]))
    assert set(equal.values()) == {1e3}
