"""One run of the contest from its configuration: training, what it cost, and how it ended.

Everything but the seconds depends on the configuration alone: initialisation and mini-batches come from the seed, and
are the same for every contestant; one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median
from typing import Any

import torch
from torch.optim import SGD, Adam, Optimizer

from etastar.network import AlignmentMeter, HessianOperator, ScaledOptimizer, SubspaceTracker, TwoRateSGD
from etastar.network.schedule import CriticalStepSizeLR
from etastar.recipes.contest.configuration import PROBLEMS, RunConfiguration
from etastar.recipes.contest.store import RunResult
from etastar.recipes.networks import NETWORKS, Network, load_network

__all__ = ["LAST", "LOOKS", "carry_out", "data_digest"]

LOOKS = 60  # of a run whose curve is followed, evenly spread
LAST = 3  # looks whose median is the final loss
_PROBES = 4
_TOLERANCE = 0.1  # of λ₁'s eigenvector at the end


@cache
def _network(problem: str, data: str | None) -> Network:
    recipe, loss = PROBLEMS[problem]
    return load_network(recipe, loss, data=data)


def _initialised(network: Network, seed: int) -> Network:
    """The network with a model of its own, as `load_network` draws it from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return replace(network, model=NETWORKS[network.name].build())


def data_digest(problem: str, data: str | None) -> str:
    """Digest of all samples; the runs' keys hold it."""
    return _network(problem, data).digest


def carry_out(run: RunConfiguration, data: str | None) -> RunResult:
    """Train as configured; one thread, whatever the process has otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _carried_out(run, _initialised(_network(run.problem, data), run.seed))
    finally:
        torch.set_num_threads(threads)


@dataclass(slots=True)
class _Contestant:
    """An optimizer with what it spends beside one gradient a step."""

    optimizer: Optimizer
    operator: HessianOperator | None = None
    meter: AlignmentMeter | None = None
    policy: CriticalStepSizeLR | None = None
    outcomes: dict[str, int] = field(default_factory=dict[str, int])

    def beyond_steps(self, batch_size: int) -> float:
        """Gradient evaluations of a batch spent on basis and metering so far.

        A product counts as two gradients of its own sample; a measurement as two more and a loss, a third of one, and
        half a gradient for each probe and each vector that noise is taken along.
        """
        if self.operator is None:
            return 0.0
        spent = 2.0 * self.operator.products
        if self.meter is not None:
            state = self.meter.tracker.state_dict()["carried"]
            along = 0 if state is None else state.shape[1]
            spent += len(self.meter.history) * (2.0 + 1.0 / 3.0 + 0.5 * (_PROBES + along))
        return spent * self.operator.samples / batch_size


def _contestant(run: RunConfiguration, network: Network) -> _Contestant:
    parameters = list(network.model.parameters())
    if run.rule == "Adam":
        return _Contestant(Adam(parameters, run.step_size))
    inner = SGD(parameters, run.step_size, run.momentum)
    if run.rule in ("SGD", "momentum", "momentum, untuned"):
        return _Contestant(inner)
    samples, every, tolerance = run.basis
    batches = network.curvature_batches(samples)
    if run.rule == "BSFA's rule":
        operator = HessianOperator(network.model, network.loss_fn, batches)
        tracker, (dominant, bulk) = SubspaceTracker(operator, network.rank, seed=run.seed), run.factors
        optimizer = ScaledOptimizer(inner, tracker, dominant=dominant, bulk=bulk, every=every, tolerance=tolerance)
        return _Contestant(optimizer, operator)
    meter = AlignmentMeter(
        network.model,
        network.loss_fn,
        batches,
        network.rank,
        every=every,
        overhead=None,
        tolerance=tolerance,
        probes=_PROBES,
        third_derivative=False,
        seed=run.seed,
    )
    if run.rule in ("TwoRateSGD", "TwoRateSGD, tuned"):
        two_rates = TwoRateSGD(
            parameters, meter=meter, batch_size=run.batch_size, lr=run.step_size, momentum=run.momentum
        )
        return _Contestant(two_rates, meter.operator, meter)
    meter.attach(inner, run.batch_size)
    policy = CriticalStepSizeLR(inner, meter, policy=run.rule, mode="act")
    return _Contestant(inner, meter.operator, meter, policy)


def _carried_out(run: RunConfiguration, network: Network) -> RunResult:
    contestant, log = _contestant(run, network), _Log([], [], [], [], [])
    looks = {math.ceil(run.steps * look / LOOKS) for look in range(0 if run.curve else LOOKS + 1 - LAST, LOOKS + 1)}
    generator, seconds = torch.Generator().manual_seed(run.seed), 0.0
    for step in range(run.steps + 1):
        if step in looks:
            log.look(step, run, network, contestant, seconds)
        if step == run.steps or not log.alive:
            break
        begin = time.process_time()
        log.alive = _step(contestant, network, run, step, generator)
        seconds += time.process_time() - begin
    final = median(log.losses[-LAST:]) if log.alive and math.isfinite(log.losses[-1]) else math.inf
    result = RunResult(
        final, log.steps, log.losses, log.gradients, log.seconds, outcomes=contestant.outcomes, step_sizes=log.sizes
    )
    return replace(result, **_at_the_end(network)) if run.curve and math.isfinite(final) else result


@dataclass(slots=True)
class _Log:
    """What is seen at the looks."""

    steps: list[int]
    losses: list[float]
    gradients: list[float]
    seconds: list[float]
    sizes: list[float]
    alive: bool = True

    def look(self, step: int, run: RunConfiguration, network: Network, contestant: _Contestant, seconds: float) -> None:
        inputs, targets = network.train
        with torch.no_grad():
            loss = float(network.loss_fn(network.model, (inputs[: network.watched], targets[: network.watched])))
        self.steps.append(step)
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        self.gradients.append(step + contestant.beyond_steps(run.batch_size))
        self.seconds.append(round(seconds, 4))
        self.sizes.append(float(contestant.optimizer.param_groups[0]["lr"]))
        self.alive = self.alive and math.isfinite(loss)


def _step(
    contestant: _Contestant, network: Network, run: RunConfiguration, step: int, generator: torch.Generator
) -> bool:
    """One step; False where the loss is not finite any more."""
    optimizer = contestant.optimizer
    if contestant.policy is None:
        for group in optimizer.param_groups:
            group["lr"] = run.step_size * _SHAPES[run.schedule](step / run.steps)
    loss = network.loss_fn(network.model, network.draw(generator, run.batch_size))
    if not torch.isfinite(loss):
        return False
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if isinstance(optimizer, TwoRateSGD):
        name = optimizer.rates.outcome.name
        contestant.outcomes[name] = contestant.outcomes.get(name, 0) + 1
    if contestant.policy is not None:
        contestant.policy.step()
    return True


_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda part: 1.0 - part,
    "cosine": lambda part: 0.5 * (1.0 + math.cos(math.pi * part)),
}


def _at_the_end(network: Network) -> dict[str, Any]:
    """Held-out loss and accuracy, and λ₁ over the recipe's curvature samples."""
    inputs, labels = network.held_out
    with torch.no_grad():
        loss = float(network.loss_fn(network.model, network.held_out))
        accuracy = float((network.model(inputs).argmax(-1) == labels).double().mean())
    operator = HessianOperator(network.model, network.loss_fn, network.curvature_batches())
    top = SubspaceTracker(operator, 1).refresh(_TOLERANCE).eigenvalues[0]
    return {"held_out_loss": loss, "accuracy": accuracy, "largest_eigenvalue": float(top)}
