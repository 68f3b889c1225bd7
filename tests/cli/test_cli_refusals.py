"""Bad input: exit code 2, exactly one line on stderr that names the field and the remedy, and no file."""

import json

import pytest

from cli.running import run
from etastar import cli

REFUSED = [
    ("", "Expected one of {reproduce, audit, lab"),
    ("labb", "Unrecognized options: labb; Available subcommands: reproduce, audit, lab"),
    ("lab --step 3", "--step, 3; Perhaps you meant: --step-size"),
    ("lab 3", "Unrecognized options: 3"),
    ("reproduce --slow", "Unrecognized options: --slow"),
    ("lab --dimension", "Missing value for argument '--dimension'"),
    ("lab --dimension many", "--dimension: invalid literal for int() with base 10: 'many'"),
    ("lab --dimension 1e3", "--dimension: invalid literal"),
    ("lab --ratio x", "--ratio: could not convert string to float: 'x'"),
    ("lab --data", "Missing value for argument '--data'"),
    ("lab --data iris", "invalid choice 'iris' for argument '--data'. Expected one of ("),
    ("lab --two-level", "--two-level: no type matching {FLOAT FLOAT} could be instantiated from []"),
    ("lab --two-level 1", "--two-level: no type matching {FLOAT FLOAT}"),
    ("lab --two-level 3 2 1", "--two-level: no type matching {FLOAT FLOAT}"),
    ("lab --two-level a b", "--two-level: no type matching {FLOAT FLOAT} could be instantiated from ['a', 'b']"),
    ("lab --two-level 1 2", "eigenvalues[1]: got 2.0; eigenvalues must be sorted"),
    ("lab --two-level 2 1 --data digits", "--two-level, --data: got 'together'; give one source"),
    ("lab --dimension 1000000000000", "dimension: got 1000000000000; at most 10000000 without --two-level"),
    ("lab --rank 500", "rank: got 500; must be at least 1 and less than the dimension 500"),
    ("lab --step-size nan", "step-size: got nan; must be finite"),
    ("lab --step-size=-1", "step-size: got -1.0; must be finite and not negative"),
    ("lab --noise=-1", "noise: got -1.0; a variance must be finite and not negative"),
    ("lab --times", "times: got "),
    ("lab --times 5 3", "times: got "),
    ("lab --times=-1", "times: got -1; must be between 0 and 1000000000000000"),
    ("lab --times 1000000000000000000", "times: got 1000000000000000000; must be between 0 and"),
    ("lab --seed=-1", "seed: got -1; must be at least 0"),
    ("lab --data digits --seed=-1", "seed: got -1; must be at least 0"),
    ("lab --seed 4611686018427387904", "seed: got 4611686018427387904; must be below 2^62"),
    ("lab --dimension 0", "dimension: got 0; must be at least 2"),
    ("lab --optimizer adam", "invalid choice 'adam' for argument '--optimizer'. Expected one of ('sgd', 'heavy-ball'"),
    ("lab --optimizer heavy-ball --momentum 1", "momentum: got 1.0; must be at least 0 and below 1"),
    ("lab --averaging nan", "averaging: got nan; must be at least 0 and below 1"),
    (
        "lab --optimizer nesterov --expectation mean-of-ratio",
        "expectation: got 'mean-of-ratio'; is known for plain SGD",
    ),
    ("lab diagram", "Missing from etastar lab diagram: {step-batch,step-momentum,alignment-ratio}"),
    ("diagram step-batch --data digits --seed=-1", "seed: got -1; must be at least 0"),
    ("diagram step-momentum --seed 99999999999999999999", "seed: got 99999999999999999999; must be below 2^62"),
    ("diagram step-batch --batch-sizes 0 8", "batch-sizes: got (0.0, 8.0); must rise, above 0"),
    ("diagram step-momentum --momenta 0 1", "momenta: got (0.0, 1.0); must rise, from 0 on, below 1"),
    ("diagram alignment-ratio --alignments 0 2", "alignments: got (0.0, 2.0); must rise, within 0 … 1"),
    ("diagram alignment-ratio --data digits", "data: got 'digits'; alignment-ratio takes two levels at every ratio"),
    ("diagram alignment-ratio --two-level 3 1", "two-level: got (3.0, 1.0); alignment-ratio takes two levels"),
    ("diagram alignment-ratio --spectrum x.json", "x.json"),
    ("lab --data digits --batch-size 0", "batch-size: got 0; must be"),
    ("lab --data digits --ridge=-1", "ridge: got -1.0; must be at least 0"),
    ("lab --spectrum missing.json", "spectrum: got 'missing.json'; cannot be read: No such file or directory"),
    ("lab --spectrum .", "spectrum: got '.'; cannot be read: Is a directory"),
    ("reproduce --seed=-1", "seed: got -1; must be at least 0"),
    ("reproduce --seed x", "--seed: invalid literal"),
    ("reproduce --quick yes", "Unrecognized options: yes"),
    ("audit --seed=-1", "seed: got -1; must be at least 0"),
    ("audit --claims", "claims: got (); name at least one, such as T8"),
    ("audit --claims T99", "claims: got 'T99'; one of A1, "),
    ("audit --instances 0", "instances: got 0; "),
    ("audit --instances 1e5", "--instances: invalid literal"),
    ("audit --workers 0", "workers: got 0; "),
    ("audit --check missing.json", "got 'missing.json'; needs a readable file"),
]


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_refused(out, err, words):
    assert out == ""
    assert words in err
    assert err.startswith("etastar: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "[bold]" not in err


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=lambda value: value or "nothing")
@pytest.mark.parametrize("out", [False, True], ids=["", "with --out"])
def test_one_line_names_the_field(here, capsys, line, words, out):
    arguments = line.split() + (["--out", "made"] if out and line.count(" ") else [])
    assert cli.main(arguments) == 2
    assert_refused(*capsys.readouterr(), words)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("line", ["lab --nope", "lab --times 5 3", "audit --claims T99", "nope", "lab --ratio x"])
