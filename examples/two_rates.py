"""TwoRateSGD beside SGD, momentum and two fixed factors on digits: prints the tables of docs/controlling.md."""

import argparse
import time

import torch
from torch.optim import SGD

from etastar.network import AlignmentMeter, HessianOperator, ScaledOptimizer, SubspaceTracker, TwoRateSGD
from etastar.recipes.networks import load_network

BATCH, EVERY, SAMPLES, RANK, TOLERANCE, PROBES = 50, 200, 64, 10, 0.3, 4
LR, MOMENTUM = 0.2, 0.95
KEPT = 3 * RANK  # vectors that a measurement takes noise along


def optimizers(network, lr, momentum=MOMENTUM):
    """By name: what makes the optimizer, and the operator that counts the products it spent."""
    parameters, batches = list(network.model.parameters()), network.curvature_batches(SAMPLES)

    def two_rates():
        cheap = {"tolerance": TOLERANCE, "third_derivative": False, "probes": PROBES}
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
    """Training loss every ten steps, shares of steps with two rates and with `lr` held; None where it diverged."""
    generator, losses = torch.Generator().manual_seed(seed), []
    apart = held = 0
    for step in range(steps):
        loss = network.loss_fn(network.model, network.draw(generator, BATCH))
        if not torch.isfinite(loss):
            return None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(optimizer, TwoRateSGD):
            apart += optimizer.rates.dominant is not None
            held += optimizer.rates.bulk < optimizer.param_groups[0]["lr"]
        if step % 10 == 9:
            losses.append(network.losses()[0])
    return torch.tensor(losses), f"{apart / steps:.0%} | {held / steps:.0%}"


def gradients(steps, optimizer, operator):
    """Evaluations of a batch: one a step; a product counts as two of its sample, a measurement's pass over it as 20."""
    meter = getattr(optimizer, "meter", None)
    passes = 0 if meter is None else len(meter.history) * (3 + 0.5 * (PROBES + KEPT))
    return steps + round((2 * (0 if operator is None else operator.products) + passes) * SAMPLES / BATCH)


def row(name, chosen, loss, seed):
    """One run as a row of the table.

    Final loss (median of the last hundred steps), held-out loss and accuracy, λ₁, gradients, seconds, and the shares of
    steps with two rates and with lr held.
    """
    network = load_network(chosen.network, loss, seed=seed)
    optimizer, operator = optimizers(network, chosen.lr)[name]()
    begin = time.perf_counter()
    found = train(network, optimizer, chosen.steps, seed)
    seconds = time.perf_counter() - begin
    if found is None:
        return f"| {name} | {seed} | diverged | | | | | | | |"
    losses, shares = found
    inputs, labels = network.held_out
    with torch.no_grad():
        accuracy = float((network.model(inputs).argmax(1) == labels).float().mean())
    whole = HessianOperator(network.model, network.loss_fn, network.curvature_batches())
    top = float(SubspaceTracker(whole, 1).refresh(0.1).eigenvalues[0])
    return (
        f"| {name} | {seed} | {float(losses[-10:].median()):.2g} | {network.losses()[1]:.2g} | {accuracy:.3f} "
        f"| {top:.3g} | {gradients(chosen.steps, optimizer, operator):,} | {seconds:.0f} "
        f"| {shares if isinstance(optimizer, TwoRateSGD) else '|'} |"
    )


def main():
    """One table a loss."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="digits-mlp")
    parser.add_argument("--loss", choices=["mse", "cross-entropy"], nargs="+", default=["mse", "cross-entropy"])
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", default="", help="part of an optimizer's name")
    chosen = parser.parse_args()
    for loss in chosen.loss:
        print(f"\n{chosen.network}, {loss}, batch {BATCH}, lr {chosen.lr}, {chosen.steps:,} steps\n")
        print("| optimizer | seed | training loss | held-out | accuracy | λ₁ | gradients | s | two rates | held |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for name in optimizers(load_network(chosen.network, loss), chosen.lr):
            for seed in chosen.seeds if chosen.only in name else []:
                print(row(name, chosen, loss, seed), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
