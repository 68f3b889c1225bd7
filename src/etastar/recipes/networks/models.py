"""The architectures: smooth everywhere, free of dropout and batch statistics, twice differentiable under vmap.

Kinks have no third derivative, dropout and batch norm no fixed loss, fused attention no double backward.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["SentenceClassifier", "Transformer", "cifar_cnn", "digits_cnn", "tanh_mlp"]


def tanh_mlp(*widths: int) -> nn.Module:
    """Linear layers from ``widths[0]`` to ``widths[-1]`` with tanh between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def digits_cnn() -> nn.Module:
    """Two convolutions with tanh and average pooling, one linear layer; images ``(n, 1, 8, 8)``."""
    return _tanh_cnn(1, 8, 16, 64)


def cifar_cnn() -> nn.Module:
    """The tanh network of Cohen et al. (arXiv 2103.00065), two convolutions of 32 filters; ``(n, 3, 32, 32)``."""
    return _tanh_cnn(3, 32, 32, 2048)


def _tanh_cnn(channels: int, first: int, second: int, features: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(features, 10),
    )


class Transformer(nn.Module):
    """A causal pre-norm transformer: token codes ``(n, length)`` → logits ``(n, length, vocabulary)``.

    PyTorch's own initialisation, codes of characters and positions N(0, 1): with GPT-2's much smaller ones, plain SGD
    stays for long at the frequencies of single characters.

    Args:
        vocabulary: Number of token codes.
        context: Longest length.
        width: Of the residual stream.
        depth: Number of blocks.
        heads: Of each attention; must divide `width`.
    """

    future: Tensor

    def __init__(self, vocabulary: int, context: int = 32, width: int = 200, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(context, width))
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary)
        mask = torch.ones(context, context, dtype=torch.bool).triu(1)
        self.register_buffer("future", mask, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of the character after each one."""
        length = codes.shape[1]
        stream = self.tokens(codes) + self.positions[:length]
        for block in self.blocks:
            stream = block(stream, self.future[:length, :length])
        return self.logits(self.norm(stream))


class SentenceClassifier(nn.Module):
    """A pre-norm transformer encoder: word codes ``(n, length)``, 0 for padding → outputs ``(n, classes)``.

    Every word attends to all words, never to padding, and the outputs are read off the mean over words: they do not
    depend on how much padding follows. Song, Ahn and Yun (arXiv 2405.16002) train a transformer of two layers and two
    outputs on SST2-1k; width, heads, norms, pooling and initialisation are ours, the latter as in `Transformer`.

    Args:
        vocabulary: Number of word codes.
        length: Words of the longest sentence.
        classes: Outputs.
        width: Of the residual stream.
        depth: Number of blocks.
        heads: Of each attention; must divide `width`.
    """

    def __init__(
        self, vocabulary: int, length: int, classes: int = 2, width: int = 64, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.Linear(width, classes)

    def forward(self, codes: Tensor) -> Tensor:
        """One row of outputs a sentence; NaN for a row that is all padding."""
        padding = codes == 0
        stream = self.tokens(codes) + self.positions[: codes.shape[1]]
        for block in self.blocks:
            stream = block(stream, padding[:, None, None, :])
        words = (~padding).to(stream)[:, :, None]
        return self.outputs((self.norm(stream) * words).sum(dim=1) / words.sum(dim=1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, stream: Tensor, hidden: Tensor) -> Tensor:
        stream = stream + self.attention(self.before_attention(stream), hidden)
        return stream + self.mlp(self.before_mlp(stream))


class _Attention(nn.Module):
    """Attention written out: no fused kernel, whatever the context it is called in.

    `hidden`, broadcast to ``(samples, heads, length, length)``, is true where the row must not see the column.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, stream: Tensor, hidden: Tensor) -> Tensor:
        samples, length, width = stream.shape
        parts = self.project(stream).view(samples, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / math.sqrt(width // self.heads)
        shares = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        return self.out((shares @ value).transpose(1, 2).reshape(samples, length, width))
