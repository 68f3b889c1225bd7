"""1,000 sentences of film reviews (SST-2) to train on, and those of dev.tsv held out, from the user's files of GLUE.

The files are text, a header and then a sentence, a tab and the label 0 or 1 a line; no more of them is read than is
needed. Words are what blanks separate, as GLUE has them. Nothing is downloaded, nothing executed.
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice
from pathlib import Path

import torch

from etastar.errors import InvalidFile
from etastar.recipes.networks.network import Samples

__all__ = ["LENGTH", "VOCABULARY", "load_sst2"]

LENGTH = 32  # words of a sentence that are read
VOCABULARY = 2000  # codes: 0 for padding, 1 for all other words, then the most frequent ones
_TRAINING, _HELD_OUT, _LEAST_HELD_OUT = 1000, 1000, 100
_LONGEST = 1 << 14  # bytes of a line: forty times the longest of SST-2
_HEADER = "sentence\tlabel"
_REMEDY = "take SST-2 of GLUE (SST-2.zip, unpacked): --data or ETASTAR_DATA"

Sentences = list[tuple[list[str], int]]


def load_sst2(data: str | Path | None = None) -> tuple[Samples, Samples]:
    """The first 1,000 sentences of ``train.tsv``, the first 1,000 of ``dev.tsv``, in their order.

    SST2-1k and its two classes are those of Song, Ahn and Yun (arXiv 2405.16002). Which sentences, the words and their
    codes are ours: the 1,998 most frequent words of the training sentences, equally frequent ones by code point; up to
    32 words of a sentence, the rest of its row being 0.

    Args:
        data: Directory of ``train.tsv`` and ``dev.tsv``, or with ``SST-2`` in it; None takes the environment's
            ``ETASTAR_DATA``, or else ``SST-2``.

    Returns:
        Codes ``(n, 32)`` and labels ``(n,)``, training and held out; no row is all padding.

    Raises:
        InvalidFile: No sentences there, or a file that is not what it should be.
    """
    root = Path(data or os.environ.get("ETASTAR_DATA") or "SST-2")
    homes = (root, root / "SST-2")
    try:
        home = next((home for home in homes if (home / "train.tsv").exists()), None)
        if home is None:
            raise InvalidFile("data", str(root), f"holds no train.tsv; {_REMEDY}")
        if not (home / "dev.tsv").exists():
            raise InvalidFile("data", str(home), f"holds no dev.tsv; {_REMEDY}")
        learnt, kept = _read(home / "train.tsv", _TRAINING), _read(home / "dev.tsv", _HELD_OUT)
    except OSError as error:
        raise InvalidFile("data", str(root), f"cannot be read: {error.strerror or error}") from None
    if len(learnt) < _TRAINING or len(kept) < _LEAST_HELD_OUT:
        needed = f"has too few sentences: {_TRAINING:,} in train.tsv and {_LEAST_HELD_OUT:,} in dev.tsv are needed"
        raise InvalidFile("data", str(home), needed)
    counts = Counter(word for words, _ in learnt for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    codes = {word: code for code, word in enumerate(ranked[: VOCABULARY - 2], start=2)}
    return _coded(learnt, codes), _coded(kept, codes)


def _coded(sentences: Sentences, codes: dict[str, int]) -> Samples:
    rows = torch.zeros(len(sentences), LENGTH, dtype=torch.int64)
    for row, (words, _) in zip(rows, sentences, strict=True):
        found = [codes.get(word, 1) for word in words[:LENGTH]]
        row[: len(found)] = torch.tensor(found)
    return rows, torch.tensor([label for _, label in sentences])


def _read(path: Path, most: int) -> Sentences:
    """The words and labels of the first `most` sentences."""
    if not path.is_file():  # a pipe would be waited on for ever
        raise InvalidFile("data", str(path), "is not a regular file")
    with path.open("rb") as file:
        lines = list(islice(iter(lambda: file.readline(_LONGEST + 1), b""), 1 + most))
    texts = [_text(path, number, line) for number, line in enumerate(lines, start=1)]
    if not texts or texts[0].removeprefix("\ufeff") != _HEADER:
        raise InvalidFile("data", str(path), "must start with the header of GLUE: sentence, a tab, label")
    return [_sentence(path, number, text) for number, text in enumerate(texts[1:], start=2)]


def _text(path: Path, number: int, line: bytes) -> str:
    if len(line) > _LONGEST:
        raise InvalidFile("data", str(path), f"line {number} is longer than {_LONGEST:,} bytes")
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise InvalidFile("data", str(path), f"line {number} is not UTF-8 text") from None


def _sentence(path: Path, number: int, text: str) -> tuple[list[str], int]:
    sentence, *rest = text.split("\t")
    if len(rest) != 1:
        raise InvalidFile("data", str(path), f"line {number} must be a sentence, a tab and a label")
    if rest[0] not in ("0", "1"):
        raise InvalidFile("data", str(path), f"line {number} has the label {rest[0][:20]!r}; labels are 0 and 1")
    words = sentence.split()
    if not words:
        raise InvalidFile("data", str(path), f"line {number} has an empty sentence")
    return words, int(rest[0])
