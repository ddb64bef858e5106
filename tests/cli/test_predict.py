"""What `opdf predict` says, beside transformers' own pipelines and a forward pass by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    pipeline,
)

from jobs import SIZES, TEXTS, WORDS, bert, texts
from opdf.cli import main
from opdf.job import predict
from opdf.job.answer import note_cut, note_shortened
from opdf.job.errors import UserError

NAMES = {0: "bad", 1: "fair", 2: "good"}
ROWS = [f"w{k % 9} w{k % 7} w{k % 5}" if k % 3 else f"w{k % 11}" for k in range(20)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of every kind; weights are large, so that answers differ."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)

    def save(name: str, model: Any) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model.save_pretrained(folder / name)
        (folder / name / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizerFast(str(folder / name / "vocab.txt")).save_pretrained(folder / name)

    def config(**options: Any) -> BertConfig:
        return BertConfig(**{"vocab_size": len(WORDS), "max_position_embeddings": 32, **SIZES, **options})

    several = {"problem_type": "multi_label_classification"}
    save("classes", BertForSequenceClassification(config(id2label=NAMES)))
    save("several", BertForSequenceClassification(config(id2label=NAMES, **several)))
    save("number", BertForSequenceClassification(config(num_labels=1)))
    save("tags", BertForTokenClassification(config(id2label={0: "O", 1: "B-X"})))
    save("body", BertModel(config()))
    save("masked", BertForMaskedLM(config()))
    save("few-tokens", BertForSequenceClassification(config(vocab_size=len(WORDS) - 1)))
    save("headless", BertModel(config()))
    shutil.copy(folder / "classes" / "config.json", folder / "headless" / "config.json")
    llama = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **SIZES)
    llama.eos_token_id = llama.bos_token_id = None
    save("decoder", LlamaForCausalLM(llama))
    pictures: dict[str, dict[str, Any]] = {
        "images": {"id2label": NAMES}, "images-several": {"id2label": NAMES, **several},
        "images-number": {"num_labels": 1},
    }  # fmt: skip
    for name, options in pictures.items():
        ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **options, **SIZES)).save_pretrained(
            folder / name
        )
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / name)
    return folder


def asked(capsys: Any, *words: str) -> list[dict[str, Any]]:
    """The rows that the command prints as JSON."""
    capsys.readouterr()
    assert main(["predict", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return [json.loads(line) for line in printed.out.splitlines()]


def test_classes_and_their_scores_are_those_of_a_pipeline(models: Path, tmp_path: Path, capsys: Any) -> None:
    with (tmp_path / "rows.csv").open("w") as file:
        csv.writer(file).writerows([("id", "text"), *((f"{k:03}", text) for k, text in enumerate(ROWS))])
    found = asked(capsys, str(models / "classes"), str(tmp_path / "rows.csv"), "--batch", "7", "--scores")
    assert [row["id"] for row in found] == [f"{k:03}" for k in range(len(ROWS))]
    ask = pipeline("text-classification", str(models / "classes"), device="cpu", top_k=None)
    for row, said in zip(found, ask(ROWS), strict=True):
        assert row["prediction"] == said[0]["label"]
        assert row["score"] == pytest.approx(said[0]["score"], abs=1e-6)
        assert row["scores"] == pytest.approx({one["label"]: one["score"] for one in said}, abs=1e-6)
    assert len({row["prediction"] for row in found}) > 1
    assert main(["predict", str(models / "classes"), str(tmp_path / "rows.csv"), "--scores", "--to", "csv"]) == 0
    for cells, row in zip(csv.DictReader(io.StringIO(capsys.readouterr().out)), found, strict=True):
        assert {name: float(cells[f"score of {name}"]) for name in NAMES.values()} == row["scores"]


def test_several_labels_and_numbers(models: Path, tmp_path: Path, capsys: Any) -> None:
    texts(tmp_path / "rows.jsonl")
    found = asked(capsys, str(models / "several"), str(tmp_path / "rows.jsonl"))
    ask = pipeline("text-classification", str(models / "several"), device="cpu", top_k=None)
    for row, said in zip(found, ask(TEXTS), strict=True):
        over = {one["label"]: one["score"] for one in said if one["score"] > 0.5}
        assert dict(zip(row["prediction"], row["score"], strict=True)) == pytest.approx(over, abs=1e-6)
    assert main(["predict", str(models / "several"), str(tmp_path / "rows.jsonl"), "--to", "csv"]) == 0
    cells = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["prediction"] for row in cells] == ["|".join(row["prediction"]) for row in found]

    ask = pipeline("text-classification", str(models / "number"), device="cpu", function_to_apply="none")
    values = [row["prediction"] for row in asked(capsys, str(models / "number"), str(tmp_path / "rows.jsonl"))]
    assert values == pytest.approx([one["score"] for one in ask(TEXTS)], abs=1e-5)


def test_a_row_with_a_number_that_is_none_is_json(models: Path, tmp_path: Path, capsys: Any) -> None:
    pd.DataFrame({"text": ["w1"], "price": [math.nan], "list": [[math.inf, 1.5]]}).to_parquet(tmp_path / "rows.parquet")
    (row,) = asked(capsys, str(models / "classes"), str(tmp_path / "rows.parquet"))
    assert (row["price"], row["list"]) == (None, [None, 1.5])


def test_a_column_may_have_the_name_that_another_tasks_answers_have(models: Path) -> None:
    """Rows that were trained on are predicted for too: `score` is what labels of regressions and pairs are called."""
    row = {"text": "w1 w2", "a": "w1", "b": "w2", "score": 3.0}
    (number,) = predict(models / "number", [row])
    (pair,) = predict(models / "body", [row], inputs=["a", "b"])
    assert number.keys() - row == {"prediction"}
    assert pair.keys() - row == {"similarity"}


def test_a_word_has_the_tag_of_its_first_token(models: Path) -> None:
    rows = [{"tokens": ["w1", "w2,w3", "w4"]}, {"tokens": ["w5"] * 40}, {"tokens": "w1\u00a0w2\r\nw3 "}]
    found = list(predict(models / "tags", rows))
    model = BertForTokenClassification.from_pretrained(models / "tags").eval()
    ids = torch.tensor([[WORDS.index(w) for w in ("[CLS]", "w1", "w2", "[UNK]", "w3", "w4", "[SEP]")]])
    best = model(ids).logits[0].detach().softmax(-1).max(-1)
    assert found[0]["prediction"] == [model.config.id2label[int(best.indices[k])] for k in (1, 2, 5)]
    assert found[0]["score"] == pytest.approx([float(best.values[k]) for k in (1, 2, 5)], abs=1e-6)
    assert [tag is None for tag in found[1]["prediction"]] == [False] * 30 + [True] * 10  # there are 32 places
    assert len(found[2]["prediction"]) == 2


@pytest.mark.parametrize("write", [str, json.dumps])
def test_lists_that_were_written_as_texts_are_refused(models: Path, write: Any) -> None:
    """As pandas writes them into a csv file: brackets and quotes were taken for words."""
    for name, column, value in (
        ("tags", "tokens", ["w1", "w2"]), ("decoder", "messages", [{"role": "user", "content": "w1"}]),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"row 2 has .* a list that was written as a text; write lists into a json"
        ):
            list(predict(models / name, [{column: "w1"}, {column: write(value)}]))
    assert len(list(predict(models / "tags", ["[w1] w2 [w3]"]))) == 1


@pytest.mark.parametrize("sign", [";", "\t"])
def test_cells_that_other_signs_separate_are_no_text(models: Path, tmp_path: Path, sign: str) -> None:
    """Whole rows were read, with all of their columns."""
    (tmp_path / "rows.csv").write_text(f"id{sign}text\n1{sign}w1\n")
    with pytest.raises(
        UserError, match=r"has the one column 'id.*; separate columns by commas in a csv file and by tabs"
    ):
        list(predict(models / "classes", tmp_path / "rows.csv"))
    (row,) = predict(models / "classes", tmp_path / "rows.csv", inputs=f"id{sign}text")  # as it is asked
    assert row[f"id{sign}text"] == f"1{sign}w1"


def test_embeddings_and_similarities(models: Path) -> None:
    model = BertModel.from_pretrained(models / "body").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "body")
    alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).detach() for text in ROWS]
    found = list(predict(models / "body", ROWS))
    for row, vector in zip(found, alone, strict=True):
        assert row["embedding"] == pytest.approx(vector.tolist(), abs=1e-5)
    pairs = [{"a": ROWS[k], "b": ROWS[k + 1]} for k in range(5)]
    for k, row in enumerate(predict(models / "body", pairs, inputs=["a", "b"])):
        cosine = float(torch.cosine_similarity(alone[k], alone[k + 1], dim=0))
        assert row["similarity"] == pytest.approx(cosine, abs=1e-5)


def gone_on(model: Any, tokenizer: Any, ids: list[int], count: int) -> str:
    """The likeliest tokens behind some, one by one."""
    said: list[int] = []
    for _ in range(count):
        said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    return str(tokenizer.decode(said, skip_special_tokens=True))


def test_what_a_language_model_says_next_and_how_it_likes_a_text(models: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(models / "decoder").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "decoder")
    for text, row in zip(ROWS, predict(models / "decoder", ROWS, new_tokens=5), strict=True):
        ids = tokenizer(text)["input_ids"]
        losses = torch.nn.functional.cross_entropy(model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]))
        assert row["perplexity"] == pytest.approx(math.exp(float(losses.detach())), rel=1e-4)
        assert row["prediction"] == gone_on(model, tokenizer, ids[:-1], 5)  # without the mark at the end
    assert [row.keys() for row in predict(models / "decoder", ["w1 w2"], new_tokens=0)] == [{"text", "perplexity"}]


def test_a_blank_at_the_end_of_a_prompt_belongs_to_the_next_word(models: Path, tmp_path: Path) -> None:
    """As in training, where the answer follows. A word's token has the blank before it."""
    vocabulary = {"\u0120": 0, **{f"\u0120w{k}": k + 1 for k in range(40)}, "w": 41, "1": 42}
    made = Tokenizer(WordLevel(vocabulary, unk_token="\u0120"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w", eos_token="1")
    model = AutoModelForCausalLM.from_pretrained(models / "decoder").eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    wanted = gone_on(model, tokenizer, tokenizer("w1 w2")["input_ids"], 4)
    assert wanted.startswith(" w")
    bare, blank, two = (row["prediction"] for row in predict(tmp_path, ["w1 w2", "w1 w2 ", "w1 w2  "], new_tokens=4))
    assert (bare, blank) == (wanted, wanted[1:])
    assert two == gone_on(model, tokenizer, [*tokenizer("w1 w2")["input_ids"], 0], 4)[1:]


def test_a_text_that_is_continued_from_its_end_alone_is_told_of(models: Path, capsys: Any) -> None:
    note_cut.cache_clear()
    whole, cut = (list(predict(models / "decoder", ["w1 w2 w3"], new_tokens=count)) for count in (5, 63))
    said = "note: the model has places for 64 tokens and new_tokens is 63; of a longer text it reads the last 1"
    assert capsys.readouterr().err.count(said) == 1
    assert len(whole) == len(cut) == 1


def test_a_text_of_which_the_end_is_not_read_is_told_of(models: Path, capsys: Any) -> None:
    note_shortened.cache_clear()
    texts = ["w1 w2", "w1 w2 w3 w4 w5 w6 w7 w8"]  # of 4 and 10 tokens with the tokenizer's own
    for name, row in (("classes", texts[1]), ("body", texts[1])):
        list(predict(models / name, [texts[0], row], max_length=10))
    assert "note" not in capsys.readouterr().err
    list(predict(models / "classes", texts, max_length=9, batch=1))
    list(predict(models / "body", texts, max_length=8, batch=1))
    said = capsys.readouterr().err
    assert [said.count(f"some texts have more than {most} tokens") for most in (8, 9, 10)] == [1, 1, 0]


def test_a_conversation_is_answered_anew(models: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "decoder")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}w9 {% endif %}"
    )
    model = AutoModelForCausalLM.from_pretrained(models / "decoder").eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    question = {"role": "user", "content": "w1 w2"}
    rows = [{"messages": [question]}, {"messages": [question, {"role": "assistant", "content": "w3"}]}]
    first, second = predict(tmp_path, rows, new_tokens=4)
    prompt = tokenizer("u w1 w2 w9", add_special_tokens=False)["input_ids"]
    assert first["prediction"] == second["prediction"] == gone_on(model, tokenizer, prompt, 4)
    calls = [{"role": "assistant", "content": said, "tool_calls": []} for said in (None, "")]
    of_nothing, of_blank = predict(tmp_path, [{"messages": [question, call, question]} for call in calls], new_tokens=4)
    assert of_nothing["prediction"] == of_blank["prediction"]  # None is no text, here as in training
    with pytest.raises(ValueError, match="row 1 is an answer alone, and what it answers is continued; put that before"):
        list(predict(tmp_path, [{"messages": [{"role": "assistant", "content": "w3"}]}]))
    with pytest.raises(ValueError, match="row 1 is a conversation and the tokenizer has no chat template; give texts"):
        list(predict(models / "decoder", rows))


