"""A meter's numbers in TensorBoard (pip install tensorboard): python examples/tensorboard_run.py."""

from digits import make_network, mean_loss, mini_batches, training_samples
from torch.optim import SGD

from etastar.network import AlignmentMeter


class TensorBoard:
    """Anything with a method ``log(metrics, step)`` is a tracker; this is one."""

    def __init__(self, writer):
        self.writer = writer

    def log(self, metrics, step):
        """Write numbers as curves, and the regime, which is only there where it is resolved, as text."""
        for name, value in metrics.items():
            add = self.writer.add_text if isinstance(value, str) else self.writer.add_scalar
            add(f"meter/{name}", value, step)


def main(writer=None, steps=1000, every=50):
    """Train with every measurement logged; returns the history."""
    if writer is None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter("runs/digits")
    model, samples = make_network(), training_samples()
    optimizer = SGD(model.parameters(), lr=0.1)
    meter = AlignmentMeter(model, mean_loss, [(samples[0][:500], samples[1][:500])], every=every, overhead=None)
    handle = meter.attach(optimizer, batch_size=50, log=TensorBoard(writer))
    for batch in mini_batches(samples, 50, steps):
        optimizer.zero_grad()
        loss = mean_loss(model, batch)
        loss.backward()
        writer.add_scalar("loss", loss.item(), meter.step)
        optimizer.step()
    handle.remove()
    writer.close()
    return meter.history


if __name__ == "__main__":
    main()
