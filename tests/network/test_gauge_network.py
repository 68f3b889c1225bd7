"""The gauge against the meter on a real network, near stationarity: gradients of mini-batches against all samples."""

import copy

import numpy as np
import pytest
import torch

from etastar.network import HessianOperator, StepGauge, SubspaceTracker
from etastar.network.gauge import GaugeOutcome
from etastar.network.producer import Basis, training_moments
from etastar.recipes.networks import load_network

PARTS = ("full", "dominant", "bulk")


def real_step(model, loss_fn, samples, before, basis):
    """K/2 and D of the update just made, whole and projected, from the full loss's gradients alone: ``(2, 3)``."""
    parameters = list(model.parameters())
    after = torch.nn.utils.parameters_to_vector(parameters).detach()
    update = (before - after).double()
    inside = basis @ (basis.T @ update)

    def gradient(at):
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(at, parameters)
        found = torch.autograd.grad(loss_fn(model, samples), parameters)
        return torch.nn.utils.parameters_to_vector(found).double()

    here, rows = gradient(before), []
    for part in (update, inside, update - inside):
        rows.append([float(0.5 * part @ (here - gradient(before - part.float()))), float(part @ here)])
    return np.array(rows).T


def meter_moments(operator, loss_fn, basis, size, seed):
    """K/2η² and D/η of the expected step, whole and projected, as the meter measures them: ``(2, 3)``."""
    images = operator @ basis
    known = Basis(basis, images, (basis * images).sum(0))
    split = training_moments(operator, loss_fn, known, size, probes=4, seed=seed).moments.mean(0)
    parts = split.dominant, split.bulk
    coupling = float(split.coupling.signal + split.coupling.noise)
    bends = [float(part.signal.first + part.noise.first) for part in parts]
    slopes = [float(part.signal.zeroth) for part in parts]
    return np.array([[sum(bends), *(bend - coupling for bend in bends)], [sum(slopes), *slopes]]) * [[0.5], [1.0]]


def fraction(rows):
    """Ratio of the means of ``(n, 2)`` and its standard error."""
    bend, slope = rows.T
    value = bend.mean() / slope.mean()
    return value, np.std(bend - value * slope) / slope.mean() / len(rows) ** 0.5


def side_by_side(seed, settle=3000, window=400, every=2, between=10):
    """η/η_S and its standard error by the gauge, by real steps and by the meter, for each of PARTS: ``(3, 3, 2)``.

    All look from the basis of the beginning: one renewed at every step reads another bulk (seed 0: 0.74, not 0.62).
    """
    network = load_network("digits-mlp", "mse", seed)
    model, loss_fn = network.model, network.loss_fn
    (inputs, targets), eta, size = network.train, 0.1, 50
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    run, aside = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1000)

    def draw(generator, count=size):
        chosen = torch.randint(len(inputs), (count,), generator=generator)
        return inputs[chosen], targets[chosen]

    def step():
        optimizer.zero_grad()
        loss_fn(model, draw(run)).backward()
        optimizer.step()

    for _ in range(settle):
        step()
    operator = HessianOperator(model, loss_fn, [network.train])
    basis = SubspaceTracker(operator, 10, seed=seed).refresh(1e-2).basis
    names = model.named_parameters()
    gauge = StepGauge(
        optimizer, basis, parameters=names, every=every, batch_size=size, sampling="independent", seed=seed
    )
    real, measured = [], []
    for time in range(window):
        if time % between == between // 2:
            measured.append(eta * meter_moments(operator, loss_fn, basis, size, time) * [[eta], [1.0]])
        if gauge.due:
            batch = draw(aside, 4 * size)  # larger than the run's, for tighter bounds
            gauge.second(lambda batch=batch: loss_fn(model, batch))
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        step()
        if time % every == 0:
            # Writing parameters aside is somebody else's move to the gauge, which would drop the step: a copy is asked.
            real.append(real_step(copy.deepcopy(model), loss_fn, network.train, before, basis.double()))
    summary = gauge.summary()
    assert summary.outcome is GaugeOutcome.RESOLVED
    assert summary.plain
    found = []
    for index, part in enumerate((summary.total, summary.dominant, summary.bulk)):
        ours = part.threshold_fraction
        others = [fraction(np.array(rows)[:, :, index]) for rows in (real, measured)]
        found.append([(ours.value, ours.standard_error), *others])
        print(f"seed {seed} η/η_{PARTS[index]:8s} gauge, real steps, meter:",
              *(f"{value:.3f} ± {error:.3f}" for value, error in found[-1]))  # fmt: skip
    return np.array(found)


@pytest.mark.slow
def test_the_gauge_reads_what_real_steps_do_and_what_the_meter_measures_on_digits():
    found = np.array([side_by_side(seed) for seed in range(4)])  # (seeds, parts, gauge | real | meter, value | error)
    mean, error = found[..., 0].mean(0), np.sqrt((found[..., 1] ** 2).sum(0)) / len(found)
    for other, name in ((1, "real steps"), (2, "meter")):
        ratio = mean[:, 0] / mean[:, other]
        spread = ratio * np.hypot(error[:, 0] / mean[:, 0], error[:, other] / mean[:, other])
        for part, one, by in zip(PARTS, ratio, spread, strict=True):
            print(f"η/η_{part:8s} gauge over {name}, pooled: {one:.3f} ± {by:.3f}")
        assert np.all(3.0 * spread < [0.05, 0.05, 0.15]), spread  # a larger bias could not hide
        assert np.all(np.abs(ratio - 1.0) < 3.0 * spread), ratio
    assert np.all(mean[1] > mean[2] + 0.1)  # the dominant part has equilibrated and the bulk still descends
