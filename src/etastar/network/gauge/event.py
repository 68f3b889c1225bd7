"""A second point: the products that one gradient more, where a step began, makes possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.gauge.vectors import Layout, dense
from etastar.network.isolation import aside, moved

__all__ = ["coupling_of", "gradient_aside", "read_gradients", "same_batch_after", "second_point"]

_SAME = 1e-3  # relative difference up to which u counts as lr·g, before rounding of the parameters
_SAME_AT_MOST = 0.05


def gradient_aside(
    closure: Callable[[], Any], tensors: Sequence[Tensor], seed: int, model: torch.nn.Module | None
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss that `closure` returns and its gradient, without a trace in the run.

    Raises:
        InvalidArgument: The closure returns no scalar with a graph to the parameters.
    """
    with aside(model, {tensor.device for tensor in tensors}, seed):
        loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            remedy = "the function must return the mean loss, a scalar tensor with its graph, and not call backward()"
            raise InvalidArgument("second", loss, remedy)
        found: Sequence[Tensor | None] = torch.autograd.grad(loss.reshape(()), tensors, allow_unused=True)
    return loss.detach().reshape(()), [dense(g) for g in found]


def second_point(
    layout: Layout, update: Sequence[Tensor], second: Sequence[Tensor], here: Tensor, gradient: Tensor, step: Tensor
) -> list[Tensor]:
    """What can be known at the end of the step; ⟨g', g⁺⟩ is still to come.

    Args:
        layout: The parameters, already moved.
        update: u, parameters before minus after.
        second: g', independent of u.
        here: ⟨g', g⟩.
        gradient: ‖g‖².
        step: lr.

    Returns:
        ⟨u, g'⟩, ⟨g', g⟩, ‖u‖², ‖g‖², whether u differs from lr·g, and lr; ``(L + 1,)`` each.
    """
    slope, energy = layout.dots(update, second), layout.norms(update)
    size = torch.sqrt(energy * layout.norms(second))
    eps = max(torch.finfo(t.dtype).eps for t in layout.tensors)
    rounding = torch.nan_to_num(eps * torch.sqrt(layout.norms(layout.tensors) / energy), nan=0.0)
    tolerance = (_SAME + rounding).clamp(max=_SAME_AT_MOST)
    # By length and by one product: g itself is no longer there. Then the identities of plain SGD are void.
    by_length = (energy - step**2 * gradient).abs() > tolerance * energy
    by_product = (slope - step * here).abs() > tolerance * size
    differs = (by_length | by_product | (step != step[0]) | (step <= 0)).to(energy.dtype)
    differs[-1] = 0.0
    return [slope, here, energy, gradient, differs, step]


def same_batch_after(
    layout: Layout,
    update: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor | None],
    loss_change: Tensor,
    step: Tensor,
) -> list[Tensor]:
    """Curvature along u from one batch at both ends of the step, whose noise cancels: ⟨u, g' − g'⁺⟩ ≈ ⟨u, Hu⟩.

    Returns:
        That, the loss change on the batch less its trapezoid (in the first entry), and lr; ``(L + 1,)`` each.
    """
    along = layout.dots(update, _difference(before, after))
    trapezoid = 0.5 * along[:-1].sum() - layout.dots(update, before)[:-1].sum()
    gap = torch.zeros_like(along)
    gap[0] = loss_change.to(gap) - trapezoid
    return [along, gap, step]


def coupling_of(
    layout: Layout,
    update: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor | None],
    between: Callable[[], tuple[Tensor, list[Tensor | None]]],
) -> Tensor:
    """What each of Pu and Qu adds to the other's curvature on one batch: zero where P is invariant, large where stale.

    ⟨Pu, HQu⟩ and ⟨Qu, HPu⟩ are equal only at one point. H turns over a step, by T[Pu, Pu, ·], which is nothing to the
    dominant curvature and a tenth or two of the bulk's: so each is measured, and what is left to the bulk is exactly
    ⟨Qu, ∇L(θ) − ∇L(θ − Qu)⟩, the curvature that the projected update meets.

    Args:
        layout: The parameters, already moved, with a basis.
        update: u.
        before: g', the batch's gradient at θ.
        after: g'⁺, the batch's gradient at θ − u.
        between: That gradient at the parameters as they are, to be called at θ − Qu.

    Returns:
        ``(L + 1,)``: per parameter for both together, and ⟨Pu, HQu⟩ in the entry of the subspace.
    """
    inside = layout.inside(update)
    rest = [x - y for x, y in zip(update, inside, strict=True)]
    with moved(layout.tensors, inside):
        _, middle = between()
    return layout.dots(rest, _difference(middle, after)) + layout.dots(inside, _difference(before, middle))


def read_gradients(source: Sequence[Tensor | None], layout: Layout, scale: float | Tensor) -> list[Tensor | None]:
    """Gradients handed over, checked and unscaled."""
    shapes = [None if g is None else tuple(g.shape) for g in source]
    wanted = [tuple(t.shape) for t in layout.tensors]
    if len(shapes) != len(wanted) or any(s not in (None, w) for s, w in zip(shapes, wanted, strict=True)):
        raise InvalidArgument(
            "second", shapes, "give one gradient per tensor of gauge.parameters, of its shape, or None"
        )
    inverse = 1.0 / scale
    return [None if g is None else g * inverse for g in map(dense, source)]


def _difference(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [x if y is None else (-y if x is None else x - y) for x, y in zip(a, b, strict=True)]
