"""An optimizer that trains the cores of matrices whose model stays dense.

`step` turns a dense gradient into core gradients (the exact vector-Jacobian product of the contraction), lets a torch
optimizer step the cores, and writes the contracted result into the weight. That is the training that rebuilding every
weight from its cores in each forward pass would give, at one contraction per step.

What it keeps to, so that schedulers, GradScaler, accelerate, checkpoints and resuming work:
 - parameter groups hold the model's dense parameters and nothing else; cores live in `state`, made at the first step;
 - state is contiguous tensors, numbers and dicts, in float32 (float64 for float64 weights) whatever the parameter is;
 - what does not move is not changed: a step of rate 0, or with nothing to do, leaves weights bit-identical;
 - gradient clipping and GradScaler act on the dense gradients, weight decay on the cores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from opdf.overparam import saved
from opdf.overparam.alignment import LOGS, Alignment, compared_sites
from opdf.overparam.config import OverParamConfig
from opdf.overparam.cores import (
    Progress,
    Stack,
    cores_in,
    decompose,
    each,
    is_product,
    match,
    products_in,
    shape_of,
    stacked,
    working,
    working_dtype,
)
from opdf.overparam.inner import Inner, Part
from opdf.overparam.rates import RATE, Fresh, match_dense
from opdf.overparam.select import Matrix
from opdf.overparam.sharding import assign, whole
from opdf.overparam.trial import Traits, defaults, try_out
from opdf.overparam.writes import Writes

Weights = Mapping[Tensor, Matrix]
"""Parameters that are trained through cores, and what they are."""


@dataclass
class Recipe:
    """What an optimizer is made of. A copy takes this and the state with it; the rest is made anew."""

    inner: type[Optimizer]
    options: dict[str, Any]
    matrices: dict[str, Matrix]
    config: OverParamConfig
    alignment: Alignment | None
    initial_cores: dict[str, list[Tensor]]
    traits: Traits = field(default_factory=Traits)


class OverParameterizedOptimizer(Optimizer):
    """A torch optimizer on the cores of some parameters and on all others as they are.

    Made by `OverParameterization.optimizer`. Its groups, learning rates and schedulers are used as with any optimizer.

    Args:
        params: named parameters, or groups of them.
        inner: the class of the optimizer that steps cores and remaining parameters.
        matrices: what is trained through cores, with shapes planned.
        config: learning rates, precision and placement.
        alignment: the constraint loss, or None.
        initial_cores: cores by name to start from instead of decomposing the weights.
        options: of `inner`: lr, betas, weight_decay, ...

    Attributes:
        progress: called with the numbers of matrices done and in all while weights are decomposed; None at first.

    Raises:
        TypeError: `inner` cannot step cores, an option is not one of its own, or parameters come without names.
        ValueError: an over-parameterized parameter is in no group, or `inner` does not go with `config`.
    """

    progress: Progress | None = None

    def __init__(
        self,
        params: Iterable[Any],
        inner: type[Optimizer],
        matrices: Iterable[Matrix],
        config: OverParamConfig,
        *,
        alignment: Alignment | None = None,
        initial_cores: Mapping[str, list[Tensor]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        options = dict(options or {})
        named = {matrix.name: matrix for matrix in matrices}
        self._recipe = Recipe(inner, options, named, config, alignment, dict(initial_cores or {}))
        super().__init__(params, {**defaults(inner, options), "opdf_format": saved.FORMAT})
        missing = named.keys() - {name for group in self.param_groups for name in group["param_names"]}
        if missing:
            raise ValueError(
                f"{len(missing)} over-parameterized weights are in no parameter group, e.g. {min(missing)}; "
                "pass all of the model's parameters, or exclude these in OverParamConfig"
            )
        self._recipe.traits = self._try_out()
        self._forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as to any optimizer. Its parameters are trained as they are; those without names get numbers.

        Raises:
            TypeError: those of the first group have no names, or one is trained through cores.
            ValueError: a parameter has the name of an over-parameterized weight that the optimizer has already.
        """
        group = {**param_group}
        if not isinstance(group["params"], set):  # which torch refuses
            group["params"] = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            named = any(isinstance(entry, tuple) for entry in group["params"])
            if not named and "param_names" not in group:
                cored = any("core0" in self.state.get(p, ()) for p in group["params"])
                if group["params"] and (cored or not self.param_groups):  # weights with cores are known by name
                    raise TypeError(
                        "parameters came without names; pass model.named_parameters() or (name, parameter) pairs"
                    )
                first = sum(len(other["params"]) for other in self.param_groups)
                group["param_names"] = [f"added.{first + k}" for k in range(len(group["params"]))]
        known = {name for other in self.param_groups for name in other["param_names"]} & self._recipe.matrices.keys()
        super().add_param_group(group)
        if twice := known.intersection(self.param_groups[-1]["param_names"]):
            self.param_groups.pop()
            raise ValueError(
                f"a parameter has the name {min(twice)!r} of an over-parameterized weight that is in another group; "
                "give the parameters names of their own, or none"
            )

    def _try_out(self) -> Traits:
        """What a trial shows about the inner optimizer, with the options of every group that has cores."""
        recipe = self._recipe
        firsts = [(group, p) for group in self.param_groups for p in list(self._in_group(group))[:1]]
        found = [try_out(recipe.inner, recipe.options, recipe.config, group, p) for group, p in firsts]
        return Traits(all(traits.alone for traits in found), max((traits.settled for traits in found), default=1))

    def _forget(self) -> None:
        """Begin with empty caches."""
        self._inner = Inner(self._recipe.inner, self._recipe.options)
        self._stacks: dict[tuple[Tensor, ...], Stack] = {}
        self._writes = Writes()
        self._logs: dict[str, dict[str, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_recipe": self._recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    @property
    def constraint_logs(self) -> dict[str, float]:
        """The last step's constraint loss, unweighted, and weight * |its gradient| over |the distillation's gradient|.

        Both norms are over the cores of all matrices. Empty without a constraint. Reading it waits for the device.
        """
        self._writes.raise_if_lost()
        logs = {name: float(value) for name, value in self._log_totals().items()}
        if not logs:
            return {}
        ratio = logs["constraint"] / logs["distillation"] if logs["distillation"] else float("inf")
        return {"constraint_loss": logs["loss"], "constraint_grad_ratio": ratio**0.5}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` re-evaluates the model and returns the loss, as for any torch optimizer."""
        loss = self._evaluate(closure)
        moving = self._moving()
        self._make_cores(moving)
        stacks, plain = self._stacked(moving), self._plain_parts()
        self._inner.adopt([*plain, *self._parts(stacks)])
        with products_in(self._recipe.config.precision):
            if self._recipe.traits.alone:
                self._inner.step(plain, alone=True)
                each(lambda stack: self._train([stack]), stacks)
            else:
                self._train(stacks, plain)
        return loss

    @torch.no_grad()
    def _train(self, stacks: Sequence[Stack], plain: Sequence[Part] = ()) -> None:
        """The method: pull gradients back to the cores, add the constraint, step the cores, write their product."""
        for stack in stacks:
            dense = [self._gradient(p, matrix) for p, matrix in stack.weights.items()]
            stack.pull_back(dense)
            self._set_rates(stack, dense)
            self._constrain(stack)
        self._inner.step([*plain, *self._parts(stacks)], alone=self._recipe.traits.alone)
        for stack in stacks:
            stack.hold_back()
            self._write(stack)

    def _evaluate(self, closure: Callable[[], float] | None) -> float | None:
        self._logs = {}
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    # Which weights are trained through cores, and which parameters are not.

    def weights(self) -> dict[Tensor, Matrix]:
        """The parameters that are trained through cores, in the order of the groups."""
        return {p: matrix for group in self.param_groups for p, matrix in self._in_group(group).items()}

    def _in_group(self, group: Mapping[str, Any]) -> dict[Tensor, Matrix]:
        known, count = self._recipe.matrices, len(group["params"])
        if count != len(group["param_names"]):
            raise RuntimeError(
                f"a parameter group has {count} parameters and {len(group['param_names'])} names: one list was changed "
                "without the other. To leave parameters out, freeze them: parameter.requires_grad_(False)"
            )
        named = zip(group["params"], group["param_names"], strict=True)
        return {p: known[name] for p, name in named if name in known}

    def _moving(self) -> dict[Tensor, Matrix]:
        """The weights that have a gradient."""
        moving = {p: matrix for p, matrix in self.weights().items() if p.grad is not None}
        for p, matrix in moving.items():
            check_is_matrix(p, matrix)
        return moving

    def _stacked(self, weights: Weights, places: Mapping[str, int] | None = None) -> list[Stack]:
        """Weights to step together: of one group and shape, and of one process if `places` says which have them.

        A stack stays the same object while its members do, because it keeps products for the next gradient.
        """
        config = self._recipe.config
        partners = self._recipe.alignment.partners if self._recipe.alignment else {}
        known, found = self._stacks, []
        for group in self.param_groups:
            mine = {p: matrix for p, matrix in self._in_group(group).items() if p in weights}
            kinds = {p: (m.name in partners, places[m.name] if places else 0) for p, m in mine.items()}
            for members in stacked(mine, kinds):
                states = [self.state.get(p, {}) for p in members]
                stack = known.get(tuple(members))
                if stack is None or any(a is not b for a, b in zip(stack.states, states, strict=True)):
                    stack = Stack(members, states, config.precision, config.keep_products)
                stack.group = group
                found.append(stack)
        self._stacks = {tuple(stack.weights): stack for stack in found}
        return found

    def _plain_parts(self) -> list[Part]:
        """The parameters that are trained as they are, by group."""
        parts = []
        for number, group in enumerate(self.param_groups):
            mine = self._in_group(group)
            plain = [p for p in group["params"] if p not in mine]
            if plain:
                parts.append(Part(number, plain, [(self.state, p) for p in plain], group, group))
        return parts

    def _parts(self, stacks: Iterable[Stack]) -> list[Part]:
        """The cores of every weight."""
        parts = []
        for stack in stacks:
            for p, state in zip(stack.weights, stack.states, strict=True):
                tensors = cores_in(state, stack.shape)
                places: list[Any] = [(state, f"inner{k}") for k in range(len(tensors))]
                parts.append(Part(p, tensors, places, state, stack.group, state.get("lr_scale") or 1.0))
        return parts

    # Parts of a step. `OwnerOptimizer`, where processes share the work, overrides some of them.

    def _gradient(self, p: Tensor, matrix: Matrix) -> Tensor:
        """Of a weight, `[rows, cols]` in the dtype of its cores."""
        return matrix.of(self._whole_grad(p)).to(working_dtype(p))

    def _set_rates(self, stack: Stack, dense: Sequence[Tensor]) -> None:
        still = self._without_motion(stack, dense)
        stack.watch(still)
        recipe = self._recipe
        if recipe.config.lr_scaling == "match-dense":
            fresh = Fresh(recipe.inner, recipe.options, stack.group)
            match_dense(fresh, recipe.traits.settled, stack, dense, still)

    def _without_motion(self, stack: Stack, dense: Sequence[Tensor]) -> list[bool]:
        """Which weights must stay bit for bit if their cores do: those without a gradient or a learning rate.

        Looking for a gradient waits for the GPU. It is not needed once a step has written these weights together: to
        write the product of cores that have not moved changes nothing then.
        """
        known = all(self._writes.written_by(p) is stack for p in stack.weights)
        if known and dense[0].device.type != "cpu":
            return [False] * len(dense)
        return [zero or stack.group.get("lr") == 0 for zero in _all_zero(dense)]

    def _constrain(self, stack: Stack) -> None:
        """Add the constraint's gradient, if these matrices have partners."""
        alignment, name = self._recipe.alignment, next(iter(stack.weights.values())).name
        if alignment is None or name not in alignment.partners:
            return
        theirs = stack.of_states("teacher", compared_sites(stack.shape))
        self._logs[name] = alignment.add_gradients(
            stack.shape, stack.cores, theirs, stack.gradients, ascending=bool(stack.group.get("maximize"))
        )

    def _log_totals(self) -> dict[str, Tensor]:
        """Over all matrices, in an order that does not depend on which was stepped first."""
        logs = [self._logs[name] for name in sorted(self._logs)]
        return {key: torch.stack([log[key].to(logs[0][key]) for log in logs]).sum() for key in LOGS} if logs else {}

    def _write(self, stack: Stack) -> None:
        """Write the product of the cores into every weight whose cores have moved."""
        moved = stack.moved()
        stack.drop_gradients()
        if not any(moved):
            return
        by = stack if all(moved) else None
        for (p, matrix), product, has_moved in zip(stack.weights.items(), stack.products(), moved, strict=True):
            if has_moved:
                self._put(p, matrix.weight(product), by)

    def _whole_grad(self, p: Tensor) -> Tensor:
        assert p.grad is not None
        return whole(p.grad)

    def _whole_weight(self, p: Tensor) -> Tensor:
        return whole(p)

    def _put(self, p: Tensor, value: Tensor, by: object) -> None:
        """Write a new weight."""
        assign(p, value)
        self._writes.mark(p, by)

    # Cores: where they come from, and whether a weight is still their product.

    def _make_cores(self, weights: Weights) -> None:
        """Cores for the weights that have none, and the constraint's teacher cores, all decomposed together.

        The weights are not written back: nothing has moved yet.
        """
        self._drop_overwritten(weights)
        alignment = self._recipe.alignment
        new = {p: matrix for p, matrix in weights.items() if "core0" not in self.state[p]}
        partners = alignment.partners if alignment else {}
        free = {p: m for p, m in weights.items() if m.name in partners and "aligned" not in self.state[p]}
        if not new and not free:
            return
        given = {p: self._given_cores(p, matrix) for p, matrix in new.items()}
        unknown = [p for p in new if given[p] is None]
        matrices = [new[p].of(self._whole_weight(p)) for p in unknown]
        shapes = [new[p].shape for p in unknown]
        if alignment:
            matrices += [alignment.teacher_matrix(m.name).to(p.device, working_dtype(p)) for p, m in free.items()]
            shapes += [partners[matrix.name].shape for matrix in free.values()]
        made = iter(decompose(matrices, shapes, self.progress))
        for p in new:
            self._set_cores(p, given[p] or next(made))
            self._writes.mark(p)
        self._set_teachers(free, list(made))

    def _set_cores(self, p: Tensor, cores: Sequence[Tensor]) -> None:
        """Begin with new cores; what is known about the learning rate stays."""
        rate = RATE if self._recipe.config.lr_scaling == "match-dense" else {}
        state = {key: self.state[p].get(key, value) for key, value in rate.items()}
        self.state[p] = state | {f"core{k}": working(core, p) for k, core in enumerate(cores)}

    def _set_teachers(self, weights: Weights, chains: Sequence[list[Tensor]]) -> None:
        """Keep what cores are compared with in the state, because a resumed run cannot recompute it."""
        alignment = self._recipe.alignment
        if alignment is not None and alignment.constraint.gauge == "matched":
            ours = [cores_in(self.state[p], matrix.shape) for p, matrix in weights.items()]
            losses = [alignment.weights_of(m.shape, chain) for m, chain in zip(weights.values(), chains, strict=True)]
            chains = match(chains, ours, losses)
        for (p, matrix), chain in zip(weights.items(), chains, strict=True):
            kept = {f"teacher{k}": chain[k] for k in compared_sites(matrix.shape)}
            self.state[p].update(kept, aligned=alignment.mark(matrix.name) if alignment is not None else 0)

    def _drop_overwritten(self, weights: Weights) -> None:
        """Drop the cores of weights that someone else has changed since the last step: the new values win."""
        for p in self._overwritten(weights):
            warnings.warn(
                f"{weights[p].name} was changed outside the optimizer; its cores are decomposed anew and its moments "
                "start over. Load weights before creating the optimizer, or load the optimizer's state dict with "
                "them; after a step to the side (SAM) put back a copy, since to subtract it leaves rounding",
                stacklevel=5,
            )
            self.state[p] = _without_cores(self.state[p])

    def _overwritten(self, weights: Weights) -> list[Tensor]:
        """Those that someone else has changed since the last step."""
        known = {p: matrix for p, matrix in weights.items() if "core0" in self.state[p]}
        found = []
        for p, same in self._writes.compare(known).items():
            if same is None:
                same = self._fits(self._whole_weight(p), known[p], cores_in(self.state[p], known[p].shape))
                if same:
                    self._writes.mark(p)
            if not same:
                found.append(p)
        return found

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Inside, weights that someone else has changed have no cores, as after the next step. Then they are as before:
        the values that belong to their cores may come back, where an average is swapped in to be saved.
        """
        here = {p: matrix for p, matrix in self.weights().items() if not isinstance(p, DTensor) and self.state.get(p)}
        kept = {p: self.state[p] for p in self._overwritten(here)}
        for p, state in kept.items():
            warnings.warn(
                f"{here[p].name} was changed outside the optimizer; its cores and moments are not saved. Save the "
                "optimizer's state while the model holds the weights that it has trained",
                stacklevel=5,
            )
            self.state[p] = _without_cores(state)
        try:
            yield
        finally:
            self.state.update(kept)

    def _given_cores(self, p: Tensor, matrix: Matrix) -> list[Tensor] | None:
        """Cores to start from, if there are any and the weight is still their product."""
        cores = self._recipe.initial_cores.pop(matrix.name, None)
        if cores is None or isinstance(p, DTensor) or self._fits(p, matrix, cores):
            return cores
        warnings.warn(
            f"{matrix.name} was changed after its cores had been loaded; it is decomposed anew. "
            "Load cores after weights",
            stacklevel=5,
        )
        return None

    def _fits(self, weight: Tensor, matrix: Matrix, cores: Sequence[Tensor]) -> bool:
        """Whether a whole weight is the product of these cores, to rounding."""
        return is_product(matrix.of(weight), cores, self._recipe.config.precision)

    def cores(self, name: str) -> list[Tensor] | None:
        """The current cores of a weight, `[d_{k-1}, i_k, j_k, d_k]`; not copied.

        None before its first step, and after a change from outside. Sharded weights are taken to be unchanged.

        Raises:
            KeyError: there is no such weight.
        """
        p, matrix = self._weight(name)
        if "core0" in self.state.get(p, {}):
            cores = cores_in(self.state[p], matrix.shape)
            same = self._writes.compare([p])[p]
        else:
            found = self._recipe.initial_cores.get(name)
            if found is None:
                return None
            cores, same = found, None
        if same is None:
            same = isinstance(p, DTensor) or self._fits(p, matrix, cores)
        return cores if same else None

    @torch.no_grad()
    def set_cores(self, name: str, cores: list[Tensor]) -> None:
        """Take these cores for a weight, write their product into it, and forget its moments.

        Raises:
            KeyError: there is no such weight.
            ValueError: the cores have other shapes than this weight's.
        """
        p, matrix = self._weight(name)
        if (found := shape_of(cores)) != matrix.shape:
            raise ValueError(
                f"the cores given for {name} have the sizes {found.core_shapes}, its own {matrix.shape.core_shapes}"
            )
        self.state.pop(p, None)
        self._set_cores(p, cores)
        self._write_product(p, matrix)

    def _write_product(self, p: Tensor, matrix: Matrix) -> None:
        with products_in():
            (product,) = Stack({p: matrix}, [self.state[p]], self._recipe.config.precision, keep=False).products()
        self._put(p, matrix.weight(product), None)

    def _weight(self, name: str) -> tuple[Tensor, Matrix]:
        for p, matrix in self.weights().items():
            if matrix.name == name:
                return p, matrix
        raise KeyError(f"{name!r} is not an over-parameterized weight of this optimizer")

    def begin_anew(self, others: Mapping[Tensor, dict[str, Any]] | None = None) -> None:
        """Take state, groups and weights as they are now, because all of them have been restored.

        Args:
            others: states of weights that they may not belong to; the next step looks.
        """
        self._forget()
        self.state.update(others or {})
        for p in self.weights():
            if p not in (others or {}):
                self._writes.mark(p)

    @torch.no_grad()
    def make_cores(self) -> None:
        """Make the cores of every weight that has none yet; `step` does it for those that it moves."""
        self._make_cores(self.weights())

    # What is saved.

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """The state, without the cores of weights that someone has written since the last step: a step drops them."""
        self._writes.raise_if_lost()
        with self._as_saved():
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict. Cores and moments keep their saved precision, or get that of the weights if it is finer;
        weights become the products of the cores.

        Raises:
            ValueError: it was saved with other factors, another `lr_scaling`, parameters in another order or another
                format version, or by another optimizer.
        """
        saved.check(state_dict, self.param_groups, self._recipe.matrices, self._recipe.config.lr_scaling)
        names = [group["param_names"] for group in self.param_groups]
        super().load_state_dict(self._own_part(state_dict))
        for group, own in zip(self.param_groups, names, strict=True):
            group["param_names"] = own
        held = saved.restore_precision(self, state_dict)
        held = {p for p in held if "core0" in self.state[p]}
        self._tell_of_other_partners()
        self._restore_weights({p: matrix for p, matrix in self.weights().items() if p in held})

    def _tell_of_other_partners(self) -> None:
        """Warn where a loaded state goes on with other teacher cores than the constraint would make."""
        alignment = self._recipe.alignment
        marks = {m.name: self.state.get(p, {}).get("aligned") for p, m in self.weights().items()}
        partners = alignment.partners if alignment is not None else {}
        others = [n for n in partners if alignment and marks.get(n) not in (None, alignment.mark(n))]
        if others:
            warnings.warn(
                f"the constraint's layer_map, its gauge or the blocks it is about differ from those that the state was "
                f"saved with; {len(others)} weights, e.g. {others[0]}, go on being pulled as they were. To pull them "
                "anew, start from the model's weights alone",
                stacklevel=4,
            )

    def _own_part(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The part of a state dict that this process holds."""
        return state_dict

    @torch.no_grad()
    def _restore_weights(self, weights: Weights) -> None:
        """Set weights to the products of their loaded cores."""
        for p, matrix in weights.items():
            if self._fits(self._whole_weight(p), matrix, cores_in(self.state[p], matrix.shape)):
                self._writes.mark(p)
                continue
            warnings.warn(
                f"{matrix.name} did not hold the product of the loaded cores and was set to it; "
                "load the model's weights from the same checkpoint",
                stacklevel=4,
            )
            self._write_product(p, matrix)
            self._writes.forget(p)  # weights that are loaded after this may be rounded otherwise


def _without_cores(state: Mapping[str, Any]) -> dict[str, Any]:
    """What stays of a weight's state when its cores are dropped: its learning rate's factor."""
    return {key: value for key, value in state.items() if key in RATE}


def check_is_matrix(p: Tensor, matrix: Matrix) -> None:
    if tuple(p.shape) != matrix.weight_shape:
        raise RuntimeError(
            f"{matrix.name} has shape {tuple(p.shape)} in the optimizer and {matrix.weight_shape} in the model: "
            "a wrapper has flattened or partitioned it (FSDP1, DeepSpeed ZeRO). Matrices must stay whole: use DDP or "
            "FSDP2"
        )


def _all_zero(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each tensor is all zero; waits for the device once."""
    ends = torch.stack([torch.stack(torch.aminmax(t)) for t in tensors])
    return [low == high == 0 for low, high in ends.tolist()]
