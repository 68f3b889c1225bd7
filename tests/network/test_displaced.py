"""Losses at displaced parameters, however a loss reaches its parameters; by hand where they are moved in place."""

import pytest
import torch
from torch import nn

from etastar.network import AlignmentMeter
from etastar.network.parameters import ParameterVector
from etastar.network.persample import gradient_at, loss_at, per_sample_gradients


class Regression(nn.Module):
    """With a loss of its own, as a LightningModule has."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        return self.last(torch.tanh(self.first(inputs)))

    def loss(self, batch):
        return (self(batch[0]) - batch[1]).square().mean()


def penalised(model, batch):
    return model.loss(batch) + 0.01 * sum(tensor.square().sum() for tensor in model.parameters())


@pytest.fixture(name="problem")
def _problem():
    torch.manual_seed(0)
    return Regression().double(), (torch.randn(30, 5).double(), torch.randn(30, 3).double())


def losses(model):
    return {
        "call": lambda m, batch: (m(batch[0]) - batch[1]).square().mean(),
        "method": lambda m, batch: m.loss(batch),
        "attribute": lambda m, batch: (m.last(torch.tanh(m.first(batch[0]))) - batch[1]).square().mean(),
        "closure": lambda _, batch: model.loss(batch),
        "penalty": penalised,
    }


@pytest.mark.parametrize("reach", ["call", "method", "attribute", "closure", "penalty"])
def test_a_displaced_loss_is_that_of_a_model_moved_there(problem, reach):
    model, batch = problem
    loss_fn, vector = losses(model)[reach], ParameterVector.of(model)
    here = vector.current()
    there = here + 0.3 * torch.randn(vector.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss, gradient = loss_at(model, loss_fn, vector, batch, there), gradient_at(model, loss_fn, vector, batch, there)
    assert torch.equal(vector.current(), here)
    nn.utils.vector_to_parameters(there, model.parameters())
    expected = loss_fn(model, batch)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    moved = torch.cat([piece.reshape(-1) for piece in torch.autograd.grad(expected, list(model.parameters()))])
    torch.testing.assert_close(gradient, moved, rtol=1e-12, atol=1e-14)
    rows = torch.cat(list(per_sample_gradients(model, loss_fn, vector, batch)))
    torch.testing.assert_close(rows.mean(0), moved, rtol=1e-10, atol=1e-12)


def test_the_meter_sees_one_network_however_the_loss_reaches_it(problem):
    model, batch = problem
    found = [
        AlignmentMeter(model, losses(model)[reach], [batch], rank=3).measure(0.1, 5)
        for reach in ("call", "method", "attribute", "closure")
    ]
    for name in ("alignment", "critical_step_size"):
        assert [getattr(row, name).value for row in found] == pytest.approx([getattr(found[0], name).value] * 4)
    assert all(row.certificate["third_derivative_shift"] > 1e-6 for row in found)
