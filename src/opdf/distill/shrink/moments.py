"""Sums over the rows of the calibration data: all that the closed-form fits need."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from opdf.distill.losses import precise
from opdf.mpo import factorized_on

ROWS = 16_384
"""Rows whose products are added up in float32. The sums of more are added up in float64."""

WIDE = 512
"""Columns from which half of a symmetric product is worth leaving out."""


def exact(values: Tensor) -> Tensor:
    """Values without a gradient in float64, on the CPU if their device has none."""
    return values.detach().to(factorized_on(values.device), torch.float64)


ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Of values and of sums of their products, relative to their size, where a model computes in float32."""


class _Sums(NamedTuple):
    """Of x, y, the squares of y, x x' (its upper triangle) and x y', all as deviations from the origins."""

    x: Tensor
    y: Tensor
    yy: Tensor
    xx: Tensor
    xy: Tensor


class Moments:
    """Weighted means of inputs `x`, outputs `y` and their products, in float64; the order of rows does not matter.

    Products have the precision of their factors, float32 at least. Their factors are deviations from the mean of the
    first rows: where a mean is a hundred times the deviation, float32 has no digits left for the variance otherwise.

    Args:
        inputs, outputs: widths of x and y.
        device: of the rows; the means are there too, or on the CPU if it has no float64.

    Attributes:
        count: the sum of the weights of the rows seen.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.count = 0.0
        self._shapes = (inputs,), (outputs,), (outputs,), (inputs, inputs), (inputs, outputs)
        self._sums = self._zeros(torch.float64, factorized_on(device))
        self._origins = torch.zeros(inputs), torch.zeros(outputs)
        self._recent: _Sums | None = None  # of the last rows, `ROWS` at most
        self._rows = 0

    def add(self, x: Tensor, y: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Count rows `x` `[rows, inputs]` and `y` `[rows, outputs]` in, with `weights` `[rows]` or 1 each.

        None is `y` without outputs.
        """
        y = x[:, :0] if y is None else y
        if len(x) > ROWS:
            for k in range(0, len(x), ROWS):
                part = slice(k, k + ROWS)
                self.add(x[part], y[part], None if weights is None else weights[part])
            return
        x, y = precise(x), precise(y)
        if not self.count and len(x):
            self._origins = x.mean(0).float(), y.mean(0).float()
        x, y = (rows - origin.to(rows) for rows, origin in zip((x, y), self._origins, strict=True))
        dtype, roots = x.dtype, torch.ones_like(x[:, :1])
        if weights is not None:
            roots = weights.to(dtype).sqrt()[:, None]
            x, y = x * roots, y * roots
        if self._rows + len(x) > ROWS:
            self._settle()
        if self._recent is None or self._recent.x.dtype != dtype:
            self._settle()
            self._recent = self._zeros(dtype, x.device)
        sums = self._recent
        sums.x.add_((roots.mT @ x)[0])
        _add_gram(sums.xx, x)
        if y.shape[1]:
            sums.y.add_((roots.mT @ y)[0])
            sums.yy.add_(y.square().sum(0))
            sums.xy.addmm_(x.mT, y)
        self._rows += len(x)
        self.count += len(x) if weights is None else float(weights.sum())

    def means(self) -> tuple[Tensor, Tensor]:
        """Of x `[inputs]` and y `[outputs]`."""
        x, y = self._deviations()
        first, second = self._origins
        return x + first.to(x), y + second.to(y)

    def covariances(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Means of `x x'` `[inputs, inputs]` and `x y'` `[inputs, outputs]`, of deviations from the means if asked."""
        x, y = self._deviations()
        xx, xy = self._sums.xx / self.count, self._sums.xy / self.count
        _mirror(xx)
        xx.addr_(x, x, alpha=-1)
        xy.addr_(x, y, alpha=-1)
        if not centred:
            x, y = self.means()
            xx.addr_(x, x)
            xy.addr_(x, y)
        return xx, xy

    def variance(self) -> Tensor:
        """`[outputs]`, of y; 0 where values differ by rounding alone."""
        _, y = self._deviations()
        variance = self._sums.yy / self.count - y.square()
        return torch.where(variance > (ROUNDING * self.means()[1]).square(), variance, 0.0)

    def _deviations(self) -> tuple[Tensor, Tensor]:
        """Of the means from the origins."""
        self._settle()
        return self._sums.x / self.count, self._sums.y / self.count

    def _zeros(self, dtype: torch.dtype, device: torch.device) -> _Sums:
        return _Sums(*(torch.zeros(shape, dtype=dtype, device=device) for shape in self._shapes))

    def _settle(self) -> None:
        """Add the sums of the last rows to those of all."""
        if self._recent is not None and self._rows:
            for total, recent in zip(self._sums, self._recent, strict=True):
                total += recent.to(total.device)
                recent.zero_()
        self._rows = 0


def _add_gram(total: Tensor, x: Tensor) -> None:
    """Add `x' x` to the upper triangle of a matrix; of large ones little more than that is multiplied."""
    if (half := _half(total)) is None:
        total.addmm_(x.mT, x)
        return
    left, right = x[:, :half], x[:, half:]
    _add_gram(total[:half, :half], left)
    _add_gram(total[half:, half:], right)
    total[:half, half:].addmm_(left.mT, right)


def _mirror(total: Tensor) -> None:
    """Fill in what `_add_gram` has left out."""
    if (half := _half(total)) is not None:
        _mirror(total[:half, :half])
        _mirror(total[half:, half:])
        total[half:, :half] = total[:half, half:].mT


def _half(total: Tensor) -> int | None:
    """Where a symmetric product is cut in two, None if it is small."""
    return len(total) // 2 if len(total) > WIDE else None
