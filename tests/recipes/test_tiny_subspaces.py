"""The tiny-subspaces experiment: the protocol against dense algebra, resuming after a kill, verdicts, bad input."""

import copy
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from cli.running import group_members
from etastar.cli.experiments import tiny_subspaces as command
from etastar.errors import InvalidArgument, InvalidFile
from etastar.recipes.networks import load_network
from etastar.recipes.tiny_subspaces import (
    SeedRun,
    Series,
    TinySubspacesPlan,
    TinySubspacesRun,
    tiny_subspaces,
    tiny_subspaces_section,
    write_tiny_subspaces,
)
from etastar.recipes.tiny_subspaces.findings import findings
from etastar.recipes.tiny_subspaces.plan import load
from etastar.recipes.tiny_subspaces.stage import BRANCHES, COLUMNS, MEMORY, Stage
from etastar.recipes.tiny_subspaces.store import load_state
from recipes.tiny_protocol import PLAN, SWITCH, patched

PROGRAM = os.path.join(os.path.dirname(__file__), "tiny_protocol.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(PROGRAM))}
FILES = ("results.json", "four-runs.png", "switch.png", "run.html")


def patch_items(patch, where, name, value):
    (patch.setitem if isinstance(where, dict) else patch.setattr)(where, name, value)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patched(lambda *what: patch_items(patch, *what))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    run = tiny_subspaces(PLAN, out)
    write_tiny_subspaces(run, out)
    return run, out


def dense_top(network, rank, samples):
    """Top eigenvectors of the Hessian over the first samples, from second derivatives of the loss, in float64."""
    names = [name for name, _ in network.model.named_parameters()]
    shapes = [parameter.shape for parameter in network.model.parameters()]
    batch = tuple(part[:samples] for part in network.train)
    batch = (batch[0].double(), batch[1])

    def loss(vector):
        pieces = [piece.view(s) for piece, s in zip(vector.split([s.numel() for s in shapes]), shapes, strict=True)]
        call = lambda inputs: functional_call(network.model, dict(zip(names, pieces, strict=True)), inputs)  # noqa: E731
        return network.loss_fn(call, batch)

    matrix = hessian(loss, parameters_to_vector(network.model.parameters()).detach().double())
    return torch.linalg.eigh(matrix)[1][:, -rank:]


def gradient(network, batch):
    loss = network.loss_fn(network.model, batch)
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(network.model.parameters()))])


@pytest.mark.parametrize("name", BRANCHES)
def test_one_step_of_each_run_is_what_dense_algebra_says(name):
    plan, network = load(PLAN, 3)
    stage = Stage(network, plan, 3, name)
    top = dense_top(network, 3, 100).float()
    whole = gradient(network, network.train)
    batch = gradient(network, network.draw(torch.Generator().manual_seed(3), 20))
    inside = top @ (top.mT @ batch)
    expected = 0.2 * {"sgd": batch, "dominant": inside, "bulk": batch - inside, "gd": whole}[name]
    before = parameters_to_vector(network.model.parameters()).detach().clone()
    stage.advance()
    update = before - parameters_to_vector(network.model.parameters()).detach()
    # The basis is refreshed to an error of 1 %, by its own estimate.
    assert float((update - expected).norm()) < 0.03 * 0.2 * float(batch.norm())
    seen = dict(zip(COLUMNS, stage.state_dict()["series"][0].tolist(), strict=True))
    assert seen["chi"] == pytest.approx(float((top.mT @ whole).norm() / whole.norm()), abs=0.01)
    assert seen["loss"] == pytest.approx(float(network_loss(plan, 3)), rel=1e-5)


def network_loss(plan, seed):
    network = load(plan, seed)[1]
    with torch.no_grad():
        return network.loss_fn(network.model, network.train)


