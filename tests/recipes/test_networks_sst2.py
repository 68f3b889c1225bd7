"""SST-2 from the user's files: the right codes, padding that changes nothing, and what is no SST-2 refused."""

import gzip
import math
import os
from collections import Counter
from functools import partial

import pytest
import torch
from torch.func import functional_call

from etastar.errors import InvalidFile
from etastar.network import HessianOperator
from etastar.network.parameters import ParameterVector
from etastar.network.persample import per_sample_gradients
from etastar.recipes.networks import Recipe, load_network
from etastar.recipes.networks.catalogue import _PROTOCOL_ONLY
from etastar.recipes.networks.models import SentenceClassifier
from etastar.recipes.networks.network import Settings
from etastar.recipes.networks.sst2 import LENGTH, VOCABULARY, load_sst2
from etastar.recipes.tiny_subspaces import TinySubspacesPlan, tiny_subspaces, write_tiny_subspaces
from etastar.recipes.tiny_subspaces.plan import load
from etastar.recipes.tiny_subspaces.stage import BRANCHES, Stage
from recipes.sentence_files import sentences, write_sst2, write_tsv

HEADER = b"sentence\tlabel\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("ETASTAR_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.mark.parametrize("within", [".", "SST-2"])
def test_words_become_codes_by_frequency_among_the_first_1000_sentences(tmp_path, within):
    write_sst2(tmp_path / within)
    (codes, labels), (kept, kept_labels) = load_sst2(tmp_path)
    assert (tuple(codes.shape), tuple(kept.shape)) == ((1000, LENGTH), (150, LENGTH))
    pairs = sentences(1250)
    assert labels.tolist() == [label for _, label in pairs[:1000]]
    assert kept_labels.tolist() == [label for _, label in pairs[1100:]]
    counts = Counter(" ".join(text for text, _ in pairs[:1000]).split(" "))
    ranks = {}
    for frequency in sorted(set(counts.values()), reverse=True):
        for word in sorted(word for word in counts if counts[word] == frequency):
            ranks[word] = len(ranks) + 2
    for rows, part in ((codes, pairs[:1000]), (kept, pairs[1100:])):
        for row, (text, _) in zip(rows.tolist(), part, strict=True):
            expected = [ranks.get(word, 1) for word in text.split(" ")][:LENGTH]
            assert row == expected + [0] * (LENGTH - len(expected))
    assert not (codes == 1).any()
    assert (kept == 1).any()
    assert max(len(text.split(" ")) for text, _ in pairs[:1000]) > LENGTH


def test_only_the_most_frequent_words_have_a_code(tmp_path):
    pairs = [(f"common w{i} w{i} v{i} v{i} rare{i}", i % 2) for i in range(1000)]
    write_tsv(tmp_path / "train.tsv", pairs)
    write_tsv(tmp_path / "dev.tsv", pairs[:100])
    (codes, _), (kept, _) = load_sst2(tmp_path)
    assert int(codes.max()) == VOCABULARY - 1
    assert (codes[:, 0] == 2).all()
    assert (codes[:, 5] == 1).all()
    assert torch.equal(kept, codes[:100])
    twice = {f"{letter}{i}" for letter in "vw" for i in range(1000)}
    without = {pairs[i][0].split()[j] for i, j in (codes[:, :5] == 1).nonzero().tolist()}
    assert without == set(sorted(twice)[VOCABULARY - 3 :])


