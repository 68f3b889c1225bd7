"""Training a named network with a step size that is constant or controlled, measured while it trains.

A run that was killed goes on from its last state: losses, measurements and decisions are then those of a run that was
never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from etastar.errors import EtastarError, InvalidFile
from etastar.history import History, HistoryFile
from etastar.network import AlignmentMeter, CriticalStepSizeLR, MeterHandle, StepGauge, TwoRateSGD, UpdateLedger
from etastar.recipes.networks import Network
from etastar.recipes.states import load_state, save_state
from etastar.recipes.training.plan import TrainingPlan
from etastar.recipes.training.trained import Looks, TrainedRun

__all__ = ["RUNNING", "STATE", "train"]

Progress = Callable[[str, int, int], None]
RUNNING, STATE = "running.jsonl", "running.pt"  # the measurements so far, and what the run goes on from
_SAVE_SECONDS = 20.0  # between states: what a kill costs at most
_LOOKS = 100  # at the losses
_GAUGE_EVERY = 64  # steps between second gradients: 3 % of a step's cost
_CHECKS, _TRIED, _HELD_OUT = 10, 16, 8  # ledger: checkpoints in a run, mini-batches tried at each, held-out batches
_KINDS: dict[str, type] = {"key": str, "run": dict}


def train(plan: TrainingPlan, progress: Progress | None = None) -> TrainedRun:
    """Train and measure; mini-batches are drawn with replacement from `plan.seed`.

    Raises:
        InvalidArgument: An unknown recipe, options that do not go together, or a number out of range.
        InvalidFile: `plan.out` cannot be written, or holds the unfinished run of another plan.
    """
    plan, network = plan.load()
    path = None if plan.out is None else plan.out / STATE
    state = None if path is None else _known(path, plan.key(network))
    try:
        training = _Training(plan, network, state)
    except Exception:  # torch names what does not fit in many ways
        if state is None:
            raise
        raise InvalidFile("out", str(path), _other("is damaged")) from None
    live = None if plan.out is None or training.meter is None else _Live(plan.out / RUNNING)
    written = time.monotonic()
    while not training.ended:
        training.advance()
        if live is not None:
            live.follow(training.history)
        if progress is not None and training.looked:
            progress(f"training, loss {training.looks.training_loss[-1]:.4g}", training.step, plan.steps)
        if path is not None and (training.ended or time.monotonic() - written >= _SAVE_SECONDS):
            save_state(path, {"key": plan.key(network), "run": training.state_dict()})
            written = time.monotonic()
    return training.result()


def _known(path: Path, key: str) -> dict[str, Any] | None:
    state = load_state(path, _KINDS, _other("is no state of a run"))
    if state is None:
        return None
    if state["key"] != key:
        raise InvalidFile("out", str(path), _other("is of an unfinished run with other options, data or versions"))
    return state["run"]


def _other(what: str) -> str:
    return f"{what}; delete it, or name another place"


class _Live:
    """The measurements so far, on disk from the first one on."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of a run that is gone on with, or was given up: written anew
        self._file, self._written = HistoryFile(path), 0

    def follow(self, history: History) -> None:
        while self._written < len(history):
            self._file.append(history[self._written])
            self._written += 1


