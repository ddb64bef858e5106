"""LGTM, learning good teacher matters (arXiv 2305.09651): the teacher learns what helps the student on held-out data.

Before every student step the teacher takes one of its own. With theta the student, phi the teacher, B the step's
batches, V as many held-out examples:

    theta' = theta after one trial step of the student's optimizer on L_s(B)
    v      = gradient of the task loss of theta' on V
    h      = d/dphi < grad_theta L_s(B), v >    by central difference: ( g(theta + e v) - g(theta - e v) ) / (2 e)
    phi   <- AdamW step on grad_phi L_t(B) - scale * h

-h is along the gradient by phi of the held-out loss of theta': a step against it lowers that loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from torch import Tensor, nn
from torch.func import functional_call

from opdf.data import Prepared
from opdf.distill.arguments import asks_for_fsdp
from opdf.distill.losses import Batch, distillation_loss, labels_of, task_loss
from opdf.distill.methods.logits import TaskAndLogits
from opdf.distill.models import output_layer, without_cache
from opdf.distill.objective import Losses, model_inputs
from opdf.distill.options import POSITIVE, flag, number, whole
from opdf.overparam import rolled_back

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

Weights = dict[str, Tensor]


class LGTM(TaskAndLogits):
    """Student: (1 - alpha) task + alpha D(teacher, student). Teacher: (1 - teacher_alpha) task + teacher_alpha
    D(student, teacher) - influence. D is the distillation loss of `LogitsDistillation`, squared error for a regression.

    The teacher that is passed in is trained in place, in float32 or under the run's autocast. What of it is frozen
    stays as it is, unless all of it is frozen. Its rate follows the student's schedule. Held-out examples are cut off
    the training data; validation and test data are not touched.

    Args:
        temperature, alpha: of the student's loss; 1 and 1 in the paper.
        teacher_alpha: weight of the student's logits in the teacher's own loss.
        teacher_learning_rate: initial rate of the teacher's AdamW.
        held_out: fraction of the training examples to hold out, or a number of them.
        radius: r, the length of the perturbation e v of the student's weights.
        influence_scale: factor of h; None is the teacher's current rate, as in the released code, where the
            influence is orders of magnitude smaller than the rest; 0 leaves it out.
        zero_heads: start with both output layers at zero, for a teacher that was not fine-tuned.
        seed: of the held-out examples and their order.
    """

    trains_teacher = True
    needs_whole_rows = True

    def __init__(
        self,
        temperature: float = 1.0,
        alpha: float = 1.0,
        teacher_alpha: float = 0.4,
        teacher_learning_rate: float = 3e-5,
        held_out: float = 0.1,
        radius: float = 0.01,
        influence_scale: float | None = None,
        zero_heads: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(temperature, alpha)
        self.teacher_alpha = number("teacher_alpha", teacher_alpha, 0, 1)
        self.teacher_learning_rate = number("teacher_learning_rate", teacher_learning_rate, POSITIVE)
        self.held_out = number("held_out", held_out, POSITIVE)
        self.radius = number("radius", radius, POSITIVE)
        self.influence_scale = None if influence_scale is None else number("influence_scale", influence_scale)
        self.zero_heads = flag("zero_heads", zero_heads)
        self.seed = whole("seed", seed)
        self.step = 0
        self._held_out: Dataset | None = None
        self._teacher: nn.Module | None = None

    @property
    def needs_labels(self) -> bool:
        return True

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None:
            raise ValueError("LGTM trains the teacher beside the student; pass a teacher")
        super().prepare(student, teacher)
        if not any(p.requires_grad for p in teacher.parameters()):
            teacher.requires_grad_(True)
        self._teacher, self.step = teacher, 0
        self.__dict__.pop("_optimizer", None)  # of another teacher
        if self.zero_heads:
            for model in (student, teacher):
                for p in output_layer(model).parameters():
                    nn.init.zeros_(p)

    @cached_property
    def _optimizer(self) -> torch.optim.Optimizer:
        """The teacher's, made once it is on the run's device: on some, moving a model replaces its parameters."""
        return torch.optim.AdamW(self._parameters(), lr=self.teacher_learning_rate, weight_decay=0.0)

    def _parameters(self) -> list[nn.Parameter]:
        """The teacher's that are not frozen: its adapters, say."""
        assert self._teacher is not None
        return [p for p in self._teacher.parameters() if p.requires_grad]

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        assert teacher is not None
        ours = self.forward(student, batch).logits
        theirs = self.teacher_forward(teacher, batch).logits if self.alpha else None
        return self.combine(student, ours, theirs, batch, num_items)

    def check_data(self, data: Prepared, teacher: nn.Module) -> None:
        self._split(data.data["train"])

    def training_data(self, dataset: Any) -> Any:
        self._held_out, rest = self._split(dataset)
        return rest

    def _split(self, dataset: Any) -> tuple[Dataset, Dataset]:
        """The rows to hold out and the others."""
        if not isinstance(dataset, Dataset):
            raise TypeError(f"train_dataset is a {type(dataset).__name__}; LGTM holds out rows of a datasets.Dataset")
        count = int(self.held_out * len(dataset)) if self.held_out < 1 else int(self.held_out)
        if not 0 < count < len(dataset):
            raise ValueError(
                f"held_out is {self.held_out}, which is {count} of {len(dataset)} training examples; leave both some"
            )
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return dataset.select(sorted(order[:count])), dataset.select(sorted(order[count:]))

    def check_arguments(self, args: TrainingArguments) -> None:
        super().check_arguments(args)
        if args.fp16:
            raise ValueError("LGTM takes trial steps that a gradient scaler knows nothing of; use bf16 instead of fp16")
        if asks_for_fsdp(args):
            raise ValueError(
                "LGTM differentiates by the student's weights and moves them, and FSDP2 computes with copies of its "
                "own; use DDP, or a method that does not"
            )

    def on_train_begin(self, trainer: Trainer) -> None:
        assert self._teacher is not None
        assert self._held_out is not None
        self._held_out = trainer._remove_unused_columns(self._held_out, "held-out examples")

    def before_forward(self, trainer: Trainer, batches: Sequence[Batch], num_items: Tensor) -> None:
        """The teacher's step."""
        assert self._teacher is not None
        batches = [trainer._prepare_inputs(dict(batch)) for batch in batches]
        student, params = trainer.accelerator.unwrap_model(trainer.model), self._parameters()
        rate = self.teacher_learning_rate * _schedule(trainer)
        scale = rate if self.influence_scale is None else self.influence_scale
        with _same_buffers(student):
            ours = self._own_gradients(trainer, student, batches, num_items, with_student=scale != 0)
            if scale:
                direction = self._direction(trainer, student)
                influence = self._influence(trainer, student, direction, batches, num_items)
                ours = [g - scale * h for g, h in zip(ours, influence, strict=True)]
        student.zero_grad()
        for p, g in zip(params, ours, strict=True):
            p.grad = trainer.accelerator.reduce(g, "sum")
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._teacher.eval()
        if trainer.accelerator.num_processes > 1:
            _share_statistics(self._teacher)

    def _own_gradients(
        self, trainer: Any, student: Any, batches: Sequence[Batch], num_items: Tensor, with_student: bool
    ) -> list[Tensor]:
        """The gradient of L_t, returned, and of L_s, left in the student's `grad`; both models in training mode."""
        assert self._teacher is not None
        params = self._parameters()
        total = [torch.zeros_like(p) for p in params]
        student.train(), self._teacher.train()
        for batch in batches:
            with trainer.accelerator.autocast(), torch.set_grad_enabled(True):
                ours, theirs = self.forward(student, batch).logits, self.forward(self._teacher, batch).logits
                loss = self._teacher_loss(theirs, ours.detach(), batch, num_items)
                if with_student:
                    loss = loss + self.combine(student, ours, theirs.detach(), batch, num_items).total
            _accumulate(total, _grads(loss, params, retain=with_student))
            if with_student:
                torch.autograd.backward(loss, inputs=[p for p in student.parameters() if p.requires_grad])
        self._teacher.eval()
        return total

    def _direction(self, trainer: Any, student: Any) -> Weights:
        """v: the held-out gradient after a trial step of the student, which is taken back."""
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        named = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self._summed(trainer, named.values())
        if trainer.args.max_grad_norm:
            nn.utils.clip_grad_norm_(list(named.values()), trainer.args.max_grad_norm)
        batches = self._held_out_batches(trainer)
        here = torch.zeros(2, dtype=torch.int64, device=trainer.args.device)
        here = here + sum(self.count_items(student, batch) for batch in batches)
        labelled = trainer.accelerator.reduce(here, "sum")[1].clamp(min=1)
        found = [torch.zeros_like(p) for p in named.values()]
        with rolled_back(optimizer):
            optimizer.step()
            for batch in batches:
                with trainer.accelerator.autocast():
                    loss = task_loss(student, self.forward(student, batch).logits, labels_of(student, batch)) / labelled
                _accumulate(found, _grads(loss, list(named.values())))
        direction = dict(zip(named, found, strict=True))
        return {n: trainer.accelerator.reduce(g, "sum") for n, g in direction.items()}

    def _influence(
        self, trainer: Any, student: Any, direction: Weights, batches: Sequence[Batch], num_items: Tensor
    ) -> list[Tensor]:
        assert self._teacher is not None
        teacher, params = self._teacher, self._parameters()
        student.eval()

        def gradient(weights: Weights) -> list[Tensor]:
            total = [torch.zeros_like(p) for p in params]
            for batch in batches:
                with trainer.accelerator.autocast(), torch.enable_grad():
                    loss = self.coupling_loss(student, weights, teacher, batch, num_items)
                _accumulate(total, _grads(loss, params))
            return total

        found = central_difference(gradient, dict(student.named_parameters()), direction, self.radius)
        student.train()
        return found

    def coupling_loss(
        self, student: Any, weights: Mapping[str, Tensor], teacher: nn.Module, batch: Batch, num_items: Tensor
    ) -> Tensor:
        """The part of L_s that couples teacher and student, with the student at other `weights`."""
        inputs = {**model_inputs(student, self.batch_for(student, batch)), **without_cache(student)}  # as in `forward`
        ours = functional_call(student, dict(weights), kwargs=inputs).logits
        theirs = self.forward(teacher, batch).logits
        return self.alpha * distillation_loss(student, ours, theirs, batch, self.temperature) / num_items.expand(2)[0]

    def _teacher_loss(self, theirs: Tensor, ours: Tensor, batch: Batch, num_items: Tensor) -> Tensor:
        assert self._teacher is not None
        task = task_loss(self._teacher, theirs, labels_of(self._teacher, batch))
        follow = distillation_loss(self._teacher, theirs, ours, batch, self.temperature)
        items, labelled = num_items.expand(2)
        return (1 - self.teacher_alpha) * task / labelled + self.teacher_alpha * follow / items

    def _held_out_batches(self, trainer: Any) -> list[Batch]:
        """As many held-out examples as a step has, of which this process takes its part in micro-batches.

        They come in turn, in a new order every round: a function of the step alone, however its examples are split.
        """
        assert self._held_out is not None
        args, part, processes = trainer.args, trainer._train_batch_size, trainer.accelerator.num_processes
        size = min(part * args.gradient_accumulation_steps * processes, len(self._held_out))
        rounds, position = divmod(self.step * size, len(self._held_out) // size * size)
        order = torch.randperm(len(self._held_out), generator=torch.Generator().manual_seed(self.seed + 1 + rounds))
        rows = order[position : position + size].tolist()[args.process_index :: processes]
        return [
            trainer._prepare_inputs(trainer.data_collator([self._held_out[row] for row in rows[start : start + part]]))
            for start in range(0, len(rows), part)
        ]

    @staticmethod
    def _summed(trainer: Any, params: Any) -> None:
        if trainer.accelerator.num_processes > 1:
            for p in params:
                if p.grad is not None:
                    p.grad = trainer.accelerator.reduce(p.grad, "sum")

    def after_optimizer_step(self, trainer: Trainer) -> None:
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def tensors(self) -> dict[str, Tensor]:
        assert self._teacher is not None
        found = {f"teacher.{name}": p for name, p in self._teacher.state_dict().items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            found.update({f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()})
        return found

    def load_tensors(self, saved: Mapping[str, Tensor]) -> None:
        assert self._teacher is not None
        self._teacher.load_state_dict(
            {k.removeprefix("teacher."): v for k, v in saved.items() if k.startswith("teacher.")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards a model's buffers are as before: its running statistics are of its own steps, not of the teacher's."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)


def _share_statistics(model: nn.Module) -> None:
    """Give all processes the first one's running statistics, as DDP does for the student: each saw its own rows."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(broadcast(buffer))


def central_difference(
    gradient: Callable[[Weights], list[Tensor]], weights: Mapping[str, Tensor], direction: Weights, radius: float
) -> list[Tensor]:
    """The derivative of `gradient` along `direction`, times the direction's length; error of second order in `radius`.

    Args:
        gradient: a list of tensors as a function of the weights.
        weights: where to differentiate; they are not touched.
        direction: by name; a zero direction gives zeros.
        radius: length of the perturbation.
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in direction.values()]))
    if norm == 0:
        return [torch.zeros_like(g) for g in gradient(dict(weights))]
    step = float(radius / norm)
    sides = []
    for signed in (step, -step):
        moved = {n: p.detach() + signed * direction[n] if n in direction else p.detach() for n, p in weights.items()}
        sides.append(gradient(moved))
    return [(plus - minus) / (2 * step) for plus, minus in zip(*sides, strict=True)]


def _grads(loss: Tensor, params: Sequence[Tensor], retain: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(loss, params, retain_graph=retain, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)]


def _accumulate(total: list[Tensor], more: list[Tensor]) -> None:
    for a, b in zip(total, more, strict=True):
        a += b


def _schedule(trainer: Any) -> float:
    """Where the learning rate schedule is, as a share of the rate that it began with."""
    scheduler = trainer.lr_scheduler
    # Those that wait for evaluations do not keep the rate that they began with.
    base = scheduler.base_lrs[0] if hasattr(scheduler, "base_lrs") else trainer.optimizer.defaults["lr"]
    now = scheduler.get_last_lr()[0]
    return now / base if base else 0.0
