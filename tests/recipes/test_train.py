"""Training a named network: the run is reproducible, measured or not, and what it writes can be read again."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from etastar import History, InvalidArgument
from etastar.cli import main
from etastar.network import GaugeOutcome
from etastar.recipes.networks import load_network
from etastar.recipes.train import TrainingPlan, train
from etastar.recipes.train_report import running_history, write_run

PLAN = TrainingPlan("digits-cnn", steps=12, every=6, curvature_samples=60, rank=2)
FILES = ["history.jsonl", "losses.png", "run.png", "limits.png", "curvature.png", "run.html"]


@pytest.fixture(scope="module")
def run():
    torch.set_num_threads(1)
    return train(PLAN)


def test_the_meter_does_not_change_the_losses(run):
    plain = train(TrainingPlan("digits-cnn", steps=12, metered=False))
    assert plain.training_loss == run.training_loss
    assert plain.held_out_loss == run.held_out_loss
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

    with running_history(tmp_path) as live:
        train(replace(PLAN, live=live), told)
        assert len(History.load(live)) == 3
    assert seen[-1] >= 2
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_gives_way_to_the_next(tmp_path):
    (tmp_path / "running.jsonl").write_text("torn", encoding="utf-8")
    with running_history(tmp_path) as live:
        assert not live.exists()
    with running_history(None) as live:
        assert live is None


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
