"""Input that is wrong in any way: one line that says what and what to do, status 2, and nothing on the disk."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from jobs import TEXTS, VIT, WORDS, bert, read_only_folder
from opdf.cli import main
from opdf.job.options import merged

ROWS = len(TEXTS)
LABELS = [k % 2 for k in range(ROWS)]


def changed_config(folder: Path, **fields: Any) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models and data, most of them with something wrong."""
    folder = tmp_path_factory.mktemp("world")
    teacher = bert(folder / "teacher")
    bert(folder / "three-classes", num_labels=3)
    bert(folder / "reversed", id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    bert(folder / "few-tokens", WORDS[:20])
    bert(folder / "other-words", [*WORDS[:5], *reversed(WORDS[5:])])
    bert(folder / "short", max_position_embeddings=3)
    for name in ("nan", "pickled", "custom", "cut", "bad-json", "no-config", "no-tokenizer", "quantized"):
        shutil.copytree(folder / "teacher", folder / name)
    with torch.no_grad():
        teacher.bert.encoder.layer[0].attention.self.query.weight[0, 0] = torch.nan
    teacher.save_pretrained(folder / "nan")
    (folder / "pickled" / "model.safetensors").unlink()
    torch.save(teacher.state_dict(), folder / "pickled" / "pytorch_model.bin")
    changed_config(folder / "custom", model_type="own", auto_map={"AutoConfig": "own.Own"})
    changed_config(folder / "quantized", quantization_config={"quant_method": "gptq", "bits": 4})
    (folder / "custom" / "own.py").write_text(f"open({str(folder / 'pwned')!r}, 'w')")
    whole = (folder / "cut" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "bad-json" / "config.json").write_text("{nope")
    (folder / "no-config" / "config.json").unlink()
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / "no-tokenizer" / name).unlink(missing_ok=True)
    (folder / "adapters").mkdir()
    (folder / "adapters" / "adapter_config.json").write_text("{}")
    data(folder)
    return folder


