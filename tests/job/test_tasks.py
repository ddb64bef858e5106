"""Each kind of task from its file to a scored student, as a user runs it: tiny models, a few steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

import jobs
from jobs import SIZES, WORDS
from opdf.data import Task, encode
from opdf.job import DataConfig, DistillConfig, cache_teacher, evaluate, export, predict, read_config, run
from opdf.job.arguments import training_arguments
from opdf.job.config import ObjectiveConfig, TeacherConfig
from opdf.job.errors import UserError
from opdf.job.options import fill, read_yaml
from opdf.job.prepared import load

TEXTS = [f"w{k % 40} w{k // 2 % 40} w{k % 7}" for k in range(80)]
QUICK = {"max_steps": 2, "use_cpu": True, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    names = {0: "no", 1: "yes"}
    bert = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), id2label=names, **SIZES))
    bert.save_pretrained(folder / "bert")
    bert.bert.save_pretrained(folder / "body")
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **SIZES))
    llama.save_pretrained(folder / "llama")
    config = BertConfig(vocab_size=len(WORDS), problem_type="single_label_classification", **SIZES)
    BertForSequenceClassification(config).save_pretrained(folder / "single")
    for name in ("bert", "body", "llama", "single"):
        (folder / name / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizerFast(str(folder / name / "vocab.txt")).save_pretrained(folder / name)
    return folder


def distilled(
    folder: Path, teacher: Path, data: dict[str, Any], finetune: bool = True, **options: Any
) -> dict[str, Any]:
    config = {
        "data": {"max_length": 16} | data,
        "teacher": {"model": str(teacher), "finetune": finetune, "training": QUICK},
        "student": {"layers": 1},
        "overparam": {"ones": 1},
        "training": QUICK,
        "output": str(folder / "out"),
    }
    return run(fill(DistillConfig, config | options, "config"))


def lines(folder: Path, **columns: list[Any]) -> str:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "data.jsonl")


def data_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_yaml(str(folder / "out" / "config.yaml"))["data"]
    return found


def exported(folder: Path, found: dict[str, Any]) -> None:
    """See that an export scores as the student does, in batches of texts of several lengths."""
    data = fill(DataConfig, data_of(folder), "data")
    report = export(str(folder / "out"), folder / "export", format="torch", data=data, batch=3)
    scores = report["files"]["model.pt2"]["test"]
    expected = {name: value for name, value in found["student"]["test"].items() if name in scores}
    assert scores == pytest.approx(expected, rel=1e-5)
    assert scores.keys() >= {found["metric"], "examples"}


def card(folder: Path) -> str:
    return (folder / "out" / "student" / "README.md").read_text()


def test_several_labels(tmp_path: Path, models: Path) -> None:
    labels = [["ab"[k % 2], *(["c"] if k % 3 else [])] for k in range(80)]
    found = distilled(tmp_path, models / "body", {"name": lines(tmp_path, text=TEXTS, labels=labels)})
    assert found["metric"] == "f1_micro"
    assert set(found["student"]["test"]) == {"f1_micro", "f1_macro", "examples"}
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "out" / "student")
    assert saved.config.problem_type == "multi_label_classification"
    assert saved.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert "text-classification" in card(tmp_path)
    scored = evaluate(str(tmp_path / "out" / "student"), fill(DataConfig, data_of(tmp_path), "data"))
    assert scored["test"] == found["student"]["test"]
    with pytest.raises(UserError, match="is for multi-label; a linear classifier needs one class an example"):
        evaluate(str(tmp_path / "out" / "student"), fill(DataConfig, data_of(tmp_path), "data"), probe=True)


def test_tags_of_words(tmp_path: Path, models: Path) -> None:
    words = [text.split()[: 1 + k % 3] for k, text in enumerate(TEXTS)]
    tags = [["B-X" if int(word[1:]) % 3 else "O" for word in some] for some in words]
    found = distilled(tmp_path, models / "body", {"name": lines(tmp_path, tokens=words, ner_tags=tags)})
    assert found["metric"] == "f1"
    assert set(found["student"]["test"]) == {"f1", "precision", "recall", "accuracy", "examples"}
    assert found["class"] == "BertForTokenClassification"
    assert "token-classification" in card(tmp_path)
    exported(tmp_path, found)


def test_words_without_tags_are_refused(tmp_path: Path, models: Path) -> None:
    data = {
        "name": lines(tmp_path, tokens=[text.split() for text in TEXTS]),
        "label": None,
        "task": "token-classification",
    }
    objective = {"name": "logits", "options": {"alpha": 1.0}}
    with pytest.raises(ValueError, match=r"data\.label is null and the task is token-classification, which needs tags"):
        distilled(tmp_path, models / "bert", data, finetune=False, objective=objective)


def test_texts_of_a_language_model(tmp_path: Path, models: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    found = distilled(tmp_path, models / "llama", {"name": str(tmp_path / "texts.txt"), "task": "causal-lm"})
    assert found["class"] == "LlamaForCausalLM"
    assert found["metric"] == "perplexity"
    for who in ("student", "teacher"):
        assert 1 < found[who]["test"]["perplexity"] < 2 * len(WORDS)
    assert "text-generation" in card(tmp_path)
    student, teacher = (LlamaForCausalLM.from_pretrained(tmp_path / "out" / who) for who in ("student", "teacher"))
    texts, task = load(fill(DataConfig, data_of(tmp_path), "data"))
    assert task.kind == "causal-lm"
    tokenizer = BertTokenizerFast.from_pretrained(models / "llama")
    same = []
    ids = torch.tensor([token for row in texts["test"] for token in tokenizer(row["text"])["input_ids"]])
    for block in ids.split(16):  # packed: one text behind the other, in blocks
        likeliest = [model(block[None]).logits[0, :-1].argmax(-1) for model in (student, teacher)]
        same += (likeliest[0] == likeliest[1]).tolist()
    assert found["student"]["test"]["agreement"] == pytest.approx(np.mean(same))
    assert found["teacher"]["test"]["agreement"] == 1
    exported(tmp_path, found)


@pytest.mark.slow
def test_stored_words_of_a_language_model_and_of_a_tagger(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    words = [text.split() for text in TEXTS]
    tags = [["B-X" if int(word[1:]) % 3 else "O" for word in some] for some in words]
    data = {
        "llama": {"name": str(tmp_path / "texts.txt"), "task": "causal-lm", "max_length": 16},
        "body": {"name": lines(tmp_path, tokens=words, ner_tags=tags), "max_length": 16},
    }
    options = {"top_k": 2, "alpha": 0.5}
    for model, given in data.items():
        objective = {"name": "sparse-logits", "options": options | {"store": str(tmp_path / f"{model}-store")}}
        teacher = {"model": str(models / model), "finetune": True, "training": QUICK}
        config = {"data": given, "teacher": teacher, "objective": objective, "student": {"layers": 1}}
        store = cache_teacher(fill(DistillConfig, config, "config"))
        said = capsys.readouterr().err
        assert f"to store: teacher's outputs for {store.info.tokens} tokens of {store.info.rows} texts, 2 of" in said
        shards = list(store.folder.rglob("*.safetensors"))
        assert sum(path.stat().st_size for path in shards) == pytest.approx(store.info.nbytes, abs=400 * len(shards))
        found = distilled(tmp_path, models / model, given, objective=objective, overwrite=True)
        objective["options"] = options  # the same in the run's own folder
        own = distilled(tmp_path, models / model, given, objective=objective, overwrite=True)
        assert own["student"] == found["student"]
    with pytest.raises(ValueError, match="top_k is 0, which stores plain logits: 45 numbers a token; set top_k"):
        distilled(tmp_path, models / "llama", data["llama"], objective={"name": "sparse-logits"}, overwrite=True)


def test_several_teachers(tmp_path: Path, models: Path) -> None:
    """From a file; scored, started from the first, named on the card, and resumed."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    other = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **SIZES))
    other.save_pretrained(tmp_path / "other")
    BertTokenizerFast.from_pretrained(models / "llama").save_pretrained(tmp_path / "other")
    names = [str(models / "llama"), str(tmp_path / "other")]
    config = {
        "data": {"name": str(tmp_path / "texts.txt"), "task": "causal-lm", "max_length": 16},
        "teacher": {"models": names, "weights": [2, 1]}, "student": {"layers": 1}, "training": QUICK,
        "output": str(tmp_path / "out"),
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    found = run(read_config(str(tmp_path / "config.yaml")))
    assert "the mean with weights 2, 1 of llama, other" in card(tmp_path)
    assert found["teacher"]["test"]["agreement"] == 1
    assert run(replace(read_config(str(tmp_path / "out" / "config.yaml")), resume=True)) == found


def test_outputs_of_several_teachers_are_stored_of_the_firsts_tokens(tmp_path: Path) -> None:
    """The default of teacher.model has another tokenizer. A run finds the store to be of its data."""
    for name in ("first", "second"):
        jobs.bert(tmp_path / name)
    config = fill(DistillConfig, {
        "data": {"name": str(jobs.texts(tmp_path / "rows.jsonl"))},
        "teacher": {"models": [str(tmp_path / "first"), str(tmp_path / "second")]}, "student": {"layers": 1},
        "objective": {"name": "sparse-logits", "options": {"store": str(tmp_path / "store"), "temperature": 2.0}},
        "training": QUICK, "output": str(tmp_path / "out"),
    }, "config")  # fmt: skip
    cache_teacher(config)
    assert run(config)["steps"] == QUICK["max_steps"]


def test_outputs_are_stored_for_data_without_labels(tmp_path: Path) -> None:
    """The classes are the teacher's then; a store of one class was made, which no run could take."""
    jobs.bert(tmp_path / "teacher", id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    config = fill(DistillConfig, {
        "data": {"name": str(jobs.texts(tmp_path / "rows.jsonl")), "task": "classification", "label": None},
        "teacher": {"model": str(tmp_path / "teacher")}, "student": {"layers": 1},
        "objective": {"name": "sparse-logits", "options": {"store": str(tmp_path / "store"), "top_k": 2}},
        "training": QUICK, "output": str(tmp_path / "out"),
    }, "config")  # fmt: skip
    store = cache_teacher(config)
    assert (store.info.classes, store.info.top_k) == (3, 2)
    assert run(config)["steps"] == QUICK["max_steps"]


@pytest.mark.parametrize("other", ["words", "case"])
def test_teachers_that_read_otherwise_than_the_first_are_refused(tmp_path: Path, other: str) -> None:
    """cache-teacher gave the second one the first's tokens, of which it read other words."""
    words = ["W0", "w1", *(word for word in jobs.WORDS if word not in ("w0", "w1"))]
    texts = jobs.texts(tmp_path / "rows.jsonl")
    texts.write_text(texts.read_text().replace("w0", "W0"))
    jobs.bert(tmp_path / "first", words)
    jobs.bert(tmp_path / "second", words[::-1] if other == "words" else words)
    tokenizer = BertTokenizerFast(str(tmp_path / "second" / "vocab.txt"), do_lower_case=other == "words")
    tokenizer.save_pretrained(tmp_path / "second")
    config = fill(DistillConfig, {
        "data": {"name": str(texts)}, "student": {"layers": 1}, "training": QUICK, "output": str(tmp_path / "out"),
        "teacher": {"models": [str(tmp_path / "first"), str(tmp_path / "second")]},
        "objective": {"name": "sparse-logits", "options": {"store": str(tmp_path / "store"), "temperature": 2.0}},
    }, "config")  # fmt: skip
    message = "has another vocabulary" if other == "words" else "second makes other input_ids of the data than .*first"
    for work in (cache_teacher, lambda config: run(replace(config, objective=ObjectiveConfig()))):
        with pytest.raises(UserError, match=message):
            work(config)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_teachers_of_images_get_the_pixels_that_they_read(tmp_path: Path) -> None:
    data = {"name": "digits", "train_limit": 32}
    jobs_config = jobs.digits(tmp_path / "out", data=data)
    run(jobs_config)
    shutil.copytree(tmp_path / "out" / "teacher", tmp_path / "other")
    file = tmp_path / "other" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.4] * 3}))
    teachers = {"models": [str(tmp_path / "out" / "teacher"), str(tmp_path / "other")]}
    plain = replace(jobs_config, output=str(tmp_path / "two"), constraint=None)
    with pytest.raises(
        UserError, match=r"other makes other pixel_values of the data than .*teacher, whose it would get"
    ):
        run(replace(plain, teacher=fill(TeacherConfig, teachers, "teacher")))


