"""Models by hub name: from the cache where there is no network, and what a hub says that refuses them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)

from jobs import bert, texts
from opdf.data import Task
from opdf.job import DistillConfig, run
from opdf.job.config import TeacherConfig
from opdf.job.errors import UserError
from opdf.job.models import check_fields, files_of, load_model, places
from opdf.job.options import fill
from opdf.job.processors import load_processor

TASK = Task("classification", ("text",), "label", ("a", "b"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, with one model in it, as the hub's client lays it out."""
    folder = tmp_path / "hub" / "models--somebody--tiny"
    BertForSequenceClassification(
        BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    ).save_pretrained(folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder / "snapshots" / "abc"


def test_a_cached_model_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    model, missing = load_model("somebody/tiny", TASK)
    assert missing == []
    expected = BertForSequenceClassification.from_pretrained(cache).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert files_of("somebody/tiny") == {"revision": "abc"}  # its files do not change
    with pytest.raises(ValueError, match="somebody/other is not in the hub's cache"):
        load_model("somebody/other", TASK)


ASK = """
from opdf.job.models import load_model
from opdf.data import Task, load_data
try:
    load_data("nobody/data")
except FileNotFoundError as error:
    print(error)
try:
    load_model("nobody/model", Task("classification", ("text",), "label", ("a", "b")))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_hub_that_answers_is_asked_and_its_refusal_says_what_to_do(tmp_path: Path) -> None:
    """A server whose repositories are all for members of a group; its address is read when the client is imported."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requests.append(self.path)
            self.send_response(200 if self.path == "/" else 403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        places = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        told = subprocess.run(
            [sys.executable, "-c", ASK], capture_output=True, text=True, check=True, env=os.environ | places
        ).stdout.splitlines()
        server.shutdown()
    assert len(told) == 2
    assert "nobody/data" in told[0]
    assert "gated" in told[0]
    assert "gated repo" in told[1]
    assert told[1].endswith("log in with hf auth login or set HF_TOKEN")
    assert requests.count("/") == 1
    assert any(path.startswith("/nobody/model/") for path in requests)
    assert any(path.startswith("/datasets/nobody/data/") for path in requests)


def test_a_decoder_is_told_from_a_model_that_looks_both_ways_wherever_tensors_are_made(tmp_path: Path) -> None:
    """A student is loaded where models without values are made, and tokens without values would give any logits."""
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=5000, **sizes)).save_pretrained(tmp_path / "llama")
    BertLMHeadModel(BertConfig(vocab_size=5000, **sizes)).save_pretrained(tmp_path / "bert")
    task = Task("causal-lm", ("text",), None)
    for _ in range(5):
        with torch.device("meta"):
            load_model(str(tmp_path / "llama"), task)
            with pytest.raises(UserError, match="sees the tokens which it has to predict"):
                load_model(str(tmp_path / "bert"), task)


def test_a_decoder_whose_labels_have_to_be_shifted_before_is_refused(tmp_path: Path) -> None:
    """It would learn to say the token that it reads."""
    sizes: dict[str, Any] = {"d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 8}
    BartForCausalLM(BartConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "bart")
    with pytest.raises(UserError, match="BartForCausalLM, whose labels have to be shifted before"):
        load_model(str(tmp_path / "bart"), Task("causal-lm", ("text",), None))


def test_a_model_that_will_be_trained_gets_a_new_head(tmp_path: Path, capsys: Any) -> None:
    """A ViT of ImageNet's classes, say, on ten of one's own; what is below the head is the model's."""
    saved = bert(tmp_path / "model", num_labels=3)
    name = str(tmp_path / "model")
    with pytest.raises(UserError, match=r"head of 3 outputs .* has 2 classes: a, b; .* teacher.finetune: true"):
        load_model(name, TASK)
    for task in (TASK, Task("regression", ("text",), "label", ())):
        model, missing = load_model(name, task, new_head=True)
        assert missing == ["classifier.bias", "classifier.weight"]
        assert model.classifier.out_features == task.num_labels
        expected = saved.bert.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in model.bert.state_dict().items())
    note = f"opdf: note: the head of {name} has 3 outputs and the data need 2; a new one is trained in its place"
    assert note in capsys.readouterr().err.splitlines()
    saved.config.update({"intermediate_size": 4})
    saved.config.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"damaged: bert\.\S+ has another size than its config.json says"):
        load_model(name, TASK, new_head=True)


