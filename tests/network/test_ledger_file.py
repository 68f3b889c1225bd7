"""Ledgers on disk and in a state: to the last bit, strict JSON, hostile files refused; and counts checked by hand."""

import dataclasses
import io
import json
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etastar import Estimate, InvalidArgument, InvalidFile
from etastar.network import AlignmentMeter, LedgerEntry, UpdateLedger, ledger_columns, ledger_summary, load_ledger
from etastar.network.ledger_entries import PARTS, save_ledger
from etastar.recipes.ledger_report import ledger_section

ANY = st.one_of(
    st.floats(width=64), st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, -0.0, 1 / 3, 1.7976931348623157e308])
)
ESTIMATES = st.builds(Estimate, ANY, ANY, ANY, ANY, ANY, st.floats(0.01, 0.99), st.booleans())
BY_PART = st.fixed_dictionaries(dict.fromkeys(PARTS, ESTIMATES))
ENTRIES = st.builds(
    LedgerEntry,
    st.integers(0, 10**18),
    st.floats(0, 1e300),
    st.integers(1, 10**9),
    st.integers(2, 10**9),
    BY_PART,
    BY_PART,
    BY_PART,
)


def bits(entry):
    """Every number as its bytes; every NaN counts as the same."""
    counts = (entry.step, entry.batch_size, entry.updates, struct.pack("d", entry.step_size))
    numbers = [
        b"nan" if math.isnan(number) else struct.pack("d", number)
        for kind in (entry.descent, entry.predicted, entry.measured)
        for part in PARTS
        for number in dataclasses.astuple(kind[part])
    ]
    return counts, numbers


def estimate(value, half):
    return Estimate(value, half / 2, 0.0, value - half, value + half, 0.9, True)


def entry(step, predicted, measured, descent=1.0):
    """One with the same pairs of number and half interval for every part."""
    return LedgerEntry(
        step,
        0.1,
        8,
        4,
        {part: estimate(descent, 0.0) for part in PARTS},
        {part: estimate(*predicted) for part in PARTS},
        {part: estimate(*measured) for part in PARTS},
    )


@given(st.lists(ENTRIES, max_size=3))
def test_entries_come_back_to_the_last_bit(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    save_ledger(entries, path)
    assert list(map(bits, load_ledger(path))) == list(map(bits, entries))
    lines = path.read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["step"] for line in lines[1:]] == [e.step for e in entries]


LINE = entry(3, (-0.5, 0.1), (-0.4, 0.2)).encode()


def changed(**fields):
    return json.dumps({**json.loads(LINE), **fields})


@pytest.mark.parametrize(
    "line",
    [
        LINE[:-30],
        "",
        "7",
        "null",
        "[" * 100_000,
        changed(step=-1),
        changed(step=True),
        changed(step=1.0),
        changed(step_size="nan"),
        changed(step_size="inf"),
        changed(step_size=-0.1),
        changed(batch_size=0),
        changed(updates=1),
        changed(measured=[1, 2, 3]),
        changed(measured={"dominant": json.loads(LINE)["measured"]["dominant"]}),
        LINE.replace('"value": -0.4', '"value": NaN', 1),
        LINE.replace('"value": -0.4', '"value": 1e999', 1),
        LINE.replace('"value": -0.4', '"value": ' + "9" * 400, 1),
        LINE.replace('"value": -0.4', '"value": ' + "9" * 5000, 1),
        LINE.replace('"value": -0.4', '"value": "-0.4"', 1),
        LINE.replace('"value": -0.4', '"value": null', 1),
        LINE.replace('"resolved": true', '"resolved": 1', 1),
        LINE.replace('"level": 0.9', '"level": 1', 1),
        LINE.replace('"step": 3', '"step": 3, "step": 4'),
    ],
)
def test_damaged_or_hostile_lines_are_named(tmp_path, line):
    assert line != LINE
    path = tmp_path / "ledger.jsonl"
    save_ledger([LedgerEntry.decode(LINE)], path)
    path.write_text(path.read_text() + line + "\n" + LINE + "\n", encoding="utf-8")
    with pytest.raises(InvalidFile, match="line 3 is damaged") as found:
        load_ledger(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["{}\n", '{"schema": "etastar.ledger", "version": 2}\n', "\x80", "\n", LINE])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidFile, match=r"ledger: got .*ledger\.jsonl'; "):
        load_ledger(path)


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(InvalidFile, match="cannot be read"):
        load_ledger(tmp_path / "none.jsonl")
    with pytest.raises(InvalidFile, match="is a directory"):
        save_ledger([], tmp_path)


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


