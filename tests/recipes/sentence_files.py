"""Sentences in the layout of GLUE's SST-2: the help topics of the standard library, cut where sentences end."""

import re
from itertools import islice
from pydoc_data.topics import topics


def sentences(count, skip=0):
    """Pairs of a sentence, in lower case, words apart, and a label: whether it has "the" in it."""
    text = " ".join(topics[name] for name in sorted(topics)).lower()
    found = (" ".join(re.findall(r"[a-z]+|[.,;:]", piece)) for piece in re.split(r"(?<=\.)\s+", text))
    long_enough = (sentence for sentence in found if sentence.count(" ") >= 3)
    return [(sentence, int("the" in sentence.split())) for sentence in islice(long_enough, skip, skip + count)]


def write_tsv(path, pairs):
    """A header, then a sentence with the blank that ends it in SST-2, a tab and a label a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["sentence\tlabel", *(f"{sentence} \t{label}" for sentence, label in pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_sst2(directory, training=1100, held_out=150):
    """Both files."""
    write_tsv(directory / "train.tsv", sentences(training))
    write_tsv(directory / "dev.tsv", sentences(held_out, skip=training))
