"""Files are written whole or not at all whatever fails when, and read as strict text that is never executed."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time

import pytest

from etastar import InvalidArgument, InvalidFile, files
from etastar.files import parse_json, read_text, write_bytes, write_text

OLD, NEW = "the old content\n", "the new content, θ′ and all\n"
FAULTS = (OSError(errno.ENOSPC, "No space left on device"), OSError("odd"), KeyboardInterrupt(), MemoryError())
PLACES = ("mkstemp", "write", "flush", "fsync", "chmod", "replace")


class FaultyFile:
    """A file whose `method` fails, after half of the data is on disk where it is write."""

    def __init__(self, file, method, fault):
        self.file, self.method, self.fault = file, method, fault

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def fileno(self):
        return self.file.fileno()

    def write(self, data):
        self.file.write(data[: len(data) // 2] if self.method == "write" else data)
        self._fail("write")

    def flush(self):
        self._fail("flush")
        self.file.flush()

    def _fail(self, method):
        if method == self.method:
            raise self.fault


def break_at(monkeypatch, place, fault):
    def fail(*_args, **_keywords):
        raise fault

    if place in ("write", "flush"):
        fdopen = os.fdopen
        monkeypatch.setattr(os, "fdopen", lambda *args: FaultyFile(fdopen(*args), place, fault))
    elif place == "mkstemp":
        monkeypatch.setattr(tempfile, "mkstemp", fail)
    else:
        monkeypatch.setattr(os, place, fail)


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text(OLD, encoding="utf-8")
    return path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_at_any_step_leaves_the_old_content_and_nothing_else(target, monkeypatch, place, fault):
    with monkeypatch.context() as patch:
        break_at(patch, place, fault)
        with pytest.raises(InvalidFile if isinstance(fault, OSError) else type(fault)) as caught:
            write_text(target, NEW)
    if isinstance(fault, OSError):
        assert str(caught.value).count("\n") == 0
        assert "cannot be written" in str(caught.value)
        assert str(caught.value).startswith("path: got ")
        assert target.name in str(caught.value)
    assert target.read_text(encoding="utf-8") == OLD
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_leaves_no_file_where_there_was_none(tmp_path, monkeypatch, place):
    with monkeypatch.context() as patch:
        break_at(patch, place, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "new.txt", NEW)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_right_after_the_rename_leaves_the_new_file(target, monkeypatch):
    replace = os.replace

    def replace_then_interrupt(*args):
        replace(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(target, NEW)
    assert target.read_text(encoding="utf-8") == NEW
    assert list(target.parent.iterdir()) == [target]


REWRITE = """
import sys
from etastar.files import write_bytes
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        write_bytes(sys.argv[1], letter * 1_000_000)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path, moments = tmp_path / "rewritten", random.Random(1)  # noqa: S311
    whole = {letter * 1_000_000 for letter in (b"a", b"b")}
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", REWRITE, str(path)], stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            time.sleep(moments.uniform(0.02, 0.1))
            if path.exists():
                assert path.read_bytes() in whole  # a reader meanwhile
            child.send_signal(signal.SIGKILL)
        assert path.read_bytes() in whole


def test_directories_are_made_and_the_usual_permissions_given(tmp_path):
    path, plain = tmp_path / "a" / "b" / "file.bin", tmp_path / "plain"
    write_bytes(path, b"\x00\xff")
    plain.touch()
    assert path.read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_directory_is_not_overwritten(tmp_path):
    with pytest.raises(InvalidFile, match="is a directory; name a file"):
        write_text(tmp_path, NEW)


def test_a_parent_that_is_a_file_is_refused(target):
    with pytest.raises(InvalidFile, match="cannot be written"):
        write_text(target / "below.txt", NEW)
    assert target.read_text(encoding="utf-8") == OLD


def test_a_read_only_directory_is_refused(target, monkeypatch):
    break_at(monkeypatch, "mkstemp", OSError(errno.EROFS, "Read-only file system"))
    with pytest.raises(InvalidFile, match="cannot be written: Read-only file system"):
        write_text(target, NEW)


def test_text_comes_back(target):
    write_text(target, NEW)
    assert read_text(target) == NEW
    write_bytes(target, b"\xef\xbb\xbf" + NEW.encode())
    assert read_text(target) == NEW  # the byte order mark that some editors write is no part of the text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\x80\x81\x00", "is not UTF-8 text"),
        ("θ".encode("utf-16"), "is not UTF-8 text"),
        (b"x" * 65, "is larger than"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path, monkeypatch, content, complaint):
    monkeypatch.setattr(files, "_SIZE_LIMIT", 64)
    path = tmp_path / "input"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidFile, match=complaint) as caught:
        read_text(path, "spectrum")
    assert str(caught.value).startswith("spectrum: got ")
    assert "\n" not in str(caught.value)


def test_a_directory_is_not_read(tmp_path):
    with pytest.raises(InvalidFile, match="cannot be read: Is a directory"):
        read_text(tmp_path)


def test_an_endless_device_is_too_large(monkeypatch):
    monkeypatch.setattr(files, "_SIZE_LIMIT", 1 << 16)
    with pytest.raises(InvalidFile, match="is larger than"):
        read_text("/dev/zero")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "holds the key 'c' twice"),
        ("[1, NaN]", "holds NaN, which is not JSON"),
        ("[-Infinity]", "holds -Infinity"),
        ("{'a': 1}", "is not JSON: Expecting property name"),
        ("[1] [2]", "is not JSON: Extra data"),
        ("[" * 100_000, "is nested too deeply"),
        ("9" * 5_000, "digits"),
    ],
)
def test_json_is_strict(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_json(text)


def test_json_with_many_keys_is_read_in_linear_time():
    text = "{" + ", ".join(f'"{i}": {i}' for i in range(200_000)) + "}"
    assert len(parse_json(text)) == 200_000


def test_a_complaint_is_one_short_line_whatever_the_value():
    nested = []
    for _ in range(5_000):
        nested = [nested]
    for value in (10**5_000, nested, "a\nb", "x" * 10_000, bytes(10_000), object()):
        text = str(InvalidArgument("name", value, "remedy"))
        assert "\n" not in text
        assert len(text) < 110
    assert "end-of-path" in str(InvalidFile("path", "x" * 300 + "end-of-path", "remedy"))
