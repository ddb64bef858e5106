"""The learning rate of cores: they move a weight as far as a step of the weight itself would (`lr_scaling`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def match_dense(
    cls: type[Optimizer],
    options: Mapping[str, Any],
    settled: int,
    stack: Stack,
    dense: Sequence[Tensor],
    still: Sequence[bool],
) -> None:
    """In some steps, measure the factor of the rate with which cores move a weight as far as its dense gradient would.

    All gradients measured so far count, by how far they move the weight, so that an odd one changes little.

    Args:
        cls, options: of the optimizer that steps the cores.
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
            stack.limit(n, _longest(cls, options, stack.group, chain, dense[n]))
        if not is_due(state["moves"]):
            continue
        moved = _lengths(cls, options, stack.group, chain, gradients, dense[n], settled)
        if not math.isfinite(sum(moved)):  # a gradient that is not finite says nothing about the next ones
            state["moves"] -= 1
            continue
        state["moved_dense"] += moved[0] ** 2
        state["moved_cores"] += moved[1] ** 2
        known = state["moved_cores"] > 0
        state["lr_scale"] = (state["moved_dense"] / state["moved_cores"]) ** 0.5 if known else 1.0


def is_due(moves: int) -> bool:
    """Whether to measure in a weight's n-th move: 1, 2, 8, 32, 128, ..."""
    return moves == 1 or (moves % 2 == 0 and (moves // 2).bit_count() == 1 and (moves // 2).bit_length() % 2 == 1)


def updates(
    cls: type[Optimizer],
    options: Mapping[str, Any],
    group: Mapping[str, Any],
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor],
    steps: int,
) -> list[Tensor]:
    """What the last of some steps with constant gradients adds to tensors, by a fresh optimizer without decay."""
    chosen = own_options(group)
    if "weight_decay" in chosen:
        chosen["weight_decay"] = 0.0
    tensors = [nn.Parameter(tensor.clone()) for tensor in tensors]
    optimizer = cls([{"params": tensors, **chosen}], **options)
    for left in range(steps, 0, -1):
        before = [tensor.clone() for tensor in tensors] if left == 1 else []
        for tensor, gradient in zip(tensors, grads, strict=True):
            tensor.grad = gradient.clone()
        optimizer.step()
    return [tensor.detach() - old for tensor, old in zip(tensors, before, strict=True)]


def _unit_updates(
    cls: type[Optimizer], options: Mapping[str, Any], group: Mapping[str, Any], grads: Sequence[Tensor], steps: int = 1
) -> list[Tensor]:
    """The same from zero, at rate 1."""
    return updates(cls, options, {**group, "lr": 1.0}, [torch.zeros_like(g) for g in grads], grads, steps)


def _lengths(
    cls: type[Optimizer],
    options: Mapping[str, Any],
    group: Mapping[str, Any],
    cores: Sequence[Tensor],
    grads: Sequence[Tensor],
    dense: Tensor,
    steps: int,
) -> tuple[float, float]:
    """How far a fresh optimizer at rate 1 moves a matrix densely and through its cores: two Frobenius norms."""
    through_cores = movement(cores, _unit_updates(cls, options, group, grads, steps))
    return float(_unit_updates(cls, options, group, [dense], steps)[0].norm()), float(through_cores)


def _longest(
    cls: type[Optimizer], options: Mapping[str, Any], group: Mapping[str, Any], chain: Sequence[Tensor], dense: Tensor
) -> float:
    """How far cores may move a weight in their first step: `FURTHEST` times as far as the dense step.

    The factor of the rate is one for small steps. Where the rate is many times the size of the weights, the first
    step of the cores would be too long by the square of that and more. After it the weights are as large as a step.
    """
    rate, decay = (float(group.get(name) or 0.0) for name in ("lr", "weight_decay"))
    (update,) = _unit_updates(cls, options, group, [dense])
    shrinking = decay * len(chain) * product_norm(chain) if decay else 0.0
    return FURTHEST * rate * (float(update.norm()) + shrinking)
