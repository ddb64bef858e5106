"""What says the same but for case, punctuation and addresses is in one split; everything else stays where it was."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import assume, given, settings, strategies as st
from PIL import Image
from sklearn.model_selection import ShuffleSplit

from opdf.data import load_data
from opdf.data.splits import contents, split

TEXT_SETS = [f"{source}-{kind}" for source in ("movie", "amazon", "tweet", "nyt") for kind in ("sentiment", "scores")]


def plain(text: str) -> str:
    """The audit's comparison: words in lower case."""
    return " ".join(re.findall(r"\w+", re.sub(r"(https?://|www\.)\S+", " ", text.lower())))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*TEXT_SETS, "nyt-pairs"])
def test_embedded_sets_have_no_text_in_two_splits(name: str, seed: int) -> None:
    data, task = load_data(name, seed=seed)
    parts = [{plain(text) for column in task.inputs for text in rows[column]} - {""} for rows in data.values()]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_sets_without_copies_are_cut_as_before() -> None:
    rows = Dataset.from_dict({"text": [f"t{k}" for k in range(100)]})
    kept, cut = next(ShuffleSplit(1, test_size=0.2, random_state=3).split(np.arange(100)))
    found = split(rows, 3, validation=0, inputs=["text"])
    assert found["test"]["text"] == [f"t{k}" for k in cut]
    assert found["train"]["text"] == [f"t{k}" for k in kept]


@settings(max_examples=60)
@given(
    texts=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=20, max_size=60).filter(lambda t: len(set(t)) > 5),
    documents=st.none() | st.just(range(8)),
    seed=st.integers(0, 99),
)
def test_rows_that_say_the_same_or_are_of_one_document_stay_together(
    texts: list[str], documents: Any, seed: int
) -> None:
    groups = None if documents is None else [f"d{k % 8}" for k in range(len(texts))]
    styles = ("{}", "{}!", " {}", "{} http://x.y/{}", "\n{}?")
    rows = Dataset.from_dict(
        {
            "text": [styles[k % 5].format(text.upper() if k % 3 else text, k) for k, text in enumerate(texts)],
            "key": texts, "group": groups or list(map(str, range(len(texts)))), "row": list(range(len(texts))),
        }
    )  # fmt: skip
    try:
        parts = split(rows, seed, groups=groups, inputs=["text"])
    except ValueError:
        assume(False)  # documents that share texts may hold all rows together
    assert sorted(row for part in parts.values() for row in part["row"]) == list(range(len(texts)))
    for column in ("key", "group"):
        owners = Counter(value for part in parts.values() for value in set(part[column]))
        assert max(owners.values()) == 1


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Wow!!", "wow", True),
        ("so true http://t.co/a1", "So true: http://t.co/b2 ", True),
        ("see www.a.b", "see", True),
        ("two  words\n", "two words", True),
        ("ﬁne", "fine", True),  # a ligature
        (":)", ":(", False),
        ("2.5 stars", "25 stars", False),
        ("कि", "का", False),
        ("good", "not good", False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same(first: str, second: str, same: bool) -> None:
    found = contents(Dataset.from_dict({"text": [first, second]}), ["text"])
    assert (found[0] == found[1]) == same


def test_pairs_are_the_same_where_both_texts_are() -> None:
    rows = Dataset.from_dict({"a": ["x", "X", "x"], "b": ["y", "y.", "z"]})
    first, second, third = contents(rows, ["a", "b"])
    assert first == second != third


def test_copies_of_an_image_stay_together(tmp_path: Path) -> None:
    for k in range(40):
        (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), k // 4, np.uint8)).save(tmp_path / "ab"[k % 2] / f"{k}.png")
    data, _ = load_data(str(tmp_path))
    parts = [{int(np.asarray(image).max()) for image in rows["image"]} for rows in data.values()]
    assert sum(map(len, parts)) == 10


def test_a_file_of_copies_is_refused() -> None:
    rows = Dataset.from_dict({"text": ["Spam", "spam!"] * 50})
    with pytest.raises(ValueError, match=r"100 rows, 1 different ones, are too few to cut off validation=0\.1"):
        split(rows, 0, inputs=["text"])
