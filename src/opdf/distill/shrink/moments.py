"""Sums over the rows of the calibration data: all that the closed-form fits need to know of it."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Sums of products of inputs `x` and outputs `y`, in float64; the order of the rows does not matter.

    Args:
        inputs, outputs: widths of x and y.
        device: where the sums are kept.

    Attributes:
        count: rows seen.
        x: `[inputs]`, sum of x; y: `[outputs]`.
        xx: `[inputs, inputs]`, sum of x x'; xy: `[inputs, outputs]`.
        yy: `[outputs]`, sum of the squares of y.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.x, self.y, self.yy = zeros(inputs), zeros(outputs), zeros(outputs)
        self.xx, self.xy = zeros(inputs, inputs), zeros(inputs, outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count rows `x` `[rows, inputs]` and `y` `[rows, outputs]` in."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.yy += y.square().sum(0)
        self.xx += x.mT @ x
        self.xy += x.mT @ y

    def covariances(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Means of `x x'` `[inputs, inputs]` and `x y'` `[inputs, outputs]`, of deviations from the means if asked."""
        xx, xy = self.xx / self.count, self.xy / self.count
        if centred:
            mean = self.x / self.count
            xx, xy = xx - torch.outer(mean, mean), xy - torch.outer(mean, self.y / self.count)
        return xx, xy

    def variance(self) -> Tensor:
        """`[outputs]`, of y."""
        return (self.yy / self.count - (self.y / self.count).square()).clamp(min=0)
