"""Embedded sets as they are counted in the documentation, files of every kind, and what is said of bad ones."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image
from scipy.stats import pearsonr
from transformers import AutoTokenizer, EvalPrediction, ViTImageProcessorPil

from opdf.data import class_weights, embedded_names, encode, load_data, minilm, token_agreement
from opdf.data.embedded import snippets
from opdf.data.load import own_splits
from opdf.data.task import Task
from opdf.job import DataConfig
from opdf.job.options import fill
from opdf.job.prepared import load

ROWS = {
    "movie-sentiment": 10072, "amazon-sentiment": 2985, "tweet-sentiment": 3432, "nyt-sentiment": 2970,
    "movie-scores": 10605, "amazon-scores": 3708, "tweet-scores": 4200, "nyt-scores": 5190,
    "nyt-pairs": 4934, "digits": 1797, "mnist-5k": 5000,
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_embedded_sets(name: str) -> None:
    data, task = load_data(name)
    assert sum(len(part) for part in data.values()) == ROWS[name]
    assert list(data) == ["train", "validation", "test"]
    assert len(data["train"]) > len(data["test"]) > len(data["validation"])
    kinds = {"sentiment": "classification", "scores": "regression", "pairs": "similarity"}
    assert task.kind == kinds.get(name.partition("-")[2], "image-classification")
    assert name in embedded_names()


def test_splits_do_not_change_and_follow_the_seed() -> None:
    first, again, other = (load_data("digits", seed=s)[0]["test"]["label"] for s in (0, 0, 1))
    assert list(first) == list(again) != list(other)


def test_sentences_of_a_document_stay_together() -> None:
    texts, _, documents = snippets("amazon")
    owner = dict(zip(texts, documents, strict=True))
    data, _ = load_data("amazon-scores")
    parts = [{owner[t] for t in part["text"]} for part in data.values()]
    unique = {t for t in texts if texts.count(t) == 1}
    parts = [{owner[t] for t in part["text"] if t in unique} for part in data.values()]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]


def test_pairs_are_of_one_document_or_of_two_of_the_same_split() -> None:
    texts, _, documents = snippets("nyt")
    owners: dict[str, set[str]] = {}
    for text, document in zip(texts, documents, strict=True):
        owners.setdefault(text, set()).add(document)
    data, task = load_data("nyt-pairs")
    seen = []
    for part in data.values():
        assert sum(part["label"]) == len(part) / 2
        for first, second, label in zip(part["first"], part["second"], part["label"], strict=True):
            assert bool(owners[first] & owners[second]) == bool(label) or len(owners[first] | owners[second]) > 2
        seen.append({d for c in task.inputs for text in part[c] if len(owners[text]) == 1 for d in owners[text]})
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_pairs_are_encoded_one_after_the_other() -> None:
    data, task = load_data("nyt-pairs", train_limit=300)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    encoded, _ = encode(DatasetDict(train=data["train"]), task, tokenizer)
    assert len(encoded["train"]) == 600
    for k in (0, 255, 299):
        for side, column in enumerate(task.inputs):
            assert encoded["train"][2 * k + side]["input_ids"] == tokenizer(data["train"][k][column])["input_ids"]


def test_train_limit() -> None:
    data, _ = load_data("movie-sentiment", train_limit=50)
    assert len(data["train"]) == 50
    assert len(data["test"]) == 2015


GOOD = {"text": ["a"] * 9, "label": [0, 1, 2] * 3}


def write(folder: Path, kind: str, **columns: Any) -> str:
    path = folder / f"data.{kind}"
    data = Dataset.from_dict(columns)
    {"csv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}[kind](str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_files_with_named_classes(tmp_path: Path, kind: str) -> None:
    name = write(tmp_path, kind, sentence=[f"s {i}" for i in range(40)], label=["no", "yes"] * 20)
    data, task = load_data(name)
    assert task == Task("classification", ("sentence",), "label", ("no", "yes"))
    assert [len(p) for p in data.values()] == [28, 4, 8]
    assert set(data["train"]["label"]) == {0, 1}


def test_class_numbers_are_the_same_in_a_split_that_lacks_a_class(tmp_path: Path) -> None:
    names = [*(["a", "c"] * 20), "b"]
    data, task = load_data(write(tmp_path, "csv", text=[f"{name} {i}" for i, name in enumerate(names)], label=names))
    assert task.labels == ("a", "b", "c")
    assert sum(1 in part["label"] for part in data.values()) == 1
    assert sum(len(part) for part in data.values()) == 41
    for part in data.values():
        assert [task.labels[k] for k in part["label"]] == [text[0] for text in part["text"]]


@pytest.mark.parametrize(
    ("columns", "used"),
    [({"label": [-1] * 200}, False), ({}, False), ({"label": [-1] * 150 + [1] * 50}, True)],
    ids=["hidden", "none", "some"],
)
def test_a_split_is_left_out_where_all_labels_are_hidden(columns: dict[str, Any], used: bool) -> None:
    parts = ("train", "validation")
    labelled = {part: Dataset.from_dict({"text": [part] * 40, "label": [0, 1] * 20}) for part in parts}
    test = Dataset.from_dict({"text": ["test"] * 200, **columns})
    data = own_splits(DatasetDict(labelled, test=test), "label")
    assert set(data["test"]["text"]) == {"test" if used else "validation"}
    assert ("validation" in data) == used


def test_minus_one_is_a_class_like_others_also_where_the_file_begins_with_it(tmp_path: Path) -> None:
    labels = [-1] * 150 + [0] * 25 + [1] * 25
    data, task = load_data(write(tmp_path, "csv", text=[f"t{k}" for k in range(200)], label=labels))
    assert task.labels == ("-1", "0", "1")
    assert sum(list(part["label"]).count(0) for part in data.values()) == 150


@pytest.mark.parametrize("classes", [("no", "yes", "maybe"), ("maybe", "yes", "no", "never")])
def test_named_classes_are_in_that_order(tmp_path: Path, classes: tuple[str, ...]) -> None:
    texts = [f"{['no', 'yes', 'maybe'][k % 3]} {k}" for k in range(60)]
    file = write(tmp_path, "csv", text=texts, label=[text.split()[0] for text in texts])
    data, task = load_data(file, labels=classes)
    assert task.labels == classes
    for rows in data.values():
        assert [classes[number] for number in rows["label"]] == [text.split()[0] for text in rows["text"]]
    with pytest.raises(ValueError, match=r"labels is no, yes, and .* also holds maybe \(20 times\); name"):
        load_data(file, labels=["no", "yes"])


@pytest.mark.parametrize(("first", "present"), [(0, 3), (1, 3), (0, 2)])
def test_integers_are_named_in_rising_order(tmp_path: Path, first: int, present: int) -> None:
    numbers = [first + k % present for k in range(60)]
    file = write(tmp_path, "csv", text=[f"{n} {k}" for k, n in enumerate(numbers)], label=numbers)
    data, task = load_data(file, labels=["low", "middle", "high"])
    assert task.labels == ("low", "middle", "high")
    for rows in data.values():
        assert list(rows["label"]) == [int(text.split()[0]) - first for text in rows["text"]]


def test_whole_numbers_are_in_the_order_of_numbers_however_a_file_has_them(tmp_path: Path) -> None:
    """A jsonl file and folders had 10 before 2, so that a teacher's LABEL_2 became 10."""
    numbers = [k % 12 - 1 for k in range(60)]
    expected = tuple(map(str, range(-1, 11)))
    for kind, values in (("csv", numbers), ("jsonl", numbers), ("jsonl", list(map(str, numbers)))):
        file = write(tmp_path, kind, text=[f"t {k}" for k in range(60)], label=values)
        data, task = load_data(file)
        assert task.labels == expected
        for rows in data.values():
            assert [int(task.labels[label]) for label in rows["label"]] == [
                numbers[int(text.split()[1])] for text in rows["text"]
            ]
    bars = [f"{n}|{(n + 5) % 12}" for n in range(12)] * 5
    _, task = load_data(write(tmp_path, "csv", text=[f"t {k}" for k in range(60)], label=bars), task="multi-label")
    assert task.labels == tuple(map(str, range(12)))


