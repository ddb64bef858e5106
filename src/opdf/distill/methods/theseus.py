"""BERT-of-Theseus (arXiv 2002.02925): successor blocks learn in the places of the predecessor's blocks.

There is no distillation loss. In every micro-batch each student block runs with probability p, or else the group of
teacher blocks that it stands for. So the task loss trains student blocks among blocks of the teacher. p grows to 1;
from then on the student is fine-tuned alone, with the same optimizer and schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from opdf.distill.losses import Batch, count_labelled, labels_of, task_loss
from opdf.distill.matching import check_same_outputs
from opdf.distill.models import config_of, depth_of, unwrapped
from opdf.distill.objective import Losses, Objective
from opdf.distill.options import POSITIVE, number, one_of, whole
from opdf.distill.shrink import paired_blocks
from opdf.overparam import block_lists

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

SCHEDULES = ("linear", "constant")


class Theseus(Objective):
    """Replace teacher blocks by student blocks at a growing rate; the loss is the task's.

    Only the student's blocks are trained. Its embeddings and head are the teacher's, and frozen. The optimizer skips a
    matrix that takes no part in a step, moments included.

    Args:
        rate: probability p of running a student block at step 0, above 0 and at most 1.
        schedule: "linear" raises it by `slope` per optimizer step until it is 1; "constant" keeps it for
            `steps` optimizer steps and then sets it to 1.
        slope: of the linear schedule, per optimizer step (the paper has 0.0006, for thousands of steps). None reaches 1
            at half of the trainer's steps.
        steps: of the constant schedule.
        seed: of the draws.
    """

    varies = True

    def __init__(
        self, rate: float = 0.3, schedule: str = "linear", slope: float | None = None, steps: int = 2500, seed: int = 0
    ) -> None:
        self.rate = number("rate", rate, POSITIVE, 1)
        self.schedule = one_of("schedule", schedule, SCHEDULES)
        self.slope = None if slope is None else number("slope", slope, 0)
        self.steps = whole("steps", steps, 0)
        self.seed = whole("seed", seed)
        self.step = 0
        self.draws = 0
        self._slope = self.slope or 0.0  # None is known once training begins
        self._tower = ""
        self._predecessors: list[list[nn.Module]] = []

    def replacement_rate(self) -> float:
        """p at the current optimizer step; where `slope` is None it begins to rise when training begins."""
        if self.schedule == "linear":
            return min(1.0, self.rate + self._slope * self.step)
        return self.rate if self.step < self.steps else 1.0

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None:
            raise ValueError("BERT-of-Theseus needs the teacher's blocks; pass a teacher")
        check_same_outputs(student, teacher)
        towers, theirs = block_lists(student), block_lists(teacher)
        if len(towers) != 1 or towers != theirs:
            raise ValueError(
                f"the student has the lists of blocks {towers} and the teacher {theirs}; BERT-of-Theseus needs one, "
                "alike in both (make the student with keep_layers)"
            )
        self._tower = towers[0]
        blocks = list(teacher.get_submodule(self._tower).children())
        size = len(list(student.get_submodule(self._tower).children()))
        _check_passes(student, size, teacher, len(blocks))
        try:
            groups = paired_blocks(student, size, len(blocks))
        except ValueError as error:
            raise ValueError(f"{error}; choose a divisor, or start the student from its teacher (shrink)") from None
        _check_kinds(config_of(student), config_of(teacher), groups)
        self._predecessors = [[blocks[k] for k in group] for group in groups]
        self._share_the_rest(student, teacher)

    def _share_the_rest(self, student: nn.Module, teacher: nn.Module) -> None:
        theirs = dict(teacher.named_parameters(remove_duplicate=False))  # what is tied may not be in the student
        ours = dict(student.named_parameters())
        for name, _ in teacher.named_parameters():
            if name not in ours and not name.startswith(f"{self._tower}."):
                raise ValueError(
                    f"the teacher has a {name} and the student none of its own (it ties that to another weight, say), "
                    "and all but blocks are the teacher's; make the student with keep_layers, or of the teacher's "
                    "configuration with another depth"
                )
        for name, p in ours.items():
            if name.startswith(f"{self._tower}."):
                continue
            if name not in theirs or theirs[name].shape != p.shape:
                raise ValueError(f"the teacher has no {name} of shape {tuple(p.shape)}; use a student of its width")
            with torch.no_grad():
                p.copy_(theirs[name])
            p.requires_grad_(False)

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        inner, runs = unwrapped(student), self._draw()
        reached = next((p for p in inner.parameters() if p.grad is not None), None)
        with hybrid(inner.get_submodule(self._tower), self._predecessors, runs):
            # Without a cache: teacher blocks would write into the places of the student's keys and values.
            alone = not any(runs)
            logits = self._teacher_logits(student, batch, reached) if alone else self.forward(student, batch).logits
        task = task_loss(student, logits, labels_of(student, batch)) / num_items
        # When no student block ran, nothing in the model has a gradient: backward needs one leaf that does.
        return Losses(task + torch.zeros((), device=task.device, requires_grad=True), {"task": task.detach()})

    def _teacher_logits(self, student: nn.Module, batch: Batch, reached: Tensor | None) -> Tensor:
        """Logits of a pass in which no student block runs.

        DDP averages the gradients of a step in its last backward pass, and only if that reaches one of its parameters.
        So one that earlier passes have `reached` is added to the logits, times 0. Without one nothing is to be
        averaged, and DDP is left out: it would wait for a backward pass that does not come.
        """
        inner = unwrapped(student)
        if student is inner or reached is None:
            return self.forward(inner, batch).logits

        def reach(_: nn.Module, __: Any, outputs: Any) -> Any:
            outputs.logits = outputs.logits + 0 * reached.flatten()[0]
            return outputs

        handle = inner.register_forward_hook(reach)
        try:
            return self.forward(student, batch).logits
        finally:
            handle.remove()

    def count_items(self, student: nn.Module, batch: Batch) -> Tensor:
        return count_labelled(student, batch)[1]

    def _draw(self) -> list[bool]:
        """Which positions run the student's block; a function of seed and count, so that a resumed run goes on."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.draws) % 2**63)
        self.draws += 1
        return (torch.rand(len(self._predecessors), generator=generator) < self.replacement_rate()).tolist()

    def check_arguments(self, args: TrainingArguments) -> None:
        super().check_arguments(args)
        if args.fp16:
            raise ValueError(
                "a step in which no student block ran has no gradient, which fp16's gradient scaler takes for a "
                "mistake; use bf16 instead of fp16"
            )

    def on_train_begin(self, trainer: Trainer) -> None:
        if not trainer.state.global_step:  # else a checkpoint has set them
            self.step = self.draws = 0
        if self.slope is None:
            self._slope = (1 - self.rate) / max(1, trainer.state.max_steps // 2)

    def after_optimizer_step(self, trainer: Trainer) -> None:
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.draws = state["step"], state["draws"]


def _check_passes(student: nn.Module, ours: int, teacher: nn.Module, theirs: int) -> None:
    """Refuse models that run their blocks several times, one more often than the other: ALBERTs of two depths.

    Args:
        student, teacher: with one list of blocks each.
        ours, theirs: how many blocks are in these lists.

    Raises:
        ValueError: a teacher's block would run as often as the student's in whose place it is.
    """
    mine, wanted = depth_of(student), depth_of(teacher)
    if mine is not None and wanted is not None and mine * theirs != wanted * ours:
        raise ValueError(
            f"the student runs {ours} blocks as {mine} and the teacher {theirs} as {wanted} (an ALBERT's share their "
            "weights), so that the teacher's would not run as often as in the teacher; use 'logits'"
        )


def _check_kinds(ours: Any, theirs: Any, groups: Sequence[Iterable[int]]) -> None:
    """Refuse teacher blocks of another kind than the student's in whose place they run.

    Decoders such as Gemma's attend to all tokens in some blocks and to near ones in others. A model makes the mask and
    the positions of a block by the kind that the block's place has in it, and so would give the teacher's wrong ones.
    What a model does between two blocks (some DeBERTas behind the first) has its place, too.

    Args:
        ours, theirs: configurations.
        groups: for each of the student's blocks, those of the teacher's in whose place it runs.

    Raises:
        ValueError: there is such a block.
    """
    if getattr(ours, "conv_kernel_size", 0) and len(list(groups[0])) > 1:
        raise ValueError(
            "a DeBERTa with a convolution (conv_kernel_size) has it behind its first block, and in the place of the "
            f"student's first several of the teacher's would run before it ({len(list(groups[0]))}); use 'logits'"
        )
    mine, wanted = (getattr(config, "layer_types", None) for config in (ours, theirs))
    if mine is None or wanted is None:
        return
    for block, group in enumerate(groups):
        for place in group:
            if wanted[place] != mine[block]:
                raise ValueError(
                    f"the teacher's block {place} has {wanted[place]} and the student's block {block}, in whose place "
                    f"it would run, {mine[block]}; BERT-of-Theseus needs blocks of one kind: use 'logits'"
                )


@contextmanager
def hybrid(successors: Any, predecessors: list[list[nn.Module]], replaced: list[bool]) -> Iterator[None]:
    """Inside, the tower `successors` runs the predecessors' blocks at every position that is not `replaced`."""
    own = list(successors.children())
    for position, (blocks, stays) in enumerate(zip(predecessors, replaced, strict=True)):
        if not stays:
            successors[position] = _Chain(blocks, own[position].training)
    try:
        yield
    finally:
        for position, block in enumerate(own):
            successors[position] = block


class _Chain(nn.Module):
    """Several blocks in place of one, in the mode of the run: frozen blocks keep their dropout, as in the paper."""

    def __init__(self, blocks: list[nn.Module], training: bool) -> None:
        super().__init__()
        self.blocks = blocks  # a plain list: these are the teacher's modules, not this one's
        self.training = training

    def __getattr__(self, name: str) -> Any:
        """What a model reads of its blocks (ModernBERT: their kind of attention) is what these say."""
        return getattr(self.__dict__["blocks"][0], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output: Any = hidden
        for block in self.blocks:
            block.train(self.training)
            try:
                output = block(output[0] if isinstance(output, tuple) else output, *args, **kwargs)
            finally:
                block.eval()
        return output