def test_without_a_name_the_environment_or_the_directory_beside_us_is_read(tmp_path, monkeypatch):
    write_sst2(tmp_path / "SST-2")
    first = load_sst2()
    monkeypatch.setenv("ETASTAR_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidFile, match="nowhere"):
        load_sst2()
    assert torch.equal(load_sst2(tmp_path)[0][0], first[0][0])


def test_lines_that_end_as_on_windows_and_a_mark_at_the_start_change_nothing(tmp_path):
    write_sst2(tmp_path)
    expected = load_sst2(tmp_path)
    for path in tmp_path.glob("*.tsv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    for found, before in zip(load_sst2(tmp_path), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))


def test_no_more_is_read_than_is_needed(tmp_path):
    write_sst2(tmp_path, training=1000)
    expected = load_sst2(tmp_path)[0][0]
    with (tmp_path / "train.tsv").open("ab") as file:
        file.write(b"\xff no tab\n")
        file.truncate(1 << 40)  # a file with a hole: it takes no room
    assert torch.equal(load_sst2(tmp_path)[0][0], expected)


def refusal(data=None):
    with pytest.raises(InvalidFile) as caught:
        load_sst2(data)
    text = str(caught.value)
    assert text.startswith("data: got ")
    assert "\n" not in text
    return text


REFUSED = {
    "empty": (b"", "must start with the header of GLUE: sentence, a tab, label"),
    "no header": (b"a fine film \t1\n", "must start with the header"),
    "another task": (b"index\tsentence\n0\ta film\n", "must start with the header"),
    "no tab": (HEADER + b"a fine film\t1\na dull film 0\n", "line 3 must be a sentence, a tab and a label"),
    "a blank line": (HEADER + b"\n", "line 2 must be a sentence, a tab and a label"),
    "two tabs": (HEADER + b"a\tfilm\t1\n", "line 2 must be a sentence, a tab and a label"),
    "another label": (HEADER + b"a film\t2\n", "line 2 has the label '2'; labels are 0 and 1"),
    "no label": (HEADER + b"a film\t\n", "line 2 has the label ''"),
    "a long label": (HEADER + b"a film\t" + b"1" * 9999 + b"\n", "line 2 has the label '11111111111111111111'"),
    "a minus": (HEADER + b"a film\t-1\n", "line 2 has the label '-1'"),
    "another digit": (HEADER + "a film\t\u0661\n".encode(), "line 2 has the label '\u0661'"),
    "no words": (HEADER + b" \xc2\xa0 \t1\n", "line 2 has an empty sentence"),
    "no sentence": (HEADER + b"\t1\n", "line 2 has an empty sentence"),
    "gzip": (gzip.compress(HEADER), "line 1 is not UTF-8 text"),
    "latin": (HEADER + b"caf\xe9\t1\n", "line 2 is not UTF-8 text"),
    "utf-16": (HEADER.decode().encode("utf-16"), "line 1 is not UTF-8 text"),
    "one line": (HEADER + b"a" * 20_000, "line 2 is longer than 16,384 bytes"),
    "a pickle": (b"cos\nsystem\n(S'touch executed'\ntR.", "must start with the header"),
    "few": (HEADER + b"a film\t1\n" * 999, "has too few sentences: 1,000 in train.tsv and 100 in dev.tsv are needed"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_sst2_is_one_line(tmp_path, content, message):
    write_sst2(tmp_path)
    (tmp_path / "train.tsv").write_bytes(content)
    assert message in refusal(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_the_held_out_file_is_looked_at_as_closely(tmp_path):
    write_sst2(tmp_path, held_out=99)
    assert "has too few sentences" in refusal(tmp_path)
    (tmp_path / "dev.tsv").write_bytes(HEADER + b"a film\t7\n")
    assert "line 2 has the label '7'" in refusal(tmp_path)
    (tmp_path / "dev.tsv").unlink()
    assert "holds no dev.tsv; take SST-2 of GLUE" in refusal(tmp_path)


def test_nothing_there_and_what_is_no_file(tmp_path, monkeypatch):
    remedy = "holds no train.tsv; take SST-2 of GLUE (SST-2.zip, unpacked): --data or ETASTAR_DATA"
    assert refusal() == f"data: got 'SST-2'; {remedy}"
    (tmp_path / "file").write_bytes(b"")
    assert "holds no train.tsv" in refusal(tmp_path / "file")
    assert "File name too long" in refusal("x" * 5000)
    write_sst2(tmp_path / "there")
    (tmp_path / "there" / "train.tsv").unlink()
    os.mkfifo(tmp_path / "there" / "train.tsv")
    assert "is not a regular file" in refusal(tmp_path / "there")
    (tmp_path / "there" / "train.tsv").unlink()
    (tmp_path / "there" / "train.tsv").mkdir()
    assert "is not a regular file" in refusal(tmp_path / "there")
    write_sst2(tmp_path / "shut")

    def shut(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", shut)  # the file's own permissions do not stop an administrator
    assert "cannot be read: Permission denied" in refusal(tmp_path / "shut")


def test_the_network_of_the_protocol(tmp_path):
    write_sst2(tmp_path)
    network = load_network("sst2-transformer", data=tmp_path)
    assert (network.loss, network.step_size, network.batch_size, network.rank) == ("mse", 0.001, 50, 2)
    block = 65 * 192 + 65 * 64 + 65 * 256 + 257 * 64 + 4 * 64
    assert sum(p.numel() for p in network.model.parameters()) == (2000 + 32) * 64 + 2 * block + 2 * 64 + 65 * 2
    inputs, labels = network.draw(torch.Generator().manual_seed(0), 50)
    outputs = network.model(inputs)
    assert outputs.shape == (50, 2)
    errors = [
        0.5 * ((float(row[label]) - 1) ** 2 + float(row[1 - label]) ** 2)
        for row, label in zip(outputs.detach(), labels.tolist(), strict=True)
    ]
    assert network.loss_fn(network.model, (inputs, labels)).item() == pytest.approx(sum(errors) / 50, rel=1e-5)


def narrow(width=8, heads=2):
    torch.manual_seed(0)
    return SentenceClassifier(VOCABULARY, LENGTH, width=width, heads=heads)


def test_padding_changes_nothing_and_the_order_of_words_does(tmp_path):
    write_sst2(tmp_path)
    codes = load_sst2(tmp_path)[0][0][:40]
    model = narrow().double()
    outputs = model(codes)
    lengths = (codes != 0).sum(dim=1).tolist()
    assert min(lengths) < 10
    assert max(lengths) == LENGTH
    for row, length, output in zip(codes, lengths, outputs, strict=True):
        torch.testing.assert_close(model(row[None, :length])[0], output)
    turned = codes[:1, : lengths[0]].flip(1)
    assert not torch.allclose(model(turned)[0], outputs[0])


def test_every_word_attends_to_all_words_and_to_no_padding():
    attention = narrow(width=6).blocks[0].attention.double()
    stream = torch.randn(1, 4, 6, dtype=torch.float64)
    query, key, value = (stream[0] @ attention.project.weight.T + attention.project.bias).detach().split(6, dim=1)
    rows = []
    for t in range(3):
        parts = []
        for head in (slice(0, 3), slice(3, 6)):
            scores = [math.exp(float(query[t, head] @ key[s, head]) / math.sqrt(3)) for s in range(3)]
            parts.append(sum(w / sum(scores) * value[s, head] for s, w in enumerate(scores)))
        rows.append(torch.cat(parts) @ attention.out.weight.T + attention.out.bias)
    padding = torch.tensor([[False, False, False, True]])
    torch.testing.assert_close(attention(stream, padding[:, None, None, :])[0, :3], torch.stack(rows))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The recipe with a network and a training set of a size that dense checks, and a run, can afford."""
    write_sst2(tmp_path / "SST-2")

    def load(data):
        (inputs, labels), kept = load_sst2(data)
        return (inputs[:60], labels[:60]), kept

    build = partial(SentenceClassifier, VOCABULARY, LENGTH, width=4, depth=1, heads=2)
    recipe = Recipe(build, load, {"mse": Settings(0.1, 20, 2, 100, 50, 30)}, reads_files=True)
    monkeypatch.setitem(_PROTOCOL_ONLY, "sst2-transformer", recipe)
    return tmp_path


def test_vectorised_gradients_of_single_sentences_are_the_looped_ones(small, monkeypatch):
    import etastar.network.persample as persample

    monkeypatch.setattr(persample, "_looped", lambda *_: pytest.fail("fell back to the loop"))
    network = load_network("sst2-transformer", data=small)
    batch = tuple(part[:5] for part in network.train)
    vector = ParameterVector.of(network.model)
    rows = torch.cat(list(per_sample_gradients(network.model, network.loss_fn, vector, batch)))
    for index, row in enumerate(rows):
        network.model.zero_grad()
        network.loss_fn(network.model, tuple(part[index : index + 1] for part in batch)).backward()
        expected = torch.cat([parameter.grad.reshape(-1) for parameter in network.model.parameters()])
        assert float((row - expected).norm()) <= 1e-4 * float(expected.norm())


def test_the_hessian_is_symmetric_and_the_gradient_s_derivative(small):
    network = load_network("sst2-transformer", data=small)
    network.model.double()
    inputs, labels = (part[:8] for part in network.train)
    operator = HessianOperator(network.model, network.loss_fn, [(inputs, labels)])
    block = torch.randn(operator.shape[0], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = operator @ block
    crossed = block.mT @ images
    assert float((crossed[0, 1] - crossed[1, 0]).abs()) <= 1e-11 * float(images.norm() * block.norm())
    names = [name for name, _ in network.model.named_parameters()]
    ends = []
    for sign in (1.0, -1.0):
        moved = ParameterVector.of(network.model).split(operator.vector.current() + sign * 1e-5 * block[:, 0])
        values = {name: piece.detach().requires_grad_() for name, piece in zip(names, moved, strict=True)}
        loss = network.loss_fn(lambda x, at=values: functional_call(network.model, at, (x,)), (inputs, labels))
        ends.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(values.values()))]))
    assert float(((ends[0] - ends[1]) / 2e-5 - images[:, 0]).norm()) <= 1e-5 * float(images[:, 0].norm())


def test_the_experiment_runs_on_it(small):
    plan = TinySubspacesPlan("sst2", steps=128, step_size=0.1, curvature_samples=30, seeds=1, files=small)
    run = tiny_subspaces(plan)
    approach = run.seeds[0].approach
    assert (run.plan.protocol.rank, run.plan.protocol.batch_size, len(approach)) == (2, 50, 64)
    assert approach["loss"][-10:].mean() < 0.5 * approach["loss"][0]
    assert 0 < approach["chi"].min() <= approach["chi"].max() <= 1 + 1e-5
    paths = write_tiny_subspaces(run, small / "out")
    assert "sst2-transformer" in paths[-1].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", BRANCHES)
def test_the_runs_after_the_switch_take_their_steps_on_it(small, name):
    plan, network = load(TinySubspacesPlan("sst2", steps=128, curvature_samples=30, seeds=1, files=small), 0)
    stage = Stage(network, plan, 0, name)
    for _ in range(5):
        stage.advance()
    state = stage.state_dict()
    assert (state["step"], state["ended"]) == (5, False)
    assert torch.isfinite(state["series"]).all()
    assert len(state["measured"]) == (2 if name == "sgd" else 0)
