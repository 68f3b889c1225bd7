"""TwoRateSGD beside SGD, momentum and two fixed factors on digits: prints the tables of docs/controlling.md."""

import argparse
import time

import torch
from torch.optim import SGD

from etastar.network import AlignmentMeter, HessianOperator, ScaledOptimizer, SubspaceTracker, TwoRateSGD
from etastar.recipes.networks import load_network

BATCH, EVERY, SAMPLES, RANK, TOLERANCE = 50, 100, 250, 10, 0.1
KNOBS = {"mse": (0.2, 0.95), "cross-entropy": (0.2, 0.9)}  # lr and momentum


def optimizers(network, lr, momentum):
    """By name: what makes the optimizer, and what counts the products it spent."""
    parameters, batches = list(network.model.parameters()), network.curvature_batches(SAMPLES)

    def two_rates():
        cheap = {"tolerance": TOLERANCE, "third_derivative": False, "probes": 4}
        meter = AlignmentMeter(network.model, network.loss_fn, batches, RANK, every=EVERY, overhead=None, **cheap)
        return TwoRateSGD(parameters, meter=meter, batch_size=BATCH, lr=lr, momentum=momentum), meter.operator

    def scaled(dominant, bulk):
        operator = HessianOperator(network.model, network.loss_fn, batches)
        inner, tracker = SGD(parameters, lr, momentum), SubspaceTracker(operator, RANK)
        return ScaledOptimizer(inner, tracker, dominant=dominant, bulk=bulk, every=EVERY, tolerance=TOLERANCE), operator

    return {
        f"SGD, {lr}": lambda: (SGD(parameters, lr), None),
        f"momentum {momentum}, {lr}": lambda: (SGD(parameters, lr, momentum), None),
        "BSFA's rule, 0.1 and 1": lambda: scaled(0.1, 1.0),
        "BSFA's rule, 0.01 and 1": lambda: scaled(0.01, 1.0),
        "BSFA's rule, 0.1 and 2": lambda: scaled(0.1, 2.0),
        "TwoRateSGD": two_rates,
    }


def train(network, optimizer, steps, seed):
    """Training loss every ten steps, and the share of steps with two rates; None where it diverged."""
    generator, losses = torch.Generator().manual_seed(seed), []
    apart = 0
    for step in range(steps):
        loss = network.loss_fn(network.model, network.draw(generator, BATCH))
        if not torch.isfinite(loss):
            return None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        apart += isinstance(optimizer, TwoRateSGD) and optimizer.rates.dominant is not None
        if step % 10 == 9:
            losses.append(network.losses()[0])
    return torch.tensor(losses), apart / steps


def row(name, loss, steps, seed):
    """One run as a row of the table.

    Final loss (median of the last hundred steps), held-out loss and accuracy, λ₁, gradients, seconds, and the share of
    steps with two rates.
    """
    network = load_network("digits-mlp", loss, seed=seed)
    optimizer, operator = optimizers(network, *KNOBS[loss])[name]()
    begin = time.perf_counter()
    found = train(network, optimizer, steps, seed)
    seconds = time.perf_counter() - begin
    if found is None:
        return f"| {name} | {seed} | diverged | | | | | | |"
    losses, apart = found
    products = 0 if operator is None else operator.products
    gradients = steps + round(2 * products * SAMPLES / BATCH)  # a product costs about two gradients of its sample
    inputs, labels = network.held_out
    with torch.no_grad():
        accuracy = float((network.model(inputs).argmax(1) == labels).float().mean())
    whole = HessianOperator(network.model, network.loss_fn, network.curvature_batches())
    top = float(SubspaceTracker(whole, 1).refresh(0.1).eigenvalues[0])
    share = f"{apart:.0%}" if isinstance(optimizer, TwoRateSGD) else ""
    return (
        f"| {name} | {seed} | {float(losses[-10:].median()):.2g} | {network.losses()[1]:.2g} | {accuracy:.3f} "
        f"| {top:.3g} | {gradients:,} | {seconds:.0f} | {share} |"
    )


def main():
    """One table a loss."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loss", choices=list(KNOBS), nargs="+", default=list(KNOBS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", default="", help="part of an optimizer's name")
    chosen = parser.parse_args()
    for loss in chosen.loss:
        print(f"\n{loss}, batch {BATCH}, {chosen.steps:,} steps\n")
        print("| optimizer | seed | training loss | held-out | accuracy | λ₁ | gradients | s | two rates |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name in optimizers(load_network("digits-mlp", loss), *KNOBS[loss]):
            for seed in range(chosen.seeds if chosen.only in name else 0):
                print(row(name, loss, chosen.steps, seed), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