def test_images_by_folder_by_name_and_as_they_are(
    models: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(6):
        file = tmp_path / "photos" / "ab"[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (9, 9, 3), np.uint8)).save(file)
    found = asked(capsys, str(models / "images"), str(tmp_path / "photos"))
    ask = pipeline("image-classification", str(models / "images"), device="cpu")
    for row in found:
        best = ask(row["image"])[0]
        assert (row["prediction"], row["score"]) == (best["label"], pytest.approx(best["score"], abs=1e-6))
    assert len(found) == 6
    opened = [Image.open(row["image"]) for row in found]
    assert [row["score"] for row in predict(models / "images", opened)] == [row["score"] for row in found]
    (one,) = predict(models / "images", found[2]["image"])
    assert one["score"] == pytest.approx(found[2]["score"], abs=1e-6)
    assert main(["predict", str(models / "classes"), str(tmp_path / "photos")]) == 2
    assert "' in 'text'; the model reads texts" in capsys.readouterr().err
    (tmp_path / "photos" / "one.heic").touch()
    # As outside of pytest, which collects warnings.
    monkeypatch.setattr(warnings, "showwarning", lambda *what: sys.stderr.write(warnings.formatwarning(*what[:4])))
    assert main(["predict", str(models / "images"), str(tmp_path / "photos")]) == 0
    told = f"opdf: warning: left out of {tmp_path / 'photos'}, as no images that can be read: 1 file (.heic)"
    assert told in capsys.readouterr().err.splitlines()
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    assert main(["predict", str(models / "images"), str(tmp_path / "photos")]) == 2
    assert "broken.png cannot be read" in capsys.readouterr().err
    with pytest.raises(ValueError, match=rf"there is no image no\.png; relative names are looked for in {Path.cwd()}"):
        list(predict(models / "images", ["no.png"]))


