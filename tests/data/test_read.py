"""Files as they are named and written: no patterns, no words taken for gaps, rows as a spreadsheet counts them."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from opdf.data import load_data, located
from opdf.data.folders import read_folder
from opdf.data.read import READERS, read_file, rows_of
from opdf.data.rows import read_rows

ROWS = [(f"words {k}", "ab"[k % 2]) for k in range(40)]


def table(path: Path, rows: Any = ROWS, header: str = "text,label") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return str(path)


def images(folder: Path, *classes: str, start: int = 0, count: int = 10) -> Path:
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            grey = np.full((8, 8), start + k * count + i, np.uint8)
            Image.fromarray(grey).save(folder / name / f"{i}.png")
    return folder


NAMES = [
    "[a].csv",
    "[ab]*.csv",
    "$HOME.csv",
    "~/data.csv",
    "a?.tsv",
    "http:/x.csv",
    "a::b.csv",
    "x=1/data.csv",
    "D.CSV",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere")
    table(tmp_path / name)
    table(tmp_path / "a.csv", [("other", "c")] * 40)  # what the pattern [a].csv means
    data, task = load_data(name)
    assert sum(map(len, data.values())) == 40
    assert task.labels == ("a", "b")
    assert data["train"].column_names == ["text", "label"]
    assert located(name) == str(tmp_path / name)


@pytest.mark.parametrize("name", ["[cat]", "$HOME", "train of mine", "* photos"])
def test_a_folder_and_its_classes_are_no_patterns(tmp_path: Path, name: str) -> None:
    folder = images(tmp_path / name, "[cat]", "$HOME", "test")
    data, task = load_data(str(folder))
    assert task.labels == ("$HOME", "[cat]", "test")
    assert sum(map(len, data.values())) == 30


def test_names_of_images_are_no_splits(tmp_path: Path) -> None:
    folder = images(tmp_path, "cat", "dog")
    (folder / "cat" / "0.png").rename(folder / "cat" / "test_0.png")
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    assert len(read_folder(folder)["train"]) == 20


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (["owl", "cat"], "label names several columns, and images are learned with one class each; name one of owl, "),
        ("score", "are float64 numbers such as 0.5; set label to a column of classes"),  # not task to regression
    ],
)
def test_images_have_one_class_each(tmp_path: Path, label: Any, message: str) -> None:
    """Several columns ended in a traceback, and numbers in advice that images cannot follow."""
    images(tmp_path, "cat", "dog")
    rows = [f"{path.relative_to(tmp_path)},{k % 2},0,{k}.5" for k, path in enumerate(sorted(tmp_path.rglob("*.png")))]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,owl,cat,score", *rows]))
    with pytest.raises(ValueError, match=message):
        load_data(str(tmp_path), label=label)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    table(tmp_path / "mine.csv")
    assert sum(map(len, load_data("~/mine.csv")[0].values())) == 40
    assert located("~/mine.csv") == str(tmp_path / "mine.csv")


def test_names_are_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "nyu-mll", "glue")
    monkeypatch.chdir(tmp_path / "nyu-mll")
    assert located("glue") == str(tmp_path / "nyu-mll" / "glue")
    assert located("../nyu-mll/glue") == str(tmp_path / "nyu-mll" / ".." / "nyu-mll" / "glue")
    for name in ("nyu-mll/glue", "nyu-mll/glue:sst2", "movie-sentiment", "none.csv", ""):
        assert located(name) == name


@pytest.mark.parametrize("word", ["None", "NA", "null", "N/A", "nan", "NaN", "", "#N/A"])
def test_words_for_nothing_are_words_among_words(tmp_path: Path, word: str) -> None:
    file = table(tmp_path / "data.csv", [*ROWS, (word, "a"), ("last", word), ("more", word)])
    if not word:
        with pytest.raises(ValueError, match=r"'text' of .* is empty in 1 of 43 rows: row 42; fill"):
            load_data(file)
        return
    data, task = load_data(file)
    assert set(task.labels) == {"a", "b", word}
    assert word in [text for part in data.values() for text in part["text"]]


def test_words_for_nothing_are_gaps_among_numbers(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    table(file, [("a", 1, 0.5, "x"), ("NA", "NA", "nan", "NA"), ("b", 3, "null", "")], "text,count,score,class")
    rows = read_file(file)
    assert {name: feature.dtype for name, feature in rows.features.items()} == {
        "text": "string", "count": "int64", "score": "float64", "class": "string",
    }  # fmt: skip
    assert rows.to_dict() == {
        "text": ["a", "NA", "b"], "count": [1, None, 3], "score": [0.5, None, None], "class": ["x", "NA", None],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"'score' of .* is empty in 2 of 3 rows: rows 3 and 4; fill"):
        load_data(str(file), inputs="text", label="score")


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    file = table(tmp_path / "data.csv", [*[("t", k / 2) for k in range(30)], ("t", "unknown")])
    with pytest.raises(ValueError, match=r"1 of 31 rows hold none \('unknown'\): row 32"):
        load_data(file, task="regression")


@pytest.mark.parametrize(("sign", "advice"), [("{},5", "'0,5'; write digits and"), ("{} %", "'0 %'; write digits and")])
def test_numbers_as_other_countries_write_them_are_shown(tmp_path: Path, sign: str, advice: str) -> None:
    file = table(tmp_path / "data.csv", [("t", sign.format(k)) for k in range(30)])
    with pytest.raises(ValueError, match=f"a regression needs one number a row, not texts such as {advice}"):
        load_data(file, task="regression")


def test_a_type_is_that_of_the_whole_column(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    table(file, [*[(k, 1) for k in range(12_000)], ("word", 2)])
    assert read_file(file).features["text"].dtype == "string"


def test_rows_are_counted_as_in_the_file(tmp_path: Path) -> None:
    text = 'text,label\n"two\nlines",a\n\nb,\nc,x\n  \n,d\n'
    (tmp_path / "data.csv").write_text(text)
    sheet = list(csv.reader(text.splitlines(keepends=True)))
    file = tmp_path / "data.csv"
    for k, content in enumerate(read_file(file)["text"]):
        number = int(rows_of(file, [k]).removeprefix("row "))
        assert sheet[number - 1][0] == (content or "")
    with pytest.raises(
        ValueError, match=r"'text' of .*data.csv is empty in 1 of 4 rows: row 7; fill or remove them, or"
    ):
        load_data(str(file))
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert rows_of(tmp_path / "data.jsonl", [0, 1]) == "lines 1 and 3"
    assert rows_of(tmp_path / "data.parquet", [0]) == "row 1"
    assert rows_of(None, list(range(9))) == "rows 1, 2, 3, 4, 5 and 4 more"


def test_a_split_is_named_where_there_are_several(tmp_path: Path) -> None:
    train, test = table(tmp_path / "train.csv"), table(tmp_path / "test.csv", [*ROWS[:5], ("", "a")])
    with pytest.raises(
        ValueError, match=r"'text' of .*test.csv is empty in 1 of 6 rows of the test split: row 7; fill"
    ):
        load_data(train, test=test)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv cannot be read as csv: it is empty"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"text,label\na,1\n\nb,2,3\n", "row 4 has 3 cells and the header 2; commas separate"),
        ("a.csv", b"text,label\na,1,2\nb,2,3\n", "row 2 has 3 cells and the header 2; commas separate"),
        ("a.csv", b"text,label\na,1\nb\n", "row 3 has 1 cells and the header 2"),
        ("a.csv", b"text,label\na,1\nb\rc,2\n", "line 3 has a carriage return that stands alone; end lines with line"),
        ("a.csv", "text,label\né,1\n".encode("latin-1"), "line 2 is no UTF-8: byte 0xe9; save it as UTF-8"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text"}\n', "line 3, column 8: Expecting ':'"),
        ("a.jsonl", b'{"text": 1}\n{"text": "b"}\n', "column 'text' holds values of different kinds"),
        ("a.jsonl", b"[1]\n", "line 1 is no object"),
        ("a.jsonl", b"[" * 100_000, "more lists inside each other"),
        ("a.json", b"[{}, 1]", "row 2 is no object"),
        ("a.json", b"3", "row 1 is no object"),
        ("a.json", b'{"a":', "Expecting value"),
        ("a.json", b'{"text": {"0": "a"}, "label": {"0": 1}}', "holds the rows; write a list of objects"),
        ("a.json", b'{"columns": ["text"], "index": [0], "data": [["a"]]}', "orient='records'"),
        ("a.json", b'{"data": [{"text": "a", "label": 1}]}', "one object that holds the rows"),
        ("a.parquet", b"PAR1", "smaller than the minimum"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / name)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ending=st.sampled_from(sorted(READERS)),
    content=st.binary(max_size=60) | st.text('{}[]",:ab1\n\t\\').map(str.encode),
)
def test_any_bytes_are_a_table_or_a_value_error(tmp_path: Path, ending: str, content: bytes) -> None:
    file = tmp_path / f"data{ending}"
    file.write_bytes(content)
    with suppress(ValueError):
        assert len(read_file(file)) > 0


@pytest.mark.parametrize("marks", [b"", b"\xef\xbb\xbf"])
def test_all_kinds_hold_the_same(tmp_path: Path, marks: bytes) -> None:
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json", orient="records")
    for file in list(tmp_path.iterdir()):
        file.write_bytes(marks + file.read_bytes())
    frame.astype({"label": "category"}).to_parquet(tmp_path / "a.parquet")
    for ending in ("csv", "tsv", "json", "jsonl", "parquet"):
        assert read_file(tmp_path / f"a.{ending}").to_dict() == frame.to_dict("list")


def test_views_of_texts_in_a_parquet_file_are_texts(tmp_path: Path) -> None:
    """As Polars writes them."""
    texts, view = [text for text, _ in ROWS], pa.string_view()
    columns = {"text": (texts, view), "label": (["z", "a"] * 20, view), "words": ([["a", "b"]] * 40, pa.list_(view))}
    pq.write_table(pa.table({name: pa.array(*given) for name, given in columns.items()}), tmp_path / "data.parquet")
    assert read_file(tmp_path / "data.parquet").to_dict() == {name: values for name, (values, _) in columns.items()}
    _, task = load_data(str(tmp_path / "data.parquet"))
    assert (task.inputs, task.label, task.labels) == (("text",), "label", ("a", "z"))


def test_a_parquet_file_of_datasets_keeps_its_classes(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    rows = Dataset.from_dict({"text": [t for t, _ in ROWS], "label": [0, 1] * 20}, features=features)
    rows.to_parquet(tmp_path / "data.parquet")
    assert load_data(str(tmp_path / "data.parquet"))[1].labels == ("z", "a")


def test_images_in_a_parquet_file_without_the_notes_of_datasets(tmp_path: Path) -> None:
    """pandas and Polars drop them, and the images were no images then."""
    folder = images(tmp_path / "photos", "a", "b")
    files, labels = sorted(folder.glob("*/*.png")), ["a"] * 10 + ["b"] * 10
    stored = pa.array([{"bytes": file.read_bytes(), "path": None} for file in files])
    pq.write_table(pa.table({"image": stored, "label": labels}), tmp_path / "data.parquet")
    data, task = load_data(str(tmp_path / "data.parquet"))
    assert (task.kind, task.inputs) == ("image-classification", ("image",))
    for row in data["test"]:
        grey = row["image"].getpixel((0, 0))
        assert task.labels[row["label"]] == ("a" if grey < 10 else "b")
    binary = pa.array([file.read_bytes() for file in files])
    pq.write_table(pa.table({"image": binary, "label": labels}), tmp_path / "bytes.parquet")
    for named in (None, "image-classification"):
        with pytest.raises(ValueError, match="If 'image' holds images, write the file by datasets, with cast_column"):
            load_data(str(tmp_path / "bytes.parquet"), task=named)


def test_files_that_name_their_classes_in_different_orders(tmp_path: Path) -> None:
    """A test file's numbers are by its own names; they were taken for the training file's, and scores were turned."""
    rows = [(f"{'za'[k % 2]} {k}", "za"[k % 2]) for k in range(40)]
    for names in ("za", "az"):
        features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
        columns = {"text": [text for text, _ in rows], "label": [names.index(label) for _, label in rows]}
        Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{names}.parquet")
    table(tmp_path / "words.csv", rows)
    table(tmp_path / "numbers.csv", [(text, "za".index(label)) for text, label in rows])
    for test in ("az.parquet", "words.csv"):
        data, task = load_data(str(tmp_path / "za.parquet"), test=str(tmp_path / test))
        for part in data.values():
            assert [task.labels[number] for number in part["label"]] == [text[0] for text in part["text"]]
    with pytest.raises(ValueError, match=r"has labels \[0, 1\], in test; expected one of z, a, or 0 to 1 in"):
        load_data(str(tmp_path / "za.parquet"), test=str(tmp_path / "numbers.csv"))


def test_the_index_of_a_parquet_file_is_no_text(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=["text", "label"], index=[f"name {k}" for k in range(len(ROWS))])
    frame.to_parquet(tmp_path / "data.parquet")
    _, task = load_data(str(tmp_path / "data.parquet"))
    assert (task.inputs, task.notes) == (("text",), ())


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    table(file)
    assert len(read_file(file)) == 40
    table(file, ROWS[:30])
    assert len(read_file(file)) == 30
    folder = images(tmp_path / "images", "cat", "dog")
    assert np.asarray(read_folder(folder)["train"][0]["image"]).max() == 0
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(folder / "cat" / "0.png")
    assert np.asarray(read_folder(folder)["train"][0]["image"]).max() == 200


def test_what_was_read_is_mapped_into_memory(tmp_path: Path) -> None:
    table(tmp_path / "data.csv")
    assert read_file(tmp_path / "data.csv").cache_files


def test_folders_of_splits(tmp_path: Path) -> None:
    images(tmp_path / "train", "cat", "dog", "eel")
    images(tmp_path / "val", "dog", start=100)
    images(tmp_path / "test", "eel", start=200)
    data, task = load_data(str(tmp_path))
    assert task.labels == ("cat", "dog", "eel")
    assert {part: set(rows["label"]) for part, rows in data.items()} == {
        "train": {0, 1, 2}, "validation": {1}, "test": {2},
    }  # fmt: skip


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "Val", "Test"), ("Training", "dev", "Testing")]
)
def test_splits_are_no_classes_by_any_of_their_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for k, name in enumerate(names):
        images(tmp_path / name, "cat", "dog", start=50 * k)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "train" / "._0.png").write_bytes(b"")
    data, task = load_data(str(tmp_path))
    assert task.labels == ("cat", "dog")
    assert {part: len(rows) for part, rows in data.items()} == dict.fromkeys(("train", "validation", "test"), 20)


def test_images_behind_links_are_read(tmp_path: Path) -> None:
    """Below a class's folder they were left out without a word."""
    apart, data = images(tmp_path / "apart", "cat", "dog"), images(tmp_path / "data", "cat", "dog", start=100, count=1)
    for name in ("cat", "dog"):
        (data / name / "2024").symlink_to(apart / name)
        (data / name / "latest").symlink_to("2024")
    assert len(read_folder(data)["train"]) == 2 + 20


