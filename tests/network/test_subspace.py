"""The tracked subspace against dense eigen-decompositions: values, angles, certificates, cost, degenerate cases."""

import io
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from etastar import InvalidArgument
from etastar.network import Goal, HessianOperator, SubspaceOutcome, SubspaceTracker

F64 = torch.float64


def orthogonal(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0]


def matrix(eigenvalues: list[float] | Tensor, seed: int = 0) -> Tensor:
    values = torch.as_tensor(eigenvalues, dtype=F64)
    Q = orthogonal(len(values), seed)
    H = (Q * values) @ Q.mT
    return (H + H.mT) / 2


def hessian_like(size: int, rank: int, gap: float) -> Tensor:
    """A few large eigenvalues above a gap, a long tail, some negative ones larger in magnitude than the tail."""
    top = torch.linspace(8.0, 4.0, rank, dtype=F64)
    tail = 4.0 * (1 - gap) * torch.arange(1, size - rank - 3, dtype=F64) ** -0.8
    return torch.cat([top, tail, torch.tensor([-0.5, -2.0, -6.0, -9.0], dtype=F64)])


def truth(H: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(H.to(F64))
    return values.flip(0), vectors.flip(1)[:, :rank]


def sines(basis: Tensor, reference: Tensor) -> Tensor:
    basis = basis.to(F64)
    return torch.linalg.svdvals(reference - basis @ (basis.mT @ reference))


def error(basis: Tensor, reference: Tensor) -> float:
    return float(sines(basis, reference).norm()) / math.sqrt(basis.shape[1])


def angle(basis: Tensor, reference: Tensor) -> float:
    return math.asin(min(float(sines(basis, reference)[0]), 1.0))


def drifting(H: Tensor, steps: int, size: float, seed: int = 0):
    """H seen from slowly turning coordinates, its eigenvalues drifting too: a run."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(len(H), len(H), generator=generator, dtype=F64)
    turn = torch.linalg.matrix_exp(size / math.sqrt(2 * len(H)) * (A - A.mT))
    S = torch.randn(len(H), len(H), generator=generator, dtype=F64)
    for _ in range(steps):
        yield H
        H = turn @ H @ turn.mT
        H = H + 0.02 * size * (S + S.mT) / 2
        H = (H + H.mT) / 2


class Switched:
    """An operator whose matrix the test replaces."""

    def __init__(self, H: Tensor) -> None:
        self.H = H
        self.products = 0

    @property
    def shape(self):
        return self.H.shape

    @property
    def dtype(self):
        return self.H.dtype

    @property
    def device(self):
        return self.H.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.products += vectors.shape[1]
        return self.H @ vectors


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-5), (F64, 1e-12)])
@pytest.mark.parametrize("seed", range(3))
def test_a_cold_start_is_the_dense_decomposition_by_algebraic_value(dtype, accuracy, seed) -> None:
    H = matrix(hessian_like(120, 6, 0.3), seed)
    values, reference = truth(H, 6)
    s = SubspaceTracker(H.to(dtype), 6, seed=seed).refresh(tolerance=10 * accuracy)
    assert s.outcome is SubspaceOutcome.CONVERGED
    assert error(s.basis, reference) <= 10 * accuracy
    assert torch.allclose(s.eigenvalues, values[:6], rtol=accuracy)
    assert s.gap == pytest.approx(float(values[5] - values[6]), rel=1e-2)
    assert s.basis.dtype == dtype
    assert s.rank == 6
    assert s.converged


def test_the_hessian_of_a_network_against_autograd() -> None:
    torch.manual_seed(0)
    data = load_digits()
    x = torch.tensor(data.data[:200, 20:28] / 16.0)
    y = nn.functional.one_hot(torch.tensor(data.target[:200]), 10).double()
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    operator = HessianOperator(model, lambda m, b: (m(b[0]) - b[1]).square().sum(1).mean(), [(x, y)])
    H = operator @ torch.eye(operator.shape[0], dtype=F64)
    values, reference = truth(H, 8)
    before = operator.products
    s = SubspaceTracker(operator, rank=8).refresh(1e-4)
    assert error(s.basis, reference) <= 1e-4
    assert torch.allclose(s.eigenvalues, values[:8], rtol=1e-6)
    assert s.products == operator.products - before


@pytest.mark.parametrize("gap", [0.5, 0.1, 0.03])
@pytest.mark.parametrize("drift", [0.3, 0.03])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
def test_along_a_run_the_error_meets_the_tolerance_and_the_bound_holds(gap, drift, tolerance) -> None:
    start = matrix(hessian_like(200, 5, gap))
    operator = Switched(start)
    tracker, errors, costs, bounds = SubspaceTracker(operator, 5), [], [], 0
    for H in drifting(start, 15, drift):
        operator.H, operator.products = H, 0
        s = tracker.refresh(tolerance)
        values, reference = truth(H, 5)
        errors.append(error(s.basis, reference))
        costs.append(s.products)
        assert s.products == operator.products
        if float(values[5]) <= s.next_bound:  # the guards are sound: then the certificate is a theorem
            assert s.angle_bound >= angle(s.basis, reference)
            bounds += s.angle_bound < math.pi / 2
        kept = s.basis.mT @ s.basis - torch.eye(5, dtype=F64)
        assert kept.abs().max() <= 1e-12
    assert max(errors) <= 2 * tolerance
    assert sorted(errors)[len(errors) * 4 // 5] <= tolerance
    assert bounds > 0 or tolerance > 1e-3 or gap < 0.1


def test_an_unchanged_operator_costs_the_rank_and_two() -> None:
    tracker = SubspaceTracker(matrix(hessian_like(150, 7, 0.2)), 7)
    first = tracker.refresh()
    again = tracker.refresh()
    assert again.products == 9
    assert again.error < first.error + 1e-3
    assert torch.allclose((first.basis * again.basis).sum(0), torch.ones(7, dtype=F64), atol=1e-4)  # signs kept


def test_digits_mlp_is_followed_at_the_stated_cost() -> None:
    torch.manual_seed(0)
    data = load_digits()
    x = torch.tensor((data.data - data.data.mean(0)) / (data.data.std(0) + 1e-9), dtype=torch.float32)
    y = nn.functional.one_hot(torch.tensor(data.target), 10).float()
    model = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))

    def loss_fn(m, b):
        return 0.5 * (m(b[0]) - b[1]).square().sum(1).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SubspaceTracker(HessianOperator(model, loss_fn, [(x[:600], y[:600])]), rank=10)
    reference = SubspaceTracker(HessianOperator(model, loss_fn, [(x[:600], y[:600])]), rank=10)
    costs = []
    for step in range(301):
        if step >= 200 and step % 20 == 0:
            s, truth_ = tracker.refresh(1e-2), reference.refresh(1e-4)
            costs.append(s.products)
            assert error(s.basis, truth_.basis.double()) <= 2e-2
            gram = s.basis.mT @ s.basis
            assert (gram - torch.eye(10)).abs().max() <= 1e-5
        rows = torch.randint(0, 600, (50,))
        optimizer.zero_grad()
        loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()
    assert sum(costs[1:]) / len(costs[1:]) <= 27


def test_float32_stays_orthonormal_for_hundreds_of_refreshes() -> None:
    start = matrix(hessian_like(100, 4, 0.2))
    operator = Switched(start.float())
    tracker = SubspaceTracker(operator, 4)
    for H in drifting(start, 200, 0.02):
        operator.H = H.float()
        basis = tracker.refresh().basis
    assert (basis.mT @ basis - torch.eye(4)).abs().max() <= 1e-5
    assert error(basis, truth(H, 4)[1]) <= 1e-2


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
def test_an_operator_that_jumps_is_found_again(tolerance: float) -> None:
    operator = Switched(matrix(hessian_like(200, 5, 0.1), 1))
    tracker = SubspaceTracker(operator, 5)
    tracker.refresh(tolerance)
    operator.H = matrix(hessian_like(200, 5, 0.1), 2)
    s = tracker.refresh(tolerance)
    assert s.converged
    assert error(s.basis, truth(operator.H, 5)[1]) <= tolerance


@pytest.mark.parametrize(
    "eigenvalues",
    [
        -torch.arange(1.0, 41.0, dtype=F64),  # none is positive
        torch.cat([torch.tensor([3.0, 1.0]), -torch.arange(1.0, 39.0)]).double(),  # λ_k is negative
        torch.cat([torch.tensor([2.0, 1.0, 0.5, 0.25]), torch.zeros(10), -torch.arange(1.0, 27.0)]).double(),
        1e-25 * torch.arange(1.0, 41.0, dtype=F64),
        1e25 * torch.arange(1.0, 41.0, dtype=F64),
    ],
)
def test_indefinite_negative_and_badly_scaled_operators(eigenvalues: Tensor) -> None:
    H = matrix(eigenvalues)
    values, reference = truth(H, 4)
    tracker = SubspaceTracker(H, 4)
    for _ in range(2):
        s = tracker.refresh(1e-4)
        assert s.outcome is SubspaceOutcome.CONVERGED
        assert error(s.basis, reference) <= 1e-4
        assert torch.allclose(s.eigenvalues, values[:4], rtol=1e-4)


def test_the_residuals_are_those_of_the_explored_ritz_pairs() -> None:
    H = matrix(hessian_like(80, 4, 0.3))
    s = SubspaceTracker(H, 4).refresh(1e-6)
    true = (H @ s.basis - s.basis * s.eigenvalues).norm(dim=0)
    assert torch.all(true <= s.residuals + 1e-9)
    assert s.guards.shape == (3,)
    assert s.guards[0] == pytest.approx(float(truth(H, 4)[0][4]), rel=1e-2)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_spaces_hardly_larger_than_the_rank(size: int) -> None:
    H = matrix(torch.arange(size, dtype=F64) - 1)
    for rank in range(1, size):
        tracker = SubspaceTracker(H, rank)
        for _ in range(3):
            s = tracker.refresh(1e-8)
            assert error(s.basis, truth(H, rank)[1]) <= 1e-8
            assert s.products <= size
    for rank in (0, size, size + 1, 1.0, True):
        with pytest.raises(InvalidArgument, match="rank"):
            SubspaceTracker(H, rank)


def test_zero_curvature_is_an_outcome() -> None:
    tracker = SubspaceTracker(torch.zeros(30, 30), 4)
    for _ in range(2):
        s = tracker.refresh()
        assert s.outcome is SubspaceOutcome.FLAT
        assert not s.converged
        assert not s.eigenvalues.any()
        assert torch.allclose(s.basis.mT @ s.basis, torch.eye(4), atol=1e-5)


def test_a_cut_through_a_cluster_is_an_outcome_with_the_nearest_clean_rank() -> None:
    H = matrix([9.0, 8.0, 5.0, 5.0, 5.0, 2.0, 1.0, 0.5, *([0.1] * 20)])
    assert SubspaceTracker(H, 4).refresh().outcome is SubspaceOutcome.CLUSTERED
    assert SubspaceTracker(H, 4).refresh().clean_rank == 5
    assert SubspaceTracker(H, 3).refresh().clean_rank == 2
    assert SubspaceTracker(H, 5).refresh(1e-6).outcome is SubspaceOutcome.CONVERGED
    assert SubspaceTracker(torch.eye(20), 3).refresh().outcome is SubspaceOutcome.CLUSTERED
    assert SubspaceTracker(torch.eye(20), 3).refresh().clean_rank is None
    low = SubspaceTracker(matrix([3.0, 2.0, *([0.0] * 20)]), 4).refresh()
    assert (low.outcome, low.clean_rank) == (SubspaceOutcome.CLUSTERED, 2)
    assert low.angle_bound == math.pi / 2
    assert "clean_rank" in low.outcome.value


@pytest.mark.parametrize("copies", [2, 3, 10])
def test_multiple_eigenvalues_are_all_found_from_cold(copies: int) -> None:
    # the Hessian of a linear model with `copies` outputs
    H = torch.kron(matrix([5.0, 4.0, 3.0, 1.0, 0.5, *([0.1] * 10)]), torch.eye(copies, dtype=F64))
    s = SubspaceTracker(H, 2 * copies).refresh(1e-4)
    assert torch.allclose(s.eigenvalues, truth(H, 2 * copies)[0][: 2 * copies], rtol=1e-6)
    assert error(s.basis, truth(H, 2 * copies)[1]) <= 1e-4


def test_products_that_are_not_finite_are_an_outcome_and_forget_nothing() -> None:
    H = matrix(hessian_like(60, 3, 0.3))
    operator = Switched(H)
    tracker = SubspaceTracker(operator, 3)
    operator.H = H * float("nan")
    cold = tracker.refresh()
    assert cold.outcome is SubspaceOutcome.NOT_FINITE
    assert cold.basis.isnan().all()
    operator.H = H
    tracker.refresh()
    operator.H = H * float("inf")
    broken = tracker.refresh()
    assert broken.outcome is SubspaceOutcome.NOT_FINITE
    assert broken.eigenvalues.isnan().all()
    assert broken.angle_bound == math.pi / 2
    operator.H = H
    again = tracker.refresh()
    assert again.converged
    assert again.products == 5


def test_a_spent_budget_is_an_outcome_and_the_next_refresh_continues() -> None:
    H = matrix(hessian_like(200, 5, 0.1))
    tracker = SubspaceTracker(H, 5, max_products=12)
    outcomes = [tracker.refresh(1e-3) for _ in range(12)]
    assert outcomes[0].outcome is SubspaceOutcome.BUDGET
    assert all(s.products <= 12 for s in outcomes)
    assert outcomes[-1].converged
    assert error(outcomes[-1].basis, truth(H, 5)[1]) <= 2e-3
    with pytest.raises(InvalidArgument, match="max_products"):
        SubspaceTracker(H, 5, max_products=5)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1.0, 1e-6, float("nan")])
def test_tolerances_out_of_range_are_refused(tolerance: float) -> None:
    with pytest.raises(InvalidArgument, match="tolerance"):
        SubspaceTracker(torch.eye(5), 2).refresh(tolerance)


def test_save_and_restore_continue_bit_for_bit() -> None:
    start = matrix(hessian_like(90, 4, 0.2)).float()
    operator = Switched(start)
    run = [H.float() for H in drifting(start.double(), 6, 0.1)]
    straight = SubspaceTracker(operator, 4)
    for index, H in enumerate(run):
        operator.H = H
        if index == 3:
            file = io.BytesIO()
            torch.save(straight.state_dict(), file)
        s = straight.refresh()
    file.seek(0)
    resumed = SubspaceTracker(operator, 4, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for H in run[3:]:
        operator.H = H
        r = resumed.refresh()
    assert torch.equal(r.basis, s.basis)
    assert torch.equal(r.eigenvalues, s.eigenvalues)
    assert (r.error, r.angle_bound, r.products) == (s.error, s.angle_bound, s.products)
    cold = SubspaceTracker(operator, 4)
    cold.load_state_dict(SubspaceTracker(operator, 4).state_dict())
    assert torch.equal(cold.refresh().basis, SubspaceTracker(operator, 4).refresh().basis)


def test_states_of_other_trackers_are_refused() -> None:
    tracker = SubspaceTracker(matrix(hessian_like(50, 3, 0.2)), 3)
    tracker.refresh()
    state = tracker.state_dict()
    for other in (SubspaceTracker(torch.eye(9, dtype=F64), 3), SubspaceTracker(torch.eye(50), 3)):
        with pytest.raises(InvalidArgument, match="state"):
            other.load_state_dict(state)
    with pytest.raises(InvalidArgument, match="state"):
        tracker.load_state_dict({"carried": None})


def test_a_goal_stops_earlier_and_its_quantity_is_within_the_noise() -> None:
    start = matrix(hessian_like(200, 5, 0.03))
    generator = torch.Generator().manual_seed(5)
    gradient = start @ torch.randn(200, generator=generator, dtype=F64)

    def alignment(basis: Tensor) -> Tensor:
        return (basis.mT @ gradient).square().sum() / gradient.square().sum()

    operator, noise = Switched(start), 0.01
    plain, aimed = SubspaceTracker(operator, 5), SubspaceTracker(operator, 5)
    costs, outcomes, effects = [0, 0], [], []
    for H in drifting(start, 20, 0.1):
        operator.H = H
        costs[0] += plain.refresh(1e-3).products
        s = aimed.refresh(1e-3, goal=Goal(alignment, noise))
        costs[1] += s.products
        outcomes.append(s.outcome)
        effects.append(abs(float(alignment(s.basis) - alignment(truth(H, 5)[1]))) / noise)
    assert outcomes[0] is SubspaceOutcome.CONVERGED  # a cold start ignores the goal: later refreshes live off it
    assert outcomes.count(SubspaceOutcome.GOAL) >= 10
    assert sorted(effects)[17] <= 1
    assert max(effects) <= 3
    assert costs[1] < 0.8 * costs[0]


def test_the_tracker_draws_from_a_stream_of_its_own() -> None:
    before = torch.get_rng_state()
    SubspaceTracker(matrix(hessian_like(50, 3, 0.2)), 3).refresh()
    assert torch.equal(torch.get_rng_state(), before)
