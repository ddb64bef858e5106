"""How students are judged: what each kind of task's answers, labels, scores and chance are."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from tests.study.example import config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForTokenClassification,
)

from opdf.data import Task, minilm
from opdf.job import DataConfig, TeacherConfig, UserError, predict, run
from opdf.job.prepared import prepare_data
from opdf.job.scoring import evaluator, scores
from opdf.study import Cell, Study, sweep
from opdf.study.judge import Judge, answers_of, labels_of
from opdf.study.runner import Runner
from opdf.study.scale import Scale
from opdf.study.study import check_kind

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LLAMA = {"model_type": "llama", "vocab_size": 30522, **SIZES}
BERT = {"model_type": "bert", "vocab_size": 30522, **SIZES}


def language(folder: Path, **data: Any) -> dict[str, Any]:
    """Texts of several lengths."""
    (folder / "texts.txt").write_text("\n".join(f"a film of {k} words" + k % 7 * " and another" for k in range(80)))
    return {"name": str(folder / "texts.txt"), "task": "causal-lm", "max_length": 16, **data}


def judge(kind: str, *labels: str) -> Judge:
    return Judge(Task(kind, ("text",), "label", labels))


def test_chance_is_the_best_constant_answer() -> None:
    assert judge("classification", *"abcdefgh").chance(np.array([3, 3, 5, 7])) == 0.5
    assert judge("regression").chance(np.array([0.5, 1.5])) == 0.0
    assert (
        judge("token-classification", "O", "noun").chance(np.array([[0, 1, -100], [1, 1, 0], [1, -100, -100]])) == 4 / 6
    )


def test_chance_of_any_number_of_classes_is_that_of_the_best_set_of_them() -> None:
    truth = (np.random.default_rng(0).random((40, 4)) < (0.8, 0.05, 0.4, 0.1)).astype(int)
    every = [np.tile(answer, (40, 1)) for answer in itertools.product((0, 1), repeat=4)]
    best = max(f1_score(truth, answers, average="micro", zero_division=0) for answers in every)
    assert judge("multi-label", *"abcd").chance(truth) == best


def test_a_language_model_at_chance_knows_how_often_tokens_occur() -> None:
    """No guess that is the same everywhere has a lower perplexity than the shares of the tokens themselves."""
    labels = np.array([[9, 5, 5, 6], [9, 5, 7, -100]])  # the first token of a text is not predicted
    found = judge("causal-lm")
    assert found.chance(labels) == pytest.approx(-(3 * math.log(5 / 3) + 2 * math.log(5)) / 5)
    assert found.score(found.no_answers(labels, range(64)), labels) == pytest.approx(-math.log(64))
    assert found.score(np.array([1.0, 4.0]), labels) == -1.0


def test_a_diverged_student_knows_nothing() -> None:
    several = np.array([[0, 1], [1, 1], [0, 0]])
    found = judge("multi-label", "films", "books")
    assert found.score(found.no_answers(several, None), several) == 0.0
    assert set(judge("classification", "a", "b").no_answers(np.array([1, 1]), None)) == {0}


@pytest.mark.parametrize("pack", [True, False])
def test_a_language_models_answers_are_the_losses_of_its_texts(tmp_path: Path, pack: bool) -> None:
    prepared = prepare_data(DataConfig(**language(tmp_path, pack=pack)), TeacherConfig(model="minilm"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA)).eval()
    expected = []
    model.requires_grad_(False)
    for row in prepared.data["test"].with_format(None):
        ids = torch.tensor([row["input_ids"]])
        expected.append(float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1))
    labels, answers = labels_of(prepared, "test"), answers_of(model, prepared, "test")
    assert answers == pytest.approx(expected, rel=1e-5)
    perplexity = scores(evaluator(model, prepared), prepared)["test"]["perplexity"]
    assert Judge(prepared.task).score(answers, labels) == pytest.approx(-math.log(perplexity), rel=1e-6)


def tagged(folder: Path) -> dict[str, Any]:
    rows = [{"words": ["a", "film", "of", str(k)][: 1 + k % 4], "tags": ["no", "yes", "no", "no"][: 1 + k % 4]}
            for k in range(60)]  # fmt: skip
    pd.DataFrame(rows).to_json(folder / "tags.jsonl", orient="records", lines=True)
    return {"name": str(folder / "tags.jsonl"), "task": "token-classification", "max_length": 16}


def pairs(folder: Path) -> dict[str, Any]:
    rows = {"a": [f"a film of {k}" for k in range(60)], "b": [f"a book of {k}" for k in range(60)],
            "alike": [k % 5 / 5 for k in range(60)]}  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    return {"name": str(folder / "pairs.csv"), "task": "similarity", "inputs": ["a", "b"], "label": "alike"}


TRAINED = {"finetune": True, "training": {"max_steps": 2}}
OTHERS: dict[str, tuple[Callable[[Path], dict[str, Any]], dict[str, Any]]] = {
    "causal-lm": (language, TRAINED | {"config": LLAMA}), "token-classification": (tagged, TRAINED | {"config": BERT}),
    "similarity": (pairs, {}),
}  # fmt: skip


def of_kind(kind: str, folder: Path) -> dict[str, Any]:
    """A study's configuration of tiny models for a kind of task."""
    data, teacher = OTHERS[kind]
    common = {
        "data": data(folder), "teacher": teacher | {"model": "minilm"}, "student": {"layers": 1, "start": "copy"},
        "training": {"max_steps": 4}, "objective": {"name": "embedding" if kind == "similarity" else "logits"},
    }  # fmt: skip
    variants = {"KD": {}, "slow": {"training": {"warmup_steps": 1}}}
    return {"common": common, "tasks": {"one": {}}, "train_sizes": None, "variants": variants, "seeds": [0]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_a_study_of_tokens_and_pairs(tmp_path: Path, kind: str) -> None:
    """Scores in results.json are those that `opdf distill` writes of the same run."""
    study = of_kind(kind, tmp_path)
    options = config(tmp_path, **study, learning_rates=[1e-3])
    results = sweep(options)
    single = Study(options).config("one", "KD")
    metrics = run(replace(single, training=single.training | {"learning_rate": 1e-3}, output=str(tmp_path / "run")))
    expected = metrics["student"]["test"][metrics["metric"]]
    (test,) = (entry["test"] for entry in results["runs"] if entry["variant"] == "KD")
    assert test == pytest.approx(Scale(metrics["metric"]).score(expected), rel=1e-5, abs=1e-6)
    (effect,) = (entry for entry in results["effects"] if entry["at"] == "best")
    assert effect["low"] <= effect["mean"] <= effect["high"]


def test_tags_are_judged_and_predicted_alike_for_a_tokenizer_that_pads_on_the_left(tmp_path: Path) -> None:
    """XLNet's does, and puts its mark for classes behind a text; each text had answers of other places."""
    words = ["<pad>", "<unk>", "<cls>", *(f"w{k}" for k in range(9))]
    plain = Tokenizer(WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    plain.post_processor = TemplateProcessing(single="$A <cls>:2", special_tokens=[("<cls>", 2)])
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<cls>", "padding_side": "left"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **marks).save_pretrained(tmp_path / "xlnet")
    torch.manual_seed(0)
    sizes = {"d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8, "pad_token_id": 0}
    names = {"id2label": {0: "A", 1: "B"}, "label2id": {"A": 0, "B": 1}}
    model = XLNetForTokenClassification(XLNetConfig(vocab_size=len(words), **sizes, **names))
    model.save_pretrained(tmp_path / "xlnet")
    texts = [[f"w{(k + i) % 9}" for i in range(1 + k % 5)] for k in range(40)]
    lines = (json.dumps({"tokens": text, "tags": ["AB"[int(word[1]) % 2] for word in text]}) + "\n" for text in texts)
    (tmp_path / "words.jsonl").write_text("".join(lines))

    prepared = prepare_data(
        DataConfig(name=str(tmp_path / "words.jsonl")), TeacherConfig(model=str(tmp_path / "xlnet"))
    )
    found = Judge(prepared.task).score(answers_of(model, prepared, "test"), labels_of(prepared, "test"))
    assert found == pytest.approx(scores(evaluator(model, prepared), prepared)["test"]["accuracy"])

    together = list(predict(tmp_path / "xlnet", [{"tokens": text} for text in texts]))
    alone = list(predict(tmp_path / "xlnet", [{"tokens": text} for text in texts], batch=1))
    for one, other in zip(together, alone, strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)


def test_data_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="films has no labels, by which a study judges"):
        check_kind("films", Task("classification", ("text",), None), probe=False)


@pytest.mark.slow
def test_a_language_model_that_diverged_guesses_all_tokens_alike(tmp_path: Path) -> None:
    made = Runner(Study(config(tmp_path, **of_kind("causal-lm", tmp_path))))
    outcome = made.run(Cell(0, "one", "KD", 1e20))
    assert outcome.facts["diverged_in_step"]
    assert math.exp(-outcome.validation) == pytest.approx(30522)


@pytest.mark.parametrize("option", [{"max_length": 8}, {"pack": False}])
def test_variants_are_judged_on_the_same_tokens(tmp_path: Path, option: dict[str, Any]) -> None:
    study = of_kind("causal-lm", tmp_path)
    study["variants"]["other"] = {"data": option}
    with pytest.raises(UserError, match=rf"'other' of 'one': data\.{next(iter(option))} is .* on the same rows"):
        Study(config(tmp_path, **study)).check()


@pytest.mark.parametrize("change", ["words", "end"])
def test_variants_with_teachers_of_other_tokens_are_refused(tmp_path: Path, change: str) -> None:
    """Also if they have one vocabulary, and one of them ends its texts with a token more."""
    study = of_kind("causal-lm", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    if change == "words":
        tokenizer = tokenizer.train_new_from_iterator(["a film of words"], 100)
    else:
        backend = tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 101)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    study["variants"]["same"] = {"teacher": {"training": {"max_steps": 3}}}
    study["variants"]["other"] = {"teacher": {"model": str(tmp_path / "tokenizer")}}
    with pytest.raises(UserError, match=r"'other' of 'one': its teacher .*tokenizer has another tokenizer than minilm"):
        Study(config(tmp_path, **study)).check()
