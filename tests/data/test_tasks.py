"""Several labels at once, tags of words, and data without labels: read in every form, encoded, scored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sklearn.metrics import multilabel_confusion_matrix
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, EvalPrediction, PreTrainedTokenizerFast

from opdf.data import Prepared, Task, describe, encode, load_data, minilm
from opdf.data.encode import encode_rows

TEXTS = [f"text {k}" for k in range(60)]
KINDS = ("rude", "spam", "threat")
SEVERAL = [[name for bit, name in enumerate(KINDS) if k >> bit & 1] for k in range(60)]
MARKS = [[k >> bit & 1 for bit in range(3)] for k in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(minilm())


def forms(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The same labels as lists, as class numbers, between bars and in columns: files and what is said of them."""
    Dataset.from_dict({"text": TEXTS, "labels": SEVERAL}).to_json(folder / "lists.jsonl")
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=list(KINDS)))})
    numbers = [[KINDS.index(name) for name in names] for names in SEVERAL]
    Dataset.from_dict({"text": TEXTS, "labels": numbers}, features=features).to_parquet(folder / "numbers.parquet")
    Dataset.from_dict({"text": TEXTS, "labels": [" | ".join([*s, *s[:1]]) for s in SEVERAL]}).to_csv(
        folder / "bars.csv"
    )
    columns = {name: [row[k] for row in MARKS] for k, name in enumerate(KINDS)}
    Dataset.from_dict({"text": TEXTS, **columns}).to_csv(folder / "columns.csv")
    Dataset.from_dict({"text": TEXTS, **{k: [bool(v) for v in c] for k, c in columns.items()}}).to_json(
        folder / "true.json"
    )
    return {
        "lists": (str(folder / "lists.jsonl"), {}),
        "numbers": (str(folder / "numbers.parquet"), {}),
        "bars": (str(folder / "bars.csv"), {"task": "multi-label"}),
        "columns": (str(folder / "columns.csv"), {"label": KINDS}),
        "truths": (str(folder / "true.json"), {"label": KINDS}),
    }


@pytest.mark.parametrize("form", ["lists", "numbers", "bars", "columns", "truths"])
def test_several_labels(tmp_path: Path, form: str) -> None:
    name, options = forms(tmp_path)[form]
    data, task = load_data(name, **options)
    assert (task.kind, task.labels, task.num_labels) == ("multi-label", KINDS, 3)
    for rows in data.values():
        assert rows[task.label][:] == [MARKS[TEXTS.index(text)] for text in rows["text"]]


def test_labels_with_bars_are_told_of_where_they_are_taken_as_one_class(tmp_path: Path) -> None:
    named = ["|".join(some) or "none" for some in SEVERAL]
    Dataset.from_dict({"text": TEXTS, "label": named}).to_csv(tmp_path / "bars.csv", index=False)
    _, task = load_data(str(tmp_path / "bars.csv"), where="data.")
    note = "'rude|spam' in 'label' is taken as one class; if bars separate labels, set data.task to multi-label"
    assert (task.kind, task.notes) == ("classification", (note,))
    assert load_data(str(tmp_path / "bars.csv"), task="classification")[1].notes == ()


def test_lists_that_a_csv_file_has_as_texts_are_no_classes(tmp_path: Path) -> None:
    """pandas and datasets write lists so. Each combination became a class of its own, also for `multi-label`."""
    Dataset.from_dict({"text": TEXTS, "label": [str(names) for names in SEVERAL]}).to_csv(tmp_path / "lists.csv")
    longest = "\"['rude', 'spam', 'threat']\""
    with pytest.raises(ValueError, match=re.escape(f"are lists that were written as texts, such as {longest}; write")):
        load_data(str(tmp_path / "lists.csv"), task="multi-label")
    (note,) = load_data(str(tmp_path / "lists.csv"))[1].notes
    assert note.startswith(f"{longest} in 'label' is taken as one class; if it is a list of labels")
    assert load_data(str(tmp_path / "lists.csv"), task="classification")[1].notes == ()