@pytest.mark.slow
def test_texts_without_labels(tmp_path: Path, models: Path) -> None:
    data = {"name": lines(tmp_path, text=TEXTS), "label": None, "task": "classification"}
    for options, message in (
        ({}, r"teacher.finetune is true and .*data.jsonl has no labels for it; give a trained teacher"),
        ({"finetune": False}, "objective logits learns from labels, .* set objective.options.alpha to 1$"),
    ):
        with pytest.raises(UserError, match=message):
            distilled(tmp_path, models / "bert", data, **options)
    objective = {"name": "logits", "options": {"alpha": 1.0}}
    found = distilled(tmp_path, models / "bert", data, finetune=False, objective=objective)
    assert found["metric"] == "agreement"
    assert found["teacher"]["test"]["agreement"] == 1
    assert 0 <= found["student"]["test"]["agreement"] <= 1
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "out" / "student")
    assert saved.config.id2label == {0: "no", 1: "yes"}
    data_config = fill(DataConfig, data_of(tmp_path), "data")
    report = export(str(tmp_path / "out"), tmp_path / "export", format="torch", data=data_config)
    assert report["files"]["model.pt2"].keys() == {"bytes", "difference"}


@pytest.mark.slow
def test_a_decoder_without_a_token_for_padding_classifies(tmp_path: Path) -> None:
    """As GPT-2 and LLaMA come: the end of text pads, and the configuration says so, so that batches change nothing."""
    plain = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", eos_token="[SEP]")
    made = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(WORDS), num_labels=2, **SIZES))
    assert made.config.pad_token_id is None
    for one in (made, tokenizer):
        one.save_pretrained(tmp_path / "llama")
    texts = [" ".join(TEXTS[k].split()[: 1 + k % 3]) for k in range(80)]
    data = {"name": lines(tmp_path, text=texts, label=[k % 2 for k in range(80)])}
    found = distilled(tmp_path, tmp_path / "llama", data)
    student = LlamaForSequenceClassification.from_pretrained(tmp_path / "out" / "student")
    assert student.config.pad_token_id == WORDS.index("[SEP]")
    exported(tmp_path, found)
    for name in (tmp_path / "out", tmp_path / "llama"):
        together = list(predict(str(name), texts[:6], scores=True))
        alone = [next(iter(predict(str(name), [text], scores=True))) for text in texts[:6]]
        assert [one["score"] for one in together] == pytest.approx([one["score"] for one in alone], rel=1e-5)


