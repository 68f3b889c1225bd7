"""The covariance of per-sample gradients against every gradient made one by one, however many a backward takes."""

import numpy as np
import pytest
import torch
from torch import nn

from etastar import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.network import HessianOperator
from etastar.network import noise as noise_module
from etastar.network.expansion import scatters
from etastar.network.noise import sample_noise


class Slope(torch.autograd.Function):
    """x², whose double backward reads a value on the host: no stacked backward follows it."""

    @staticmethod
    def forward(ctx, x, by):
        ctx.save_for_backward(x, by)
        return 2 * x * by

    @staticmethod
    def backward(ctx, v):
        x, by = ctx.saved_tensors
        assert float(v.detach().square().sum()) >= 0.0
        return 2 * by * v, 2 * x * v


class Squared(torch.autograd.Function):
    """x² with `Slope` for its derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, by):
        return Slope.apply(ctx.saved_tensors[0], by)


class Unstackable(nn.Module):
    def forward(self, x):
        return Squared.apply(x)


def problem(activation):
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(17, size, generator=generator, dtype=torch.float64) for size in (4, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 2)).double()

    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(1).mean()

    operator = HessianOperator(model, loss_fn, [(x[:10], y[:10]), (x[10:], y[10:])])
    samples = []
    for index in range(17):
        loss = loss_fn(model, (x[index : index + 1], y[index : index + 1]))
        samples.append(nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(model.parameters()))))
    vectors = torch.linalg.qr(torch.randn(operator.shape[0], 7, generator=generator, dtype=torch.float64))[0]
    return operator, loss_fn, vectors, torch.stack(samples).detach()


@pytest.mark.parametrize("activation", [nn.Tanh(), Unstackable()])
@pytest.mark.parametrize("width", ["one", "three", "all"])
def test_coordinates_are_exact_however_many_directions_a_backward_takes(activation, width, monkeypatch):
    operator, loss_fn, vectors, samples = problem(activation)
    gradient = operator.gradient()
    least = max(10 * operator.bytes_per_sample, vectors.shape[0] * 8)
    monkeypatch.setattr(noise_module, "_STACK_BYTES", {"one": 0, "three": 3 * least, "all": 100 * least}[width])
    found = sample_noise(operator, loss_fn, vectors, gradient, probes=6, seed=0)
    deviations = samples - samples.mean(0)
    inside = deviations @ vectors
    torch.testing.assert_close(found.dominant, inside.mT @ inside / 17, rtol=1e-10, atol=1e-14)
    # the deviations of all samples, with signs: solve for the signs
    signs = torch.linalg.lstsq(samples.mT, (found.probes * 17**0.5).mT).solution
    residual = samples.mT @ signs - (found.probes * 17**0.5).mT
    assert float(residual.norm() / found.probes.norm()) < 1e-9


def test_probes_have_the_covariance_of_the_samples():
    operator, loss_fn, vectors, samples = problem(nn.Tanh())
    found = sample_noise(operator, loss_fn, vectors, operator.gradient(), probes=4000, seed=1)
    deviations = samples - samples.mean(0)
    drawn = (found.probes @ vectors).square()
    exact = (deviations @ vectors).square().mean(0)
    error = drawn.std(0) / 4000**0.5
    assert bool(((drawn.mean(0) - exact).abs() < 4 * error).all())


def moments(spread):
    noise = CurvatureMoments(0.0, 0.0, 1.0 + spread * np.array([1.0, -1.0, 0.5, -0.5]))
    quiet = CurvatureMoments(0.0, 0.0, 0.0)
    dominant, bulk = CurvatureMoments(1.0, 4.0, 16.0), CurvatureMoments(3.0, 3.0, 3.0)
    return SplitMoments(SubspaceMoments(dominant, quiet), SubspaceMoments(bulk, noise))


@pytest.mark.parametrize(("spread", "expected"), [(0.0, False), (0.1, False), (0.2, True), (float("nan"), True)])
def test_the_other_sign_is_asked_for_where_one_alone_scatters_much(spread, expected):
    beyond = np.zeros((3, 2, 4))
    beyond[0, 1] = 0.5 + spread * np.array([1.0, -1.0, -1.0, 1.0])  # 0.3 of the noise's own scatter is 0.12
    assert scatters(moments(0.5), beyond, 0.1) is expected


def test_scatter_that_happens_to_make_up_for_the_noise_is_scatter():
    beyond = np.zeros((3, 2, 4))
    beyond[0, 1] = -0.5 * np.array([1.0, -1.0, 0.5, -0.5])
    assert scatters(moments(0.5), beyond, 0.1)