@pytest.mark.parametrize("several", [False, True])
def test_minus_one_is_no_label_where_classes_have_names(tmp_path: Path, several: bool) -> None:
    """datasets writes it for none. It was refused as a class out of range, and `drop_empty` left it in."""
    one = ClassLabel(names=list(KINDS))
    features = Features({"text": Value("string"), "labels": List(one) if several else one})
    labels = [[k] if several else k for k in (0, 2, -1)] * 20
    Dataset.from_dict({"text": TEXTS, "labels": labels}, features=features).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"column 'labels' of .* is empty in 20 of 60 rows: rows 3, 6, 9, 12, 15 and"):
        load_data(str(tmp_path / "none.parquet"))
    data, task = load_data(str(tmp_path / "none.parquet"), drop_empty=True)
    assert sorted(text for rows in data.values() for text in rows["text"]) == sorted(
        t for t in TEXTS if int(t[5:]) % 3 < 2
    )
    assert task.labels == KINDS


def test_several_labels_are_encoded_as_numbers_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    data, task = load_data(forms(tmp_path)["lists"][0])
    data = DatasetDict(train=data["train"])
    encoded, collate = encode(data, task, tokenizer)
    batch = collate([encoded["train"][k] for k in range(5)])
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == data["train"][task.label][:5]
    found = describe(Prepared(data, encoded, task, tokenizer, collate), "lists")
    assert found.classes["train"] == dict(zip(KINDS, np.sum(data["train"][task.label][:], 0).tolist(), strict=True))


def test_several_labels_in_an_order(tmp_path: Path) -> None:
    name, _ = forms(tmp_path)["lists"]
    order = ("threat", "other", "spam", "rude")
    data, task = load_data(name, labels=order)
    assert task.labels == order
    for text, marks in zip(data["train"]["text"], data["train"][task.label], strict=True):
        assert [label for label, mark in zip(order, marks, strict=True) if mark] == SEVERAL[TEXTS.index(text)][::-1]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [0, 2] * 30}, {"label": ["a"]}, r"column 'a' of .* holds \[0, 2\]; a label among several is 0 or 1"),
        ({"a": [0, 1] * 30}, {"label": ["a", "b"]}, "no column 'b'"),
        ({"a": [0, 1] * 30}, {"label": ["a"], "task": "regression"}, "only the task multi-label has them"),
        ({"a": [[1, 0, 1], [0, 0, 1]] * 30}, {"label": "a", "task": "multi-label"}, "lists of 0 and 1, 3 in each"),
        ({"a": [[True, False]] * 60}, {"label": "a", "task": "multi-label"}, "lists of 0 and 1, 2 in each, as if"),
        ({"a": [0.5] * 60}, {"label": "a", "task": "multi-label"}, "are float64; give lists of classes, texts"),
        ({"a": [[]] * 60}, {"label": "a", "task": "multi-label"}, "are lists of null; give lists"),
        ({"a": [0, None] * 30}, {"label": ["a"]}, "column 'a' of .* is empty in 30 of 60 rows"),
    ],
)  # fmt: skip
def test_several_labels_that_are_none(tmp_path: Path, columns: Any, options: Any, message: str) -> None:
    Dataset.from_dict({"text": TEXTS, **columns}).to_json(tmp_path / "data.jsonl")
    with pytest.raises(ValueError, match=message):
        load_data(str(tmp_path / "data.jsonl"), **options)


def test_a_gap_in_lists_of_one_length_is_no_class(tmp_path: Path) -> None:
    """Such lists were not looked into, and their gaps became a class called None."""
    labels = pa.array([[1, None if k == 7 else 2 + k % 2] for k in range(60)], pa.list_(pa.int64(), 2))
    pq.write_table(pa.table({"text": TEXTS, "label": labels}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=r"column 'label' of .* is empty in 1 of 60 rows: row 8;"):
        load_data(str(tmp_path / "data.parquet"))


def test_scores_of_several_labels() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, (50, 3)), rng.normal(size=(50, 3))
    found = Task("multi-label", ("t",), "l", KINDS).compute_metrics()(EvalPrediction(logits, labels.astype(float)))
    tables = multilabel_confusion_matrix(labels, logits > 0)
    hits, false, missed = tables[:, 1, 1], tables[:, 0, 1], tables[:, 1, 0]
    each = 2 * hits / (2 * hits + false + missed)
    assert found == pytest.approx(
        {"f1_micro": 2 * hits.sum() / (2 * hits.sum() + false.sum() + missed.sum()), "f1_macro": each.mean()}
    )