def test_sgd_is_plain_sgd_through_the_switch_and_all_runs_start_alike(finished):
    one = finished[0].seeds[0]
    assert one.switch is not None
    network = load_network("tiny", "mse", 0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.2)
    losses = []
    for _ in range(150):
        with torch.no_grad():
            losses.append(float(network.loss_fn(network.model, network.train)))
        optimizer.zero_grad()
        network.loss_fn(network.model, network.draw(generator, 20)).backward()
        optimizer.step()
    seen = np.concatenate([one.approach["loss"], one.branches["sgd"]["loss"]])
    np.testing.assert_allclose(seen, losses, rtol=1e-4)
    assert {series["loss"][0] for series in one.branches.values()} == {one.branches["sgd"]["loss"][0]}
    assert {len(series) for series in one.branches.values()} == {150 - one.switch}


def test_the_switch_comes_when_the_moving_average_passes(finished):
    one, average = finished[0].seeds[0], 0.0
    for chi in one.approach["chi"]:
        average = MEMORY * average + (1 - MEMORY) * chi
        assert average <= SWITCH
    average = MEMORY * average + (1 - MEMORY) * one.branches["sgd"]["chi"][0]
    assert average > SWITCH - 0.01  # the basis there was refreshed once more


def test_a_killed_run_goes_on_to_the_same_bytes(finished, tmp_path):
    for stage in ("approach", "dominant"):
        process = subprocess.Popen([sys.executable, PROGRAM, tmp_path, "1"], env=ENVIRONMENT)
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob(f"{stage}.pt")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(tmp_path.rglob(f"{stage}.pt"))
    assert not list(tmp_path.rglob("gd.pt"))
    write_tiny_subspaces(tiny_subspaces(PLAN, tmp_path), tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (finished[1] / name).read_bytes()


def test_a_run_interrupted_in_every_stage_is_the_same(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("etastar.recipes.tiny_subspaces.run.CHECKPOINT_SECONDS", 0.02)
    total = 4 * PLAN.steps
    for limit in (total // 9, total // 3, total // 2, int(0.7 * total), int(0.9 * total)):

        def tell(_name, done, _total, limit=limit):
            if done >= limit:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tiny_subspaces(PLAN, tmp_path, tell)
    again = tiny_subspaces(PLAN, tmp_path).seeds[0]
    one = finished[0].seeds[0]
    assert again.switch == one.switch
    for branch in BRANCHES:
        for column in COLUMNS:
            np.testing.assert_array_equal(again.branches[branch][column], one.branches[branch][column])
    assert again.window.loss_thresholds == one.window.loss_thresholds


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr(Stage, "advance", lambda self: pytest.fail("a step"))
    again = tiny_subspaces(PLAN, finished[1])
    assert tiny_subspaces_section(again).data == tiny_subspaces_section(finished[0]).data


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"cos\nsystem\n(S'touch executed'\ntR."])
def test_a_file_that_is_no_stage_is_refused_and_never_executed(finished, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    name = next(finished[1].rglob("sgd.pt")).parent.name
    target = tmp_path / "stages" / name / "approach.pt"
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    with pytest.raises(InvalidFile, match=r"is no stage of this experiment; delete it"):
        tiny_subspaces(PLAN, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_stage_of_another_network_is_refused(finished, tmp_path):
    source = next(finished[1].rglob("approach.pt"))
    state = torch.load(source, weights_only=True)
    target = tmp_path / "stages" / source.parent.name / "approach.pt"
    target.parent.mkdir(parents=True)
    torch.save(state | {"model": {}, "ended": False}, target)
    with pytest.raises(InvalidFile, match="is no stage of this experiment"):
        tiny_subspaces(PLAN, tmp_path)


def damaged(finished, tmp_path, name, changed):
    """The stages of a finished run, one of them with other entries."""
    source = next(finished[1].rglob("approach.pt")).parent
    target = tmp_path / "stages" / source.name
    target.mkdir(parents=True)
    for path in source.iterdir():
        torch.save(torch.load(path, weights_only=True) | (changed if path.stem == name else {}), target / path.name)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("sgd", {"measured": ["{"] * 16}),
        ("sgd", {"measured": [3] * 16}),
        ("sgd", {"measured": ['{"step": 1}'] * 16}),
        ("gd", {"series": torch.full((10, 6), math.nan, dtype=torch.float64)}),
        ("gd", {"series": torch.zeros(10, 6, dtype=torch.int64)}),
        ("gd", {"step": -3}),
        ("approach", {"optimizer": {"state": {}, "param_groups": None}, "ended": False}),
    ],
)
def test_a_stage_edited_by_hand_is_named(finished, tmp_path, name, changed):
    damaged(finished, tmp_path, name, changed)
    with pytest.raises(InvalidFile, match=rf"{name}\.pt.*is no stage of this experiment; delete it"):
        tiny_subspaces(PLAN, tmp_path)


def test_the_stage_that_another_one_starts_from_is_the_one_named(finished, tmp_path):
    damaged(finished, tmp_path, "approach", {"model": {}})
    next(tmp_path.rglob("sgd.pt")).unlink()
    with pytest.raises(InvalidFile, match=r"approach\.pt.*is no stage of this experiment"):
        tiny_subspaces(PLAN, tmp_path)


def test_sgd_that_diverges_after_the_switch_is_no_success(finished):
    run = made_up(finished)
    section = tiny_subspaces_section(
        dataclasses.replace(run, seeds=[dataclasses.replace(one, window=None) for one in run.seeds])
    )
    assert [check.passed for check in section.checks] == [True, False]


def test_what_cannot_be_judged_is_said_in_words(finished):
    run = made_up(finished, gd_edge=5)
    section = tiny_subspaces_section(run)
    assert "none to judge" in section.checks[3].measured
    run.seeds[0].branches["sgd"].columns["loss"][:] = 1.0  # no fall of its own to share
    told = tiny_subspaces_section(run)
    assert "share none to judge" in told.checks[1].measured
    assert not re.search(r"\bnan\b", str([told.checks, told.tables, told.reading]))


def test_sgd_that_ends_before_gd_reaches_its_edge_leaves_nothing_to_compare(finished):
    run = made_up(finished)
    sgd = run.seeds[0].branches["sgd"]
    run.seeds[0].branches["sgd"] = Series(10, {name: column[:80] for name, column in sgd.columns.items()}, False)
    assert math.isnan(findings(run.seeds[0], 0.2).sgd_chi)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "imagenet"}, "data: got 'imagenet'; must be one of digits, mnist5k, cifar5k, sst2, text"),
        ({"steps": 127}, "steps: got 127; must be at least 128"),
        ({"steps": -1}, "steps: got -1; must be at least 128"),
        ({"seeds": 0}, "seeds: got 0; must be at least 1"),
        ({"seeds": 10**12}, "seeds: got 1000000000000; must be at most 1000"),
        ({"seed": -1}, "seed: got -1; must be"),
        ({"step_size": -0.1}, "step_size: got -0.1; must be positive"),
        ({"step_size": math.nan}, "step_size: got nan; must be positive"),
        ({"curvature_samples": 1}, "curvature_samples: got 1; must be between 2 and 1500"),
        ({"curvature_samples": 1501}, "curvature_samples: got 1501; must be between 2 and 1500"),
        ({"files": "/nowhere"}, "files: got '/nowhere'; tiny brings its own data"),
        ({"data": "cifar5k", "files": "/nowhere"}, "files: got '/nowhere'; holds no data_batch_1.bin.*--files or"),
        ({"data": "sst2", "files": "/nowhere"}, "files: got '/nowhere'; holds no train.tsv.*--files or"),
    ],
)
def test_bad_input_is_refused_by_name(changed, message):
    with pytest.raises(InvalidArgument, match=message):
        tiny_subspaces(dataclasses.replace(PLAN, **changed))


