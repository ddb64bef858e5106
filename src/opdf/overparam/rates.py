"""The learning rate of cores: they move a weight as far as a step of the weight itself would (`lr_scaling`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opdf.overparam.cores import Stack, movement, product_norm
from opdf.overparam.inner import own_options

RATE = {"lr_scale": 0.0, "moves": 0, "moved_dense": 0.0, "moved_cores": 0.0}
"""What a weight's state says about its learning rate before the first move. Every state has the same keys."""

FURTHEST = 2.0
"""Times as far as the dense optimizer, what cores may move a weight in their first step."""


@dataclass(frozen=True)
class Fresh:
    """An optimizer before its first step.

    Attributes:
        cls, options: what the user chose.
        group: a parameter group, whose options come before these.
    """

    cls: type[Optimizer]
    options: Mapping[str, Any]
    group: Mapping[str, Any]

    def updates(self, tensors: Sequence[Tensor], grads: Sequence[Tensor], rate: float, steps: int = 1) -> list[Tensor]:
        """What the last of some steps with constant gradients adds to tensors; their decay is left out."""
        chosen = {**own_options(self.group), "lr": rate}
        if "weight_decay" in chosen:
            chosen["weight_decay"] = 0.0
        tensors = [nn.Parameter(tensor.clone()) for tensor in tensors]
        optimizer = self.cls([{"params": tensors, **chosen}], **self.options)
        for left in range(steps, 0, -1):
            before = [tensor.clone() for tensor in tensors] if left == 1 else []
            for tensor, gradient in zip(tensors, grads, strict=True):
                tensor.grad = gradient.clone()
            optimizer.step()
        return [tensor.detach() - old for tensor, old in zip(tensors, before, strict=True)]

    def direction(self, grads: Sequence[Tensor], steps: int = 1) -> list[Tensor]:
        """The same from zero, at rate 1."""
        return self.updates([torch.zeros_like(g) for g in grads], grads, 1.0, steps)


def match_dense(fresh: Fresh, settled: int, stack: Stack, dense: Sequence[Tensor], still: Sequence[bool]) -> None:
    """In some steps, measure the factor of the rate with which cores move a weight as far as its dense gradient would.

    All gradients measured so far count, by how far they move the weight, so that an odd one changes little.

    Args:
        fresh: the optimizer that steps the cores.
        settled: number of its steps after which the form of its updates no longer changes.
        stack: the weights, with the gradients of their cores.
        dense: their own gradients, `[rows, cols]`.
        still: which of them do not move, and are left out.
    """
    for n, (state, chain, gradients) in enumerate(
        zip(stack.states, stack.chains, stack.gradients_apart(), strict=True)
    ):
        if still[n]:
            continue
        state["moves"] += 1
        if state["moves"] == 1:
            stack.limit(n, _longest(fresh, chain, dense[n]))
        if not is_due(state["moves"]):
            continue
        through_cores = float(movement(chain, fresh.direction(gradients, settled)))
        densely = float(fresh.direction([dense[n]], settled)[0].norm())
        if not math.isfinite(through_cores + densely):  # such a gradient says nothing about the next ones
            state["moves"] -= 1
            continue
        state["moved_dense"] += densely**2
        state["moved_cores"] += through_cores**2
        known = state["moved_cores"] > 0
        state["lr_scale"] = (state["moved_dense"] / state["moved_cores"]) ** 0.5 if known else 1.0


def is_due(moves: int) -> bool:
    """Whether to measure in a weight's n-th move: 1, 2, 8, 32, 128, ..."""
    return moves == 1 or (moves % 2 == 0 and (moves // 2).bit_count() == 1 and (moves // 2).bit_length() % 2 == 1)


def _longest(fresh: Fresh, chain: Sequence[Tensor], dense: Tensor) -> float:
    """How far cores may move a weight in their first step: `FURTHEST` times as far as the dense step.

    The factor of the rate is one for small steps. Where the rate is many times the size of the weights, the first
    step of the cores would be too long by the square of that and more. After it the weights are as large as a step.
    """
    rate, decay = (float(fresh.group.get(name) or 0.0) for name in ("lr", "weight_decay"))
    (update,) = fresh.direction([dense])
    shrinking = decay * len(chain) * product_norm(chain) if decay else 0.0
    return FURTHEST * rate * (float(update.norm()) + shrinking)
