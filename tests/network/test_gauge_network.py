"""The gauge against the meter on a real network, near stationarity: gradients of mini-batches against all samples."""

import numpy as np
import pytest
import torch

from etastar import jackknife, loss_thresholds
from etastar.network import AlignmentMeter, StepGauge
from etastar.network.gauge import GaugeOutcome
from etastar.recipes.networks import load_network

PARTS = ("full", "dominant", "bulk")


def side_by_side(seed, settle=3000, window=400, every=2, between=20):
    """η/η_S and its standard error, by the gauge and by the meter, for each of PARTS: ``(3, 2, 2)``.

    The basis stays that of the window's beginning, so that it is stale by its end.
    """
    network = load_network("digits-mlp", "mse", seed)
    model, loss_fn = network.model, network.loss_fn
    (inputs, targets), eta, size = network.train, 0.1, 50
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    run, aside = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1000)

    def draw(generator):
        chosen = torch.randint(len(inputs), (size,), generator=generator)
        return inputs[chosen], targets[chosen]

    def step():
        optimizer.zero_grad()
        loss_fn(model, draw(run)).backward()
        optimizer.step()

    for _ in range(settle):
        step()
    meter = AlignmentMeter(model, loss_fn, [network.train], rank=10, third_derivative=False, seed=seed)
    basis = meter.tracker.refresh(1e-2).basis
    gauge = StepGauge(
        optimizer,
        basis,
        parameters=model.named_parameters(),
        every=every,
        batch_size=size,
        sampling="independent",
        seed=seed,
    )
    for time in range(window):
        if time % between == between // 2:
            meter.measure(eta, size)
        if gauge.due:
            batch = draw(aside)
            gauge.second(lambda batch=batch: loss_fn(model, batch))
        step()
    summary, measured = gauge.summary(), meter.history.window(len(meter.history))
    assert summary.outcome is GaugeOutcome.RESOLVED
    assert summary.plain
    found = []
    for name, part in zip(PARTS, (summary.total, summary.dominant, summary.bulk), strict=True):
        ours = part.threshold_fraction
        theirs = jackknife(lambda split, name=name: eta / getattr(loss_thresholds(split), name), measured.moments)
        found.append([[ours.value, ours.standard_error], [theirs.value, theirs.standard_error]])
        print(f"seed {seed} η/η_{name:8s} gauge {ours.value:.3f} ± {ours.standard_error:.3f}   "
              f"meter {theirs.value:.3f} ± {theirs.standard_error:.3f}")  # fmt: skip
    return np.array(found)


@pytest.mark.slow
def test_the_gauge_reads_what_the_meter_measures_on_digits():
    found = np.array([side_by_side(seed) for seed in range(4)])  # (seeds, parts, gauge | meter, value | error)
    values, errors = found[..., 0], found[..., 1]
    apart = np.abs(values[..., 0] - values[..., 1]) / np.hypot(errors[..., 0], errors[..., 1])
    assert apart.max() < 3.5, apart
    mean, error = values.mean(0), np.sqrt((errors**2).sum(0)) / len(found)
    ratio = mean[:, 0] / mean[:, 1]
    spread = ratio * np.hypot(error[:, 0] / mean[:, 0], error[:, 1] / mean[:, 1])
    for name, one, by in zip(PARTS, ratio, spread, strict=True):
        print(f"η/η_{name:8s} gauge over meter, pooled: {one:.3f} ± {by:.3f}")
    assert np.all(3.0 * spread < 0.15), spread  # a bias of 15 % could not hide
    full_and_dominant = slice(0, 2)
    assert np.all(np.abs(ratio - 1.0)[full_and_dominant] < 3.0 * spread[full_and_dominant]), ratio
    # The bulk's reads 0.85 to 0.93 of the meter's, which leaves orders beyond the quadratic out of η_B: not yet shown
    # to be the reason, and bounded here.
    assert 0.7 < ratio[2] < 1.15, ratio
    assert np.all(mean[1] > mean[2] + 0.1)  # the dominant part has equilibrated and the bulk still descends
