"""The steps of a distillation from the command line: data, teacher, student, training, scores."""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
import sys
import tempfile
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
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    set_seed,
)

import opdf
from opdf.cli import Stopped, UserError
from opdf.cli.card import write_card
from opdf.cli.config import DistillConfig, TeacherConfig, fill, write_yaml
from opdf.cli.prepared import Prepared
from opdf.cli.progress import show, stopping
from opdf.cli.targets import training_rows
from opdf.data import Task, encode, load_data, minilm
from opdf.distill import (
    LGTM,
    AttributionDistillation,
    Constraint,
    DecisionDistillation,
    DistillationArguments,
    DistillationTrainer,
    EmbeddingDistillation,
    HiddenDistillation,
    LogitsDistillation,
    Objective,
    SparseLogitsDistillation,
    Theseus,
    keep_layers,
)
from opdf.distill.checkpoint import newest_whole, writing
from opdf.distill.embedding import embedder, pair_cosines
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
    build_objective(config)
    training_arguments(config.training, Path(config.output) / "checkpoints", config.seed)
    output = claim(config.output, overwrite=config.overwrite, resume=config.resume)
    if is_main():
        write_yaml(config, output / "config.yaml")
    with PartialState().main_process_first():  # the others find the cache filled
        prepared = prepare_data(config)
    check_objective(config, prepared.task)
    teacher = prepare_teacher(config, prepared, output)
    teacher_scores = scores(evaluator(teacher, prepared), prepared)
    metrics = train_student(config, prepared, teacher, output, "distilling") | {"teacher": teacher_scores}
    if is_main():
        write_card(config, metrics, prepared, command, output / "student")
        write_json(metrics, output / "metrics.json")
    return metrics


def _tell(message: str) -> None:
    if is_main():
        print(f"opdf: {message}", file=sys.stderr)


def is_main() -> bool:
    """Whether this process writes and prints: one does, of those that torchrun or accelerate started."""
    return bool(PartialState().is_main_process)


def train_student(config: DistillConfig, prepared: Prepared, teacher: Any, output: Path, title: str) -> dict[str, Any]:
    """Distill one student, save it under `output`, and return its metrics."""
    trainer = student_trainer(config, prepared, teacher, output, title)
    architecture = type(trainer.model).__name__  # which FSDP2 changes
    start = time.perf_counter()
    last = newest_whole(output / "checkpoints", lambda text: _tell(f"warning: {text}")) if config.resume else None
    if config.resume:
        _tell(f"resuming from {last}" if last else "there is no whole checkpoint; starting from the beginning")
    with stopping(trainer) as stop:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if stop.signal is not None:
        raise Stopped(stop.signal, f"stopped; step {trainer.state.global_step} is saved in {output / 'checkpoints'}")
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
        constraint=Constraint(**vars(config.constraint)) if config.constraint else None,
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


def claim(path: str, *, overwrite: bool, resume: bool) -> Path:
    """An output folder that nothing is lost in.

    Raises:
        FileExistsError: it holds something and neither `overwrite` nor `resume` was asked for.
        FileNotFoundError: there is no run to resume in it.
    """
    folder = Path(path)
    if resume and not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume; start without resume")
    if folder.exists() and any(folder.iterdir()) and not resume:
        if not overwrite:
            raise FileExistsError(
                f"output {folder} is not empty; choose another, or set --resume true or --overwrite true"
            )
        if not (folder / "config.yaml").is_file() and not (folder / "results.json").is_file():
            raise FileExistsError(f"output {folder} was not written by opdf and is not overwritten; choose another")
    state = PartialState()
    state.wait_for_everyone()  # all have seen the folder as it was
    if state.is_main_process:
        if folder.exists() and not resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    state.wait_for_everyone()
    return folder


def prepare_data(config: DistillConfig) -> Prepared:
    options = config.data
    data, task = load_data(
        options.name, task=options.task, inputs=options.inputs, label=options.label, validation=options.validation,
        test=options.test, train_limit=options.train_limit, seed=options.seed,
    )  # fmt: skip
    processor = load_processor(config.teacher, task)
    encoded, collator = encode(data, task, processor, max_length=options.max_length)
    return Prepared(data, encoded, task, processor, collator)


