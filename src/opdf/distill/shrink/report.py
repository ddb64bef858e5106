"""What a student keeps of its teacher, block by block, and in which coordinates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from opdf.distill.models import unwrapped


@dataclass(frozen=True)
class BlockReport:
    """Shares of the variance of the teacher's residual stream that the student's explains, 0 to 1.

    Attributes:
        tower: the list of blocks.
        block: the student's block.
        teacher_blocks: first and last of the teacher's that it stands for.
        kept: where a part of the block reads; keys are "attention", "cross-attention" and "feed-forward".
    """

    tower: str
    block: int
    teacher_blocks: tuple[int, int]
    kept: dict[str, float]


@dataclass
class ShrinkReport:
    """How a student was started.

    Attributes:
        projection: `[teacher width, student width]`, float32, on the CPU. The teacher's final states times it are
            comparable with the student's; so are mean-pooled embeddings.
        blocks: in the order of computation.
    """

    projection: Tensor
    blocks: list[BlockReport] = field(default_factory=list)

    def __str__(self) -> str:
        parts = list(dict.fromkeys(part for block in self.blocks for part in block.kept))
        rows = []
        for block in self.blocks:
            first, last = block.teacher_blocks
            whole = str(first) if first == last else f"{first} to {last}"
            rows.append([f"{block.tower}.{block.block}", whole, *(_percent(block.kept.get(part)) for part in parts)])
        return tabulate(rows, ["block", "teacher's", *parts], tablefmt="github", disable_numparse=True)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


_Sums = dict[str, tuple[torch.dtype, int]]


class _Mark:
    """What a student carries of its report: it goes along into copies of the student, and not into files."""

    def __init__(self, report: ShrinkReport, student: nn.Module, teacher: nn.Module) -> None:
        self.report = report
        self.student, self.teacher = _sums(student), _sums(teacher)

    def __deepcopy__(self, _: Any) -> _Mark:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a student that is pickled whole is loaded without opdf


def keep_report(student: nn.Module, report: ShrinkReport, teacher: nn.Module) -> None:
    vars(student)["_shrink_mark"] = _Mark(report, student, teacher)


def has_moved(student: nn.Module) -> bool:
    """Whether a student that `shrink` made has other weights by now; a cast to another dtype is no such change."""
    return _differs(student, vars(unwrapped(student))["_shrink_mark"].student)


def has_another_teacher(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether `shrink` made a student of other weights than this teacher has; in another dtype they are the same."""
    return _differs(teacher, vars(unwrapped(student))["_shrink_mark"].teacher)


def _differs(model: nn.Module, sums: _Sums) -> bool:
    now = _sums(unwrapped(model))
    return any(now[name][0] == then[0] and now[name] != then for name, then in sums.items() if name in now)


def _sums(model: nn.Module) -> _Sums:
    """Of every weight its dtype and the sum of its bits, which no device rounds; nothing without values."""
    weights = [(name, p.detach()) for name, p in model.named_parameters() if not p.is_meta]
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {name: (p.dtype, int(p.view(bits[p.dtype.itemsize]).sum())) for name, p in weights}


def find_report(student: nn.Module) -> ShrinkReport | None:
    """The report of a student or of what it is a copy of, None if `shrink` did not make it in this process.

    Of a student without values, the report says no shares and has a projection without values.
    """
    mark = vars(unwrapped(student)).get("_shrink_mark")
    return None if mark is None else mark.report


def shrink_report(student: nn.Module) -> ShrinkReport:
    """The report of a student that `shrink` made in this process.

    Raises:
        KeyError: `shrink` did not make it.
    """
    report = find_report(student)
    if report is None:
        raise KeyError(f"this {type(student).__name__} was not made by shrink in this process")
    return report


def paired_blocks(student: nn.Module, ours: int, theirs: int) -> list[range]:
    """The teacher's blocks that each of a student's stands for: those that it was fitted to, else as many for each.

    Args:
        student: with one list of blocks.
        ours, theirs: how many blocks the student and the teacher have.

    Raises:
        ValueError: the student was not fitted to so many blocks, and its own do not divide them.
    """
    report = find_report(student)
    blocks = [] if report is None else report.blocks
    fitted = [range(first, last + 1) for first, last in (block.teacher_blocks for block in blocks)]
    if fitted and fitted[-1].stop == theirs:
        return fitted
    if theirs % ours:
        raise ValueError(f"{ours} student blocks do not divide the teacher's {theirs}")
    group = theirs // ours
    return [range(k * group, (k + 1) * group) for k in range(ours)]
