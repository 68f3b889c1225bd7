"""The meter under Lightning's real Trainer: bit for bit the same run, its steps counted, its checkpoints resumed."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from etastar import History, InvalidArgument
from etastar.measurement import encode
from etastar.network.integrations.lightning import AlignmentCallback


def samples(count=40):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 5, generator=generator), torch.randn(count, 3, generator=generator)


def loss_fn(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


class Module(LightningModule):
    def __init__(self, manual=False, spoilt=()):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, 3))
        self.automatic_optimization, self.spoilt, self.order = not manual, spoilt, []

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, index):
        loss = loss_fn(self, batch) * (float("inf") if index in self.spoilt else 1.0)
        self.order.append("forward")
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples()), batch_size=4, shuffle=True)


class Seen(Logger):
    """A logger that keeps what it is given."""

    name, version = "seen", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class FailAt(Callback):
    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise self.error


def callback(**options):
    x, y = samples()
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    options = {"rank": 2, "probes": 2, "overhead": None, "every": 3, "training": False, **options}
    return AlignmentCallback(loss_fn, batches, options.pop("batch_size", 4), **options)


def fit(module, callbacks=(), ckpt_path=None, **options):
    torch.manual_seed(9)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_steps": 8, "max_epochs": -1, "logger": False, "accelerator": "cpu", "devices": 1, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers, and deprecations inside it
        trainer = Trainer(callbacks=list(callbacks), **quiet, **options)
        trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def state_of(module, trainer):
    found = [*module.state_dict().values(), *(p.grad for p in module.parameters())]
    found += [s["momentum_buffer"] for s in trainer.optimizers[0].state.values()]
    return [*found, torch.get_rng_state(), torch.tensor([m.training for m in module.modules()])]


SETTINGS = {
    "automatic": ({}, {}),
    "manual": ({"manual": True}, {}),
    "accumulated and clipped": ({}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "bfloat16": ({}, {"precision": "bf16-mixed"}),
    "manual, bfloat16": ({"manual": True}, {"precision": "bf16-mixed"}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_bit_identical(setting):
    module_options, options = SETTINGS[setting]
    states = []
    for meter in (None, callback()):
        module = Module(**module_options)
        trainer = fit(module, [] if meter is None else [meter], **options)
        states.append(state_of(module, trainer))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert [row.step for row in meter.history] == [0, 3, 6]
    assert not meter.meter.skipped
    assert meter.meter.step == trainer.global_step == 8
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks


@pytest.mark.parametrize("manual", [False, True])
def test_steps_that_a_scaler_skips_do_not_count(manual):
    states = []
    for meter in (None, callback(every=1)):
        module = Module(manual, spoilt=(2, 5))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        trainer = fit(
            module, [] if meter is None else [meter], plugins=MixedPrecision("16-mixed", "cpu", scaler), max_steps=9
        )
        states.append(state_of(module, trainer))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert trainer.global_step == 9  # Lightning counts them
    assert [row.step for row in meter.history] == [*range(8)]


def test_it_measures_before_the_closure_runs():
    meter, module = callback(every=1), Module()
    original = meter._made

    def watched(pl_module):
        made = original(pl_module)
        measure = made.measure
        made.measure = lambda *arguments: (module.order.append("measure"), measure(*arguments))[1]
        return made

    meter._made = watched
    fit(module, [meter], max_steps=2, accumulate_grad_batches=2)
    assert module.order == ["forward", "measure", "forward", "forward", "measure", "forward", "measure"]


def test_loggers_get_the_numbers_and_the_file_grows(tmp_path):
    logger, meter, path = Seen(), callback(path=tmp_path / "run.jsonl"), tmp_path / "run.jsonl"
    fit(Module(), [meter], logger=logger)
    rows = [(step, row) for step, row in logger.rows if "alignment/alignment" in row]
    assert [step for step, _ in rows] == [0, 3, 6]
    assert all(isinstance(value, float) for _, row in rows for value in row.values())
    assert rows[0][1]["alignment/alignment"] == meter.history[0].alignment.value
    assert [encode(row) for row in History.load(path)] == [encode(row) for row in meter.history]


def test_a_run_resumed_from_a_checkpoint_is_as_if_it_had_never_stopped(tmp_path):
    def measured(rows):
        return [{**json.loads(encode(row)), "cost": row.cost["products"]} for row in rows]

    whole = callback()
    fit(Module(), [whole], max_steps=20)  # two epochs
    path, first = tmp_path / "run.jsonl", callback(path=tmp_path / "run.jsonl")
    trainer = fit(Module(), [first], max_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["callbacks"]["AlignmentCallback"]
    assert state["step"] == 10
    second = callback(path=path)
    module = Module()
    streams = torch.get_rng_state()
    fit(module, [second], ckpt_path=tmp_path / "run.ckpt", max_steps=20)
    assert [row.step for row in second.history] == [0, 3, 6, 9, 12, 15, 18]
    assert measured(second.history)[:4] == measured(first.history) == measured(whole.history)[:4]
    assert [encode(row) for row in History.load(path)] == [encode(row) for row in second.history]
    assert not torch.equal(streams, torch.get_rng_state())


def test_a_callback_that_joins_later_counts_from_the_trainers_steps(tmp_path):
    trainer = fit(Module(), max_steps=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.save_checkpoint(tmp_path / "run.ckpt")
    meter = callback()
    fit(Module(), [meter], ckpt_path=tmp_path / "run.ckpt", max_steps=10)
    assert [row.step for row in meter.history] == [6, 9]


def test_the_population_target_under_lightning():
    x, y = samples()
    module = Module()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    meter = callback(target="population", gradient_batches=[(x[i : i + 5], y[i : i + 5]) for i in (0, 5, 10, 15)])
    fit(module, [meter], max_steps=4)
    assert [row.step for row in meter.history] == [0, 3]
    assert meter.history[0].moments.shape == (4,)


def test_a_second_fit_goes_on_with_the_first_history():
    meter, module = callback(), Module()
    fit(module, [meter], max_steps=4)
    fit(module, [meter], max_steps=4)
    assert [row.step for row in meter.history] == [0, 3, 6]


def test_preflight_refuses_before_the_first_batch():
    module, meter = Module(), callback(training=None)
    with pytest.raises(InvalidArgument, match="batch norm in training mode"):
        fit(module, [meter])
    assert module.order == []


def test_several_optimizers_are_refused():
    module = Module(manual=True)
    module.configure_optimizers = lambda: [torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(InvalidArgument, match=r"trainer.optimizers: got '2 of them'"):
        fit(module, [callback()])


def test_an_exception_in_the_run_detaches_the_meter():
    meter, module = callback(every=1), Module()
    optimizers = []
    module.configure_optimizers = lambda: optimizers.append(torch.optim.SGD(module.parameters(), 0.1)) or optimizers[0]
    with pytest.raises(ValueError, match="enough"):
        fit(module, [meter, FailAt(3, ValueError("enough"))])
    assert [row.step for row in meter.history] == [0, 1, 2]
    assert not optimizers[0]._optimizer_step_pre_hooks
    assert not meter._handle.attached


def test_without_lightning_the_extra_is_named():
    code = "import sys; sys.modules['lightning'] = None; import etastar.network.integrations.lightning"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MissingExtra: etastar.network.integrations.lightning needs an extra" in done.stderr
    assert "pip install 'etastar[lightning]'" in done.stderr


class Talking(Module):
    """Its loss logs, as a `training_step` does; so does a part of it that is a LightningModule itself."""

    def __init__(self):
        super().__init__()
        self.part = LightningModule()

    def loss(self, batch):
        found = loss_fn(self, batch)
        self.log("said", found.detach(), on_step=True, on_epoch=True)
        self.log_dict({"twice": 2 * found.detach()})
        return found

    def training_step(self, batch, index):
        return self.loss(batch)


def test_what_a_loss_logs_while_it_is_measured_is_not_the_runs():
    seen = []
    for meter in (None, callback(every=2)):
        if meter is not None:
            meter._loss_fn = lambda module, batch: module.loss(batch)
        logger, module = Seen(), Talking()
        module.part.log = spoken = lambda *_, **__: None
        fit(module, [] if meter is None else [meter], logger=logger, log_every_n_steps=1, max_steps=12)
        rows = [{k: v for k, v in row.items() if "alignment/" not in k} for _, row in logger.rows]
        seen.append([row for row in rows if row])
        assert "log" not in module.__dict__
        assert module.part.__dict__["log"] is spoken
    assert len(meter.history) > 3
    assert seen[0] == seen[1]
    assert any("said_epoch" in row for row in seen[0])
