"""The gauge multiplies what it says it multiplies, whatever the loop looks like, and drops what cannot be."""

import io
import math

import numpy as np
import pytest
import torch

from etastar import InvalidArgument
from etastar.network.gauge.part import GaugeOutcome
from etastar.network.gauge.step_gauge import StepGauge
from etastar.network.gauge.window import FEATURES, assemble

torch.set_num_threads(1)
GENERATOR = torch.Generator()


class Loop:
    """A quadratic in three tensors with noisy gradients, and by hand every product that the gauge should form."""

    def __init__(self, make=None, every=4, basis=None, dtype=torch.float64, **options):
        GENERATOR.manual_seed(3)
        self.h = [self.random(s).abs() + 0.5 for s in ((3,), (2, 2), (4,))]
        self.params = [torch.nn.Parameter(self.random(h.shape).to(dtype)) for h in self.h]
        self.optimizer = (make or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)))(self.params)
        self.gauge = StepGauge(self.optimizer, every=every, basis=basis, **options)
        self.rows = {name: [] for name in FEATURES}
        self.past = None  # u, and g' where there was one

    @staticmethod
    def random(shape):
        return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)

    def gradient(self, noise):
        return [h * p.detach().double() + x for h, p, x in zip(self.h, self.params, noise, strict=True)]

    def noise(self):
        return [self.random(h.shape) for h in self.h]

    def expect(self, name, a, b, by=1.0):
        self.rows[name].append([float((x * y).sum()) * by for x, y in zip(a, b, strict=True)])

    def step(self, second=None, before_step=None, observe=False, scale=1.0, closure=False, late=False):
        """One step; `second`: None (when due), "function", "gradients" or "none"."""
        grads = self.gradient(self.noise())
        wanted = second or ("function" if self.gauge.due else "none")
        xi = self.noise() if wanted != "none" else None
        aside = None if xi is None else self.gradient(xi)
        old = [p.detach().double().clone() for p in self.params]

        def loss():
            terms = zip(self.h, self.params, xi, strict=True)
            return sum(((0.5 * h * p.double() + x) * p.double()).sum() for h, p, x in terms)

        def take():
            if wanted == "function":
                self.gauge.second(loss)
            elif wanted == "gradients":
                self.gauge.second([a * scale for a in aside], scale=scale)

        def backward():
            for p, g in zip(self.params, grads, strict=True):
                p.grad = (g * scale).to(p.dtype)
            return torch.zeros(())

        if not late:
            take()
        if closure:
            self.optimizer.step(backward)
        else:
            backward()
            if observe:
                self.gauge.observe(scale=scale)
            if late:
                take()
            if before_step is not None:
                before_step(self.params)
            self.optimizer.step()
        u = [a - p.detach().double() for a, p in zip(old, self.params, strict=True)]
        self.expected(grads, u, aside, wanted)
        return u

    def expected(self, g, u, aside, wanted):
        if self.past is not None:
            self.expect("u·g⁺", self.past[0], g)
            self.expect("g·g", g, g)
            if self.past[1] is not None:
                self.expect("g⁺·g'", self.past[1], g)
        if aside is not None:
            self.expect("u·g'", u, aside)
            self.expect("g·g'", g, aside)
            self.expect("u·u", u, u)
            self.expect("g·g at g'", g, g)
            if wanted == "function":
                self.expect("u·δ", u, [h * x for h, x in zip(self.h, u, strict=True)])
        self.past = (u, aside)

    def table(self):
        """Sums per feature and parameter over closed blocks, and counts."""
        sums, counts, _, _ = assemble(self.gauge._observer.recorder.last(None))
        return sums.sum(0)[:, :-1], counts.sum(0)

    def check(self, *features, rtol=1e-9):
        sums, counts = self.table()
        for name in features:
            rows = np.array(self.rows[name])[: int(counts[FEATURES[name]])]
            assert len(rows) > 1
            np.testing.assert_allclose(sums[FEATURES[name]], rows.sum(0), rtol=rtol, atol=1e-12)


EVENT = ("u·g'", "g·g'", "g⁺·g'", "u·u", "g·g at g'")
STEP = ("u·g⁺", "g·g")
CLIP = {"before_step": lambda params: torch.nn.utils.clip_grad_norm_(params, 0.1), "observe": True}


