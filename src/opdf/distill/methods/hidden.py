"""Hidden-state distillation (PKD, arXiv 1908.09355; TinyBERT, arXiv 1909.10351) on top of logits distillation."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from opdf.distill.losses import Batch, items_by_example
from opdf.distill.methods.logits import TaskAndLogits
from opdf.distill.models import config_of, depth_of
from opdf.distill.objective import Losses
from opdf.distill.options import number
from opdf.distill.shrink import paired_blocks

Pairs = Sequence[tuple[int, int]]


class HiddenDistillation(TaskAndLogits):
    """Logits loss + hidden_weight * hidden states.

    The hidden loss is the mean over pairs of MSE(P h_student, h_teacher) over an example's real tokens, averaged over
    examples. P is the identity where widths agree, else a learned linear map that is trained with the student and
    dropped afterwards.

    Args:
        temperature, alpha: see `LogitsDistillation`.
        hidden_weight: factor of the hidden loss, 0 or more.
        pairs: "uniform" (a student's block with the last of the teacher's that it stands for: as `shrink` has fitted
            it, else block s with block (s+1) T/S - 1), "last", or `(student, teacher)` hidden state indices, where 0
            is the embedding output and k the output of block k-1.
        normalize: "cls" compares the first token's states after scaling them to unit length, as PKD does.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        alpha: float = 0.9,
        hidden_weight: float = 1.0,
        pairs: str | Pairs = "uniform",
        normalize: str | None = None,
    ) -> None:
        super().__init__(temperature, alpha)
        if not (pairs in ("uniform", "last") if isinstance(pairs, str) else _are_pairs(pairs)):
            error = ValueError if isinstance(pairs, str) else TypeError
            raise error(f"pairs is {pairs!r}; expected 'uniform', 'last' or a list of (student, teacher) indices")
        if normalize not in (None, "cls"):
            raise ValueError(f"normalize is {normalize!r}; expected 'cls' or None")
        self.hidden_weight = number("hidden_weight", hidden_weight, 0)
        self.pairs = pairs
        self.normalize = normalize
        self.projections = nn.ModuleDict()
        self._states: Pairs = []

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None:
            raise ValueError("hidden-state distillation needs a teacher; pass one")
        super().prepare(student, teacher)
        ours, theirs = config_of(student), config_of(teacher)
        depths = []
        for who, config, depth in (("student", ours, depth_of(student)), ("teacher", theirs, depth_of(teacher))):
            if getattr(config, "is_encoder_decoder", False) or depth is None or not hasattr(config, "hidden_size"):
                raise ValueError(
                    f"the {who} does not have one list of hidden states (it is an encoder-decoder, or has no depth or "
                    "no width); use the objective 'logits'"
                )
            depths.append(depth)
        self.projections = nn.ModuleDict()
        self._states = self._resolve(student, *depths)
        if ours.hidden_size != theirs.hidden_size:
            for s, t in self._states:
                for who, config, state in (("student", ours, s), ("teacher", theirs, t)):
                    _check_width(who, config, state)
                self.projections[f"{s}-{t}"] = nn.Linear(ours.hidden_size, theirs.hidden_size, bias=False)

    def _resolve(self, student: nn.Module, ours: int, theirs: int) -> list[tuple[int, int]]:
        if self.pairs == "last":
            return [(ours, theirs)]
        if self.pairs == "uniform":
            try:
                groups = paired_blocks(student, ours, theirs)
            except ValueError as error:
                raise ValueError(f"{error}; give pairs as a list of (student, teacher) states") from None
            return [(k + 1, group[-1] + 1) for k, group in enumerate(groups)]
        assert not isinstance(self.pairs, str)
        resolved = [(int(s), int(t)) for s, t in self.pairs]
        for s, t in resolved:
            if not (0 <= s <= ours and 0 <= t <= theirs):
                raise ValueError(
                    f"pairs holds ({s}, {t}); the student has states 0 to {ours}, the teacher 0 to {theirs}"
                )
        if not resolved:
            raise ValueError("pairs is empty; give at least one (student, teacher) pair")
        return resolved

    def modules(self) -> dict[str, nn.Module]:
        return {"projections": self.projections} if len(self.projections) else {}

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        assert teacher is not None
        if "target_mapping" in batch:
            raise ValueError(
                "the batch has a target_mapping, with which an XLNet has two states a block; use the objective 'logits'"
            )
        ours = self.forward(student, batch, output_hidden_states=True)
        theirs = self.teacher_forward(teacher, batch, output_hidden_states=True)
        base = self.combine(student, ours.logits, theirs.logits, batch, num_items)
        mask = batch.get("attention_mask")
        errors = self._errors(ours.hidden_states, theirs.hidden_states, None if mask is None else mask.flatten(0, -2))
        items, _ = num_items.expand(2)
        weights = items_by_example(student, batch) / items  # they sum to 1 over all micro-batches of a step
        hidden = (errors.view(len(weights), -1).mean(1) * weights).sum()
        return Losses(base.total + self.hidden_weight * hidden, base.parts | {"hidden": hidden.detach()})

    def _errors(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """`[texts]`, the mean over pairs of every text's mean squared error; some examples have several (choices)."""
        errors = []
        for s, t in self._states:
            mine, target = ours[s], theirs[t]
            if f"{s}-{t}" in self.projections:
                projection: Any = self.projections[f"{s}-{t}"]
                mine = projection(mine.to(projection.weight.dtype))
            if mine.shape != target.shape:
                raise ValueError(
                    f"hidden state {s} of the student has shape {tuple(mine.shape)} and {t} of the teacher "
                    f"{tuple(target.shape)}; both must see the same tokens or patches"
                )
            if mask is not None and mask.shape != target.shape[:2]:
                raise ValueError(
                    f"hidden states {s} and {t} are of {target.shape[1]} tokens, and attention_mask of shape "
                    f"{tuple(mask.shape)} does not tell which are real (a Funnel's are pools of tokens); use "
                    "the objective 'logits'"
                )
            errors.append(self._pair_error(mine.float(), target.float(), mask))
        return torch.stack(errors).mean(0)

    def _pair_error(self, mine: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if self.normalize == "cls":
            mine, target = (nn.functional.normalize(_first(h, mask), dim=-1) for h in (mine, target))
            return (mine - target).square().mean(-1)
        return _masked_mean((mine - target).square().mean(-1), mask)


def _check_width(who: str, config: Any, state: int) -> None:
    """Refuse to project a state that is not `hidden_size` wide: a Swin's grow to that, the last two have it."""
    if hasattr(config, "depths") and state < config.num_hidden_layers - 1:
        raise ValueError(
            f"the {who}'s stages differ in width, so that its state {state} cannot be projected to another width; set "
            "pairs to 'last', give a student of the teacher's width, or use the objective 'logits'"
        )


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """`[batch, tokens]` -> `[batch]`, the mean over real tokens; 0 of an empty text, which has none."""
    if mask is None:
        return values.flatten(1).mean(-1)
    real = mask.to(values.dtype)
    return (values * real).sum(-1) / real.sum(-1).clamp(min=1)


def _first(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """`[batch, tokens, width]` -> `[batch, width]`, of the first real token: padding may stand before it."""
    if mask is None:
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.ne(0).long().argmax(-1)]


def _are_pairs(pairs: Any) -> bool:
    """Whether it is a list of pairs of integers."""
    lists = isinstance(pairs, Sequence) and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs)
    return lists and all(
        isinstance(state, Integral) and not isinstance(state, bool) for pair in pairs for state in pair
    )
