"""Fixed batches that can be read again and again, and how many samples each of them stands for.

Counting rule: a batch counts as many samples as the leading dimension of its first tensor, looking depth first
through tuples, lists and mappings in their own order. Where that is wrong (tokens, graphs), give ``count``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from etastar.errors import InvalidArgument

__all__ = ["Batches", "first_tensor", "refuse_single_batch", "tensors_of", "whole_number"]

Count = Callable[[Any], int]


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """The samples that a loss is the mean of, in batches.

    Attributes:
        source: A list of batches, or a loader that gives the same batches at every pass.
        counts: Samples in each batch, from the first pass.
        count: The caller's own counting rule, or None for the one above.
    """

    source: Iterable[Any] = field(repr=False)
    counts: tuple[int, ...]
    count: Count | None = field(repr=False)

    @classmethod
    def of(cls, source: Iterable[Any], count: Count | None = None) -> Batches:
        """Read `source` once to count its samples.

        Raises:
            InvalidArgument: Empty, without a length, not re-iterable, or with a batch that cannot be counted.
        """
        refuse_single_batch("batches", source)
        if isinstance(source, Iterator):
            raise InvalidArgument("batches", type(source).__name__, "can be read only once; give list(batches)")
        if not isinstance(source, Iterable) or not _is_sized(source):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument("batches", type(source).__name__, "has no length; give a list of batches")
        counts = tuple(samples_in(batch, count) for batch in source)
        if not counts:
            raise InvalidArgument("batches", source, "is empty; give one batch at least")
        return cls(source, counts, count)

    @property
    def samples(self) -> int:
        """All samples together."""
        return sum(self.counts)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of all samples that each batch holds: what makes a ragged last batch exact."""
        return tuple(count / self.samples for count in self.counts)

    def __iter__(self) -> Iterator[Any]:
        """The batches once more.

        Raises:
            InvalidArgument: This pass differs from the first one in its sample counts.
        """
        passed: list[int] = []
        for batch in self.source:
            passed.append(samples_in(batch, self.count))
            if tuple(passed) != self.counts[: len(passed)]:
                break
            yield batch
        if tuple(passed) != self.counts:
            allowed = f"the first pass had {self.samples} in {len(self.counts)}; batches must be fixed: list(batches)"
            raise InvalidArgument("batches", f"{sum(passed)} samples in {len(passed)} batches", allowed)


def samples_in(batch: Any, count: Count | None = None) -> int:
    """How many samples `batch` stands for."""
    if count is not None:
        number = count(batch)
    else:
        tensor = first_tensor(batch)
        if tensor is None or tensor.ndim == 0:
            raise InvalidArgument(
                "batches", type(batch).__name__, "a batch has no tensor to count samples by; give count"
            )
        number = tensor.shape[0]
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument("batches", number, "every batch must count at least one sample")
    return number


def refuse_single_batch(name: str, source: Any) -> None:
    """Raise where a batch was given instead of an iterable of batches; a tuple of tensors is (inputs, targets)."""
    pair = isinstance(source, tuple) and all(isinstance(item, Tensor) for item in cast(tuple[Any, ...], source))
    if isinstance(source, (Tensor, Mapping, str)) or (pair and source):
        raise InvalidArgument(name, type(source).__name__, "must be an iterable of batches: [batch] for one")


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value; InvalidArgument unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        span = f"at least {least}" if most is None else f"between {least} and {most}"
        raise InvalidArgument(name, value, f"must be a whole number {span}")
    return value


def first_tensor(batch: Any) -> Tensor | None:
    """The first tensor of a batch, depth first, or None."""
    return next(tensors_of(batch), None)


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """All tensors of a batch, depth first."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in cast(Mapping[Any, Any], batch).values():
            yield from tensors_of(value)
    elif isinstance(batch, (tuple, list)):
        for value in cast(list[Any], batch):
            yield from tensors_of(value)


def _is_sized(source: Iterable[Any]) -> bool:
    if not isinstance(source, Sized):
        return False
    try:
        len(source)
    except (TypeError, NotImplementedError):  # a loader over an IterableDataset has __len__ but no length
        return False
    return True
