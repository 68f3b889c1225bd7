"""The ledger against dense algebra on a linear regression, whose loss is quadratic: predictions must come true."""

import numpy as np
import pytest
import torch
from torch import nn

from etastar import InvalidArgument
from etastar.network import AlignmentMeter
from etastar.network.ledger import UpdateLedger
from etastar.network.ledger_entries import PARTS


def squared(model, batch):
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()


class Setting:
    """Regression on 60 samples; `same` looks at the training samples, where the moments are exact."""

    def __init__(self, momentum=0.0, same=True, network=False):
        torch.manual_seed(0)
        self.model = (
            nn.Linear(5, 1, bias=False) if not network else nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
        )
        self.model.double()
        X = torch.randn(100, 5, dtype=torch.float64) * torch.tensor([2.0, 1.5, 0.5, 0.4, 0.3])
        y = X.sum(1) + torch.randn(100, dtype=torch.float64)
        self.train, self.held_out = (X[:60], y[:60]), (X[60:], y[60:])
        self.meter = AlignmentMeter(
            self.model, squared, [self.train], 2, overhead=None, third_derivative=False, tolerance=1e-8
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum)
        looked = [self.train] if same else [tuple(part[i::4] for part in self.held_out) for i in range(4)]
        self.ledger = UpdateLedger(self.meter, looked)
        self.stream = torch.Generator().manual_seed(1)

    def draw(self, count, size=6):
        drawn = [torch.randint(60, (size,), generator=self.stream) for _ in range(count)]
        return [tuple(part[index] for part in self.train) for index in drawn]

    def step(self):
        self.optimizer.zero_grad()
        squared(self.model, self.draw(1)[0]).backward()
        self.optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_on_a_quadratic_what_is_predicted_happens(momentum):
    setting = Setting(momentum)
    for _ in range(6):  # the first from where descent is large, so that ratios are well determined
        setting.ledger.check(setting.optimizer, setting.draw(200))
        for _ in range(5):
            setting.step()
    for one in setting.ledger.summary():
        assert one.entries == 6
        assert abs(one.ratio - 1) < 4 * one.ratio_error
        assert one.ratio_error < 0.3
        assert 0.3 < one.deviation < 2.0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_each_part_is_the_one_that_dense_algebra_makes(momentum):
    setting = Setting(momentum, same=False)
    for _ in range(3):
        setting.step()
    batches = setting.draw(3)
    entry = setting.ledger.check(setting.optimizer, batches)
    x = setting.model.weight.detach()[0].numpy()
    X, y = (part.numpy() for part in setting.held_out)
    values, vectors = np.linalg.eigh(setting.train[0].numpy().T @ setting.train[0].numpy() / 60)
    P = vectors[:, -2:] @ vectors[:, -2:].T

    def loss(at):
        return 0.5 * np.mean((X @ at - y) ** 2)

    buffer = setting.optimizer.state[setting.model.weight].get("momentum_buffer")
    carried = 0 if not momentum else 0.9 * buffer[0].numpy()
    A, b = (part.numpy() for part in setting.train)
    mean = A.T @ (A @ x - b) / len(b)
    for part, S in zip(PARTS, (P, np.eye(5) - P, np.eye(5)), strict=True):
        assert entry.descent[part].value == pytest.approx(0.1 * mean @ S @ (carried + mean), rel=1e-7)
    expected = []
    for inputs, targets in batches:
        A, b = inputs.numpy(), targets.numpy()
        update = -0.1 * (carried + A.T @ (A @ x - b) / len(b))
        expected.append([loss(x + part) - loss(x) for part in (P @ update, update - P @ update, update)])
    for part, number in zip(PARTS, np.mean(expected, axis=0), strict=True):
        assert entry.measured[part].value == pytest.approx(number, rel=1e-7)
    assert values[-1] > values[-3]


