"""Projected and scaled updates against dense projectors, and what PyTorch expects of an optimizer."""

import copy
import io

import pytest
import torch
from torch import nn

from etastar import InvalidArgument
from etastar.network import GaussNewtonOperator, HessianOperator, ProjectedOptimizer, ScaledOptimizer, SubspaceTracker

INNERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.05),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01),
    "adamw fused": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, fused=True),
}


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(dim=1).mean()


class Run:
    """A small network, its data and a tracker; `step` trains on a batch of its own stream."""

    def __init__(self, make, only=None, frozen=(), dtype=torch.float64, rank=3):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
        self.data = torch.randn(40, 4, dtype=dtype), torch.randn(40, 2, dtype=dtype)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.operator = HessianOperator(self.model, squared, [self.data], only)
        self.tracker = SubspaceTracker(self.operator, rank)
        self.stream = torch.Generator().manual_seed(1)
        self.optimizer = make(self)

    def backward(self):
        drawn = torch.randint(40, (8,), generator=self.stream)
        self.optimizer.zero_grad()
        loss = squared(self.model, tuple(part[drawn] for part in self.data))
        loss.backward()
        return loss

    def step(self):
        self.backward()
        self.optimizer.step()

    def flat(self):
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.model.parameters()])


def plain(inner):
    return lambda run: INNERS[inner](run.model.parameters())


def projected(inner, onto, **options):
    return lambda run: ProjectedOptimizer(INNERS[inner](run.model.parameters()), run.tracker, onto, **options)


def scaled(inner, dominant, bulk, **options):
    def make(run):
        return ScaledOptimizer(
            INNERS[inner](run.model.parameters()), run.tracker, dominant=dominant, bulk=bulk, **options
        )

    return make


