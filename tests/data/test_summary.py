"""What is printed before a run begins: each number is counted here in another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer, ViTImageProcessorPil

from opdf.data import DataSummary, Prepared, as_rgb, describe, encode, load_data, minilm

TEXTS = ["one two", "three", "four five six"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(minilm())


def summary(name: str, processor: Any, max_length: int = 128, **options: Any) -> DataSummary:
    data, task = load_data(name, **options)
    encoded, collator = encode(data, task, processor, max_length=max_length)
    return describe(Prepared(data, encoded, task, processor, collator, max_length), name, where="data.")


def write(path: Path, **columns: Any) -> str:
    Dataset.from_dict(columns).to_csv(str(path))
    return str(path)


def test_stars_are_said_to_be_classes(tmp_path: Path, tokenizer: Any) -> None:
    stars = [1 + k % 5 for k in range(100)]
    file = write(tmp_path / "reviews.csv", id=list(range(100)), body=[f"words {k}" for k in range(100)], stars=stars)
    found = summary(file, tokenizer, label="stars", where="data.")
    assert str(found).splitlines() == [
        f"data       {file}",
        "task       classification: 'body' to 'stars'",
        "rows       70 train, 10 validation, 20 test",
        "classes    5: 1 (20 rows), 2 (20 rows), 3 (20 rows), 4 (20 rows), 5 (20 rows)",
        "note       the integers in 'stars' are taken as classes; if they are scores, set data.task to regression",
    ]
    assert sum(found.classes["train"].values()) == 70
    assert "labels     from 1 to 5, mean 3" in str(summary(file, tokenizer, label="stars", task="regression"))


@pytest.mark.parametrize("name", ["nyt-pairs", pytest.param("movie-scores", marks=pytest.mark.slow)])
def test_texts_that_are_cut_are_counted(tokenizer: Any, name: str) -> None:
    found = summary(name, tokenizer, max_length=24, train_limit=300)
    data, task = load_data(name, train_limit=300)
    for part, rows in data.items():
        lengths = [[len(ids) for ids in tokenizer(rows[column][:])["input_ids"]] for column in task.inputs]
        assert found.truncated[part] == (np.max(lengths, 0) > 24).sum() > 0
    assert found.longest == max(found.longest, np.max(lengths))
    assert f"rows are longer than data.max_length, 24 tokens; the longest has {found.longest}" in str(found)


def test_pairs_are_as_long_as_both(tmp_path: Path, tokenizer: Any) -> None:
    columns = {"a": [f"{k} one two" for k in range(40)], "b": ["one two three"] * 40, "label": [0, 1] * 20}
    found = summary(write(tmp_path / "data.csv", **columns), tokenizer, max_length=8)
    assert sum(found.truncated.values()) == 40
    assert found.longest == 3 + 3 + 3
    assert sum(summary(write(tmp_path / "data.csv", **columns), tokenizer, max_length=9).truncated.values()) == 0


def test_test_rows_that_were_trained_on_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    train = write(tmp_path / "train.csv", text=[f"word {k}" for k in range(40)], label=["a", "b", "c", "c"] * 10)
    test = write(tmp_path / "test.csv", text=["Word 3!", "word 40", "word 41", "word 7"], label=["a", "d", "c", "c"])
    found = summary(train, tokenizer, validation=test, test=test)
    assert found.repeated == {"validation": 2, "test": 2}
    assert "2 of 4 rows of test are training rows too" in str(found)
    assert "no training row has the class d" in str(found)
    assert found.classes["test"] == {"a": 1, "b": 0, "c": 2, "d": 1}


def test_test_rows_that_are_validation_rows_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    """Cut from the training file, or from a file that is named for both, they were passed over in silence."""
    rows = {"text": [f"word {k}" for k in range(40)], "label": ["a", "b"] * 20}
    train = write(tmp_path / "train.csv", **rows)
    test = write(tmp_path / "test.csv", text=[*rows["text"][:20], "other"], label=[*rows["label"][:20], "a"])
    found = summary(train, tokenizer, test=test)
    assert found.repeated["test"] + found.shared == 20
    assert found.shared > 0
    assert f"{found.shared} of 21 rows of test are validation rows too, but for case and punctuation" in str(found)
    other = write(tmp_path / "other.csv", text=["new 1", "New 2", "word 3"], label=["a", "b", "b"])
    assert summary(train, tokenizer, validation=other, test=other).shared == 2
    assert summary(train, tokenizer).shared == 0


def test_images_that_were_trained_on_are_counted(tmp_path: Path) -> None:
    """In folders for each split, where nothing brings copies together."""
    for part, pictures in (("train", range(40)), ("val", range(100, 110)), ("test", range(36, 50))):
        for k in pictures:
            folder = tmp_path / part / "ab"[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), k, np.uint8)).save(folder / f"{part} {k}.png")
    Image.fromarray(np.full((8, 8), 5, np.uint8)).save(tmp_path / "test" / "a" / "again.png")  # in train it is a b
    found = summary(str(tmp_path), ViTImageProcessorPil(size={"height": 8, "width": 8}))
    assert (found.repeated, found.contradicting) == ({"validation": 0, "test": 5}, 2)
    assert "5 of 15 rows of test are training rows too, so that scores on them say less" in str(found)
    assert "2 of 65 rows say the same as others of another class; no model can have all of them right" in str(found)


def test_images_have_no_length() -> None:
    found = summary("digits", ViTImageProcessorPil(size={"height": 8, "width": 8}))
    assert (found.max_length, found.truncated, found.repeated) == (None, {}, {"validation": 0, "test": 0})
    assert "image-classification: 'image' to 'label'" in str(found)
    assert sum(found.classes["test"].values()) == found.rows["test"]


def test_rows_that_contradict_each_other_or_say_nothing_are_noted(tmp_path: Path, tokenizer: Any) -> None:
    texts = [f"good film {k}" for k in range(90)] + ["Dull.", "dull", "DULL!", "  ", ""] + ["fine"] * 5
    labels = [k % 2 for k in range(90)] + [0, 1, 0, 1, 1] + [1] * 5
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps({'text': t, 'label': y})}\n" for t, y in zip(texts, labels, strict=True)))
    notes = [text for what, text in summary(str(path), tokenizer).lines() if what == "note"]
    assert any(note.startswith("3 of 100 rows say the same as others of another class") for note in notes)
    assert "2 of 100 rows have an empty text; data.drop_empty leaves them out" in notes
    assert not any("unknown" in note for note in notes)


def test_texts_that_the_tokenizer_cannot_read_are_noted(tmp_path: Path, tokenizer: Any) -> None:
    texts = [f"\U0001f600 \U0001f680 \U0001f4a9 {k}" for k in range(60)]
    file = write(tmp_path / "a.csv", text=texts, label=["a", "b"] * 30)
    found = summary(file, tokenizer)
    tokens = [t for row in load_data(file)[0]["train"]["text"] for t in tokenizer(row)["input_ids"]]
    share = np.mean(np.array(tokens) == tokenizer.unk_token_id)
    assert found.unknown == pytest.approx(share)
    assert f"{share:.0%} of the tokens are unknown to the tokenizer" in str(found)


def test_words_that_are_nothing_to_the_tokenizer_are_noted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"tokens": ["one", "\u200b", "two", ""][: 2 + k % 3], "tags": ["O", "B", "O", "B"][: 2 + k % 3]}
        for k in range(30)
    ]
    rows += [{"tokens": ["one", "\u200b"] * 9, "tags": ["O", "B"] * 9}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = summary(str(tmp_path / "data.jsonl"), tokenizer, max_length=8)
    assert found.unread == 30 + 10  # of the last row, which is cut, it cannot be told
    assert "40 words are nothing to the tokenizer" in str(found)


def test_a_class_that_often_stands_for_none_is_noted(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "a.csv", text=[f"words {k}" for k in range(60)], label=[-100, 0, 1] * 20)
    assert "-100, which often stands for no label, is taken as a class" in str(summary(file, tokenizer))


def test_a_class_without_a_name_is_noted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": f"word {k}", "label": ("", "a", "b")[k % 3]} for k in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = "the class '' has no name that can be seen; leave its rows out if it stands for no label"
    assert said in str(summary(str(tmp_path / "data.jsonl"), tokenizer))


def test_what_is_passed_over_in_images_is_noted(tmp_path: Path) -> None:
    for k in range(60):
        (folder := tmp_path / "images" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.full((8, 8, 3), k, np.uint8))
        if k < 7:
            picture.save(folder / f"{k}.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "white")])
        elif k < 10:
            picture.convert("RGBA").save(folder / f"{k}.png")
        else:
            picture.save(folder / f"{k}.png")
    found = summary(str(tmp_path / "images"), ViTImageProcessorPil(size={"height": 8, "width": 8}))
    assert "7 of the 60 images that were looked at have several pictures, of which the first is taken" in str(found)
    assert "3 of the 60 images that were looked at have transparent parts" in str(found)


@pytest.mark.parametrize(("values", "kind"), [
    (np.arange(64).reshape(8, 8) * 1000, np.uint16), (np.arange(64).reshape(8, 8) * 1000, np.int32),
    (np.linspace(0, 1, 64).reshape(8, 8), np.float32),
])  # fmt: skip
def test_images_that_8_bits_cannot_hold_are_refused(values: np.ndarray, kind: Any) -> None:
    """Pillow makes all values above 255 white, and all fractions black."""
    with pytest.raises(ValueError, match="do not fit into 8 bits"):
        as_rgb(Image.fromarray(values.astype(kind)))
    few = np.arange(64, dtype=np.uint8).reshape(8, 8)
    if kind != np.float32:
        assert np.array_equal(np.asarray(as_rgb(Image.fromarray(few.astype(kind))))[..., 1], few)


def test_images_of_16_bits_with_their_larger_byte_first() -> None:
    """Many TIFF files are. Pillow said `image has wrong mode` of them."""
    few = np.arange(64).reshape(8, 8)

    def image(values: np.ndarray) -> Image.Image:
        return Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes())

    assert np.array_equal(np.asarray(as_rgb(image(few)))[..., 1], few)
    with pytest.raises(ValueError, match=r"from 0 to 63000 .*do not fit into 8 bits"):
        as_rgb(image(few * 1000))


def test_a_link_to_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"1\.png is a link that leads nowhere"):
        load_data(str(tmp_path))