def test_a_model_of_another_size_than_its_image_processor_makes(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "images", tmp_path / "images")
    ViTImageProcessorPil(size={"height": 4, "width": 4}).save_pretrained(tmp_path / "images")
    with pytest.raises(UserError, match=r"the model cannot read images of shape \[3, 4, 4\], .* Give a model of"):
        list(predict(tmp_path / "images", [Image.new("RGB", (9, 9))]))


def test_an_image_in_memory_is_read_as_its_file(models: Path, tmp_path: Path) -> None:
    """Upright as its file says, without a name if it has none, and named by its row if it cannot be read."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    turned = Image.Exif()
    turned[274] = 6  # how the camera was held: turn it by 90 degrees
    Image.fromarray(pixels).save(file := tmp_path / "turned.png", exif=turned)
    by_name, opened, upright = predict(
        models / "images", [file, Image.open(file), Image.fromarray(np.rot90(pixels, -1).copy())]
    )
    assert by_name == opened == upright | {"image": str(file)}
    assert upright["image"] == ""
    with pytest.raises(ValueError, match=r"row 2: the image .*its values, from 70000 to 70000 .mode I., do not fit"):
        list(predict(models / "images", [file, Image.new("I", (4, 4), 70000)]))


def test_a_parquet_file_of_images_is_read_row_by_row(models: Path, tmp_path: Path, capsys: Any) -> None:
    """A broken image in it gave a traceback, without the row that it was in."""
    files = [tmp_path / f"{k}.png" for k in range(3)]
    for k, file in enumerate(files):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (9, 9, 3), np.uint8)).save(file)
    stored: list[dict[str, Any]] = [
        {"bytes": files[0].read_bytes(), "path": None},
        {"bytes": files[1].read_bytes(), "path": "1.png"},
        {"bytes": None, "path": str(files[2])},
    ]
    rows = Dataset.from_dict({"image": stored, "text": ["w1"] * 3}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "rows.parquet")
    found = asked(capsys, str(models / "images"), str(tmp_path / "rows.parquet"))
    assert [row["image"] for row in found] == ["", "1.png", str(files[2])]
    assert [row["score"] for row in found] == [row["score"] for row in predict(models / "images", files)]
    inputs = ["--inputs", "text"]  # a model of texts repeats no bytes
    assert asked(capsys, str(models / "classes"), str(tmp_path / "rows.parquet"), *inputs)[1]["image"] == "1.png"
    stored[1]["bytes"] = stored[1]["bytes"][:60]
    rows = Dataset.from_dict({"image": stored}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "broken.parquet")
    assert main(["predict", str(models / "images"), str(tmp_path / "broken.parquet")]) == 2
    error = capsys.readouterr().err
    assert re.search("row 2 of .*broken.parquet: the image 1.png cannot be read: ", error), error


@pytest.mark.slow
def test_a_run_knows_its_columns_and_reads_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As typed in a shell: the lines of a pipe are answered, into a file that is whole or absent."""
    bert(tmp_path / "teacher", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    rows = [{"title": f"w{k}", "review": text, "label": k % 2} for k, text in enumerate(TEXTS)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "data": {"name": str(tmp_path / "data.jsonl"), "inputs": "review", "max_length": 16, "labels": ["no", "yes"]},
        "teacher": {"model": str(tmp_path / "teacher")}, "student": {"layers": 1}, "output": str(tmp_path / "out"),
        "training": {"max_steps": 1, "use_cpu": True, "per_device_train_batch_size": 8},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["distill", str(tmp_path / "config.yaml")]) == 0
    (tmp_path / "data.jsonl").rename(tmp_path / "new.jsonl")  # predictions need no training data

    command = f"printf 'w1 w2\\nw3\\n' | {sys.executable} -m opdf.cli predict out - --to csv | cat"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    cells = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["review"] for row in cells] == ["w1 w2", "w3"]
    assert {row["prediction"] for row in cells} <= {"no", "yes"}
    expected = [row["score"] for row in predict(tmp_path / "out", ["w1 w2", "w3"])]
    assert [float(row["score"]) for row in cells] == pytest.approx(expected, abs=1e-6)

    (tmp_path / "broken.jsonl").write_text('{"review": "w1"}\n{"review": 3}\n')
    capsys.readouterr()
    for name, status in (("new", 0), ("broken", 2)):
        with (tmp_path / f"{name}.jsonl").open() as pipe:
            monkeypatch.setattr(sys, "stdin", pipe)
            words = [str(tmp_path / "out" / "student"), "-", "--form", "jsonl", "--output", f"{tmp_path}/{name}.csv"]
            assert main(["predict", *words]) == status
    assert len((tmp_path / "new.csv").read_text().splitlines()) == 61
    assert "line 2 of the input has '3' in 'review'; the model reads texts" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*broken*")] == ["broken.jsonl"]


