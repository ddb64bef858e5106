"""What a student learns from a teacher: the interface that every distillation method fills in.

An objective owns the forward passes of a training micro-batch, so that a method may run teacher and student as it
needs (hybrid layers, gradients with respect to inputs, cached teacher outputs). The trainer knows no method.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from opdf.data import Prepared
from opdf.distill.arguments import asks_for_fsdp
from opdf.distill.losses import Batch, items_by_example
from opdf.distill.models import config_of, inputs_of, unwrapped, without_cache
from opdf.distill.outputs import BeforeTraining
from opdf.distill.store import LogitsStore, StoreInfo
from opdf.distill.teachers import check_frozen
from opdf.mpo import Progress

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


@dataclass(frozen=True)
class Losses:
    """The loss of one micro-batch.

    Attributes:
        total: scalar with a gradient: a sum over this micro-batch's items, divided by the number of items of the whole
            accumulation window. Summed over the window it is the mean, however the window is split.
        parts: detached scalars by name, normalised alike, for the log.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective:
    """Base of all methods. Only `losses` must be filled in.

    The arguments of a method's `__init__` are kept in attributes of the same names.

    Attributes:
        tasks: kinds of `opdf.data.Task` that the method is for.
        columns: columns of the training data, beside inputs and labels, that `losses` reads. No model is given them.
        unshared: inputs that only some of student and teacher have; the trainer fills it in.
        prepared_for: a mark of the trainer that it was given to last; the trainer fills it in.
        trains_teacher: whether the teacher is trained too, and so need not have been fine-tuned.
        varies: whether steps differ in which of the student's parameters they give a gradient.
        needs_teacher: whether the teacher runs in training.
        several_teachers: whether the teacher may be an `Ensemble`, which has outputs and nothing else.
        needs_whole_rows: whether it asks for the training rows ahead, so that they cannot be others in every epoch.
        decisions_only: whether nothing but the teacher's decisions is used, as if it were a black box.
    """

    tasks: tuple[str, ...] = ("classification", "regression", "image-classification")
    columns: ClassVar[tuple[str, ...]] = ()
    unshared: frozenset[str] = frozenset()
    prepared_for: object = None
    trains_teacher: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    several_teachers: ClassVar[bool] = False
    decisions_only: ClassVar[bool] = False
    varies: ClassVar[bool] = False
    needs_whole_rows: ClassVar[bool] = False

    @property
    def options(self) -> dict[str, Any]:
        """What the method was made with, by the names of its arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if hasattr(self, name)}

    @property
    def needs_labels(self) -> bool:
        """Whether rows without labels cannot be learned from."""
        return True

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Check that student and teacher fit and build what training needs; called once, before any step.

        Raises:
            ValueError: they do not fit; the message names both sizes.
        """

    def check_arguments(self, args: TrainingArguments) -> None:
        """Check that the trainer's arguments go with this method; called once it is prepared, before any step.

        Raises:
            ValueError: they do not.
        """
        if self.modules() and asks_for_fsdp(args):
            raise ValueError(
                f"{type(self).__name__} trains modules of its own ({', '.join(self.modules())}), which FSDP2 does not "
                "know; use DDP, or a student of the teacher's width, which needs none"
            )

    def check_data(self, data: Prepared, teacher: nn.Module) -> None:
        """Check that a run's data go with this method; called before the run trains or writes anything.

        Raises:
            ValueError, FileNotFoundError: they do not, or something that the method reads is not there.
        """

    def asks_ahead(self, run: BeforeTraining) -> bool:
        """Whether the teacher answers before the training, and not in every step."""
        return not self.needs_teacher

    def prepare_data(self, run: BeforeTraining) -> Any:
        """The rows to train on: the encoded training split, with the outputs of the teacher that the method needs.

        A run of `opdf distill` calls it. A trainer in Python takes the rows that it is given.
        """
        return run.data.training_rows()

    @property
    def cache(self) -> Path | None:
        """Folder where a teacher and its outputs are kept for many runs; None for a method that runs it anew."""
        return None

    def store_info(self, data: Prepared, teacher: nn.Module) -> StoreInfo | None:
        """What is kept on the disk of the teacher's outputs; None for a method that runs it anew."""
        return None

    def write_cache(self, data: Prepared, teacher: nn.Module, progress: Progress | None = None) -> LogitsStore:
        """Put into `cache` what is not there yet; for methods that have one."""
        raise NotImplementedError

    def training_data(self, dataset: Any) -> Any:
        """The rows to train on, of the dataset that the trainer was given; called once, before any step."""
        return dataset

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        """The loss of one micro-batch.

        Args:
            student, teacher: the models, possibly wrapped (DDP, compiled); no teacher where an objective needs none.
            batch: of one micro-batch.
            num_items: int64: the items, as `count_items` counts them, of the whole accumulation window.
        """
        raise NotImplementedError

    def forward(self, model: nn.Module, batch: Batch, **options: Any) -> Any:
        """A model's outputs without its own loss, and of a decoder without its cache (`without_cache`).

        Raises:
            TypeError: they have no field `logits`, nor the `last_hidden_state` of a model without a head, nor the
                `start_logits` of one that finds answers in a text.
        """
        outputs = model(**model_inputs(model, self.batch_for(model, batch)), **(without_cache(model) | options))
        if not any(hasattr(outputs, name) for name in ("logits", "last_hidden_state", "start_logits")):
            raise TypeError(
                f"the {type(unwrapped(model)).__name__} returned a {type(outputs).__name__}; return an object with a "
                "field logits, such as transformers.modeling_outputs.SequenceClassifierOutput"
            )
        return outputs

    def batch_for(self, model: nn.Module, batch: Batch) -> Batch:
        """The part of a batch that is for a model: labels and its inputs, but not what only others take."""
        known = inputs_of(model) if self.unshared else None
        left_out = {*self.columns, *(self.unshared - known if known is not None else ())}
        return {name: value for name, value in batch.items() if name not in left_out}

    def teacher_forward(self, teacher: nn.Module, batch: Batch, **options: Any) -> Any:
        """A frozen teacher's outputs, without gradient.

        Raises:
            RuntimeError: the teacher is in training mode, which would make its targets random.
        """
        check_frozen(teacher)
        with torch.no_grad():
            return self.forward(teacher, batch, **options)

    def count_items(self, student: nn.Module, batch: Batch) -> Tensor:
        """Items that the loss of this micro-batch sums over: examples, or kept tokens of a language model.

        A scalar, or several counts for a loss whose terms sum over different items.
        """
        return items_by_example(student, batch).sum()

    def modules(self) -> dict[str, nn.Module]:
        """Modules of the method's own that are trained and checkpointed with the student, and dropped after."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Plain values beyond `modules` that a resumed run needs (a schedule's position, say)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs: by default the weights of `modules`."""
        return {
            f"{name}.{key}": value
            for name, module in self.modules().items()
            for key, value in module.state_dict().items()
        }

    def load_tensors(self, saved: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(saved[name])

    def on_train_begin(self, trainer: Trainer) -> None:
        """Before the first step of a run, new or resumed."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Before the first batch of an epoch is drawn."""

    def before_forward(self, trainer: Trainer, batches: Sequence[Batch], num_items: Tensor) -> None:
        """Before the forward passes of a step; `batches` are its micro-batches, with `num_items` items in all."""

    def after_optimizer_step(self, trainer: Trainer) -> None:
        """After the optimizer's and before the scheduler's step."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last step."""


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that goes into a model: all but the labels.

    An encoder-decoder gets the labels too, because it makes its decoder's inputs from them.
    """
    needs_labels = getattr(config_of(model), "is_encoder_decoder", False)
    return {k: v for k, v in batch.items() if needs_labels or k != "labels"}
