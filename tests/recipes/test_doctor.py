"""The doctor: what is there, whether it measures right, and a model of the user's own, sound, unsound or misnamed."""

import importlib.metadata
import json
import random
import sys

import numpy as np
import pytest
import torch

from etastar import InvalidArgument, MissingExtra
from etastar.recipes import doctor as module
from etastar.recipes import self_check
from etastar.recipes.doctor import DoctorReport, DoctorRow, doctor

SOUND = """
import torch

print("imported")

def build():
    print("built")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    batch = torch.randn(12, 6), torch.randn(12, 2)
    return model, lambda m, b: (m(b[0]) - b[1]).square().mean(), [batch]

def dropping():
    model, loss_fn, batches = build()
    model.append(torch.nn.Dropout(0.5))
    model.append(torch.nn.ReLU())
    return model, loss_fn, batches

def summed():
    model, loss_fn, batches = build()
    return model, lambda m, b: (m(b[0]) - b[1]).square().sum(), batches

def raises():
    return build()[0](torch.randn(3, 7))

def stops():
    raise SystemExit(3)

def raises_at_loss():
    model, _, batches = build()
    return model, lambda m, b: {}["nothing\\nhere"], batches

def pair():
    return build()[:2]

def listed():
    return list(build())

def no_model():
    return (len, *build()[1:])

def no_loss():
    model, _, batches = build()
    return model, 3.0, batches

def no_batches():
    return (*build()[:2], 7)

def empty():
    return (*build()[:2], [])

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with the module above in it, under a name of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_model.py").write_text(SOUND)
    monkeypatch.delitem(sys.modules, "their_model", raising=False)
    yield tmp_path
    sys.modules.pop("their_model", None)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "_self_check", lambda: iter(()))


def row_of(report, what):
    return next(row for row in report.rows if row.what == what)


def test_this_installation_measures_right_and_is_left_as_it_was(here, capsys):
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    report = doctor()
    assert report.passed, report
    assert report.rows[0].what == "Python"
    for name in ("numpy", "scipy", "torch"):
        assert row_of(report, name).state == importlib.metadata.version(name)
    for name in ("threads", "float32 matmul precision", "devices", "free memory", "output folder", "torch.distributed"):
        assert row_of(report, name).state
    checks = [row for row in report.rows if row.what.startswith("self-check")]
    assert [row.what.split()[-1] for row in checks] == ["preflight", "meter", "gauge"]
    assert all("exactly" in row.state for row in checks[1:])
    answer = json.loads(json.dumps(report.to_json()))
    assert answer["passed"] is True
    assert answer["rows"][0].keys() == {"what", "state", "remedy", "passed"}
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1] == random.getstate()
    assert np.array_equal(streams[2], np.random.get_state()[1])  # noqa: NPY002
    assert capsys.readouterr().out == ""
    assert [path.name for path in here.iterdir()] == ["their_model.py"]  # nothing was written


def test_a_wrong_measurement_fails_the_self_check(monkeypatch):
    monkeypatch.setattr(self_check, "critical_step_size", lambda split: type("Step", (), {"value": 1e9}))
    monkeypatch.setattr(self_check, "_moments", lambda *_: (1.0, 1.0, 1.0))
    rows = {row.what: row for row in module._self_check()}
    assert rows["self-check: preflight"].passed
    assert not rows["self-check: meter"].passed
    assert not rows["self-check: gauge"].passed
    assert "cannot be trusted" in rows["self-check: gauge"].remedy
    monkeypatch.setattr(self_check, "AlignmentMeter", None)
    assert "TypeError: 'NoneType' object is not callable" in next(
        row.state for row in module._self_check() if row.what == "self-check: meter"
    )


def test_a_sound_model_passes_and_prints_nothing_on_stdout(here, quick, capsys):
    report = doctor("their_model:build")
    assert report.passed
    assert report.rows[-1] == DoctorRow("their_model:build", "sound")
    assert capsys.readouterr().out == ""
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("name", "what"), [("dropping", "dropout in training mode"), ("summed", "summed loss"), ("empty", "batches")]
)
def test_an_unsound_model_is_told_by_its_findings(here, quick, name, what):
    report = doctor(f"their_model:{name}")
    assert not report.passed
    row = row_of(report, f"their_model:{name}: {what}")
    assert not row.passed
    assert row.state.startswith("refused: ")
    assert row.remedy
    assert not report.to_json()["passed"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "must be module:function"),
        ("their_model", "must be module:function"),
        ("their_model:", "must be module:function"),
        (":build", "must be module:function"),
        ("their_model:build()", "must be module:function"),
        ("../their_model:build", "must be module:function"),
        ("their_model:a:b", "must be module:function"),
        ("their_modle:build", "no module their_modle here or installed"),
        ("their_model.inner:build", "no module their_model.inner here or installed"),
        ("their_model:bild", "has no bild; close: build"),
        ("their_model:number", "has no callable number"),
        ("their_model:raises", "the function raised RuntimeError: mat1 and mat2"),
        ("their_model:stops", "the function raised SystemExit: 3 (their_model.py, line "),
        ("their_model:raises_at_loss", "its loss or batches raised KeyError: 'nothing\\nhere' (their_model.py, line "),
        ("their_model:pair", "not a tuple of 2"),
        ("their_model:listed", "not a list"),
        ("their_model:no_model", "its model is a builtin_function_or_method, no torch.nn.Module"),
        ("their_model:no_loss", "its loss_fn is a float, not callable"),
        ("their_model:no_batches", "its batches are a int, not iterable"),
    ],
)
def test_a_bad_spec_is_one_line(here, quick, spec, said):
    with pytest.raises(InvalidArgument) as caught:
        doctor(spec)
    assert caught.value.name == "model"
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import nowhere_to_be_found",
            "importing it raised ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("1 / 0", "importing it raised ZeroDivisionError: division by zero (broken_model.py, line 1)"),
        ("def (", "importing it raised SyntaxError"),
        ("raise SystemExit", "importing it raised SystemExit"),
        ("raise ValueError('x' * 5000 + '\\n\\n')", "ValueError: xxx"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_in_one_line(here, quick, text, said):
    (here / "broken_model.py").write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        doctor("broken_model:build")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert len(str(caught.value).splitlines()) == 1


def test_interrupting_the_users_function_is_no_finding(here, quick):
    (here / "slow_model.py").write_text("def build():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        doctor("slow_model:build")


@pytest.fixture
def without_torch(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torch" or name.startswith("etastar.network")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = importlib.metadata.version

    def version(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_without_torch_the_doctor_says_what_to_install(without_torch):
    report = doctor()
    assert report.passed
    assert row_of(report, "torch") == DoctorRow("torch", "not installed (optional)", "pip install 'etastar[network]'")
    with pytest.raises(MissingExtra, match=r"pip install 'etastar\[network\]'"):
        doctor("their_model:build")


def test_requirements_missing_or_old_fail_with_the_line_that_adds_them(monkeypatch):
    wanted = ["numpy>=99.0", "absent-thing>=1.0", 'elsewhere>=1; extra == "network"', 'pytest; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    rows = {row.what: row for row in module._packages()}
    assert rows["numpy"].remedy == "pip install --upgrade 'numpy>=99.0'"
    assert not rows["numpy"].passed
    assert rows["absent-thing"].remedy == "pip install etastar"
    assert not rows["absent-thing"].passed
    assert rows["elsewhere"].passed
    assert "pytest" not in rows

    def nowhere(_):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", nowhere)
    assert [row.remedy for row in module._packages()] == ["pip install etastar"]


def test_a_folder_that_cannot_be_written_fails(tmp_path, monkeypatch):
    file = tmp_path / "etastar-out"
    file.write_text("a file where the folder should be")
    assert not module._output(file).passed
    assert module._output(tmp_path / "deep" / "deeper").passed
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "give --out" in module._output(tmp_path).remedy


def test_low_precision_and_distributed_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/rendezvous")
    try:
        rows = {row.what: row for row in module._torch()}
    finally:
        torch.distributed.destroy_process_group()
    assert "highest" in rows["float32 matmul precision"].remedy
    assert not rows["torch.distributed"].passed
    assert not DoctorReport(tuple(rows.values())).passed


def test_threads_are_advised_on_where_the_machine_is_busy(quick, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    for load, advised in ((3.0, True), (0.1, False)):
        monkeypatch.setattr(module.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        row = row_of(doctor(), "threads")
        assert row.passed
        assert ("OMP_NUM_THREADS=1" in row.remedy) is advised
