"""Owner-computes: every matrix's cores and moments live on one process, which sends the others the new weight.

The model's wrapper (DDP, FSDP2) averages dense gradients as usual. A step is made of turns. In each, every process
steps one matrix of its own, or a stack of them: what FSDP2 has sharded is gathered, all processes step, and the owners
send the new weights.

Memory for cores and the time of their step fall with the number of processes. No process holds more gathered matrices
than those of one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from opdf.overparam import saved
from opdf.overparam.alignment import LOGS
from opdf.overparam.cores import Stack, products_in
from opdf.overparam.optimizer import OverParameterizedOptimizer, Weights
from opdf.overparam.select import Matrix
from opdf.overparam.sharding import assign, gathered, whole

Turn = dict[int, Stack]
"""The stack that each process steps, by process. Processes without a stack are left out."""


def balance(costs: Sequence[float], processes: int) -> list[int]:
    """The process for each item, with about equal sums of costs: the most costly goes first, to the smallest sum."""
    loads, owners = [0.0] * processes, [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
        owners[item] = loads.index(min(loads))
        loads[owners[item]] += costs[item]
    return owners


class OwnerOptimizer(OverParameterizedOptimizer):
    """An `OverParameterizedOptimizer` that holds the cores of its own matrices only.

    All processes make the same calls. Before `state_dict`, `consolidate_state_dict` brings all cores to one process;
    what that saves does not depend on the number of processes, and any number can load it.
    """

    def _forget(self) -> None:
        super()._forget()
        self._gathered: dict[Tensor, dict[str, Tensor]] = {}
        self._results: dict[Tensor, tuple[Tensor, object]] = {}
        self._seen: dict[Tensor, int] = {}
        self._consolidated: dict[str, Any] | None = None

    @property
    def owners(self) -> dict[str, int]:
        """The owning process of every over-parameterized weight."""
        matrices = self._recipe.matrices
        costs = [matrix.shape.contract_flops + matrix.shape.num_params for matrix in matrices.values()]
        return dict(zip(matrices, balance(costs, _processes()), strict=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = self._evaluate(closure)
        self._consolidated = None
        moving = self._moving()
        turns, plain = self._turns(moving), self._plain_parts()
        self._make_cores_together(turns)
        self._inner.adopt(plain)
        self._inner.step(plain, alone=True)
        for turn in turns:
            self._gather(turn)
            self._make_cores_of(turn)
            if (stack := turn.get(_process())) is not None:
                stack.states = [self.state[p] for p in stack.weights]
                self._inner.adopt(self._parts([stack]))
                with products_in(self._recipe.config.precision):
                    self._train([stack])
            self._publish(turn)
        self._sum_logs(next(iter(moving)).device if moving else torch.device("cpu"))
        return loss

    def _turns(self, weights: Weights) -> list[Turn]:
        """All stacks of these weights, one of every process at a time, the most costly first: nobody waits long."""
        owners = self.owners
        queues: dict[int, list[Stack]] = {}
        for stack in self._stacked(weights, owners):
            queues.setdefault(owners[next(iter(stack.weights.values())).name], []).append(stack)
        for queue in queues.values():
            queue.sort(key=lambda stack: -stack.flops)
        turns = zip_longest(*queues.values())
        return [{owner: s for owner, s in zip(queues, turn, strict=True) if s is not None} for turn in turns]

    def _make_cores_together(self, turns: Iterable[Turn]) -> None:
        """Decompose at once what need not be gathered."""
        mine = {p: matrix for turn in turns for p, matrix in _mine(turn).items()}
        self._make_cores({p: matrix for p, matrix in mine.items() if not isinstance(p, DTensor)})

    def _make_cores_of(self, turn: Turn) -> None:
        self._make_cores({p: matrix for p, matrix in _mine(turn).items() if isinstance(p, DTensor)})

    def _gather(self, turn: Turn) -> None:
        for owner, stack in turn.items():
            for p in stack.weights:
                self._gather_one(p, mine=owner == _process())

    def _gather_one(self, p: Tensor, *, mine: bool) -> None:
        """Bring a gradient, and a weight that is new or was changed, to its owner; every process takes part."""
        grad = whole(p.grad) if p.grad is not None else None
        weight = whole(p) if p._version != self._seen.get(p) else None
        if mine:
            found = {"grad": grad, "weight": weight}
            self._gathered[p] = {key: tensor for key, tensor in found.items() if tensor is not None}

    def _whole_weight(self, p: Tensor) -> Tensor:
        return self._gathered[p]["weight"] if "weight" in self._gathered.get(p, {}) else whole(p)

    def _whole_grad(self, p: Tensor) -> Tensor:
        return self._gathered[p]["grad"]

    def _put(self, p: Tensor, value: Tensor, by: object) -> None:
        if p in self._gathered:  # in a step: sent to all at the end of the turn
            self._results[p] = value.to(p.dtype).contiguous(), by
        else:
            super()._put(p, value, by)

    def _publish(self, turn: Turn) -> None:
        """Send weights from their owners, if those moved them."""
        weights = [(owner, p) for owner, stack in turn.items() for p in stack.weights]
        sent = [p in self._results for _, p in weights]
        if _processes() > 1:
            flags = torch.tensor(sent, dtype=torch.int32, device=weights[0][1].device)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            sent = flags.tolist()
        for (owner, p), send in zip(weights, sent, strict=True):
            if send:
                value, by = self._results.pop(p, (None, None))
                if value is None:
                    value = torch.empty(p.shape, dtype=p.dtype, device=p.device)
                if _processes() > 1:
                    dist.broadcast(value, owner)
                assign(p, value)
                if owner == _process():
                    self._writes.mark(p, by)
            self._seen[p] = p._version
        self._gathered = {}

    def _sum_logs(self, device: torch.device) -> None:
        if self._recipe.alignment is None or _processes() == 1:
            return
        mine, zero = self._log_totals(), torch.zeros((), device=device)
        total = torch.stack([mine.get(key, zero).double() for key in LOGS])
        dist.all_reduce(total)
        self._logs = {"all": dict(zip(LOGS, total, strict=True))}

    def cores(self, name: str) -> list[Tensor] | None:
        """The current cores of one of this process's weights.

        Raises:
            RuntimeError: another process owns it.
        """
        if self.owners.get(name, _process()) != _process():
            raise RuntimeError(f"the cores of {name} are on process {self.owners[name]}, this is {_process()}")
        return super().cores(name)

    def set_cores(self, name: str, cores: list[Tensor]) -> None:
        self._consolidated = None
        super().set_cores(name, cores)
        self._forget_others()

    @torch.no_grad()
    def make_cores(self) -> None:
        self._consolidated = None
        turns = self._turns(self.weights())
        self._make_cores_together(turns)
        for turn in turns:
            self._gather(turn)
            self._make_cores_of(turn)
            self._gathered = {}

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Copy all cores and moments to the memory of process `to`, whose `state_dict` is then whole. Collective."""
        cpu, weights = torch.device("cpu"), self.weights()
        with self._as_saved():
            owned = {m.name: saved.moved(self.state[p], cpu) for p, m in weights.items() if self.state.get(p)}
        parts: list[Any] | None = [None] * _processes() if _process() == to else None
        if _processes() > 1:
            dist.gather_object(owned, parts, dst=to)
        elif parts is not None:
            parts = [owned]
        self._consolidated = {k: v for part in parts for k, v in part.items()} if parts is not None else None

    def state_dict(self) -> dict[str, Any]:
        """The whole state.

        Raises:
            RuntimeError: `consolidate_state_dict` was not called for this process after the last change of cores.
        """
        found = super().state_dict()
        if _processes() == 1 or not (self._seen or self.state):  # nothing is kept elsewhere yet
            return found
        if self._consolidated is None:
            raise RuntimeError(
                "this process has only its own cores; call consolidate_state_dict(to=rank) on every process first"
            )
        names = chain.from_iterable(group["param_names"] for group in self.param_groups)
        for number, name in enumerate(names):
            if name in self._consolidated:
                found["state"][number] = self._consolidated[name]
        return found

    def part_state_dict(self) -> dict[str, Any]:
        """What this process has to save: the state of its own weights, and on process 0 of all that is trained densely.

        The parts of all processes, with their "state" entries put together, make up the whole `state_dict`.
        """
        found = gathered(super().state_dict(), keep=_process() == 0)
        owners = self.owners
        names = chain.from_iterable(group["param_names"] for group in self.param_groups)
        mine = {k for k, name in enumerate(names) if owners.get(name, 0) == _process()}
        return found | {"state": {k: values for k, values in found["state"].items() if k in mine}}

    def _own_part(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state dict without the cores of other processes, which may not fit on this one's device."""
        owners = self.owners
        names = chain.from_iterable(group["param_names"] for group in self.param_groups)
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        others = {k for name, k in zip(names, keys, strict=False) if owners.get(name, _process()) != _process()}
        return state_dict | {"state": {k: values for k, values in state_dict["state"].items() if k not in others}}

    @torch.no_grad()
    def _restore_weights(self, weights: Weights) -> None:
        for turn in self._turns(self.weights()):
            self._gather(turn)
            super()._restore_weights({p: matrix for p, matrix in _mine(turn).items() if p in weights})
            restored = list(self._results)
            self._publish(turn)
            for p in restored:
                self._writes.forget(p)  # as in one process
            for stack in turn.values():
                for p in stack.weights:
                    self._seen.pop(p, None)  # its owner compares it in the next step, for which all have to gather it

    def _forget_others(self) -> None:
        owners = self.owners
        for p, matrix in self.weights().items():
            if owners[matrix.name] != _process():
                self.state.pop(p, None)


def _mine(turn: Turn) -> dict[Tensor, Matrix]:
    return dict(turn[_process()].weights) if _process() in turn else {}


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _process() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