@pytest.mark.parametrize(
    ("options", "loop"),
    [
        ({}, {}),
        ({"make": lambda p: torch.optim.AdamW(p, lr=0.1)}, {}),
        ({"make": lambda p: torch.optim.SGD([{"params": p[:1]}, {"params": p[1:], "lr": 0.01}], lr=0.1)}, {}),
        ({}, CLIP),
        ({}, CLIP | {"scale": 64.0}),
        ({}, {"closure": True}),
        ({}, {"observe": True, "late": True}),
    ],
    ids=["momentum", "adamw", "groups", "clipped", "clipped and scaled", "closure", "second after observe"],
)
def test_products_are_those_of_the_step_really_made(options, loop):
    run = Loop(sampling="independent", **options)
    for _ in range(24):
        if "scale" in loop:  # what the optimizer sees is unscaled before it steps
            unscale = lambda params: [p.grad.div_(64.0) for p in params]  # noqa: E731
            run.step(**loop | {"before_step": unscale})
        else:
            run.step(**loop)
    run.check(*STEP, *EVENT, "u·δ")
    assert run.table()[1][FEATURES["u·g'"]] == 6


def test_shuffled_reads_only_steps_with_a_second_gradient():
    run = Loop(sampling="shuffled")
    for _ in range(24):
        run.step()
    run.check(*EVENT, "u·δ")
    assert run.table()[1][FEATURES["u·g⁺"]] == 0


def test_gradients_may_be_handed_over():
    run = Loop(sampling="independent")
    for _ in range(24):
        run.step(second="gradients" if run.gauge.due else "none", scale=4.0, **CLIP)
    run.check(*STEP, *EVENT)
    assert run.gauge.overhead == pytest.approx(6 / 24)


def test_a_second_gradient_after_clipping_is_too_late():
    run = Loop()
    for p, g in zip(run.params, run.gradient(run.noise()), strict=True):
        p.grad = g
    run.gauge.observe()
    torch.nn.utils.clip_grad_norm_(run.params, 0.1)
    run.gauge.second(run.gradient(run.noise()))
    for _ in range(8):
        run.optimizer.step()
    assert run.table()[1][FEATURES["u·g'"]] == 0


def test_line_search_optimizers_are_read_at_the_point_where_the_step_began():
    run = Loop(make=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4), sampling="independent")
    for _ in range(16):
        noise, xi = run.noise(), run.noise()
        old, grads, aside = [p.detach().clone() for p in run.params], run.gradient(noise), run.gradient(xi)
        if due := run.gauge.due:
            run.gauge.second(aside)

        def closure(noise=noise, aside=aside):
            for p, g in zip(run.params, run.gradient(noise), strict=True):
                p.grad = g
            run.gauge.observe()
            assert not (run.gauge.due and run.gauge._observer.captured)
            return sum((0.5 * h * p * p + n * p).sum() for h, p, n in zip(run.h, run.params, noise, strict=True))

        run.optimizer.step(closure)
        u = [a - p.detach() for a, p in zip(old, run.params, strict=True)]
        run.expected(grads, u, aside if due else None, "gradients")
    run.check(*STEP, *EVENT)


def test_called_from_a_closure_s_later_calls_second_is_refused():
    run = Loop(make=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4))
    calls = []

    def closure():
        calls.append(None)
        if len(calls) == 2:
            run.gauge.second(run.gradient(run.noise()))
        for p, g in zip(run.params, run.gradient([0.0] * 3), strict=True):
            p.grad = g
        return sum((0.5 * h * p * p).sum() for h, p in zip(run.h, run.params, strict=True))

    with pytest.raises(InvalidArgument, match=r"second: got 'called within optimizer\.step'"):
        run.optimizer.step(closure)
    assert run.gauge.due or run.gauge.steps == 0


def test_a_step_that_amp_skips_is_bridged():
    """The gradient overflows, the optimizer is not called: the same u meets the next gradient at the same point."""
    run = Loop(sampling="independent")
    for step in range(24):
        if step % 3 == 1:
            for p in run.params:
                p.grad = torch.full_like(p, torch.inf)
            run.gauge.observe(scale=8.0)
        run.step(observe=True)
    run.check(*STEP, *EVENT, "u·δ")
    assert run.gauge.summary().dropped == 0


