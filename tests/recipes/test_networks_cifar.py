"""CIFAR-10 from the user's files: the binary layout is read right, and nothing else is read at all."""

import numpy as np
import pytest
import torch

from etastar.errors import InvalidFile
from etastar.recipes.networks import load_network
from etastar.recipes.networks.cifar import load_cifar

RECORD = 3073


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("ETASTAR_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def records(count, seed=0):
    """Label, then 1,024 red, green and blue bytes each."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, RECORD), dtype=np.uint8)
    rows[:, 0] = np.arange(count) % 10
    return rows


@pytest.fixture(scope="module")
def training():
    return records(6100)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rows.tobytes())


@pytest.mark.parametrize("within", [".", "cifar-10-batches-bin"])
def test_the_first_5000_images_of_the_binary_version(tmp_path, training, within):
    write(tmp_path / within / "data_batch_1.bin", training)
    (images, labels), (kept, kept_labels) = load_cifar(tmp_path)
    assert (tuple(images.shape), tuple(kept.shape)) == ((5000, 3, 32, 32), (1100, 3, 32, 32))
    assert labels.tolist() == [i % 10 for i in range(5000)]
    assert kept_labels.tolist() == [i % 10 for i in range(5000, 6100)]
    for channel in range(3):
        plane = training[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)]
        middle, scale = plane[:5000].mean(), plane[:5000].std()
        for index in (0, 17, 4999):
            expected = (plane[index].reshape(32, 32) - middle) / scale
            np.testing.assert_allclose(images[index, channel].numpy(), expected, atol=1e-3)
        np.testing.assert_allclose(kept[7, channel].flatten().numpy(), (plane[5007] - middle) / scale, atol=1e-3)


def test_the_test_batch_is_held_out_where_it_is_there(tmp_path, training, monkeypatch):
    write(tmp_path / "data_batch_1.bin", training[:5000])
    write(tmp_path / "test_batch.bin", records(1200, 1)[::-1])
    monkeypatch.setenv("ETASTAR_DATA", str(tmp_path))
    _, (kept, labels) = load_cifar()
    assert len(kept) == 1200
    assert labels[:3].tolist() == [9, 8, 7]


def test_the_network_of_the_protocol(tmp_path, training):
    write(tmp_path / "data_batch_1.bin", training)
    network = load_network("cifar5k-cnn", data=tmp_path)
    assert (network.loss, network.step_size, network.batch_size, network.rank) == ("mse", 0.001, 50, 10)
    sizes = (3 * 9 * 32 + 32, 32 * 9 * 32 + 32, 32 * 8 * 8 * 10 + 10)
    assert sum(parameter.numel() for parameter in network.model.parameters()) == sum(sizes)
    batch = network.draw(torch.Generator().manual_seed(0), 50)
    loss = network.loss_fn(network.model, batch)
    loss.backward()
    assert 0.3 < loss.item() < 1.5  # ½ ‖one-hot‖² and what the initialisation adds


@pytest.mark.parametrize("within", [".", "cifar-10-batches-py"])
def test_the_python_version_is_refused_with_the_remedy_and_not_opened(tmp_path, within):
    path = tmp_path / within / "data_batch_1"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(InvalidFile, match=r"a pickle, which is never read; take the binary version of CIFAR-10"):
        load_cifar(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes; a multiple of 3,073 is needed"),
        (b"\0" * (RECORD * 2 - 1), "has 6,145 bytes; a multiple of 3,073"),
        (b"\x0a" + b"\0" * (RECORD - 1), "has the label 10; labels are 0 to 9"),
        (b"\0" * RECORD * 4, "has too few images: 5,000 to train on and 1,000 held out"),
    ],
)
def test_what_is_no_batch_is_refused(tmp_path, content, message):
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(InvalidFile, match=message):
        load_cifar(tmp_path)


def test_nothing_there_and_what_is_no_file(tmp_path):
    with pytest.raises(InvalidFile, match=r"data: got 'cifar-10-batches-bin'; holds no data_batch_1.bin"):
        load_cifar()
    (tmp_path / "data_batch_1.bin").mkdir()
    with pytest.raises(InvalidFile, match="is not a regular file"):
        load_cifar(tmp_path)
