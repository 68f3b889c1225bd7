"""The span of the Hessian's top eigenvectors, followed along a run at few products a refresh.

A refresh multiplies the k vectors it carries, lets the model of `explored` correct them with everything else it
carries, unmultiplied, and then explores the leading direction of that correction, one product at a time, until the
estimated error is below the tolerance. From a cold start this is Lanczos with full re-orthogonalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.batches import whole_number
from etastar.network.certificate import angle_bound, eigenvalue_shift
from etastar.network.explored import ExploredSpace, Model, SymmetricOperator
from etastar.network.search import Goal, Search, Stop

__all__ = ["Goal", "Subspace", "SubspaceOutcome", "SubspaceTracker"]

_CLUSTER = 1e-3  # of |λ_k|: a relative gap below which no product count separates the two sides of the cut
_EQUAL = 1e-4  # of λ₁: eigenvalues as close as this may be copies of one
_CLEAN = 0.05  # of |λ_k|: a relative gap that makes a natural cut
_COLD = 0.1  # of the tolerance: a cold start is nearly as cheap that far, and later refreshes live off its guards
_PROBES = 2  # products of a warm refresh beyond rank: what the error estimate is learnt from
_RESPONSES = torch.tensor([0.3, 0.1, 1.0], dtype=torch.float64)  # κ of each kind before anything was measured


class SubspaceOutcome(Enum):
    """How a refresh ended; the value says what to do about it."""

    CONVERGED = "the estimated error is below the tolerance"
    GOAL = "what is left of the error matters less than the noise of the goal"
    BUDGET = "max_products were spent first: refresh again, which continues from here, or allow more"
    CLUSTERED = "the rank cuts through a cluster of eigenvalues, so the subspace is arbitrary there: use clean_rank"
    FLAT = "the curvature is zero: there is no dominant subspace at these parameters"
    NOT_FINITE = "a product was not finite: the run has diverged; the last basis is kept for the next refresh"


@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """The span of the top k eigenvectors at one point of a run, with its certificate.

    Attributes:
        basis: Orthonormal, ``(P, k)``; column i belongs to ``eigenvalues[i]``.
        eigenvalues: λ₁ ≥ … ≥ λ_k by algebraic value, float64 on the CPU, ``(k,)``, [loss/parameter²].
        residuals: ‖H z − μ z‖ of the Ritz pairs that `basis` corrects; known exactly, ``(k,)``, the same unit.
        guards: λ_{k+1} and the next ones, estimated, ``(guards,)``; fewer where P allows no more.
        gap: λ_k − λ_{k+1}, estimated; NaN without a guard.
        next_bound: What λ_{k+1} is taken not to exceed by `angle_bound`.
        error: Estimate of ‖(I − V Vᵀ) V*‖_F / √k, the root mean square sine of the principal angles to the truth.
        angle_bound: Bound on the largest principal angle, [rad], conditional on the guards: on λ_{k+1} ≤ next_bound.
            π/2, no bound at all, where the gap is not resolved; that takes a finer tolerance than the error does.
        products: Products with single vectors that this refresh spent.
        outcome: How it ended.
        clean_rank: With CLUSTERED, the nearest rank at a natural cut among the eigenvalues known, or None.
    """

    basis: Tensor = field(repr=False)
    eigenvalues: Tensor
    residuals: Tensor = field(repr=False)
    guards: Tensor = field(repr=False)
    gap: float
    next_bound: float
    error: float
    angle_bound: float
    products: int
    outcome: SubspaceOutcome
    clean_rank: int | None = None

    @property
    def rank(self) -> int:
        """The dimension k."""
        return self.basis.shape[1]

    @property
    def converged(self) -> bool:
        """Whether the tolerance or the goal was met at a cut that means something."""
        return self.outcome in (SubspaceOutcome.CONVERGED, SubspaceOutcome.GOAL)


class SubspaceTracker:
    """Follows the top k eigenvectors of an operator, by algebraic value, from refresh to refresh.

    Between refreshes it holds `carry` vectors of P entries; during one, as many more as it spends products.

    Args:
        operator: The curvature: a square tensor, or an object with ``shape``, ``dtype``, ``device`` and ``@``.
        rank: k, at least 1 and less than P.
        guards: Eigenvalues below λ_k to report and to judge the cut by.
        carry: Vectors to remember between refreshes, k included; 3k unless given. Only k of them are multiplied.
        max_products: What one refresh may spend.
        start: Random vectors to start from cold, at least 2: more where the operator has multiple eigenvalues.
        seed: Of the random vectors, from a stream of the tracker's own.

    Raises:
        InvalidArgument: A rank outside 1 … P − 1, or fewer products than rank + 1.

    Example:
        >>> s = SubspaceTracker(torch.diag(torch.arange(9.0)), rank=2).refresh()
        >>> s.eigenvalues.round().tolist(), s.outcome.name
        ([8.0, 7.0], 'CONVERGED')
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        rank: int,
        guards: int = 3,
        *,
        carry: int | None = None,
        max_products: int = 200,
        start: int = 2,
        seed: int = 0,
    ) -> None:
        self.operator = operator
        size = operator.shape[0]
        self.rank = whole_number("rank", rank, 1, size - 1)
        self.guards = min(whole_number("guards", guards, 1), size - rank)
        least = rank + self.guards
        self._carry = min(whole_number("carry", max(3 * rank, least) if carry is None else carry, least), size)
        self._max_products = whole_number("max_products", max_products, rank + 1)
        self._start = min(whole_number("start", start, 2), size, max_products)
        self._generator = torch.Generator().manual_seed(seed)
        self._carried: Tensor | None = None
        self._values = torch.zeros(0, dtype=torch.float64)
        self._responses = _RESPONSES

    @property
    def basis(self) -> Tensor | None:
        """The top k vectors as last refreshed, orthonormal, ``(P, k)``; a view, not a copy. None before the first."""
        return None if self._carried is None else self._carried[:, : self.rank]

    @property
    def eigenvalues(self) -> Tensor:
        """Of the basis as last refreshed, descending, float64, ``(k,)``; empty before the first."""
        return self._values[: self.rank]

    def refresh(self, tolerance: float = 1e-2, goal: Goal | None = None) -> Subspace:
        """The top subspace of the operator as it is now.

        Args:
            tolerance: Error to stop at, estimated: the root mean square sine of the principal angles to the truth.
            goal: Stop a warm refresh earlier, where what is left matters less than this goal's noise.

        Raises:
            InvalidArgument: A tolerance of 1 or more, or of round-off, or whatever the operator refuses.
        """
        least = 128 * torch.finfo(self.operator.dtype).eps
        if not least <= tolerance < 1:
            raise InvalidArgument(
                "tolerance", tolerance, f"must lie between {least:.1e} and 1 in {self.operator.dtype}"
            )
        held: Callable[[], AbstractContextManager[object]] = getattr(self.operator, "held", nullcontext)
        with held():
            search, stop, spent = self._warm(tolerance, goal) if self._carried is not None else self._cold(tolerance)
        if stop is Stop.NOT_FINITE or search.model is None:
            return self._not_finite(spent)
        self._remember(search, search.model)
        return self._conclude(search, search.model, stop, spent)

    def _warm(self, tolerance: float, goal: Goal | None) -> tuple[Search, Stop, int]:
        assert self._carried is not None  # noqa: S101  # warm
        space = ExploredSpace(self.operator, self._carried, self._values)
        search = Search(space, self.rank, self._responses, self._random)
        least = min(self.rank + _PROBES, self.operator.shape[0], self._max_products)
        stop = search.run(self.rank, least, self._max_products, tolerance, goal)
        return search, stop, space.products

    def _cold(self, tolerance: float) -> tuple[Search, Stop, int]:
        """Lanczos from a few random vectors; from more, where as many eigenvalues as those come out equal.

        From s vectors no more than s copies of a multiple eigenvalue can be found: fewer prove it complete.
        """
        size, spent, start = self.operator.shape[0], 0, self._start
        while True:
            vectors = torch.linalg.qr(torch.stack([self._random() for _ in range(start)], 1))[0]
            space = ExploredSpace(self.operator, vectors, self._values[:0])
            search = Search(space, self.rank, _RESPONSES, self._random)
            least = min(self.rank + 1, size)
            stop = search.run(start, least, self._max_products - spent, _COLD * tolerance, None)
            spent += space.products
            if stop in (Stop.NOT_FINITE, Stop.BUDGET) or search.model is None or start == size:
                return search, stop, spent
            if _copies(search.model.values[: self.rank + 1]) < start:
                return search, stop, spent
            start = min(2 * start, size)
            if spent + max(start, self.rank + 1) > self._max_products:
                return search, Stop.BUDGET, spent

    def state_dict(self) -> dict[str, Any]:
        """What the next refresh depends on; restored by `load_state_dict` it continues bit for bit."""
        return {
            "rank": self.rank,
            "carried": None if self._carried is None else self._carried.clone(),
            "values": self._values.clone(),
            "responses": self._responses.clone(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            InvalidArgument: Of another operator, rank or dtype, or not a state at all.
        """
        try:
            carried, values, responses, generator = (
                state[key] for key in ("carried", "values", "responses", "generator")
            )
        except (KeyError, TypeError):
            raise InvalidArgument("state", state, "must come from SubspaceTracker.state_dict()") from None
        if (rank := state.get("rank", self.rank)) != self.rank:
            raise InvalidArgument("state", f"of rank {rank}", f"must be of rank {self.rank}")
        if carried is not None:
            size, dtype = self.operator.shape[0], self.operator.dtype
            fits = carried.ndim == 2 and carried.shape[0] == size and carried.shape[1] == values.numel() >= self.rank
            if not fits or carried.dtype != dtype:
                allowed = f"must carry {self.rank} vectors of {size} entries, {dtype}"
                raise InvalidArgument("state", f"{tuple(carried.shape)}, {carried.dtype}", allowed)
            carried = carried.to(self.operator.device, copy=True)
        self._carried, self._values = carried, values.clone()
        self._responses = responses.clone()
        self._generator.set_state(generator)

    def _random(self) -> Tensor:
        # Drawn on the CPU, so that every device starts from the same vectors.
        return torch.randn(self.operator.shape[0], generator=self._generator, dtype=torch.float64).to(
            self.operator.device, self.operator.dtype
        )

    def _remember(self, search: Search, model: Model) -> None:
        count = min(self._carry, model.values.numel())
        signs = torch.where(model.vectors.diagonal()[:count] < 0, -1.0, 1.0)  # along what was carried, not against
        carried = search.space.vectors(signs * model.vectors[:, :count])
        # One Newton-Schulz step: orthonormal to round-off again, however many refreshes came before.
        correction = 1.5 * torch.eye(count, dtype=carried.dtype, device=carried.device) - 0.5 * (carried.mT @ carried)
        self._carried = (correction @ carried.mT).mT  # column by column in memory, as products want them
        self._values = model.values[:count].clone()
        self._responses = search.estimate.first_responses

    def _conclude(self, search: Search, model: Model, stop: Stop, spent: int) -> Subspace:
        rank, values = self.rank, model.values
        guards = values[rank : rank + self.guards].clone()
        shift = eigenvalue_shift(model, rank)
        roundoff = 16 * torch.finfo(self.operator.dtype).eps * float(values.abs().max())
        next_bound = float(guards[0]) + shift + roundoff
        outcome = self._outcome(stop, values, roundoff)
        assert self._carried is not None  # noqa: S101  # just remembered
        return Subspace(
            basis=self._carried[:, :rank].clone(),
            eigenvalues=values[:rank].clone(),
            residuals=model.residuals[:, :rank].norm(dim=0),
            guards=guards,
            gap=float(values[rank - 1] - guards[0]),
            next_bound=next_bound,
            error=search.estimate.value,
            angle_bound=angle_bound(model, rank, next_bound, roundoff),
            products=spent,
            outcome=outcome,
            clean_rank=_clean_rank(values[: rank + self.guards], rank)
            if outcome is SubspaceOutcome.CLUSTERED
            else None,
        )

    def _outcome(self, stop: Stop, values: Tensor, roundoff: float) -> SubspaceOutcome:
        least, following = float(values[self.rank - 1]), float(values[self.rank])
        if float(values.abs().max()) == 0:
            return SubspaceOutcome.FLAT
        if least - following <= _CLUSTER * abs(least) + roundoff:
            return SubspaceOutcome.CLUSTERED
        ends = {Stop.TOLERANCE: SubspaceOutcome.CONVERGED, Stop.GOAL: SubspaceOutcome.GOAL}
        return ends.get(stop, SubspaceOutcome.BUDGET)

    def _not_finite(self, products: int) -> Subspace:
        nan = torch.full((self.rank,), math.nan, dtype=torch.float64)
        basis = torch.full((self.operator.shape[0], self.rank), math.nan, dtype=self.operator.dtype)
        return Subspace(
            basis=basis.to(self.operator.device),
            eigenvalues=nan,
            residuals=nan.clone(),
            guards=nan[:0].clone(),
            gap=math.nan,
            next_bound=math.nan,
            error=math.nan,
            angle_bound=math.pi / 2,
            products=products,
            outcome=SubspaceOutcome.NOT_FINITE,
        )


def _copies(values: Tensor) -> int:
    """The size of the largest group of equal values, 0 apart; equal means to 10⁻⁴ of the largest."""
    scale = float(values.abs().max())
    present = values[values.abs() > _EQUAL * scale]
    near = (present[:, None] - present).abs() <= _EQUAL * scale
    return int(near.sum(1).max()) if present.numel() else 0


def _clean_rank(values: Tensor, rank: int) -> int | None:
    """Another rank, the nearest, below which the eigenvalues drop by 5 % or more; the smaller of two as near."""
    drops = (values[:-1] - values[1:]) / values[:-1].abs().clamp_min(_EQUAL * float(values.abs().max()))
    clean = [index + 1 for index, drop in enumerate(drops.tolist()) if drop >= _CLEAN and index + 1 != rank]
    return min(clean, key=lambda candidate: abs(candidate - rank), default=None)
