"""Training a named network: the run is reproducible, measured or not, and what it writes can be read again."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from etastar import History, InvalidArgument
from etastar.cli import main
from etastar.errors import InvalidFile
from etastar.history import encode
from etastar.network import GaugeOutcome
from etastar.recipes.networks import load_network
from etastar.recipes.training import TrainingPlan, train, unfinished, write_run
from etastar.recipes.training import run as running

PLAN = TrainingPlan("digits-cnn", steps=12, every=6, curvature_samples=60, rank=2)
FILES = ["history.jsonl", "losses.png", "run.png", "limits.png", "curvature.png", "run.html"]


@pytest.fixture(scope="module")
def run():
    torch.set_num_threads(1)
    return train(PLAN)


def test_the_meter_does_not_change_the_losses(run):
    plain = train(TrainingPlan("digits-cnn", steps=12, metered=False))
    assert plain.looks.training_loss == run.looks.training_loss
    assert plain.looks.held_out_loss == run.looks.held_out_loss
    assert len(plain.history) == 0
    assert [row.step for row in run.history] == [0, 6, 12]


def test_the_run_is_written_and_read_again(run, tmp_path):
    paths = write_run(run, tmp_path)
    assert [path.name for path in paths] == FILES
    again = History.load(paths[0])
    assert [row.alignment.value for row in again] == [row.alignment.value for row in run.history]
    assert [row.certificate for row in again] == [row.certificate for row in run.history]
    assert "held out" in paths[-1].read_text(encoding="utf-8")


def test_the_history_can_be_read_while_the_run_goes(tmp_path):
    seen = []

    def told(_name, step, _total):
        if step > 6:
            seen.append(len(History.load(tmp_path / "running.jsonl")))

    with unfinished(tmp_path):
        train(replace(PLAN, out=tmp_path), told)
        assert len(History.load(tmp_path / "running.jsonl")) == 3
    assert seen[-1] >= 2
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_killed_before_its_first_state_left_gives_way_to_the_next(tmp_path):
    (tmp_path / "running.jsonl").write_text("torn", encoding="utf-8")
    with unfinished(tmp_path):
        train(replace(PLAN, out=tmp_path))
        assert len(History.load(tmp_path / "running.jsonl")) == 3
    with unfinished(None) as place:
        assert place is None


CONTROLLED = [
    {},
    {"metered": False},
    {"optimizer": "two-rate"},
    {"policy": "equilibrated", "act": True},
    {"policy": "forecast"},
]


class Killed(BaseException):
    """As a kill: nothing may catch it."""


@pytest.mark.parametrize("options", CONTROLLED, ids=str)
def test_a_killed_run_ends_as_if_it_had_never_stopped(options, tmp_path, monkeypatch):
    plan = replace(PLAN, recipe="digits-mlp", steps=30, every=3, out=tmp_path, step_size=0.3, **options)
    whole = train(replace(plan, out=None))
    monkeypatch.setattr(running, "_SAVE_SECONDS", 0.0)
    save, kills = running.save_state, [7, 19, 29, 31]

    def killed(path, state):
        save(path, state)
        if state["run"]["step"] == kills[0]:
            kills.pop(0)
            raise Killed

    monkeypatch.setattr(running, "save_state", killed)
    for _ in range(3):
        with pytest.raises(Killed):
            train(plan)
    resumed = train(plan)
    assert kills == [31]
    assert resumed.looks == whole.looks
    assert [encode(replace(row, cost={})) for row in resumed.history] == [
        encode(replace(row, cost={})) for row in whole.history
    ]
    assert repr(resumed.gauge) == repr(whole.gauge)
    assert [one.encode() for one in resumed.decisions] == [one.encode() for one in whole.decisions]
    assert [one.encode() for one in resumed.ledger] == [one.encode() for one in whole.ledger]
    if resumed.history:
        assert len(History.load(tmp_path / "running.jsonl")) == len(whole.history)
    assert train(plan).looks == whole.looks  # of a finished run whose page was not written: nothing is run again


def test_a_controlled_run_that_diverges_is_written_all_the_same(tmp_path):
    run = train(replace(PLAN, steps=30, every=3, step_size=1e8, policy="equilibrated", act=True))
    assert not math.isfinite(run.looks.training_loss[-1])
    assert run.looks.steps[-1] == 30
    assert any("ledger" in reason and "not finite" in reason for _, reason in run.skipped)
    assert write_run(run, tmp_path)[-1].name == "run.html"


def test_the_state_of_another_run_is_refused_and_kept(tmp_path):
    plan = replace(PLAN, out=tmp_path)
    train(plan)
    before = (tmp_path / "running.pt").read_bytes()
    with pytest.raises(InvalidFile, match=r"running\.pt.*other options, data or versions; delete it"):  # noqa: SIM117
        with unfinished(tmp_path):
            train(replace(plan, steps=13))
    assert (tmp_path / "running.pt").read_bytes() == before
    assert (tmp_path / "running.jsonl").exists()
    for damaged in (b"", b"PK\x03\x04", before[: len(before) // 2]):
        (tmp_path / "running.pt").write_bytes(damaged)
        with pytest.raises(InvalidFile, match="is no state of a run; delete it, or name another place"):
            train(plan)


def test_the_initialisation_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    first, second = load_network("digits-mlp", seed=1).model, load_network("digits-mlp", seed=1).model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert len(load_network("digits-mlp").held_out[0]) == 297


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "resnet"}, "recipe: got 'resnet'"),
        ({"steps": -1}, "steps: got -1"),
        ({"every": -1}, "every: got -1"),
        ({"step_size": -1.0}, "step_size: got -1.0"),
        ({"step_size": 1e99}, "step_size: got 1e\\+99; must be positive, and finite in float32"),
        ({"batch_size": 10_000}, "batch_size: got 10000"),
        ({"curvature_samples": 10_000}, "curvature_samples: got 10000"),
        ({"optimizer": "adam"}, "optimizer: got 'adam'; must be sgd or two-rate"),
        ({"policy": "greedy"}, "policy: got 'greedy'; must be equilibrated or forecast"),
        ({"policy": "forecast", "optimizer": "two-rate"}, "policy: got 'forecast'; judges plain SGD"),
        ({"act": True}, "act: got True; needs a --policy to act on"),
        ({"optimizer": "two-rate", "metered": False}, "meter: got False; must stay on"),
    ],
)
def test_bad_plans_are_refused_by_name(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        train(TrainingPlan(**{"recipe": "digits-mlp", "steps": 1, **wrong}))


def test_the_command_prints_strict_json_and_a_table(capsys, tmp_path):
    options = ["digits-cnn", "--loss", "cross-entropy", "--steps", "6", "--every", "3", "--rank", "2"]
    options += ["--curvature-samples", "60", "--out", str(tmp_path / "run")]
    assert main(["train", *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert result["loss"] == "cross-entropy"
    assert len(result["measurements"]["alignment"]) == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(FILES)
    assert main(["train", *options[:-2]]) == 0
    assert "90 % interval" in capsys.readouterr().out
    assert main(["train", "digits-cnn", "--steps", "-1"]) == 2
    assert capsys.readouterr().err == "etastar: steps: got -1; must be at least 1\n"


NO_TORCH = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from etastar.cli import main
from etastar.errors import InvalidFile
from etastar.history import encode
sys.exit(main(["train", "digits-mlp"]))
"""


def test_without_pytorch_the_command_names_the_extra():
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "etastar: etastar.network needs an extra that is not installed; run: pip install 'etastar[network]'"
    ]


def test_what_the_gauge_advises_is_worded_for_the_command(run):
    assert run.gauge_verdict == "not enough steps for the gauge: train longer"
    diverged = train(replace(PLAN, steps=12, step_size=1e4))
    assert diverged.gauge_verdict == "the run diverged: take a smaller step size"
    assert replace(run, gauge=None).gauge_verdict == ""
    enough = replace(run.gauge, outcome=GaugeOutcome.RESOLVED)
    assert replace(run, gauge=enough).gauge_verdict == enough.verdict
