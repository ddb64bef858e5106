"""Hidden-state distillation (PKD, arXiv 1908.09355; TinyBERT, arXiv 1909.10351) on top of logits distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opdf.distill.logits import LogitsDistillation
from opdf.distill.objective import Batch, Losses, config_of, forward, items_by_example, teacher_forward

Pairs = Sequence[tuple[int, int]]


class HiddenDistillation(LogitsDistillation):
    """Logits loss + hidden_weight * hidden states + attention_weight * attention maps.

    The hidden loss is the mean over pairs of MSE(P h_student, h_teacher) over an example's real tokens, averaged over
    examples. P is the identity where widths agree, else a learned linear map that is trained with the student and
    dropped afterwards.

    Args:
        temperature, alpha: see `LogitsDistillation`.
        hidden_weight, attention_weight: factors of the two losses, 0 or more. Attention maps need both models loaded
            with `attn_implementation="eager"` and a student without attention dropout.
        pairs: "uniform" (student block s with teacher block (s+1) T/S - 1), "last", or `(student, teacher)` hidden
            state indices, where 0 is the embedding output and k the output of block k-1.
        normalize: "cls" compares the first token's states after scaling them to unit length, as PKD does.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        alpha: float = 0.9,
        hidden_weight: float = 1.0,
        attention_weight: float = 0.0,
        pairs: str | Pairs = "uniform",
        normalize: str | None = None,
    ) -> None:
        super().__init__(temperature, alpha)
        for name, value in (("hidden_weight", hidden_weight), ("attention_weight", attention_weight)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more")
        if isinstance(pairs, str) and pairs not in ("uniform", "last"):
            raise ValueError(f"pairs is {pairs!r}; expected 'uniform', 'last' or a list of (student, teacher) indices")
        if normalize not in (None, "cls"):
            raise ValueError(f"normalize is {normalize!r}; expected 'cls' or None")
        self.hidden_weight = hidden_weight
        self.attention_weight = attention_weight
        self._wanted_pairs = pairs
        self.pairs: Pairs = []
        self.normalize = normalize
        self.projections = nn.ModuleDict()

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None:
            raise ValueError("hidden-state distillation needs a teacher; pass one")
        super().prepare(student, teacher)
        ours, theirs = config_of(student), config_of(teacher)
        for who, config in (("student", ours), ("teacher", theirs)):
            if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "num_hidden_layers"):
                raise ValueError(
                    f"the {who} has not one list of hidden states (it is an encoder-decoder, or of no depth); use "
                    "LogitsDistillation"
                )
        self.pairs = _resolve(self._wanted_pairs, ours.num_hidden_layers, theirs.num_hidden_layers)
        if ours.hidden_size != theirs.hidden_size:
            for s, t in self.pairs:
                self.projections[f"{s}-{t}"] = nn.Linear(ours.hidden_size, theirs.hidden_size, bias=False)
        if self.attention_weight:
            _check_attention(ours, theirs)

    def modules(self) -> dict[str, nn.Module]:
        return {"projections": self.projections} if len(self.projections) else {}

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        assert teacher is not None
        wanted = {"output_hidden_states": True, "output_attentions": bool(self.attention_weight)}
        ours, theirs = forward(student, batch, **wanted), teacher_forward(teacher, batch, **wanted)
        base = self.combine(student, ours.logits, theirs.logits, batch, num_items)
        weights = items_by_example(student, batch) / num_items  # they sum to 1 over all micro-batches of a step
        mask = batch.get("attention_mask")
        hidden = (self._hidden(ours.hidden_states, theirs.hidden_states, mask) * weights).sum()
        total, parts = base.total + self.hidden_weight * hidden, base.parts | {"hidden": hidden.detach()}
        if self.attention_weight:
            attention = (self._attention(ours.attentions, theirs.attentions, mask) * weights).sum()
            total, parts = total + self.attention_weight * attention, parts | {"attention": attention.detach()}
        return Losses(total, parts)

    def _hidden(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """`[batch]`, the mean over pairs of every example's mean squared error."""
        errors = []
        for s, t in self.pairs:
            mine, target = ours[s], theirs[t]
            if f"{s}-{t}" in self.projections:
                mine = self.projections[f"{s}-{t}"](mine)
            if mine.shape != target.shape:
                raise ValueError(
                    f"hidden state {s} of the student has shape {tuple(mine.shape)} and {t} of the teacher "
                    f"{tuple(target.shape)}; both must see the same tokens or patches"
                )
            errors.append(self._pair_error(mine.float(), target.float(), mask))
        return torch.stack(errors).mean(0)

    def _pair_error(self, mine: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if self.normalize == "cls":
            mine, target = (nn.functional.normalize(h[:, 0], dim=-1) for h in (mine, target))
            return (mine - target).square().mean(-1)
        return _masked_mean((mine - target).square().mean(-1), mask)

    def _attention(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """`[batch]`; maps are `[batch, heads, query, key]`, and a hidden state's index is its block's plus one."""
        errors = []
        for s, t in self.pairs:
            if s == 0:  # the embeddings have no attention
                continue
            mine, target = ours[s - 1].float(), theirs[t - 1].float()
            if mine.shape != target.shape:
                raise ValueError(
                    f"attention maps of student block {s - 1} have shape {tuple(mine.shape)}, of teacher block "
                    f"{t - 1} {tuple(target.shape)}; attention_weight needs equally many heads"
                )
            error = (mine - target).square().mean(1)
            if mask is not None:
                real = mask.to(error.dtype)
                error = (error * real[:, None, :]).sum(-1) / real.sum(-1)[:, None]
            else:
                error = error.mean(-1)
            errors.append(_masked_mean(error, mask))
        return torch.stack(errors).mean(0)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """`[batch, tokens]` -> `[batch]`, the mean over real tokens."""
    if mask is None:
        return values.flatten(1).mean(-1)
    real = mask.to(values.dtype)
    return (values * real).sum(-1) / real.sum(-1)


def _resolve(pairs: str | Pairs, ours: int, theirs: int) -> list[tuple[int, int]]:
    if pairs == "last":
        return [(ours, theirs)]
    if pairs == "uniform":
        if theirs % ours:
            raise ValueError(
                f"{ours} student blocks do not divide the teacher's {theirs}; give pairs=[(student, teacher)]"
            )
        return [(s + 1, (s + 1) * theirs // ours) for s in range(ours)]
    assert not isinstance(pairs, str)
    resolved = [(int(s), int(t)) for s, t in pairs]
    for s, t in resolved:
        if not (0 <= s <= ours and 0 <= t <= theirs):
            raise ValueError(f"pairs holds ({s}, {t}); the student has states 0 to {ours}, the teacher 0 to {theirs}")
    if not resolved:
        raise ValueError("pairs is empty; give at least one (student, teacher) pair")
    return resolved


def _check_attention(ours: object, theirs: object) -> None:
    for who, config in (("student", ours), ("teacher", theirs)):
        implementation = getattr(config, "_attn_implementation", None)
        if implementation != "eager":
            raise ValueError(
                f"the {who} computes attention by {implementation!r}, which returns no maps; "
                "load it with attn_implementation='eager', or set attention_weight=0"
            )
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    dropout = next((getattr(ours, n) for n in names if getattr(ours, n, 0)), 0)
    if dropout:
        raise ValueError(
            f"the student's attention dropout is {dropout}; its maps are seen after dropout. "
            "Set it to 0 in the student's config, or attention_weight=0"
        )
