"""The residual streams of a teacher and its student, and what a model's modules are called with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one is other or bool(one == other)


@dataclass(frozen=True)
class Call:
    """What an attention was called with beside the states: masks, positions."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def without(self, *names: str | None) -> Call:
        return replace(self, kwargs={k: v for k, v in self.kwargs.items() if k not in names})

    def replaced(self, **others: Tensor) -> Call:
        """With other arguments under some names."""
        return replace(self, kwargs=self.kwargs | others)

    def to(self, dtype: torch.dtype) -> Call:
        """With floating-point tensors of another dtype."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return Call(*tree_map(cast, (self.args, self.kwargs)))

    def same(self, other: Call) -> bool:
        """Whether an attention sees alike with both."""
        mine, theirs = (tree_flatten((call.args, call.kwargs)) for call in (self, other))
        return mine[1] == theirs[1] and all(map(_alike, mine[0], theirs[0]))

    def detached(self) -> Call:
        """Without the graph."""
        return Call(*tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (self.args, self.kwargs)))


@dataclass
class Stream:
    """The residual streams of one tower; padding is left out.

    `later` and `weights` begin with the teacher's present state and lose their first with every branch.

    Attributes:
        real: for each batch `[examples, tokens]`, true where a token is not padding.
        places: for each batch, the numbers of these tokens among all of its tokens; None if all are real.
        teacher, student: for each batch `[real tokens, width]`.
        later: for each batch the teacher's states after each of the branches to come, where there was room for them.
        weights: for each batch `[real tokens]`, how much tokens count, now and after each of the branches to come; None
            if all count alike.
        calls: for each batch, those of the teacher's attentions, by block and name.
    """

    real: list[Tensor] = field(default_factory=list)
    places: list[Tensor | None] = field(default_factory=list)
    teacher: list[Tensor] = field(default_factory=list)
    student: list[Tensor] = field(default_factory=list)
    later: list[list[Tensor]] = field(default_factory=list)
    weights: list[list[Tensor | None]] = field(default_factory=list)
    calls: list[dict[tuple[int, str], Call]] = field(default_factory=list)

    def rows(self, batch: int, states: Tensor) -> Tensor:
        """`[real tokens, width]` of `[examples, tokens, width]`."""
        rows, places = states.flatten(0, 1), self.places[batch]
        return rows if places is None else rows.index_select(0, places)

    def read(self, batch: int, states: Tensor) -> Tensor:
        """`[rows, width]` of what a head reads: states of examples, of tokens, or of some of these."""
        whole = states.shape[:-1] == self.real[batch].shape
        return self.rows(batch, states) if whole else states.flatten(0, -2)

    def padded(self, batch: int, rows: Tensor) -> Tensor:
        """`[examples, tokens, width]`, zeros at padding."""
        real, places = self.real[batch], self.places[batch]
        states = rows
        if places is not None:
            states = rows.new_zeros(real.numel(), rows.shape[-1]).index_copy_(0, places, rows)
        return states.view(*real.shape, -1)

    def advance(self, batch: int, output: Callable[[], Tensor]) -> None:
        """Add the next branch's output to the teacher's states of a batch; made only where the sum was not kept."""
        self.weights[batch].pop(0)
        self.teacher[batch] = self.later[batch].pop(0) if self.later else self.teacher[batch] + output()

    def student_at(self, batch: int, tokens: Tensor) -> Tensor:
        """`[examples, width]`, the student's states of one token of each example."""
        padded = self.padded(batch, self.student[batch])
        return padded[torch.arange(len(tokens), device=tokens.device), tokens]


class _ReachedError(Exception):
    """Ends a forward pass early."""


def input_of(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """The first input of a module while something runs, which ends there."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(states_of(args, kwargs)[0])
        raise _ReachedError

    with hooked((module, keep)):
        try:
            run()
        except _ReachedError:
            return found[0]
    raise RuntimeError(f"{type(module).__name__} was not called")


def states_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states that a module was called with, and the rest."""
    if args:
        return args[0], Call(args[1:], kwargs)
    return kwargs["hidden_states"], Call((), kwargs).without("hidden_states")


Hook = tuple[nn.Module, Callable[..., None]]


@contextmanager
def hooked(*before: Hook, after: Iterable[Hook] = ()) -> Iterator[None]:
    """Inside, functions are told what modules are called with, and `after` also what came of it."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in before]
    handles += [module.register_forward_hook(hook, with_kwargs=True) for module, hook in after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