def test_fused_scaling_is_undone_and_its_skipped_steps_are_dropped():
    weight = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.AdamW([weight], lr=0.01, fused=True)
    gauge = StepGauge(optimizer, every=2, sampling="independent")
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000)
    energies = []
    for step in range(12):
        optimizer.zero_grad()
        factor = torch.inf if step == 6 else 1.0
        scaler.scale(factor * (weight**2).sum()).backward()
        if step not in (0, 6):
            energies.append(float((4 * weight.detach() ** 2).sum()))
        scaler.step(optimizer)
        scaler.update()
    sums, counts, _, _ = assemble(gauge._observer.recorder.last(None))
    row = FEATURES["g·g"]
    assert counts[:, row].sum() == 10
    assert sums[:, row, 0].sum() == pytest.approx(sum(energies), rel=1e-5)


def test_nan_gradients_are_counted_and_kept_out():
    run = Loop(sampling="independent", make=lambda p: torch.optim.SGD(p, lr=0.0))
    for step in range(24):
        run.step()
        if step == 8:
            for p in run.params:
                p.grad = torch.full_like(p, torch.nan)
            run.gauge.observe()
            run.past = None
            run.optimizer.step()
            with torch.no_grad():
                for p in run.params:
                    p.copy_(torch.ones_like(p))
    summary = run.gauge.summary()
    assert summary.dropped >= 1
    assert math.isfinite(summary.total.gradient_energy.value)


def test_a_run_that_diverged_is_named_so():
    run = Loop(sampling="independent", make=lambda p: torch.optim.SGD(p, lr=0.1))
    for step in range(200):
        if step == 20:
            with torch.no_grad():
                run.params[0].fill_(torch.nan)
        run.step()
    summary = run.gauge.summary()
    assert summary.outcome is GaugeOutcome.NOT_FINITE
    assert summary.verdict == "most numbers of the window are not finite: the run has diverged"
    assert not summary.loss_change.resolved


def test_products_do_not_span_what_others_do_to_parameters():
    run = Loop(sampling="independent")
    for step in range(24):
        run.step()
        if step % 5 == 4:  # a weight average swapped in, a constraint, a checkpoint
            with torch.no_grad():
                run.params[1].mul_(0.5)
            run.past = None
    run.check("u·g⁺")


def test_late_groups_frozen_and_unfrozen_parameters_start_anew():
    run = Loop(sampling="independent")
    late = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    for step in range(32):
        if step == 10:
            run.optimizer.add_param_group({"params": [late], "lr": 0.01})
        if step in (18, 24):
            run.params[0].requires_grad_(step == 24)
            run.past = None
        late.grad = torch.ones_like(late)
        if run.gauge.due:
            run.gauge.second([torch.ones_like(p) for p in run.gauge.parameters])
        for p, g in zip(run.params, run.gradient(run.noise()), strict=True):
            p.grad = g if p.requires_grad else None
        run.optimizer.step()
    summary = run.gauge.summary()
    assert [layer.name for layer in summary.layers] == ["0.0", "0.1", "0.2", "1.0"]
    assert [group.name for group in summary.groups] == ["0", "1"]
    assert summary.dropped == 0
    assert summary.last == 32
    assert summary.first == 0
    late_row = assemble(run.gauge._observer.recorder.last(None))[0][:, FEATURES["u·g⁺"], 3].sum()
    assert late_row > 0


def test_missing_gradients_are_zero_and_everything_frozen_is_idle():
    run = Loop(sampling="independent")
    for _ in range(8):
        run.params[0].grad = torch.ones_like(run.params[0])
        run.optimizer.step()
    sums, _ = run.table()
    assert sums[FEATURES["g·g"]].tolist() == [21.0, 0.0, 0.0]
    for p in run.params:
        p.requires_grad_(False)
    run.optimizer.step()
    run.gauge.observe()
    run.gauge.accumulate()
    with pytest.raises(InvalidArgument, match="unfreeze"):
        run.gauge.second([])
    assert run.gauge.parameters == ()


