"""Products against dense autograd Hessians, closed forms, and each other; errors by name."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, jacrev

from etastar import InvalidArgument
from etastar.network import GaussNewtonOperator, HessianOperator

F64 = torch.float64
torch.set_num_threads(1)


def hessian(function):
    return jacrev(jacrev(function))


def mse(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1].argmax(1))


def digits(count: int, dtype: torch.dtype = F64) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    inputs = torch.tensor(data.data[:count, 16:28] / 16.0, dtype=dtype)
    return inputs, nn.functional.one_hot(torch.tensor(data.target[:count]), 10).to(dtype)


def small(dtype: torch.dtype = F64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 10)).to(dtype)


def dense(model: nn.Module, loss_fn, batch, names=None) -> torch.Tensor:
    """The Hessian entry by entry from torch.func, in the order of `names`."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    names = names or list(parameters)

    def loss(values):
        return loss_fn(lambda x: functional_call(model, {**parameters, **values}, (x,), tie_weights=True), batch)

    blocks = hessian(loss)({name: parameters[name] for name in names})
    rows = [torch.cat([blocks[a][b].reshape(parameters[a].numel(), -1) for b in names], 1) for a in names]
    return torch.cat(rows)


@pytest.mark.parametrize("loss_fn", [mse, cross_entropy])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (F64, 1e-14)])
def test_products_are_the_dense_hessians(loss_fn, dtype, tolerance) -> None:
    model, batch = small(dtype), digits(60, dtype)
    H = dense(model, loss_fn, batch)
    operator = HessianOperator(model, loss_fn, [batch])
    assert operator.shape == tuple(H.shape)
    scale = H.abs().max()
    assert (operator @ torch.eye(len(H), dtype=dtype) - H).abs().max() <= tolerance * scale
    one = torch.randn(len(H), dtype=dtype)
    assert (operator @ one).shape == one.shape
    assert torch.allclose(operator @ one, H @ one, atol=float(30 * tolerance * scale))


def test_ragged_batches_are_weighted_by_their_samples() -> None:
    model, (x, y) = small(), digits(67)
    whole = HessianOperator(model, cross_entropy, [(x, y)])
    parts = HessianOperator(model, cross_entropy, [(x[i : i + 20], y[i : i + 20]) for i in range(0, 67, 20)])
    v = torch.randn(whole.shape[0], 3, dtype=F64)
    assert parts.samples == whole.samples == 67
    assert torch.allclose(parts @ v, whole @ v, rtol=1e-13, atol=1e-15)
    assert torch.allclose(parts.gradient(), whole.gradient(), rtol=1e-13, atol=1e-16)
    assert parts.loss() == pytest.approx(whole.loss(), rel=1e-14)


def test_a_counting_rule_of_the_callers_own() -> None:
    model = small()
    x, y = digits(30)
    batches = [{"x": x[:20], "y": y[:20], "weight": 2}, {"x": x[20:], "y": y[20:], "weight": 5}]
    operator = HessianOperator(model, lambda m, b: mse(m, (b["x"], b["y"])), batches, count=lambda b: b["weight"])
    separate = [HessianOperator(model, mse, [(b["x"], b["y"])]).gradient() for b in batches]
    assert operator.samples == 7
    assert torch.allclose(operator.gradient(), (2 * separate[0] + 5 * separate[1]) / 7)


def test_linear_regression_is_exact() -> None:
    rng = np.random.default_rng(0)
    X = torch.tensor(rng.standard_normal((50, 7)))
    model = nn.Linear(7, 1, bias=False, dtype=F64)
    batches = [(X[:32], torch.ones(32, 1, dtype=F64)), (X[32:], torch.ones(18, 1, dtype=F64))]
    operator = HessianOperator(model, lambda m, b: 0.5 * mse(m, b), batches)
    assert torch.allclose(operator @ torch.eye(7, dtype=F64), X.mT @ X / 50, rtol=1e-13, atol=1e-15)