@dataclass(slots=True)
class _Training:
    """A run in progress: all that moves in it, from the start or from a state."""

    plan: TrainingPlan
    network: Network
    state: dict[str, Any] | None
    step: int = 0
    ended: bool = False
    looked: bool = False
    looks: Looks = field(default_factory=Looks)
    meter: AlignmentMeter | None = None
    handle: MeterHandle | None = None
    gauge: StepGauge | None = None
    schedule: CriticalStepSizeLR | None = None
    ledger: UpdateLedger | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    generators: list[torch.Generator] = field(init=False)

    def __post_init__(self) -> None:
        plan, network, state = self.plan, self.network, self.state
        self.state = None
        self.generators = [torch.Generator().manual_seed(plan.seed + offset) for offset in range(3)]
        self.meter = _meter(plan, network) if plan.metered else None
        parameters = network.model.parameters()
        if plan.optimizer == "two-rate" and self.meter is not None:
            self.optimizer = TwoRateSGD(parameters, meter=self.meter, batch_size=plan.batch_size, lr=plan.step_size)
        else:
            self.optimizer = SGD(parameters, lr=plan.step_size)
        if state is not None:
            self._continue(state)
        if self.meter is not None:
            if plan.optimizer == "sgd" and not self.ended:
                self.handle = self.meter.attach(self.optimizer, plan.batch_size)
            self.gauge = _gauge(plan, network, self.optimizer)
            if plan.policy is not None:
                mode = "act" if plan.act else "advise"
                self.schedule = CriticalStepSizeLR(
                    self.optimizer, self.meter, plan.policy, mode, horizon=max(1, plan.steps // 4)
                )
        if plan.controlled:
            self.ledger = _ledger(plan, network)
        if state is not None:
            self._continue_readers(state)

    @property
    def history(self) -> History:
        """Measurements so far."""
        return History() if self.meter is None else self.meter.history

    def advance(self) -> None:
        """Look at the losses where that is due, and make a step; at the last, end."""
        plan, step = self.plan, self.step
        self.looked = step % max(1, plan.steps // _LOOKS) == 0 or step == plan.steps
        if self.looked:
            self._look()
        if self.ledger is not None and step % max(1, plan.steps // _CHECKS) == 0 and step < plan.steps:
            self._check(self.ledger)
        if step == plan.steps:
            self._end()
            return
        if self.gauge is not None and self.gauge.due:
            self.gauge.second(self._loss_of(1))
        self.optimizer.zero_grad()
        self._loss_of(0)().backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1

    def result(self) -> TrainedRun:
        """What came of it."""
        return TrainedRun(
            self.plan,
            self.history,
            self.looks,
            [] if self.meter is None else self.meter.skipped,
            None if self.gauge is None else self.gauge.summary(),
            [] if self.schedule is None else self.schedule.decisions,
            [] if self.ledger is None else self.ledger.entries,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that `result` and the steps to come depend on; tensors and plain values."""
        readers = {"gauge": self.gauge, "schedule": self.schedule, "ledger": self.ledger}
        return {
            "step": self.step,
            "ended": self.ended,
            "model": self.network.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "meter": None if self.meter is None else self.meter.state_dict(),
            "ledger_meter": None if self.ledger is None else self.ledger.meter.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
            "looks": self.looks.state_dict(),
            **{name: None if reader is None else reader.state_dict() for name, reader in readers.items()},
        }

    def _continue(self, state: dict[str, Any]) -> None:
        self.step, self.ended, self.looks = int(state["step"]), bool(state["ended"]), Looks.of(state["looks"])
        self.network.model.load_state_dict(state["model"])
        if self.meter is not None:  # before it is attached
            self.meter.load_state_dict(state["meter"])
        self.optimizer.load_state_dict(state["optimizer"])
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)

    def _continue_readers(self, state: dict[str, Any]) -> None:
        if self.gauge is not None:
            self.gauge.load_state_dict(state["gauge"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
            self.optimizer.load_state_dict(state["optimizer"])  # a scheduler starts by setting the step size
        if self.ledger is not None:
            self.ledger.load_state_dict(state["ledger"])
            self.ledger.meter.load_state_dict(state["ledger_meter"])

    def _loss_of(self, stream: int) -> Callable[[], Tensor]:
        batch = self.network.draw(self.generators[stream], self.plan.batch_size)
        return lambda: self.network.loss_fn(self.network.model, batch)

    def _look(self) -> None:
        rates = self.optimizer.rates if isinstance(self.optimizer, TwoRateSGD) else None
        self.looks.add(self.step, self.network.losses(), float(self.optimizer.param_groups[0]["lr"]), rates)

    def _check(self, ledger: UpdateLedger) -> None:
        """What a plain step of the present size would do, part by part."""
        plan, ledger.meter.step = self.plan, self.step
        plain = SGD(self.network.model.parameters(), lr=float(self.optimizer.param_groups[0]["lr"]))
        drawn = [self.network.draw(self.generators[2], plan.batch_size) for _ in range(_TRIED)]
        with self._skipping("ledger"):
            ledger.check(plain, drawn)

    def _end(self) -> None:
        """Take the measurement that is due where the run ends."""
        self.ended = True
        if self.handle is not None:
            self.handle.remove()
        elif isinstance(self.optimizer, TwoRateSGD) and self.step % self.plan.every == 0:
            with self._skipping("last measurement"):
                self.optimizer.meter.measure(float(self.optimizer.param_groups[0]["lr"]), self.plan.batch_size)

    @contextmanager
    def _skipping(self, what: str) -> Generator[None]:
        """A run that diverged cannot be measured, and is shown all the same."""
        try:
            yield
        except (EtastarError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            if self.meter is not None:
                self.meter.skipped.append((self.step, f"{what}: {error}"))


def _meter(plan: TrainingPlan, network: Network) -> AlignmentMeter:
    everything = len(network.train[0])
    partial = plan.curvature_samples < everything
    return AlignmentMeter(
        network.model,
        network.loss_fn,
        network.curvature_batches(plan.curvature_samples),
        plan.rank,
        gradient_batches=network.curvature_batches(everything) if partial else None,
        every=plan.every,
        overhead=plan.overhead,
        seed=plan.seed,
    )


def _gauge(plan: TrainingPlan, network: Network, optimizer: torch.optim.Optimizer) -> StepGauge:
    return StepGauge(
        optimizer,
        parameters=network.model.named_parameters(),
        every=_GAUGE_EVERY,
        batch_size=plan.batch_size,
        sampling="independent",
        seed=plan.seed,
    )


def _ledger(plan: TrainingPlan, network: Network) -> UpdateLedger:
    """With a meter of its own, and held-out samples in batches of one size."""
    inputs, targets = network.held_out
    size = max(1, min(len(inputs), network.watched) // _HELD_OUT)
    batches = [(inputs[i * size : (i + 1) * size], targets[i * size : (i + 1) * size]) for i in range(_HELD_OUT)]
    return UpdateLedger(_meter(plan, network), batches)