def test_whatever_a_seed_s_runs_depend_on_is_in_the_name_of_their_states():
    plan, network = load(PLAN, 0)
    changes = [{"steps": 151}, {"step_size": 0.3}, {"curvature_samples": 99}, {"data": "mnist5k"}]
    keys = [dataclasses.replace(plan, **changed).key(network, 0) for changed in [{}, *changes]]
    assert len({*keys, plan.key(network, 1)}) == 6
    same = dataclasses.replace(plan, seeds=7, seed=4, full=True)
    assert same.key(network, 0) == keys[0]


def test_full_means_the_whole_protocol():
    plan, network = load(TinySubspacesPlan("digits", full=True), 0)
    assert (plan.steps, plan.curvature_samples) == (20_000, len(network.train[0]))
    plan, _ = load(TinySubspacesPlan("digits"), 0)
    assert (plan.steps, plan.curvature_samples, plan.seeds) == (5000, 256, 3)


def test_without_a_switch_there_is_one_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr("etastar.recipes.tiny_subspaces.stage.SWITCH", 0.9999)
    run = tiny_subspaces(dataclasses.replace(PLAN, steps=128))
    assert (run.seeds[0].switch, len(run.seeds[0].approach), run.seeds[0].branches) == (None, 64, {})
    section = tiny_subspaces_section(run)
    assert [check.passed for check in section.checks] == [False]
    assert "not in the first half" in section.checks[0].measured
    write_tiny_subspaces(run, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["seeds"] == []


def test_a_run_that_diverges_is_told_and_not_an_error(tmp_path):
    run = tiny_subspaces(dataclasses.replace(PLAN, step_size=1e6))
    assert run.seeds[0].switch is None
    assert len(run.seeds[0].approach) < 20
    assert "not before it diverged at step" in tiny_subspaces_section(run).checks[0].measured
    write_tiny_subspaces(run, tmp_path)


def test_the_command(finished, capsys, tmp_path):
    arguments = {"steps": 150, "curvature_samples": 100, "seeds": 1, "out": finished[1]}
    code = command(**arguments, json=True)
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((finished[1] / "results.json").read_text(encoding="utf-8"))
    assert code == (0 if all(check["passed"] for check in data["checks"]) else 1)
    command(**arguments)
    assert "Does SGD happen in a tiny subspace?" in capsys.readouterr().out
    with pytest.raises(InvalidFile, match="is a file; name a directory"):
        command(out=finished[1] / "results.json")


def series_of(begin, loss, chi, largest, complete=True):
    n = len(loss)
    columns = dict.fromkeys(COLUMNS, np.full(n, 1.0))
    columns |= {"loss": np.asarray(loss), "chi": np.full(n, chi), "largest_eigenvalue": np.asarray(largest)}
    return Series(begin, columns, complete)


def made_up(finished, dominant=1.0, bulk=0.1, complete=True, gd_edge=200, gd_chi=0.01):
    """A run whose numbers are known: η = 0.2, so that the edge is at λ₁ = 10; SGD falls from 1 to 0.1."""
    window = finished[0].seeds[0].window
    n = 200
    ramp = np.concatenate([np.full(50, 1.0), np.full(n - 50, 0.1)])
    branches = {
        "sgd": series_of(10, ramp, 0.98, np.full(n, 5.0)),
        "dominant": series_of(10, np.full(n, dominant), 0.9, np.full(n, 5.0)),
        "bulk": series_of(10, np.full(n, bulk), 0.98, np.full(n, 5.0), complete),
        "gd": series_of(10, ramp, gd_chi, np.where(np.arange(n) < gd_edge, 5.0, 11.0)),
    }
    window = dataclasses.replace(window, step=10 + 60)
    one = SeedRun(0, 10, series_of(0, np.full(10, 1.0), 0.5, np.full(10, 5.0)), branches, window)
    return TinySubspacesRun(dataclasses.replace(PLAN, steps=210, step_size=0.2), [one])


def test_falls_edges_and_shares_are_what_they_should_be(finished):
    found = findings(made_up(finished, dominant=0.8, bulk=0.05, gd_edge=120).seeds[0], 0.2)
    assert found.fall("sgd") == pytest.approx(math.log(10))
    assert found.share("dominant") == pytest.approx(math.log(1 / 0.8) / math.log(10))
    assert found.share("bulk") == pytest.approx(math.log(20) / math.log(10))
    assert (found.calm, found.gd_chi, found.sgd_chi) == (120, 0.01, 0.98)
    assert found.edge == pytest.approx((0.5, 0.5))
    assert found.first_chi == 0.5


def test_a_loss_of_the_bulk_that_rises_again_is_told(finished):
    run = made_up(finished)
    assert findings(run.seeds[0], 0.2).bulk_turn is None
    loss = np.concatenate([np.linspace(1.0, 0.2, 100), np.full(50, 0.1), np.full(50, 3.0)])
    run.seeds[0].branches["bulk"] = series_of(10, loss, 0.98, np.linspace(1.0, 200.0, 200))
    steps, lowest, edge = findings(run.seeds[0], 0.2).bulk_turn
    assert (steps, lowest) == (150, pytest.approx(0.1))
    assert edge == pytest.approx(0.1 * np.linspace(1.0, 200.0, 200)[100:150].mean())
    section = tiny_subspaces_section(run)
    assert "seed 0: 0.1 after 150 steps, ηλ₁/2 = 12.6" in section.reading


def test_a_curve_ends_where_the_loss_blows_up(finished):
    run = made_up(finished)
    loss = np.concatenate([np.full(120, 1.0), np.full(80, 1e19)])
    run.seeds[0].branches["bulk"] = series_of(10, loss, 0.98, np.geomspace(1.0, 1e14, 200))
    for figure in tiny_subspaces_section(run).figures:
        for line in (
            mark for panel in figure.panels for mark in panel.marks if getattr(mark, "label", "") == "Bulk-SGD"
        ):
            assert max(line.x) == 10 + 119
            assert max(line.y) < 1e9


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, None),
        ({"dominant": 0.3}, 1),
        ({"bulk": 0.5}, 2),
        ({"complete": False}, 2),
        ({"gd_chi": 0.6}, 3),
        ({"gd_edge": 5}, 3),
    ],
)
def test_each_statement_fails_when_it_does_not_hold(finished, changed, failing):
    checks = tiny_subspaces_section(made_up(finished, **changed)).checks
    assert [index for index in range(4) if not checks[index].passed] == ([] if failing is None else [failing])


