"""The options of `opdf distill` as dataclasses; `opdf.job.options` fills them in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opdf.overparam import Constraint, OverParamConfig


@dataclass
class DataConfig:
    """The data.

    Args:
        name: embedded set, file (csv, tsv, json, jsonl, parquet, conll, txt), image folder, or hub
            name[:configuration].
        task: classification, multi-label, regression, image-classification, token-classification, similarity or
            causal-lm; inferred when null, but for the last two.
        inputs: one text column or two, an image column, a column of words or one of messages; inferred when null.
        label: the label column, or several of 0 and 1 (multi-label); auto takes "label", "labels" or "tags"; null if
            there are no labels, and the student learns from the teacher alone.
        labels: the classes in the order of their numbers; in rising order when null.
        validation: file to validate on, or fraction of rows for it if the dataset has no such split.
        test: file to test on, or fraction of rows for it if the dataset has no such split.
        class_weights: how much an example of each class counts in the loss against labels: balanced, by which all
            classes count alike, or a mapping of classes to numbers, 1 for those that it leaves out.
        augment: train on images that are cropped, flipped, coloured and erased anew in every epoch.
        drop_empty: leave out rows without a text or a label, which are refused otherwise.
        train_limit: use this many training rows.
        max_length: of a text, or of a block of packed texts, in tokens.
        pack: put as many texts as fit into one example (causal-lm).
        answers_only: learn the answers of conversations or pairs alone (causal-lm).
        seed: of the splits.
    """

    name: str = "movie-sentiment"
    task: str | None = None
    inputs: list[str] | str | None = None
    label: list[str] | str | None = "auto"
    labels: list[str] | None = None
    validation: float | str = 0.1
    test: float | str = 0.2
    class_weights: dict[str, Any] | str | None = None
    augment: bool = False
    drop_empty: bool = False
    train_limit: int | None = None
    max_length: int = 128
    pack: bool = True
    answers_only: bool = False
    seed: int = 0


@dataclass
class TeacherConfig:
    """The teacher.

    Args:
        model: hub name, local folder (safetensors), or "minilm", the embedded all-MiniLM-L6-v2. With `config` only
            its tokenizer or image processor is taken.
        models: several fine-tuned teachers in place of `model`, whose distributions are averaged; tokenizer and student
            are made from the first.
        weights: of `models`; all the same when null.
        config: build the teacher from this transformers configuration (model_type and its fields) instead.
        finetune: train the teacher on the task first; needed when it has no head for the task, or one of another size.
        training: options of transformers.TrainingArguments for that.
    """

    model: str | None = "minilm"
    models: list[str] | None = None
    weights: list[float] | None = None
    config: dict[str, Any] | None = None
    finetune: bool = False
    training: dict[str, Any] = field(default_factory=dict)


@dataclass
class StudentConfig:
    """The student: layers, model or config.

    Args:
        layers: blocks of the teacher, or of `model` if that is given too: how many, or which.
        model: hub name or local folder of a pretrained student, or "minilm".
        config: fields of the teacher's configuration to change; with `layers`, a number, the depth is changed too.
        start: teacher fits a student of other sizes or fewer blocks to its teacher, in closed form, before it is
            trained; copy takes the blocks of `layers` as they are; random makes it by `config` with random weights.
            null is teacher wherever the family and the data allow it. A list of `layers` is copied.
        calibration: training examples that a student is fitted on.
    """

    layers: int | list[int] | None = None
    model: str | None = None
    config: dict[str, Any] | None = None
    start: str | None = None
    calibration: int = 512


@dataclass
class ObjectiveConfig:
    """What the student learns.

    Args:
        name: logits, hidden, embedding, theseus, lgtm, dbkd, adkd or sparse-logits.
        options: of the objective, e.g. temperature and alpha.
    """

    name: str = "logits"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DistillConfig:
    """A whole distillation.

    Args:
        data: the data.
        teacher: the teacher.
        student: the student.
        objective: what the student learns.
        overparam: over-parameterization; null trains the student as it is.
        constraint: pull the student's auxiliary cores to the teacher's; null leaves it out.
        training: options of transformers.TrainingArguments (learning_rate, num_train_epochs, bf16, ...). Unless set:
            3 epochs, batches of 32, no checkpoints; a rate of 5e-5 that rises for a tenth of the steps, then falls.
        output: folder for student, metrics.json, config.yaml and train.log.
        overwrite: empty the output folder of an earlier run first.
        resume: continue from the last checkpoint in the output folder.
        seed: of initialisation and data order.
        push_to_hub: name of a repository on the hub for the finished student and its card, private if it is a new one;
            null publishes nothing.
        json: print what metrics.json holds instead of lines.
    """

    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    overparam: OverParamConfig | None = None
    constraint: Constraint | None = None
    training: dict[str, Any] = field(default_factory=dict)
    output: str = "runs/distill"
    overwrite: bool = False
    resume: bool = False
    seed: int = 0
    push_to_hub: str | None = None
    json: bool = False
