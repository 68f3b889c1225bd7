"""What the curvature sample and k change: prints two tables of docs/measuring.md."""

import torch
from digits import make_network, mean_loss, mini_batches, training_samples
from torch.optim import SGD

from etastar.network import AlignmentMeter


def shown(estimate):
    """Value and 90 % interval."""
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})" if estimate.resolved else "unresolved"


def main(steps=600, sizes=(100, 250, 500, 1000, 1500), ranks=(5, 8, 9, 10, 11, 15)):
    """One state of one run, measured on several samples and with several k."""
    model, (inputs, targets) = make_network(), training_samples()
    optimizer = SGD(model.parameters(), lr=0.1)
    for batch in mini_batches((inputs, targets), 50, steps):
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()
    print("| n | gradient of | alignment | η* | η_D | η_B |\n|---|---|---|---|---|---|")
    for size in sizes:
        part = [(inputs[:size], targets[:size])]
        for name, whole in (("these", None), ("all 1,500", [(inputs, targets)])):
            row = AlignmentMeter(model, mean_loss, part, gradient_batches=whole).measure(0.1, 50)
            bounds = row.loss_thresholds
            print(
                f"| {size} | {name} | {row.alignment.value:.3f} | {shown(row.critical_step_size)} "
                f"| {shown(bounds.dominant)} | {shown(bounds.bulk)} |"
            )
    print("\n| k | λ_k − λ_{k+1} | alignment | η_D | η_B | products |\n|---|---|---|---|---|---|")
    for rank in ranks:
        row = AlignmentMeter(model, mean_loss, [(inputs[:500], targets[:500])], rank).measure(0.1, 50)
        print(
            f"| {rank} | {row.certificate['gap']:.2g} | {row.alignment.value:.3f} "
            f"| {shown(row.loss_thresholds.dominant)} | {shown(row.loss_thresholds.bulk)} | {row.cost['products']} |"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