def test_folders_beside_splits_are_no_classes(tmp_path: Path) -> None:
    for k, name in enumerate(("train", "test", "unsorted")):
        images(tmp_path / name, "cat", "dog", start=50 * k)
    with pytest.raises(ValueError, match="has the splits test, train, and beside them unsorted; move"):
        load_data(str(tmp_path))


def test_a_class_can_be_called_train(tmp_path: Path) -> None:
    assert load_data(str(images(tmp_path, "bus", "train")))[1].labels == ("bus", "train")


def test_classes_are_those_of_the_folder_that_is_named_now(tmp_path: Path) -> None:
    photos = images(tmp_path / "mine" / "photos", "cat", "dog")
    with pytest.raises(ValueError, match="the one class 'photos'"):
        load_data(str(tmp_path / "mine"))
    assert load_data(str(photos))[1].labels == ("cat", "dog")


def test_a_folder_for_validation_is_not_taken_for_the_test(tmp_path: Path) -> None:
    images(tmp_path / "train", "cat", "dog", count=20)
    images(tmp_path / "val", "cat", "dog", start=100)
    data, _ = load_data(str(tmp_path))
    assert [len(rows) for rows in data.values()] == [32, 20, 8]


def test_images_that_a_table_describes(tmp_path: Path) -> None:
    folder = images(tmp_path, "all", count=40)
    names = [f"all/{k}.png" for k in range(40)]
    lines = [json.dumps({"file_name": name, "label": "ab"[k % 2]}) for k, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    data, task = load_data(str(folder))
    assert (task.inputs, task.labels) == (("image",), ("a", "b"))
    for row in data["train"]:
        assert np.asarray(row["image"]).max() % 2 == row["label"]
    (folder / "metadata.jsonl").write_text("\n".join(lines[:-2]))
    with pytest.warns(UserWarning, match=r"metadata.jsonl does not name them: 2 images \(.*/38.png\)"):
        assert sum(map(len, load_data(str(folder))[0].values())) == 38
    (folder / "all" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"names 3.png in line 4, and .* does not exist"):
        load_data(str(folder))


def test_names_of_images_are_no_texts(tmp_path: Path) -> None:
    """A model of texts learned the letters of the names."""
    names = {"image": [f"photos/{k}.PNG" for k in range(30)], "label": [k % 2 for k in range(30)]}
    Dataset.from_dict(names).to_csv(str(tmp_path / "data.csv"))
    with pytest.raises(
        ValueError, match=r"'image' of .* holds names of images, such as 'photos/0.PNG'; name the folde"
    ):
        load_data(str(tmp_path / "data.csv"))
    assert load_data(str(tmp_path / "data.csv"), task="classification")[1].inputs == ("image",)


def test_files_that_are_no_images_are_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", "a", "b", count=2)
    for name in ("5.heic", "6.HEIC", "list", ".hidden"):
        (folder / "a" / name).touch()
    with pytest.warns(UserWarning, match=r"images/a, as no images that can be read: 3 files \(.heic, list\)"):
        assert len(read_folder(folder)["train"]) == 4
    with pytest.warns(UserWarning, match=r"3 files \(.heic, list\)"):
        assert len(list(read_rows(folder))) == 4


def test_a_folder_of_other_data_says_what_to_name(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        table(tmp_path / "tables" / name)
    with pytest.raises(ValueError, match=r"of its files name one as the data, such as .*/tables/train.csv, and other"):
        load_data(str(tmp_path / "tables"))
    with pytest.raises(ValueError, match=r"tables has no images; name a file of it, such as .*/tables/train.csv"):
        read_rows(tmp_path / "tables")
    table(tmp_path / "from-the-hub" / "data" / "train-00000.csv")
    with pytest.raises(ValueError, match=r"or the name of a file, such as .*/from-the-hub/data/train-00000.csv"):
        load_data(str(tmp_path / "from-the-hub"))
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "several")
    for name in ("one", "several"):
        with pytest.raises(
            ValueError, match=f"folder .*/{name} was written by save_to_disk; write each split into a file"
        ):
            load_data(str(tmp_path / name))
        with pytest.raises(ValueError, match="was written by save_to_disk; write each split into a file"):
            read_rows(tmp_path / name)


def test_images_beside_their_classes_are_named(tmp_path: Path) -> None:
    folder = images(tmp_path, "cat", "dog")
    (folder / "cat" / "3.png").rename(folder / "stray.png")
    with pytest.raises(ValueError, match=r"has 1 images, such as stray.png, beside its subfolders"):
        load_data(str(folder))


def test_texts_that_begin_with_a_quote_swallow_no_rows(tmp_path: Path) -> None:
    """In a tsv file quotes are letters as soon as they would join lines; a quoted cell is read as before."""
    texts = ['"A start', *(f"text {k}" for k in range(1, 9)), '"An end', *(f"text {k}" for k in range(10, 40))]
    file = tmp_path / "rows.tsv"
    file.write_text("text\tlabel\n" + "".join(f"{text}\t{k % 2}\n" for k, text in enumerate(texts)))
    assert read_file(file)["text"] == texts
    assert rows_of(file, [9, 10]) == "rows 11 and 12"

    file.write_text('text\tlabel\n"one"\ta\n"say ""two"""\tb\n')
    assert read_file(file)["text"] == ["one", 'say "two"']


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotes_that_join_rows_of_a_csv_file_are_refused(tmp_path: Path, end: str) -> None:
    """Two texts that begin with a quote became one, and the rows between were lost: 34 of 40 rows were left."""
    texts = ['"5 inch', *(f"text {k}" for k in range(1, 7)), '"7 inch', *(f"text {k}" for k in range(8, 40))]
    file = tmp_path / "rows.csv"
    file.write_bytes(end.join(["text,label", *(f"{text},{k % 2}" for k, text in enumerate(texts)), ""]).encode())
    for read in (read_file, lambda path: list(read_rows(path))):
        with pytest.raises(ValueError, match="lines 2 to 9 are joined by a cell that begins with a quote"):
            read(file)


def test_cells_of_several_lines_and_of_any_length_are_read(tmp_path: Path) -> None:
    texts = ['say "two"\nlines', "long " * 50_000, '"', "\r\n", "a, b"]
    file = Path(table(tmp_path / "rows.csv", [(text, k % 2) for k, text in enumerate(texts)]))
    assert read_file(file)["text"] == texts
    assert [row.values["text"] for row in read_rows(file)] == texts
    file.write_text('text,label\n"Great" film,1\nsay "no",0\n')
    assert read_file(file)["text"] == ["Great film", 'say "no"']


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    """pandas would call the second one label.1, and it would be an input."""
    with pytest.raises(ValueError, match="two columns are called 'label'; rename one"):
        load_data(table(tmp_path / "twice.csv", [(text, kind, kind) for text, kind in ROWS], "text,label,label"))
    columns = [pa.array([f"text {k}" for k in range(40)]), *[pa.array([k % 2 for k in range(40)])] * 2]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "label", "label"]), tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="two columns are called 'label'; rename one"):
        load_data(str(tmp_path / "twice.parquet"))