REFUSED = [
    ("{models}/none {here}/rows.csv", "model folder {models}/none does not exist"),
    ("{models} {here}/rows.csv", "{models} holds no run and no model"),
    ("{models}/classes {here}/none.csv", "{here}/none.csv does not exist"),
    ("{models}/classes {here}/rows.csv --inputs txt", "row 2 of {here}/rows.csv has no column 'txt', which the model"),
    ("{models}/classes {here}/ragged.csv", "ragged.csv cannot be read as csv: row 3 has 3 cells and the header 2"),
    ("{models}/classes {here}/titled.csv", "has the columns title, review; say in inputs which the model reads"),
    ("{models}/classes {here}/answered.csv", "has a column 'score', which answers are called; rename it"),
    ("{models}/classes {here}/latin.csv", "latin.csv cannot be read as csv: line 2 is no UTF-8: byte 0xe9; save it"),
    ("{models}/classes {here}/broken.jsonl", "broken.jsonl cannot be read as jsonl: line 2, column 1: Expecting"),
    ("{models}/classes {here}/rows.dat", "rows.dat is no file that can be read; say what it holds, one of lines, csv"),
    ("{models}/classes {here}/rows.csv --form xml", "form is 'xml'; expected one of lines, csv, tsv, jsonl"),
    ("{models}/classes {here}/rows.csv --to xml", "to is 'xml'; expected one of jsonl, csv"),
    ("{models}/classes {here}/rows.csv --output {here}/no/x.csv", "there is no folder {here}/no; make it first"),
    ("{models}/classes {here}/rows.csv --output {here}/../{here.name}/rows.csv", "is the file that is read and would"),
    ("{models}/classes {here}/rows.csv --output {here}/x.tsv", "x.tsv, which ends like no format that is written"),
    ("{models}/classes {here}/rows.csv --max_length 99", "max_length is 99; {models}/classes reads 1 to 32 tokens"),
    ("{models}/classes {here}/rows.csv --batch 0", "batch is 0"),
    ("{models}/classes", "opdf predict needs MODEL FILE as its first arguments"),
    ("{models}/classes {here}/scored.csv --scores --to csv", "a row has a column 'score of bad', as a score is called"),
    ("{models}/number {here}/rows.csv --scores", "scores is true and {models}/number is for regression"),
    ("{models}/decoder {here}/rows.csv --new_tokens 64", "has places for 64 tokens"),
    ("{models}/headless {here}/rows.csv", "headless has no weights for classifier.bias of its BertFor"),
    ("{models}/few-tokens {here}/rows.csv", "few-tokens knows 44 tokens and its tokenizer has 45; make its embeddings"),
    ("{models}/masked {here}/rows.csv", "is a BertForMaskedLM; predict is for classes"),
    ("{models}/images-several {here}/rows.csv --inputs text", "is a ViTForImageClassification for several labels or"),
    ("{models}/images-number {here}/rows.csv --inputs text", "is a ViTForImageClassification for several labels or"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED, ids=lambda v: v[:50])
def test_refusals(command: str, message: str, models: Path, tmp_path: Path, capsys: Any) -> None:
    for name, text in {
        "rows.csv": "id,text\n1,w1\n", "ragged.csv": "id,text\n1,w1\n2,w2,w3\n", "titled.csv": "title,review\na,b\n",
        "answered.csv": "text,score\nw1,1\n", "broken.jsonl": '{"text": "w1"}\n{"text"\n', "rows.dat": "w1\n",
        "scored.csv": "text,score of bad\nw1,1\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes("text\ncaf\xe9\n".encode("latin-1"))
    before = sorted(tmp_path.rglob("*"))
    places = {"models": models, "here": tmp_path}
    assert main(["predict", *(word.format(**places) for word in command.split())]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    assert message.format(**places) in printed.err
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("name", "trained", "given", "message"), [
    ("classes", ["a", "b"], "a", "inputs is a, and RUN was trained on a and b; name as many columns"),
    ("number", ["text"], ["a", "b"], "inputs is a, b, and RUN was trained on text; name as many columns"),
    ("body", ["a", "b"], "a", None),
])  # fmt: skip
def test_a_run_of_pairs_is_given_pairs(
    models: Path, tmp_path: Path, name: str, trained: list[str], given: Any, message: str | None
) -> None:
    """Half of a pair was answered for, without a word; a sentence model embeds each by itself."""
    (tmp_path / "config.yaml").write_text("data: {name: rows.csv}\n")
    scores = {part: {"accuracy": 1.0} for part in ("validation", "test")}
    metrics: dict[str, Any] = {"inputs": trained, "metric": "accuracy"}
    metrics |= dict.fromkeys(("teacher", "student before training", "student"), scores)
    metrics |= dict.fromkeys(("train_params", "inference_params", "steps", "train_seconds"), 1)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    shutil.copytree(models / name, tmp_path / "student")
    shutil.copytree(models / name, tmp_path / "teacher")
    row = {"a": "w1", "b": "w2"}
    for asked_for in (tmp_path, tmp_path / "student", tmp_path / "teacher"):
        if message is None:
            assert len(list(predict(asked_for, [row], inputs=given))) == 1
            continue
        with pytest.raises(UserError, match=re.escape(message.replace("RUN", str(tmp_path)))):
            predict(asked_for, [row], inputs=given)


@pytest.mark.parametrize(("family", "trained", "tokens"), [("bert", 16, 4), ("t5", 600, None)])
def test_a_run_cuts_texts_as_it_was_trained(family: str, trained: int, tokens: int | None, tmp_path: Path) -> None:
    """Training reads data.max_length tokens, and asks neither the tokenizer nor what models without it read."""
    bert(tmp_path / "student", id2label=NAMES, initializer_range=1.0)
    torch.manual_seed(0)
    if family == "t5":
        sizes = {
            "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "eos_token_id": 3,
            "initializer_factor": 3.0,
        }  # fmt: skip
        t5 = T5Config(vocab_size=len(WORDS), pad_token_id=0, decoder_start_token_id=0, id2label=NAMES, **sizes)
        T5ForSequenceClassification(t5).save_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    if tokens is not None:
        tokenizer.model_max_length = tokens
        tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "config.yaml").write_text(f"data: {{name: rows.csv, max_length: {trained}}}\n")
    text = " ".join(f"w{k % 40}" for k in range(2 * trained))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        inputs = tokenizer(text, truncation=True, max_length=trained, return_tensors="pt")
        expected = model(inputs["input_ids"]).logits.softmax(-1)[0].tolist()
    (said,) = predict(tmp_path, [text], scores=True)
    assert list(said["scores"].values()) == pytest.approx(expected, rel=1e-5)


def test_python_takes_options_that_fit_alone(models: Path) -> None:
    with pytest.raises(UserError, match="form is 'xml'"):
        predict(models / "classes", ["w1"], form="xml")
    assert list(predict(models / "classes", [])) == []


@pytest.mark.parametrize("rows", [pd.DataFrame({"text": ["good"]}), {"text": "good"}, {"text": ["good", "bad"]}])
def test_a_table_is_no_list_of_rows(models: Path, rows: Any) -> None:
    """The names of its columns were taken for texts, and answered."""
    with pytest.raises(TypeError, match=r"rows is a (DataFrame|dict); give a list of rows: .*\.to_dict\('records'\)"):
        predict(models / "classes", rows)
