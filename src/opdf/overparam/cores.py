"""The cores of a stack of matrices of one shape: made, given gradients, written back.

This is the only file that computes with `opdf.mpo`. Another factorization would be added here and in `shapes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from opdf.mpo import (
    Progress,
    contract,
    contract_segments,
    decompose_many,
    match_gauge,
    matmul_precision,
    one_a_thread,
    pullback,
    shape_of,
    threads_for,
)
from opdf.overparam.select import Matrix
from opdf.overparam.shapes import MPOShape

__all__ = ["Progress", "Stack", "shape_of"]

STACK_ENTRIES = {"cuda": 2**25, "cpu": 2**19}
"""How many core entries are stepped together at most, by type of device. On a CPU larger stacks are no faster; on a GPU
the copies and gradients of a stack need memory. On other devices matrices are stepped one by one."""

BESIDE_FLOPS = 2**28
"""Above this many operations a contraction, parallel threads beat a loop."""

ROUNDING = {"float32": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}
"""Relative rounding that a contraction in this precision adds to that of the weight's dtype."""

HALVINGS = 100
"""Of a step, at most."""

_FORWARD_MODE = Lock()
"""torch counts levels of forward-mode differentiation for all threads together."""


class Stack:
    """Weights of one shape whose cores are stepped together. Each keeps a state of its own.

    Attributes:
        weights: parameters and what they are, all of one shape, dtype and device.
        states: the optimizer's state of each: `core0`, `core1`, ...
        shape: of every chain.
        group: the parameter group that they belong to.
        precision: of the products between cores, see `OverParamConfig`.
        cores, gradients: by site `[..., d_{k-1}, i_k, j_k, d_k]`, with one leading dimension where there are several
            weights; from `pull_back` until `drop_gradients`.
    """

    def __init__(
        self, weights: Mapping[Tensor, Matrix], states: Sequence[dict[str, Any]], precision: str, keep: bool | None
    ) -> None:
        self.weights = weights
        self.states = states
        self.shape = next(iter(weights.values())).shape
        self.precision = precision
        self.group: dict[str, Any] = {}
        self.cores: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._before: list[list[Tensor]] = []
        self._limits: dict[int, tuple[list[Tensor], float]] = {}
        self._keep = keep
        self._segments: dict[tuple[int, int], Tensor] | None = None
        self._contracted: list[tuple[Tensor, int]] = []

    @property
    def flops(self) -> int:
        return len(self.weights) * self.shape.contract_flops

    @property
    def chains(self) -> list[list[Tensor]]:
        """The cores of every weight."""
        return [cores_in(state, self.shape) for state in self.states]

    def pull_back(self, dense: Sequence[Tensor]) -> None:
        """Turn gradients of the weights, `[rows, cols]` each, into gradients of their cores."""
        self.cores = _by_site(self.chains)
        pulled = pullback([self._low(c) for c in self.cores], self._low(_together(dense)), self._known_products())
        self.gradients = [g.to(core.dtype) for g, core in zip(pulled, self.cores, strict=True)]
        for chain, gradients in zip(self.chains, self.gradients_apart(), strict=True):
            for core, gradient in zip(chain, gradients, strict=True):
                core.grad = gradient

    def gradients_apart(self) -> list[tuple[Tensor, ...]]:
        """The gradients of every weight's cores, views of `gradients`."""
        return list(zip(*(_apart(g, len(self.weights)) for g in self.gradients), strict=True))

    def of_states(self, key: str, sites: Sequence[int]) -> dict[int, Tensor]:
        """By site, what all states hold under a key such as "core", with the leading dimension of `cores`."""
        return {k: _together([state[f"{key}{k}"] for state in self.states]) for k in sites}

    def watch(self, still: Sequence[bool]) -> None:
        """Remember the cores that may stay as they are, for `moved`."""
        self._before = [
            [core.clone() for core in chain] if may_stay else []
            for chain, may_stay in zip(self.chains, still, strict=True)
        ]

    def moved(self) -> list[bool]:
        """Which weights' cores have moved since `watch`. Those that were not watched count as moved."""
        return [
            not before or any(not torch.equal(core, old) for core, old in zip(chain, before, strict=True))
            for chain, before in zip(self.chains, self._before, strict=True)
        ]

    def limit(self, which: int, length: float) -> None:
        """Let the coming step move a weight no further than `length`, see `hold_back`."""
        self._limits[which] = [core.clone() for core in self.chains[which]], length

    def hold_back(self) -> None:
        """Shorten the steps of cores that move their weight further than they may."""
        for which, (before, length) in self._limits.items():
            shorten(self.chains[which], before, length)
        self._limits = {}

    def drop_gradients(self) -> None:
        self.cores, self.gradients, self._before = [], [], []
        for chain in self.chains:
            for core in chain:
                core.grad = None

    def products(self) -> list[Tensor]:
        """The matrices `[rows, cols]` that the cores make."""
        cores = _by_site(self.chains)
        product, segments = contract_segments([self._low(core) for core in cores], self.shape)
        if self._keep or (self._keep is None and cores[0].device.type == "cpu"):
            self._segments, self._contracted = segments, self._versions()
        return list(_apart(product.to(cores[0].dtype), len(self.weights)))

    def _known_products(self) -> dict[tuple[int, int], Tensor] | None:
        """The products of the last contraction if the cores have not changed since. They are given out once."""
        segments, self._segments = self._segments, None
        same = all(
            core is other and version == other_version
            for (core, version), (other, other_version) in zip(self._versions(), self._contracted, strict=False)
        )
        return segments if same else None

    def _versions(self) -> list[tuple[Tensor, int]]:
        return [(core, core._version) for chain in self.chains for core in chain]

    def _low(self, tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if self.precision == "bf16" and tensor.dtype == torch.float32 else tensor


def stacked(weights: Mapping[Tensor, Matrix], kinds: Mapping[Tensor, Any]) -> Iterator[dict[Tensor, Matrix]]:
    """Weights to step together: of one kind, shape, dtype and device, up to `STACK_ENTRIES`."""
    found: dict[Any, list[tuple[Tensor, Matrix]]] = {}
    for p, matrix in weights.items():
        alike = (kinds[p], matrix.shape, working_dtype(p), p.device)
        found.setdefault(alike, []).append((p, matrix))
    for members in found.values():
        p, matrix = members[0]
        size = max(1, STACK_ENTRIES.get(p.device.type, 0) // matrix.shape.num_params)
        yield from (dict(members[k : k + size]) for k in range(0, len(members), size))


def each(work: Callable[[Stack], None], stacks: Sequence[Stack]) -> None:
    """Call `work` on every stack: one stack a thread if all are on the CPU, unsharded, and enough of them large."""
    tensors = [p for stack in stacks for p in stack.weights]
    here = all(p.device.type == "cpu" and not isinstance(p, DTensor) for p in tensors)
    large = [stack for stack in stacks if stack.flops >= BESIDE_FLOPS]
    if here and len(large) >= torch.get_num_threads():
        one_a_thread(work, stacks, [stack.flops for stack in stacks], threads=torch.get_num_threads())
    else:
        for stack in stacks:
            work(stack)


@contextmanager
def products_in(precision: str = "float32") -> Iterator[None]:
    """Inside, products of float32 tensors are computed in `precision`, whatever the process has set."""
    with matmul_precision("tf32" if precision == "tf32" else "ieee"):
        yield


def decompose(
    matrices: Sequence[Tensor], shapes: Sequence[MPOShape], progress: Progress | None = None
) -> list[list[Tensor]]:
    """The cores of some matrices `[rows, cols]`; `progress` is told how many are done, of how many."""
    return decompose_many(matrices, shapes, progress=progress)


def match(
    chains: Sequence[Sequence[Tensor]], references: Sequence[Sequence[Tensor]], weights: Sequence[Mapping[int, float]]
) -> list[list[Tensor]]:
    """Rotate the bonds of chains to those of their references; on a CPU one chain a thread.

    Args:
        chains, references: cores of as many weights.
        weights: of the constraint loss, by site, for each chain.
    """
    with products_in():
        return one_a_thread(
            lambda given: match_gauge(*given),
            list(zip(chains, references, weights, strict=True)),
            [sum(core.numel() for core in chain) for chain in chains],
            threads=threads_for(chain[0].device for chain in chains),
        )


def is_product(weight: Tensor, cores: Sequence[Tensor], precision: str) -> bool:
    """Whether every entry of `[rows, cols]` is that of the cores' product, to the rounding of the weight's dtype.

    Args:
        weight: as it is stored.
        cores: its chain.
        precision: of the contraction that has made it, see `OverParamConfig`.
    """
    with torch.no_grad(), products_in():
        product = contract([working(core, weight) for core in cores])
        noise = max(64 * torch.finfo(product.dtype).eps, 2 * ROUNDING[precision]) * product.abs().amax()
        stored = torch.finfo(weight.dtype)
        # Below the smallest normal number (6e-5 of float16), where entries of small weights are, steps are of one size.
        allowed = product.abs().clamp(min=stored.smallest_normal) * stored.eps + noise
        return bool(((weight.to(product.dtype) - product).abs() <= allowed).all())


def movement(cores: Sequence[Tensor], updates: Sequence[Tensor]) -> Tensor:
    """The Frobenius norm of what small updates of the cores change in their product, to first order."""
    with _FORWARD_MODE:
        moved: Tensor = torch.func.jvp(lambda *c: contract(c), tuple(cores), tuple(updates))[1]
    return moved.norm()


def product_norm(cores: Sequence[Tensor]) -> float:
    """The Frobenius norm of a chain's product."""
    return float(contract(cores).norm())


def shorten(cores: Sequence[Tensor], before: Sequence[Tensor], length: float) -> None:
    """Halve a step of cores, in place, until their product moves no further than `length`, a Frobenius norm."""
    start, updates = contract(before), [core - old for core, old in zip(cores, before, strict=True)]
    for halvings in range(HALVINGS):
        if float((contract(cores) - start).norm()) <= length:  # false for what is not a number
            return
        for core, old, update in zip(cores, before, updates, strict=True):
            core.copy_(old + update * 0.5 ** (halvings + 1))


def cores_in(state: Mapping[str, Any], shape: MPOShape) -> list[Tensor]:
    """The cores that an optimizer's state of a weight holds."""
    return [state[f"core{k}"] for k in range(shape.sites)]


def working_dtype(p: Tensor) -> torch.dtype:
    """The dtype of a parameter's cores and moments: float64 for float64, float32 for all others."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def working(tensor: Tensor, p: Tensor) -> Tensor:
    """A copy of a core on the device and in the precision in which the cores of a parameter are kept."""
    return tensor.detach().to(device=p.device, dtype=working_dtype(p), copy=True).contiguous()


def _by_site(chains: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [_together(alike) for alike in zip(*chains, strict=True)]


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as it is, several as a stack."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))


def _apart(tensor: Tensor, count: int) -> Sequence[Tensor]:
    """What `_together` has put together."""
    return [tensor] if count == 1 else tensor.unbind()
