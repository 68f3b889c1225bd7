"""digits-mlp as the figures use it: checkpoints of a run, and reference eigenvectors in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from etastar.network import HessianOperator, SymmetricOperator

RANK, STEP_SIZE, BATCH, WARM_UP = 10, 0.1, 50, 1000


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The digits, standardised per pixel; targets one-hot."""
    digits = load_digits()
    x = torch.tensor(digits.data)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
    return x.to(dtype), nn.functional.one_hot(torch.tensor(digits.target), 10).to(dtype)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10)
    return nn.Sequential(*layers).to(dtype)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """½ squared error, summed over the outputs."""
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(1).mean()


def operator(model: nn.Module, batch: tuple[Tensor, Tensor]) -> HessianOperator:
    """All samples in one batch, as the peers get them."""
    return HessianOperator(model, loss_fn, [batch])


def checkpoints(spacing: int, count: int) -> Iterator[Tensor]:
    """Parameters along a run of SGD, every `spacing` steps after the warm-up."""
    model, (x, y) = network(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=STEP_SIZE)
    generator = torch.Generator().manual_seed(0)
    for step in range(WARM_UP + spacing * (count - 1) + 1):
        if step >= WARM_UP and (step - WARM_UP) % spacing == 0:
            yield nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        rows = torch.randint(0, len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()


@dataclass(frozen=True, slots=True)
class Krylov:
    """Lanczos with full re-orthogonalisation, from cold; every prefix of it is a shorter run."""

    basis: Tensor
    projected: Tensor

    @classmethod
    def of(cls, matrix: SymmetricOperator, steps: int) -> Krylov:
        vector = torch.randn(matrix.shape[0], generator=torch.Generator().manual_seed(1), dtype=matrix.dtype)
        rows, images = [vector / vector.norm()], []
        for _ in range(steps):
            image = matrix @ rows[-1][:, None]
            images.append(image[:, 0])
            known, rest = torch.stack(rows), image[:, 0].clone()
            for _ in range(2):
                rest -= known.mT @ (known @ rest)
            rows.append(rest / rest.norm())
        basis = torch.stack(rows[:steps], 1)
        return cls(basis, basis.mT @ torch.stack(images, 1))

    def top(self, rank: int, steps: int) -> Tensor:
        """The top eigenvectors after `steps` products."""
        _, vectors = torch.linalg.eigh(self.projected[:steps, :steps].double())
        return self.basis[:, :steps] @ vectors.flip(1)[:, :rank].to(self.basis.dtype)


def error(basis: Tensor, reference: Tensor) -> float:
    """‖(I − V Vᵀ) V*‖_F / √k."""
    basis = basis.double()
    return float((reference - basis @ (basis.mT @ reference)).norm()) / reference.shape[1] ** 0.5


@dataclass(frozen=True, slots=True)
class Run:
    """A model to move along its checkpoints, with the truth at each."""

    points: list[Tensor]
    references: list[Tensor]

    @classmethod
    def of(cls, spacing: int, count: int) -> Run:
        points = list(checkpoints(spacing, count))
        model, batch = network(torch.float64), data(torch.float64)
        matrix, references = operator(model, batch), []
        for point in points:
            move(model, point.double())
            with matrix.held():
                references.append(Krylov.of(matrix, 110).top(RANK, 110))
        return cls(points, references)


def move(model: nn.Module, point: Tensor) -> None:
    with torch.no_grad():
        nn.utils.vector_to_parameters(point, model.parameters())
