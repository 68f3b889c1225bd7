"""As users meet it: help, pipes, interrupts, what is printed and what is written."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.text import Text

import etastar
from cli.running import COMMAND, group_members, run
from etastar import cli, terminal

COMMANDS = ("reproduce", "audit", "lab", "diagram", "train")
FAST = {
    "audit": ["audit", "--claims", "T8", "--instances", "50", "--workers", "1"],
    "lab": ["lab", "--dimension", "60", "--rank", "5", "--times", "0", "10", "100"],
    "diagram": ["diagram", "alignment-ratio", "--cells", "20", "20"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_and_every_option(command, capsys):
    assert cli.main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count(f"  etastar {command}") >= 2
    assert "For example:" in out
    assert "--json" in out
    assert "--seed" in out
    assert "--out" in out
    assert "{None}" not in out


def test_help_imports_nothing_heavy():
    check = (
        "import sys; from etastar.cli import main; code = main(['--help']);"
        "heavy = {'matplotlib', 'sklearn', 'scipy', 'plotly', 'pandas', 'torch'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"etastar {command}" in done.stdout for command in COMMANDS)


def test_the_examples_in_the_help_are_accepted(monkeypatch, capsys):
    asked = []
    for name in COMMANDS:
        command = getattr(cli, name)

        def told(*args, _name=name, **keywords):
            asked.append((_name, args, keywords))
            return 0

        told.__doc__, told.__wrapped__ = command.__doc__, command
        monkeypatch.setattr(cli, name, told)
        lines = [line.strip() for line in command.__doc__.splitlines() if line.strip().startswith("etastar ")]
        for line in lines:
            assert cli.main(line.partition(" > ")[0].split()[1:]) == 0, line
    assert {name for name, _, _ in asked} == set(COMMANDS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", FAST)
def test_json_is_strict(command, capsys):
    assert cli.main([*FAST[command], "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    told = json.loads(out, parse_constant=pytest.fail)
    assert told
    assert cli.main([*FAST[command], "--json"]) == 0
    assert capsys.readouterr().out == out


def test_lab_prints_a_table(capsys):
    assert cli.main(FAST["lab"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The paper's spectrum at r = 100, noise variance 0.25\nd = 60, k = 5, λ_k/λ_(k+1) = 100.1\n")
    table, _, legend = out.partition("\n\nη* is")
    assert [line.split()[0] for line in table.splitlines()[5:]] == ["t", "0", "10", "100"]
    assert "1 where a subspace has equilibrated" in legend


def test_lab_ends_its_table_where_an_unstable_run_leaves_float64(capsys):
    assert cli.main([*FAST["lab"][:5], "--step-size", "0.5", "--times", "0", "10", "100000"]) == 0
    out = capsys.readouterr().out
    table = out.partition("\n\nη* is")[0]
    assert [line.split()[0] for line in table.splitlines()[5:]] == ["t", "0", "10"]
    assert "the step is unstable" in out


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"etastar {etastar.__version__}\n"


@pytest.mark.parametrize(("command", "files"), [("audit", ["audit.html", "audit.json"]), ("lab", None)])
def test_out_writes_what_is_promised(command, files, tmp_path, capsys):
    place = tmp_path / "new" / "place"
    assert cli.main([*FAST[command], "--out", str(place), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in place.iterdir()) == (files or ["curve.csv", "lab.html", "lab.png"])
    if command == "audit":
        assert json.loads((place / "audit.json").read_text(encoding="utf-8")) == told
    else:
        rows = list(csv.DictReader((place / "curve.csv").read_text(encoding="utf-8").splitlines()))
        assert [float(row["alignment"]) for row in rows] == told["alignment"]


def test_a_written_audit_can_be_checked_again(tmp_path, capsys):
    assert cli.main([*FAST["audit"], "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "refuted after" in out
    assert "pass  every verdict is the one that the proofs lead to expect" in out
    path = str(tmp_path / "audit.json")
    assert cli.main(["audit", "--check", path]) == 0
    assert "certified" in capsys.readouterr().out
    assert cli.main(["audit", "--check", path, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results
    assert all(result["claim"] == "T8" and result["certified"] for result in results)


def test_a_certificate_that_proves_nothing_fails(tmp_path, capsys):
    assert cli.main([*FAST["audit"], "--json"]) == 0
    verdicts = json.loads(capsys.readouterr().out)
    wrong = next(verdict for verdict in verdicts if "counterexample" in verdict)
    wrong["counterexample"]["noise"] = ["0"] * len(wrong["counterexample"]["noise"])
    wrong["counterexample"]["state"] = ["1"] * len(wrong["counterexample"]["state"])
    (tmp_path / "wrong.json").write_text(json.dumps([wrong]))
    assert cli.main(["audit", "--check", str(tmp_path / "wrong.json")]) == 1
    assert "NOT certified" in capsys.readouterr().out
    (tmp_path / "none.json").write_text("[]")
    assert cli.main(["audit", "--check", str(tmp_path / "none.json")]) == 0
    assert capsys.readouterr().out == "No counterexample to check in none.json.\n"


def test_a_verdict_that_nobody_expected_fails_the_audit(monkeypatch, capsys):
    from dataclasses import replace

    import etastar.claims

    audit = etastar.claims.audit

    def surprising(*args):
        return [replace(verdict, verdict="holds", counterexample=None) for verdict in audit(*args)]

    monkeypatch.setattr(etastar.claims, "audit", surprising)
    code = cli.main(FAST["audit"])
    assert code == 1
    assert "FAIL  every verdict is the one" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["lab --json", "lab --help", "audit --claims T10 --instances 20 --workers 1 --json"])
def test_a_closed_pipe_is_no_traceback(line):
    with subprocess.Popen([*COMMAND, *line.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.read(1)
        child.stdout.close()
        err = child.stderr.read()
    assert err == b""
    assert child.returncode in (0, 141)


def test_a_closed_pipe_before_anything_is_printed():
    with subprocess.Popen([*COMMAND, "lab"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        err = child.stderr.read()
    assert (child.returncode, err) == (141, b"")


@pytest.mark.parametrize("line", ["audit --instances 1000000 --workers 2", "reproduce"])
@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill"])
def test_an_interrupt_ends_it_within_seconds(tmp_path, line, whole_group):
    """From a terminal Ctrl-C reaches the workers too; `kill -INT` reaches only the command."""
    command = [*COMMAND, *line.split(), "--out", str(tmp_path / "out")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **streams) as child:
        for _ in range(300):
            time.sleep(0.1)
            if "workers" not in line or len(group_members(child.pid)) >= 4:  # itself, tracker, two workers
                break
        time.sleep(2)
        (os.killpg if whole_group else os.kill)(child.pid, signal.SIGINT)
        begin = time.monotonic()
        out, err = child.communicate(timeout=20)
        waited = time.monotonic() - begin
    assert (child.returncode, out) == (130, "")
    assert err == "etastar: interrupted; nothing half-written is left behind\n"
    assert waited < 10
    for _ in range(50):
        if not group_members(child.pid):
            break
        time.sleep(0.1)
    assert group_members(child.pid) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_greek_letters_is_served(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = run(*FAST["lab"], env=environment, encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    refused = run("lab", "--step", "3", env=environment, encoding=encoding)
    assert refused.returncode == 2
    assert refused.stderr.startswith("etastar: Unrecognized options: --step, 3; Perhaps you meant:")
    assert refused.stderr.count("\n") == 1


def test_progress_is_shown_on_a_terminal_only(monkeypatch, capsys):
    with terminal.progress_bar() as told:
        told("anything", 1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with terminal.progress_bar() as told:
        told("something", 1, 2)
    assert capsys.readouterr().out == ""


def test_text_from_reports_is_plain_on_the_terminal():
    assert terminal.without_marks("largest |[[z]]| of [[sampled|Sampled]] runs") == "largest |z| of Sampled runs"
    for text in ("[[open", "[red]x[/red]", "]]", "[bold]"):
        assert Text.from_markup(terminal.without_marks(text)).plain == text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize("more", [[], ["--json"], ["--help"]])
def test_a_full_disk_behind_stdout_is_one_line(more):
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = run(*FAST["lab"], *more, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith("etastar: stdout: cannot be written: No space left on device")
    assert done.stderr.count("\n") == 1


def test_without_any_stdout_a_command_still_runs():
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *FAST["lab"]], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
