"""How much the loss depends on a matrix: Taylor importance (Molchanov et al., arXiv 1906.10771)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from opdf.overparam.sharding import whole


def importance(weight: Tensor, gradient: Tensor | None) -> float:
    """Sum over all entries of |gradient x weight|: 0 without a gradient.

    One term is, to first order, how far the loss moves when that entry is set to zero. They are summed because a matrix
    is over-parameterized as a whole: the sum bounds what any change of its entries by up to their own size does to the
    loss. A mean would rank a small matrix above a large one that the loss depends on more.
    """
    return float(whole((gradient.detach() * weight.detach()).float().abs().sum())) if gradient is not None else 0.0


def count_kept(matrices: int, share: float) -> int:
    """How many of so many matrices a share is: rounded, at least one."""
    return max(1, round(share * matrices))


def most_important(model: nn.Module, names: Sequence[str], share: float) -> list[str]:
    """Of these parameters, the `share` (see `count_kept`) with the largest `importance`, in the order given.

    Raises:
        ValueError: none has a gradient, all gradients are zero, or one is not finite.
    """
    parameters = {name: model.get_parameter(name) for name in names}
    scores = {name: importance(p, p.grad) for name, p in parameters.items()}
    if not any(scores.values()):
        raise ValueError(
            f"most_important is {share} and none of the {len(names)} matrices has a gradient other than zero; "
            "call loss.backward() on a few batches first (the trainer does), with an output layer that is not all zero"
        )
    for name, score in scores.items():
        if not math.isfinite(score):
            raise ValueError(f"most_important is {share} and the gradient of {name} is not finite; look at the data")
    kept = sorted(names, key=lambda name: -scores[name])[: count_kept(len(names), share)]
    return [name for name in names if name in kept]
