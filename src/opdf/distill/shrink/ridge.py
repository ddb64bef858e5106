"""Linear maps fitted to second moments by ridge regression."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from opdf.distill.shrink.moments import ROUNDING, Moments

STRENGTH, STRENGTH_OF_HEADS = 1e-3, 1e-2
"""Weight of the pull to the first guess, relative to the mean variance of an input. It is there for heads that read one
token of an example and so have few rows to learn from."""


class Affine(NamedTuple):
    """The map `x -> weight x + bias`: `[outputs, inputs]` and `[outputs]`, float64."""

    weight: Tensor
    bias: Tensor


def ridge(moments: Moments, guess: Tensor, *, constant: bool = True, strength: float = STRENGTH) -> Affine:
    """The affine map from x to y of least squared error, pulled to a first guess of its weight.

    Minimizes the mean of `|y - W x - b|^2` plus `strength` times the mean variance of x times `|W - guess|^2`. Where
    the guess is exact it is returned, whatever the strength.

    Args:
        moments: of x and y.
        guess: `[outputs, inputs]`, float64.
        constant: whether there is a bias b; it is zero otherwise.
        strength: more than 0.
    """
    xx, xy = moments.covariances(constant)
    missing = xy - xx @ guess.mT
    x, y = moments.means()
    # An input that differs by rounding alone tells nothing, and would be read with any weight.
    xx.diagonal().add_(strength * xx.diagonal().mean() + ROUNDING * x.square() + torch.finfo(xx.dtype).tiny)
    step = torch.linalg.solve(xx, missing)
    weight = guess + step.mT
    return Affine(weight, y - weight @ x if constant else torch.zeros_like(y))


def explained(moments: Moments) -> float:
    """The share of y's variance that a linear map of x can explain, 0 to 1."""
    total = moments.variance().sum()
    if not total > 0:
        return 1.0
    xx, xy = moments.covariances(True)
    xx.diagonal().add_(1e-10 * xx.diagonal().mean() + torch.finfo(xx.dtype).tiny)
    told = (xy * torch.linalg.solve(xx, xy)).sum()
    return float((told / total).clamp(0, 1))