def test_a_batch_of_empty_texts_is_read_as_one_empty_text_beside_others(tmp_path: Path) -> None:
    """Tokenizers of decoders put no marks around a text, and no model takes a batch without tokens."""
    plain = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]")
    made = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, num_labels=2, **SIZES))
    for one in (made, tokenizer):
        one.save_pretrained(tmp_path / "llama")
    beside, alone = list(predict(tmp_path / "llama", ["w1 w2", ""]))[1:], list(predict(tmp_path / "llama", [""]))
    assert alone == beside
    data = {
        "name": lines(tmp_path, text=TEXTS, label=[k % 2 for k in range(80)]),
        "test": str(tmp_path / "empty.jsonl"),
    }
    (tmp_path / "empty.jsonl").write_text('{"text": "", "label": 0}\n' * 2)
    assert evaluate(tmp_path / "llama", DataConfig(**data))["test"]["examples"] == 2
    tags = {"tokens": [["w1"], []], "tags": [[1], []]}
    encoded, collate = encode(
        DatasetDict(train=Dataset.from_dict(tags)), Task("token-classification", ("tokens",), "tags"), tokenizer
    )
    assert collate([encoded["train"][1]])["labels"].tolist() == [[-100]]


def test_other_data_are_read_by_the_columns_that_the_run_was_trained_on(
    models: Path, tmp_path: Path, capsys: Any
) -> None:
    """A title in front of them was read as the first text of a pair."""
    labels = [k % 2 for k in range(80)]
    distilled(tmp_path, models / "bert", {"name": lines(tmp_path, text=TEXTS, label=labels)})
    (tmp_path / "more").mkdir()
    other = DataConfig(name=lines(tmp_path / "more", title=TEXTS, text=TEXTS[::-1], label=labels), max_length=16)
    capsys.readouterr()
    found = evaluate(tmp_path / "out", other)
    assert "the model reads" not in capsys.readouterr().err
    assert found == evaluate(tmp_path / "out", replace(other, inputs="text"))
    evaluate(tmp_path / "out", replace(other, inputs=["title", "text"]))


