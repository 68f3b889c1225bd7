"""Measuring checkpoints after the run: python examples/offline_checkpoint.py [directory]."""

import sys
import tempfile
from pathlib import Path

import torch
from digits import make_network, mean_loss, mini_batches, training_samples
from torch.optim import SGD

from etastar.network import AlignmentMeter, preflight


def train(directory, steps=600, every=200):
    """A run that knows nothing of etastar and saves a checkpoint every so often."""
    model, samples = make_network(), training_samples()
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step, batch in enumerate(mini_batches(samples, 50, steps)):
        if step % every == 0:
            state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, Path(directory) / f"{step:06d}.pt")
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()


def measure(directory, batch_size=50):
    """The same call as in a loop, once for each checkpoint; returns the history."""
    model, (inputs, targets) = make_network(), training_samples()
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    curvature = [(inputs[:500], targets[:500])]
    preflight(model, mean_loss, curvature).require()
    meter = AlignmentMeter(model, mean_loss, curvature, rank=10)
    for path in sorted(Path(directory).glob("*.pt")):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])  # momentum: its buffers are part of the next update
        meter.step = state["step"]
        row = meter.measure(optimizer.param_groups[0]["lr"], batch_size, optimizer)
        print(f"step {row.step:5d}  alignment {row.alignment.value:.3f}  {row.verdict}")
    return meter.history


def main(directory=None):
    """Train, then measure."""
    with tempfile.TemporaryDirectory() as scratch:
        train(directory or scratch)
        measure(directory or scratch)


if __name__ == "__main__":
    main(*sys.argv[1:2])