def dense_projector(run):
    H = run.operator @ torch.eye(run.operator.shape[0], dtype=torch.float64)
    vectors = torch.linalg.eigh(H)[1][:, -run.tracker.rank :]
    return vectors @ vectors.T


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize(("dominant", "bulk"), [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_the_update_is_the_dense_projection_of_the_inner_one(inner, dominant, bulk):
    onto = {(1.0, 0.0): "dominant", (0.0, 1.0): "bulk"}.get((dominant, bulk))
    make = projected(inner, onto, tolerance=1e-9) if onto else scaled(inner, dominant, bulk, tolerance=1e-9)
    run = Run(make)
    for _ in range(3):
        P, begin, twin = dense_projector(run), run.flat(), copy.deepcopy(run.model)
        other = INNERS[inner](twin.parameters())
        other.load_state_dict(copy.deepcopy(run.optimizer.inner.state_dict()))
        run.backward()
        for mine, theirs in zip(run.model.parameters(), twin.parameters(), strict=True):
            theirs.grad = mine.grad.clone()
        run.optimizer.step()
        other.step()
        update = begin - torch.cat([parameter.detach().reshape(-1) for parameter in twin.parameters()])
        expected = dominant * (P @ update) + bulk * (update - P @ update)
        torch.testing.assert_close(begin - run.flat(), expected, rtol=1e-6, atol=1e-9)


def test_factors_of_one_are_the_inner_optimizer_bit_for_bit():
    run, twin = Run(scaled("adam", 1.0, 1.0)), Run(plain("adam"))
    for _ in range(4):
        run.step()
        twin.step()
    assert torch.equal(run.flat(), twin.flat())


def test_momentum_does_not_leak_out_of_a_fixed_subspace():
    run = Run(projected("momentum", "dominant", every=None))
    basis = run.tracker.refresh(1e-6).basis
    begin = run.flat()
    for _ in range(30):
        run.step()
    moved = run.flat() - begin
    assert float(moved.norm()) > 0.1
    assert float((moved - basis @ (basis.T @ moved)).norm()) < 1e-13
    run = Run(projected("momentum", "bulk", every=None))
    basis = run.tracker.refresh(1e-6).basis
    begin = run.flat()
    for _ in range(30):
        run.step()
    assert float((basis.T @ (run.flat() - begin)).norm()) < 1e-13


def test_the_basis_is_refreshed_when_asked_and_only_then():
    run = Run(projected("sgd", "bulk", every=3))
    seen = []
    for _ in range(7):
        before = run.operator.products
        run.step()
        seen.append(run.operator.products > before)
    assert seen == [True, False, False, True, False, False, True]
    run = Run(projected("sgd", "bulk", every=None))
    with pytest.raises(InvalidArgument, match=r"tracker\.refresh\(\) first"):
        run.step()
    run.tracker.refresh()
    before = run.operator.products
    run.step()
    assert run.operator.products == before


@pytest.mark.parametrize("inner", INNERS)
def test_a_resumed_run_is_the_run_that_never_stopped(inner):
    make = projected(inner, "bulk", every=2, tolerance=0.3)
    whole, first = Run(make), Run(make)
    for _ in range(5):
        whole.step()
        first.step()
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = Run(make)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.stream.set_state(first.stream.get_state())
    for _ in range(5):
        whole.step()
        second.step()
    assert torch.equal(whole.flat(), second.flat())
    assert torch.equal(whole.tracker.basis, second.tracker.basis)
    assert whole.optimizer.param_groups[0].keys() == second.optimizer.param_groups[0].keys()
    assert second.optimizer.param_groups is second.optimizer.inner.param_groups


@pytest.mark.parametrize("inner", ["momentum", "adam"])
def test_copies_go_on_by_themselves(inner):
    run = Run(projected(inner, "bulk", every=2))
    torch.optim.lr_scheduler.StepLR(run.optimizer, 1)  # which patches `step`
    for _ in range(3):
        run.step()
    model, optimizer = copy.deepcopy((run.model, run.optimizer))
    held = run.flat()
    assert optimizer.param_groups is optimizer.inner.param_groups
    for one, mover in ((model, optimizer), (run.model, run.optimizer)):
        for _ in range(3):
            mover.zero_grad()
            squared(one, run.data).backward()
            mover.step()
        assert torch.equal(run.flat(), held) == (one is model)
    assert all(map(torch.equal, model.parameters(), run.model.parameters()))


def test_states_of_another_rank_model_or_grouping_change_nothing():
    states = [Run(projected("momentum", "bulk"), rank=5), Run(projected("momentum", "bulk"), only="2", rank=3)]
    for other in states:
        other.step()
    groups = lambda run: ProjectedOptimizer(  # noqa: E731
        torch.optim.SGD([{"params": layer.parameters()} for layer in (run.model[0], run.model[2])], 0.1),
        run.tracker,
        "bulk",
    )
    states.append(Run(groups))
    states[-1].step()
    run = Run(projected("momentum", "bulk"))
    for other, told in zip(states, ("of rank 5", "3 vectors of 37", r"groups of \[2, 2\]"), strict=True):
        with pytest.raises(InvalidArgument, match=told):
            run.optimizer.load_state_dict(other.optimizer.state_dict())
        assert run.tracker.basis is None
        assert not run.optimizer.state


def test_an_update_that_is_not_finite_does_not_spread():
    for make in (projected("sgd", "dominant"), projected("sgd", "bulk"), scaled("sgd", 0.1, 2.0)):
        run = Run(make)
        run.step()
        run.backward()
        run.model[2].bias.grad[0] = float("inf")
        run.optimizer.step()
        assert int((~torch.isfinite(run.flat())).sum()) == 1


def test_an_empty_group_comes_first():
    run = Run(
        lambda run: ProjectedOptimizer(
            torch.optim.SGD([{"params": []}, {"params": run.model.parameters()}]), run.tracker, "bulk"
        )
    )
    before = run.flat()
    run.step()
    assert not torch.equal(run.flat(), before)


class Norm(nn.Module):
    """Its norm has a gradient at 0, and no curvature."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x.sum(dim=1) + self.weight.norm()


def test_a_loss_without_curvature_is_named():
    model, data = Norm(), (torch.randn(8, 3), torch.randn(8))
    operator = HessianOperator(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), [data])
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.parameters()), SubspaceTracker(operator, 2), "bulk")
    with pytest.raises(InvalidArgument, match="products are not finite"):
        optimizer.step()


def test_states_of_other_optimizers_are_refused_before_anything_changes():
    run = Run(projected("sgd", "bulk"))
    run.step()
    basis = run.tracker.basis.clone()
    with pytest.raises(InvalidArgument, match="tracker is missing"):
        run.optimizer.load_state_dict(run.optimizer.inner.state_dict())
    assert torch.equal(run.tracker.basis, basis)


def test_closures_run_inside_the_inner_optimizer():
    run, twin = Run(projected("momentum", "bulk")), Run(projected("momentum", "bulk"))
    for _ in range(3):
        loss = run.optimizer.step(run.backward)
        assert loss.requires_grad
        twin.step()
    assert torch.equal(run.flat(), twin.flat())
    make = lambda run: ProjectedOptimizer(  # noqa: E731  # evaluates the closure many times
        torch.optim.LBFGS(run.model.parameters(), max_iter=5), run.tracker, "dominant"
    )
    run = Run(make)
    run.tracker.refresh(1e-8)
    basis, begin, calls = run.tracker.basis.clone(), run.flat(), []
    run.optimizer.every = None

    def closure():
        calls.append(1)
        run.optimizer.zero_grad()
        loss = squared(run.model, run.data)
        loss.backward()
        return loss

    run.optimizer.step(closure)
    moved = run.flat() - begin
    assert len(calls) > 1
    assert float(moved.norm()) > 0
    assert float((moved - basis @ (basis.T @ moved)).norm()) < 1e-13


def test_groups_and_schedulers_are_shared():
    def make(run):
        groups = [{"params": run.model[0].parameters(), "lr": 0.2}, {"params": run.model[2].parameters()}]
        return ProjectedOptimizer(torch.optim.SGD(groups, lr=0.1, momentum=0.9), run.tracker, "bulk")

    run = Run(make)
    optimizer = run.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.state is optimizer.inner.state
    assert optimizer.defaults is optimizer.inner.defaults
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    of_inner = torch.optim.lr_scheduler.ExponentialLR(optimizer.inner, 0.5)
    run.step()
    scheduler.step()
    of_inner.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.025]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 1.0})
    assert len(optimizer.inner.param_groups) == 3
    assert "ProjectedOptimizer" in repr(optimizer)
    assert "lr: 1.0" in repr(optimizer)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_one_cycle_reaches_the_inner_momentum():
    run = Run(projected("momentum", "bulk"))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, max_lr=0.1, total_steps=4)
    before = run.optimizer.inner.param_groups[0]["momentum"]
    run.step()
    scheduler.step()
    assert run.optimizer.inner.param_groups[0]["momentum"] != before


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_tensor_learning_rates(rate):
    runs = []
    for lr in (0.1, rate):
        make = lambda run, lr=lr: ProjectedOptimizer(  # noqa: E731
            torch.optim.Adam(run.model.parameters(), lr=lr, foreach=False), run.tracker, "bulk"
        )
        runs.append(Run(make))
        for _ in range(3):
            runs[-1].step()
    torch.testing.assert_close(runs[0].flat(), runs[1].flat(), rtol=1e-6, atol=1e-9)


def test_step_hooks_fire_once_on_both():
    run, seen = Run(projected("sgd", "bulk")), []
    for name, optimizer in (("outer", run.optimizer), ("inner", run.optimizer.inner)):
        optimizer.register_step_pre_hook(lambda *_, name=name: seen.append(f"{name} pre"))
        optimizer.register_step_post_hook(lambda *_, name=name: seen.append(f"{name} post"))
    run.step()
    assert seen == ["outer pre", "inner pre", "inner post", "outer post"]


def test_state_hooks_see_the_whole_state():
    run, seen = Run(projected("sgd", "bulk")), []
    run.step()
    run.optimizer.register_state_dict_pre_hook(lambda _: seen.append("save"))
    run.optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    run.optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append(state["note"]))
    run.optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    assert seen == ["save", 1, "loaded"]


@pytest.mark.parametrize("inner", ["momentum", "adamw fused"])
def test_a_scaler_skips_and_unscales(inner):
    run, twin = (Run(projected(inner, "bulk"), dtype=torch.float32) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        run.optimizer.zero_grad()
        twin.optimizer.zero_grad()
        drawn = torch.randint(40, (8,), generator=run.stream)
        batch = tuple(part[drawn] for part in run.data)
        scaler.scale(squared(run.model, batch)).backward()
        if step == 1:
            next(run.model.parameters()).grad[0] = float("inf")
            before = run.flat()
        scaler.step(run.optimizer)
        scaler.update()
        if step == 1:
            assert torch.equal(run.flat(), before)
            continue
        squared(twin.model, batch).backward()
        twin.optimizer.step()
    torch.testing.assert_close(run.flat(), twin.flat(), rtol=1e-5, atol=1e-6)


def test_frozen_and_uncovered_parameters():
    frozen = Run(projected("momentum", "bulk"), frozen=("0.bias",))
    held = frozen.model[0].bias.clone()
    for _ in range(3):
        frozen.step()
    assert torch.equal(frozen.model[0].bias, held)
    assert frozen.tracker.basis.shape[0] == frozen.flat().numel() - 5

    part, twin = Run(projected("sgd", "dominant"), only="2", rank=2), Run(plain("sgd"), only="2", rank=2)
    part.step()
    twin.step()
    assert torch.equal(part.model[0].weight, twin.model[0].weight)  # the inner one alone moves what is not covered
    assert not torch.allclose(part.model[2].weight, twin.model[2].weight)


def test_refusals_name_the_remedy():
    with pytest.raises(InvalidArgument, match=r"2 parameters not in it, 0\.weight first"):
        Run(lambda run: ProjectedOptimizer(torch.optim.SGD(run.model[2].parameters()), run.tracker, "bulk"))
    with pytest.raises(InvalidArgument, match=r"onto: got 'both'"):
        Run(projected("sgd", "both"))
    with pytest.raises(InvalidArgument, match="HessianOperator"):
        Run(
            lambda run: ProjectedOptimizer(
                torch.optim.SGD(run.model.parameters()), SubspaceTracker(torch.eye(9), 2), "bulk"
            )
        )
    with pytest.raises(InvalidArgument, match="inner"):
        Run(lambda run: ProjectedOptimizer(run.model, run.tracker, "bulk"))
    for factor in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="dominant"):
            Run(scaled("sgd", factor, 1.0))
    with pytest.raises(InvalidArgument, match="every"):
        Run(projected("sgd", "bulk", every=0))
    run = Run(projected("sgd", "bulk"))
    run.model[0].weight.requires_grad_(False)
    with pytest.raises(InvalidArgument, match=r"0\.weight.*frozen"):
        run.step()


def test_refreshing_leaves_no_other_trace():
    run, twin = Run(scaled("momentum", 1.0, 1.0)), Run(plain("momentum"))
    run.model.insert(1, nn.Dropout(0.5).eval())
    for _ in range(3):
        state = torch.get_rng_state()
        run.step()
        assert torch.equal(state, torch.get_rng_state())
        twin.step()
    for mine, theirs in zip(run.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(mine.grad, theirs.grad)


def test_a_gauss_newton_subspace_serves_too():
    def make(run):
        def outputs(model, batch):
            return model(batch[0])

        def loss(out, batch):
            return (out - batch[1]).square().sum(dim=1).mean()

        run.tracker = SubspaceTracker(GaussNewtonOperator(run.model, outputs, loss, [run.data]), 2)
        return ProjectedOptimizer(INNERS["sgd"](run.model.parameters()), run.tracker, "dominant")

    run = Run(make)
    before = run.flat()
    run.step()
    assert not torch.equal(run.flat(), before)
