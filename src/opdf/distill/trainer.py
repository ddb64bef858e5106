"""Distillation on transformers.Trainer, with the student's matrices over-parameterized if asked."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import RandomSampler
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import has_length

from opdf.distill import checkpoint
from opdf.distill.arguments import (
    MUON,
    DistillationArguments,
    check_engine,
    check_loss,
    chooses_by_evaluation,
    deciding,
)
from opdf.distill.attention import attention_kernel
from opdf.distill.checkpointed import CheckpointedTrainer
from opdf.distill.digests import rows_glance, weights_digest
from opdf.distill.divergence import Divergence, TrainingDiverged
from opdf.distill.ensemble import members, softened
from opdf.distill.labels import check_batch, check_labels, check_names, check_rows
from opdf.distill.matching import check_same_marks
from opdf.distill.methods import name_of
from opdf.distill.models import as_made, configured, has_no_head, is_language_model, unshared_inputs
from opdf.distill.muon import MuonWithAdamW, muon_groups, muon_options
from opdf.distill.named import build, build_objective
from opdf.distill.objective import Objective
from opdf.distill.order import RowOrder, alike
from opdf.distill.planning import plan_student
from opdf.distill.precision import warn_of_rounding, warn_of_slow_training
from opdf.distill.teachers import find_teacher
from opdf.distill.unused import all_reached, may_vary
from opdf.overparam import Constraint, OverParamConfig, OverParameterization, OverParameterizedOptimizer, local


class DistillationTrainer(CheckpointedTrainer):
    """transformers.Trainer for a student that follows a teacher (OPDF: arXiv 2411.06448).

        arguments = opdf.DistillationArguments("out")
        trainer = opdf.DistillationTrainer(
            student, arguments, teacher=teacher, overparam={"ones": 3}, train_dataset=data
        )
        trainer.train()

    The teacher is frozen, in eval mode, and part of neither the student nor its checkpoints. The loss is a mean over
    the examples, or tokens, of all micro-batches of a step, however they are split. Everything else is the Trainer's.

    Args:
        model: the student. It stays a plain model; save it with `save_pretrained` at any time.
        args: default `DistillationArguments("opdf-output")`.
        teacher: a model for the same task; its name (hub, folder, or "minilm"); a list of these, of which the student
            follows the mean, or an `Ensemble` of weighted ones; or None for objectives that need none.
        objective: what to learn from it: a name ("hidden"), a mapping ({"name": "hidden", "hidden_weight": 2.0}), or an
            `Objective`. Default "logits".
        overparam: how to over-parameterize the student, as `OverParamConfig` or its fields; None trains it as it is.
        constraint: pull auxiliary cores to the teacher's, as `Constraint` or its fields; needs `overparam` and a
            teacher of the student's kind. A student that `shrink` has made in this process is pulled to its own start,
            which is the teacher in the student's coordinates. One that was saved and loaded is pulled to the teacher.
        model_init: makes the student, in place of `model`. Every `train()` and every trial of `hyperparameter_search`
            begins with a new one, a new objective and the teacher as it was.

    All other arguments are those of transformers.Trainer.

    Attributes:
        method: the objective. (The Trainer has an attribute `objective` of its own: a search's score.)
        teacher: the teacher's model, or None.
        overparameterization: of the student, or None.

    Raises:
        ValueError: student, teacher, objective, constraint, arguments and optimizers do not fit together, there is no
            such teacher or objective, a model is on the meta device, there is nothing to train on, or a label is out of
            the student's range.
        FileNotFoundError, ConnectionError: the teacher's folder is not there, or the embedded model cannot be fetched.
        TypeError: an option is unknown, the teacher is no model or name of one, a weight to over-parameterize is
            quantized, the training data are no rows, or the optimizer cannot step cores.
    """

    loss_is_scaled_for_ga = True
    """This class normalises its loss over the whole accumulation window by itself, see `compute_loss`."""

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        teacher: nn.Module | str | Path | Sequence[nn.Module | str | Path] | None = None,
        objective: Objective | str | Mapping[str, Any] | None = None,
        overparam: OverParamConfig | Mapping[str, Any] | None = None,
        constraint: Constraint | Mapping[str, Any] | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[[Any], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Tensor] | None = None,
    ) -> None:
        args = args if args is not None else DistillationArguments("opdf-output")
        check_engine(args)
        check_loss(args, compute_loss_func)
        check_rows(train_dataset)
        self.overparam = build(OverParamConfig, overparam, "overparam")
        self.constraint = build(Constraint, constraint, "constraint")
        self.method = build_objective(objective)
        self.overparameterization: OverParameterization | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._given_method = copy.deepcopy(self.method) if model_init is not None else None
        self._given_rows = train_dataset
        self._teacher = teacher
        self._given_teacher: dict[str, Tensor] | None = None
        self._teacher_record: dict[str, Any] | None = None
        self._rows_glance = rows_glance(train_dataset, self.method.columns)
        self._configured: dict[str, Any] | None = None
        self._is_made = False
        self._seen_batch = False
        self._order = RowOrder()
        self._parts: dict[str, Tensor] = {}
        self._parts_since = 0
        self._window: tuple[list[Any], Any] = [], None
        self._divergence = Divergence()
        self._mark = object()
        self._options: dict[str, Any] = {}
        if model is not None:
            set_seed(args.seed)  # as the Trainer does, too late for what an objective makes of its own
            self._plan(model, args)
        super().__init__(
            model=model, args=args, data_collator=data_collator, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=processing_class, model_init=model_init, compute_metrics=compute_metrics,
            callbacks=callbacks, optimizers=optimizers, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )  # fmt: skip
        self._check_given(optimizers)
        self.model_accepts_loss_kwargs = False
        self._settle()
        self._is_made = True
        self.add_callback(_ObjectiveHooks(self))
        if (patience := getattr(args, "early_stopping_patience", None)) is not None:
            self.add_callback(EarlyStoppingCallback(patience, args.early_stopping_threshold))

    def _check_given(self, optimizers: tuple[torch.optim.Optimizer | None, Any]) -> None:
        """Refuse an optimizer, a scheduler or an engine that would not train all of what is planned."""
        if optimizers[0] is not None and (self.overparameterization is not None or self.method.modules()):
            raise ValueError(
                "optimizers has an optimizer, which would step the student's weights and not their cores or what the "
                "objective trains; give optimizer_cls_and_kwargs=(class, options) instead"
            )
        if optimizers[1] is not None and getattr(optimizers[1], "optimizer", optimizers[0]) is not optimizers[0]:
            raise ValueError(
                "optimizers has a scheduler of an optimizer that is not trained with, whose rates it would set; give "
                "both, (optimizer, scheduler), or name it in the arguments (lr_scheduler_type, lr_scheduler_kwargs)"
            )
        check_engine(self.args, self.accelerator)
        if self.overparameterization is not None:
            inner, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.overparameterization.check_optimizer(inner, options)

    def _plan(self, student: nn.Module, args: TrainingArguments) -> None:
        """Everything that depends on which model the student is."""
        self._configured = configured(student)
        frozen = not self.method.trains_teacher
        teacher = self._teacher = find_teacher(self._teacher, student, trained=frozen)
        teachers = members(teacher) if teacher is not None else []
        for who, model in (("student", student), *(("teacher", one) for one in teachers)):
            if any(p.is_meta for p in model.parameters()):
                raise ValueError(f"the {who} is on the meta device and has no weights; load them first")
            as_made(model)  # another Trainer may have scored or trained it, in half precision
        if teacher is not None and not frozen:
            self._bring_back(teacher)
        self.overparameterization = plan_student(student, teacher, self.method, self.overparam, self.constraint, args)
        if not any(p.requires_grad for p in student.parameters()):
            raise ValueError(
                "the student's weights are all frozen, as a teacher's are, or those that peft has merged; give "
                "student.requires_grad_(True), or leave those that are to be trained unfrozen"
            )
        self._options = self.method.options  # a callback may change them on the way (an annealed temperature)
        self.method.unshared, self.method.prepared_for = unshared_inputs([student, *teachers]), self._mark
        check_labels(student, self._given_rows)
        check_names([student, *teachers], self._given_rows)
        warn_of_rounding("student", (p for p in student.parameters() if p.requires_grad))
        if teacher is not None and not frozen:
            warn_of_rounding("teacher", teacher.parameters())
        warn_of_slow_training(args, self.overparam, teacher)
        if teacher is not None:
            teacher.eval()
            if frozen:
                teacher.requires_grad_(False)

    def _bring_back(self, teacher: nn.Module) -> None:
        """With `model_init`, give a teacher that is trained the weights with which it came: all trainings begin so."""
        if self._given_method is None:
            return
        if self._given_teacher is None:
            self._given_teacher = copy.deepcopy(teacher.state_dict())
        teacher.load_state_dict(self._given_teacher)

    def _check_aligned(self) -> None:
        """Compare special tokens once more: with a `processing_class`, `train` gives its own to the student alone."""
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self.teacher is None or not self.method.needs_teacher or is_language_model(student) or has_no_head(student):
            return
        for one in members(self.teacher):
            check_same_marks(student, one)

    def _check_prepared(self) -> None:
        """Refuse an objective that is prepared for another student and teacher by now: it would learn from those."""
        if self.method.prepared_for is not self._mark:
            raise ValueError(
                f"objective is a {type(self.method).__name__} that another trainer was given since; give each trainer "
                "one of its own, or train with one before you make the next"
            )

    def _settle(self) -> None:
        """Put the objective's rows, its modules and the teacher where training finds them."""
        if self._given_rows is not None:
            self.train_dataset = self.method.training_data(self._given_rows)
            if hasattr(self.train_dataset, "__len__"):
                self._check_rows(len(self.train_dataset))
        for module in self.method.modules().values():
            module.to(self.args.device)
        # A teacher that is spread over devices is so on purpose.
        if self.teacher is not None and len(set(getattr(self.teacher, "hf_device_map", {}).values())) < 2:
            self.teacher.to(self.args.device)

    def _check_rows(self, rows: int) -> None:
        if not rows:
            raise ValueError("train_dataset has no rows; give some to train on")
        batch = self.args.train_batch_size * self.accelerator.num_processes
        if self.args.dataloader_drop_last and rows < batch:
            raise ValueError(
                f"dataloader_drop_last is true and train_dataset has {rows} rows, fewer than the {batch} of a batch, "
                "so that none is left; lower per_device_train_batch_size, or leave dataloader_drop_last out"
            )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new student, and with it the objective and the teacher as they were given.

        The Trainer sets a trial's arguments later; its seed, and what the objective asks of them, are for this too.
        """
        if self._is_made and trial is not None:
            self._hp_search_setup(trial)
            set_seed(self.args.seed)
        student: nn.Module = super().call_model_init(trial)
        assert self._given_method is not None
        self.method = copy.deepcopy(self._given_method)
        self._plan(student, self.args)
        if self._is_made:
            self._settle()
        return student

    def _hp_search_setup(self, trial: Any) -> None:
        """The Trainer's, called before every training; a search may not vary a loss that is not used."""
        super()._hp_search_setup(trial)
        check_loss(self.args)

    @property
    def teacher(self) -> nn.Module | None:
        assert self._teacher is None or isinstance(self._teacher, nn.Module)
        return self._teacher

    # What a checkpoint records, and what else it holds.

    def record(self) -> dict[str, Any]:
        overparam = asdict(self.overparam) if self.overparam is not None else None
        if overparam is not None:
            overparam.pop("keep_products")  # it changes memory and time
        if self._teacher_record is None and self.teacher is not None and not self.method.trains_teacher:
            with softened(self.teacher, getattr(self.method, "temperature", 1.0)):  # other runs may share the teacher
                digest = weights_digest(self.teacher)
            self._teacher_record = {"config": configured(self.teacher), "weights": digest}
        found_size = self._train_batch_size if self.args.auto_find_batch_size else self.args.train_batch_size
        return {
            "args": deciding(self.args, found_size) | self._judged_by(),
            "objective": {"name": name_of(self.method), **self._options},
            "overparam": overparam,
            "constraint": asdict(self.constraint) if self.constraint is not None else None,
            "teacher": self._teacher_record,
            "student": self._configured,
            "train_dataset": _described(self._given_rows, self._rows_glance),
        }

    def _judged_by(self) -> dict[str, Any]:
        """The rows that the best checkpoint is chosen on, or that end the training, where there are such."""
        if not chooses_by_evaluation(self.args):
            return {}
        rows = self.eval_dataset
        if isinstance(rows, dict):
            return {"eval_dataset": {name: _described(part, rows_glance(part)) for name, part in rows.items()}}
        return {"eval_dataset": _described(rows, rows_glance(rows))}

    def extra_state(self) -> dict[str, Any]:
        draws = self._order.next_states(has_ended=float(self.state.epoch or 0).is_integer())
        return {"tensors": self.method.tensors(), "state": self.method.state_dict(), "draws": draws}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.method.load_tensors(state["tensors"])
        self.method.load_state_dict(state["state"])
        self._order.go_on_from(state.get("draws", []))

    def check_before_saving(self, model: nn.Module) -> None:
        """Refuse weights that are not finite: no loss has seen what the last step before a checkpoint made of them."""
        self._check_finite()
        trained = [*model.parameters(), *self._own_parameters()]
        broken = torch.stack([~local(p).isfinite().all() for p in trained]).any()
        if self.accelerator.reduce(broken.float(), "sum") > 0:
            self._give_up("a weight is infinite or not a number", self.state.global_step)

    # Processes.

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        handler, asked = self.accelerator.ddp_handler, self.args.ddp_find_unused_parameters
        ours = self.accelerator.num_processes > 1 and not self.is_fsdp_enabled and asked is None
        if training and ours and handler is not None and handler.find_unused_parameters:
            some = torch.tensor(float(self._leaves_some_out()), device=self.args.device)
            handler.find_unused_parameters = float(self.accelerator.reduce(some, "sum")) > 0  # all do the same
        return super()._wrap_model(model, training, dataloader)

    def _leaves_some_out(self) -> bool:
        """Whether some parameter may be without a gradient after a step, judged by the loss of the first two rows.

        The Trainer would let DDP search in any case, and every process would warn that it found none.
        """
        student = self.accelerator.unwrap_model(self.model)
        rows = self.train_dataset
        if self.method.varies or may_vary(student) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            return True
        collate = self._get_collator_with_removed_columns(self.data_collator, "training")
        batch = self._prepare_inputs(collate([rows[k] for k in range(min(2, len(rows)))]))
        was = student.training
        on = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(on), self.accelerator.autocast():
            items = self.method.count_items(student, batch).clamp(min=1)
            loss = self.method.losses(student.train(), self.teacher, batch, items).total
        student.train(was)
        return not all_reached(student, loss)

    def _tell_repeated_rows(self) -> None:
        """Warn which rows are seen twice, because all processes need batches of one size."""
        processes, data = self.accelerator.num_processes, self.train_dataset
        full = processes * self.args.train_batch_size
        if processes == 1 or self.args.dataloader_drop_last or not hasattr(data, "__len__") or not len(data) % full:
            return
        rows = len(data)
        warnings.warn(
            f"{rows} training rows do not fill the batches of {processes} processes: every epoch ends with the first "
            f"{-rows % full} rows of its order once more. dataloader_drop_last=True leaves the last {rows % full} out "
            f"instead; {rows - rows % full} rows would need neither",
            stacklevel=2,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The Trainer's, with all rows in their order: `dataloader_drop_last` and lengths are for training."""
        with self._all_rows():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The Trainer's, with all rows in their order, by which answers are compared with a teacher's."""
        with self._all_rows():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _all_rows(self) -> Iterator[None]:
        scoring = {
            "dataloader_drop_last": False, "train_sampling_strategy": "sequential",
            "dataloader_persistent_workers": False,  # else the Trainer would give the rows that it was first asked for
        }  # fmt: skip
        asked = {name: getattr(self.args, name) for name in scoring}
        for name, value in scoring.items():
            setattr(self.args, name, value)
        try:
            yield
        finally:
            for name, value in asked.items():
                setattr(self.args, name, value)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; a student that was scored in half precision has its own weights again, which are trained."""
        halved = self.args.bf16_full_eval or self.args.fp16_full_eval
        if self.is_in_train or not halved or self.is_fsdp_enabled:
            return super().evaluation_loop(*args, **kwargs)
        with _restored(self.model):
            return super().evaluation_loop(*args, **kwargs)

    # The optimizer.

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
        if args.optim != MUON:
            return CheckpointedTrainer.get_optimizer_cls_and_kwargs(args, model)
        return MuonWithAdamW, muon_options(args)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        extra = self._own_parameters()
        current: torch.optim.Optimizer | None = self.optimizer
        plain = self.overparameterization is None and not extra and self.args.optim != MUON
        if current is not None or plain:
            return super().create_optimizer(model)
        student = self.model if model is None else model
        inner, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, student)
        groups = self._parameter_groups(student, extra)
        if inner is MuonWithAdamW:
            groups = muon_groups(student, groups)
        if self.overparameterization is None:
            self.optimizer = inner(groups, **options)
        else:
            self.optimizer = self.overparameterization.optimizer(inner, groups, **options)
        return self.optimizer

    def _parameter_groups(self, student: nn.Module, extra: list[nn.Parameter]) -> list[dict[str, Any]]:
        """The Trainer's two groups, with and without weight decay; projections and the like go to the second."""
        decayed = set(self.get_decay_parameter_names(student))
        named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in named if n in decayed], "weight_decay": self.args.weight_decay},
            {"params": [*(p for n, p in named if n not in decayed), *extra], "weight_decay": 0.0},
        ]

    # The order of the rows.

    def _get_dataloader(self, *args: Any, sampler_fn: Any = None, is_training: bool = False, **options: Any) -> Any:
        """The Trainer's, with an order of the training rows that a resumed run and all processes share.

        accelerate sees to RandomSampler by itself, unless it is told not to.
        """

        def ordered(rows: Any) -> Any:
            sampler = sampler_fn(rows)
            if not (isinstance(sampler, RandomSampler) and self.args.accelerator_config.use_seedable_sampler):
                self._order.settle(sampler)
            return sampler

        make = ordered if is_training and sampler_fn is not None else sampler_fn
        return super()._get_dataloader(*args, sampler_fn=make, is_training=is_training, **options)

    def _begin_epoch(self, epoch: int, loader: Any) -> None:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._order.begin_epoch(epoch, seed, self.train_dataset, alike(loader, self.accelerator.num_processes))

    # A step.

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of one step, and the number of items in those of all processes.

        At the end of a pass over rows that have no number, the Trainer takes no step with fewer micro-batches. Their
        gradients would come on top of the next step's, so they are left out.

        Raises:
            ValueError: all rows together are fewer than a step, or processes cannot share a stream.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed after the last step: the Trainer would take one more
        samples = []
        with _telling_of_lengths():
            for _, sample in zip(range(num_batches), epoch_iterator, strict=False):
                if device.type == "cpu" or not self._seen_batch:  # to look at values is to wait for a GPU
                    check_batch(self.model, sample, self.state.global_step + 1)
                    self._seen_batch = True
                samples.append(sample)
        if len(samples) < num_batches and not has_length(self.train_dataset):
            if samples and not self.state.global_step:
                raise ValueError(
                    f"train_dataset ends after {len(samples)} batches, and a step has {num_batches}; lower "
                    "gradient_accumulation_steps, or give more rows"
                )
            samples = []
        if not samples:
            return samples, None
        items = torch.stack([self.method.count_items(self.model, s).to(device) for s in samples]).sum(0)
        items = self.accelerator.reduce(items, "sum").clamp(min=1)  # a step without a kept token has no loss
        self._window = samples, items
        return samples, items

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: Any = self._signature_columns
        more = [*self.method.columns, *sorted(self.method.unshared)]
        self._signature_columns: list[str] = list(dict.fromkeys([*known, *more]))

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, without the columns of objective and teacher, which are for training."""
        return super().prediction_step(model, dict(self.method.batch_for(model, inputs)), *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss in training; the model's own loss in evaluation, which takes no gradients.

        A model's mode does not tell the two apart: one that keeps itself in eval mode can be trained.

        Raises:
            ValueError: outputs are asked for in training, where the objective runs the models as it needs.
        """
        if not torch.is_grad_enabled():
            return super().compute_loss(model, inputs, return_outputs)
        if return_outputs:
            raise ValueError(
                "return_outputs is True in training, where the objective runs the models and keeps their outputs; add "
                "to its loss in an Objective of your own, or ask under torch.no_grad() for the student's own loss"
            )
        if num_items_in_batch is None:  # a subclass did not pass it on
            _, items = self._window if self.is_in_train else ([], None)
            num_items_in_batch = self.method.count_items(model, inputs) if items is None else items
        with self.accelerator.autocast():
            losses = self.method.losses(model, self.teacher, inputs, torch.as_tensor(num_items_in_batch))
        for name, value in losses.parts.items():
            self._parts[name] = self._parts[name] + value if name in self._parts else value
        self._watch(losses.total.detach())
        # Gradients are averaged over processes, the loss is a sum over all their items.
        return losses.total * self.accelerator.num_processes

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        with attention_kernel(inputs, self.args):
            loss = super().training_step(model, inputs, *args, **kwargs)
        # Here, because the search for overflow, before the step, has to see the same gradients on every process.
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            for p in self._own_parameters():
                if p.grad is not None:
                    p.grad = self.accelerator.reduce(p.grad, "mean")
        return loss

    def _check_optimizer(self) -> None:
        """Refuse an optimizer that a subclass or a user has put in the place of the one that trains all of it."""
        optimizer: Any = self.optimizer
        while hasattr(optimizer, "optimizer"):  # accelerate's holds it
            optimizer = optimizer.optimizer
        stepped = {p for group in optimizer.param_groups for p in group["params"]}
        has_cores = self.overparameterization is None or isinstance(optimizer, OverParameterizedOptimizer)
        if not (has_cores and stepped.issuperset(self._own_parameters())):
            raise ValueError(
                f"the optimizer is a {type(optimizer).__name__} of your own, which steps the student's weights and not "
                "their cores or what the objective trains; give optimizer_cls_and_kwargs=(class, options) in its place"
            )

    def _own_parameters(self) -> list[nn.Parameter]:
        """Parameters of the objective, whose gradients no model wrapper averages."""
        return [p for module in self.method.modules().values() for p in module.parameters()]

    # Whether training diverges.

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The Trainer's; what the objective trains counts and is clipped along with the student."""
        if not (own := self._own_parameters()):
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_([*model.parameters(), *own], self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and (own := self._own_parameters()):
            grad_norm = self.accelerator.clip_grad_norm_([*model.parameters(), *own], math.inf)
        norm = super()._get_grad_norm(model, grad_norm)
        self._watch(torch.as_tensor(norm, device=self.args.device))
        return norm

    def _watch(self, value: Tensor) -> None:
        self._divergence.watch(value, self.state.global_step + 1, self.accelerator)

    def _check_finite(self) -> None:
        """Called where the device is waited for anyway: before a log entry and before a checkpoint.

        Raises:
            TrainingDiverged: since the last call, some step was not finite.
        """
        if found := self._divergence.found(self.state.global_step, self.accelerator):
            self._give_up(*found)

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


def _described(rows: Any, content: str | None) -> dict[str, Any]:
    """How many rows there are, None where they have no number, and a digest of some."""
    return {"rows": len(rows) if hasattr(rows, "__len__") else None, "content": content}


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Afterwards a model has the values that it had before, bit for bit, if it was cast or moved inside."""
    weights = [(p, p.data) for p in model.parameters()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for p, values in weights:
            p.data = values
        for held, before in buffers:
            held.update(before)


@contextmanager
def _telling_of_lengths() -> Iterator[None]:
    """Inside, accelerate's refusal to share a stream's batches says what to do in words of our arguments.

    It is raised in process 0 alone, for whose batches the others wait until it has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if "batches of different size" not in str(error):
            raise
        raise ValueError(
            "train_dataset is a stream that process 0 reads for all, and its batches differ in length; set "
            "accelerator_config={'dispatch_batches': False}, with which every process reads a stream of the same rows "
            "and takes its part, or pad all rows to one length"
        ) from error


class _ObjectiveHooks(TrainerCallback):
    """Passes the Trainer's events to the objective."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.accelerator.num_processes > 1:
            for p in self.trainer._own_parameters():
                p.data.copy_(broadcast(p.data))
        self.trainer._check_optimizer()
        self.trainer._check_prepared()
        self.trainer._check_aligned()
        self.trainer.check_length(state.max_steps)
        state.compute_steps(args, state.max_steps)  # else a resumed run logs and saves as the first one did
        if state.is_world_process_zero:
            self.trainer._tell_repeated_rows()
        self.trainer._parts, self.trainer._parts_since = {}, state.global_step
        self.trainer._divergence.forget()
        for p in self.trainer._own_parameters():
            p.grad = None  # of a step that auto_find_batch_size has given up
        self.trainer.method.on_train_begin(self.trainer)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader: Any, **_: Any
    ) -> None:
        self.trainer._begin_epoch(int(state.epoch or 0), train_dataloader)
        self.trainer.method.on_epoch_begin(self.trainer)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Not where the batches are drawn: a resumed run sets its random state between the two.
        self.trainer.method.before_forward(self.trainer, *self.trainer._window)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.method.after_optimizer_step(self.trainer)
        for p in self.trainer._own_parameters():
            p.grad = None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer._order.go_on_from([])  # not from the best checkpoint
        self.trainer.method.on_train_end(self.trainer)