def test_errors_cover_the_draw_of_updates_and_of_held_out_samples():
    """Over worlds of fresh mini-batches and samples, the measured mean scatters as its standard error says."""
    setting = Setting(same=False)
    for _ in range(3):
        setting.step()
    generator, found = torch.Generator().manual_seed(3), []
    scales = torch.tensor([2.0, 1.5, 0.5, 0.4, 0.3], dtype=torch.float64)
    for _ in range(40):
        X = torch.randn(80, 5, generator=generator, dtype=torch.float64) * scales
        y = X.sum(1) + torch.randn(80, generator=generator, dtype=torch.float64)
        ledger = UpdateLedger(setting.meter, [(X[i::8], y[i::8]) for i in range(8)])
        measured = ledger.check(setting.optimizer, setting.draw(8)).measured["full"]
        found.append((measured.value, measured.standard_error))
    values, errors = np.array(found).T
    assert values.std(ddof=1) / np.sqrt(np.mean(errors**2)) == pytest.approx(1.0, abs=0.3)


def test_the_run_stays_as_it_is_bit_for_bit():
    setting, twin = Setting(0.9, network=True), Setting(0.9, network=True)
    for index in range(6):
        before = torch.get_rng_state()
        if index % 2:
            position = setting.stream.get_state()
            setting.ledger.check(setting.optimizer, setting.draw(4))
            setting.stream.set_state(position)
        assert torch.equal(torch.get_rng_state(), before)
        setting.step()
        twin.step()
    for one, other in zip(setting.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one.grad, other.grad)
    assert len(setting.ledger.entries) == 3


def test_columns_are_those_of_the_entries():
    setting = Setting()
    setting.ledger.check(setting.optimizer, setting.draw(4))
    setting.meter.step = 7
    entry = setting.ledger.check(setting.optimizer, setting.draw(4))
    table = setting.ledger.columns()
    assert table["step"].tolist() == [0, 7]
    assert table["measured_bulk"][1] == entry.measured["bulk"].value
    assert table["predicted_full_error"][1] == entry.predicted["full"].standard_error
    assert (entry.updates, entry.batch_size, entry.step_size) == (4, 6, 0.1)


def test_an_empty_ledger_has_no_ratio():
    assert [(one.part, one.entries) for one in Setting().ledger.summary()] == [(part, 0) for part in PARTS]
    assert np.isnan(Setting().ledger.summary()[0].ratio)


def test_an_update_that_leads_to_an_infinite_loss_has_no_interval():
    def counts(model, batch):
        rate = model(batch[0])[:, 0]
        return (rate.exp() - batch[1] * rate).mean()

    setting = Setting()
    meter = AlignmentMeter(setting.model, counts, [setting.train], 2, overhead=None, third_derivative=False)
    ledger = UpdateLedger(meter, [tuple(part[i::2] for part in setting.held_out) for i in range(2)])
    optimizer = torch.optim.SGD(setting.model.parameters(), 1e4)
    measured = ledger.check(optimizer, setting.draw(3)).measured["full"]
    assert measured.value == np.inf
    assert not measured.resolved
    assert ledger.summary()[2].entries == 0


def test_refusals_name_the_remedy():
    setting = Setting()
    with pytest.raises(InvalidArgument, match="mini_batches: got '1 of sizes"):
        setting.ledger.check(setting.optimizer, setting.draw(1))
    with pytest.raises(InvalidArgument, match="of sizes"):
        setting.ledger.check(setting.optimizer, [*setting.draw(1), *setting.draw(1, 5)])
    with pytest.raises(InvalidArgument, match="mini_batches"):
        setting.ledger.check(setting.optimizer, setting.train)
    with pytest.raises(InvalidArgument, match="optimizer: got 'Adam'"):
        setting.ledger.check(torch.optim.Adam(setting.model.parameters()), setting.draw(2))
    for nothing in ([], setting.held_out):
        with pytest.raises(InvalidArgument, match="held_out_batches"):
            UpdateLedger(setting.meter, nothing)