@pytest.mark.parametrize("name", ["twice.jsonl", "twice.json"])
def test_a_key_that_an_object_has_twice_is_refused(tmp_path: Path, name: str) -> None:
    """The last value was taken without a word."""
    lines = [f'{{"text": "text {k}", "label": {k % 2}}}' for k in range(40)]
    lines[7] = '{"text": "text 7", "label": 1, "label": 0}'
    (tmp_path / name).write_text("\n".join(lines) if name.endswith("l") else f"[{', '.join(lines)}]")
    place = "line 8: " if name.endswith("l") else ""
    with pytest.raises(ValueError, match=f"as json.*: {place}an object has the key 'label' twice; rename one"):
        load_data(str(tmp_path / name))
    if name.endswith("l"):
        with pytest.raises(ValueError, match=r"as jsonl: line 8: an object has the key 'label' twice"):
            list(read_rows(tmp_path / name))


@pytest.mark.parametrize("name", ["cut.jsonl", "cut.json"])
def test_a_text_with_half_of_a_sign_is_named(tmp_path: Path, name: str) -> None:
    """json reads it, and no tokenizer does, whose error names no row."""
    lines = [json.dumps({"text": f"text {k} \U0001f600", "label": k % 2}) for k in range(40)]
    lines[7] = lines[7].replace("\\ude00", "")
    (tmp_path / name).write_text("\n".join(lines) if name.endswith("l") else f"[{', '.join(lines)}]")
    said = r"'text' has half of a sign, such as \\ud83d"
    with pytest.raises(ValueError, match=f"as json.*: {'line 8: ' * name.endswith('l')}{said}"):
        load_data(str(tmp_path / name))
    if name.endswith("l"):
        with pytest.raises(ValueError, match=rf"as jsonl: line 8: {said}"):
            list(read_rows(tmp_path / name))