@pytest.mark.parametrize("present", [[1, 2], [0, 1], [0, 1, 2], ["low", "high"]])
def test_it_is_said_where_integers_are_counted_from_if_some_are_missing(tmp_path: Path, present: list[Any]) -> None:
    labels = [present[k % len(present)] for k in range(60)]
    file = write(tmp_path, "csv", text=[f"t {k}" for k in range(60)], label=labels)
    _, task = load_data(file, labels=["low", "middle", "high"])
    said = [note for note in task.notes if "counted from 0" in note]
    assert bool(said) == (present in ([1, 2], [0, 1]))
    if present == [1, 2]:
        assert said[0].endswith(
            "2 integers for the 3 classes of labels, which are counted from 0: 1 is middle, 2 is high"
        )


@pytest.mark.parametrize(
    "words", [("false", "true"), ("FALSE", "TRUE"), ("False", "True"), ("007", "042"), ("00", "1")]
)
def test_classes_of_a_csv_file_have_their_names_as_written(tmp_path: Path, words: tuple[str, str]) -> None:
    """true was called True and 007 was called 7 in predictions; a test file was read otherwise than a train file."""
    lines = "".join(f"t {k},{words[k % 2]}\n" for k in range(40))
    (tmp_path / "train.csv").write_text(f"text,label\n{lines}t,unknown\n")
    (tmp_path / "test.csv").write_text(f"text,label\n{lines}")
    data, task = load_data(str(tmp_path / "test.csv"))
    assert task.labels == words
    assert all(task.labels[row["label"]] == words[int(row["text"].split()[1]) % 2] for row in data["train"])
    data, task = load_data(str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"))
    assert task.labels == (*words, "unknown")
    assert [task.labels[label] for label in data["test"]["label"]] == list(words) * 20


def test_true_and_false_are_the_same_classes_in_json_and_csv(tmp_path: Path) -> None:
    """JSON's were called True and False, so that a test file in csv had two classes more."""
    rows = [(f"t {k}", k % 2 == 0) for k in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in rows))
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{t},{json.dumps(v)}\n" for t, v in rows))
    data, task = load_data(str(tmp_path / "rows.jsonl"), test=str(tmp_path / "rows.csv"))
    assert task.labels == ("false", "true")
    for part in data.values():
        assert all(row["label"] == (int(row["text"].split()[1]) % 2 == 0) for row in part)
    for labels in (task.labels, ("False", "True")):
        named = replace(task, labels=labels)
        assert class_weights({True: 2.0}, data["train"], named) == [1.0, 2.0]