def test_the_process_says_the_same(tmp_path, line):
    done = run(*line.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert_refused(done.stdout, done.stderr, line.split()[-1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x00",
        b"hello",
        b'{"a\\nb\\u001b[31m\\ud800": 1}',
        b'{"a\\nb\\u001b[31m": 1, "a\\nb\\u001b[31m": 2}',
        b"[" * 100_000,
        b'{"eigenvalues": ' + b"[" * 950 + b"]" * 950 + b', "rank": 1}',
        b'{"eigenvalues": [1' + b"0" * 5_000 + b', 1], "rank": 1}',
    ],
    ids=["empty", "binary", "text", "key", "key twice", "nested", "nested value", "digits"],
)
@pytest.mark.parametrize("option", ["lab --spectrum", "audit --check"])
def test_a_hostile_file_is_one_printable_line(here, capsys, content, option):
    (here / "hostile.json").write_bytes(content)
    assert cli.main([*option.split(), "hostile.json"]) == 2
    out, err = capsys.readouterr()
    assert_refused(out, err, "")
    assert err[:-1].isprintable()
    assert len(err) < 400


def test_strange_text_in_arguments(here, capsys):
    for text in ("a\nb", "\x1b[31mred", "[bold]x[/bold]", "\udcff", "x" * 10_000, "╭─│"):
        assert cli.main(["audit", "--claims", text]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert cli.main(["lab", "--spectrum", text]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert json.dumps(list(map(str, here.iterdir()))) == "[]"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("train digits-mlp --step-size nan", "step-size"),
        ("train digits-mlp --no-meter --rank -3", "rank"),
        ("train digits-mlp --no-meter --rank 999999", "rank"),
        ("train digits-mlp --no-meter --curvature-samples -1", "curvature-samples"),
        ("train digits-mlp --no-meter --every -1", "every"),
        ("train digits-mlp --steps 2 --forecast --checkpoints -1", "checkpoints"),
    ],
)
def test_a_refused_training_leaves_nothing(here, capsys, line, field):
    assert cli.main([*line.split(), "--out", "new/deep"]) == 2
    assert_refused(*capsys.readouterr(), f"etastar: {field}: got ")
    assert list(here.iterdir()) == []
    (here / "old" / "running.jsonl").mkdir(parents=True)
    assert cli.main([*line.split(), "--out", "old"]) == 2
    assert_refused(*capsys.readouterr(), "etastar: ")
    assert (here / "old" / "running.jsonl").is_dir()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["train", "digits-mlp", "--out", ""], "out"),
        (["train", "digits-mlp", "--data="], "data"),
        (["doctor", "--model", ""], "model"),
        (["lab", "--out="], "out"),
        (["train", ""], "argument"),
    ],
)
def test_an_empty_value_is_refused_by_name(here, capsys, arguments, field):
    assert cli.main(arguments) == 2
    assert_refused(*capsys.readouterr(), f"etastar: {field}: got ''; must not be empty")
    assert list(here.iterdir()) == []