@pytest.mark.parametrize(
    "row",
    [{"text": "a"}, {"tokens": ["a", "b"]}, {"messages": [{"role": "user", "content": "a"}]}, {"text": "a", "m": {}}],
)
def test_one_object_is_a_row(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "row.json").write_text(json.dumps(row))
    assert read_file(tmp_path / "row.json").num_rows == 1


def test_a_number_too_large_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as csv"):
        read_file(Path(table(tmp_path / "large.csv", [(text, 10**25 + k % 2) for k, (text, _) in enumerate(ROWS)])))


ODD = ("\u00a0", "\u2028", "\u2003", "\x0b", "\x0c", "\x1c", "\x85")
"""Characters at which Python's own methods split words or lines, and files do not."""


@pytest.mark.parametrize("odd", ODD)
def test_only_what_a_format_names_separates(tmp_path: Path, odd: str) -> None:
    """A word, a tag, a line and a label may hold any other space of Unicode, in the middle and at the ends."""
    word = f"{odd}10{odd}km{odd}"
    conll = "".join(f"{word} {k}\tB-{odd}X\n ran 2  O\n\n" for k in range(20))
    (tmp_path / "rows.conll").write_text(conll, encoding="utf-8", newline="")
    rows = read_file(tmp_path / "rows.conll")
    assert rows[:] == {"tokens": [[word, "ran"]] * 20, "tags": [[f"B-{odd}X", "O"]] * 20}
    for file, end in (("lines.txt", "\n"), ("paragraphs.txt", "\n\n"), ("dos.txt", "\r\n")):
        (tmp_path / file).write_text(end.join([f"a{odd}b", f"c{odd}"]) + end, encoding="utf-8", newline="")
        assert read_file(tmp_path / file)["text"][:] == [f"a{odd}b", f"c{odd}"]
    labels = [f"{odd}a{odd}|b", "b | c"] * 10
    (tmp_path / "many.jsonl").write_text("".join(f"{json.dumps({'text': 't', 'label': x})}\n" for x in labels))
    task = load_data(str(tmp_path / "many.jsonl"), task="multi-label", validation=str(tmp_path / "many.jsonl"),
                     test=str(tmp_path / "many.jsonl"))[1]  # fmt: skip
    assert sorted(task.labels) == sorted(["b", "c", f"{odd}a{odd}"])
    (tmp_path / "one.csv").write_text(f"text\n{odd}\na\n", encoding="utf-8", newline="")
    assert rows_of(tmp_path / "one.csv", [1]) == "row 3"