def load_processor(teacher: TeacherConfig, task: Task) -> Any:
    """The tokenizer or image processor that goes with the teacher, and so with the student."""
    if task.is_image and teacher.model in (None, "minilm"):
        size = (teacher.config or {}).get("image_size", 28)
        mean = std = [0.5] * 3
        return transformers.ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=mean, image_std=std)
    if teacher.model is None:
        raise UserError("teacher.config needs a tokenizer as well; give teacher.model for text")
    if task.is_image:
        return AutoImageProcessor.from_pretrained(local(teacher.model), trust_remote_code=False)
    return AutoTokenizer.from_pretrained(local(teacher.model), trust_remote_code=False)


def local(model: str) -> str:
    """The folder of an embedded model; other names as they are.

    Raises:
        UserError: a folder without safetensors weights.
    """
    if model == "minilm":
        return str(minilm())
    folder = Path(model)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        reason = f"it has {pickled[0]}, and pickled weights are not loaded" if pickled else "it has no weights"
        raise UserError(f"{model} cannot be loaded: {reason}. Save the model as safetensors")
    if not folder.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise FileNotFoundError(f"model folder {model} does not exist")
    return model


def load_model(name: str, task: Task) -> tuple[Any, list[str]]:
    """A pretrained model with a head for the task, and the names of weights that its checkpoint lacks."""
    auto = auto_class(task)
    try:
        model, info = auto.from_pretrained(
            local(name), use_safetensors=True, trust_remote_code=False, output_loading_info=True, **head_of(task)
        )
    except OSError as error:
        raise UserError(f"model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model, sorted(info["missing_keys"])


def auto_class(task: Task) -> Any:
    """The class that loads a model for a task."""
    if task.kind == "similarity":
        return AutoModel
    return AutoModelForImageClassification if task.is_image else AutoModelForSequenceClassification


def head_of(task: Task) -> dict[str, Any]:
    """Configuration of the head that a task needs."""
    if task.kind == "similarity":
        return {}
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    names = dict(enumerate(task.labels))
    return {
        "id2label": names,
        "label2id": {v: k for k, v in names.items()},
        "problem_type": "single_label_classification",
    }


def from_config(fields: dict[str, Any], task: Task) -> Any:
    fields = copy.deepcopy(fields)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise UserError("the model's config has no model_type; add one, e.g. model_type: vit")
    return auto_class(task).from_config(AutoConfig.for_model(kind, **fields, **head_of(task)))


def prepare_teacher(config: DistillConfig, prepared: Prepared, output: Path) -> Any:
    """The teacher, fine-tuned first if asked."""
    saved, options, objective = output / "teacher", config.teacher, build_objective(config)
    if isinstance(objective, SparseLogitsDistillation) and (Path(objective.store) / "teacher").is_dir():
        saved, config = Path(objective.store) / "teacher", replace(config, resume=True)
    set_seed(config.seed)
    if config.resume and (saved / "config.json").is_file():
        return load_model(str(saved), prepared.task)[0]
    if options.config is not None:
        teacher, missing = from_config(options.config, prepared.task), ["all weights"]
    elif options.model is not None:
        teacher, missing = load_model(options.model, prepared.task)
    else:
        raise UserError("teacher has neither model nor config; give one")
    if missing and not options.finetune and not objective.trains_teacher:
        raise UserError(
            f"teacher {options.model or 'config'} is not trained for this task ({missing[0]} is missing); "
            "set teacher.finetune: true, or give a fine-tuned teacher"
        )
    if options.finetune:
        arguments = training_arguments(options.training, output / "teacher-checkpoints", config.seed)
        trainer = Trainer(
            teacher, arguments, train_dataset=prepared.data["train"], eval_dataset=prepared.data["validation"],
            data_collator=prepared.collator,
        )  # fmt: skip
        show(trainer, "fine-tuning the teacher", output / "teacher.log")
        trainer.train()
        if is_main():
            save(teacher, prepared.processor, saved)
            shutil.rmtree(output / "teacher-checkpoints", ignore_errors=True)
    return teacher


def evaluator(model: Any, prepared: Prepared, batch: int = 128) -> Trainer:
    """A Trainer that only scores and predicts."""
    with tempfile.TemporaryDirectory() as unused:  # the Trainer makes its output folder
        arguments = training_arguments({"per_device_eval_batch_size": batch}, Path(unused), 0)
        trainer = Trainer(
            model, arguments, data_collator=prepared.collator, compute_metrics=prepared.task.compute_metrics()
        )
    for callback in list(trainer.callback_handler.callbacks):
        trainer.remove_callback(callback)
    return trainer


def build_student(config: DistillConfig, teacher: nn.Module, task: Task) -> Any:
    options = config.student
    given = [k for k, v in vars(options).items() if v is not None]
    if len(given) != 1 and given != ["layers", "model"]:
        raise UserError(
            f"student has {given or 'nothing'}; give exactly one of layers, model, config, or layers and model"
        )
    if options.layers is not None:
        return keep_layers(load_model(options.model, task)[0] if options.model else teacher, options.layers)
    if options.model is not None:
        return load_model(options.model, task)[0]
    fields = teacher.config.to_dict() | (options.config or {})  # type: ignore[union-attr,operator]
    known = {k: v for k, v in fields.items() if k not in head_of(task) and not k.startswith("_")}
    for unknown in ("transformers_version", "architectures", "id2label", "label2id", "problem_type", "num_labels"):
        known.pop(unknown, None)
    return from_config(known, task)


def build_objective(config: DistillConfig) -> Objective:
    name = config.objective.name
    if name not in OBJECTIVES:
        raise UserError(f"objective.name is {name!r}; expected one of {', '.join(OBJECTIVES)}")
    built: Objective = fill(OBJECTIVES[name], config.objective.options, f"objective {name}")
    return built


def check_objective(config: DistillConfig, task: Task) -> None:
    """Embeddings come from models without a head, everything else from models with one.

    Raises:
        UserError: the objective and the task want different ones.
    """
    if (task.kind == "similarity") != (config.objective.name == "embedding"):
        raise UserError(
            f"objective.name is {config.objective.name!r} and the task of {config.data.name} is {task.kind!r}; "
            "embedding goes with similarity (data such as nyt-pairs, or data.task: similarity) and only with it"
        )


def training_arguments(options: dict[str, Any], folder: Path, seed: int) -> DistillationArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "seed": seed, "save_strategy": "no", "disable_tqdm": True, "save_total_limit": 2,
        "per_device_train_batch_size": 32, "per_device_eval_batch_size": 128, "lr_scheduler_type": "linear",
        "warmup_steps": 0.1, "dataloader_pin_memory": torch.cuda.is_available(), "logging_steps": 20,
    }  # fmt: skip
    arguments: DistillationArguments = fill(DistillationArguments, options, "training", **defaults)
    return arguments


