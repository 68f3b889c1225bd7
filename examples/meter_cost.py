"""What a measurement costs, and how often overhead=0.1 affords one: prints the table of docs/measuring.md."""

import time
from statistics import median

import torch
from digits import make_network, mean_loss, mini_batches, training_samples
from torch.optim import SGD

from etastar.network import AlignmentMeter, HessianOperator


def timed(action, *arguments):
    """Seconds of processor time that a call takes."""
    begin = time.process_time()
    action(*arguments)
    return time.process_time() - begin


def main(rounds=12, spacing=50, overhead=0.1):
    """Time steps, gradients and measurements in turn during one run, so that a busy machine slows all alike."""
    print("| batch | products | gradients of the curvature sample | steps | spacing at overhead=0.1 |")
    print("|---|---|---|---|---|")
    for size in (50, 500):
        model, samples = make_network(), training_samples()
        optimizer = SGD(model.parameters(), lr=0.1)
        curvature = [(samples[0][:500], samples[1][:500])]
        meter, operator = AlignmentMeter(model, mean_loss, curvature), HessianOperator(model, mean_loss, curvature)
        batches = mini_batches(samples, size, rounds * spacing)
        gradients, measurements, steps = [], [], []

        def step(batch, optimizer=optimizer, model=model):
            optimizer.zero_grad()
            mean_loss(model, batch).backward()
            optimizer.step()

        for _ in range(rounds):
            steps.append(median(timed(step, next(batches)) for _ in range(spacing)))
            measurements.append(timed(meter.measure, 0.1, size))
            gradients.append(median(timed(operator.gradient) for _ in range(9)))
        cost, step_time = median(measurements[1:]), median(steps)
        products = median(row.cost["products"] for row in meter.history[1:])
        print(
            f"| {size} | {products:.0f} | {cost / median(gradients):.0f} | {cost / step_time:.0f} "
            f"| {cost / step_time / overhead:.0f} |"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
