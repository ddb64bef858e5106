"""What a student learns from a teacher: the interface that every distillation method fills in.

An objective owns the forward passes of a training micro-batch, so that a method may run teacher and student as it
needs (hybrid layers, gradients with respect to inputs, cached teacher outputs). The trainer knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from opdf.distill.arguments import asks_for_fsdp

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from opdf.distill.trainer import DistillationTrainer

Batch = Mapping[str, Tensor]
"""What the collator made: input_ids and attention_mask `[batch, tokens]` int64, or pixel_values
`[batch, channels, height, width]` float32; labels `[batch]` or `[batch, tokens]`; the objective's `columns`."""


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

    Attributes:
        columns: columns of the training data, beside inputs and labels, that `losses` reads.
        trains_teacher: whether the teacher is trained too, and so need not have been fine-tuned.
    """

    columns: tuple[str, ...] = ()
    trains_teacher: bool = False

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

    def training_data(self, dataset: Any) -> Any:
        """What to train on, of the dataset that the trainer was given; called once, before any step."""
        return dataset

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        """The loss of one micro-batch.

        Args:
            student, teacher: the models, possibly wrapped (DDP, compiled); no teacher where an objective needs none.
            batch: of one micro-batch.
            num_items: scalar int64: the items, as `count_items` counts them, of the whole accumulation window.
        """
        raise NotImplementedError

    def count_items(self, student: nn.Module, batch: Batch) -> Tensor:
        """Items that the loss of this micro-batch sums over: examples, or kept tokens of a language model."""
        return count_items(student, batch)

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

    def on_train_begin(self, trainer: DistillationTrainer) -> None:
        """Before the first step of a run, new or resumed."""

    def on_epoch_begin(self, trainer: DistillationTrainer) -> None:
        """Before the first batch of an epoch is drawn."""

    def before_forward(self, trainer: DistillationTrainer, batches: Sequence[Batch], num_items: Tensor) -> None:
        """Before the forward passes of a step; `batches` are its micro-batches, with `num_items` items in all."""

    def after_optimizer_step(self, trainer: DistillationTrainer) -> None:
        """After the optimizer's and before the scheduler's step."""

    def on_train_end(self, trainer: DistillationTrainer) -> None:
        """After the last step."""


TARGETS = ("decision_logits", "teacher_logits", "teacher_classes", "teacher_probabilities")
"""Columns with what a teacher said; no model takes them as inputs."""


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What of a batch goes into a model: not the labels, unless an encoder-decoder makes decoder inputs of them."""
    needs_labels = getattr(config_of(model), "is_encoder_decoder", False)
    return {k: v for k, v in batch.items() if k not in TARGETS and (needs_labels or k != "labels")}


def forward(model: nn.Module, batch: Batch, **options: Any) -> Any:
    """A model's outputs without its own loss."""
    return model(**model_inputs(model, batch), **options)


def teacher_forward(teacher: nn.Module, batch: Batch, **options: Any) -> Any:
    """A frozen teacher's outputs, without gradient.

    Raises:
        RuntimeError: the teacher is in training mode, which would make its targets random.
    """
    check_frozen(teacher)
    with torch.no_grad():
        return forward(teacher, batch, **options)


def check_frozen(teacher: nn.Module) -> None:
    """Refuse a teacher in training mode, see `teacher_forward`."""
    if teacher.training:
        raise RuntimeError("the teacher is in training mode; something called teacher.train(). Keep it in eval mode")


def config_of(model: nn.Module) -> Any:
    """The configuration of a transformers model, also inside a DDP or compiled wrapper."""
    return getattr(unwrapped(model), "config", None)


def is_language_model(model: nn.Module) -> bool:
    """Whether outputs are scores of the vocabulary."""
    return getattr(unwrapped(model), "get_output_embeddings", lambda: None)() is not None


def has_no_head(model: nn.Module) -> bool:
    """Whether a transformers model ends in hidden states (AutoModel) and not in a task's outputs.

    Some with a head are their own base model; transformers calls those something For a task.
    """
    own = getattr(model, "base_model", None) is model
    return own and "For" not in type(model).__name__ and not is_language_model(model)


def is_causal(model: nn.Module) -> bool:
    """Whether logits at one position predict the label of the next, so that both have to be shifted.

    Decoders of transformers do; encoder-decoders get their inputs shifted, masked language models and taggers label in
    place, and so does any module of another library: who trains one shifts its labels, if they are to be shifted.
    """
    inner = unwrapped(model)
    if getattr(config_of(inner), "is_encoder_decoder", False):
        return False
    return bool(inner.can_generate()) if hasattr(inner, "can_generate") else False


def token_labels(model: nn.Module, batch: Batch) -> Tensor | None:
    """Labels `[batch, tokens]`, -100 where nothing is learned, or None where a batch has no label per token.

    Without labels a language model learns at every token that is not padding, an encoder-decoder of its decoder's.
    """
    config = config_of(model)
    if getattr(config, "problem_type", None) in ("multi_label_classification", "regression"):
        return None
    side = "decoder_" if getattr(config, "is_encoder_decoder", False) else ""
    labels = batch.get("labels")
    if labels is None and f"{side}input_ids" in batch and is_language_model(model):
        labels, mask = batch[f"{side}input_ids"], batch.get(f"{side}attention_mask")
        labels = labels if mask is None else labels.masked_fill(mask == 0, -100)
    return labels if labels is not None and labels.dim() == 2 and not labels.is_floating_point() else None


def labels_of(batch: Batch) -> Tensor:
    """The labels of a batch.

    Raises:
        ValueError: it has none.
    """
    if "labels" not in batch:
        raise ValueError("the batch has no 'labels', which this method learns from; add them to the training data")
    return batch["labels"]


def count_items(student: nn.Module, batch: Batch) -> Tensor:
    """Scalar: the items of a batch, see `items_by_example`."""
    return items_by_example(student, batch).sum()


def items_by_example(student: nn.Module, batch: Batch) -> Tensor:
    """`[batch]` int64: 1 each; kept tokens (label not -100, shifted as the model does) where labels are per token."""
    labels = token_labels(student, batch)
    if labels is not None:
        return (labels[:, 1:] if is_causal(student) else labels).ne(-100).sum(1)
    first = batch["labels"] if "labels" in batch else next(iter(batch.values()))
    return torch.ones(first.shape[0], dtype=torch.int64, device=first.device)


def unwrapped(model: nn.Module) -> Any:
    """A model without the wrappers of DDP and torch.compile."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif not hasattr(model, "config") and hasattr(model, "module"):
            model = model.module  # type: ignore[assignment]
        else:
            return model