def scores(trainer: Trainer, prepared: Prepared) -> dict[str, Any]:
    """Metrics on validation and test, with the number of examples."""
    result: dict[str, Any] = {}
    for part in ("validation", "test"):
        if prepared.task.kind == "similarity":
            cosines = pair_cosines(embedder(trainer.model), prepared.data[part], prepared.collator)
            result[part] = similarity_metrics(prepared, part, cosines)
            continue
        metrics = trainer.evaluate(prepared.data[part], metric_key_prefix=part)
        names = ("accuracy", "f1", "matthews", "pearson", "spearman", "pearson_spearman")
        result[part] = {n: metrics[f"{part}_{n}"] for n in names if f"{part}_{n}" in metrics}
        result[part]["examples"] = len(prepared.data[part])
    return result


def similarity_metrics(prepared: Prepared, part: str, cosines: torch.Tensor) -> dict[str, Any]:
    labels = np.asarray(prepared.raw[part][prepared.task.label])
    return {**prepared.task.metrics(cosines.numpy(), labels), "examples": len(labels)}


def save(model: Any, processor: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """A plain transformers folder, complete or absent; `weights` are the whole ones of a sharded model."""
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with writing(str(folder), "free some space and run it again"):
            model.save_pretrained(scratch, state_dict=weights)
            processor.save_pretrained(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(content: Any, path: Path) -> None:
    scratch = path.with_name(f".{path.name}.partial")
    with writing(str(path), "free some space and run it again"):
        scratch.write_text(json.dumps(content, indent=2) + "\n")
        scratch.rename(path)


def versions() -> dict[str, str]:
    return {
        "opdf": opdf.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
