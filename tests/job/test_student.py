"""Students that start from their teachers in a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from families import batch, build
from jobs import digits
from opdf.data import Task
from opdf.distill import find_report, keep_layers
from opdf.distill.shrink.families import family_of
from opdf.job import DistillConfig, StudentConfig, UserError, preview, run
from opdf.job.job import Job
from opdf.job.prepared import prepare_data
from opdf.job.run import student_trainer
from opdf.job.student import build_student, calibration, plan_start, started_student
from opdf.job.teacher import ready_teacher

NARROW = {"layers": None, "config": {"hidden_size": 8, "intermediate_size": 16}}
TAUGHT: dict[str, Any] = {
    "data": {"train_limit": 600}, "teacher": {"training": {"max_steps": 120, "learning_rate": 5e-3}},
    "training": {"max_steps": 2, "logging_steps": 1, "save_strategy": "no"},
}  # fmt: skip


def shapes_of(model: Any) -> dict[str, Any]:
    return {name: tuple(values.shape) for name, values in model.state_dict().items()}


def job(folder: Path, **changes: Any) -> DistillConfig:
    return digits(folder, **TAUGHT | {"student": NARROW} | changes)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Data and a teacher that knows some digits."""
    config = job(tmp_path_factory.mktemp("teacher"))
    made = Job(config)
    prepared = prepare_data(config.data, config.teacher)
    made.folder.mkdir(exist_ok=True)
    return prepared, ready_teacher(made, prepared)


@pytest.mark.slow
def test_a_narrower_student_starts_from_its_teacher_by_default(tmp_path: Path, capsys: Any) -> None:
    started = run(job(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "starts from the teacher, fitted on up to 512 training examples (hidden_size 8, " in re.sub(
        " *\n +", " ", printed
    )
    logged = json.loads((tmp_path / "out" / "train.log").read_text().splitlines()[0])
    for block in range(4):
        kept = logged["kept"][f"layers.{block}"]
        shown = " | ".join(f"{100 * kept[part]:.1f} %" for part in ("attention", "feed-forward"))
        assert f"| layers.{block} | {block} | {shown} " in re.sub(" +", " ", printed)
    assert started["student before training"]["test"]["accuracy"] > 0.25  # digits: chance is 0.1
    student = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "student")
    assert student.config.hidden_size == 8
    card = (tmp_path / "out" / "student" / "README.md").read_text()
    assert f"| student before training | {started['student before training']['validation']['accuracy']:.4f} |" in card


@pytest.mark.slow
def test_a_student_that_training_made_worse_is_told_of(tmp_path: Path, capsys: Any) -> None:
    training = TAUGHT["training"] | {"learning_rate": 0.5, "warmup_steps": 0}
    metrics = run(job(tmp_path / "out", training=training, constraint=None, overparam=None))
    before, after = (metrics[part]["validation"]["accuracy"] for part in ("student before training", "student"))
    said = f"note: training took the student's accuracy on validation from {before:.4f} to {after:.4f}; lower training."
    assert after < before
    assert said in capsys.readouterr().err


def test_the_constraint_is_zero_at_the_start(tmp_path: Path, taught: Any) -> None:
    """Its partner is the teacher in the student's coordinates; the teacher's own weights would be far from it."""
    prepared, teacher = taught
    rate = TAUGHT["training"] | {"learning_rate": 1e-12, "max_steps": 1, "warmup_steps": 0}
    trainer = student_trainer(Job(job(tmp_path, training=rate)), prepared, teacher, "")
    trainer.train()
    first = next(e["constraint_loss"] for e in trainer.state.log_history if "constraint_loss" in e)
    assert first == pytest.approx(0, abs=1e-6)


def test_blocks_and_sizes_go_together(tmp_path: Path, taught: Any) -> None:
    prepared, teacher = taught
    made = Job(job(tmp_path, student={"layers": 2, "config": {"hidden_size": 8}}))
    student = student_trainer(made, prepared, teacher, "").model
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 8)
    random = job(tmp_path / "random", student={"layers": 2, "config": {"hidden_size": 8}, "start": "random"})
    assert "built from its configuration, untrained" in dict(preview(random).lines)["student"]
    untrained = student_trainer(Job(random), prepared, teacher, "").model
    assert shapes_of(untrained) == shapes_of(student)
    assert find_report(untrained) is None