def test_two_layer_linear_network_in_closed_form() -> None:
    # f = b·a·x with scalars: L = ½ mean((b a x − y)²)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    x, y = torch.tensor([[1.0], [2.0]], dtype=F64), torch.tensor([[3.0], [-1.0]], dtype=F64)
    a, b = (p.item() for p in model.parameters())
    xx, xy = float((x * x).mean()), float((x * y).mean())
    cross = 2 * a * b * xx - xy
    expected = torch.tensor([[b * b * xx, cross], [cross, a * a * xx]], dtype=F64)
    H = HessianOperator(model, lambda m, batch: 0.5 * mse(m, batch), [(x, y)])
    assert torch.allclose(H @ torch.eye(2, dtype=F64), expected, rtol=1e-14)


@pytest.mark.parametrize("loss_fn", [mse, cross_entropy])
def test_gauss_newton_is_the_hessian_of_the_linearised_network(loss_fn) -> None:
    model, (x, y) = small(), digits(40)
    base = {name: p.detach() for name, p in model.named_parameters()}

    def flat(values: torch.Tensor) -> torch.Tensor:
        pieces = dict(zip(base, GaussNewtonVector.split(values), strict=True))
        return functional_call(model, pieces, (x,))

    GaussNewtonVector = HessianOperator(model, loss_fn, [(x, y)]).vector
    at = GaussNewtonVector.current()
    J = jacrev(flat)(at)
    z = flat(at)
    H_z = hessian(lambda out: loss_fn(lambda _: out, (x, y)))(z)
    expected = torch.einsum("nip,nimj,mjq->pq", J, H_z, J)
    operator = GaussNewtonOperator(
        model, lambda m, b: m(b[0]), lambda out, b: loss_fn(lambda _: out, b), [(x[:25], y[:25]), (x[25:], y[25:])]
    )
    assert torch.allclose(operator @ torch.eye(len(at), dtype=F64), expected, rtol=1e-10, atol=1e-15)
    full = HessianOperator(model, loss_fn, [(x, y)])
    assert torch.allclose(operator.gradient(), full.gradient(), rtol=1e-12, atol=1e-16)
    assert operator.loss() == pytest.approx(full.loss(), rel=1e-14)


def test_gauss_newton_of_a_linear_loss_is_zero() -> None:
    model, (x, y) = small(), digits(10)
    G = GaussNewtonOperator(model, lambda m, b: m(b[0]), lambda out, b: (out * b[1]).mean(), [(x, y)])
    assert not (G @ torch.ones(G.shape[0], dtype=F64)).any()


def test_restriction_frozen_and_tied_parameters() -> None:
    model, batch = small(), digits(30)
    names = ["2.weight", "2.bias"]
    restricted = HessianOperator(model, mse, [batch], parameters="2")
    assert torch.allclose(
        restricted @ torch.eye(restricted.shape[0], dtype=F64), dense(model, mse, batch, names), rtol=1e-11, atol=1e-15
    )
    for p in model[0].parameters():
        p.requires_grad_(False)
    frozen = HessianOperator(model, mse, [batch])
    assert frozen.vector.names == tuple(names)
    square = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    square[2].weight = square[0].weight
    tied = HessianOperator(square, mse, [batch])
    v = torch.randn(tied.shape[0], dtype=F64)
    step = 1e-5
    differences = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, piece in zip(tied.vector.tensors, tied.vector.split(v), strict=True):
                p.add_(sign * step * piece)
        differences.append(tied.gradient())
        with torch.no_grad():
            for p, piece in zip(tied.vector.tensors, tied.vector.split(v), strict=True):
                p.sub_(sign * step * piece)
    expected = (differences[0] - differences[1]) / (2 * step)
    assert torch.allclose(tied @ v, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [2, 60])
def test_blocks_equal_single_products_stacked_or_looped(size: int) -> None:
    model, (x, y) = small(), digits(60)
    batches = [(x[i : i + size], y[i : i + size]) for i in range(0, 60, size)]
    operator = HessianOperator(model, cross_entropy, batches)
    v = torch.randn(operator.shape[0], 7, dtype=F64)
    block, before = operator @ v, operator.products
    assert before == 7
    single = torch.stack([operator @ v[:, i] for i in range(7)], 1)
    assert torch.allclose(block, single, rtol=1e-11, atol=1e-15)
    assert operator.products == 14