def test_scores_of_one_label() -> None:
    """A single column of 0 and 1 was scored as two classes, and F1 over both of them was the accuracy."""
    task = Task("multi-label", ("t",), "l", ("rude",))
    labels, answers = np.array([[0]] * 8 + [[1], [1]]), np.array([[0]] * 9 + [[1]])
    assert task.metrics(answers, labels) == pytest.approx({"f1_micro": 2 / 3, "f1_macro": 2 / 3})
    assert task.metrics(np.zeros_like(labels), labels) == {"f1_micro": 0.0, "f1_macro": 0.0}


def test_a_label_that_no_example_has_is_not_scored() -> None:
    """As of single classes. Answers that are all right had less than 1."""
    task = Task("multi-label", ("t",), "l", KINDS)
    labels = np.array([[1, 0, 0], [1, 1, 0]])
    assert task.metrics(labels, labels) == {"f1_micro": 1.0, "f1_macro": 1.0}
    named = labels + np.array([[0, 0, 1], [0, 0, 0]])
    assert task.metrics(named, labels) == pytest.approx({"f1_micro": 6 / 7, "f1_macro": 2 / 3})
    assert task.metrics(0 * labels, 0 * labels) == {"f1_micro": 0.0, "f1_macro": 0.0}


SENTENCES = [["John", "Smith", "lives", "in", "Massachusetts"], ["Nothing", "happens"], ["Ann", "met", "Ann-Sophie"]]
TAGS = [["B-PER", "I-PER", "O", "O", "B-LOC"], ["O", "O"], ["B-PER", "O", "B-PER"]]


def tagged(path: Path, copies: int = 20) -> str:
    pairs = [pair for _ in range(copies) for pair in zip(SENTENCES, TAGS, strict=True)]
    rows = [([*words[:-1], f"{words[-1]}{k}"], tags) for k, (words, tags) in enumerate(pairs)]
    if path.suffix == ".conll":
        blocks = ["\n".join(f"{w} NN {t}" for w, t in zip(words, tags, strict=True)) for words, tags in rows]
        path.write_text("-DOCSTART- -X- O\n\n" + "\n\n".join(blocks) + "\n")
    else:
        path.write_text("\n".join(json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in rows))
    return str(path)


@pytest.mark.parametrize("name", ["data.conll", "data.jsonl"])
def test_tags_of_words(tmp_path: Path, tokenizer: Any, name: str) -> None:
    data, task = load_data(tagged(tmp_path / name))
    assert (task.kind, task.inputs) == ("token-classification", ("tokens",))
    assert task.labels == ("B-LOC", "B-PER", "I-PER", "O")
    data = DatasetDict(train=data["train"])
    encoded, collate = encode(data, task, tokenizer)
    row, raw = encoded["train"][0], data["train"][0]
    expected = [-100]
    for word, tag in zip(raw["tokens"], raw[task.label], strict=True):
        expected += [tag] + [-100] * (len(tokenizer.tokenize(word)) - 1)
    assert row["labels"] == [*expected, -100]
    batch = collate([encoded["train"][k] for k in range(4)])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    found = describe(Prepared(data, encoded, task, tokenizer, collate), name)
    assert found.classes["train"]["O"] == sum(tags.count(3) for tags in data["train"][task.label])
    assert f"O ({found.classes['train']['O']} words)" in str(found)


def test_tags_of_words_for_a_tokenizer_without_marks() -> None:
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer, task = PreTrainedTokenizerFast(tokenizer_object=words), Task("token-classification", ("w",), "t", KINDS)
    rows = {"w": [["a", "b", "b"], ["b"]], "t": [[2, 0, 1], [1]]}
    assert encode_rows(rows, task, tokenizer)["labels"] == [[2, 0, 1], [1]]
    assert encode_rows(rows, task, tokenizer, max_length=2)["labels"] == [[2, 0], [1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"tokens": ["a", "b"], "tags": ["O"]}], "1 of 41 rows of .* have other numbers of tags .*: line 41"),
        ([{"tokens": ["a", None], "tags": ["O", "B-X"]}], "'tokens' of .* is empty in 1 of 41 rows: line 41"),
        ([{"tokens": ["a"], "tags": None}], "'tags' of .* is empty in 1 of 41 rows: line 41"),
    ],
)  # fmt: skip
def test_words_without_tags(tmp_path: Path, rows: Any, message: str) -> None:
    good = [{"tokens": [f"w{k}", "x"], "tags": ["O", "B-X"]} for k in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, good + rows)))
    with pytest.raises(ValueError, match=message):
        load_data(str(tmp_path / "data.jsonl"))
    if "empty" in message:
        assert sum(map(len, load_data(str(tmp_path / "data.jsonl"), drop_empty=True)[0].values())) == 40