def test_sparse_gradients_are_understood():
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    gauge = StepGauge(optimizer, every=2, sampling="independent")
    for _ in range(4):
        optimizer.zero_grad()
        if gauge.due:
            gauge.second(lambda: table(torch.tensor([1, 2])).square().sum())
        table(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()
    sums, counts, _, _ = assemble(gauge._observer.recorder.last(None))
    assert sums[:, FEATURES["g·g"], 0].sum() == pytest.approx(10.0 * counts[:, FEATURES["g·g"]].sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_parameters_are_accumulated_in_wider_numbers(dtype):
    run = Loop(sampling="independent", dtype=dtype, make=lambda p: torch.optim.SGD(p, lr=0.05))
    for _ in range(24):
        run.step()
    run.check(*STEP, rtol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (5.0, 2.0, 1.0)])
def test_micro_batches_give_the_signal_at_every_step(weights):
    run = Loop(sampling="independent", make=lambda p: torch.optim.SGD(p, lr=0.1))
    share = np.array(weights) / sum(weights)
    expected, steps = np.zeros(3), 0
    for step in range(16):
        skipped = step % 5 == 3  # AMP: seen, but not stepped
        for zero in (True, False)[: 1 + skipped]:
            run.optimizer.zero_grad(set_to_none=zero)
            parts = [run.gradient(run.noise()) for _ in weights]
            for w, part in zip(share, parts, strict=True):
                for p, g in zip(run.params, part, strict=True):
                    p.grad = w * g if p.grad is None else p.grad.add_(w * g)
                run.gauge.accumulate(weight=w * 7.0)
            run.gauge.observe()
        run.optimizer.step()
        steps += 1
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        products = [[share[i] * share[j] * float((a * b).sum()) for a, b in zip(parts[i], parts[j], strict=True)]
                    for i, j in pairs]  # fmt: skip
        expected += np.sum(products, axis=0) / (1.0 - (share**2).sum())
    sums, counts = run.table()
    assert counts[FEATURES["m0"]] == steps
    np.testing.assert_allclose(sums[FEATURES["m0"]], expected, rtol=1e-9)


def test_micro_batches_of_an_abandoned_step_are_forgotten():
    run = Loop(make=lambda p: torch.optim.SGD(p, lr=0.1))
    for step in range(8):
        for _ in range(2 if step % 2 else 1):  # every other time the first half is thrown away
            run.optimizer.zero_grad(set_to_none=True)
            for count in (1.0, 3.0):  # entries 1 and 3 of a sum: m0 = 2·1·3·2 each
                for p in run.params:
                    p.grad = count * torch.ones_like(p) if p.grad is None else p.grad.add_(count)
                run.gauge.accumulate()
        run.optimizer.step()
    sums, counts = run.table()
    assert counts[FEATURES["m0"]] == 8
    np.testing.assert_allclose(sums[FEATURES["m0"]], [8 * 12.0 * n for n in (3, 4, 4)])


def test_a_micro_batch_that_was_not_announced_voids_the_step():
    run = Loop(make=lambda p: torch.optim.SGD(p, lr=0.1))
    for _ in range(8):
        for p in run.params:
            p.grad = torch.ones_like(p)
        run.gauge.accumulate()
        for p in run.params:
            p.grad.add_(1.0)
        run.gauge.accumulate()
        for p in run.params:
            p.grad.add_(1.0)
        run.optimizer.step()
    assert run.table()[1][FEATURES["m0"]] == 0


def test_a_subspace_is_read_like_everything_else():
    basis = torch.linalg.qr(torch.randn(11, 3, generator=GENERATOR.manual_seed(1), dtype=torch.float64))[0]
    run = Loop(sampling="independent", basis=basis)
    flat = lambda vector: torch.cat([x.reshape(-1) for x in vector])  # noqa: E731
    dominant, past = [], None
    for step in range(24):
        if step == 8:  # replaced during the run, and products take the new one
            basis = torch.linalg.qr(torch.randn(11, 2, generator=GENERATOR, dtype=torch.float64))[0]
            run.gauge.basis = basis
        u = run.step()
        g = torch.cat([p.grad.reshape(-1) for p in run.params])
        if past is not None:
            dominant.append(float((basis.T @ past) @ (basis.T @ g)))
        past = flat(u)
    sums, _, _, _ = assemble(run.gauge._observer.recorder.last(None))
    assert sums[:, FEATURES["u·g⁺"], -1].sum() == pytest.approx(sum(dominant), rel=1e-9)
    summary = run.gauge.summary()
    parts = summary.dominant.loss_change.value + summary.bulk.loss_change.value
    assert parts == pytest.approx(summary.total.loss_change.value, rel=1e-9)
    assert summary.dominant.verdict in summary.verdict
    run.gauge.basis = None
    for _ in range(8):
        run.step()
    assert run.gauge.summary(window=8).dominant is None


@pytest.mark.parametrize("bent", [0.0, 1.0])
def test_the_fraction_of_a_subspace_is_that_of_the_projected_update(bent):
    """On a basis far from invariant, by hand: half the curvature that Su meets over ⟨Su, g'⟩, nothing of the coupling.

    Where the Hessian turns over a step (`bent`), the bulk's is still exactly that of θ → θ − Qu.
    """
    torch.manual_seed(2)
    H = torch.diag(torch.linspace(0.5, 4.0, 6, dtype=torch.float64))
    basis = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0]
    P = basis @ basis.T
    weight = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.05)
    gauge = StepGauge(optimizer, basis, every=2)
    sums = np.zeros((2, 2))
    a = torch.randn(6, dtype=torch.float64)

    def gradient(w):
        return H @ w + bent * torch.cos(a @ w) * a

    for _ in range(40):
        before = weight.detach().clone()
        if due := gauge.due:
            gauge.second(lambda: 0.5 * weight @ H @ weight + bent * torch.sin(a @ weight))
        weight.grad = gradient(before) + torch.randn(6, dtype=torch.float64)
        optimizer.step()
        u = before - weight.detach()
        torch.testing.assert_close(u, 0.05 * weight.grad)
        if due:
            inside, rest = P @ u, u - P @ u
            middle = gradient(before - rest)
            met = inside @ (middle - gradient(before - u)), rest @ (gradient(before) - middle)
            for row, part, bend in zip(sums, (inside, rest), met, strict=True):
                row += [float(0.5 * bend), float(part @ gradient(before))]
    summary = gauge.summary()
    assert gauge.overhead == pytest.approx(3 / 2)
    for part, (bend, slope) in zip((summary.dominant, summary.bulk), sums, strict=True):
        assert part.threshold_fraction.value == pytest.approx(bend / slope, rel=1e-9)
    whole = 0.5 * summary.total.curvature.value / summary.total.slope.value
    assert summary.total.threshold_fraction.value == pytest.approx(whole, rel=1e-12)
    assert summary.dominant.loss_change.value + summary.bulk.loss_change.value == pytest.approx(
        summary.total.loss_change.value, rel=1e-9
    )