@pytest.mark.parametrize(("no", "yes"), [("false", "true"), ("FALSE", "TRUE"), ("0", "1")])
def test_columns_of_several_labels_may_say_true_or_false(tmp_path: Path, no: str, yes: str) -> None:
    lines = "".join(f"t {k},{(no, yes)[k % 2]},{(yes, no)[k % 3 > 0]}\n" for k in range(40))
    (tmp_path / "data.csv").write_text(f"text,odd,third\n{lines}")
    data, task = load_data(str(tmp_path / "data.csv"), label=["odd", "third"])
    assert task.labels == ("odd", "third")
    for row in data["train"]:
        k = int(row["text"].split()[1])
        assert row["labels"] == [k % 2, int(k % 3 == 0)]


def test_a_split_whose_labels_are_all_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    train = write(tmp_path, "csv", text=[f"t {k}" for k in range(40)], label=[1, 2] * 20)
    test = write(tmp_path / "test", "csv", text=["a", "b"], label=[None, None])
    for task in ("classification", "regression"):
        with pytest.raises(
            ValueError, match=r"'label' of .*test.* is empty in 2 of 2 rows of the test split: rows 2 and"
        ):
            load_data(train, test=test, task=task)


def test_files_of_their_own_for_splits(tmp_path: Path) -> None:
    files = {}
    for part, count in (("train", 40), ("validation", 10), ("test", 20)):
        (tmp_path / part).mkdir()
        texts = [f"{part} {k}" for k in range(count)]
        files[part] = write(tmp_path / part, "csv", text=texts, label=["no", "yes"] * (count // 2))
    data, task = load_data(files["train"], validation=files["validation"], test=files["test"])
    assert task.labels == ("no", "yes")
    for part, rows in data.items():
        assert {text.split()[0] for text in rows["text"]} == {part}
    assert [len(rows) for rows in data.values()] == [40, 10, 20]
    data, _ = load_data(files["train"], test=files["test"])
    assert [len(rows) for rows in data.values()] == [36, 4, 20]
    data, _ = load_data(files["train"], validation=files["validation"], test=0.25)
    assert [len(rows) for rows in data.values()] == [30, 10, 10]
    other = write(tmp_path, "csv", txt=["a"] * 9, label=["no"] * 9)
    with pytest.raises(ValueError, match=r"data.csv has no column 'text', which the training data have"):
        load_data(files["train"], test=other)


def test_classes_of_different_types_in_different_files(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    train = write(tmp_path, "csv", text=[f"t {k}" for k in range(40)], label=[1, 2] * 20)
    test = write(tmp_path / "test", "csv", text=["a", "b", "c"], label=["1", "2", "x"])
    data, task = load_data(train, test=test)
    assert task.labels == ("1", "2", "x")
    assert list(data["test"]["label"]) == [0, 1, 2]


def test_empty_rows_are_left_out_when_asked(tmp_path: Path) -> None:
    texts = [None if k % 10 == 0 else " " if k == 5 else f"t {k}" for k in range(60)]
    labels = [None if k == 7 else 1 + k % 2 for k in range(60)]
    data, task = load_data(write(tmp_path, "jsonl", text=texts, label=labels), drop_empty=True)
    assert sum(map(len, data.values())) == 60 - 6 - 2
    assert task.labels == ("1", "2")
    assert task.notes[-1] == "left out, because 'text' or 'label' is empty: 8 of 60 rows of train"


@pytest.mark.parametrize("ids", [list(range(60)), [f"id {k}" for k in range(60)], [k % 40 for k in range(60)]])
def test_identifiers_are_no_classes(tmp_path: Path, ids: list[Any]) -> None:
    file = write(tmp_path, "csv", text=[f"t {k}" for k in range(60)], id=ids, label=[0, 1] * 30)
    if len(set(ids)) == 60:
        with pytest.raises(ValueError, match=r"'id' of .* has 60 classes in 60 rows, 60 of them with one row each"):
            load_data(file, label="id", inputs=["text"])
        names = sorted(map(str, ids))
        assert load_data(file, label="id", inputs=["text"], labels=names)[1].labels == tuple(names)
    else:
        assert load_data(file, label="id", inputs=["text"])[1].num_labels == 40


def test_pairs_and_regression(tmp_path: Path) -> None:
    name = write(tmp_path, "csv", a=[f"x {i}" for i in range(20)], b=["y"] * 20, score=[i / 2 for i in range(20)])
    data, task = load_data(name, label="score", validation=0.2)
    assert (task.kind, task.inputs, task.num_labels) == ("regression", ("a", "b"), 1)
    assert len(data["validation"]) == 4


def test_files_may_be_paths_and_tables_are_refused(tmp_path: Path) -> None:
    """Both ended in a traceback."""
    frame = pd.DataFrame(GOOD)
    frame.to_csv(tmp_path / "a.csv", index=False)
    data, _ = load_data(tmp_path / "a.csv", validation=tmp_path / "a.csv", test=tmp_path / "a.csv")
    assert len(data["train"]) == len(data["test"]) == 9
    with pytest.raises(TypeError, match=r"name is a DataFrame; name a file .* frame\.to_parquet"):
        load_data(frame)  # type: ignore[arg-type]


def test_image_folder(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / label / f"{i}.png")
    data, task = load_data(str(tmp_path))
    assert (task.kind, task.labels) == ("image-classification", ("cat", "dog"))
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    encoded, collate = encode(data, task, processor)
    batch = collate([encoded["train"][k] for k in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert encoded["train"].features["pixel_values"].shape == (3, 8, 8)  # arrays: lists of lists are slow to read


def test_identifiers_of_images_are_no_numbers_to_predict(tmp_path: Path) -> None:
    """Images are not learned by regression, which the message offered."""
    names = [f"{k}.png" for k in range(40)]
    for name in names:
        Image.new("L", (8, 8)).save(tmp_path / name)
    Path(write(tmp_path, "csv", file_name=names, label=names)).rename(tmp_path / "metadata.csv")
    with pytest.raises(ValueError, match=r"with one row each, .*; set label to a column of classes$"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({"text": ["a"] * 9, "label": ["x"] * 9}, {}, ValueError, "the one class 'x'"),
        ({"text": list("abcdefghi"), "label": [0.5] * 9}, {"task": "regression"}, ValueError, "have 0.5 as 'label'"),
        ({"text": ["a"] * 9, "labl": [0, 1, 2] * 3}, {}, ValueError, "set label to one of text, labl"),
        (GOOD, {"inputs": ["txt"]}, ValueError, "no column 'txt'; did you mean 'text'"),
        (GOOD, {"task": "ranking"}, ValueError, "task is 'ranking'"),
        (GOOD | {"label": [0.5, 1, 2] * 3}, {"task": "classification"}, ValueError, "set task to 'regression'"),
        (GOOD, {"validation": 0.9, "test": 0.2}, ValueError, "validation is 0.9"),
        (GOOD, {"train_limit": 0}, ValueError, "train_limit is 0"),
        (GOOD, {"labels": ["a", "a"]}, ValueError, r"labels is \['a', 'a'\]; name every class once"),
        (GOOD, {"labels": ["no", "yes"]}, ValueError, r"also holds 0 \(3 times\), 1 .*, 2"),
    ],
)  # fmt: skip
def test_bad_data(tmp_path: Path, columns: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(write(tmp_path, "csv", **columns), **options)


def test_a_class_that_is_not_named_is_looked_for_in_its_split(tmp_path: Path) -> None:
    """The file of the training rows alone was named, which did not have it."""
    (tmp_path / "test").mkdir()
    rows = {"text": [f"text {k}" for k in range(30)], "label": ["no", "yes"] * 15}
    name, test = write(tmp_path, "csv", **rows), write(tmp_path / "test", "csv", text=["a", "b"], label=["yes", "oui"])
    with pytest.raises(ValueError, match=r"also holds oui \(1 times, in test\); name all classes"):
        load_data(name, test=test, labels=["no", "yes"])


@pytest.mark.parametrize("content", [b"no image", None])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / label / f"{i}.png")
    bad = tmp_path / "dog" / "7.png"
    bad.write_bytes(bad.read_bytes()[:45] if content is None else content)
    data, task = load_data(str(tmp_path))
    with pytest.raises(ValueError, match=rf"{bad} of the \w+ split cannot be read: "):
        encode(data, task, ViTImageProcessorPil(size={"height": 8, "width": 8}))


@pytest.mark.parametrize("other", [(2, 4), (3, 3)])
@pytest.mark.parametrize("where", ["train", "test"])
def test_images_of_several_sizes_are_refused(tmp_path: Path, other: tuple[int, int], where: str) -> None:
    """With as many pixels they were read line after line into the shape of the first, and scrambled."""
    for part in ("train", "validation", "test"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            shape = other if part == where and label == "dog" else (4, 2)
            Image.fromarray(np.full(shape, 9, np.uint8)).save(tmp_path / part / label / "0.png")
    if where == "test":
        (tmp_path / "test" / "cat" / "0.png").unlink()  # so that those of a split are alike
    data, task = load_data(str(tmp_path))
    message = r"makes arrays of several sizes, such as \[3, 4, 2\] and \[3, \d, \d\], and a model is given one; set do"
    with pytest.raises(ValueError, match=message):
        encode(data, task, ViTImageProcessorPil(do_resize=False))


@pytest.mark.parametrize(
    ("name", "message"),
    [("moive-sentiment", "did you mean 'movie-sentiment'"), ("none.csv", "none.csv does not exist")],
)
def test_missing_data(name: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        load_data(name)


def test_tokens_are_padded_to_the_longest_of_a_batch() -> None:
    data, task = load_data("movie-sentiment", train_limit=8)
    train = DatasetDict(train=data["train"])
    encoded, collate = encode(train, task, AutoTokenizer.from_pretrained(minilm()), max_length=32)
    rows = [encoded["train"][k] for k in range(4)]
    batch = collate([dict(r) for r in rows])
    assert batch["input_ids"].shape == (4, max(len(r["input_ids"]) for r in rows))
    assert batch["input_ids"].shape[1] <= 32
    assert set(batch) >= {"input_ids", "attention_mask", "labels"}


def test_rows_that_another_version_encoded_are_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (json.dumps({"text": f"word {k}", "label": k % 2}) + "\n" for k in range(40))
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    tokenizer = AutoTokenizer.from_pretrained(minilm())

    def kept() -> Any:
        return encode(*load_data(str(tmp_path / "rows.jsonl")), tokenizer)[0]["train"].cache_files

    first = kept()
    assert first
    assert kept() == first
    monkeypatch.setattr(sys.modules[encode.__module__], "ENCODED_BY", "another", raising=False)
    assert kept() != first


def test_metrics_against_formulas() -> None:
    guesses, labels = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]), np.array([1, 0, 0, 0])
    found = Task("classification", ("t",), "l", ("a", "b")).compute_metrics()(EvalPrediction(guesses, labels))
    assert found == pytest.approx({"accuracy": 0.75, "f1": 2 / 3, "matthews": 1 / 3**0.5})
    x, y = np.array([[0.1], [0.4], [0.3]]), np.array([1.0, 3.0, 4.0])
    found = Task("regression", ("t",), "l", ()).compute_metrics()(EvalPrediction(x, y))
    assert found["pearson"] == pytest.approx(pearsonr(x[:, 0], y)[0])
    assert found["spearman"] == pytest.approx(0.5)
    assert found["pearson_spearman"] == pytest.approx((found["pearson"] + 0.5) / 2)
    found = Task("classification", ("t",), "l", ("a", "b", "c")).metrics(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]))
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert token_agreement(np.array([[1, 2, 3]]), np.array([[0, 2, 0]]), np.array([[5, -100, 6, 7]])) == 0.5


def test_balanced_weights_leave_out_a_class_without_rows() -> None:
    """As scikit-learn's of the classes that there are: their mean over the rows is 1."""
    task, rows = Task("classification", ("t",), "l", ("a", "b", "c")), Dataset.from_dict({"l": [0, 0, 0, 1]})
    assert class_weights("balanced", rows, task) == pytest.approx([4 / 6, 4 / 2, 1.0])


def test_whole_numbers_are_classes_where_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"t {k},{k % 3}.0\n" for k in range(60)))
    data, task = load_data(str(tmp_path / "data.csv"))
    assert task.kind == "regression"
    note = "the numbers in 'label' are taken as scores; if they are classes, set task to classification"
    assert task.notes == (note,)
    data, task = load_data(str(tmp_path / "data.csv"), task="classification")
    assert (task.labels, task.notes) == (("0", "1", "2"), ())
    assert [int(text.split()[1]) % 3 for text in data["train"]["text"]] == data["train"]["label"][:]


