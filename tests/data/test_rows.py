"""Rows one after the other: the same from every form of file and from a stream, or one clear refusal."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, strategies as st
from PIL import Image

from opdf.data import ROW_FORMATS, parse_rows, read_rows
from opdf.data.read import read_file

ROWS = [{"id": "007", "text": "two\nlines"}, {"id": "8", "text": 'a "quote", and é'}, {"id": "9", "text": ""}]


def test_every_form_gives_the_same_rows_and_keeps_texts_of_digits(tmp_path: Path) -> None:
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter=separator)
            writer.writeheader()
            # A tsv file whose quotes would join lines has none, see `opdf.data.read`.
            writer.writerows(ROWS if separator == "," else [{**row, "text": "plain"} for row in ROWS])
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    for name in ("a.csv", "a.jsonl", "a.json", "a.parquet"):
        assert [dict(row.values) for row in read_rows(tmp_path / name)] == ROWS, name
    assert [row.values["id"] for row in read_rows(tmp_path / "a.tsv")] == ["007", "8", "9"]
    for form in ("csv", "jsonl"):
        with (tmp_path / f"a.{form}").open("rb") as stream:
            assert [dict(row.values) for row in parse_rows(stream, form)] == ROWS
    (tmp_path / "other.log").write_bytes((tmp_path / "a.csv").read_bytes())
    assert [dict(row.values) for row in read_rows(tmp_path / "other.log", "csv")] == ROWS


def test_rows_say_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n\nb\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    (tmp_path / "a.txt").write_text("a\n\nb")
    assert [row.where for row in read_rows(tmp_path / "a.csv")] == [f"row {k} of {tmp_path / 'a.csv'}" for k in (2, 4)]
    assert [row.where for row in read_rows(tmp_path / "a.jsonl")][1] == f"line 3 of {tmp_path / 'a.jsonl'}"
    assert [row.values[None] for row in read_rows(tmp_path / "a.txt")] == ["a", "", "b"]  # an answer for every line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text\n""\na\n  \n" "\n\n'),
        ("a.csv", 'text,label\r\n"two\r\nlines",x\r\n\r\n  \r\nb,"y, ""z"""\r\n'),
        ("a.csv", ",text\n0,NA\n1,a\u2028b\x0c\n"),
        ("a.tsv", 'text\tlabel\n\t\n"a\tx\n"b\ty\n'),
    ],
)
def test_training_and_predict_read_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, newline="")
    trained = read_file(tmp_path / name).to_list()
    asked = [row.values for row in read_rows(tmp_path / name)]
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in trained] == asked


def test_a_carriage_return_in_a_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\na\rb\n")
    with pytest.raises(
        ValueError, match="line 2 has a carriage return that stands alone; end lines with line feeds, and put texts"
    ):
        list(read_rows(tmp_path / "a.csv"))


def test_images_of_a_folder_and_of_its_folders(tmp_path: Path) -> None:
    for name in ("b.png", "cats/a.jpg", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "cats").rename(tmp_path / ".apart")
    (tmp_path / "cats").symlink_to(tmp_path / ".apart")
    (tmp_path / "cats" / "back").symlink_to(tmp_path)
    names = [tmp_path / name for name in ("b.png", "cats/a.jpg")]
    assert [row.values[None] for row in read_rows(tmp_path)] == names
    assert [row.values[None] for row in read_rows(names[1])] == names[1:]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_rows_about_images_have_those_of_their_folder(tmp_path: Path, name: str) -> None:
    """As in training, wherever the command runs."""
    rows = [{"file_name": "b.png", "label": "cat"}, {"file_name": "", "label": "dog"}]
    lines = ["file_name,label", "b.png,cat", ",dog"] if name.endswith("csv") else map(json.dumps, rows)
    (tmp_path / name).write_text("\n".join(lines))
    assert [row.values for row in read_rows(tmp_path / name)] == [{"image": tmp_path / "b.png"} | rows[0], rows[1]]


@given(st.binary(max_size=60) | st.text(alphabet='ab,"\t\n\r{}:[]é', max_size=40).map(str.encode))
@pytest.mark.parametrize("form", ROW_FORMATS)
def test_any_bytes_are_read_or_refused(form: str, content: bytes) -> None:
    problem = ""
    try:
        for row in parse_rows(io.BytesIO(content), form):
            assert "of the input" in row.where
    except ValueError as error:
        problem = str(error)
    assert len(problem.splitlines()) < 2