def test_stacked_products_fall_back_to_a_loop_where_vmap_cannot_follow() -> None:
    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, g):
            ctx.save_for_backward(x, g)
            return 2 * x * g

        @staticmethod
        def backward(ctx, v):
            x, g = ctx.saved_tensors
            assert float(v.detach().square().sum()) >= 0.0  # a host value: impossible under vmap
            return 2 * g * v, 2 * x * v

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return Slope.apply(*ctx.saved_tensors, g)

    model, (x, y) = small(), digits(8)
    custom = HessianOperator(model, lambda m, b: Doubled.apply(m(b[0]) - b[1]).mean(), [(x, y)])
    v = torch.randn(custom.shape[0], 6, dtype=F64)
    for _ in range(2):
        assert torch.allclose(custom @ v, HessianOperator(model, mse, [(x, y)]) @ v, rtol=1e-11, atol=1e-15)


def test_held_graphs_give_the_same_products_and_notice_a_step() -> None:
    model, (x, y) = small(), digits(40)
    calls = []

    def counted(m, b):
        calls.append(1)
        return mse(m, b)

    operator = HessianOperator(model, counted, [(x[:20], y[:20]), (x[20:], y[20:])])
    v = torch.randn(operator.shape[0], dtype=F64)
    free = operator @ v
    del calls[:]
    with operator.held():
        for _ in range(3):
            assert torch.equal(operator @ v, free)
        operator.gradient()
        assert len(calls) == 2
        with torch.no_grad():
            model[0].bias.add_(0.1)
        with pytest.raises(InvalidArgument, match="held"):
            operator @ v
        assert not torch.equal(operator @ v, free)  # built anew at the new point
    del calls[:]
    operator @ v
    operator @ v
    assert len(calls) == 4


def test_the_memory_budget_limits_what_is_held() -> None:
    model, (x, y) = small(), digits(40)
    calls = []

    def counted(m, b):
        calls.append(1)
        return mse(m, b)

    operator = HessianOperator(model, counted, [(x[:20], y[:20]), (x[20:], y[20:])], memory_budget=0)
    v = torch.randn(operator.shape[0], dtype=F64)
    operator @ v  # the first product also measures a graph
    del calls[:]
    with operator.held():
        operator @ v
        operator @ v
    assert len(calls) == 4


def loader_without_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([torch.zeros(2)])

    return torch.utils.data.DataLoader(Stream())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "empty"),
        (iter([1]), "only once"),
        ((b for b in [1]), "only once"),
        (loader_without_length(), "no length"),
        (torch.zeros(3, 2), r"\[batch\]"),
        ({"x": torch.zeros(2)}, r"\[batch\]"),
        (3, "no length"),
        ([object()], "count"),
        ([torch.zeros(())], "count"),
        ([torch.zeros(0, 2)], "at least one sample"),
    ],
)
def test_batches_that_cannot_serve_are_refused_by_name(batches, message) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        HessianOperator(small(), mse, batches)
    assert caught.value.name == "batches"


def test_batches_that_change_are_noticed() -> None:
    class Shrinking:
        passes = 0

        def __len__(self):
            return 2

        def __iter__(self):
            self.passes += 1
            return iter([digits(10)] * (2 if self.passes == 1 else 1))

    operator = HessianOperator(small(), mse, Shrinking())
    with pytest.raises(InvalidArgument, match="must be fixed"):
        operator.gradient()


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=True, dtype=F64)

    def forward(self, x):
        return self.table(x.long()[:, 0] % 5)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda m, b: m(b[0]).square().mean() * float("nan"), "got nan; .*not finite"),
        (lambda m, b: m(b[0]).square().mean(0), "must be a scalar"),
        (lambda m, b: m(b[0]).square().mean().detach(), "detached"),
        (lambda m, b: m(b[0]).square().mean().item(), "scalar tensor"),
        (lambda m, b: Once.apply(m(b[0])).square().mean(), "once_differentiable"),
        (lambda m, b: b[0].clone().requires_grad_().sum(), "depends on none"),
    ],
)
def test_losses_that_cannot_serve_are_refused_by_name(loss_fn, message) -> None:
    operator = HessianOperator(small(), loss_fn, [digits(10)])
    with pytest.raises(InvalidArgument, match=message):
        operator @ torch.ones(operator.shape[0], dtype=F64)


