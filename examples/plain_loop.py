"""A plain training loop with a meter: python examples/plain_loop.py [history.jsonl]."""

import sys

from digits import make_network, mean_loss, mini_batches, training_samples
from torch.optim import SGD

from etastar.network import AlignmentMeter


def main(path=None, steps=1000, every=50):
    """Train, measure, and say what limits the run; returns the history."""
    model, samples = make_network(), training_samples()
    optimizer = SGD(model.parameters(), lr=0.1)

    curvature = [(samples[0][:500], samples[1][:500])]  # fixed: these samples are the loss that is measured
    meter = AlignmentMeter(model, mean_loss, curvature, rank=10, every=every, overhead=None)
    handle = meter.attach(optimizer, batch_size=50, path=path)
    print(meter.preflight)

    for batch in mini_batches(samples, 50, steps):
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()
    handle.remove()

    for row in meter.history.rolling(4):  # single states fluctuate: average moments before reading ratios
        print(f"step {row.step:5d}  alignment {row.alignment.value:.3f}  {row.verdict}")
    return meter.history


if __name__ == "__main__":
    main(*sys.argv[1:2])