def test_blocks_are_fitted_unless_they_are_to_be_copied(tmp_path: Path, taught: Any) -> None:
    prepared, teacher = taught

    def made(**student: Any) -> Any:
        options = Job(job(tmp_path, student={"config": None} | student)).config.student
        start = plan_start(options, teacher, prepared)
        return (
            started_student(options, start, teacher, prepared) if start.sizes else keep_layers(teacher, options.layers)
        )

    copied = keep_layers(teacher, 2)
    for student in ({"layers": 2, "start": "copy"}, {"layers": [1, 3]}):
        assert all(torch.equal(a, b) for a, b in zip(made(**student).parameters(), copied.parameters(), strict=True))
    fitted, same = made(layers=2), made(layers=2, start="teacher")
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), same.parameters(), strict=True))
    with torch.no_grad():
        rows = prepared.collator([prepared.data["validation"][k] for k in range(64)])
        wanted = teacher.eval()(**rows).logits
        missed = [float((model.eval()(**rows).logits - wanted).norm()) for model in (copied, fitted)]
    assert missed[1] < 0.7 * missed[0]


def test_an_encoder_decoder_gets_as_many_blocks_in_both() -> None:
    options = StudentConfig(layers=1)
    assert plan_start(options, build("t5")).sizes == {"num_layers": 1, "num_decoder_layers": 1}


def test_an_untrained_student_ends_its_texts_where_its_teacher_does() -> None:
    teacher = build("llama")
    teacher.generation_config.eos_token_id = [2, 7]
    options = StudentConfig(config={"intermediate_size": 8}, start="random")
    student = build_student(options, teacher, Task("causal-lm", ("text",), None))
    assert student.generation_config.eos_token_id == [2, 7]
    assert student.generation_config is not teacher.generation_config


@pytest.mark.parametrize(("family", "kind", "field", "kept"), [
    ("modernbert", "classification", "layer_types", ["sliding_attention", "full_attention"]),
    ("dinov2", "image-classification", "out_features", ["stage2"]),
])  # fmt: skip
def test_an_untrained_student_of_fewer_blocks_needs_no_more_than_their_number(
    family: str, kind: str, field: str, kept: list[str]
) -> None:
    """What a configuration says of every block is cut to the blocks that would be kept."""
    options = StudentConfig(config={"num_hidden_layers": 2}, start="random")
    task = Task(kind, ("image" if field == "out_features" else "text",), "label", ("a", "b"))
    student = build_student(options, build(family, 4), task)
    assert getattr(student.config, field) == kept
    assert len(list(student.base_model.get_submodule(family_of(student).towers[0].blocks))) == 2


@pytest.mark.parametrize(
    ("family", "fields"),
    [("deberta-v2", {}), ("deberta-v2", {"attention_head_size": 8}), ("deit", {}), ("vit", {})],
    ids=str,
)
def test_an_untrained_student_is_as_wide_as_is_said(family: str, fields: dict[str, Any]) -> None:
    """Also where a configuration has its width twice (DeBERTa), or several classes are for one task (DeiT)."""
    options = StudentConfig(config={"hidden_size": 8, "num_attention_heads": 4}, start="random")
    given = {name: value for name, value in batch(family).items() if name != "labels"}
    inputs = ("text",) if "input_ids" in given else ("image",)
    task = Task("image-classification" if "image" in inputs else "classification", inputs, "label", ("a", "b"))
    student = build_student(options, build(family, **fields), task)
    assert student.config.hidden_size == 8
    assert student(**given).logits.shape == (4, 2)


