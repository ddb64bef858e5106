"""The Trainer's arguments of a run."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.integrations import get_reporting_integration_callbacks

from opdf.data import Task
from opdf.distill import DistillationArguments, DistillationTrainer
from opdf.job.errors import UserError
from opdf.job.options import typed

UPLOAD = "opdf publishes the finished student and its card alone, with the option push_to_hub NAME of the run"
OURS = {
    "output_dir": "is set by the option output",
    "resume_from_checkpoint": "is set by the option resume",
    "seed": "is set by the option seed",
    "push_to_hub": f"would publish checkpoints, and {UPLOAD}",
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        f"would publish the run's numbers, and {UPLOAD}",
    ),
    **dict.fromkeys(
        ("bf16_full_eval", "fp16_full_eval"), "would score the student in another precision than its teacher"
    ),
    **dict.fromkeys(
        ("prediction_loss_only", "eval_do_concat_batches", "batch_eval_metrics", "label_names"),
        "would leave the student without its scores",
    ),
    "hub_token": f"would be readable in config.yaml and in the model card, and {UPLOAD}",
}
"""Options of the Trainer that a run refuses: it writes into one folder and nothing secret, and scores models alike.

Without its scores it would end in an error, after all of the training.
"""


TRAINING: dict[str, Any] = {
    "learning_rate": 5e-5, "num_train_epochs": 3, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 128,
    "lr_scheduler_type": "linear", "warmup_steps": 0.1, "logging_steps": 20, "save_strategy": "no",
    "save_total_limit": 2,
}  # fmt: skip
"""Defaults of a run where they differ from the Trainer's."""


def training_arguments(
    options: dict[str, Any], folder: Path, seed: int, where: str = "training"
) -> DistillationArguments:
    """The Trainer's arguments from a user's options.

    Args:
        options: of transformers.TrainingArguments, or more of `DistillationArguments`.
        folder: for checkpoints.
        seed: of initialisation and data order.
        where: what the options are called in messages.

    Raises:
        UserError: an option is unknown, has the wrong type, or is refused.
    """
    for key in OURS.keys() & options.keys():
        raise UserError(f"{where}.{key} {OURS[key]}; remove it")
    machine: dict[str, Any] = {
        # Without use_cpu, accelerate creates no process group on CPUs.
        "use_cpu": not torch.accelerator.is_available(),
        "output_dir": str(folder), "seed": seed, "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip
    given = TRAINING | machine | typed(DistillationArguments, options, where)
    try:
        return DistillationArguments(**given)
    except ValueError as error:  # of transformers, some of whose texts do not name the option
        raise UserError(f"{where}: {error}") from error


VOCABULARIES = 8
"""Texts of a language model that are scored at a time: its outputs are a vocabulary for every token."""


def renewed(arguments: DistillationArguments, task: Task) -> DistillationArguments:
    """The same arguments, made anew for a Trainer that is made next.

    Making them sets accelerate's precision for this process, which another Trainer may have changed.
    """
    made = replace(arguments)
    if task.kind == "causal-lm":
        made.per_device_eval_batch_size = min(made.per_device_eval_batch_size, VOCABULARIES)
    return made


def optimizer_name(arguments: DistillationArguments) -> str:
    """As a user writes it."""
    return str(getattr(arguments.optim, "value", arguments.optim))


def check_packages(arguments: DistillationArguments, where: str) -> None:
    """Check that the packages for a Trainer's reports and optimizer are installed, by making them.

    Args:
        arguments: of the Trainer.
        where: what the options are called in messages.

    Raises:
        UserError: a package is missing, or the optimizer's own options cannot be read.
    """
    for name in arguments.report_to or ():
        (callback,) = get_reporting_integration_callbacks([name])
        silent = {"__del__": lambda _: None}  # some complain when they are deleted half made
        try:
            with warnings.catch_warnings(action="ignore"):
                type(callback.__name__, (callback,), silent)()
        except (ImportError, RuntimeError, ValueError) as error:
            raise UserError(f"{where}.report_to is {name!r}: {error}") from error
    stand_in = copy.copy(arguments)
    # They name modules of the student, which is not there yet.
    stand_in.optim_target_modules = arguments.optim_target_modules and "all-linear"
    try:
        DistillationTrainer.get_optimizer_cls_and_kwargs(stand_in, nn.Sequential(nn.Linear(1, 1)))
    except (ImportError, RuntimeError, ValueError) as error:
        given = f" and optim_args {arguments.optim_args!r}" if arguments.optim_args else ""
        raise UserError(f"{where}.optim is {optimizer_name(arguments)!r}{given}: {error}") from error