def test_a_conll_line_without_a_tag(tmp_path: Path) -> None:
    (tmp_path / "data.conll").write_text("John B-PER\nSmith\n")
    with pytest.raises(ValueError, match="line 2 has a word without a tag"):
        load_data(str(tmp_path / "data.conll"))


NAMES = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER")


def padded(rows: list[list[str]]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.array([[NAMES.index(tag) for tag in row] + [-100] * (longest - len(row)) for row in rows])


def test_entities_as_seqeval_publishes_them() -> None:
    """The example of seqeval's README, in which a beginning is missed and one of two entities is right."""
    right = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    task = Task("token-classification", ("w",), "t", NAMES)
    assert task.metric == "f1"
    found = task.compute_metrics()(EvalPrediction(np.eye(5)[padded(said).clip(0)], padded(right)))
    assert found == pytest.approx({"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.8})


def test_entities_against_spans_found_by_hand() -> None:
    rng = np.random.default_rng(0)

    def spans(row: list[int]) -> set[tuple[str, int, int]]:
        """CoNLL's rules: I begins an entity where none of its type goes on."""
        found, start, kind = set(), 0, ""
        for k, tag in enumerate([*(NAMES[number] for number in row), "O"]):
            goes_on = tag[0] == "I" and tag[2:] == kind
            if kind and not goes_on:
                found.add((kind, start, k))
                kind = ""
            if tag != "O" and not goes_on:
                start, kind = k, tag[2:]
        return found

    right, said = rng.integers(0, 5, (40, 12)), rng.integers(0, 5, (40, 12))
    said = np.where(rng.random((40, 12)) < 0.6, right, said)
    hits = sum(len(spans(a) & spans(b)) for a, b in zip(right, said, strict=True))
    there, told = (sum(len(spans(row)) for row in rows) for rows in (right, said))
    found = Task("token-classification", ("w",), "t", NAMES).metrics(said, right)
    del found["accuracy"]
    assert found == pytest.approx({"f1": 2 * hits / (there + told), "precision": hits / told, "recall": hits / there})


@pytest.mark.parametrize("names", ["BILUO", "BIESO"])
def test_entities_end_where_their_tags_say(names: str) -> None:
    begin, inside, last, only, outside = range(5)
    task = Task("token-classification", ("w",), "t", tuple(name if name == "O" else f"{name}-PER" for name in names))
    right = np.array([[begin, last, begin, last, only, only, outside]])
    one = np.array([[begin, inside, inside, last, only, only, outside]])  # the first two taken for one
    assert task.metrics(one, right)["f1"] == pytest.approx(2 * 2 / (3 + 4))
    joined = np.array([[begin, last, begin, last, begin, last, outside]])  # the last two taken for one
    assert task.metrics(joined, right)["f1"] == pytest.approx(2 * 2 / (3 + 4))


@pytest.mark.parametrize("names", ["BIO", "BILUO", "BIESO"])
def test_entities_without_types(names: str) -> None:
    """B, I and O alone were scored word by word, so that a tagger that finds nothing was nearly right."""
    task = Task("token-classification", ("w",), "t", tuple(names))
    typed = Task("token-classification", ("w",), "t", tuple(name if name == "O" else f"{name}-X" for name in names))
    rng = np.random.default_rng(0)
    said, right = rng.integers(0, len(names), (2, 30, 6))
    assert task.metric == "f1"
    assert task.metrics(said, right) == typed.metrics(said, right)
    assert task.metrics(np.full_like(right, names.index("O")), right)["f1"] == 0


def test_tags_that_mark_no_entities_are_scored_one_by_one() -> None:
    task = Task("token-classification", ("w",), "t", ("NOUN", "VERB"))
    found = task.metrics(np.array([[0, 1, 0], [1, 1, 0]]), np.array([[0, 1, -100], [0, 1, -100]]))
    assert found == pytest.approx({"accuracy": 0.75, "f1": (2 / 3 + 4 / 5) / 2})


@pytest.mark.parametrize("name", ["movie-sentiment", "digits", "movie-scores"])
def test_embedded_sets_without_their_labels(name: str) -> None:
    data, task = load_data(name, label=None, train_limit=10)
    labelled, whole = load_data(name, train_limit=10)
    assert task.label is None
    assert task.is_unlabelled
    assert (task.labels, task.metric) == (whole.labels, "agreement")
    assert data["train"].column_names == list(whole.inputs)
    assert len(data["test"]) == len(labelled["test"])


def test_a_similarity_is_not_offered_to_go_without_labels(tmp_path: Path) -> None:
    """It was, and was refused without them."""
    name = str(tmp_path / "pairs.csv")
    Dataset.from_dict({"left": TEXTS, "right": TEXTS, "score": list(range(60))}).to_csv(name)
    with pytest.raises(ValueError, match=r"set label to one of left, right, score$"):
        load_data(name, task="similarity")
    with pytest.raises(ValueError, match="label is null; a similarity is scored by its labels"):
        load_data(name, task="similarity", label=None)


def test_a_similarity_is_of_two_texts(tmp_path: Path) -> None:
    """Of one it was trained, and could not be scored."""
    name = str(tmp_path / "texts.csv")
    Dataset.from_dict({"left": TEXTS, "score": list(range(60))}).to_csv(name)
    with pytest.raises(ValueError, match=r"are left \(string\), score \(int64\); .* reads two text columns"):
        load_data(name, task="similarity", label="score")


def test_labels_that_are_left_out_are_no_second_text(tmp_path: Path) -> None:
    name = str(tmp_path / "texts.csv")
    Dataset.from_dict({"text": TEXTS, "label": ["yes", "no"] * 30}).to_csv(name)
    assert load_data(name, task="classification", label=None)[1].inputs == ("text",)
    with_them = load_data(name, task="classification", label=None, inputs=["text", "label"])
    assert with_them[1].inputs == ("text", "label")


def test_texts_without_labels(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    with pytest.raises(ValueError, match=r"the one column 'text' and so no labels; set task to causal-lm"):
        load_data(str(tmp_path / "texts.txt"))
    with pytest.raises(ValueError, match="label is null, so task cannot be told from it; set it to"):
        load_data(str(tmp_path / "texts.txt"), label=None)
    data, task = load_data(str(tmp_path / "texts.txt"), label=None, task="classification", labels=["no", "yes"])
    encoded, collate = encode(data, task, tokenizer)
    assert "labels" not in encoded["train"].column_names
    prepared = Prepared(data, encoded, task, tokenizer, collate)
    assert "without labels: the teacher is all that is learned from" in str(describe(prepared, "texts"))
    teacher = {part: np.arange(len(data[part])) % 2 for part in ("validation", "test")}
    judged = prepared.judged_by(teacher)
    assert judged.data["test"]["labels"][:] == teacher["test"].tolist()
    assert "labels" not in judged.data["train"].column_names
    student = np.eye(2)[np.zeros(12, int)]
    assert task.compute_metrics()(EvalPrediction(student, teacher["test"])) == {"agreement": 0.5}


@pytest.mark.parametrize(
    ("kind", "said", "other"),
    [("multi-label", np.zeros((4, 2), int), np.eye(4, 2, dtype=int)), ("regression", np.ones(4), np.arange(4.0))],
)
def test_a_teacher_agrees_with_itself(kind: str, said: np.ndarray, other: np.ndarray) -> None:
    """One that gives no label, or always one number, agreed with itself by 0: F1 and correlation are not defined."""
    task = Task(kind, ("text",), None, ("a", "b") if kind == "multi-label" else ())
    assert task.metrics(said, said.astype(float)) == {"agreement": 1.0}
    assert task.metrics(other, said.astype(float)) == {"agreement": 0.0}


def test_images_without_labels(tmp_path: Path) -> None:
    from PIL import Image

    for k in range(40):
        Image.fromarray(np.full((8, 8), 3 * k, np.uint8)).save(tmp_path / f"{k}.png")
    data, task = load_data(str(tmp_path), label=None)
    assert (task.kind, task.inputs, task.columns) == ("image-classification", ("image",), ("image",))
    assert sum(map(len, data.values())) == 40


def test_agreement_of_values_is_their_correlation() -> None:
    task = Task("regression", ("t",), None)
    values = np.array([1.0, 2.0, 4.0])
    assert task.metrics(2 * values + 1, values) == pytest.approx({"agreement": 1.0})
