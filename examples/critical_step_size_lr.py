"""CriticalStepSizeLR that acts, beside constant, cosine and linear step sizes: prints tables of docs/scheduling.md."""

import argparse

import torch
from torch.optim import SGD, lr_scheduler

from etastar.network import AlignmentMeter, CriticalStepSizeLR, UpdateLedger
from etastar.recipes.networks import load_network

BATCH, EVERY, SAMPLES, RANK = 50, 25, 250, 10
SETTINGS = {"mse": (0.4, 0.0), "momentum": (0.2, 0.95), "cross-entropy": (0.4, 0.0)}  # step size and momentum


def controlled(network, optimizer, policy):
    """A meter that is attached, and a scheduler that acts on what it sees."""
    meter = AlignmentMeter(
        network.model,
        network.loss_fn,
        network.curvature_batches(SAMPLES),
        RANK,
        every=EVERY,
        overhead=None,
        gradient_batches=network.curvature_batches(len(network.train[0])),
        third_derivative=False,
        probes=4,
        tolerance=0.1,
    )
    meter.attach(optimizer, BATCH)
    return CriticalStepSizeLR(optimizer, meter, policy, "act")


SCHEDULES = {
    "constant": lambda network, optimizer, steps: lr_scheduler.ConstantLR(optimizer, 1.0),
    "cosine": lambda network, optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
    "linear": lambda network, optimizer, steps: lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps),
    "equilibrated": lambda network, optimizer, steps: controlled(network, optimizer, "equilibrated"),
    "forecast": lambda network, optimizer, steps: controlled(network, optimizer, "forecast"),
}


def row(setting, name, steps, seed):
    """One run as a row of the table."""
    step_size, momentum = SETTINGS[setting]
    network = load_network("digits-mlp", "cross-entropy" if setting == "cross-entropy" else "mse", seed=seed)
    optimizer = SGD(network.model.parameters(), step_size, momentum)
    scheduler = SCHEDULES[name](network, optimizer, steps)
    generator, losses = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        optimizer.zero_grad()
        network.loss_fn(network.model, network.draw(generator, BATCH)).backward()
        optimizer.step()
        scheduler.step()
        if step >= steps - 100 and step % 10 == 9:
            losses.append(network.losses()[0])
    decisions = scheduler.decisions if isinstance(scheduler, CriticalStepSizeLR) else []
    acted = ", ".join(f"{decision.step:,}" for decision in decisions if decision.acted)
    training, held_out = float(torch.tensor(losses).median()), network.losses()[1]
    return f"| {name} | {seed} | {training:.3g} | {held_out:.3g} | {acted} |"


def ledger_rows(step_size, steps=1500, every=250, updates=40):
    """Prediction against measurement over a run of plain SGD, on the training samples and on held-out ones."""
    network = load_network("digits-mlp", "mse", seed=0)
    optimizer = SGD(network.model.parameters(), step_size)
    everything = network.curvature_batches(len(network.train[0]))
    meter = AlignmentMeter(network.model, network.loss_fn, everything, RANK, overhead=None, third_derivative=False)
    held_out = [tuple(part[i::10] for part in network.held_out) for i in range(10)]
    ledgers = {"training": UpdateLedger(meter, everything), "held-out": UpdateLedger(meter, held_out)}
    generator, tried = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    for step in range(steps + 1):
        if step % every == 0:
            meter.step, batches = step, [network.draw(tried, BATCH) for _ in range(updates)]
            for ledger in ledgers.values():
                ledger.check(optimizer, batches)
        optimizer.zero_grad()
        network.loss_fn(network.model, network.draw(generator, BATCH)).backward()
        optimizer.step()
    return [
        f"| {step_size} | {samples} | {one.part} | {one.ratio:.2f} ± {one.ratio_error:.2f} | {one.deviation:.1f} |"
        for samples, ledger in ledgers.items()
        for one in ledger.summary()
    ]


def main():
    """One table a setting, and one of the ledger."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--settings", choices=list(SETTINGS), nargs="*", default=list(SETTINGS))
    parser.add_argument("--schedules", choices=list(SCHEDULES), nargs="+", default=list(SCHEDULES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--ledger", type=float, nargs="*", default=[0.4, 0.1], metavar="STEP_SIZE")
    chosen = parser.parse_args()
    for setting in chosen.settings:
        print(f"\n{setting}, batch {BATCH}, {chosen.steps:,} steps, step size {SETTINGS[setting][0]}\n")
        print("| schedule | seed | training loss | held-out | decayed at step |")
        print("|---|---|---|---|---|")
        for name in chosen.schedules:
            for seed in range(chosen.seeds):
                print(row(setting, name, chosen.steps, seed), flush=True)
    if chosen.ledger:
        print("\n| step size | samples | part | measured/predicted | deviation |\n|---|---|---|---|---|")
        for step_size in chosen.ledger:
            print("\n".join(ledger_rows(step_size)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