def test_a_teacher_and_a_student_with_other_heads_are_trained(tmp_path: Path) -> None:
    bert(tmp_path / "other", num_labels=3)
    config = {
        "data": {"name": str(texts(tmp_path / "data.jsonl"))}, "output": str(tmp_path / "out"),
        "teacher": {"model": str(tmp_path / "other"), "finetune": True, "training": {"max_steps": 1, "use_cpu": True}},
        "student": {"model": str(tmp_path / "other")}, "training": {"max_steps": 1, "use_cpu": True},
    }  # fmt: skip
    run(fill(DistillConfig, config, "config"))
    for who in ("teacher", "student"):
        head = BertForSequenceClassification.from_pretrained(tmp_path / "out" / who).classifier
        assert head.out_features == 2


def test_classes_in_another_order_are_refused_however_their_names_are_written(tmp_path: Path, capsys: Any) -> None:
    def named(first: str, second: str) -> Task:
        return Task("classification", ("text",), "label", (first, second))

    folder = bert_named(tmp_path / "model", "Café", "not")
    for other in (named("NOT ", "Café"), named("not", "cafe\u0301"), named("Not", " CAFÉ")):
        with pytest.raises(UserError, match="give both the same order"):
            load_model(folder, other)
    for same in (named("cafe\u0301", "NOT "), named("Café", "not")):
        load_model(folder, same)
    assert "note: " not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"by data.labels \['CAFÉ', 'NOT'\]"):
        load_model(folder, named("NOT", "CAFÉ"))
    load_model(folder, named("good", "bad"))
    load_model(folder, named("good", "bad"))
    said = capsys.readouterr().err
    assert said.count("note: ") == 1
    assert (
        "are taken by their numbers: Café for good, not for bad; to keep the model's names, or for another order, set"
        in said
    )


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "classification", "trained for multi_label_classification"),
        ({"problem_type": "single_label_classification"}, "multi-label", "trained for single_label_classification"),
        ({"num_labels": 1}, "classification", "a head of one output, as for a regression"),
        ({"num_labels": 1, "problem_type": "regression"}, "classification", "trained for regression"),
    ],
)
def test_a_teacher_of_another_task_is_refused_for_data_without_labels(
    tmp_path: Path, options: dict[str, Any], kind: str, message: str
) -> None:
    """A regression taught nothing as a classifier, with full agreement: one class is always the likeliest."""
    bert(tmp_path, **options)
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path), Task(kind, ("text",), None))
    load_model(str(tmp_path), Task("similarity", ("text", "other"), "label"))


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (ModernBertForTokenClassification, "classification"),
        (ModernBertForSequenceClassification, "token-classification"),
    ],
)
def test_a_head_for_words_is_none_for_texts_and_the_other_way(tmp_path: Path, cls: Any, kind: str) -> None:
    """ModernBERT's have the same names and sizes, so that the one was loaded as the other without a word."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    marks = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id"), 1)
    names = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    cls(ModernBertConfig(vocab_size=9, **sizes, **marks, **names)).save_pretrained(tmp_path)
    task = Task(kind, ("text",), "label", ("a", "b"))
    message = rf"was saved as a {cls.__name__} and the task is {kind}; give a model of the same task .* data\.task"
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path), task)
    load_model(str(tmp_path), task, new_head=True)  # training will make it right


def test_classes_beside_the_models_are_named(tmp_path: Path) -> None:
    """One file's labels were written otherwise; the message named the classes that were right, and another model."""
    bert(tmp_path, id2label={0: "a", 1: "b"})
    task = Task("classification", ("text",), "label", ("A", "a", "b", "b "))
    with pytest.raises(UserError, match=r"4 classes: A, a, b, b , 'A', 'b ' beside the model's; correct these if"):
        load_model(str(tmp_path), task)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {}), ("distilbert", {}), ("roberta", {"pad_token_id": 1}), ("xlm-roberta", {"pad_token_id": 1}),
        ("camembert", {"pad_token_id": 1}), ("mpnet", {"pad_token_id": 1}), ("gpt2", {"pad_token_id": 1}),
    ],
)  # fmt: skip
def test_a_model_reads_as_many_tokens_as_it_has_places_for(kind: str, options: dict[str, Any]) -> None:
    """RoBERTa's positions begin behind its padding: data.max_length 514, or predict, ended in an index out of range."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = AutoConfig.for_model(kind, vocab_size=30, max_position_embeddings=20, **sizes, **options)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    most = places(model)
    assert most is not None
    model(input_ids=torch.full((2, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((2, most + 1), 5))


def bert_named(folder: Path, *names: str) -> str:
    sizes = {
        "vocab_size": 9,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 4,
    }
    config = BertConfig(**sizes, id2label=dict(enumerate(names)), label2id={n: k for k, n in enumerate(names)})
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def test_a_field_that_is_given_under_two_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"student\.config has hidden_size and n_embd, which are one field of a gpt2"):
        check_fields("student.config", "gpt2", {"hidden_size": 32, "n_embd": 16})


def test_classes_of_which_some_have_other_numbers_are_refused(tmp_path: Path) -> None:
    """They were taken by their numbers, with a note: neutral for positive, positive for very positive."""
    bert(tmp_path, id2label={0: "negative", 1: "neutral", 2: "positive"})
    task = Task("classification", ("text",), "label", ("neutral", "positive", "very positive"))
    with pytest.raises(
        UserError, match=r"'neutral' is number 1 of the one and 0 of the other; name in data\.labels what"
    ):
        load_model(str(tmp_path), task)
    load_model(str(tmp_path), replace(task, labels=("very positive", "neutral", "positive")))
    load_model(str(tmp_path), task, new_head=True)  # training will make them right


def test_numbers_that_stand_for_names_are_told_of(tmp_path: Path, capsys: Any) -> None:
    """A model without names of its classes may count them otherwise than the data, whose names are sorted."""
    folder = bert_named(tmp_path / "model", "LABEL_0", "LABEL_1")
    load_model(folder, Task("classification", ("text",), "label", ("0", "1")))
    assert "note: " not in capsys.readouterr().err
    load_model(folder, Task("classification", ("text",), "label", ("negative", "positive")))
    assert "taken by their numbers: LABEL_0 for negative, LABEL_1 for positive; " in capsys.readouterr().err


def test_classes_that_the_data_lack_can_be_named(tmp_path: Path) -> None:
    """A file to score on often lacks a rare class; the remedy was another model."""
    bert(tmp_path, id2label={0: "a", 1: "b", 2: "c"})
    task = Task("classification", ("text",), "label", ("a", "c"))
    with pytest.raises(UserError, match=r"2 classes: a, c; name also the classes .* by data\.labels \['a', 'b', 'c'\]"):
        load_model(str(tmp_path), task)
    with pytest.raises(UserError, match="2 classes: a, d; give a model of the same classes"):
        load_model(str(tmp_path), Task("classification", ("text",), "label", ("a", "d")))


def test_images_are_read_in_the_size_of_the_teachers_configuration() -> None:
    """Two sides were taken for one, and where none was named images were made 28 x 28, without a word."""
    sizes: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
        ("vit", {"image_size": 8}, (8, 8)), ("vit", {"image_size": [8, 4]}, (8, 4)), ("convnext", {}, (224, 224)),
        ("resnet", {}, (28, 28)),
    ]  # fmt: skip
    for kind, fields, (height, width) in sizes:
        teacher = TeacherConfig(model=None, config={"model_type": kind, **fields})
        images = load_processor(teacher, Task("image-classification", ("image",), None))
        pixels = images([Image.new("RGB", (5, 5))], return_tensors="np")["pixel_values"]
        assert pixels.shape == (1, 3, height, width)


def test_a_model_that_is_built_takes_a_tokenizer_alone(tmp_path: Path) -> None:
    """Of a folder without weights; it was refused, although a model of `teacher.config` has weights of its own."""
    bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    teacher = TeacherConfig(model=str(tmp_path), config={"model_type": "bert"})
    assert load_processor(teacher, TASK)("a")["input_ids"]
    with pytest.raises(ValueError, match="it has no weights"):
        load_model(str(tmp_path), TASK)


def test_a_run_in_the_place_of_a_model_is_told_from_its_student(tmp_path: Path) -> None:
    """Other commands take a run for its student. A teacher may be either of two, and the remedy was to save one."""
    for name in ("student", "teacher"):
        bert(tmp_path / "run" / name)
    found = " or ".join(re.escape(str(tmp_path / "run" / name)) for name in ("student", "teacher"))
    with pytest.raises(ValueError, match=rf"it has no weights\. Name {found}, which has some$"):
        load_model(str(tmp_path / "run"), TASK)
