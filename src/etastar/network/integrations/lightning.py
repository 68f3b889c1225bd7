"""The meter as a callback of Lightning's Trainer.

Lightning calls ``optimizer.step(closure)`` on the real optimizer, and the closure holds forward and backward: the meter
hooks in before either (under a gradient scaler and in manual optimization between backward and step), once for every
step that is made, however many batches it accumulates. Needs Lightning: ``pip install 'etastar[lightning]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from etastar.errors import InvalidArgument, MissingExtra
from etastar.history import History
from etastar.network.meter import AlignmentMeter, MeterHandle

try:
    from lightning.fabric.utilities import move_data_to_device
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtra("etastar.network.integrations.lightning", "lightning") from error

__all__ = ["AlignmentCallback"]


class AlignmentCallback(Callback):
    """Measures a `LightningModule` while ``trainer.fit`` trains it, and never changes the run.

    Numbers also go to the trainer's loggers. Checkpoints carry the history, so that a run resumed with ``ckpt_path``
    is measured as if it had never stopped.

    Args:
        loss_fn: ``loss_fn(module, batch)`` → the mean loss over the samples of the batch, a scalar tensor. What it
            says by ``module.log`` is not logged: a measurement's evaluations are none of the run's.
        curvature_batches: As `AlignmentMeter` takes them; moved to the module's device.
        batch_size: b, all samples behind one optimizer step: those of all accumulated batches together.
        path: Where to write the history while the run goes, see `AlignmentMeter.attach`.
        **options: Of `AlignmentMeter`: rank, every, overhead, target, training, …

    Attributes:
        meter: The meter; None until training starts.

    Raises:
        InvalidArgument: When training starts, whatever `AlignmentMeter.attach` refuses; several optimizers.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Tensor],
        curvature_batches: Iterable[Any],
        batch_size: int,
        *,
        path: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._loss_fn, self._batches, self._batch_size = loss_fn, list(curvature_batches), batch_size
        self._path, self._options = path, options
        self._state: dict[str, Any] | None = None  # of a checkpoint, until the meter is made
        self._handle: MeterHandle | None = None
        self.meter: AlignmentMeter | None = None

    @property
    def history(self) -> History:
        """The measurements so far."""
        return History() if self.meter is None else self.meter.history

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the meter, or go on with it, and attach it; preflight refuses here, before the first batch."""
        if len(trainer.optimizers) != 1:
            remedy = "the callback follows one; attach an AlignmentMeter to the one meant"
            raise InvalidArgument("trainer.optimizers", f"{len(trainer.optimizers)} of them", remedy)
        if self.meter is None or self.meter.model is not pl_module:
            self.meter = self._made(pl_module)
            self.meter.step = trainer.global_step
        if self._state is not None:
            self.meter.load_state_dict(self._state)
            self._state = None
        self._handle = self.meter.attach(
            trainer.optimizers[0], self._batch_size, path=self._path, log=_Loggers(trainer)
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where the run has ended, if that is due, and detach."""
        self._detach(measure=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach."""
        self._detach(measure=False)

    def state_dict(self) -> dict[str, Any]:
        """The meter's state, for the checkpoint."""
        return (self._state or {}) if self.meter is None else self.meter.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: there is no meter yet."""
        self._state = state_dict

    def _made(self, module: LightningModule) -> AlignmentMeter:
        options = dict(self._options)
        for name in {"gradient_batches"} & options.keys():
            options[name] = [move_data_to_device(batch, module.device) for batch in options[name]]
        batches = [move_data_to_device(batch, module.device) for batch in self._batches]
        return AlignmentMeter(module, _unlogged(self._loss_fn), batches, **options)

    def _detach(self, measure: bool) -> None:
        if self._handle is not None:
            self._handle.remove(measure=measure)


def _unlogged(loss_fn: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The loss with ``module.log`` switched off, also in modules within; `log_dict` goes through it."""

    def evaluate(module: LightningModule, batch: Any) -> Tensor:
        spoken = [part.__dict__ for part in module.modules() if isinstance(part, LightningModule)]
        kept = [names.get("log") for names in spoken]
        try:
            for names in spoken:
                names["log"] = _say_nothing
            return loss_fn(module, batch)
        finally:
            for names, log in zip(spoken, kept, strict=True):
                if log is None:
                    del names["log"]
                else:
                    names["log"] = log

    return evaluate


def _say_nothing(*_: Any, **__: Any) -> None:
    """In the place of ``module.log``."""


class _Loggers:
    """The trainer's loggers as a tracker, beside its other curves; they take numbers only."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def log(self, metrics: dict[str, float | str], step: int) -> None:
        numbers = {f"alignment/{name}": value for name, value in metrics.items() if isinstance(value, float)}
        for logger in self._trainer.loggers:
            logger.log_metrics(numbers, self._trainer.global_step)
