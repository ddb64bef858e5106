"""The steps of a distillation from the command line: data, teacher, student, training."""

from __future__ import annotations

import copy
import inspect
import os
import platform
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets import disable_progress_bars
from torch import nn
from transformers import set_seed

import opdf
from opdf.data import Task, encode, load_data
from opdf.distill import (
    LGTM,
    AttributionDistillation,
    DecisionDistillation,
    DistillationTrainer,
    EmbeddingDistillation,
    HiddenDistillation,
    LogitsDistillation,
    Objective,
    SparseLogitsDistillation,
    Theseus,
    keep_layers,
)
from opdf.distill.checkpoint import newest_whole
from opdf.distill.trainer import plan_student
from opdf.job.arguments import TRAINING, check_packages, training_arguments
from opdf.job.card import write_card
from opdf.job.config import DistillConfig
from opdf.job.errors import Stopped, UserError
from opdf.job.models import (
    DECIDED,
    check_fields,
    check_inputs,
    check_same_tokens,
    from_config,
    load_model,
    load_processor,
)  # fmt: skip
from opdf.job.options import fill, suggest, write_yaml
from opdf.job.output import claim, free, save, write_json
from opdf.job.prepared import Prepared
from opdf.job.progress import show, stopping
from opdf.job.scoring import evaluator, scores
from opdf.job.targets import training_rows
from opdf.overparam import OverParameterization

OBJECTIVES: dict[str, type[Objective]] = {
    "logits": LogitsDistillation,
    "hidden": HiddenDistillation,
    "embedding": EmbeddingDistillation,
    "theseus": Theseus,
    "lgtm": LGTM,
    "dbkd": DecisionDistillation,
    "adkd": AttributionDistillation,
    "sparse-logits": SparseLogitsDistillation,
}