def test_the_choice_among_text_columns_is_told(tmp_path: Path) -> None:
    columns = {name: [f"{name} {k}" for k in range(40)] for name in ("key", "title", "body")}
    file = write(tmp_path, "csv", **columns, label=["a", "b"] * 20)
    _, task = load_data(file)
    assert task.inputs == ("key", "title")
    assert task.notes == ("of the text columns key, title, body the model reads key and title; set inputs to choose",)
    assert load_data(file, inputs="body")[1].notes == ()


def test_one_column_without_brackets(tmp_path: Path) -> None:
    rows = {"Review Body": [f"t {k}" for k in range(40)], "stars": [0, 1] * 20}
    given = {"name": write(tmp_path, "csv", **rows), "inputs": "Review Body", "label": "stars"}
    _, task = load(fill(DataConfig, given, "data"))
    assert (task.inputs, task.label) == (("Review Body",), "stars")
    for options, message in (
        ({"label": "auto"}, r"set data\.label to one of Review Body, stars, or to null"),
        ({"task": "ranking"}, r"data\.task is 'ranking'; expected one of .*, causal-lm"),
        ({"inputs": "Body"}, "there is no column 'Body'; the columns are Review Body, stars"),
    ):
        with pytest.raises(ValueError, match=message):
            load(fill(DataConfig, given | options, "data"))
