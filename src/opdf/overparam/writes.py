"""Weights that someone else writes: a pruning mask, a reload, an average that is swapped in.

A tensor's version counts writes in place, but not those through `.data`, NumPy or a custom kernel. So some entries of
every weight are compared, bit for bit, with what the last step has written: one in every row and one in every column.

A write to a whole row or column is always seen. A write to a share s of all entries is seen with probability
1 - (1 - s)^n, where n is the larger of rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from opdf.overparam.sharding import local

EVERY = 100
"""Comparisons on a GPU between two looks at their results. A look waits for the GPU."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Mark(NamedTuple):
    """A weight as it was written: its version, the bits of some entries, and what it was written together with."""

    version: int
    bits: Tensor
    by: object


class Writes:
    """What steps have written, by which others' writes are noticed."""

    def __init__(self) -> None:
        self._marks: dict[Tensor, Mark] = {}
        self._lost: dict[torch.device, Tensor] = {}
        self._looks = 0

    def mark(self, p: Tensor, by: object = None) -> None:
        """Remember a weight as it is now."""
        self._marks[p] = Mark(p._version, entries(p), by)

    def forget(self, p: Tensor) -> None:
        """Forget a weight."""
        self._marks.pop(p, None)

    def written_by(self, p: Tensor) -> object:
        """The `by` of the last `mark`, if nothing has written the weight in place since."""
        mark = self._marks.get(p)
        return mark.by if mark is not None and mark.version == p._version else None

    def compare(self, weights: Iterable[Tensor]) -> dict[Tensor, bool | None]:
        """Whether weights are as they were marked; None where some entries cannot tell.

        Weights on a GPU and sharded ones are compared without waiting: a write that leaves the version as it is comes
        out at the next `raise_if_lost`.
        """
        found: dict[Tensor, bool | None] = {}
        later = []
        for p in weights:
            mark = self._marks.get(p)
            here = p.device.type == "cpu" and not isinstance(p, DTensor)
            moved = mark is not None and mark.bits.device != p.device  # to be saved elsewhere, say
            if mark is None or moved or (not here and mark.version != p._version):
                found[p] = None
            elif here:
                same = torch.equal(entries(p), mark.bits)
                found[p] = same if not same or mark.version == p._version else None
            else:
                found[p] = True
                later.append(p)
        if later:
            self.look_later(later)
        return found

    def look_later(self, weights: Iterable[Tensor]) -> None:
        """Compare marked weights without waiting; `raise_if_lost` reads the answers."""
        lost = [(now != then).any() for now, then in _joined([(entries(p), self._marks[p].bits) for p in weights])]
        for one in lost:
            known = self._lost.get(one.device)
            self._lost[one.device] = one if known is None else known | one
        self._looks += 1
        if self._looks % EVERY == 0:
            self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """Read the answers of `look_later`; waits for a GPU.

        Raises:
            RuntimeError: a write was not seen in time, and a step has undone it.
        """
        lost, self._lost = self._lost, {}
        if any(bool(one) for one in lost.values()):
            raise RuntimeError(
                "a weight was changed between two steps without a trace (through .data, say), and the step has undone "
                "that. Change weights in place: with torch.no_grad(): weight.mul_(mask)"
            )


def entries(p: Tensor) -> Tensor:
    """The bits of some entries, as integers. Of a sharded weight, those of this process's part."""
    here = local(p.detach())
    bits = torch.take(here, _places(tuple(here.shape), here.device))
    return bits.view(_BITS[bits.dtype.itemsize])


@lru_cache(maxsize=1024)
def _places(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Flat indices of entries, one in every row and one in every column of the flattened weight."""
    rows, cols = shape[0], math.prod(shape[1:])
    if not rows * cols:
        return torch.empty(0, dtype=torch.int64, device=device)
    count = max(rows, cols)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count), device="cpu")
    numbers = torch.arange(count, device="cpu")
    row, col = (numbers % rows, order) if cols > rows else (order, numbers % cols)
    return (row * cols + col).to(device)


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    """One pair of long tensors for each dtype and device, in place of many short ones."""
    alike: dict[object, list[tuple[Tensor, Tensor]]] = {}
    for now, then in pairs:
        alike.setdefault((now.dtype, now.device), []).append((now, then))
    for few in alike.values():
        yield torch.cat([now for now, _ in few]), torch.cat([then for _, then in few])
