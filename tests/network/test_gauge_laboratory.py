"""The gauge against the exact laboratory: intervals that hold what they promise, over hundreds of independent runs.

Runs are tensors of one optimizer, hence layers of one gauge: on a block-diagonal quadratic each layer is a run of its
own, and ``summary().layers`` are as many independent estimates.
"""

import numpy as np
import pytest
import torch

from etastar.network.gauge.part import GaugeOutcome
from etastar.network.gauge.step_gauge import StepGauge
from etastar.quadratic import Noise, Quadratic, Spectrum

torch.set_num_threads(1)

ETA, VARIANCE, BATCH = 0.1, 0.3, 10
EIGENVALUES = np.concatenate([np.linspace(8.0, 4.0, 4), np.geomspace(1.0, 0.002, 26)])
LAB = Quadratic(Spectrum(EIGENVALUES, rank=4), Noise.isotropic(VARIANCE))
H = torch.tensor(EIGENVALUES)
COVERAGE = (0.82, 0.97)


class Runs:
    """Independent runs of SGD on the laboratory's quadratic, from its stationary law, moved off it or not."""

    def __init__(self, runs, shift=0.0, seed=0, make=None, every=16, paired=True, **options):
        self.generator = torch.Generator().manual_seed(seed)
        self.paired = paired
        spread = torch.sqrt(ETA * VARIANCE / (H * (2 - ETA * H)))
        self.start = spread * self.normal(runs)
        self.start[:, -4:] += shift / H[-4:]
        self.state = self.start.clone()  # parameters and gradients are rows of one matrix each: quick to read and fill
        self.gradients = torch.zeros_like(self.state)
        self.params = [torch.nn.Parameter(row) for row in self.state]
        for p, row in zip(self.params, self.gradients, strict=True):
            p.grad = row
        self.optimizer = (make or (lambda p: torch.optim.SGD(p, lr=ETA)))(self.params)
        self.gauge = StepGauge(self.optimizer, every=every, batch_size=BATCH, **options)

    def normal(self, runs):
        return torch.randn(runs, H.numel(), generator=self.generator, dtype=H.dtype)

    def noise(self):
        return VARIANCE**0.5 * self.normal(len(self.params))

    @property
    def loss(self):
        return (0.5 * H * self.state**2).sum(1).numpy()

    def go(self, steps):
        """Returns the realised mean moments m0, m1 of each run and its loss change per step."""
        before, m0, m1 = self.loss, 0.0, 0.0
        for _ in range(steps):
            gradient = H * self.state
            m0, m1 = m0 + (gradient**2).sum(1).numpy(), m1 + (H * gradient**2).sum(1).numpy()
            if self.gauge.due:
                self.second(gradient, self.noise())
            self.gradients.copy_(gradient + self.noise())
            self.optimizer.step()
        return m0 / steps, m1 / steps, (self.loss - before) / steps

    def second(self, gradient, xi):
        def loss():
            x = torch.stack(self.params)
            return ((0.5 * H * x + xi) * x).sum()

        self.gauge.second(loss if self.paired else list(gradient + xi))


def truths(m0, m1, q0, q1, eta=ETA, batch=BATCH):
    return {
        "threshold_fraction": eta * (m1 + q1) / (2 * m0),
        "loss_change": -eta * m0 + 0.5 * eta**2 * (m1 + q1),
        "signal_energy": m0,
        "gradient_energy": m0 + q0,
        "noise_scale": batch * q0 / m0,
        "noise_share": q1 / (m1 + q1),
    }


def coverage(summary, name, truth):
    """Share of resolved intervals that hold the truth, share resolved, median half-width."""
    found = [getattr(layer, name) for layer in summary.layers]
    low, high = np.array([e.low for e in found]), np.array([e.high for e in found])
    resolved = np.array([e.resolved for e in found])
    held = (low <= truth) & (truth <= high)
    return held[resolved].mean(), resolved.mean(), np.median((high - low)[resolved]) / 2


