"""The order of the training rows, with which a resumed run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from opdf.data import EpochDataset


class RowOrder:
    """What the order of each epoch is drawn from.

    A sampler without a generator (one that groups rows by length, or a user's) would take the order from the state of
    torch's own, which differs in a resumed run and on other processes: some rows were seen twice and others not at all.
    It gets a generator of ours, which epoch and seed decide. A user's own generators go on from epoch to epoch, so that
    a resumed run needs their states.
    """

    def __init__(self) -> None:
        self._ours: torch.Generator | None = None
        self._theirs: list[torch.Generator] = []
        self._of_epoch: list[Tensor] = []
        self._before: list[Tensor] = []

    def settle(self, sampler: Any) -> None:
        """Give a generator to a sampler that could have one and has none."""
        if getattr(sampler, "generator", self) is None:
            sampler.generator = self._ours = torch.Generator()

    def begin_epoch(self, number: int, seed: int, rows: Any, loader: Any) -> None:
        """Called before the first batch of an epoch is drawn.

        Args:
            number: of the epoch.
            seed: of the order.
            rows: that are trained on.
            loader: of their batches. One of several processes that accelerate has not made may draw otherwise than the
                others', of which a checkpoint has no state; give None for it.
        """
        if self._ours is not None:
            self._ours.manual_seed(seed + number)
        self._theirs = [one for one in _generators(loader) if one is not self._ours]
        for generator, state in zip(self._theirs, self._before, strict=False):
            generator.set_state(state)
        self._of_epoch, self._before = self._states(), []
        for some in _epoch_datasets(rows):
            some.set_epoch(number)

    def next_states(self, *, has_ended: bool) -> list[Tensor]:
        """States of a user's generators before they draw the epoch with which a run goes on from here.

        Args:
            has_ended: whether the epoch has; its checkpoint is written after all of its rows.
        """
        return self._states() if has_ended else self._of_epoch

    def go_on_from(self, states: Sequence[Tensor]) -> None:
        """Take these states in the next epoch that begins."""
        self._before = list(states)

    def _states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._theirs]


def alike(loader: Any, processes: int) -> Any:
    """A loader whose generators are in the same state on every process, else None."""
    return loader if processes == 1 or isinstance(loader, DataLoaderShard) else None


def _generators(loader: Any) -> list[torch.Generator]:
    """What the order of some rows is drawn from: those of a loader, its samplers and theirs."""
    own = [found] if isinstance(found := getattr(loader, "generator", None), torch.Generator) else []
    held = [inner for name in ("batch_sampler", "sampler") if (inner := getattr(loader, name, None)) is not None]
    return list(dict.fromkeys([*own, *(generator for inner in held for generator in _generators(inner))]))


def _epoch_datasets(rows: Any) -> Iterator[EpochDataset]:
    """What differs between epochs in some rows, also within torch's Subset and ConcatDataset."""
    if isinstance(rows, EpochDataset):
        yield rows
    held = [rows.dataset] if isinstance(rows, Subset) else rows.datasets if isinstance(rows, ConcatDataset) else []
    for inner in held:
        yield from _epoch_datasets(inner)