def test_a_carriage_return_alone_ends_no_line(tmp_path: Path) -> None:
    """As in files to predict. Python's text mode takes it for a line feed."""
    (tmp_path / "lines.txt").write_bytes(b"a\rb\r\nc\n")
    assert read_file(tmp_path / "lines.txt")["text"][:] == ["a\rb", "c"]
    (tmp_path / "words.conll").write_bytes(b"a\rb X\r\nc O\r\n\r\nd O\n")
    assert read_file(tmp_path / "words.conll")["tokens"][:] == [["a\rb", "c"], ["d"]]
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a",\r"label": 1}\r\n{"text": "b", "label": 0}\n')
    assert read_file(tmp_path / "rows.jsonl")["text"][:] == ["a", "b"]


def test_classes_that_look_alike_are_kept_and_noted(tmp_path: Path) -> None:
    names = ["Pos", "pos ", "caf\u00e9", "cafe\u0301", "other"]
    lines = (json.dumps({"text": f"text {k} {name}", "label": name}) for name in names for k in range(12))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    _, task = load_data(str(tmp_path / "rows.jsonl"))
    assert sorted(task.labels) == sorted(names)
    assert [note for note in task.notes if "'Pos' and 'pos '" in note]
    assert [note for note in task.notes if r"'cafe\u0301' and 'caf\xe9' differ" in note]
    assert len(task.notes) == 2