def test_a_failure_where_only_part_of_the_step_is_made_puts_the_parameters_back():
    weight = torch.nn.Parameter(torch.ones(6))
    optimizer = torch.optim.SGD([weight], lr=0.05)
    gauge = StepGauge(optimizer, torch.eye(6)[:, :2], every=2)
    seen = []

    def loss():
        seen.append(weight.detach().clone())
        if len(seen) == 3:
            raise KeyboardInterrupt
        return weight.square().sum()

    gauge.second(loss)
    weight.grad = torch.ones(6)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    torch.testing.assert_close(seen[2], torch.tensor([1.0] * 2 + [0.95] * 4))
    assert torch.equal(weight.detach(), seen[1])
    assert torch.equal(weight.detach(), torch.full((6,), 0.95))


def test_a_basis_that_does_not_fit_is_refused_or_dropped():
    run = Loop()
    for bad, why in ((torch.eye(11)[:, :2] * 2, "orthonormal"), (torch.eye(10), r"\(11, k\)"), ("V", r"\(11, k\)")):
        with pytest.raises(InvalidArgument, match=why):
            run.gauge.basis = bad
    run.gauge.basis = torch.eye(11)[:, :2]
    run.params[0].requires_grad_(False)
    assert run.gauge.basis is None
    split = torch.optim.SGD([{"params": run.params[1:]}, {"params": run.params[:1]}], lr=0.1)
    run.params[0].requires_grad_(True)
    with pytest.raises(InvalidArgument, match="named_parameters"):
        StepGauge(split, basis=torch.eye(11)[:, :2])
    named = StepGauge(split, basis=torch.eye(11)[:, :2], parameters=zip("abc", run.params, strict=True))
    assert [p.shape for p in named.parameters] == [p.shape for p in run.params]
    assert named._observer.layout.names == ("a", "b", "c")


