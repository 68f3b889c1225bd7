"""Training inside the dominant subspace, outside it, or at a fixed rate in each: any optimizer, its update scaled.

Dom-SGD and Bulk-SGD of Song, Ahn and Yun (arXiv 2405.16002) project each gradient; here it is the *update* that is
projected, so that momentum and Adam cannot leak out. Two fixed factors are the rule of BSFA (arXiv 2510.25244).
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from etastar.errors import InvalidArgument
from etastar.network.batches import whole_number
from etastar.network.parameters import ParameterVector
from etastar.network.subspace import SubspaceTracker
from etastar.network.wrapped import Correction, WrappedOptimizer

__all__ = ["ProjectedOptimizer", "ScaledOptimizer"]

_FACTORS = {"dominant": (1.0, 0.0), "bulk": (0.0, 1.0)}


class ScaledOptimizer(WrappedOptimizer):
    """Scales the update of any optimizer by one fixed factor in the dominant subspace and another in the bulk.

    The rule of BSFA (Zhou et al., arXiv 2510.25244), which takes its subspace from past updates instead. Everything
    that the inner step does to the tracked parameters is scaled, weight decay included; parameters that the tracker's
    operator does not cover move as the inner optimizer moves them.

    Args:
        inner: Any optimizer; its groups, state and defaults are shared.
        tracker: Of the dominant subspace, over a curvature operator of the model being trained.
        dominant: Factor of the update's dominant part.
        bulk: Factor of the rest.
        every: Steps between refreshes of the basis, each before the inner step; None leaves them to the caller:
            ``tracker.refresh()``, or a meter that owns the tracker.
        tolerance: Of each refresh, see `SubspaceTracker.refresh`.

    Raises:
        InvalidArgument: A tracker of a bare matrix, covered parameters that `inner` does not hold or, at a step, that
            were frozen since; factors that are negative or not finite; a step without any basis.

    Example:
        >>> from etastar.network import HessianOperator
        >>> model, data = torch.nn.Linear(3, 1), [(torch.randn(8, 3), torch.randn(8, 1))]
        >>> operator = HessianOperator(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), data)
        >>> inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = ScaledOptimizer(inner, SubspaceTracker(operator, rank=1), dominant=0.1, bulk=2.0, every=25)
        >>> optimizer.param_groups is inner.param_groups
        True
    """

    _SAVED = ("tracker", "steps")

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        tracker: SubspaceTracker,
        *,
        dominant: float,
        bulk: float,
        every: int | None = 1,
        tolerance: float = 1e-2,
    ) -> None:
        super().__init__(inner)
        vector = getattr(tracker.operator, "vector", None)
        if not isinstance(vector, ParameterVector):
            remedy = "must track an operator over a model's parameters: HessianOperator or GaussNewtonOperator"
            raise InvalidArgument("tracker", type(tracker.operator).__name__, remedy)
        for name, factor in (("dominant", dominant), ("bulk", bulk)):
            if not 0 <= factor < float("inf"):
                raise InvalidArgument(name, factor, "must be finite and not negative")
        self.tracker, self.every = tracker, None if every is None else whole_number("every", every, 1)
        self.tolerance = tolerance
        self._vector, self._factors, self._steps = vector, (dominant, bulk), 0
        self._require(vector)

    def _begin(self) -> Correction:
        self._require(self._vector)
        if self.every is not None and self._steps % self.every == 0:
            self.tracker.refresh(self.tolerance)
        basis = self.tracker.basis
        if basis is None and self.every is None:
            raise InvalidArgument("tracker", "no basis yet", "call tracker.refresh() first, or give `every`")
        if basis is None:
            raise InvalidArgument("tracker", "no basis", "its products are not finite: the loss has no curvature here")
        return Correction(self._vector, basis, *self._factors)

    def _end(self) -> None:
        self._steps += 1

    def _own_state(self) -> dict[str, Any]:
        return {"tracker": self.tracker.state_dict(), "steps": self._steps}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.tracker.load_state_dict(state["tracker"])
        self._steps = int(state["steps"])


class ProjectedOptimizer(ScaledOptimizer):
    """Projects the update of any optimizer onto the dominant subspace or onto its complement, the bulk.

    With plain SGD these are the Dom-SGD and Bulk-SGD of Song, Ahn and Yun (arXiv 2405.16002). What is said of
    `ScaledOptimizer` holds here with the factors 1 and 0.

    Args:
        inner: Any optimizer; its groups, state and defaults are shared.
        tracker: Of the dominant subspace, over a curvature operator of the model being trained.
        onto: "dominant" or "bulk".
        every: Steps between refreshes of the basis; None leaves them to the caller.
        tolerance: Of each refresh.

    Raises:
        InvalidArgument: Another `onto`; whatever `ScaledOptimizer` refuses.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        tracker: SubspaceTracker,
        onto: Literal["dominant", "bulk"],
        *,
        every: int | None = 1,
        tolerance: float = 1e-2,
    ) -> None:
        if onto not in _FACTORS:
            raise InvalidArgument("onto", onto, 'must be "dominant" or "bulk"')
        dominant, bulk = _FACTORS[onto]
        super().__init__(inner, tracker, dominant=dominant, bulk=bulk, every=every, tolerance=tolerance)
        self.onto = onto
