"""Digit files in the layouts that users have, with content the tests choose."""

import gzip
import json
import struct

import numpy as np


def idx(array):
    """An array of unsigned bytes as IDX: two zero bytes, the type 8, the number of axes, their lengths, the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(directory, name, images, labels, packed=False):
    """The two files of one set, "train" or "t10k"."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx(array)
        path = directory / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content, 1) if packed else content)


def images_of(labels, seed=0):
    """Noisy images whose label can be read off their first pixel, ``(n, 28, 28)``."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    images[:, 0, 0] = labels
    return images


def write_package(directory, each=610):
    """The npm package's layout, `each` images of every digit; the first pixel is the digit over 1,000."""
    home = directory / "src" / "digits"
    home.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for digit in range(10):
        pixels = np.zeros((each, 784), dtype=object)
        pixels[:, 0], pixels[:, 1] = digit / 1000, rng.random(each).round(3)
        (home / f"{digit}.json").write_text(json.dumps({"data": pixels.reshape(-1).tolist()}), encoding="utf-8")
    return directory
