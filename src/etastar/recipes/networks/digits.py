"""scikit-learn's 1,797 images of 8 × 8 pixels: the first 1,500 of a fixed order train, the rest are held out."""

from __future__ import annotations

import numpy as np
import torch

from etastar.recipes.networks.network import Samples

__all__ = ["load_digits"]

_TRAINING = 1500


def load_digits(shape: tuple[int, ...]) -> tuple[Samples, Samples]:
    """Training and held-out digits, pixels in [0, 1] reshaped to ``(n, *shape)``."""
    from sklearn import datasets  # lazy: seconds to import

    pixels, digit = map(np.asarray, datasets.load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(digit))
    inputs = torch.tensor(pixels[order] / 16.0, dtype=torch.float32).reshape(-1, *shape)
    labels = torch.tensor(digit[order], dtype=torch.int64)
    return (inputs[:_TRAINING], labels[:_TRAINING]), (inputs[_TRAINING:], labels[_TRAINING:])