def quiet() -> None:
    """No chatter of libraries between the command's own lines."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def run(config: DistillConfig, command: str) -> dict[str, Any]:
    """Distill as the configuration says; returns what metrics.json holds. The model card names the `command`."""
    check_options(config)
    config = resolved(config)
    output = free(config.output, overwrite=config.overwrite, resume=config.resume)
    with PartialState().main_process_first():  # the others find the cache filled
        prepared = prepare_data(config)
    check_objective(config, prepared.task)
    teacher = load_teacher(config, prepared.task, output)
    check_fit(config, prepared, teacher)
    if config.objective.name == "sparse-logits":
        training_rows(build_objective(config), config, prepared, teacher, output)  # the store, if it is this run's
    claim(config.output, overwrite=config.overwrite, resume=config.resume)
    if is_main():
        write_yaml(config, output / "config.yaml")
    train_teacher(config, prepared, teacher, output)
    teacher_scores = scores(evaluator(teacher, prepared), prepared)
    metrics = train_student(config, prepared, teacher, output, "distilling") | {"teacher": teacher_scores}
    if is_main():
        write_card(config, metrics, prepared, command, output / "student")
        write_json(metrics, output / "metrics.json")
    leave()
    return metrics


def leave() -> None:
    """End the connections of several processes: left to the interpreter's end, gloo's threads now and then abort it."""
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def _tell(message: str) -> None:
    if is_main():
        print(f"opdf: {message}", file=sys.stderr)


def check_options(config: DistillConfig) -> None:
    """What can be said of a configuration before anything is read."""
    build_objective(config)
    for options, where in ((config.training, "training"), (config.teacher.training, "teacher.training")):
        check_packages(training_arguments(options, Path(config.output), config.seed, where), where)
    check_student(config)


def resolved(config: DistillConfig) -> DistillConfig:
    """The configuration with the defaults written out of what it passes on: to the Trainer and to the objective."""
    arguments = inspect.signature(OBJECTIVES[config.objective.name]).parameters.items()
    defaults = {name: a.default for name, a in arguments if a.default is not a.empty}
    return replace(
        config,
        objective=replace(config.objective, options=defaults | config.objective.options),
        teacher=replace(config.teacher, training=TRAINING | config.teacher.training),
        training=TRAINING | config.training,
    )


def check_models(config: DistillConfig, task: Task, teacher: Any) -> Any:
    """Plan the training with models that hold no values, to say before work starts what does not fit together.

    Returns:
        The student, on the meta device.
    """
    with torch.device("meta"):
        stand_in = type(teacher)._from_config(copy.deepcopy(teacher.config))
        student = build_student(config, stand_in, task)
    objective = build_objective(config)
    plan_student(student, stand_in, objective, config.overparam, config.constraint)
    objective.check_arguments(training_arguments(config.training, Path(config.output), config.seed))
    return student


def check_fit(config: DistillConfig, prepared: Prepared, teacher: Any) -> None:
    """Say before work starts what does not fit together of models, objective and data."""
    student = check_models(config, prepared.task, teacher)
    build_objective(config).training_data(prepared.data["train"])
    for who, model in (("teacher", teacher), ("student", student)):
        check_inputs(f"the {who}", model, prepared)
    if config.student.model and not prepared.task.is_image:
        check_same_tokens(config.student.model, prepared)


def is_main() -> bool:
    """Whether this process writes and prints: one does, of those that torchrun or accelerate started."""
    return bool(PartialState().is_main_process)


def train_student(config: DistillConfig, prepared: Prepared, teacher: Any, output: Path, title: str) -> dict[str, Any]:
    """Distill one student, save it under `output`, and return its metrics."""
    trainer = student_trainer(config, prepared, teacher, output, title)
    architecture = type(trainer.model).__name__  # which FSDP2 changes
    start = time.perf_counter()
    train(trainer, "the student", resume=config.resume)
    seconds = time.perf_counter() - start
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None  # by all together
    if is_main():
        save(trainer.model, prepared.processor, output / "student", weights)
        if trainer.objective.trains_teacher:
            save(teacher, prepared.processor, output / "trained-teacher")
    ratios = [entry["constraint_grad_ratio"] for entry in trainer.state.log_history if "constraint_grad_ratio" in entry]
    return {
        "class": architecture,
        "metric": prepared.task.metric,
        "student": scores(trainer, prepared),
        **parameters(trainer),
        "shapes": shapes(trainer.overparameterization) if trainer.overparameterization else [],
        "constraint_grad_ratio": max(ratios, default=None),
        "train_seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "seed": config.seed,
        "versions": versions(),
    }


def train(trainer: DistillationTrainer, who: str, *, resume: bool) -> None:
    """Train to the end, from the newest whole checkpoint if a run is resumed.

    Raises:
        Stopped: a signal came; the step in which it did is saved.
    """
    folder = Path(trainer.args.output_dir)
    last = newest_whole(folder, lambda text: _tell(f"warning: {text}")) if resume else None
    if resume:
        start = f"goes on from {last}" if last else "has no whole checkpoint and starts from the beginning"
        _tell(f"{who} {start}")
    with stopping(trainer) as stop:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if stop.signal is not None:
        leave()
        raise Stopped(stop.signal, f"stopped; step {trainer.state.global_step} of {who} is saved in {folder}")


def student_trainer(
    config: DistillConfig, prepared: Prepared, teacher: Any, output: Path, title: str
) -> DistillationTrainer:
    """A new student with all that trains it; its log goes to `output`."""
    set_seed(config.seed)
    student = build_student(config, teacher, prepared.task)
    objective = build_objective(config)
    trainer = DistillationTrainer(
        student,
        training_arguments(config.training, output / "checkpoints", config.seed),
        teacher=teacher,
        objective=objective,
        overparam=config.overparam,
        constraint=config.constraint,
        train_dataset=training_rows(objective, config, prepared, teacher, output),
        eval_dataset=prepared.data["validation"],
        data_collator=prepared.collator,
        compute_metrics=prepared.task.compute_metrics(),
    )
    show(trainer, title, output / "train.log")
    return trainer


def parameters(trainer: DistillationTrainer) -> dict[str, int]:
    """Of the student, while it trains and at inference."""
    over = trainer.overparameterization
    inference = sum(p.numel() for p in trainer.model.parameters())
    return {"train_params": over.train_params if over else inference, "inference_params": inference}


def shapes(over: OverParameterization) -> list[dict[str, Any]]:
    """How many matrices of which size were trained in which shape."""
    counts = Counter(target.shape for target in over.matrices)
    return [
        {"matrices": count, "rows": s.rows, "cols": s.cols, "shape": str(s), "scale": round(s.scale, 3)}
        for s, count in counts.items()
    ]


def prepare_data(config: DistillConfig) -> Prepared:
    options = config.data
    data, task = load_data(**{k: v for k, v in vars(options).items() if k != "max_length"}, where="data.")
    processor = load_processor(config.teacher, task)
    encoded, collator = encode(data, task, processor, max_length=options.max_length, where="data.")
    return Prepared(data, encoded, task, processor, collator)


def prepare_teacher(config: DistillConfig, prepared: Prepared, output: Path) -> Any:
    """The teacher, fine-tuned first if asked."""
    teacher = load_teacher(config, prepared.task, output)
    train_teacher(config, prepared, teacher, output)
    return teacher


def saved_teacher(config: DistillConfig, output: Path) -> tuple[Path, bool]:
    """Where a fine-tuned teacher is kept, and whether one from there is to be used."""
    objective, folder, wanted = build_objective(config), output / "teacher", config.resume
    if isinstance(objective, SparseLogitsDistillation) and (Path(objective.store) / "teacher").is_dir():
        folder, wanted = Path(objective.store) / "teacher", True
    return folder, wanted and (folder / "config.json").is_file()


def load_teacher(config: DistillConfig, task: Task, output: Path) -> Any:
    """The teacher as it is before any training of this run.

    Raises:
        UserError: it cannot be loaded, or has no head for the task and is not to be fine-tuned.
    """
    options = config.teacher
    saved, use_saved = saved_teacher(config, output)
    set_seed(config.seed)
    if use_saved:
        return load_model(str(saved), task)[0]
    if options.config is not None:
        check_fields("teacher.config", options.config.get("model_type"), options.config)
        teacher, missing = from_config(options.config, task), ["all weights"]
    elif options.model is not None:
        teacher, missing = load_model(options.model, task)
    else:
        raise UserError("teacher has neither model nor config; give one")
    if missing and not options.finetune and not build_objective(config).trains_teacher:
        raise UserError(
            f"teacher {options.model or 'config'} is not trained for this task (missing: {missing[0]}); "
            "set teacher.finetune: true, or give a fine-tuned teacher"
        )
    return teacher


def train_teacher(config: DistillConfig, prepared: Prepared, teacher: Any, output: Path) -> None:
    """Fine-tune a loaded teacher, if that is asked and has not been done; it ends on the device of the run."""
    saved, use_saved = saved_teacher(config, output)
    if config.teacher.finetune and not use_saved:
        checkpoints = output / "teacher-checkpoints"
        begun = checkpoints.is_dir()
        arguments = training_arguments(config.teacher.training, checkpoints, config.seed, "teacher.training")
        trainer = DistillationTrainer(
            teacher, arguments, objective=LogitsDistillation(alpha=0), train_dataset=prepared.data["train"],
            eval_dataset=prepared.data["validation"], data_collator=prepared.collator,
            compute_metrics=prepared.task.compute_metrics(),
        )  # fmt: skip
        show(trainer, "fine-tuning the teacher", output / "teacher.log")
        train(trainer, "the teacher", resume=begun)
        if is_main():
            save(teacher, prepared.processor, saved)
            shutil.rmtree(checkpoints, ignore_errors=True)
    teacher.to(training_arguments(config.training, output, config.seed).device)


def check_student(config: DistillConfig) -> None:
    given = [k for k, v in vars(config.student).items() if v is not None]
    if len(given) != 1 and given != ["layers", "model"]:
        raise UserError(
            f"student has {given or 'nothing'}; give exactly one of layers, model, config, or layers and model"
        )


def build_student(config: DistillConfig, teacher: nn.Module, task: Task) -> Any:
    options = config.student
    check_student(config)
    if options.layers is not None:
        return keep_layers(load_model(options.model, task)[0] if options.model else teacher, options.layers)
    if options.model is not None:
        return load_model(options.model, task)[0]
    theirs = teacher.config.to_dict()  # type: ignore[union-attr,operator]
    fields = theirs | (options.config or {})
    check_fields("student.config", fields["model_type"], options.config or {})
    known = {k: v for k, v in fields.items() if k not in DECIDED and not k.startswith("_")}
    return from_config(known, task)


def build_objective(config: DistillConfig) -> Objective:
    name = config.objective.name
    if name not in OBJECTIVES:
        raise UserError(f"objective.name is {name!r}; expected one of {', '.join(OBJECTIVES)}")
    built: Objective = fill(OBJECTIVES[name], config.objective.options, f"objective {name}")
    return built


def check_objective(config: DistillConfig, task: Task) -> None:
    """Say what of a configuration does not go with the task: the objective, or a metric to choose checkpoints by.

    Embeddings come from models without a head, everything else from models with one, and AD-KD from tokens.

    Raises:
        UserError: the objective or a metric is for another task.
    """
    if (task.kind == "similarity") != (config.objective.name == "embedding"):
        raise UserError(
            f"objective.name is {config.objective.name!r} and the task of {config.data.name} is {task.kind!r}; "
            "embedding goes with similarity (data such as nyt-pairs, or data.task: similarity) and only with it"
        )
    if config.objective.name == "adkd" and task.is_image:
        raise UserError(
            f"objective.name is 'adkd' and {config.data.name} holds images; adkd compares how much the tokens of a "
            "text matter: give texts, or another objective"
        )
    if task.kind == "similarity" and config.teacher.finetune:
        raise UserError("teacher.finetune is true and similarity data has no labels for it; give a trained teacher")
    check_metrics(config, task)


def check_metrics(config: DistillConfig, task: Task) -> None:
    """Refuse to choose checkpoints, or lower the rate, by a metric that evaluation while training does not give.

    Raises:
        UserError: one of these.
    """
    two = np.arange(2)
    known = [] if task.compute_metrics() is None else ["loss", *task.metrics(two, two)]
    for options, where in ((config.training, "training"), (config.teacher.training, "teacher.training")):
        # Where it is not given, other options can ask for the loss.
        given = training_arguments(options, Path(config.output), config.seed, where).metric_for_best_model
        name = (given or "").removeprefix("eval_")
        if given is not None and name not in known:
            remedy = suggest(name, known) if known else f"; a {task.kind} has none, leave out what asks for it"
            raise UserError(f"{where}.metric_for_best_model is {given!r}, which evaluation does not give{remedy}")


def versions() -> dict[str, str]:
    return {
        "opdf": opdf.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