def data(folder: Path) -> None:
    def lines(name: str, text: Any = TEXTS, label: Any = LABELS) -> None:
        rows = [{"text": t, "label": v} for t, v in zip(text, label, strict=True)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    lines("good.jsonl")
    lines("named.jsonl", label=["no", "yes"] * (ROWS // 2))
    lines("text-gap.jsonl", text=[*TEXTS[:50], None, *TEXTS[51:]])
    lines("no-text.jsonl", text=[None] * ROWS)
    lines("number-text.jsonl", text=list(range(ROWS)))
    lines("label-gap.jsonl", label=[*LABELS[:50], None, *LABELS[51:]])
    lines("list-label.jsonl", label=[[v] for v in LABELS])
    lines("float-label.jsonl", label=[v + 0.5 for v in LABELS])
    lines("one-class.jsonl", label=[1] * ROWS)
    lines("three.jsonl", label=[k % 3 for k in range(ROWS)])
    lines("two-rows.jsonl", TEXTS[:2], LABELS[:2])
    lines("cut.jsonl")
    (folder / "cut.jsonl").write_text((folder / "cut.jsonl").read_text()[:-10])
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    hidden = Dataset.from_dict({"text": TEXTS, "label": [*LABELS[:-1], -1]}, features=features)
    hidden.to_parquet(str(folder / "hidden.parquet"))
    values = "".join(f"{t},{v}\n" for t, v in zip(TEXTS, LABELS, strict=True))
    lines("minus-one.jsonl", label=[-1] * ROWS)
    (folder / "nan-label.csv").write_text(f"text,label\n{values}w1,nan\n")
    (folder / "empty.csv").write_text("")
    (folder / "semicolons.csv").write_text("text;label\ngood;1\nbad;0\n")
    (folder / "only-header.csv").write_text("text,label\n")
    (folder / "no-header.csv").write_text(values)
    (folder / "ragged.csv").write_text("text,label\na,1\nb,2,3,4,5\n")
    (folder / "noise.parquet").write_bytes(bytes(range(256)) * 10)
    (folder / "broken.json").write_text("{ not json")
    (folder / "notes.md").write_text("x")
    (folder / "notes.txt").write_text("x")
    (folder / "empty").mkdir()
    (folder / "no-images" / "cat").mkdir(parents=True)
    (folder / "no-images" / "cat" / "readme.md").write_text("none here")
    for label in ("cat", "dog"):
        (folder / "images" / label).mkdir(parents=True)
        for k in range(8):
            Image.fromarray(np.full((8, 8), k, np.uint8)).save(folder / "images" / label / f"{k}.png")


GOOD = {
    "data": {"name": "{world}/good.jsonl", "max_length": 16},
    "teacher": {"model": "{world}/teacher"},
    "student": {"layers": 1},
    "overparam": {"ones": 1},
    "training": {"max_steps": 1, "use_cpu": True, "per_device_train_batch_size": 4},
    "output": "{here}/out",
}


def placed(value: Any, places: dict[str, Path]) -> Any:
    """The value with {world} and {here} filled in."""
    if isinstance(value, dict):
        return {k: placed(v, places) for k, v in value.items()}
    if isinstance(value, list):
        return [placed(v, places) for v in value]
    if isinstance(value, str):
        for name, path in places.items():
            value = value.replace(f"{{{name}}}", str(path))
    return value


PYTHON = re.compile(r"\w\((\w+=|\))|\w=(None|True|False|'|\"|\[)|[a-z]Distillation\b")
"""What nobody types who uses the command line."""


def refused(argv: list[str], message: str, here: Path, world: Path, capsys: Any) -> None:
    """Run a command and see that it is refused as it should be."""
    before = [sorted(folder.rglob("*")) for folder in (here, world)]
    assert main(argv) == 2
    assert [sorted(folder.rglob("*")) for folder in (here, world)] == before
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("opdf: error: ")
    assert not PYTHON.search(error), error
    assert message in error


def test_the_good_configuration_is_good(tmp_path: Path, world: Path) -> None:
    """Else all below would be refused for a reason of its own."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(placed(GOOD, {"world": world, "here": tmp_path})))
    assert main(["distill", str(path)]) == 0
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()
    for named in ("out", "out/student"):
        assert main(["eval", str(tmp_path / named)]) == 0
    for data in (["--data", json.dumps({"name": str(world / "good.jsonl")})], [f"--data.name={world / 'good.jsonl'}"]):
        assert main(["eval", str(world / "teacher"), *data]) == 0


CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    # types
    ({"data": [1]}, "data is [1]; expected a mapping of options such as name"),
    ({"data": None}, "data is null; expected a mapping"),
    ({"teacher": 3}, "teacher is 3; expected a mapping"),
    ({"training": "fast"}, "training is 'fast'; expected a mapping"),
    ({"overparam": "os.system"}, "overparam is 'os.system'; expected a mapping"),
    ({"overparam": {"ones": "x"}}, "overparam: ones is 'x'; expected an integer or null"),
    ({"overparam": {"scale": "x"}}, "scale is 'x'; expected a number or null"),
    ({"overparam": {"shapes": [1]}}, "shapes is [1]; expected a mapping"),
    ({"constraint": {"weight": "x"}}, "constraint: weight is 'x'; expected a number"),
    ({"constraint": {"layer_map": [1]}}, "layer_map is [1]; expected text or a mapping"),
    ({"seed": "x"}, "seed is 'x'; expected an integer"),
    ({"seed": 1.5}, "seed is 1.5; expected an integer"),
    ({"overwrite": "maybe"}, "overwrite is 'maybe'; expected true or false"),
    ({"output": None}, "output is null; expected text"),
    ({"student": {"layers": ["a"]}}, "layers is ['a']; expected an integer or a list of integers"),
    ({"data": {"inputs": 3}}, "inputs is 3; expected a list of texts or text or null"),
    ({"data": {"train_limit": "x"}}, "train_limit is 'x'; expected an integer or null"),
    ({"objective": {"options": {"temperature": "hot"}}}, "temperature is 'hot'; expected a number"),
    ({"objective": {"options": {"alpha": None}}}, "alpha is null; expected a number"),
    ({"training": {"learning_rate": [1]}}, "training: learning_rate is [1]; expected a number"),
    ({"training": {"bf16": "yes please"}}, "bf16 is 'yes please'; expected true or false"),
    # names
    ({"techer": {}}, "no option 'techer'; did you mean 'teacher'"),
    ({1: 2}, "no option 1; known are data, teacher"),
    ({"data": {"nam": "x"}}, "data has no option 'nam'; did you mean 'name'"),
    ({"overparam": {"onse": 3}}, "no option 'onse'; did you mean 'ones'"),
    ({"training": {"optim": "foo"}}, "training: foo is not a valid OptimizerNames, please select one of"),
    ({"training": {"learning_rat": 1}}, "training has no option 'learning_rat'; did you mean 'learning_rate'"),
    ({"teacher": {"finetune": True, "training": {"max_step": 1}}}, "teacher.training has no option 'max_step'"),
    ({"objective": {"name": "logit"}}, "objective.name is 'logit'; expected one of logits, hidden"),
    ({"objective": {"options": {"temprature": 1}}}, "no option 'temprature'; did you mean 'temperature'"),
    ({"student": {"layers": None, "config": {"hiden_size": 4}}}, "no field 'hiden_size' for a bert; did you mean"),
    # numbers
    ({"seed": -1}, "seed is -1; it must be 0 or more"),
    ({"seed": 2**70}, "it must be below 2**32"),
    ({"training": {"learning_rate": 0}}, "learning_rate is 0.0; it must be a finite number above 0"),
    ({"training": {"learning_rate": -1}}, "learning_rate is -1.0"),
    ({"training": {"learning_rate": float("nan")}}, "learning_rate is nan"),
    ({"training": {"max_steps": 0}}, "max_steps is 0; it must be 1 or more"),
    ({"training": {"max_steps": -1, "num_train_epochs": 0}}, "num_train_epochs is 0.0; it must be above 0"),
    ({"training": {"per_device_train_batch_size": 0}}, "per_device_train_batch_size is 0; it must be 1 or more"),
    ({"training": {"gradient_accumulation_steps": 0}}, "gradient_accumulation_steps is 0; it must be 1 or more"),
    ({"training": {"weight_decay": -1}}, "weight_decay is -1.0; it must be 0 or more"),
    ({"training": {"adam_beta1": 2}}, "adam_beta1 is 2.0"),
    ({"training": {"report_to": "my-board"}}, "my-board is not supported"),
    ({"training": {"train_sampling_strategy": "x"}}, "train_sampling_strategy is 'x'; expected one of random"),
    ({"teacher": {"training": {"learning_rate": -1}}}, "learning_rate is -1.0"),
    ({"training": {"optim": "sgd", "optim_args": "fast"}}, "training.optim is 'sgd' and optim_args 'fast': not enough"),
    ({"training": {"metric_for_best_model": "acc"}}, "training.metric_for_best_model is 'acc', which evaluation does"),
    ({"training": {"metric_for_best_model": "eval_acc"}}, "does not give; did you mean 'accuracy'?"),
    ({"training": {"metric_for_best_model": "zz"}}, "does not give; known are loss, accuracy, f1, matthews"),
    ({"teacher": {"training": {"metric_for_best_model": "pearson"}}}, "teacher.training.metric_for_best_model is 'pe"),
    (
        {"data": {"name": "nyt-pairs"}, "objective": {"name": "embedding"},
         "training": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}},
        "metric_for_best_model is 'loss', which evaluation does not give; a similarity has none",
    ),
    ({"overparam": {"ones": -1}}, "ones is -1; it must be 0 or more"),
    ({"overparam": {"ones": 10**6}}, "ones is 1000000; it must be 0 or more, and at most 100"),
    ({"overparam": {"scale": 2.0}}, "ones=1 and scale=2.0 were both given"),
    ({"overparam": {"shapes": {"query": [[2, 3], [2, 2]]}}}, "shapes['query'] gives a 6x4 matrix"),
    ({"overparam": {"shapes": {"query": [[-2, -4], [2, 4]]}}}, "row_factors holds -2"),
    ({"overparam": {"shapes": {"qery": [[2, 4], [2, 4]]}}}, "shapes pattern 'qery' matches no"),
    ({"overparam": {"targets": ["qery"]}}, "did you mean 'query'"),
    ({"overparam": {"targets": []}}, "targets is []; give 'blocks', 'all-linear' or a list"),
    ({"constraint": {"weight": float("inf")}}, "weight is inf; it must be a finite number"),
    ({"constraint": {"layer_map": {0: 9}}, "student": {"start": "copy"}}, "layer_map sends block 0 to 9; the teacher"),
    ({"constraint": {"layer_map": {0: 1}}}, "layer_map is {0: 1}, and a student that is fitted to its teacher follows"),
    ({"overparam": None, "constraint": {"weight": 1}}, "constraint needs overparam"),
    ({"objective": {"options": {"temperature": float("inf")}}}, "temperature is inf"),
    ({"objective": {"options": {"alpha": 2}}}, "alpha is 2.0; it must be from 0"),
    ({"objective": {"name": "hidden", "options": {"pairs": [[0, 99]]}}}, "pairs holds (0, 99)"),
    (
        {"student": {"layers": None, "config": {"num_hidden_layers": 3}, "start": "random"},
         "objective": {"name": "hidden"}},
        "3 student blocks do not divide the teacher's 2; give pairs as a list of (student, teacher) states",
    ),
    (
        {"data": {"name": "digits"}, "teacher": {"model": None, "config": {"model_type": "vit", "image_size": 8}},
         "objective": {"name": "adkd"}},
        "objective.name is 'adkd' and the task of digits is 'image-classification'",
    ),
    (
        {"data": {"name": "digits"}, "teacher": {"model": None, "config": VIT, "finetune": True},
         "student": {"layers": None, "config": {"image_size": 16}}},
        "the student cannot read images of shape [3, 8, 8], as the image processor makes them: Input image size (8*8) "
        "doesn't match model (16*16). Give a model of that size (image_size in its configuration), or",
    ),
    (
        {"data": {"name": "digits"}, "student": {"layers": 1},
         "teacher": {"model": None, "config": VIT | {"num_channels": 1}, "finetune": True}},
        "Expected 1 but got 3. Images are read in three colours, grey ones too; give a model of num_channels 3",
    ),
    ({"objective": {"name": "lgtm", "options": {"held_out": 1000}}}, "held_out is 1000.0, which is 1000 of 42"),
    ({"objective": {"name": "sparse-logits", "options": {"store": "{here}/none"}}}, "holds no teacher's outputs"),
    ({"teacher": {"models": []}}, "teacher.models is empty; give one teacher or more"),
    ({"teacher": {"weights": [1, 2]}}, "teacher.weights is for teacher.models; give these"),
    (
        {"teacher": {"model": None, "models": ["{world}/teacher"] * 2, "weights": [1]}},
        "teacher.weights is [1.0]; give 2 numbers above 0",
    ),
    ({"teacher": {"model": "elsewhere", "models": ["{world}/teacher"]}}, "teacher has models and model or config"),
    (
        {"teacher": {"model": None, "models": ["{world}/teacher"] * 2, "finetune": True}},
        "teacher.finetune is true and teacher.models are taken as they are; fine-tune each in a run of its own",
    ),
    (
        {"teacher": {"model": None, "models": ["{world}/teacher", "{world}/three-classes"]}},
        "three-classes' has a head of 3 outputs",
    ),
    (
        {"teacher": {"model": None, "models": ["{world}/teacher", "{world}/other-words"]}},
        "other-words has another vocabulary than the teacher, whose tokens it would get",
    ),
    (
        {"teacher": {"model": None, "models": ["{world}/teacher"] * 2}, "objective": {"name": "hidden"},
         "constraint": None},
        "the objective hidden reads one teacher from within and there are several",
    ),
    (
        {"teacher": {"model": None, "models": ["{world}/teacher"] * 2}, "constraint": {"weight": 1.0}},
        "constraint pulls the student to one teacher's weights and there are several",
    ),
    ({"student": {"layers": 9}}, "layers is 9; the teacher has 2 blocks"),
    ({"student": {"layers": [1, 1]}}, "layers is [1, 1]; give rising block numbers"),
    ({"student": {"layers": None}}, "student has nothing; give one of layers, model and config"),
    ({"student": {"layers": None, "config": {"num_attention_heads": 3}}}, "not a multiple of the number of attention"),
    ({"student": {"layers": None, "config": {"hidden_size": -8}}}, "no bert can be built from the model's config"),
    ({"student": {"layers": None, "config": {"num_labels": 7}}}, "num_labels follows from the data"),
    ({"student": {"layers": None, "config": {"dtype": "bfloat16"}, "start": "random"}}, "dtype is float32 for all mod"),
    ({"student": {"layers": None, "config": {"vocab_size": 7}}}, "the student knows 7 tokens and the teacher's"),
    ({"student": {"layers": None, "config": {"max_position_embeddings": 2}}}, "the student reads 2 tokens"),
    ({"student": {"layers": None, "config": {"model_type": "nope"}}}, "model_type is 'nope', which transformers"),
    ({"data": {"max_length": 0}}, "max_length is 0; 2 tokens go to the tokenizer's own marks"),
    ({"data": {"train_limit": 0}}, "train_limit is 0"),
    ({"data": {"validation": 0.0}}, "data.validation is 0.0 and the data have no such split"),
    ({"data": {"test": 0.0}}, "data.test is 0.0 and the data have no such split"),
    ({"data": {"validation": 0.6, "test": 0.6}}, "data.validation is 0.6 and data.test 0.6"),
    ({"data": {"validation": float("nan")}}, "validation is nan"),
    ({"data": {"seed": -1}}, "seed is -1; it must be from 0"),
    ({"data": {"name": "amazon-sentiment", "test": 0.3}}, "test is 0.3; amazon-sentiment has its own columns"),
    # data
    ({"data": {"name": ""}}, "'' is no embedded set, file or folder"),
    ({"data": {"name": "photos/"}}, "'photos/' is no embedded set, file or folder"),
    ({"data": {"name": "{world}/none.csv"}}, "none.csv does not exist"),
    ({"data": {"name": "{world}/notes.md"}}, "is no data file that can be read; give one of .csv"),
    ({"data": {"name": "{world}/notes.txt"}}, "has the one column 'text' and so no labels; set data.task to causal-lm"),
    ({"data": {"name": "{world}/semicolons.csv"}}, "has the one column 'text;label'; separate columns by commas"),
    ({"data": {"name": "{world}/empty.csv"}}, "empty.csv cannot be read as csv: it is empty"),
    ({"data": {"name": "{world}/only-header.csv"}}, "only-header.csv has no rows"),
    ({"data": {"name": "{world}/no-header.csv"}}, "is called 'label'; set data.label to one of w0 w0, 0"),
    ({"data": {"name": "{world}/ragged.csv"}}, "ragged.csv cannot be read as csv"),
    ({"data": {"name": "{world}/noise.parquet"}}, "noise.parquet cannot be read as parquet"),
    ({"data": {"name": "{world}/broken.json"}}, "broken.json cannot be read as json"),
    ({"data": {"name": "{world}/cut.jsonl"}}, "cut.jsonl cannot be read as json"),
    ({"data": {"name": "{world}/empty"}}, "has no images; expected one subfolder of them for each class"),
    ({"data": {"name": "{world}/no-images"}}, "has no images"),
    ({"data": {"name": "{world}/images"}}, "cannot be loaded: Can't load image processor"),
    ({"data": {"name": "{world}/images/cat"}}, "has images and no labels; put those of each class into a subfolder"),
    ({"teacher": {"config": {"model_type": "vit"}}}, "is a vit, and transformers has none for classification of texts"),
    ({"teacher": {"config": {"model_type": "bert"}}}, "teacher config is not trained for this task"),
    ({"data": {"name": "{world}/text-gap.jsonl"}}, "column 'text' of"),
    ({"data": {"name": "{world}/no-text.jsonl"}}, "are text (null), label (int64); a task of classification reads"),
    ({"data": {"name": "{world}/number-text.jsonl", "inputs": ["text"]}}, "holds int64; task classification needs one"),
    ({"data": {"name": "{world}/label-gap.jsonl"}}, "is empty in 1 of 60 rows: line 51; fill or remove th"),
    ({"data": {"name": "{world}/nan-label.csv"}}, "column 'label' of"),
    ({"data": {"name": "{world}/list-label.jsonl", "task": "classification"}}, "classes are texts or integers"),
    ({"data": {"name": "{world}/float-label.jsonl", "task": "classification"}}, "set data.task to 'regression'"),
    ({"data": {"name": "{world}/one-class.jsonl"}}, "the one class '1'"),
    ({"data": {"name": "{world}/hidden.parquet"}}, "is empty in 1 of 60 rows: row 60; fill or remove"),
    ({"data": {"name": "{world}/minus-one.jsonl"}}, "one class"),
    ({"data": {"name": "{world}/three.jsonl"}}, "head of 2 outputs (LABEL_0, LABEL_1); the data has 3 classes"),
    ({"data": {"name": "{world}/two-rows.jsonl"}}, "2 rows, 2 different ones, are too few"),
    ({"data": {"name": "{world}/named.jsonl", "task": "regression"}}, "a regression needs one number a row"),
    ({"data": {"name": "{world}/named.jsonl"}, "teacher": {"model": "{world}/reversed"}}, "give both the same order"),
    ({"data": {"name": "{world}/named.jsonl", "label": "text", "inputs": ["label"]}}, "60 of them with one row each"),
    ({"data": {"task": "causal"}}, "data.task is 'causal'; expected one of"),
    ({"data": {"validation": "none.csv"}}, "data.validation is 'none.csv', which does not exist"),
    ({"data": {"inputs": ["txt"]}}, "no column 'txt'; did you mean 'text'"),
    ({"data": {"inputs": ["label"]}}, "'label' is both an input and the label"),
    ({"data": {"label": "lable"}}, "no column 'lable'; did you mean 'label'"),
    ({"data": {"task": "clasification"}}, "task is 'clasification'"),
    ({"data": {"task": "image-classification"}}, "has no images in its columns"),
    ({"data": {"task": "regression"}}, "head of 2 outputs (LABEL_0, LABEL_1); the data is a regression"),
    (
        {"data": {"name": "nyt-pairs"}, "teacher": {"finetune": True}, "objective": {"name": "embedding"}},
        "similarity data has no labels for it; give a trained teacher",
    ),
    # models
    *[({"teacher": {"model": name}}, f"{message}") for name, message in (
        ("", "the model's name is empty"),
        ("{world}/none", "none does not exist"),
        ("{world}/good.jsonl", "is a file; give the folder of a model"),
        ("{world}/empty", "it has no weights. Save the model as safetensors"),
        ("{world}/pickled", "pickled weights are not loaded"),
        ("{world}/adapters", "adapters holds adapters; merge them into their model"),
        ("{world}/custom", "it wants code of its own to be run, which opdf does not do"),
        ("{world}/cut", "model.safetensors is damaged (Error while deserializing"),
        ("{world}/bad-json", "config.json is damaged (Expecting property name"),
        ("{world}/no-config", "cannot be loaded: Unrecognized model"),
        ("{world}/no-tokenizer", "no-tokenizer"),
        ("{world}/nan", "query.weight holds NaN or infinite entries"),
        ("{world}/three-classes", "3 outputs (LABEL_0, LABEL_1, LABEL_2); the data has 2 classes: 0, 1; give"),
        ("{world}/short", "the teacher reads 3 tokens"),
        ("{world}/quantized", "quantized' is quantized (gptq); give the unquantized one"),
    )],
    *[({"student": {"layers": None, "model": name}}, message) for name, message in (
        ("{world}/none", "none does not exist"),
        ("{world}/pickled", "pickled weights are not loaded"),
        ("{world}/custom", "it wants code of its own to be run"),
        ("{world}/nan", "query.weight holds NaN or infinite entries"),
        ("{world}/few-tokens", "the student knows 20 tokens and the teacher's tokenizer has 45"),
        ("{world}/quantized", "is quantized (gptq)"),
        ("{world}/other-words", "has another vocabulary than the teacher"),
    )],
    ({"teacher": {"model": None}}, "give teacher.model for text"),
    # places
    ({"output": ""}, "output is empty; name a folder"),
    ({"output": "{world}/notes.txt"}, "notes.txt is a file; choose another"),
    ({"output": "{world}/notes.txt/out"}, "notes.txt is a file; choose another"),
    ({"output": "{world}/teacher"}, "is not empty and was not written by this command; choose another"),
    ({"output": "{world}/teacher", "overwrite": True}, "was not written by this command"),
    ({"output": "x" * 300}, "cannot be a folder: File name too long"),
    ({"resume": True}, "resume"),
    ({"training": {"output_dir": "{here}/elsewhere"}}, "training.output_dir is set by the option output"),
    ({"teacher": {"training": {"output_dir": "{here}/elsewhere"}}}, "teacher.training.output_dir is set by the option"),
    ({"training": {"resume_from_checkpoint": "{here}/x"}}, "is set by the option resume"),
    ({"training": {"seed": 7}}, "training.seed is set by the option seed"),
    ({"data": {"class_weights": "even"}}, "data.class_weights is 'even'; expected balanced or a mapping"),
    ({"data": {"class_weights": {"good": 2}}}, "data.class_weights has 'good'; the classes are 0, 1"),
    ({"data": {"class_weights": {0: -1}}}, "data.class_weights has -1 for '0'; give a finite number above 0"),
    ({"data": {"class_weights": "balanced", "task": "regression"}}, "is for labels of one class each"),
    (
        {"data": {"class_weights": "balanced"}, "objective": {"name": "hidden"}},
        "data.class_weights is for objective.name logits, and it is 'hidden'; leave it out",
    ),
    (
        {"data": {"class_weights": "balanced"}, "objective": {"options": {"alpha": 1.0}}},
        "data.class_weights is about labels, which objective.options.alpha 1 does not use",
    ),
    (
        {"data": {"class_weights": "balanced"}, "objective": {"options": {"class_weights": [1.0, 2.0]}}},
        "data.class_weights and objective.options.class_weights say the same; give one of them",
    ),
    ({"data": {"augment": True}}, "data.augment is true and the task is classification; it is for images"),
    (
        {"data": {"name": "{world}/images", "augment": True}, "objective": {"name": "dbkd"},
         "teacher": {"model": None, "config": {"model_type": "vit"}}},
        "data.augment is true and objective dbkd asks for all training rows ahead: leave it out",
    ),
    ({"training": {"early_stopping_patience": 3}}, "early_stopping_patience is 3 and eval_strategy is no, so tha"),
    ({"training": {"early_stopping_patience": 0, "eval_strategy": "epoch"}}, "early_stopping_patience is 0; it must"),
    ({"training": {"early_stopping_threshold": 0.1}}, "early_stopping_threshold is 0.1 and nothing stops early; set"),
    (
        {"training": {"early_stopping_patience": 3, "eval_strategy": "epoch", "metric_for_best_model": "f2"}},
        "training.metric_for_best_model is 'f2', which evaluation does not give; did you mean 'f1'?",
    ),
    ({"training": {"push_to_hub": True}}, "training.push_to_hub would publish checkpoints, and opdf publishes the fin"),
    *[({"training": {name: value}}, f"training.{name} would leave the student without its scores") for name, value in (
        ("prediction_loss_only", True), ("eval_do_concat_batches", False), ("batch_eval_metrics", True),
        ("label_names", ["label"]),
    )],
    ({"training": {"bf16_full_eval": True}}, "training.bf16_full_eval would score the student in another precision"),
    ({"teacher": {"training": {"hub_token": "hf_secret"}}}, "teacher.training.hub_token would be readable in config"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), CONFIGURATIONS, ids=lambda v: v[:50] if isinstance(v, str) else "")
def test_configurations(changes: dict[str, Any], message: str, tmp_path: Path, world: Path, capsys: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(placed(merged(GOOD, changes), {"world": world, "here": tmp_path}), sort_keys=False))
    refused(["distill", str(path)], message, tmp_path, world, capsys)


MISSING: list[tuple[str, dict[str, Any], str]] = [
    ("wandb", {"training": {"report_to": "wandb"}}, "training.report_to is 'wandb': WandbCallback requires wandb"),
    ("mlflow", {"teacher": {"training": {"report_to": ["tensorboard", "mlflow"]}}}, "teacher.training.report_to is 'm"),
    ("neptune", {"training": {"report_to": "neptune"}}, "training.report_to is 'neptune': NeptuneCallback requires"),
    ("flytekit", {"training": {"report_to": "flyte"}}, "training.report_to is 'flyte': FlyteCallback requires"),
    *[(package, {"training": {"optim": name}}, f"training.optim is '{name}': {message}") for package, name, message in (
        ("galore_torch", "galore_adamw", "You need to install `galore_torch`"),
        ("bitsandbytes", "adamw_bnb_8bit", "You need to install `bitsandbytes`"),
        ("lomo_optim", "lomo", "You need to install `lomo_optim`"),
        ("torchao", "adamw_torch_8bit", "You need to have `torchao"),
        ("schedulefree", "schedule_free_adamw", "You need to install `schedulefree`"),
        ("grokadamw", "grokadamw", "Please install grokadamw"),
        ("torch_npu", "adamw_torch_npu_fused", "Trainer failed to import FusedAdamW from torch_npu"),
    )],
    (
        "timm",
        {"data": {"name": "digits"}, "teacher": {"model": None, "config": {"model_type": "timm_wrapper"}}},
        "TimmWrapperForImageClassification requires the timm library",
    ),
]  # fmt: skip


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning", "error::FutureWarning")
@pytest.mark.parametrize(("package", "changes", "message"), MISSING, ids=[package for package, *_ in MISSING])
def test_packages_that_are_not_installed(
    package: str, changes: dict[str, Any], message: str, tmp_path: Path, world: Path, capsys: Any
) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    changes = merged({"data": {"name": "{world}/none.csv"}}, changes)  # the options are looked at before the data
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(placed(merged(GOOD, changes), {"world": world, "here": tmp_path}), sort_keys=False))
    refused(["distill", str(path)], message, tmp_path, world, capsys)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no options"),
        (b"- a\n", "holds no options"),
        (b"hello", "holds no options"),
        (b"\0", "not valid YAML"),
        (b"output: \xff\xfe\n", "not valid YAML"),
        (b"a: [1\n", "not valid YAML, line 2, column 1"),
        (b"output: !!python/object/apply:os.mkdir [pwned]\n", "line 1, column 9: could not determine a constructor"),
        (b"output: !!python/name:os.system\n", "could not determine a constructor"),
        (LAUGHS.encode(), "line 2, column 8: aliases (*name) are not read"),
        (b"training:\n  x: &x\n    y: *x\n", "aliases (*name) are not read"),
        (b"data: " + b"[" * 5000, "more than 50 mappings and lists inside each other"),
        (b"data: " + b"{a: " * 5000, "more than 50 mappings and lists inside each other"),
        (b"seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' is given twice"),
        (b"data: {class_weights: {1: 2, true: 3}}", "column 30: key 'true' is given twice, first as '1'; put quotes"),
        (b"seed: 1\n---\nseed: 2\n", "line 2, column 1: but found another document"),
        (b"? [a]\n: 2\n", "not valid YAML"),
        (b"output: 2020-13-45\n", "holds a value that YAML cannot read"),
        (b"base: [a]\n", "base is ['a']; expected the name of a file"),
        (b"base: config.yaml\n", "leads back to itself"),
        (b"base: none.yaml\n", "none.yaml does not exist"),
        (b"teacher: {config: {class_path: antigravity, init_args: {}}, model: null}\noutput: 3\n", "output is 3"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_hostile_files(text: bytes, message: str, tmp_path: Path, world: Path, capsys: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    refused(["distill", str(path)], message, tmp_path, world, capsys)
    assert "antigravity" not in sys.modules


COMMANDS = [
    ("eval", "opdf eval needs MODEL as its first argument"),
    ("eval {world}/teacher", "teacher comes without data; say what to score it on with --data.name"),
    ("eval {world}/notes.md", "notes.md is a file; give an output folder of opdf distill, or a model with --data.name"),
    ("eval {world}/teacher --data.max_length 64", "say what to score it on with --data.name"),
    ('eval {world}/teacher --data {"max_length":64}', "say what to score it on with --data.name"),
    ("export {world}/teacher --data.max_length 64 --format torch", "name what to score it on in data.name"),
    ("eval {world}/none", "{world}/none does not exist; give an output folder of opdf distill, or a model with"),
    (
        "eval {world}/techer --data.name {world}/good.jsonl",
        "{world}/techer does not exist; did you mean {world}/teacher?",
    ),
    ("plan {world}/techer", "{world}/techer does not exist; did you mean {world}/teacher?"),
    ("distill {here}/config.yaml --seed x", "error: --seed is 'x'; expected an integer"),
    ('distill {here}/config.yaml --overparam {"ones":1,"ones":3}', "error: key 'ones' is given twice, as 1 and as 3"),
    ("distill {here}/config.yaml --overparam.ones x", "error: --overparam.ones is 'x'; expected an integer or null"),
    ("distill {here}/config.yaml --data.lable x", "error: --data has no option 'lable'; did you mean 'label'?"),
    (
        "distill {here}/config.yaml --data.name {world}/images --teacher.model minilm",
        "teacher.model is minilm, which reads texts, and the data are images; name a model of images, or",
    ),
    ("eval {world}/teacher --bach 3", "no option 'bach'; did you mean 'batch'"),
    ("eval {world}/teacher --batch x", "batch is 'x'; expected an integer"),
    ("eval {world}/teacher --batch 0", "batch is 0; it must be at least 1"),
    ("eval {world}/teacher --data.name {world}/three.jsonl", "has a head of 2 outputs"),
    ("eval {world}/custom --data.name {world}/good.jsonl", "it wants code of its own"),
    ("eval {world}/pickled --data.name {world}/good.jsonl", "pickled weights are not loaded"),
    ("eval {world}/quantized --data.name {world}/good.jsonl", "is quantized (gptq); give the unquantized one"),
    ("export {world}/quantized --format torch", "is quantized (gptq); give the unquantized one"),
    ("eval {world}/empty --data.name {world}/good.jsonl", "holds no run and no model"),
    ("eval {world}/short --data.name {world}/good.jsonl", "the model reads 3 tokens"),
    ("plan {world}/none", "does not exist"),
    ("plan {world}/custom", "it wants code of its own"),
    ("plan {world}/bad-json", "config.json is damaged (Expecting property name"),
    ("plan {world}/teacher --layers 0", "layers is 0; it must be at least 1"),
    ("plan {world}/teacher --tokens -1", "tokens is -1; it must be at least 1"),
    ("plan {world}/teacher --overparam mpo", "overparam is 'mpo'; expected a mapping"),
    ("plan {world}/teacher --json maybe", "json is 'maybe'; expected true or false"),
    ("demo --task sound", "task is 'sound'; expected one of text, images"),
    ("demo --train_limit 0 --output {here}/demo", "train_limit is 0; it must be at least 1"),
    ("demo --seed -1 --output {here}/demo", "seed is -1"),
    ("demo --data digits --output {here}/demo", "data digits is for image-classification"),
    ("cache-teacher {here}/config.yaml", "cache-teacher needs objective.name sparse-logits"),
    ("cache-teacher {here}/store.yaml --data.name nyt-pairs", "and the task of nyt-pairs is 'similarity'"),
    ("cache-teacher {here}/store.yaml --data.name none.csv", "none.csv does not exist"),
    ("cache-teacher {here}/store.yaml --teacher.model {world}/three-classes", "has a head of 3 outputs"),
    ("cache-teacher {here}/store.yaml --objective.options.noise true", "the objective is for image-classification"),
    ("cache-teacher {here}/store.yaml --objective.options.store {world}/notes.txt", "is a file; choose another"),
    ("cache-teacher {here}/store.yaml --objective.options.store {world}", "which is not ours"),
]


@pytest.mark.parametrize(("command", "message"), COMMANDS, ids=lambda v: v[:40])
def test_commands(command: str, message: str, tmp_path: Path, world: Path, capsys: Any) -> None:
    places = {"world": world, "here": tmp_path}
    store = {"objective": {"name": "sparse-logits", "options": {"store": "{here}/store"}}}
    for name, changes in (("config.yaml", {}), ("store.yaml", store)):
        (tmp_path / name).write_text(yaml.safe_dump(placed(merged(GOOD, changes), places)))
    refused([placed(word, places) for word in command.split()], placed(message, places), tmp_path, world, capsys)


@pytest.mark.parametrize("command", [
    "distill {here}/config.yaml --output {there}/out", "demo --output {there}/out",
    "export {world}/teacher --format torch --output {there}/out",
    "predict {world}/teacher {world}/good.jsonl --output {there}/out.csv",
    "cache-teacher {here}/store.yaml --objective.options.store {there}/store", "sweep {here}/study.yaml",
])  # fmt: skip
def test_places_that_cannot_be_written(command: str, tmp_path: Path, world: Path, capsys: Any) -> None:
    there = read_only_folder()
    if there is None:
        pytest.skip("no read-only file system is mounted")
    places = {"world": world, "here": tmp_path, "there": there}
    store = {"objective": {"name": "sparse-logits"}}
    study = {"common": {key: GOOD[key] for key in ("data", "teacher", "student")}, "tasks": {"a": {}}, "seeds": [0],
             "variants": {"KD": {}}, "learning_rates": [1e-3], "output": "{there}/out"}  # fmt: skip
    study["common"]["training"] = {"max_steps": 1, "use_cpu": True}
    for name, content in (("config", GOOD), ("store", merged(GOOD, store)), ("study", study)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(placed(content, places)))
    words = [placed(word, places) for word in command.split()]
    refused(words, f"{there} is read-only for you; choose another", tmp_path, world, capsys)


HUB_COMMANDS = [
    "distill {here}/config.yaml --data.name nobody/nothing",
    "distill {here}/config.yaml --teacher.model nobody/nothing",
    "distill {here}/config.yaml --student.layers null --student.model nobody/nothing",
    "plan nobody/nothing",
    "eval nobody/nothing --data.name {world}/good.jsonl",
    "export nobody/nothing --format torch --output {here}/export",
]


@pytest.mark.parametrize("command", HUB_COMMANDS)
def test_a_hub_out_of_reach(
    command: str, tmp_path: Path, world: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no server listens, the hub's own client would try for half a minute."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    places = {"world": world, "here": tmp_path}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(placed(GOOD, places)))
    start = time.monotonic()
    refused([placed(word, places) for word in command.split()], "nobody/nothing is not in the hub's cache, and "
            "http://127.0.0.1:9 cannot be reached", tmp_path, world, capsys)  # fmt: skip
    assert time.monotonic() - start < 5


def test_a_run_with_a_foreign_configuration(tmp_path: Path, world: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(world / "teacher", run / "student")
    for text, message in (
        ("data: 1\n", "data is 1; expected a mapping"),
        ("data: {name: 2020-01-01}\n", "name is datetime.date"),
        ("data: {name: none.csv}\n", "none.csv does not exist"),
    ):
        (run / "config.yaml").write_text(text)
        refused(["eval", str(run)], message, tmp_path, world, capsys)


def test_links_are_not_followed_into_other_folders(tmp_path: Path, world: Path, capsys: Any) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "config.yaml").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(placed(GOOD, {"world": world, "here": tmp_path})))
    refused(["distill", str(path), "--overwrite"], "is a link and is not overwritten", tmp_path, world, capsys)
    assert (tmp_path / "real" / "config.yaml").read_text() == "mine"