def test_thresholds_at_the_switch_decide_the_last_two_statements(finished):
    run = made_up(finished)
    found = findings(run.seeds[0], 0.2)
    bounds = run.seeds[0].window.loss_thresholds
    assert found.dominant.value == pytest.approx(0.2 / bounds.dominant.value)
    checks = tiny_subspaces_section(run).checks
    assert checks[4].passed == (found.dominant.low >= 0.8 and found.bulk.high <= 0.8)
    assert checks[5].passed
    over = run.seeds[0].branches["sgd"]["largest_eigenvalue"]
    over[:] = 10.5
    assert not tiny_subspaces_section(run).checks[5].passed


@pytest.mark.slow
def test_seeds_side_by_side_are_what_they_are_one_after_the_other(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    write_tiny_subspaces(tiny_subspaces(dataclasses.replace(PLAN, seeds=2), workers=1), alone)
    subprocess.run([sys.executable, PROGRAM, together, "2"], env=ENVIRONMENT, check=True, timeout=300)
    for name in FILES:
        assert (together / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_too(tmp_path):
    def tell(_name, done, _total):
        if done:
            raise KeyboardInterrupt

    before = set(active_children())
    with pytest.raises(KeyboardInterrupt):
        tiny_subspaces(TinySubspacesPlan("digits", seeds=3), tmp_path, tell, workers=2)
    assert not set(active_children()) - before
    stages = [load_state(path) for path in tmp_path.rglob("*.pt")]
    assert not any(state["ended"] for state in stages)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_a_killed_parent_takes_its_workers_along(tmp_path):
    arguments = [sys.executable, PROGRAM, tmp_path, "2"]
    process = subprocess.Popen(arguments, env=ENVIRONMENT, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("*.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(group_members(process.pid)) >= 3
    process.kill()
    process.wait()
    while group_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert group_members(process.pid) == []


def test_an_error_comes_through_from_another_process():
    error = copy.copy(InvalidFile("out", "a", "b"))  # as a worker's result does, by its reduction
    assert (type(error), error.name, str(error)) == (InvalidFile, "out", "out: got 'a'; b")
