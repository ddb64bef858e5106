"""A distillation from Python: what it leaves, every method, every kind of task and student."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertModel,
    ViTImageProcessor,
)

from jobs import DIGITS, SIZES, TEXTS, VIT, WORDS, bert, digits, texts
from opdf.distill import keep_layers, outputs
from opdf.job import (
    DataConfig,
    DistillConfig,
    OverParamConfig,
    StudentConfig,
    TeacherConfig,
    UserError,
    cache_teacher,
    evaluate,
    preview,
    run,
)
from opdf.job.options import fill, merged
from opdf.job.prepared import prepare_data


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a run on digits, and what it returned."""
    folder = tmp_path_factory.mktemp("digits") / "out"
    return folder, run(digits(folder))


@pytest.mark.slow
def test_a_script_written_by_hand(tmp_path: Path, capsys: Any) -> None:
    short = {"max_steps": 2, "use_cpu": True}
    config = DistillConfig(
        data=DataConfig("digits", train_limit=64),
        teacher=TeacherConfig(model=None, config=VIT, finetune=True, training=short),
        student=StudentConfig(layers=2),
        overparam=OverParamConfig(ones=1),
        training=short,
        output=tmp_path / "out",  # type: ignore[arg-type]  # a Path will do
    )
    metrics = run(config)
    assert 0 <= metrics["student"]["test"]["accuracy"] <= 1
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert not (tmp_path / "out" / "checkpoints").exists()  # nothing was to be saved on the way
    printed = capsys.readouterr()
    assert "teacher       a vit built from a configuration" in printed.out
    assert all(line.partition(":")[0] in ("fine-tuning the teacher", "distilling") for line in printed.err.splitlines())
    with pytest.raises(FileExistsError, match="is not empty"):
        run(config)
    with pytest.raises(TypeError, match="config is a dict; give a DistillConfig"):
        run({"output": "out"})  # type: ignore[arg-type]


