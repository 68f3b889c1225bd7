"""The flat vector: order, ties, restrictions, and cutting without copies."""

import pytest
import torch
from torch import nn

from etastar import InvalidArgument
from etastar.network import ParameterVector


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.decoder = nn.Linear(3, 4)
        self.decoder.weight = self.encoder.weight
        self.scale = nn.Parameter(torch.tensor(2.0))


def test_order_is_that_of_named_parameters_and_tied_ones_occur_once() -> None:
    model = Tied()
    vector = ParameterVector.of(model)
    assert vector.names == ("scale", "encoder.weight", "encoder.bias", "decoder.bias")
    assert vector.size == 1 + 12 + 4 + 4
    assert vector.slices["encoder.bias"] == slice(13, 17)
    assert torch.equal(vector.current(), nn.utils.parameters_to_vector(model.parameters()))


def test_restriction_by_name_prefix_and_alias() -> None:
    model = Tied()
    assert ParameterVector.of(model, "encoder").names == ("encoder.weight", "encoder.bias")
    assert ParameterVector.of(model, ["decoder.weight"]).names == ("encoder.weight",)
    assert ParameterVector.of(model, ["scale", "decoder.bias"]).names == ("scale", "decoder.bias")
    with pytest.raises(InvalidArgument, match=r"parameters: got 'encode'; .*encoder"):
        ParameterVector.of(model, "encode")  # a prefix is of whole components


def test_frozen_parameters_are_left_out() -> None:
    model = Tied()
    model.encoder.weight.requires_grad_(False)
    assert "encoder.weight" not in ParameterVector.of(model).names
    with pytest.raises(InvalidArgument, match="frozen"):
        ParameterVector.of(model, "encoder.weight")
    model.requires_grad_(False)
    with pytest.raises(InvalidArgument, match="all frozen"):
        ParameterVector.of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_split_and_join_are_inverse_and_split_copies_nothing(dtype: torch.dtype) -> None:
    vector = ParameterVector.of(Tied().to(dtype))
    one = torch.randn(vector.size, dtype=dtype)
    block = torch.randn(3, vector.size, dtype=dtype).mT
    for vectors in (one, block, block.contiguous()):
        pieces = vector.split(vectors)
        assert [piece.untyped_storage().data_ptr() for piece in pieces] == [vectors.untyped_storage().data_ptr()] * 4
        assert torch.equal(vector.join(pieces), vectors)
    assert [tuple(piece.shape) for piece in vector.split(block)] == [(3,), (3, 4, 3), (3, 4), (3, 4)]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.zeros(3), r"shape \(21,\) or \(21, m\)"),
        (torch.zeros(21, 2, 1), "shape"),
        (torch.zeros(21, dtype=torch.float64), "must be torch.float32"),
        ([0.0] * 21, "must be a tensor"),
    ],
)
def test_wrong_vectors_are_refused_by_name(vectors: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ParameterVector.of(Tied()).split(vectors)


def test_kinds_of_parameters_that_have_no_curvature_here() -> None:
    mixed = Tied()
    mixed.encoder.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    with pytest.raises(InvalidArgument, match="one dtype"):
        ParameterVector.of(mixed)
    with pytest.raises(InvalidArgument, match="float32 or float64"):
        ParameterVector.of(Tied().half())
    spread = Tied()
    spread.encoder.bias = nn.Parameter(torch.zeros(4, device="meta"))
    with pytest.raises(InvalidArgument, match="on one device"):
        ParameterVector.of(spread)
    with pytest.raises(InvalidArgument, match="no entries"):
        ParameterVector.of(nn.ParameterList([nn.Parameter(torch.zeros(0))]))
    with pytest.raises(InvalidArgument, match="forward pass"):
        ParameterVector.of(nn.LazyLinear(3))