def total(split):
    """m0, m1, q0, q1 over both subspaces."""
    parts = ((side.signal, side.noise) for side in (split.dominant, split.bulk))
    (signal_d, noise_d), (signal_b, noise_b) = parts
    pairs = ((signal_d, signal_b), (noise_d, noise_b))
    return [float(np.mean(x + y)) for a, b in pairs for x, y in ((a.zeroth, b.zeroth), (a.first, b.first))]


def exact_means(runs, steps):
    """m0, m1, q0, q1 of the laboratory, averaged over the window."""
    split = LAB.expected(gradient=runs.start.numpy() * EIGENVALUES, step_size=ETA, times=np.arange(steps)).split
    m0, m1 = ((getattr(split.dominant.signal, p) + getattr(split.bulk.signal, p)).mean(-1) for p in ("zeroth", "first"))
    return m0, m1, VARIANCE * EIGENVALUES.size, VARIANCE * EIGENVALUES.sum()


def check_coverage(runs, steps, names, show=""):
    _, _, measured = runs.go(steps)
    summary = runs.gauge.summary()
    assert summary.outcome is GaugeOutcome.RESOLVED
    assert summary.plain
    assert summary.dropped == 0
    truth = truths(*exact_means(runs, steps)) | {"loss_change": measured}
    for name in names:
        share, resolved, half = coverage(summary, name, truth[name])
        print(f"{show:28s} {name:20s} coverage {share:.3f} resolved {resolved:.2f} "
              f"half-width {half:.3g} of {np.mean(truth[name]):.3g}")  # fmt: skip
        assert COVERAGE[0] <= share <= COVERAGE[1], (name, share)
    return summary


NAMES = ("threshold_fraction", "loss_change", "signal_energy", "gradient_energy", "noise_scale", "noise_share")
STATES = {"stationary": 0.0, "descending": 0.7}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("sampling", ["independent", "shuffled"])
def test_intervals_hold_the_truth(sampling, state, request):
    check_coverage(Runs(200, STATES[state], seed=1, sampling=sampling), 400, NAMES, request.node.callspec.id)


@pytest.mark.parametrize("state", STATES)
def test_intervals_hold_the_truth_with_gradients_handed_over(state, request):
    runs = Runs(200, STATES[state], seed=1, sampling="independent", paired=False)
    check_coverage(runs, 400, NAMES[:-1], f"{request.node.callspec.id}, single")


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("sampling", ["independent", "shuffled"])
def test_intervals_hold_the_truth_over_long_windows(sampling, state, request):
    check_coverage(Runs(400, STATES[state], seed=2, every=32, sampling=sampling), 1280, NAMES, request.node.callspec.id)


def test_at_stationarity_the_step_reads_one_and_the_words_say_equilibrated():
    """Summed over runs the estimate is sharp: any bias would show."""
    runs = Runs(300, sampling="independent", seed=3)
    runs.go(480)
    summary = runs.gauge.summary()
    m0, m1, q0, q1 = total(LAB.stationary(step_size=ETA))
    for name, truth in truths(m0, m1, q0, q1).items():
        estimate = getattr(summary.total, name)
        scale = 300.0 if name in ("loss_change", "signal_energy", "gradient_energy") else 1.0
        assert abs(estimate.value - truth * scale) < 3.5 * estimate.standard_error, name
    assert summary.total.threshold_fraction.standard_error < 0.02
    assert "has equilibrated at this step" in summary.verdict
    assert "limited by noise" in summary.verdict
    assert abs(summary.trapezoid_gap.value) < 1e-9  # exact on a quadratic


def test_descending_slow_directions_are_told_apart_from_equilibrated_steep_ones():
    runs, d = Runs(60, shift=0.7, sampling="independent", seed=4), EIGENVALUES.size
    basis = torch.zeros(60 * d, 4 * 60, dtype=H.dtype)  # the four steep directions of every run
    for run in range(60):
        for k in range(4):
            basis[run * d + k, 4 * run + k] = 1.0
    runs.gauge.basis = basis
    runs.go(480)
    summary = runs.gauge.summary()
    dominant = summary.dominant.threshold_fraction
    assert dominant.low < 1.0 < dominant.high
    assert "still descends" in summary.bulk.verdict
    split = LAB.stationary(step_size=ETA).dominant
    assert summary.dominant.signal_energy.low < 60 * float(split.signal.zeroth) < summary.dominant.signal_energy.high


