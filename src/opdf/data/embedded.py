"""Datasets by name that need no hub.

The text sets are the four corpora of Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text" (ICWSM 2014): sentences with the mean of about twenty human ratings from -4 to 4.
"""

from __future__ import annotations

import csv
import gzip
import struct
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from opdf.data import packages
from opdf.data.splits import split
from opdf.data.task import Task

SOURCES = {"movie": False, "amazon": True, "tweet": False, "nyt": True}
"""The text sources, and whether their sentences come from documents that must not be torn between splits."""

MIN_RATING = 0.5
"""Sentences rated closer to neutral than this are left out of the binary task."""

FASHION_LABELS = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DIGITS = tuple(map(str, range(10)))

Loader = Callable[[int], tuple[DatasetDict, Task]]


def names() -> list[str]:
    """The names that `load_data` knows."""
    return list(_LOADERS)


def load(name: str, seed: int) -> tuple[DatasetDict, Task]:
    """An embedded dataset with its splits train, validation and test, and its task."""
    return _LOADERS[name](seed)


def snippets(source: str) -> tuple[list[str], list[float], list[str]]:
    """Sentences, ratings from -4 to 4, and the document that each sentence comes from."""
    raw = gzip.decompress((files("opdf.data") / "snippets" / f"{source}.tsv.gz").read_bytes()).decode()
    rows = list(csv.reader(raw.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE))
    by_document = SOURCES[source]
    documents = [key.rpartition("_")[0] if by_document else key for key, _, _ in rows]
    return [text for _, _, text in rows], [float(score) for _, score, _ in rows], documents


def _sentiment(source: str) -> Loader:
    def load_it(seed: int) -> tuple[DatasetDict, Task]:
        rows = [row for row in zip(*snippets(source), strict=True) if abs(row[1]) >= MIN_RATING]
        labels = ("negative", "positive")
        data = Dataset.from_dict(
            {"text": [r[0] for r in rows], "label": [int(r[1] > 0) for r in rows]},
            features=Features({"text": Value("string"), "label": ClassLabel(names=list(labels))}),
        )
        parts = split(data, seed, groups=[r[2] for r in rows], inputs=["text"])
        return parts, Task("classification", ("text",), "label", labels)

    return load_it


def _scores(source: str) -> Loader:
    def load_it(seed: int) -> tuple[DatasetDict, Task]:
        texts, scores, documents = snippets(source)
        data = Dataset.from_dict({"text": texts, "label": scores})
        return split(data, seed, groups=documents, inputs=["text"]), Task("regression", ("text",), "label", ())

    return load_it


def _pairs(source: str) -> Loader:
    """Sentence pairs, half from one document (1) and half from two of the same split (0)."""

    def load_it(seed: int) -> tuple[DatasetDict, Task]:
        texts, _, documents = snippets(source)
        data = split(Dataset.from_dict({"text": texts, "document": documents}), seed, groups=documents, inputs=["text"])
        paired = DatasetDict({name: _pair_up(rows, seed) for name, rows in data.items()})
        return paired, Task("similarity", ("first", "second"), "label", ())

    return load_it


def _pair_up(rows: Dataset, seed: int) -> Dataset:
    documents: dict[str, list[str]] = {}
    for row in rows.shuffle(seed=seed):
        documents.setdefault(row["document"], []).append(row["text"])
    same = [pair for texts in documents.values() for pair in zip(texts[::2], texts[1::2], strict=False)]
    # Pairs of one document stand together, so half the list away is another document.
    apart = [(first, same[k - len(same) // 2][1]) for k, (first, _) in enumerate(same)]
    first, second = zip(*same, *apart, strict=True)
    label = [1.0] * len(same) + [0.0] * len(apart)
    return Dataset.from_dict({"first": list(first), "second": list(second), "label": label})


def _images(pixels: np.ndarray, labels: np.ndarray, names_: tuple[str, ...]) -> Dataset:
    """`pixels` of shape `[images, height, width]`, uint8."""
    features = Features({"image": Image(), "label": ClassLabel(names=list(names_))})
    # A header before the bytes makes a PGM file; PNG, which datasets makes of arrays, takes nine times as long.
    header = b"P5 %d %d 255\n" % pixels.shape[:0:-1]
    images = [{"bytes": header + image.tobytes(), "path": None} for image in pixels]
    return Dataset.from_dict({"image": images, "label": labels.astype(int).tolist()}, features=features)


def _digits(seed: int) -> tuple[DatasetDict, Task]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = _images((digits.images * 15).astype(np.uint8), digits.target, DIGITS)
    return split(data, seed), Task("image-classification", ("image",), "label", DIGITS)


def _mnist_5k(seed: int) -> tuple[DatasetDict, Task]:
    table = np.loadtxt(packages.mnist_5k(), delimiter=",", dtype=np.uint8)
    data = _images(table[:, :-1].reshape(-1, 28, 28), table[:, -1], DIGITS)
    return split(data, seed), Task("image-classification", ("image",), "label", DIGITS)


def _fashion_mnist(seed: int) -> tuple[DatasetDict, Task]:
    folder = packages.fashion_mnist()
    parts = {}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        parts[name] = _images(pixels, _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"), FASHION_LABELS)
    train = split(parts["train"], seed, test=0.0)
    data = DatasetDict(train=train["train"], validation=train["validation"], test=parts["test"])
    return data, Task("image-classification", ("image",), "label", FASHION_LABELS)


def _read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


_LOADERS: dict[str, Loader] = {
    **{f"{source}-sentiment": _sentiment(source) for source in SOURCES},
    **{f"{source}-scores": _scores(source) for source in SOURCES},
    "nyt-pairs": _pairs("nyt"),
    "digits": _digits,
    "mnist-5k": _mnist_5k,
    "fashion-mnist": _fashion_mnist,
}
