"""What a meter is given by mistake: refused in one line that names it, before anything is computed."""

import pytest
import torch
from torch import nn

from etastar import InvalidArgument
from etastar.network import AlignmentMeter, HessianOperator, decay_forecast

INPUTS, TARGETS = torch.ones(8, 3), torch.arange(16.0).view(8, 2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((lambda x: x, squared, [(INPUTS, TARGETS)]), "model: got 'function'; must be a torch.nn.Module"),
        ((network(), 3, [(INPUTS, TARGETS)]), "loss_fn: got 'int'; must be callable"),
        ((network(), squared, (INPUTS, TARGETS)), "curvature_batches: got 'tuple'.*\\[batch\\] for one"),
        ((network(), squared, INPUTS), "curvature_batches: got 'Tensor'.*\\[batch\\] for one"),
        ((network(), squared, {"x": INPUTS}), "curvature_batches: got 'dict'.*\\[batch\\] for one"),
    ],
)
def test_arguments_in_the_wrong_place(given, message):
    with pytest.raises(InvalidArgument, match=message):
        AlignmentMeter(*given, rank=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 2.5}, "every: got 2.5; must be a whole number at least 1"),
        ({"every": 0}, "every: got 0; must be a whole number at least 1"),
        ({"probes": 1}, "probes: got 1; must be a whole number at least 2"),
        ({"probes": 2.0}, "probes: got 2.0; must be a whole number at least 2"),
        ({"parameters": []}, "parameters: got \\[\\]; must name one at least"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InvalidArgument, match=message):
        AlignmentMeter(network(), squared, [(INPUTS, TARGETS)], 2, **options)


def test_a_generator_is_read_once_and_kept():
    batches = [(INPUTS, TARGETS)]
    meters = [AlignmentMeter(network(), squared, source, 2) for source in (batches, (batch for batch in batches))]
    for _ in range(2):
        first, second = (meter.measure(0.1, 4).alignment.value for meter in meters)
        assert first == second


@pytest.mark.parametrize("size", [0, -3, 2.5, float("nan"), True])
def test_batch_sizes_that_are_none(size):
    with pytest.raises(InvalidArgument, match=r"batch_size: got .*; must be a whole number at least 1"):
        AlignmentMeter(network(), squared, [(INPUTS, TARGETS)], 2).measure(0.1, size)
    with pytest.raises(InvalidArgument, match="batch_size"):
        decay_forecast(HessianOperator(network(), squared, [(INPUTS, TARGETS)]), squared, 2, size, 0.1, steps=3)


def test_no_larger_batch_than_all_samples_is_drawn_without_replacement():
    meter = AlignmentMeter(network(), squared, [(INPUTS, TARGETS)], 2, replace=False)
    whole = meter.measure(0.1, 8)
    assert float(whole.moments.mean(0).bulk.noise.zeroth) == 0
    with pytest.raises(InvalidArgument, match="batch_size: got 9; without replacement at most the 8 samples"):
        meter.measure(0.1, 9)


def test_a_forecast_names_the_step_that_settles_nothing():
    operator = HessianOperator(network(), squared, [(INPUTS, TARGETS)])
    with pytest.raises(InvalidArgument, match="steps: got None; must be given: a step of 1e-10 at a smallest"):
        decay_forecast(operator, squared, 1, 4, 1e-9)