OPTIMIZERS = {
    "heavy ball": lambda p: torch.optim.SGD(p, lr=ETA / 5, momentum=0.8),
    "nesterov, decay": lambda p: torch.optim.SGD(p, lr=ETA / 5, momentum=0.8, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_changes_of_any_optimizer_are_those_measured(name):
    runs = Runs(200, shift=0.7, sampling="independent", seed=5, make=OPTIMIZERS[name])
    runs.go(96)  # its own transient
    _, _, measured = runs.go(400)
    summary = runs.gauge.summary(window=400)
    assert (summary.first, summary.last) == (96, 496)
    assert not summary.plain
    assert not summary.total.noise_share.resolved
    share, _, half = coverage(summary, "loss_change", measured)
    print(f"{name:16s} loss_change coverage {share:.3f} half-width {half:.3g} of {measured.mean():.3g}")
    # Batch means see the loss itself fluctuate, which the loss measured shares: a little on the safe side.
    assert COVERAGE[0] <= share <= 0.99
    pooled = summary.loss_change
    assert abs(pooled.value - measured.sum() * 400) < 3.5 * pooled.standard_error
    assert abs(sum(layer.loss_change.value for layer in summary.layers) - summary.total.loss_change.value) < 1e-9


def test_dependent_batches_are_found_out():
    """Every other batch repels the one before it, as within shuffled epochs: the words say so, and numbers hold."""
    runs = Runs(200, sampling="independent", seed=6)
    last = torch.zeros(200, EIGENVALUES.size, dtype=H.dtype)
    for _ in range(480):
        gradient = H * runs.state
        if runs.gauge.due:
            runs.second(gradient, runs.noise())
        xi = runs.noise() - 0.15 * last
        runs.gradients.copy_(gradient + xi)
        runs.optimizer.step()
        last = xi
    summary = runs.gauge.summary()
    assert summary.outcome is GaugeOutcome.DEPENDENT
    assert "sampling='shuffled'" in summary.verdict


def test_mini_batch_least_squares_with_its_own_noise():
    """Rows N(0, H), label noise: gradient noise depends on the state and batches have Hessians of their own."""
    eigenvalues, eta, batch, label, runs = np.geomspace(4.0, 0.2, 8), 0.05, 8, 0.5, 150
    generator = torch.Generator().manual_seed(8)
    scale = torch.tensor(eigenvalues).sqrt()
    trace = eta * eigenvalues / (2 * batch - eta * eigenvalues * (batch + 1))
    tau = label * trace.sum() / (1 - trace.sum())
    e = eta / batch * (tau + label) / (2 - eta * eigenvalues * (1 + 1 / batch))  # theory §7, E x_i²
    m0, m1 = (eigenvalues**2 * e).sum(), (eigenvalues**3 * e).sum()
    noise = (eigenvalues**2 * e + ((eigenvalues * e).sum() + label) * eigenvalues) / batch
    q0, q1 = noise.sum(), (eigenvalues * noise).sum()
    start = torch.tensor(np.sqrt(e)) * torch.randn(runs, 8, generator=generator, dtype=torch.float64)
    params = [torch.nn.Parameter(x) for x in start]
    optimizer = torch.optim.SGD(params, lr=eta)
    gauge = StepGauge(optimizer, every=16, sampling="independent", batch_size=batch)

    def loss_on():
        x = scale * torch.randn(runs, batch, 8, generator=generator, dtype=torch.float64)
        y = label**0.5 * torch.randn(runs, batch, generator=generator, dtype=torch.float64)
        return lambda: 0.5 * (torch.einsum("rbi,ri->rb", x, torch.stack(params)) - y).square().mean(1).sum()

    for _ in range(480):
        if gauge.due:
            gauge.second(loss_on())
        optimizer.zero_grad()
        loss_on()().backward()
        optimizer.step()
    summary = gauge.summary()
    for name, truth in truths(m0, m1, q0, q1, eta, batch).items():
        estimate = getattr(summary.total, name)
        pooled = runs if name in ("loss_change", "signal_energy", "gradient_energy") else 1.0
        assert abs(estimate.value - truth * pooled) < 3.5 * estimate.standard_error, name
        share, _, half = coverage(summary, name, truth)
        print(f"least squares {name:20s} coverage {share:.3f} half-width {half:.3g} of {float(np.mean(truth)):.3g}")
        assert COVERAGE[0] - 0.02 <= share <= COVERAGE[1] + 0.02, name


def test_micro_batches_sharpen_the_noise_scale():
    runs = Runs(150, sampling="shuffled", seed=9)
    m0 = 0.0
    for _ in range(320):
        gradient = H * runs.state
        m0 = m0 + (gradient**2).sum(1).numpy() / 320
        if runs.gauge.due:
            runs.second(gradient, runs.noise())
        runs.gradients.zero_()
        for _ in range(4):  # each carries a quarter of the mean, with a noise of twice the size
            runs.gradients.add_(0.25 * (gradient + 2.0 * runs.noise()))
            if not runs.gauge.due:
                runs.gauge.accumulate()
        runs.optimizer.step()
    summary = runs.gauge.summary()
    share, resolved, _ = coverage(summary, "noise_scale", BATCH * VARIANCE * EIGENVALUES.size / m0)
    assert COVERAGE[0] <= share <= COVERAGE[1]
    assert resolved > 0.8


def shuffled_epochs(sampling, epochs=48, runs=200, size=120, batch=12):
    """Momentum on finite data of each run's own, in shuffled epochs; the loss is that of all its data."""
    generator = torch.Generator().manual_seed(10)
    x = torch.randn(runs, size, 6, generator=generator, dtype=torch.float64)
    y = x.sum(-1) + torch.randn(runs, size, generator=generator, dtype=torch.float64)
    params = [torch.nn.Parameter(torch.zeros(6, dtype=torch.float64)) for _ in range(runs)]
    optimizer = torch.optim.SGD(params, lr=0.02, momentum=0.8)
    gauge = StepGauge(optimizer, every=10, sampling=sampling, batch_size=batch)

    def loss(rows):
        return 0.5 * (torch.einsum("rbi,ri->rb", x[:, rows], torch.stack(params)) - y[:, rows]).square().mean(1)

    before = None
    for epoch in range(epochs + 8):
        if epoch == 8:
            before = loss(slice(None)).detach().numpy()
        for rows in torch.randperm(size, generator=generator).split(batch):
            if gauge.due:
                other = torch.randint(0, size, (batch,), generator=generator)
                gauge.second(lambda other=other: loss(other).sum())
            optimizer.zero_grad()
            loss(rows).sum().backward()
            optimizer.step()
    steps = epochs * size // batch
    return gauge.summary(window=steps), (loss(slice(None)).detach().numpy() - before) / steps


def test_shuffled_epochs_are_read_right_by_default_and_wrong_when_called_independent():
    summary, measured = shuffled_epochs("shuffled")
    share, _, half = coverage(summary, "loss_change", measured)
    print(f"shuffled epochs, shuffled    loss_change coverage {share:.3f} half-width {half:.3g}")
    assert COVERAGE[0] <= share <= 0.99
    assert abs(summary.total.loss_change.value - measured.sum()) < 3.5 * summary.total.loss_change.standard_error
    wrong, _ = shuffled_epochs("independent")
    share, _, half = coverage(wrong, "loss_change", measured)
    print(f"shuffled epochs, independent outcome {wrong.outcome.name} coverage {share:.3f} half-width {half:.3g}")
    assert wrong.outcome is GaugeOutcome.DEPENDENT  # pooled over the runs it cannot be missed
