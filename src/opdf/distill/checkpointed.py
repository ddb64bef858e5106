"""transformers.Trainer with checkpoints that are whole or absent, and from which a run goes on as if never stopped."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerControl
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, has_length

from opdf.distill import checkpoint
from opdf.distill.models import as_made
from opdf.files import owned
from opdf.overparam import OwnerOptimizer, gathered, local, scattered

OPTIMIZER, EXTRA, REST = "optimizer", "objective", "student"
"""Files for the optimizer's state, a subclass's state, and the part of the student that its model files lack."""

RUN = "run.json"
"""The record of a run, with which a resumed one is compared."""


class CheckpointedTrainer(Trainer):
    """A Trainer whose checkpoints are whole or absent, hold all of a run, and are checked before they are used.

    A subclass adds the record of its run (`record`), state beside model and optimizer (`extra_state`), and a check
    before something is written (`check_before_saving`).
    """

    _staging: Path | None = None
    """Folder of the checkpoint that is being written."""

    control: TrainerControl
    _steps_before: int = 0
    """Of the run that is resumed."""

    _best_before: Path | None = None
    """The best checkpoint of the run that is resumed."""

    _last_of_epoch: int = 0
    """The newest step with which an epoch ended."""

    _last_saved: int = 0
    """The step of the newest checkpoint of this training."""

    def record(self) -> dict[str, Any]:
        """What decides this run's result, by name; plain values, lists and mappings."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """Tensors and plain values of this run, beside model and optimizer."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Inverse of `extra_state`."""

    def check_before_saving(self, model: nn.Module) -> None:
        """Raise if a checkpoint would not be worth writing."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; True resumes from the newest checkpoint that is whole and warns of newer ones.

        Raises:
            FileNotFoundError: True, and no checkpoint in `args.output_dir` is whole.
            FileExistsError: another process writes its checkpoints into `args.output_dir`.
            ValueError: the checkpoint is incomplete, damaged, holds pickled objects, or is of a run that was made with
                something else; the message names what differs. Or the best one before it is wanted and is not whole.
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
        if resume_from_checkpoint:
            self._check_same_run(Path(resume_from_checkpoint))
        else:
            self._steps_before, self._best_before = 0, None
        self._last_of_epoch = self._last_saved = 0
        folder = Path(self.args.output_dir)
        writes = resume_from_checkpoint or self.args.save_strategy != SaveStrategy.NO
        try:
            with owned(folder) if writes and self.is_world_process_zero() else nullcontext():
                self._clear(folder / checkpoint.SCRATCH)  # this run may have nothing to save
                if self.model is not None:  # a search for hyperparameters makes it later
                    as_made(self.model)
                return super().train(resume_from_checkpoint, *args, **kwargs)
        except pickle.UnpicklingError as error:  # a file of it that is not what torch reads with weights_only
            raise ValueError(
                f"{resume_from_checkpoint} holds pickled objects, which are not loaded; resume from one of opdf's own"
            ) from error

    def _check_same_run(self, folder: Path) -> None:
        state = json.loads((folder / TRAINER_STATE_NAME).read_text())
        self._steps_before = state["max_steps"]
        if self.args.auto_find_batch_size and state["train_batch_size"]:
            self._train_batch_size = state["train_batch_size"]  # as the Trainer will
        changes = checkpoint.changes(json.loads((folder / RUN).read_text()), plain(self.record()))
        if changes:
            raise ValueError(
                f"{folder} is of a run that was made otherwise: {'; '.join(changes)}. Resume with what the run began "
                "with, or start a new one in another folder"
            )
        self._best_before = best_before(folder, state)
        best = self._best_before if self.args.load_best_model_at_end else None
        if best is not None and (problem := checkpoint.damage(best)):
            raise ValueError(
                f"load_best_model_at_end is true and {best}, the best so far in {folder}, cannot be used: {problem}. "
                "Bring it back, or resume from a checkpoint before it"
            )

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *args: Any, **kwargs: Any
    ) -> tuple[int, int]:
        """The Trainer's epoch and micro-batches in it, after which a run begins; also of rows that have no number.

        For these the Trainer skips all micro-batches in the first pass over them, even if that had fewer. It also
        trains on where early stopping had ended the run: a run that is over begins after its last epoch.
        """
        begin: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs
        )
        if self._best_before:
            self.state.best_model_checkpoint = str(self._best_before)
        if self._has_stopped_early():
            if max_steps > self._steps_before:
                warnings.warn(
                    f"early stopping ended this run at step {self.state.global_step}, and more steps change nothing",
                    stacklevel=2,
                )
            return num_train_epochs, 0
        if not self._steps_before or has_length(self.train_dataset) or self.args.ignore_data_skip:
            return begin
        passes, part = divmod(self.state.epoch or 0.0, 1)
        steps = math.ceil(part * self._steps_before - 1e-6)  # the Trainer takes a pass to have all steps of the run
        return int(passes), steps * self.args.gradient_accumulation_steps

    def _has_stopped_early(self) -> bool:
        """Whether the checkpoint that a run goes on from is of the evaluation after which early stopping ended it."""
        return bool(self._steps_before) and any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """The Trainer's, but for `eval_on_start` of a run that goes on: early stopping would count it as one more."""
        if skip_scheduler and self.state.global_step:  # no other evaluation of a training leaves the scheduler alone
            return {}
        metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        return metrics

    def check_length(self, steps: int) -> None:
        """Refuse to resume a run with fewer steps than it had: its learning rate would have fallen faster.

        Called once the number of `steps` is known.
        """
        if steps < self._steps_before:
            raise ValueError(
                f"the run was to have {self._steps_before} steps and is to have {steps}; resume with as many or more "
                "(max_steps, num_train_epochs), or start a new one in another folder"
            )

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """The Trainer's, but for the last step of an epoch, whose checkpoint is written when the epoch has ended.

        From there a run goes on with the next epoch. Without the evaluation that an epoch ends with, early stopping and
        the learning rate would miss one. The Trainer calls this after every step, and again at the end of an epoch.

        With `save_strategy` best it forgets that a callback has asked for a checkpoint, as a signal does.
        """
        step, asked = self.state.global_step, self.control.should_save
        waits = bool(self.state.epoch) and float(self.state.epoch).is_integer() and step != self._last_of_epoch
        if waits:
            self._last_of_epoch, self.control.should_save = step, False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if waits:
            self.control.should_save = asked
        elif asked and self._last_saved != step:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's files and ours, written beside and given their name when all are there."""
        self.check_before_saving(model)
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
                    (staged / RUN).write_text(json.dumps(plain(self.record()), indent=1))
                    checkpoint.publish(staged, final)
        finally:
            self._staging = None
            self._clear(scratch)
        self._last_saved = self.state.global_step
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

    # The student: the files of its class, for others to load, and beside them what those leave out.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call and self.is_fsdp_enabled:  # whole, so that any number of processes can load it
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            self._save(output_dir, get_model_state_dict(self.model, options=options))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        state = student.state_dict() if state_dict is None else state_dict
        if state_dict is None and not saves_adapters(student):
            known = getattr(student, "all_tied_weights_keys", None) or {}  # transformers saves those once
            tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
            state_dict = separate(tensors, {*known, *known.values()})
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle
        (folder / TRAINING_ARGS_NAME).with_suffix(".json").write_text(self.args.to_json_string())
        if self._staging is not None:
            frozen = frozen_names(student) if saves_adapters(student) else set()
            kept = {name: value for name, value in state.items() if name not in frozen}
            checkpoint.write_state(folder, REST, left_out(kept, folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_student(Path(resume_from_checkpoint), model)

    def _load_best_model(self) -> None:
        folder = Path(self.state.best_model_checkpoint)
        self._load_student(folder)
        for state in checkpoint.read_state(folder, EXTRA):
            self.load_extra_state(state)

    def _load_student(self, folder: Path, model: Any = None) -> None:
        """Restore every parameter and buffer, whatever made it.

        transformers would load its model files alone. Some of its models (ViT) are saved under other names than they
        have in memory, and it skips names that it does not find.
        """
        student = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        (rest,) = checkpoint.read_state(folder, REST)
        ours = student.state_dict()
        found = {name: value for name, value in saved_tensors(folder) if name in ours and name not in rest} | rest
        frozen = frozen_names(student) if saves_adapters(student) else set()
        check_same_student(found, {name: value for name, value in ours.items() if name not in frozen}, folder)
        if self.is_fsdp_enabled:
            set_model_state_dict(student, found, options=StateDictOptions(full_state_dict=True, strict=False))
        else:
            student.load_state_dict(found, strict=False)  # tied tensors are there once

    # The optimizer, the scheduler and what a subclass has.

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
            checkpoint.write_state(folder, EXTRA, self.extra_state())
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
        (extra,) = checkpoint.read_state(folder, EXTRA)
        self.load_extra_state(extra)


def best_before(folder: Path, state: Mapping[str, Any]) -> Path | None:
    """The best checkpoint that the state in a checkpoint names; None if it names none.

    It is beside that one, also where both were moved since. A run that went on in another folder left it in the first.
    """
    named = state["best_model_checkpoint"]
    if named is None:
        return None
    beside = folder.parent / Path(named).name
    return beside if beside.is_dir() else Path(named)


def plain(value: Any) -> Any:
    """A value as JSON gives it back; what JSON does not know is named by its type."""
    return json.loads(json.dumps(value, default=lambda other: f"a {type(other).__name__}"))


def saves_adapters(student: Any) -> bool:
    """Whether `save_pretrained` writes peft's adapters and not the model that they are in."""
    return hasattr(student, "peft_config") and not isinstance(student, PreTrainedModel)


def frozen_names(student: nn.Module) -> set[str]:
    return {name for name, p in student.named_parameters() if not p.requires_grad}


def saved_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint's model files hold, under the names that they have there."""
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def left_out(state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The part of a state dict that the model files in a folder do not hold bit for bit under the same name."""
    there = {name for name, value in saved_tensors(folder) if name in state and same(value, state[name])}
    through = {place(state[name]) for name in there}
    return {name: value for name, value in state.items() if name not in there and place(value) not in through}


def same(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.detach().cpu())


def place(value: Any) -> tuple[Any, ...]:
    """Where a tensor's values lie, the same for tied tensors. All else, and an empty tensor, has a place of its own."""
    if not isinstance(value, Tensor) or not value.numel():
        return (id(value),)
    value = local(value)
    start = value.untyped_storage().data_ptr()
    return start, value.storage_offset(), tuple(value.shape), tuple(value.stride()), value.dtype


def separate(state: Mapping[str, Tensor], tied: Container[str]) -> dict[str, Tensor]:
    """A state dict in which only tensors named in `tied` share memory, because file formats refuse others."""
    seen, result = set(), {}
    for name, value in state.items():
        memory = value.untyped_storage().data_ptr()
        shared = bool(value.numel()) and memory in seen and name not in tied
        result[name] = value.detach().clone() if shared else value.detach()
        seen.add(memory)
    return {name: value.contiguous() for name, value in result.items()}


def check_same_student(found: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint of a student with other parameters or buffers.

    Raises:
        ValueError: one is missing on either side, or has another shape or dtype.
    """
    through = {place(ours[name]) for name in found if name in ours}
    missing = [name for name, value in ours.items() if name not in found and place(value) not in through]
    unknown = [name for name in found if name not in ours]
    for names, who, other in ((missing, "the student", folder), (unknown, folder, "the student")):
        if names:
            raise ValueError(
                f"{who} has {names[0]} and {other} does not; resume with a student that is made as the first one was"
            )
    for name, value in found.items():
        mine = ours[name]
        if isinstance(value, Tensor) and (value.shape != mine.shape or value.dtype != mine.dtype):
            raise ValueError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)} in {folder}, and {mine.dtype} of shape "
                f"{tuple(mine.shape)} in the student; resume with a student that is made as the first one was"
            )
