"""The waist: one step of SGD is judged from a handful of moments, and this is their record.

Quadratics, simulations and networks all produce a ``SplitMoments``; every criterion consumes one.
For a projector S (onto the dominant subspace or onto its complement, the bulk), gradient g, Hessian H
and gradient-noise covariance Σ (theory: moments indexed by the power of H)::

    signal   zeroth ⟨Sg, g⟩     first ⟨Sg, Hg⟩      second ‖S H g‖²
    noise    zeroth tr(SΣ)      first tr(SHΣ)       second tr(SHΣH)

Nothing here demands positivity: unbiased estimates of these numbers may be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument

__all__ = ["Coupling", "CurvatureMoments", "Descent", "SplitMoments", "SubspaceMoments"]

Array = npt.NDArray[np.float64]
ArrayFunction = Callable[[Array], Any]
Record = TypeVar("Record", bound="_Record")


class _Record:
    """What the four records share: float64 fields, one batch shape, element-wise mapping."""

    __slots__ = ()

    def leaves(self) -> list[Array]:
        """All arrays of the record, in the order of its fields."""
        found: list[Array] = []
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, _Record):
                found += value.leaves()
            elif value is not None:
                found.append(value)
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """The batch shape: what the arrays of the record broadcast to."""
        return np.broadcast_shapes(*(leaf.shape for leaf in self.leaves()))

    def map(self: Record, function: ArrayFunction) -> Record:
        """The same record with `function` applied to every array, broadcast to the batch shape first.

        Args:
            function: Takes an array of the batch shape, returns an array: an index, a mean, a scaling.
        """
        return self._map(function, self.shape)

    def _map(self: Record, function: ArrayFunction, shape: tuple[int, ...]) -> Record:
        def convert(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, _Record):
                return value._map(function, shape)
            return function(np.broadcast_to(value, shape))

        return type(self)(*(convert(getattr(self, field.name)) for field in fields(self)))  # pyright: ignore[reportArgumentType]

    def __getitem__(self: Record, index: Any) -> Record:
        return self.map(lambda array: array[index])

    def mean(self: Record, axis: int | tuple[int, ...] = 0) -> Record:
        """Moments averaged over batch axes: what windowed ratios must be formed from.

        Raises:
            InvalidArgument: An empty batch, which has no mean.
        """
        if 0 in self.shape:
            raise InvalidArgument("batch shape", self.shape, "an empty batch of moments has no mean")
        with np.errstate(over="ignore", invalid="ignore"):
            return self.map(lambda array: array.mean(axis=axis))

    def _to_float64(self) -> None:
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, _Record) or (value is None and field.default is None):
                continue
            object.__setattr__(self, field.name, real_array(field.name, value))
        try:
            _ = self.shape
        except ValueError:
            shapes = [leaf.shape for leaf in self.leaves()]
            raise InvalidArgument(type(self).__name__, shapes, "fields must broadcast to one batch shape") from None


@dataclass(frozen=True, slots=True)
class CurvatureMoments(_Record):
    """Three moments of one vector or covariance in one subspace, indexed by the power of H.

    Attributes:
        zeroth: ⟨Sg, g⟩ or tr(SΣ), shape ``(*batch)``, [loss²/parameter²].
        first: ⟨Sg, Hg⟩ or tr(SHΣ), shape ``(*batch)``, [loss³/parameter⁴].
        second: ‖SHg‖² or tr(SHΣH), shape ``(*batch)``, [loss⁴/parameter⁶].

    Raises:
        InvalidArgument: A field is not real-valued, or the shapes do not broadcast.
    """

    zeroth: Array
    first: Array
    second: Array

    def __post_init__(self) -> None:
        self._to_float64()


@dataclass(frozen=True, slots=True)
class Descent(_Record):
    """Moments of an update direction h that is not the gradient (momentum, a preconditioner).

    Attributes:
        slope: ⟨Sg, h⟩, shape ``(*batch)``: the first-order decrease of the loss.
        curvature: ⟨Sh, H S h⟩, shape ``(*batch)``: its second-order part.
    """

    slope: Array
    curvature: Array

    def __post_init__(self) -> None:
        self._to_float64()


@dataclass(frozen=True, slots=True)
class Coupling(_Record):
    """What an inexact, hence not H-invariant, subspace adds: zero for exact eigenvectors.

    Attributes:
        signal: ⟨Pg, H Qg⟩ (⟨Ph, H Qh⟩ for an update direction h), shape ``(*batch)``.
        noise: tr(P H Q Σ), shape ``(*batch)``.
    """

    signal: Array
    noise: Array

    def __post_init__(self) -> None:
        self._to_float64()


@dataclass(frozen=True, slots=True)
class SubspaceMoments(_Record):
    """The moments of one step in one subspace.

    Attributes:
        signal: Moments of the gradient. With `descent`, ``first`` is ⟨Sg, Hh⟩ and ``second`` ‖SHh‖².
        noise: Moments of the covariance of the noise that the update carries.
        descent: Only where the update direction h is not the gradient.
    """

    signal: CurvatureMoments
    noise: CurvatureMoments
    descent: Descent | None = None

    def __post_init__(self) -> None:
        _require(self.signal, CurvatureMoments, "signal")
        _require(self.noise, CurvatureMoments, "noise")
        if self.descent is not None:
            _require(self.descent, Descent, "descent")
        self._to_float64()

    @property
    def slope(self) -> Array:
        """First-order decrease of the loss per unit step, ⟨Sg, h⟩ (h = g without `descent`)."""
        return self.signal.zeroth if self.descent is None else self.descent.slope

    @property
    def bend(self) -> Array:
        """Second-order part of the loss along the update before coupling: ⟨Sg, Hg⟩ or ⟨Sh, H S h⟩."""
        return self.signal.first if self.descent is None else self.descent.curvature


@dataclass(frozen=True, slots=True)
class SplitMoments(_Record):
    """The moments of one step, split into the dominant subspace and the bulk.

    All fields broadcast against each other; the common shape is ``(*batch)``.

    Attributes:
        dominant: Moments in the span of the top k eigenvectors.
        bulk: Moments in its complement.
        coupling: Only for an inexact subspace.

    Example:
        >>> from etastar import CurvatureMoments, SplitMoments, SubspaceMoments
        >>> quiet = CurvatureMoments(0.0, 0.0, 0.0)
        >>> split = SplitMoments(
        ...     dominant=SubspaceMoments(CurvatureMoments(1.0, 4.0, 16.0), quiet),
        ...     bulk=SubspaceMoments(CurvatureMoments(3.0, 3.0, 3.0), quiet),
        ... )
        >>> split.shape
        ()
    """

    dominant: SubspaceMoments
    bulk: SubspaceMoments
    coupling: Coupling | None = None

    def __post_init__(self) -> None:
        _require(self.dominant, SubspaceMoments, "dominant")
        _require(self.bulk, SubspaceMoments, "bulk")
        if self.coupling is not None:
            _require(self.coupling, Coupling, "coupling")
        if (self.dominant.descent is None) != (self.bulk.descent is None):
            raise InvalidArgument("descent", None, "give it for both subspaces or for neither")
        self._to_float64()

    @classmethod
    def stack(cls, splits: Iterable[SplitMoments]) -> SplitMoments:
        """Join records of one batch shape along a new leading axis.

        Raises:
            InvalidArgument: No record, or records that differ in shape or in their optional parts.
        """
        records = list(splits)
        if not records:
            raise InvalidArgument("splits", records, "give at least one record")
        for index, record in enumerate(records):
            _require(record, SplitMoments, f"splits[{index}]")
        shapes = {(record.shape, len(record.leaves()), record.coupling is None) for record in records}
        if len(shapes) > 1:
            raise InvalidArgument("splits", sorted(map(str, shapes)), "all need one batch shape and the same fields")
        shape = records[0].shape
        columns = zip(*(record.leaves() for record in records), strict=True)
        stacked = iter([np.stack([np.broadcast_to(leaf, shape) for leaf in column]) for column in columns])
        return records[0]._map(lambda _: next(stacked), shape)


def _require(value: object, kind: type, name: str) -> None:
    if not isinstance(value, kind):
        raise InvalidArgument(name, value, f"must be a {kind.__name__}")


def real_array(name: str, value: Any, allowed: str = "must be a real number or an array of them") -> Array:
    """A copy of `value` as float64; InvalidArgument for text, complex numbers, None and ragged sequences."""
    try:
        array = np.asarray(value)
        exact = array.dtype.kind == "O" and all(isinstance(item, Real) for item in array.flat)  # fractions, huge ints
        if not exact and array.dtype.kind not in "biuf":
            raise TypeError
        with np.errstate(over="ignore"):
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(name, value, allowed) from None
