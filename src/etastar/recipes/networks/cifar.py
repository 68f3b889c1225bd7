"""5,000 photographs of CIFAR-10 to train on and as many held out, from the binary files that the user has.

The data set comes in three layouts. The binary one is plain bytes and is read; the python one is a pickle, which can
execute anything, and is refused by name. Nothing is downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from etastar.errors import InvalidFile
from etastar.recipes.networks.network import Samples

__all__ = ["load_cifar"]

_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then the red, green and blue planes
_TRAINING, _HELD_OUT, _LEAST_HELD_OUT = 5000, 5000, 1000
_REMEDY = "take the binary version of CIFAR-10 (cifar-10-binary.tar.gz, unpacked): --data or ETASTAR_DATA"


def load_cifar(data: str | Path | None = None) -> tuple[Samples, Samples]:
    """The first 5,000 training images in their order, ``(n, 3, 32, 32)``, standardised by channel, and held-out ones.

    Held out are up to 5,000 images: of ``test_batch.bin`` where it is there, else those after the ones that train.

    Args:
        data: Directory of ``data_batch_1.bin``, or with ``cifar-10-batches-bin`` in it; None takes the environment's
            ``ETASTAR_DATA``, or else ``cifar-10-batches-bin``.

    Raises:
        InvalidFile: No images there, the python version, or a file that is not what it should be.
    """
    root = Path(data or os.environ.get("ETASTAR_DATA") or "cifar-10-batches-bin")
    homes = (root, root / "cifar-10-batches-bin")
    try:
        home = next((home for home in homes if (home / "data_batch_1.bin").exists()), None)
        if home is None:
            raise _nothing(root)
        images, labels = _read(home / "data_batch_1.bin", _TRAINING + _HELD_OUT)
        rest = images[_TRAINING:], labels[_TRAINING:]
        if (home / "test_batch.bin").exists():
            rest = _read(home / "test_batch.bin", _HELD_OUT)
    except OSError as error:
        raise InvalidFile("data", str(root), f"cannot be read: {error.strerror or error}") from None
    if len(images) < _TRAINING or len(rest[0]) < _LEAST_HELD_OUT:
        needed = f"has too few images: {_TRAINING:,} to train on and {_LEAST_HELD_OUT:,} held out are needed"
        raise InvalidFile("data", str(home), needed)
    images, labels = images[:_TRAINING], labels[:_TRAINING]
    middle, scale = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    return ((images - middle) / scale, labels), ((rest[0] - middle) / scale, rest[1])


def _nothing(root: Path) -> InvalidFile:
    pickled = (root, root / "cifar-10-batches-py")
    if any((home / "data_batch_1").exists() for home in pickled):
        return InvalidFile("data", str(root), f"holds the python version, a pickle, which is never read; {_REMEDY}")
    return InvalidFile("data", str(root), f"holds no data_batch_1.bin; {_REMEDY}")


def _read(path: Path, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` images of a file, pixels in [0, 1], and their labels."""
    if not path.is_file():
        raise InvalidFile("data", str(path), "is not a regular file")
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise InvalidFile("data", str(path), f"has {size:,} bytes; a multiple of {_RECORD:,} is needed")
    with path.open("rb") as file:
        content = file.read(most * _RECORD)
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() > 9:
        raise InvalidFile("data", str(path), f"has the label {records[:, 0].max()}; labels are 0 to 9")
    pixels = torch.tensor(records[:, 1:].reshape(-1, 3, 32, 32), dtype=torch.float32) / 255.0
    return pixels, torch.tensor(records[:, 0].astype(np.int64))