def test_scoring_tells_what_was_taken_for_granted(tmp_path: Path, capsys: Any) -> None:
    """A score of the wrong columns looks like any other."""
    jobs.bert(tmp_path / "bert")
    data = DataConfig(name=lines(tmp_path, key=TEXTS, text=TEXTS, title=TEXTS, label=[k % 2 for k in range(80)]))
    note = "opdf: note: of the text columns key, text, title the model reads key and text; set data.inputs to choose"
    evaluate(tmp_path / "bert", replace(data, max_length=8))
    said = capsys.readouterr().err
    assert note in said
    assert "opdf: note: 80 of 80 rows are longer than data.max_length, 8 tokens; the longest has 9" in said
    evaluate(tmp_path / "bert", replace(data, inputs="text", test=data.name))
    assert "72 of 80 rows of test are training rows too, but for case and punctuation" in capsys.readouterr().err
    export(tmp_path / "bert", tmp_path / "out", format="torch", data=data)
    assert note in capsys.readouterr().err


def test_a_tokenizer_that_pads_on_the_left_changes_no_answer(tmp_path: Path) -> None:
    """GPT-2 counts places from the beginning of a row: scores and answers depended on the longest text of a batch."""
    torch.manual_seed(0)
    options = {"pad_token": "[PAD]", "eos_token": "[SEP]", "padding_side": "left"}
    plain = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", **options)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 32, "pad_token_id": 0, "initializer_range": 0.5}
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=len(WORDS), num_labels=1, **sizes))
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path / "gpt2")
    texts = [" ".join(TEXTS[k].split() * (1 + k % 3)) for k in range(80)]
    data = DataConfig(name=lines(tmp_path, text=texts, label=[0.5 * k for k in range(80)]))
    scored = [evaluate(tmp_path / "gpt2", data, batch=batch)["test"] for batch in (1, 16)]
    assert scored[1] == pytest.approx(scored[0], rel=1e-5)
    answers = [[one["prediction"] for one in predict(tmp_path / "gpt2", texts[:6], batch=batch)] for batch in (1, 6)]
    assert answers[1] == pytest.approx(answers[0], rel=1e-5)
    for text, answer in zip(texts[:6], answers[0], strict=True):
        assert model.eval()(**tokenizer(text, return_tensors="pt")).logits.item() == pytest.approx(answer, rel=1e-5)


