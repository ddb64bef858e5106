"""Distillation on transformers.Trainer, with the student's matrices over-parameterized if asked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from opdf.distill.logits import LogitsDistillation
from opdf.distill.objective import Objective
from opdf.overparam import OverParamConfig, OverParameterization, overparameterize
from opdf.overparam.alignment import LayerMap
from opdf.overparam.owner import OwnerOptimizer

OBJECTIVE_TENSORS = "objective.safetensors"
OBJECTIVE_STATE = "objective.json"


@dataclass
class DistillationArguments(TrainingArguments):
    """transformers.TrainingArguments with defaults for distillation.

    Weight decay (0 by default) acts on the cores of over-parameterized matrices, gradient clipping on dense gradients.
    """

    report_to: str | list[str] | None = field(default="none", metadata={"help": "tensorboard, trackio, ... or none"})
    logging_steps: float = field(default=50, metadata={"help": "optimizer steps between two lines of the log"})
    learning_rate: float = field(default=5e-5, metadata={"help": "initial learning rate"})


@dataclass(frozen=True)
class Constraint:
    """The constraint loss (OPDF, equation 5); the fields are those of `OverParameterization.align`."""

    weight: float = 0.1
    layer_map: LayerMap = "last"
    gauge: str = "matched"
    normalize: str = "relative"


class DistillationTrainer(Trainer):
    """transformers.Trainer for a student that follows a teacher (OPDF: arXiv 2411.06448).

    >>> trainer = opdf.DistillationTrainer(
    ...     student, opdf.DistillationArguments("out"), teacher=teacher, overparam=opdf.OverParamConfig(ones=3),
    ...     train_dataset=data,
    ... )
    >>> trainer.train()

    The teacher is frozen, in eval mode, and part of neither the student nor its checkpoints. The loss is a mean over
    the examples of all micro-batches of a step, however they are split. Everything else is the Trainer's.

    Args:
        model: the student. It stays a plain model; save it with `save_pretrained` at any time.
        args: default `DistillationArguments("opdf-output")`.
        teacher: a model for the same task, or None for objectives that need none.
        objective: what to learn from it; default `LogitsDistillation()`.
        overparam: how to over-parameterize the student; None trains it as it is.
        constraint: pull auxiliary cores to the teacher's; needs `overparam` and a teacher of the student's kind.
        **kwargs: as for transformers.Trainer.

    Raises:
        ValueError: student, teacher, objective and constraint do not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        *,
        teacher: nn.Module | None = None,
        objective: Objective | None = None,
        overparam: OverParamConfig | None = None,
        constraint: Constraint | None = None,
        **kwargs: Any,
    ) -> None:
        if teacher is model:
            raise ValueError("teacher and student are the same object; make the student with keep_layers or a copy")
        if constraint is not None and (overparam is None or teacher is None):
            raise ValueError("constraint needs overparam and a teacher; give both, or constraint=None")
        args = args if args is not None else DistillationArguments("opdf-output")
        self.objective = objective if objective is not None else LogitsDistillation()
        self.overparameterization: OverParameterization | None = None
        self._parts: dict[str, Tensor] = {}
        self._parts_since = 0
        self._teacher = teacher
        self.optimizer: torch.optim.Optimizer | None = None
        self.objective.prepare(model, teacher)
        if overparam is not None:
            self.overparameterization = overparameterize(model, overparam)
            if constraint is not None:
                assert teacher is not None
                self.overparameterization.align(teacher, **vars(constraint))
        if kwargs.get("train_dataset") is not None:
            kwargs["train_dataset"] = self.objective.training_data(kwargs["train_dataset"])
        super().__init__(model=model, args=args, **kwargs)
        # This class normalises its loss over the whole accumulation window by itself, see compute_loss.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        if teacher is not None:
            teacher.eval().requires_grad_(False).to(self.args.device)
        for module in self.objective.modules().values():
            module.to(self.args.device)
        self.add_callback(_ObjectiveHooks(self))

    @property
    def teacher(self) -> nn.Module | None:
        return self._teacher

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        extra = [p for module in self.objective.modules().values() for p in module.parameters()]
        current: torch.optim.Optimizer | None = self.optimizer
        if current is None and (self.overparameterization is not None or extra):
            student = self.model if model is None else model
            inner, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, student)
            groups = self._parameter_groups(student, extra)
            if self.overparameterization is None:
                current = inner(groups, **options)
            else:
                current = self.overparameterization.optimizer(inner, groups, **options)
            self.optimizer = current
            return current
        return super().create_optimizer(model)

    def _parameter_groups(self, student: nn.Module, extra: list[nn.Parameter]) -> list[dict[str, Any]]:
        """The Trainer's two groups, with and without weight decay; projections and the like go to the second."""
        decayed = set(self.get_decay_parameter_names(student))
        named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in named if n in decayed], "weight_decay": self.args.weight_decay},
            {"params": [*(p for n, p in named if n not in decayed), *extra], "weight_decay": 0.0},
        ]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of one step, and how many items they and the other processes' hold together."""
        samples = []
        for _, sample in zip(range(num_batches), epoch_iterator, strict=False):
            samples.append(sample)
        if not samples:
            return samples, None
        items = torch.stack([self.objective.count_items(self.model, s).to(device) for s in samples]).sum()
        items = self.accelerator.reduce(items, "sum")
        self.objective.before_forward(self, samples, items)
        return samples, items

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: Any = self._signature_columns
        self._signature_columns: list[str] = list(dict.fromkeys([*known, *self.objective.columns]))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss in training; the model's own loss in evaluation."""
        if not model.training or return_outputs:
            return super().compute_loss(model, inputs, return_outputs)
        if num_items_in_batch is None:
            num_items_in_batch = self.objective.count_items(model, inputs)
        with self.accelerator.autocast():
            losses = self.objective.losses(model, self._teacher, inputs, torch.as_tensor(num_items_in_batch))
        for name, value in losses.parts.items():
            self._parts[name] = self._parts[name] + value if name in self._parts else value
        # Gradients are averaged over processes, the loss is a sum over all their items.
        return losses.total * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            steps = max(1, self.state.global_step - self._parts_since)
            for name, value in self._parts.items():
                logs[f"{name}_loss"] = float(self.accelerator.reduce(value, "sum")) / steps
            self._parts, self._parts_since = {}, self.state.global_step
            if self.overparameterization is not None:
                logs.update(self.overparameterization.constraint_logs)
        super().log(logs, start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_student(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._load_student(self.state.best_model_checkpoint)

    def _load_student(self, checkpoint: str, model: Any = None) -> None:
        """Load weights as `from_pretrained` does.

        The Trainer matches the names in the file with the model's and skips those that differ, and transformers saves
        some models (ViT) under other names than they have in memory: their blocks would silently stay as they were.
        """
        student = self.accelerator.unwrap_model(self.model if model is None else model)
        if not hasattr(student, "from_pretrained"):
            super()._load_from_checkpoint(checkpoint, student)
            return
        with torch.random.fork_rng():
            loaded = type(student).from_pretrained(checkpoint, use_safetensors=True, dtype=student.dtype)
        student.load_state_dict(loaded.state_dict())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if isinstance(optimizer, OwnerOptimizer):
            optimizer.consolidate_state_dict()
        super()._save_optimizer_and_scheduler(output_dir)
        tensors = self.objective.tensors() if self.args.should_save else {}
        if tensors:
            own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
            save_file(own, Path(output_dir, OBJECTIVE_TENSORS))
        if self.args.should_save and (state := self.objective.state_dict()):
            Path(output_dir, OBJECTIVE_STATE).write_text(json.dumps(state))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.objective.tensors():
            self.objective.load_tensors(load_file(Path(checkpoint, OBJECTIVE_TENSORS)))
        state = Path(checkpoint, OBJECTIVE_STATE)
        if state.is_file():
            self.objective.load_state_dict(json.loads(state.read_text()))


class _ObjectiveHooks(TrainerCallback):
    """Passes the Trainer's events to the objective, whose own parameters no model wrapper looks after."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer._parts, self.trainer._parts_since = {}, state.global_step
        self.trainer.objective.on_train_begin(self.trainer)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.objective.on_epoch_begin(self.trainer)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.trainer.accelerator.num_processes > 1:
            for p in self._parameters():
                if p.grad is not None:
                    p.grad = self.trainer.accelerator.reduce(p.grad, "mean")
        self.trainer.objective.before_optimizer_step(self.trainer)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.objective.after_optimizer_step(self.trainer)
        for p in self._parameters():
            p.grad = None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.objective.on_train_end(self.trainer)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for module in self.trainer.objective.modules().values() for p in module.parameters()]