def test_values_of_different_kinds_are_named_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n\n{"text": "b", "label": "x"}\n')
    with pytest.raises(
        ValueError, match="'label' holds values of different kinds: line 1 has a number and line 3 a text"
    ):
        read_file(tmp_path / "a.jsonl")


@pytest.mark.parametrize("value", ["inf", "-inf", "1e39"])
def test_labels_that_float32_cannot_hold_are_named(tmp_path: Path, value: str) -> None:
    rows = [(f"words {k}", value if k == 7 else k / 10) for k in range(40)]
    with pytest.raises(ValueError, match=r"float32 cannot hold, in row 9"):
        load_data(table(tmp_path / "rows.csv", rows), task="regression")


@pytest.mark.parametrize(
    "text", ["# a comment\nJohn B-PER\nran O\n", "New York\tB-LOC\nis\tO\n", "John NNP B-PER\nran O\n"]
)
def test_lines_of_a_sentence_have_as_many_columns(tmp_path: Path, text: str) -> None:
    """A comment would be a word with a tag, and half of a word with a blank would be lost."""
    (tmp_path / "a.conll").write_text(f"-DOCSTART- -X- O O\n\nfine O\n\n{text}")
    with pytest.raises(ValueError, match="line 6 has 2 columns and the one before it 3; remove it if it is a comment"):
        read_file(tmp_path / "a.conll")