def test_a_teacher_of_one_class_an_example_is_none_of_several(tmp_path: Path, models: Path) -> None:
    labels = [["no"], ["no", "yes"]] * 40
    with pytest.raises(UserError, match="was trained for single_label_classification and the task is multi-label"):
        distilled(tmp_path, models / "single", {"name": lines(tmp_path, text=TEXTS, labels=labels)})


def test_images_without_labels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for k in range(40):
        Image.fromarray(np.full((8, 8), 6 * k, np.uint8)).save(tmp_path / "images" / f"{k}.png")
    teacher = ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, id2label={0: "dark", 1: "light"}, **SIZES)
    )
    teacher.save_pretrained(tmp_path / "teacher")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "teacher")
    data, objective = {"name": str(tmp_path / "images"), "label": None}, {"name": "logits", "options": {"alpha": 1.0}}
    found = distilled(tmp_path, tmp_path / "teacher", data, finetune=False, objective=objective)
    assert found["teacher"]["test"] == {"agreement": 1.0, "examples": 8}
    assert found["metric"] == "agreement"


def test_a_model_that_sees_what_it_has_to_predict_is_refused(tmp_path: Path, models: Path) -> None:
    """transformers loads a BERT as a language model, and it looks both ways."""
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(TEXTS))
    with pytest.raises(UserError, match="sees the tokens which it has to predict; give a decoder"):
        distilled(tmp_path, models / "bert", {"name": str(file), "task": "causal-lm"})
    assert not (tmp_path / "out").exists()


def test_the_best_checkpoint_by_perplexity_is_the_one_with_the_lowest(tmp_path: Path) -> None:
    """Left to itself the Trainer takes every metric but a loss for one of which more is better."""

    def arguments(**options: Any) -> Any:
        chosen = {"metric_for_best_model": "perplexity", "use_cpu": True} | options
        return training_arguments(chosen, tmp_path, 0)

    assert arguments().greater_is_better is False
    assert arguments(metric_for_best_model="eval_perplexity").greater_is_better is False
    assert arguments(greater_is_better=True).greater_is_better is True
    assert arguments(metric_for_best_model="accuracy").greater_is_better is True