def test_a_width_that_is_no_number_is_refused() -> None:
    options = StudentConfig(config={"hidden_size": True}, start="random")
    with pytest.raises(UserError, match="'hidden_size' expected int, got bool"):
        build_student(options, build("bert"), Task("classification", ("text",), "label", ("a", "b")))


@pytest.mark.parametrize("options", [{"layers": 1}, {"config": {"hidden_size": 8}}])
def test_a_student_of_another_dropout_starts_from_its_teacher(options: dict[str, Any]) -> None:
    config = {"hidden_dropout_prob": 0.2} | options.get("config", {})
    found = plan_start(StudentConfig(**options | {"config": config}), build("bert")).blank.config
    assert (found.hidden_dropout_prob, found.attention_probs_dropout_prob) == (0.2, 0.1)


def test_blocks_that_cannot_be_fitted_are_copied_and_the_run_says_why(tmp_path: Path) -> None:
    other = {"model": None, "config": {"model_type": "beit", "layer_norm_eps": 1e-6}}
    config = job(tmp_path / "out", teacher=other, student={"layers": 2, "config": None}, constraint=None)
    shown = dict(preview(config).lines)
    assert shown["student"].startswith("2 blocks of the teacher, copied; ")
    why = "the student is copied, not fitted, since it cannot start from its teacher: teacher is a beit "
    assert shown["warning"].startswith(why)


def test_it_is_fitted_on_training_examples_only(taught: Any) -> None:
    prepared, _ = taught
    options = job(Path()).student
    options.calibration = 100
    batches = calibration(options, prepared)
    assert [len(batch["labels"]) for batch in batches] == [32, 32, 32, 4]
    known = {torch.as_tensor(row["pixel_values"]).numpy().tobytes() for row in prepared.data["train"]}
    assert all(pixels.numpy().tobytes() in known for batch in batches for pixels in batch["pixel_values"])


@pytest.mark.parametrize(("student", "message"), [
    ({"start": "warm"}, "student.start is 'warm'; expected one of teacher, copy, random"),
    ({"start": "teacher", "calibration": 1}, r"the student cannot start from its teacher: batches has 5 tokens"),
    ({"start": "teacher", "config": {"hidden_size": 64}}, "hidden_size is 64; the teacher's is 16"),
    ({"config": None, "layers": [0, 1], "start": "teacher"}, "student.layers is a list"),
    ({"config": None, "layers": 2, "start": "random"}, "student.start is 'random' and kept blocks are not"),
    ({"layers": 2, "config": {"num_hidden_layers": 1}}, "student.layers is 2 and student.config has num_hidden_layers"),
    ({"layers": 2, "config": {"num_hidden_layers": 1}, "start": "random"}, "student.layers is 2 and student"),
    ({"start": "copy"}, "student.start is 'copy' and blocks of other sizes cannot be copied"),
    ({"config": None, "model": "minilm", "start": "teacher"}, "leave it out beside student.model"),
    ({"calibration": 0}, "student.calibration is 0"),
    ({"config": {"num_attention_heads": 0}}, "num_attention_heads is 0; the teacher's is 2, and a student's is 1 to"),
])  # fmt: skip
def test_bad_starts_are_refused_before_any_work(student: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(job(tmp_path / "out", student=NARROW | student))
    assert not (tmp_path / "out").exists()


def test_where_a_teacher_cannot_start_a_student_the_run_says_why(tmp_path: Path, taught: Any) -> None:
    wide = NARROW | {"config": {"hidden_size": 32}}
    shown = dict(preview(job(tmp_path / "out", student=wide, constraint=None)).lines)["warning"]
    assert "untrained, since it cannot start from its teacher: hidden_size is 32; the teacher's is 16" in shown
    prepared, teacher = taught
    options = job(tmp_path, student=wide).student
    assert build_student(options, teacher, prepared.task).config.hidden_size == 32
    json.dumps(plan_start(options, teacher).why_not)
