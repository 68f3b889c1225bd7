"""What the examples train: a small network on scikit-learn's 1,797 digits, the last 297 of them kept aside."""

import torch
from sklearn.datasets import load_digits
from torch import nn


def mean_loss(model, batch):
    """Squared error, the mean over the samples of the batch."""
    inputs, targets = batch
    return 0.5 * (model(inputs) - targets).square().sum(dim=1).mean()


def make_network(seed=0):
    """64-100-100-10 with tanh: 17,610 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))


def training_samples():
    """Inputs (1500, 64) and one-hot targets (1500, 10), in a fixed random order."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:1500]
    return torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.eye(10)[labels][order]


def mini_batches(samples, size, steps, seed=0):
    """Batches drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        drawn = torch.randint(len(samples[0]), (size,), generator=generator)
        yield samples[0][drawn], samples[1][drawn]