@pytest.mark.parametrize("at", [7, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("sampling", ["shuffled", "independent"])
def test_resumed_is_never_stopped(at, sampling):
    def run(stop):
        loop = Loop(sampling=sampling, batch_size=4)
        for step in range(64):
            if step == stop:
                file = io.BytesIO()
                torch.save(loop.gauge.state_dict(), file)
                file.seek(0)
                loop.gauge.detach()
                loop.gauge = StepGauge(loop.optimizer, every=4, sampling=sampling, batch_size=4)
                loop.gauge.load_state_dict(torch.load(file, weights_only=True))
            loop.step()
        return loop.gauge.summary(), loop.gauge.state_dict()

    (summary, state), (other, other_state) = run(None), run(at)
    assert summary == other or repr(summary) == repr(other)  # NaN is no obstacle
    same = zip(state["recorder"]["blocks"], other_state["recorder"]["blocks"], strict=True)
    assert all(torch.equal(a[5], b[5]) for a, b in same)


def test_a_state_that_does_not_fit_is_refused():
    run = Loop()
    state = run.gauge.state_dict()
    for key, value in (("every", 5), ("version", 99), ("names", ["x"]), ("shapes", [])):
        with pytest.raises(InvalidArgument, match=key):
            run.gauge.load_state_dict(state | {key: value})
    with pytest.raises(InvalidArgument, match="version"):
        run.gauge.load_state_dict({})


def test_it_says_when_there_is_nothing_to_say():
    run = Loop(sampling="independent")
    assert run.gauge.summary().outcome is GaugeOutcome.TOO_FEW_STEPS
    for _ in range(8):
        run.step()
    few = run.gauge.summary()
    assert few.outcome is GaugeOutcome.TOO_FEW_STEPS
    assert "not enough steps yet" in few.verdict
    assert not few.total.threshold_fraction.resolved
    for _ in range(24):
        run.step(second="none")
    assert run.gauge.summary(window=24).outcome is GaugeOutcome.NO_SECOND
    assert "gauge.due" in run.gauge.summary(window=24).verdict
    shuffled = Loop()
    for _ in range(32):
        shuffled.step(second="gradients" if shuffled.gauge.due else "none")
    summary = shuffled.gauge.summary()
    assert summary.outcome is GaugeOutcome.NO_CURVATURE
    assert summary.total.noise_scale.value == summary.total.noise_scale.value
    assert "sampling='independent'" in summary.verdict


def test_only_plain_sgd_is_given_plain_sgd_s_numbers():
    makers = {
        True: [lambda p: torch.optim.SGD(p, lr=0.1)],
        False: [
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
            lambda p: torch.optim.AdamW(p, lr=0.1),
            lambda p: torch.optim.SGD(p, lr=0.0),
            lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.2}, {"params": p[1:]}], lr=0.1),
        ],
    }
    for plain, group in makers.items():
        for make in group:
            run = Loop(make=make)
            for _ in range(32):
                run.step()
            summary = run.gauge.summary()
            assert summary.plain is plain
            assert summary.total.noise_share.resolved is plain
    clipped = Loop(make=makers[True][0])
    for _ in range(32):
        clipped.step(**CLIP)
    assert not clipped.gauge.summary().plain


def test_second_points_fall_once_in_every_block_at_random_places():
    run = Loop(every=8)
    due = []
    for _ in range(800):
        due.append(run.gauge.due)
        run.step(second="gradients" if due[-1] else "none")
    places = np.flatnonzero(due)
    assert len(places) == 100
    assert (places // 8 == np.arange(100)).all()
    assert set(places % 8) == set(range(7))


BAD = [
    ({"every": 1}, "every"),
    ({"every": 4.0}, "every"),
    ({"keep": 0}, "keep"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": True}, "batch_size"),
    ({"sampling": "random"}, "sampling"),
    ({"parameters": [3]}, "parameters"),
]


@pytest.mark.parametrize(("options", "name"), BAD)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(InvalidArgument, match=f"^{name}: "):
        StepGauge(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), **options)


def test_bad_calls_are_named():
    run = Loop()
    with pytest.raises(InvalidArgument, match=r"^optimizer: "):
        StepGauge(run.params)
    with pytest.raises(InvalidArgument, match="complex"):
        StepGauge(torch.optim.SGD([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1))
    for call, name in (
        (lambda: run.gauge.summary(window=0), "window"),
        (lambda: run.gauge.summary(level=1.0), "level"),
        (lambda: run.gauge.observe(scale=0.0), "scale"),
        (lambda: run.gauge.accumulate(weight=-1.0), "weight"),
        (lambda: run.gauge.second([None]), "second"),
        (lambda: run.gauge.second([torch.ones(1)] * 3), "second"),
        (lambda: run.gauge.second(lambda: 3.0), "second"),
        (lambda: run.gauge.second(lambda: run.params[0] * 2), "second"),
    ):
        with pytest.raises(InvalidArgument, match=f"^{name}: "):
            call()
