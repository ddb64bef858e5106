"""Distillation on transformers.Trainer, with the student's matrices over-parameterized if asked."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from opdf.distill import checkpoint
from opdf.distill.arguments import DistillationArguments, check_engine, check_loss
from opdf.distill.methods import LogitsDistillation
from opdf.distill.models import check_labels
from opdf.distill.objective import Objective
from opdf.overparam import (
    Constraint,
    OverParamConfig,
    OverParameterization,
    OwnerOptimizer,
    gathered,
    local,
    overparameterize,
    scattered,
    whole,
)

OPTIMIZER, OBJECTIVE = "optimizer", "objective"

HOPELESS_SCALE = 2.0**-20
"""A gradient scaler starts at 2^16 and halves at each overflow; down here it has long not seen a finite gradient."""


class TrainingDiverged(ArithmeticError):  # noqa: N818
    """The loss or its gradient is no longer a finite number.

    Attributes:
        step: the optimizer step in which that was first so.
        checkpoint: the newest whole checkpoint, written before; None if there is none.
    """

    def __init__(self, what: str, step: int, checkpoint: Path | None) -> None:
        self.step, self.checkpoint = step, checkpoint
        saved = f"the last checkpoint before it is {checkpoint}" if checkpoint else "no checkpoint was written before"
        super().__init__(
            f"training diverged: {what} in step {step}; {saved}. Resuming would repeat it: start anew with a lower "
            "learning_rate, more warmup_steps, max_grad_norm=1, or bf16 instead of fp16, and look at the data"
        )


def plan_student(
    student: nn.Module,
    teacher: nn.Module | None,
    objective: Objective,
    overparam: OverParamConfig | None,
    constraint: Constraint | None,
) -> OverParameterization | None:
    """Prepare an objective and the over-parameterization of its student; also with models on the meta device.

    Raises:
        ValueError: student, teacher, objective and constraint do not fit together.
    """
    if teacher is student:
        raise ValueError("teacher and student are the same object; make the student with keep_layers or a copy")
    if constraint is not None and (overparam is None or teacher is None):
        raise ValueError("constraint needs overparam and a teacher; give both, or constraint=None")
    objective.prepare(student, teacher)
    if overparam is None:
        return None
    planned = overparameterize(student, overparam)
    if constraint is not None:
        assert teacher is not None
        planned.align(teacher, constraint)
    return planned


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
        ValueError: student, teacher, objective and constraint do not fit together, a model is on the meta device,
            there is nothing to train on, or a label is out of the student's range.
        TypeError: the optimizer cannot step cores.
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
        args = args if args is not None else DistillationArguments("opdf-output")
        check_engine(args)
        check_loss(args)
        self.objective = objective if objective is not None else LogitsDistillation()
        self._parts: dict[str, Tensor] = {}
        self._parts_since = 0
        self._window: tuple[list[Any], Any] = [], None
        self._staging: Path | None = None
        self._diverged: Tensor | None = None
        self._teacher = teacher
        self.optimizer: torch.optim.Optimizer | None = None
        for who, given in (("student", model), ("teacher", teacher)):
            if given is not None and any(p.is_meta for p in given.parameters()):
                raise ValueError(f"the {who} is on the meta device and has no weights; load them first")
        self.overparameterization = plan_student(model, teacher, self.objective, overparam, constraint)
        self.objective.check_arguments(args)
        self._check_used(kwargs, overparam)
        if kwargs.get("train_dataset") is not None:
            check_labels(model, kwargs["train_dataset"])
            kwargs["train_dataset"] = self.objective.training_data(kwargs["train_dataset"])
            if hasattr(kwargs["train_dataset"], "__len__") and not len(kwargs["train_dataset"]):
                raise ValueError("train_dataset has no rows; give some to train on")
        super().__init__(model=model, args=args, **kwargs)
        check_engine(args, self.accelerator)
        if self.overparameterization is not None:
            inner, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, model)
            self.overparameterization.check_optimizer(inner, options)
        # This class normalises its loss over the whole accumulation window by itself, see compute_loss.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        if teacher is not None:
            teacher.eval().requires_grad_(False)
            if len(set(getattr(teacher, "hf_device_map", {}).values())) < 2:  # else spread over devices on purpose
                teacher.to(self.args.device)
        for module in self.objective.modules().values():
            module.to(self.args.device)
        self.add_callback(_ObjectiveHooks(self))

    def _check_used(self, given: dict[str, Any], overparam: OverParamConfig | None) -> None:
        """Refuse what the Trainer takes and this class would not use."""
        if (given.get("optimizers") or (None,))[0] is not None and (overparam is not None or self.objective.modules()):
            raise ValueError(
                "optimizers has an optimizer, which would step the student's weights and not their cores or what the "
                "objective trains; give optimizer_cls_and_kwargs=(class, options) instead"
            )
        if given.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func is set, and the loss is the objective's; write an Objective instead")

    @property
    def teacher(self) -> nn.Module | None:
        return self._teacher

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        extra = self._own_parameters()
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
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed when all was done: the Trainer would go one further
        samples = []
        for _, sample in zip(range(num_batches), epoch_iterator, strict=False):
            samples.append(sample)
        if not samples:
            return samples, None
        items = torch.stack([self.objective.count_items(self.model, s).to(device) for s in samples]).sum()
        items = self.accelerator.reduce(items, "sum").clamp(min=1)  # a step without a kept token has no loss
        self._window = samples, items
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
            inputs = {name: value for name, value in inputs.items() if name not in self.objective.columns}
            return super().compute_loss(model, inputs, return_outputs)
        if num_items_in_batch is None:
            num_items_in_batch = self.objective.count_items(model, inputs)
        with self.accelerator.autocast():
            losses = self.objective.losses(model, self._teacher, inputs, torch.as_tensor(num_items_in_batch))
        for name, value in losses.parts.items():
            self._parts[name] = self._parts[name] + value if name in self._parts else value
        self._watch(losses.total.detach())
        # Gradients are averaged over processes, the loss is a sum over all their items.
        return losses.total * self.accelerator.num_processes

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        # Now, not before the step: what looks for overflow then has to see the same gradients on every process.
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            for p in self._own_parameters():
                if p.grad is not None:
                    p.grad = self.accelerator.reduce(p.grad, "mean")
        return loss

    def _own_parameters(self) -> list[nn.Parameter]:
        """Those of the objective, which no model wrapper looks after."""
        return [p for module in self.objective.modules().values() for p in module.parameters()]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._watch(torch.as_tensor(norm, device=self.args.device))
        return norm

    def _watch(self, value: Tensor) -> None:
        """Remember the first step with a value that is not finite, without waiting for the device.

        A gradient scaler meets such values as a matter of course and skips their steps.
        """
        if self.accelerator.scaler is not None:
            return
        step = torch.where(whole(value).isfinite(), torch.inf, float(self.state.global_step + 1))
        self._diverged = step if self._diverged is None else torch.minimum(self._diverged, step)

    def _check_finite(self) -> None:
        """Called where the device is waited for anyway: before a log entry and before a checkpoint.

        Raises:
            TrainingDiverged: since the last call, some step was not finite.
        """
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < HOPELESS_SCALE:
            self._give_up("the gradient scaler finds no scale without overflow", self.state.global_step)
        if self._diverged is None:
            return
        step = -float(self.accelerator.gather(-self._diverged.reshape(1)).max())
        self._diverged = None
        if step != torch.inf:
            self._give_up("the loss or its gradient is infinite or not a number", int(step))

    def _check_weights(self, model: nn.Module) -> None:
        """Weights can leave the range of their dtype in the last step before a checkpoint, which no loss has seen."""
        broken = torch.stack([~local(p).isfinite().all() for p in model.parameters()]).any()
        if self.accelerator.reduce(broken.float(), "sum") > 0:
            self._give_up("a weight is infinite or not a number", self.state.global_step)

    def _give_up(self, what: str, step: int) -> None:
        raise TrainingDiverged(what, step, checkpoint.newest_whole(Path(self.args.output_dir)))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_loss" in logs:
            self._check_finite()
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
        if not isinstance(student, PreTrainedModel):
            super()._load_from_checkpoint(checkpoint, student)
            return
        with torch.random.fork_rng():
            loaded = type(student).from_pretrained(checkpoint, use_safetensors=True, dtype=student.dtype)
        set_model_state_dict(student, loaded.state_dict(), options=StateDictOptions(full_state_dict=True))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; True resumes from the newest checkpoint that is whole and warns of newer ones.

        Raises:
            FileNotFoundError: True, and no checkpoint in `args.output_dir` is whole.
            ValueError: the checkpoint that was named is incomplete, damaged or altered, or holds pickled objects.
            TrainingDiverged: the loss or its gradient became infinite or not a number.
        """
        if resume_from_checkpoint is True:
            newest = checkpoint.newest_whole(Path(self.args.output_dir))
            if newest is None:
                raise FileNotFoundError(f"{self.args.output_dir} holds no whole checkpoint; start without resuming")
            resume_from_checkpoint = str(newest)
        elif resume_from_checkpoint and (problem := checkpoint.damage(Path(resume_from_checkpoint))):
            raise ValueError(
                f"{resume_from_checkpoint} cannot be resumed from: {problem}; "
                "resume_from_checkpoint=True takes the newest that is whole"
            )
        self._clear(Path(self.args.output_dir) / checkpoint.SCRATCH)  # a run that has nothing left to save would not
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except pickle.UnpicklingError as error:  # a file of it that is not what torch reads with weights_only
            raise ValueError(
                f"{resume_from_checkpoint} holds pickled objects, which are not loaded; resume from one of opdf's own"
            ) from error

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's files and ours, written beside and given their name when all are there."""
        self._check_finite()
        self._check_weights(model)
        folder = Path(self._get_output_dir(trial))
        final = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        scratch = folder / checkpoint.SCRATCH
        staged = scratch / final.name
        self._clear(scratch)  # what a killed run left
        self.accelerator.wait_for_everyone()
        self._staging = scratch
        try:
            with checkpoint.writing(
                str(final), "the checkpoints before it are whole. Free space, or lower save_total_limit, and resume"
            ):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.state.best_model_checkpoint == str(staged):
                    self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                    checkpoint.publish(staged, final)
        finally:
            self._staging = None
            self._clear(scratch)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            checkpoint.rotate(folder, self.args.save_total_limit, {final, *([Path(best)] if best else [])})

    def _clear(self, scratch: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(scratch, ignore_errors=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else the checkpoint has no name yet
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call and self.is_fsdp_enabled:  # whole, so that any number of processes can load it
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            self._save(output_dir, get_model_state_dict(self.model, options=options))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle
            (folder / TRAINING_ARGS_NAME).with_suffix(".json").write_text(self.args.to_json_string())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)  # another process may be about to
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if isinstance(optimizer, OwnerOptimizer):
            checkpoint.write_state(folder, OPTIMIZER, optimizer.part_state_dict(), self.args.process_index)
        else:
            state = gathered(optimizer.state_dict(), keep=self.args.should_save)
            if self.args.should_save:
                checkpoint.write_state(folder, OPTIMIZER, state)
        if self.args.should_save:
            objective = {"tensors": self.objective.tensors(), "state": self.objective.state_dict()}
            checkpoint.write_state(folder, OBJECTIVE, objective)
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder = Path(checkpoint_folder)
        parts = checkpoint.read_state(folder, OPTIMIZER)
        if not parts:
            raise ValueError(
                f"{folder} has no state of the optimizer (save_only_model); start a new run from its weights instead"
            )
        state = {key: value for part in parts for key, value in part["state"].items()}
        assert self.optimizer is not None
        self.optimizer.load_state_dict(scattered(parts[0] | {"state": state}, self.optimizer))
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
        (objective,) = checkpoint.read_state(folder, OBJECTIVE)
        self.objective.load_tensors(objective["tensors"])
        self.objective.load_state_dict(objective["state"])


class _ObjectiveHooks(TrainerCallback):
    """Passes the Trainer's events to the objective."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.accelerator.num_processes > 1:
            for p in self.trainer._own_parameters():
                p.data.copy_(broadcast(p.data))
        self.trainer._parts, self.trainer._parts_since = {}, state.global_step
        self.trainer._diverged = None
        self.trainer.objective.on_train_begin(self.trainer)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.objective.on_epoch_begin(self.trainer)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Not where the batches are drawn: a resumed run sets its random state between the two.
        self.trainer.objective.before_forward(self.trainer, *self.trainer._window)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.objective.after_optimizer_step(self.trainer)
        for p in self.trainer._own_parameters():
            p.grad = None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.objective.on_train_end(self.trainer)
