"""A torch optimizer, pointed at tensors that are not its own: how it steps them, and how far."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from opdf.mpo import contract

_FORWARD_MODE = Lock()
"""torch counts levels of forward-mode differentiation for all threads together."""


def run_inner(inner: Optimizer, parts: Iterable[tuple[list[Tensor], float | Tensor]], state: Any) -> None:
    """Let `inner` step tensors that have gradients, with a state by tensor and each part at a rate of its own.

    One call for all of them: what a torch optimizer does around its arithmetic takes as long as a small matrix.
    """
    given = inner.param_groups
    inner.param_groups = [{**given[0], "params": tensors, "lr": lr} for tensors, lr in parts]
    inner.state = state
    inner.step()
    inner.param_groups = given


def dense_over_cores(inner: Optimizer, cores: list[Tensor], grads: list[Tensor], grad: Tensor) -> float:
    """How much further one step of `inner` on the dense matrix moves it than the same step on its cores.

    The second is linear in the rate for small rates: the derivative of the contraction along the cores' updates.
    """
    dense = _unit_updates(inner, [grad])[0].norm()
    updates = _unit_updates(inner, grads)
    with _FORWARD_MODE:
        moved: Tensor = torch.func.jvp(lambda *c: contract(c), tuple(cores), tuple(updates))[1]
    through_cores = moved.norm()
    return float(dense / through_cores) if through_cores > 0 else 1.0


def _unit_updates(inner: Optimizer, grads: list[Tensor]) -> list[Tensor]:
    """What the first step of `inner` adds to tensors with these gradients, at rate 1 and without decay."""
    tensors = [torch.zeros_like(g) for g in grads]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = g.clone()
    options = inner.param_groups[0]
    kept = options.get("weight_decay")
    if kept is not None:
        options["weight_decay"] = 0.0
    run_inner(inner, [(tensors, 1.0)], {t: {} for t in tensors})
    if kept is not None:
        options["weight_decay"] = kept
    return [t.detach() for t in tensors]