def test_a_run_leaves_what_a_user_needs(done: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = done
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert metrics["train_params"] > metrics["inference_params"]
    assert metrics["student"]["test"]["examples"] == 360
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["overparam"]["lr_scaling"] == "match-dense"
    assert written["objective"]["options"] == {
        "temperature": 2.0,
        "alpha": 0.9,
        "divergence": "forward",
        "class_weights": None,
    }
    assert written["training"] | {"per_device_eval_batch_size": 128, "save_total_limit": 2} == written["training"]
    assert all(json.loads(line) for line in (folder / "train.log").read_text().splitlines())
    assert {p.name for p in folder.iterdir()} == {
        ".lock", "begun.json", "checkpoints", "config.yaml", "metrics.json", "student", "teacher", "teacher.log",
        "train.log",
    }  # fmt: skip
    # The student loads with plain transformers: nothing in its files asks for opdf.
    assert all("opdf" not in file.read_text() for file in (folder / "student").glob("*.json"))
    assert AutoModelForImageClassification.from_pretrained(folder / "student").config.num_hidden_layers == 2


def test_a_saved_student_has_the_scores_of_its_run(done: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = done
    data = DataConfig("digits", train_limit=64)
    found = evaluate(str(folder / "student"), data, probe=True)
    probe = found.pop("linear probe")
    assert found == metrics["student"]
    assert evaluate(folder) == found
    # An untrained ViT's features tell digits apart far better than chance; its own head does not yet.
    assert 0.2 < probe["top1"] < probe["top5"] <= 1


def test_no_model_gets_more_rows_at_a_time_than_training_says(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(module: torch.nn.Module, given: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):  # of the patches
            seen.append(len(given[0]))

    training = {"max_steps": 20, "per_device_eval_batch_size": 40}
    changes = {"constraint": None, "overparam": None, "training": training}
    with register_module_forward_pre_hook(look):
        run(digits(tmp_path / "out", **changes))
    assert max(seen) == 40  # of scoring, and of asking the teacher ahead: 64 rows


@pytest.mark.slow
def test_dictionaries_and_numbers_in_text_are_taken_as_in_yaml(tmp_path: Path) -> None:
    config = digits(tmp_path / "out")
    config.data = {"name": "digits", "train_limit": "64"}  # type: ignore[assignment]
    config.overparam = {"onse": 1}  # type: ignore[assignment]
    with pytest.raises(UserError, match="overparam has no option 'onse'; did you mean 'ones'"):
        run(config)
    config.overparam, config.constraint, config.student = {"ones": "1"}, None, {"layers": "2"}  # type: ignore[assignment]
    assert run(config)["steps"] == 4
    config.seed = "x"  # type: ignore[assignment]
    with pytest.raises(UserError, match="seed is 'x'; expected an integer"):
        run(config)


@pytest.mark.slow
def test_checkpoints_are_chosen_by_a_metric_of_the_task(tmp_path: Path) -> None:
    choose = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
              "save_steps": 2, "max_steps": 4}  # fmt: skip
    teacher = {"training": choose | {"metric_for_best_model": "matthews"}}
    run(digits(tmp_path, teacher=teacher, training=choose | {"metric_for_best_model": "eval_f1"}))
    for log in ("teacher.log", "train.log"):
        entries = [json.loads(line) for line in (tmp_path / log).read_text().splitlines()]
        assert any({"eval_loss", "eval_f1", "eval_matthews"} <= entry.keys() for entry in entries)


@pytest.mark.slow
def test_training_stops_when_a_metric_gets_no_better(tmp_path: Path) -> None:
    """At a rate of nothing no evaluation is better than the first; the teacher does the same with its loss."""
    stop = {"early_stopping_patience": 2, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 20,
            "learning_rate": 1e-12, "save_strategy": "no"}  # fmt: skip
    config = digits(tmp_path / "out", training=stop | {"metric_for_best_model": "f1"}, teacher={"training": stop})
    assert run(config)["steps"] == 3
    entries = [json.loads(line) for line in (tmp_path / "out" / "teacher.log").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert len(losses) == 2 + 1 + losses.index(min(losses))

    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.3,
            "metric_for_best_model": "accuracy"}  # fmt: skip
    found = run(digits(tmp_path / "best", training=stop | best))
    entries = [json.loads(line) for line in (tmp_path / "best" / "train.log").read_text().splitlines()]
    scores = [entry["eval_accuracy"] for entry in entries if "eval_accuracy" in entry]
    assert len(scores) == 2 + 1 + scores.index(max(scores))
    assert found["student"]["validation"]["accuracy"] == pytest.approx(max(scores))


@pytest.mark.slow
def test_images_are_others_in_every_epoch_and_a_resumed_run_sees_the_same(tmp_path: Path) -> None:
    """Two steps an epoch; stopped in the middle of the second one."""
    steady = {"lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1, "save_steps": 3}
    change: dict[str, Any] = {"data": {"train_limit": 16, "augment": True}, "objective": {"name": "hidden"}}

    def job(name: str, steps: int, **options: Any) -> DistillConfig:
        return digits(tmp_path / name, training=steady | {"max_steps": steps}, **merged(change, options))

    def losses(name: str) -> list[float]:
        entries = [json.loads(line) for line in (tmp_path / name / "train.log").read_text().splitlines()]
        return [entry["loss"] for entry in entries if "loss" in entry]

    assert "augment" in dict(preview(job("whole", 6)).lines)
    run(job("whole", 6))
    run(job("parts", 3))
    run(job("parts", 6, resume=True))
    assert losses("parts") == losses("whole")
    weights = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]
    run(job("plain", 6, data={"augment": False}))
    assert losses("plain")[0] != losses("whole")[0]
    teachers = [(tmp_path / name / "teacher" / "model.safetensors").read_bytes() for name in ("plain", "whole")]
    assert teachers[0] != teachers[1]


@pytest.mark.parametrize("form", ["balanced", pytest.param("mapping", marks=pytest.mark.slow)])
def test_rare_classes_count_more_where_that_is_asked(form: str, tmp_path: Path) -> None:
    """The loss of a first step over all training rows, by scikit-learn's weights and its logarithmic loss."""
    rows = [{"text": text, "label": "no" if k % 6 else "yes"} for k, text in enumerate(TEXTS)]
    (tmp_path / "rare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = bert(tmp_path / "teacher", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.no_grad():
        teacher.classifier.bias.copy_(torch.tensor([1.0, -1.0]))
    teacher.save_pretrained(tmp_path / "teacher")
    prepared = prepare_data(DataConfig(str(tmp_path / "rare.jsonl")), TeacherConfig(model=str(tmp_path / "teacher")))
    seen = np.array(prepared.raw["train"]["label"])
    weights = compute_class_weight("balanced", classes=np.arange(2), y=seen)
    given = {"balanced": "balanced", "mapping": dict(zip(("no", "yes"), weights, strict=True))}[form]
    config = text_job(
        tmp_path / "out", tmp_path, overparam=None, objective={"options": {"alpha": 0.0}}, student={"layers": [1]},
        data={"name": str(tmp_path / "rare.jsonl"), "class_weights": given},
        training={"max_steps": 1, "per_device_train_batch_size": len(seen)},
    )  # fmt: skip
    assert dict(preview(config).lines)["weights"] == f"no {weights[0]:.3g}, yes {weights[1]:.3g}"
    run(config)
    entry = json.loads((tmp_path / "out" / "train.log").read_text().splitlines()[0])
    batch = prepared.collator([prepared.data["train"][k] for k in range(len(seen))])
    chances = keep_layers(teacher.eval(), [1])(**batch).logits.softmax(-1).detach().numpy()
    each = weights[seen]
    expected = log_loss(seen, chances, sample_weight=each, normalize=False) / len(seen)
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    assert expected > 1.2 * log_loss(seen, chances)


@pytest.mark.slow
def test_a_student_by_configuration(tmp_path: Path) -> None:
    student = {"layers": None, "config": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}}
    metrics = run(digits(tmp_path, student=student, objective={"name": "hidden"}, constraint=None))
    assert metrics["inference_params"] < 4000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of texts and data for it."""
    folder = tmp_path_factory.mktemp("texts")
    bert(folder / "teacher")
    bert(folder / "scorer", num_labels=1)
    made = bert(folder / "embedder")
    BertModel(made.config).save_pretrained(folder / "embedder")
    texts(folder / "classes.jsonl")
    texts(folder / "scores.jsonl", [k / 7 for k in range(60)])
    pairs = [{"first": a, "second": b, "label": k % 3 / 2} for k, (a, b) in enumerate(zip(TEXTS, TEXTS[7:]))]  # noqa: B905
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder


def text_job(folder: Path, world: Path, **changes: Any) -> DistillConfig:
    config = {
        "data": {"name": str(world / "classes.jsonl")}, "teacher": {"model": str(world / "teacher")},
        "student": {"layers": 1}, "overparam": {"ones": 1}, "output": str(folder),
        "training": {"max_steps": 2, "use_cpu": True, "per_device_train_batch_size": 8, "logging_steps": 1},
    }  # fmt: skip
    made: DistillConfig = fill(DistillConfig, merged(config, changes), "config")
    return made


@pytest.mark.parametrize("kind", ["words", pytest.param("images", marks=pytest.mark.slow)])
def test_a_teacher_that_is_built_needs_no_weights_beside_its_processor(kind: str, tmp_path: Path) -> None:
    """The folder is read for the tokenizer or the image processor, and once more for what a resumed run compares."""
    folder, short = tmp_path / "processor", {"training": {"max_steps": 1, "use_cpu": True}}
    if kind == "words":
        bert(folder)
        (folder / "model.safetensors").unlink()
        config = {"model_type": "bert", "vocab_size": len(WORDS), **SIZES}
        data: dict[str, Any] = {"name": str(texts(tmp_path / "texts.jsonl"))}
    else:
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
        config, data = VIT, {"name": "digits", "train_limit": 64}
    teacher = {"model": str(folder), "config": config, "finetune": True, **short}
    given = {"data": data, "teacher": teacher, "student": {"layers": 1, "start": "copy"}, **short}
    metrics = run(fill(DistillConfig, given | {"output": str(tmp_path / "out")}, "config"))
    assert metrics["steps"] == 1


@pytest.mark.parametrize("method", ["hidden", "theseus", "lgtm", "dbkd", "adkd", "sparse-logits"])
def test_every_method(method: str, tmp_path: Path, world: Path) -> None:
    metrics = run(text_job(tmp_path, world, objective={"name": method}))
    assert metrics["train_params"] > metrics["inference_params"]
    assert (tmp_path / "trained-teacher").is_dir() == (method == "lgtm")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.config.num_hidden_layers == 1


@pytest.mark.parametrize("over", [{"overparam": None}, {"overparam": {"ones": 0}}, {"constraint": {"weight": 0.5}}])
def test_every_variant(over: dict[str, Any], tmp_path: Path, world: Path) -> None:
    metrics = run(text_job(tmp_path, world, **over))
    assert (metrics["train_params"] > metrics["inference_params"]) == (over != {"overparam": None})
    assert ("constraint_loss" in (tmp_path / "train.log").read_text()) == ("constraint" in over)


def test_a_regression(tmp_path: Path, world: Path) -> None:
    data = {"name": str(world / "scores.jsonl")}
    metrics = run(text_job(tmp_path, world, data=data, teacher={"model": str(world / "scorer")}))
    assert metrics["student"]["test"].keys() == {"pearson", "spearman", "pearson_spearman", "examples"}


def test_embeddings_of_pairs(tmp_path: Path, world: Path) -> None:
    changes = {
        "data": {"name": str(world / "pairs.jsonl"), "task": "similarity"},
        "teacher": {"model": str(world / "embedder")}, "objective": {"name": "embedding"},
    }  # fmt: skip
    metrics = run(text_job(tmp_path / "out", world, **changes))
    assert metrics["student"]["test"].keys() == {"spearman", "examples"}
    assert evaluate(str(tmp_path / "out" / "student"), DataConfig(**changes["data"])) == metrics["student"]
    with pytest.raises(UserError, match="For this task there are embedding"):
        run(text_job(tmp_path / "other", world, **changes | {"objective": {"name": "logits"}}))


def test_narrower_embeddings(tmp_path: Path, world: Path) -> None:
    data = {"name": str(world / "pairs.jsonl"), "task": "similarity"}
    changes = {"data": data, "teacher": {"model": str(world / "embedder")}, "objective": {"name": "embedding"},
               "student": {"layers": None, "config": {"hidden_size": 6}}, "constraint": {"weight": 0.1},
               "training": {"max_steps": 14, "save_strategy": "steps", "save_steps": 7}}  # fmt: skip
    config = text_job(tmp_path / "out", world, **changes)
    metrics = run(config)
    student = AutoModel.from_pretrained(tmp_path / "out" / "student")
    assert student.config.hidden_size == 6
    assert evaluate(str(tmp_path / "out" / "student"), DataConfig(**data)) == metrics["student"]
    weights = (tmp_path / "out" / "student" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-14")  # as if it had been killed before the last step
    shutil.rmtree(tmp_path / "out" / "student")
    (tmp_path / "out" / "metrics.json").unlink()
    run(replace(config, resume=True))
    assert (tmp_path / "out" / "student" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ("texts", 1e-6),
        *(
            pytest.param(*some, marks=pytest.mark.slow)
            for some in (("embeddings", 1e-6), ("images", 1e-6), ("half precision", 1e-3))
        ),
    ],
)
def test_a_teacher_that_would_answer_again_answers_ahead(
    kind: str, tolerance: float, tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three passes and more: the student is the one that learns from answers in every step; a step is cheaper."""
    training = {"max_steps": 28, "save_strategy": "no", "optim": "sgd", "learning_rate": 0.1, "bf16": "half" in kind}
    pairs = {"data": {"name": str(world / "pairs.jsonl"), "task": "similarity"},
             "teacher": {"model": str(world / "embedder")}, "objective": {"name": "embedding"}}  # fmt: skip

    def config(folder: str) -> DistillConfig:
        if kind in ("images", "half precision"):
            return digits(tmp_path / folder, overparam=None, constraint=None, training=training)
        changes = pairs if kind == "embeddings" else {}
        return text_job(tmp_path / folder, world, overparam=None, training=training, **changes)

    weights, lines, costs = [], [], []
    for name, passes in (("ahead", outputs.WORTH_ASKING_AHEAD), ("live", 9.0)):
        monkeypatch.setattr(outputs, "WORTH_ASKING_AHEAD", passes)
        shown = preview(config(name))
        run(config(name))
        assert len(list((tmp_path / name).glob("teacher_*.safetensors"))) == (name == "ahead")
        student = load_file(tmp_path / name / "student" / "model.safetensors")
        weights.append(torch.cat([value.flatten() for value in student.values()]))
        lines.append(dict(shown.lines)["objective"])
        assert shown.cost is not None
        costs.append(shown.cost.plain)
    assert (weights[0] - weights[1]).norm() < tolerance * weights[1].norm()
    assert lines[0] == f"{lines[1]}; the teacher is asked before the training, not in its steps"
    assert costs[0] < 0.8 * costs[1]


def test_a_student_can_be_blocks_of_another_model(tmp_path: Path, world: Path) -> None:
    other = bert(tmp_path / "other")
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.fill_(3.0)
    other.save_pretrained(tmp_path / "other")
    student = {"model": str(tmp_path / "other"), "layers": [1]}
    training = {"learning_rate": 1e-9}
    run(text_job(tmp_path / "out", world, student=student, training=training))
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student")
    assert found.config.num_hidden_layers == 1
    assert found.bert.embeddings.word_embeddings.weight.min() > 2.9


def test_students_learn_from_a_stored_teacher(tmp_path: Path) -> None:
    options = {"store": str(tmp_path / "store"), "top_k": 4, "noise": True, "epochs": 2}
    objective = {"name": "sparse-logits", "options": options}
    config = digits(tmp_path / "out", data={"train_limit": 48}, objective=objective)
    with pytest.raises(FileNotFoundError, match="write them with opdf cache-teacher"):
        run(config)
    assert not (tmp_path / "out").exists()
    store = cache_teacher(config)
    assert (store.info.rows, store.info.epochs) == (48, 2)
    run(config)
    assert not (tmp_path / "out" / "teacher").exists()  # it is the one beside its outputs
    with pytest.raises(ValueError, match="has data"):
        run(digits(tmp_path / "out", data={"train_limit": 48, "seed": 3}, objective=objective, overwrite=True))


@pytest.mark.slow
def test_a_stored_teacher_is_the_one_that_is_asked_for(tmp_path: Path, world: Path) -> None:
    """The one beside its outputs was taken, whatever the configuration said of the teacher."""
    shutil.copytree(world / "teacher", tmp_path / "teacher")

    def job(steps: int = 3, name: str = "teacher", **teacher: Any) -> DistillConfig:
        training = {"max_steps": steps, "learning_rate": 1e-3, "use_cpu": True}
        made = {"model": str(tmp_path / name), "finetune": True, "training": training} | teacher
        objective = {"name": "sparse-logits", "options": {"store": str(tmp_path / "store")}}
        return text_job(tmp_path / "out", world, teacher=made, objective=objective, overwrite=True)

    cache_teacher(job())
    (tmp_path / "teacher").rename(tmp_path / "moved")
    run(job(name="moved"))
    for changed, message in (
        (job(name="moved", steps=4), "teacher.training.max_steps was 3 and is 4"),
        (job(name="moved", finetune=False), "teacher.finetune was True and is False"),
        (job(name="moved", model="minilm"), "teacher.model was .* and is 'minilm'"),
    ):
        for command in (run, cache_teacher):
            with pytest.raises(UserError, match=f"store was made otherwise: {message}. Give what it was made with"):
                command(changed)
    edited = tmp_path / "moved" / "config.json"
    edited.write_text(edited.read_text() + "\n")
    with pytest.raises(UserError, match=r"store was made otherwise: teacher\.model is another"):
        run(job(name="moved"))


@pytest.mark.slow
def test_decisions_are_counted_once_for_a_run(tmp_path: Path) -> None:
    config = digits(tmp_path, data={"train_limit": 16}, objective={"name": "dbkd"}, constraint=None)
    run(config)
    (kept,), metrics = tmp_path.glob("decisions-*.safetensors"), tmp_path / "metrics.json"
    written, content = kept.stat().st_mtime_ns, kept.read_bytes()
    config.resume = True
    metrics.unlink()  # as if the run had been stopped before the end
    run(config)
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(content[:99])
    metrics.unlink()
    run(config)
    assert kept.read_bytes() == content


def test_a_missing_field_of_the_teacher_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="teacher has neither model nor config; give one"):
        run(digits(tmp_path / "out", teacher={"config": None}))
    assert "config" in DIGITS["teacher"]