def test_a_diverged_loss_can_be_read() -> None:
    operator = HessianOperator(small(), lambda m, b: mse(m, b) / 0.0, [digits(10)])
    with operator.held():
        assert operator.loss() == float("inf")
        with pytest.raises(InvalidArgument, match="not finite"):
            operator.gradient()


def test_sparse_gradients_are_refused() -> None:
    operator = HessianOperator(Embedding(), lambda m, b: m(b[0]).square().mean(), [digits(10)])
    with pytest.raises(InvalidArgument, match="sparse"):
        operator.gradient()


def test_unused_parameters_and_linear_losses_have_zero_curvature() -> None:
    model = nn.ModuleDict({"used": nn.Linear(12, 1), "idle": nn.Linear(2, 1)}).double()
    operator = HessianOperator(model, lambda m, b: m["used"](b[0]).mean(), [digits(10)])
    assert not (operator @ torch.ones(operator.shape[0], dtype=F64)).any()
    assert not operator.gradient()[operator.vector.slices["idle.weight"]].any()


def test_attention_and_compiled_modules_are_differentiated_twice_anyway() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(4, 4, dtype=F64)

        def forward(self, x):
            q = self.project(x.reshape(-1, 3, 4))
            return nn.functional.scaled_dot_product_attention(q, q, q).flatten(1)

    model, (x, _) = Attention(), digits(6)

    def loss_fn(m, b):
        return m(b).square().mean()

    H = HessianOperator(model, loss_fn, [x])
    e = torch.eye(H.shape[0], dtype=F64)
    product = H @ e
    assert torch.allclose(product, product.mT, atol=1e-14)
    assert product.any()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    assert torch.allclose(HessianOperator(compiled, loss_fn, [x]) @ e, product, atol=1e-14)


def test_operators_work_inside_no_grad_and_inference_mode() -> None:
    model, batch = small(), digits(20)
    operator = HessianOperator(model, mse, [batch])
    v = torch.randn(operator.shape[0], dtype=F64)
    expected = operator @ v
    with torch.no_grad():
        assert torch.equal(operator @ v, expected)
    with torch.inference_mode():
        assert torch.equal(operator @ v, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator @ v, expected)


def test_distributed_is_refused_by_name(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/rendezvous")
    try:
        with pytest.raises(InvalidArgument, match=r"torch\.distributed"):
            HessianOperator(small(), mse, [digits(10)])
    finally:
        torch.distributed.destroy_process_group()


def test_fused_attention_forced_by_the_loss_is_refused_with_its_remedy() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    projection = nn.Linear(4, 4)

    def loss_fn(m, b):
        q = m(b).reshape(1, 2, 8, 4)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return nn.functional.scaled_dot_product_attention(q, q, q).square().mean()

    operator = HessianOperator(projection, loss_fn, [torch.randn(16, 4)])
    with pytest.raises(InvalidArgument, match=r"sdpa_kernel\(SDPBackend\.MATH\)"):
        operator @ torch.ones(operator.shape[0])


def test_other_missing_derivatives_are_refused_and_other_errors_pass() -> None:
    def failing(message):
        def loss_fn(m, b):
            raise RuntimeError(message)

        return HessianOperator(small(), loss_fn, [digits(5)])

    with pytest.raises(InvalidArgument, match="write it with differentiable ones"):
        failing("derivative for aten::some_backward is not implemented").gradient()
    with pytest.raises(InvalidArgument, match="before a step"):
        failing("one of the variables has been modified by an inplace operation").gradient()
    with pytest.raises(RuntimeError, match="shapes"):
        failing("mat1 and mat2 shapes cannot be multiplied").gradient()


@pytest.mark.parametrize(
    ("output_fn", "message"),
    [(lambda m, b: (m(b[0]),), "one tensor"), (lambda m, b: m(b[0]).detach(), "depend on the parameters")],
)
def test_outputs_that_cannot_serve_are_refused_by_name(output_fn, message) -> None:
    operator = GaussNewtonOperator(small(), output_fn, lambda z, b: z.mean(), [digits(5)])
    with pytest.raises(InvalidArgument, match=message):
        operator.gradient()
