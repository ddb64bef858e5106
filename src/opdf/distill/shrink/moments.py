"""Sums over the rows of the calibration data: all that the closed-form fits need."""

from __future__ import annotations

import torch
from torch import Tensor

from opdf.mpo import factorized_on

ROWS = 4096
"""Rows of one product. Products of more are added up in float64."""

WIDE = 512
"""Columns from which half of a symmetric product is worth leaving out."""


def exact(values: Tensor) -> Tensor:
    """Values without a gradient in float64, on the CPU if their device has none."""
    return values.detach().to(factorized_on(values.device), torch.float64)


class Moments:
    """Sums of products of inputs `x` and outputs `y`, in float64; the order of the rows does not matter.

    Products have the precision of their factors, float32 at least. They are added up in float64, some thousand rows at
    a time.

    Args:
        inputs, outputs: widths of x and y.
        device: of the rows; the sums are there too, or on the CPU if it has no float64.

    Attributes:
        count: rows seen.
        x: `[inputs]`, sum of x; y: `[outputs]`.
        xy: `[inputs, outputs]`, sum of x y'.
        yy: `[outputs]`, sum of the squares of y.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=factorized_on(device))

        self.count = 0
        self.x, self.y, self.yy = zeros(inputs), zeros(outputs), zeros(outputs)
        self._xx, self.xy = zeros(inputs, inputs), zeros(inputs, outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count rows `x` `[rows, inputs]` and `y` `[rows, outputs]` in."""
        if len(x) > ROWS:
            for part in zip(torch.split(x, ROWS), torch.split(y, ROWS), strict=True):
                self.add(*part)
            return
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        self.count += len(x)
        self.x += x.sum(0).to(self.x)
        _add_gram(self._xx, x)
        if y.shape[1]:
            self.y += y.sum(0).to(self.y)
            self.yy += y.square().sum(0).to(self.yy)
            self.xy += (x.mT @ y).to(self.xy)

    def covariances(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Means of `x x'` `[inputs, inputs]` and `x y'` `[inputs, outputs]`, of deviations from the means if asked."""
        xx, xy = (self._xx.triu() + self._xx.triu(1).mT) / self.count, self.xy / self.count
        if centred:
            mean = self.x / self.count
            xx, xy = xx - torch.outer(mean, mean), xy - torch.outer(mean, self.y / self.count)
        return xx, xy

    def variance(self) -> Tensor:
        """`[outputs]`, of y."""
        return (self.yy / self.count - (self.y / self.count).square()).clamp(min=0)


def _add_gram(total: Tensor, x: Tensor) -> None:
    """Add `x' x` to the upper triangle of a matrix; of large ones little more than that is multiplied."""
    size = x.shape[1]
    if size <= WIDE:
        total += (x.mT @ x).to(total)
        return
    half = size // 2
    left, right = x[:, :half], x[:, half:]
    _add_gram(total[:half, :half], left)
    _add_gram(total[half:, half:], right)
    total[:half, half:] += (left.mT @ right).to(total)
