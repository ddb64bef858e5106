"""The optimizer that the user chose, on cores and on the parameters that are trained as they are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OURS = ("params", "param_names", "initial_lr", "opdf_format", "kept")
"""Entries of a parameter group that are not the inner optimizer's options."""


@dataclass
class Part:
    """Tensors that are stepped with the same options: the cores of one weight, or a group's other parameters.

    Attributes:
        key: tells it from others, and is the same in every step.
        tensors: with gradients, or without where they are not to move.
        states: where the state of each tensor is kept: a mapping and its key there.
        kept: a mapping that has, under "kept", what the optimizer keeps in its group: a counter or an estimate.
        options: the parameter group of the user's that it belongs to.
        rate: factor of the group's learning rate.
    """

    key: Hashable
    tensors: list[Tensor]
    states: list[tuple[MutableMapping[Any, Any], Any]]
    kept: MutableMapping[str, Any]
    options: Mapping[str, Any]
    rate: float = 1.0


class Inner:
    """One instance of an optimizer class that lives as long as the training; every part is a group of it.

    After every step its state is stored in the places that the parts name. State that was replaced there (by a
    checkpoint, say) is read back. A copy of this object starts without an instance and reads all state from there.
    """

    def __init__(self, cls: type[Optimizer], options: Mapping[str, Any]) -> None:
        self._cls = cls
        self._options = dict(options)
        self._optimizer: Optimizer | None = None
        self._groups: dict[Hashable, dict[str, Any]] = {}
        self._parts: dict[Hashable, Part] = {}
        self._tensors: dict[Hashable, list[Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._cls, self._options)

    @property
    def loose(self) -> list[Any]:
        """Keys of its state that are no tensors: what it keeps there belongs to no part."""
        return [key for key in self._optimizer.state if not isinstance(key, Tensor)] if self._optimizer else []

    def adopt(self, parts: Sequence[Part]) -> None:
        """Make a group for every part, with the tensors and states that the part has now."""
        for part in parts:
            new = not _same(self._tensors.get(part.key, ()), part.tensors)
            if new:
                self._add(part)
            self._parts[part.key] = part
            assert self._optimizer is not None
            states = self._optimizer.state
            for param, (place, key) in zip(self._params(part), part.states, strict=True):
                replaced = place.get(key) is not states.get(param)
                if replaced and place.get(key):
                    states[param] = place[key]
                elif replaced and not new:
                    states.pop(param, None)

    def step(self, parts: Sequence[Part], *, alone: bool) -> None:
        """Step adopted parts. `alone`: the optimizer sees no others. Else it sees them, without gradients."""
        if not parts:
            return
        optimizer: Any = self._optimizer
        self._parts.update({part.key: part for part in parts})
        if alone:
            every, optimizer = optimizer, object.__new__(self._cls)
            vars(optimizer).update(vars(every), param_groups=[self._groups[part.key] for part in parts])
        else:
            parts = list(self._parts.values())
        for part in parts:
            group = self._groups[part.key]
            options = own_options(part.options) | part.kept.get("kept", {})
            if options.get("lr") is not None:
                options["lr"] = part.options["lr"] * part.rate
            group.update(options)
            for param, tensor in zip(group["params"], part.tensors, strict=True):
                param.grad = tensor.grad
        optimizer.step()
        for part in parts:
            for param, tensor, (place, key) in zip(self._params(part), part.tensors, part.states, strict=True):
                if param is not tensor:
                    param.grad = None
                state = optimizer.state.get(param)
                if state and place.get(key) is not state:
                    place[key] = state
            kept = _kept(self._groups[part.key], part.options)
            if kept or "kept" in part.kept:
                part.kept["kept"] = kept

    def _params(self, part: Part) -> list[Tensor]:
        params: list[Tensor] = self._groups[part.key]["params"]
        return params

    def _add(self, part: Part) -> None:
        """Make a group of a part. Cores become parameters of the same memory: some optimizers pass over others."""
        params = [t if isinstance(t, nn.Parameter) else nn.Parameter(t) for t in part.tensors]
        new, old = {"params": params, **own_options(part.options)}, self._groups.get(part.key)
        if self._optimizer is None:
            self._optimizer = self._cls([new], **self._options)
        else:
            for param in old["params"] if old else ():
                self._optimizer.state.pop(param, None)
            gone = [old, *self._groups_that_had([t for t in part.tensors if isinstance(t, nn.Parameter)])]
            self._optimizer.param_groups[:] = [g for g in self._optimizer.param_groups if not any(g is h for h in gone)]
            self._optimizer.add_param_group(new)
            # Some make states where they are made, and none for groups that come later: Adagrad of torch 2.11.
            begun = self._cls([dict(new)], **self._options).state
            self._optimizer.state.update({param: begun[param] for param in params if begun.get(param)})
        self._groups[part.key] = self._optimizer.param_groups[-1]
        self._tensors[part.key] = part.tensors

    def _groups_that_had(self, params: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Forget the parts that held one of these before the user's groups were put together anew."""
        taken = set(params)
        keys = [key for key, group in self._groups.items() if taken and not taken.isdisjoint(group["params"])]
        for key in keys:
            self._tensors.pop(key)
            self._parts.pop(key, None)
        return [self._groups.pop(key) for key in keys]


def own_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group asks of the inner optimizer; tensors are copied, since every part may count in its own."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items() if k not in OURS}


def _kept(group: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the optimizer has changed in its group: counters, estimates, marks that it has begun."""

    def changed(key: str, value: Any) -> bool:
        if key not in options:
            return True
        if isinstance(value, Tensor) and isinstance(options[key], Tensor):
            return not torch.equal(value, options[key])
        return bool(value != options[key])

    return {k: v for k, v in group.items() if k not in (*OURS, "lr") and changed(k, v)}


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
