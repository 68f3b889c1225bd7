"""The main job end to end: checks, results, report, pictures; interrupted or refused, nothing is half-written."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

from etastar import InvalidFile, cli, files
from etastar.recipes import reproduce as recipe
from etastar.recipes.reproduce import Reproduction, write_reproduction
from etastar.report import Check, Figure, Line, Panel, Section

pytestmark = pytest.mark.xdist_group("reproduction")  # one process computes it once

NAMES = [
    "figure-1",
    "figure-2",
    "figure-3",
    "figure-5",
    "figure-6",
    "phase-one",
    "figure-14",
    "one-step",
    "bulk-only",
    "constant-step",
    "real-data",
    "momentum",
    "preconditioning",
    "averaging",
    "mini-batches",
    "four-edges",
    "mean-ratio",
    "phase-diagram",
    "audit",
]


@pytest.fixture(scope="module")
def computed():
    """One quick reproduction, and what was told of its progress."""
    told = []
    return recipe.reproduce(quick=True, progress=lambda *progress: told.append(progress)), told


@pytest.fixture(scope="module")
def reproduction(computed):
    return computed[0]


@pytest.fixture(scope="module")
def progress(computed):
    return computed[1]


@pytest.fixture(scope="module")
def written(reproduction, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce") / "new" / "place"
    return out, write_reproduction(reproduction, out)


def small(passed=True, seed=0):
    figure = Figure("picture", "A caption", [Panel("x", "y", [Line([0, 1], [0, 1])])])
    section = Section("a", "A", "finding", checks=[Check("c", passed, "m")], figures=[figure], data={"seed": seed})
    return Reproduction([section], seed, True, {"all": 0.1})


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_check_passes(reproduction):
    failed = [(s.name, c.statement, c.measured) for s in reproduction.sections for c in s.checks if not c.passed]
    assert failed == []
    assert reproduction.passed
    assert [section.name for section in reproduction.sections] == NAMES
    assert all(section.checks for section in reproduction.sections)


def test_progress_counts_up(progress):
    done = [count for _, count, _ in progress]
    assert done == sorted(done)
    assert {total for _, _, total in progress} == {6}
    assert any("audit of the claims (T8" in name for name, _, _ in progress)
    assert progress[-1][0] == "writing the report"


def test_the_promised_files_are_written_and_no_other(reproduction, written):
    out, paths = written
    pictures = [f"{figure.name}.png" for section in reproduction.sections for figure in section.figures]
    assert [path.name for path in paths] == ["results.json", *pictures, "report.html"]
    assert len(set(pictures)) == len(pictures) == 18
    assert sorted(contents(out)) == sorted(path.name for path in paths)


def test_pictures_are_pictures(written):
    for path in written[0].glob("*.png"):
        image = matplotlib.image.imread(path)
        assert image.shape[0] >= 288  # maps are taller than curves
        assert image.shape[1] > 300
        assert image[..., :3].std() > 0.01, path.name


def test_the_report_has_each_section_and_its_checks(reproduction, written):
    page = (written[0] / "report.html").read_text(encoding="utf-8")
    for section in reproduction.sections:
        assert f'<section id="{section.name}">' in page
    total = sum(len(section.checks) for section in reproduction.sections)
    assert f"{total} of {total} checks passed" in page
    assert page.count('<div class="plot"') == 18
    assert "[[" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # every marked term is known


def test_results_are_the_same_for_the_same_seed(reproduction, written, tmp_path):
    """Byte for byte, apart from environment and seconds; another process, hash seed and directory."""
    command = [sys.executable, "-m", "etastar", "reproduce", "--quick", "--json", "--out", str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout, parse_constant=pytest.fail)
    texts = [(place / "results.json").read_text(encoding="utf-8") for place in (written[0], tmp_path / "again")]
    assert done.stdout == texts[1]
    stable = [text[: text.index(' "environment": {')] for text in texts]
    assert stable[0] == stable[1]
    for text in texts:
        assert set(json.loads(text)) - {"environment", "seconds"} == {
            *("schema", "version", "seed", "quick", "passed", "sections")
        }
    assert [section["name"] for section in printed["sections"]] == NAMES
    same = [name for name in contents(written[0]) if name.endswith(".png")]
    assert all((tmp_path / "again" / name).read_bytes() == (written[0] / name).read_bytes() for name in same)


def test_a_failed_check_fails_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(recipe, "reproduce", lambda *_: small(passed=False))
    assert cli.main(["reproduce", "--out", str(tmp_path)]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["passed"] is False
    assert cli.main(["reproduce", "--out", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["sections"][0]["checks"][0]["passed"] is False


@pytest.mark.parametrize("place", ["run_paper", "demonstrations", "real_section", "beyond_the_paper", "audit"])
def test_an_interrupt_while_computing_leaves_everything_as_it_was(monkeypatch, tmp_path, capsys, place):
    def interrupt(*_args, **_keywords):
        raise KeyboardInterrupt

    for name in ("paper_sections", "demonstrations", "beyond_the_paper"):
        monkeypatch.setattr(recipe, name, lambda *_: [])
    monkeypatch.setattr(recipe, "run_paper", lambda *_: {100: None})
    monkeypatch.setattr(recipe, "real_section", lambda *_: Section("a", "A", ""))
    monkeypatch.setattr(recipe, place, interrupt)
    assert cli.main(["reproduce", "--quick", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "etastar: interrupted; nothing half-written is left behind\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
@pytest.mark.parametrize("place", ["render_png", "mkdtemp", "fsync", "replace"])
def test_an_old_report_stays_whole_when_writing_fails(monkeypatch, tmp_path, place, fault):
    write_reproduction(small(seed=1), tmp_path)
    before = contents(tmp_path)

    def fail(*_args, **_keywords):
        raise fault

    with monkeypatch.context() as patch:
        if place == "render_png":
            patch.setattr("etastar.report.written.render_png", fail)
        elif place == "replace":
            patch.setattr(Path, "replace", fail)
        else:
            patch.setattr(files.tempfile if place == "mkdtemp" else files.os, place, fail)
        with pytest.raises(InvalidFile if isinstance(fault, OSError) else fault):
            write_reproduction(small(seed=2), tmp_path)
    assert contents(tmp_path) == before


def test_the_last_text_failing_keeps_the_old_pictures(monkeypatch, tmp_path):
    write_reproduction(small(seed=1), tmp_path)
    before, calls, write = contents(tmp_path), itertools.count(), Path.write_text

    def full_disk(self, *args, **keywords):
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        return write(self, *args, **keywords)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(InvalidFile, match=r"out: got .*cannot be written: No space left on device"):
        write_reproduction(small(seed=2), tmp_path)
    assert contents(tmp_path) == before


def test_a_directory_in_the_way_is_named_before_anything_is_replaced(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InvalidFile, match=r"report\.html'; is a directory"):
        write_reproduction(small(), tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def unwritable(tmp_path, kind):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    places = {"a file": "file", "below a file": "file/below", "a dangling link": "dangling", "too long": "x" * 300}
    return tmp_path / places[kind] if kind in places else Path("/proc/1/etastar")


@pytest.mark.parametrize("command", ["reproduce", "audit", "lab"])
@pytest.mark.parametrize("kind", ["a file", "below a file", "a dangling link", "too long", "not writable"])
def test_a_bad_place_is_refused_before_computing(monkeypatch, tmp_path, capsys, command, kind):
    for module, name in (("etastar.recipes.reproduce", "reproduce"), ("etastar.recipes.lab", "ask")):
        monkeypatch.setattr(f"{module}.{name}", lambda *_: pytest.fail("it computed"))
    monkeypatch.setattr("etastar.claims.audit", lambda *_: pytest.fail("it computed"))
    assert cli.main([command, "--out", str(unwritable(tmp_path, kind))]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("etastar: out: got ")
    assert streams.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]
    assert (tmp_path / "file").read_text() == "kept"