class Run:
    """A small network in training, a ledger every second step."""

    def __init__(self):
        torch.manual_seed(0)
        self.data = torch.randn(40, 4), torch.randn(40, 1)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, 0.9)
        self.meter = AlignmentMeter(self.model, squared, [self.data], 2, overhead=None, probes=2)
        self.ledger = UpdateLedger(self.meter, [tuple(part[i::4] for part in self.data) for i in range(4)])
        self.parts = (self.model, self.optimizer, self.meter, self.ledger)

    def train(self, begin, end):
        for step in range(begin, end):
            stream = torch.Generator().manual_seed(step)
            batches = [
                tuple(part[drawn] for part in self.data)
                for drawn in (torch.randint(40, (5,), generator=stream) for _ in range(3))
            ]
            if step % 2 == 0:
                self.meter.step = step
                self.ledger.check(self.optimizer, batches)
            self.optimizer.zero_grad()
            squared(self.model, batches[0]).backward()
            self.optimizer.step()


def test_a_resumed_run_keeps_its_ledger_bit_for_bit(tmp_path):
    whole, before, after = Run(), Run(), Run()
    whole.train(0, 9)
    before.train(0, 5)
    state = io.BytesIO()
    torch.save([part.state_dict() for part in before.parts], state)
    state.seek(0)
    for part, saved in zip(after.parts, torch.load(state, weights_only=True), strict=True):
        part.load_state_dict(saved)
    after.train(5, 9)
    assert [e.step for e in after.ledger.entries] == [0, 2, 4, 6, 8]
    assert list(map(bits, after.ledger.entries)) == list(map(bits, whole.ledger.entries))
    for one, path in ((whole, tmp_path / "whole.jsonl"), (after, tmp_path / "after.jsonl")):
        one.ledger.save(path)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "after.jsonl").read_bytes()
    loaded = load_ledger(tmp_path / "whole.jsonl")
    assert ledger_summary(loaded) == whole.ledger.summary()
    assert ledger_columns(loaded)["descent_bulk"].tolist() == whole.ledger.columns()["descent_bulk"].tolist()


@pytest.mark.parametrize("state", [{}, None, {"entries": ["{}"]}, {"entries": [3]}, {"entries": None}])
def test_a_foreign_state_is_refused_and_changes_nothing(state):
    run = Run()
    run.train(0, 1)
    with pytest.raises(InvalidArgument, match=r"state: got .*UpdateLedger\.state_dict"):
        run.ledger.load_state_dict(state)
    assert len(run.ledger.entries) == 1


def test_counts_of_the_summary_are_those_by_hand():
    entries = [
        entry(0, (-1.0, 0.1), (-1.2, 0.3)),  # lowered, met: 0.2 < √0.1
        entry(1, (-1.0, 0.3), (-0.6, 0.3)),  # lowered, met: 0.4 < √0.18
        entry(2, (-1.0, 0.1), (-0.5, 0.3)),  # lowered, missed
        entry(3, (0.5, 0.0), (0.4, 0.2)),  # raised, met
        entry(4, (0.5, 0.0), (0.0, 0.2)),  # open, missed
        entry(5, (0.5, 0.0), (math.nan, math.nan)),
    ]
    for one in ledger_summary(entries):
        assert (one.entries, one.lowered, one.raised, one.met) == (5, 3, 1, 3)
        assert one.ratio == pytest.approx(1.9 / 2.0)


def test_predicted_changes_that_cancel_leave_no_ratio():
    entries = [entry(0, (-1.0, 0.1), (-1.2, 0.3)), entry(1, (0.9, 0.1), (0.8, 0.3))]
    for one in ledger_summary(entries):
        assert math.isnan(one.ratio)
        assert math.isnan(one.ratio_error)
        assert (one.lowered, one.raised, one.met) == (1, 1, 2)
    assert ledger_section(entries).data["bulk"] == {"ratio": None, "error": None, "met": 2}
    assert ledger_section(entries).tables[0].rows[0][5] == "they cancel"
