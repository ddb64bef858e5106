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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from opdf.mpo import MPOShape, Progress, contract, decompose_many, matmul_precision, one_a_thread, pullback, threads_for
from opdf.mpo.contract import Segments, contract_segments
from opdf.overparam.alignment import Alignment
from opdf.overparam.inner import dense_over_cores, run_inner
from opdf.overparam.select import as_matrix, as_weight
from opdf.overparam.sharding import assign, whole

FORMAT = 1
"""Version of the state's layout, saved in every group and checked on load."""

_EXTERNAL = -1
"""Recorded version of a weight that was not written by the last step: compare before trusting the cores."""

_UNKNOWN = 0.0
"""Learning rate factor before the first step that moves anything; a state's keys do not depend on it being known."""

STACK_ENTRIES = {"cuda": 2**25, "cpu": 2**19}
"""Core entries that are stepped together at most: on a CPU where calls cost more than their arithmetic, on a GPU as
memory allows for copies and gradients, which exist only that long. Elsewhere matrices are stepped one by one."""

BESIDE_FLOPS = 2**28
"""Operations of a contraction from which on the calls of one thread do not keep the others waiting."""

LOGS = ("loss", "distillation", "constraint")
"""Of a matrix with a partner: the constraint loss, and the squared norms of the distillation's and its gradient."""

ROUNDING = {"float32": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}
"""Spacing of the numbers around 1 that a contraction's precision adds to the weight's own."""


class Spec(NamedTuple):
    """How one parameter is over-parameterized; plain values, so that it can be saved in a parameter group."""

    kind: str
    weight_shape: tuple[int, ...]
    row_factors: tuple[int, ...]
    col_factors: tuple[int, ...]
    bond_dims: tuple[int, ...]

    @property
    def shape(self) -> MPOShape:
        return _shape_of(self.row_factors, self.col_factors, self.bond_dims)


_shape_of = lru_cache(maxsize=1024)(MPOShape)  # it checks itself, which every step would pay for


Entry = tuple[str, Tensor, Spec]
"""An over-parameterized weight: name, parameter, and how."""


class Stack(NamedTuple):
    """Weights of one group and shape that are stepped together, and an optimizer of their own for their cores."""

    inner: Optimizer
    group: dict[str, Any]
    entries: list[Entry]

    @property
    def flops(self) -> int:
        return sum(spec.shape.contract_flops for _, _, spec in self.entries)


class Products(NamedTuple):
    """What a stack's last contraction has left for its next gradient, and the cores that were contracted."""

    cores: list[Tensor]
    versions: list[int]
    segments: Segments


class Written(NamedTuple):
    """A weight's version when a step has written it, and the weights that were contracted with it."""

    version: int
    together: tuple[str, ...]


class OverParameterizedOptimizer(Optimizer):
    """A torch optimizer on the cores of some parameters and on all others as they are.

    Made by `OverParameterization.optimizer`. Its groups, learning rates and schedulers are used as with any optimizer.

    Args:
        params: named parameters, or groups of them.
        inner: the optimizer class that steps cores and remaining parameters (AdamW, SGD, any elementwise torch one).
        specs: over-parameterized parameters by name.
        lr_scaling: "match-dense" or "none", see `OverParamConfig`.
        alignment: the constraint loss, or None.
        initial_cores: cores by name to start from instead of decomposing the weights.
        keep_products, precision: see `OverParamConfig`.
        **inner_options: options of `inner`: lr, betas, weight_decay, ...

    Attributes:
        progress: called with the numbers of matrices done and in all while weights are decomposed; None at first.

    Raises:
        TypeError: `inner` is not an elementwise torch optimizer class, or an option is not one of its own.
        ValueError: an over-parameterized parameter is in no group.
    """

    def __init__(
        self,
        params: Iterable[Any],
        inner: type[Optimizer],
        specs: Mapping[str, Spec],
        *,
        lr_scaling: str = "match-dense",
        alignment: Alignment | None = None,
        initial_cores: Mapping[str, list[Tensor]] | None = None,
        keep_products: bool | None = None,
        precision: str = "float32",
        **inner_options: Any,
    ) -> None:
        if not (isinstance(inner, type) and issubclass(inner, Optimizer)):
            raise TypeError(f"inner is {inner!r}; give an optimizer class such as torch.optim.AdamW")
        if inner in (torch.optim.LBFGS, torch.optim.SparseAdam):
            raise TypeError(
                f"{inner.__name__} cannot step cores; use an elementwise optimizer such as torch.optim.AdamW"
            )
        self._inner_class = inner
        self._inner_options = inner_options
        self._specs = dict(specs)
        self._lr_scaling = lr_scaling
        self._alignment = alignment
        self._initial_cores = dict(initial_cores or {})
        self._keep_products = keep_products
        self._precision = precision
        self.progress: Progress | None = None
        self._products: dict[Tensor, Products] = {}
        self._written: dict[Tensor, Written] = {}
        self._logs: dict[str, dict[str, Tensor]] = {}
        super().__init__(params, {**self._make_inner({}).defaults, "opdf_format": FORMAT})
        missing = self._specs.keys() - {name for group in self.param_groups for name in group["param_names"]}
        if missing:
            raise ValueError(
                f"{len(missing)} over-parameterized weights are in no parameter group, e.g. {min(missing)}; "
                "pass all of the model's parameters, or exclude these in OverParamConfig"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if "param_names" not in group:
            raise TypeError("parameters came without names; pass model.named_parameters() or (name, parameter) pairs")
        group["opdf_specs"] = tuple(self._specs.get(name) and tuple(self._specs[name]) for name in group["param_names"])

    @property
    def constraint_logs(self) -> dict[str, float]:
        """Of the last step: the unweighted constraint loss, and weight * |its gradient| over the distillation's.

        Both norms are over the cores of all matrices. Empty without a constraint. Reading it waits for the device.
        """
        logs = {name: float(value) for name, value in self._log_totals().items()}
        if not logs:
            return {}
        ratio = logs["constraint"] / logs["distillation"] if logs["distillation"] else float("inf")
        return {"constraint_loss": logs["loss"], "constraint_grad_ratio": ratio**0.5}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` re-evaluates the model and returns the loss, as for any torch optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._logs = {}
        moving = self._moving()
        self._prepare(moving)
        self._step_plain()
        self._step_stacks(self._plan_stacks(moving))
        return loss

    def _moving(self) -> list[Entry]:
        """The over-parameterized weights that have a gradient."""
        moving = [entry for entry in self._entries() if entry[1].grad is not None]
        for entry in moving:
            check_is_matrix(*entry)
        return moving

    def _step_plain(self) -> None:
        """Step all parameters that are trained as they are."""
        for group in self.param_groups:
            plain = [p for p, spec in members(group) if spec is None and p.grad is not None]
            if plain:
                run_inner(self._make_inner(group), [(plain, group["lr"])], self.state)

    def _plan_stacks(self, entries: Iterable[Entry], places: Mapping[str, int] | None = None) -> list[Stack]:
        """What to step together: matrices of one group and shape, and of one of `places` if that is given."""
        chosen = {name for name, _, _ in entries}
        aligned = self._alignment.pairs if self._alignment else {}
        found = []
        for group in self.param_groups:
            wanted = (entry for entry in self._over_parameterized(group) if entry[0] in chosen)
            found += [Stack(self._make_inner(group), group, alike) for alike in _stacks(wanted, aligned, places)]
        return found

    def _step_stacks(self, stacks: Sequence[Stack]) -> None:
        with matmul_precision("tf32" if self._precision == "tf32" else "ieee"):
            if _faster_beside(stacks):
                costs = [stack.flops for stack in stacks]
                one_a_thread(lambda stack: self._step_stack(*stack), stacks, costs, threads=torch.get_num_threads())
            else:
                for stack in stacks:
                    self._step_stack(*stack)

    def _whole_weight(self, p: Tensor) -> Tensor:
        return whole(p)

    def _whole_grad(self, p: Tensor) -> Tensor:
        assert p.grad is not None
        return whole(p.grad)

    def _put(self, p: Tensor, value: Tensor) -> None:
        """Write a new weight; where that is done later, `state["version"]` is set then."""
        assign(p, value)
        self.state[p]["version"] = p._version

    def cores(self, name: str) -> list[Tensor] | None:
        """The current cores of a weight.

        None before its first step, and where its values were changed from outside since.
        """
        _, p, spec = self._entry(name)
        if not self.state.get(p):
            cores = self._initial_cores.get(name)
            return cores if cores is not None and self._fit(p, spec, cores) else None
        cores = _cores_of(self.state[p], spec.shape)
        return cores if p._version == self.state[p]["version"] or self._fit(p, spec, cores) else None

    @torch.no_grad()
    def set_cores(self, name: str, cores: list[Tensor]) -> None:
        """Take these cores for a weight, write their product into it, and forget its moments."""
        entry = self._entry(name)
        p = entry[1]
        self.state[p] = {f"core{k}": _working(core, p) for k, core in enumerate(cores)} | self._unknown_scale()
        with matmul_precision():
            self._write([entry])

    def realign(self) -> None:
        """Take the constraint's targets from the teacher as it is now, at the next step: for a teacher that moves."""
        for state in self.state.values():
            state.pop("aligned", None)

    @torch.no_grad()
    def start(self) -> None:
        """Make the cores of every weight that has none yet; `step` does it for those that it moves."""
        self._prepare(self._entries())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; cores and moments keep their saved precision, and the cores are the truth.

        Raises:
            ValueError: it was saved with other factors, another format version, or by another optimizer.
        """
        self._check_compatible(state_dict)
        self._written = {}
        super().load_state_dict(self._own_part(state_dict))
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        saved = {p: state_dict["state"].get(key) for p, key in zip(self._params(), keys, strict=True)}
        for group in self.param_groups:
            # Their kernels read step counters on the device; all others want them where they were made.
            counters_too = bool(group.get("fused") or group.get("capturable"))
            for p in group["params"]:
                if p in self.state and saved[p]:
                    self.state[p] = moved(saved[p], p.device, counters_too=counters_too)
        self._restore_weights([entry for entry in self._entries() if saved.get(entry[1])])

    def _own_part(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """What of a state dict this process is to hold."""
        return state_dict

    def _restore_weights(self, entries: Sequence[Entry]) -> None:
        """Make weights the products of their loaded cores."""
        for entry in entries:
            self._restore_weight(*entry)

    def _params(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_inner_class", "_inner_options", "_specs", "_lr_scaling", "_alignment", "_initial_cores", "_logs",
               "_keep_products", "_precision")  # fmt: skip
        kept = {name: self.__dict__[name] for name in own}
        return super().__getstate__() | kept | {"_products": {}, "_written": {}, "progress": None}

    def _entries(self) -> list[Entry]:
        return [entry for group in self.param_groups for entry in self._over_parameterized(group)]

    def _entry(self, name: str) -> Entry:
        for entry in self._entries():
            if entry[0] == name:
                return entry
        raise KeyError(f"{name!r} is not an over-parameterized weight of this optimizer")

    def _over_parameterized(self, group: dict[str, Any]) -> Iterator[Entry]:
        for name, (p, spec) in zip(group["param_names"], members(group), strict=True):
            if spec is not None:
                yield name, p, spec

    def _make_inner(self, group: Mapping[str, Any]) -> Optimizer:
        """An optimizer of the inner class with the group's current options, to be pointed at any tensors."""
        inner = self._inner_class([torch.empty(0)], **self._inner_options)
        inner.param_groups[0].update({k: group[k] for k in inner.defaults if k in group})
        return inner

    def _prepare(self, entries: Iterable[Entry]) -> None:
        """Cores for the weights that have none, and the constraint's targets, all decomposed together.

        The weights are not written back: nothing has moved yet.
        """
        entries = list(entries)
        with matmul_precision():
            for name, p, spec in entries:
                if "core0" in self.state[p] and p._version != self.state[p]["version"]:
                    self._reconcile(name, p, spec, self.state[p])
        alignment = self._alignment
        new = [entry for entry in entries if "core0" not in self.state[entry[1]]]
        pairs = alignment.pairs if alignment else {}
        free = [entry for entry in entries if entry[0] in pairs and "aligned" not in self.state[entry[1]]]
        given = [self._given_cores(*entry) for entry in new]
        unknown = [entry for entry, cores in zip(new, given, strict=True) if cores is None]
        if not new and not free:
            return
        matrices = [as_matrix(self._whole_weight(p), spec.kind) for _, p, spec in unknown]
        shapes = [spec.shape for _, _, spec in unknown]
        if alignment:
            matrices += [alignment.teacher_matrix(name).to(p.device, _working_dtype(p)) for name, p, _ in free]
            shapes += [pairs[name].shape for name, _, _ in free]
        made = iter(decompose_many(matrices, shapes, progress=self.progress))
        for (_, p, _), known in zip(new, given, strict=True):
            state = self.state[p]
            state.update({f"core{k}": _working(core, p) for k, core in enumerate(known or next(made))})
            state["version"] = p._version
            self.state[p] = self._unknown_scale() | state
        self._set_targets(free, list(made))

    def _unknown_scale(self) -> dict[str, Any]:
        return {"lr_scale": _UNKNOWN} if self._lr_scaling == "match-dense" else {}

    def _given_cores(self, name: str, p: Tensor, spec: Spec) -> list[Tensor] | None:
        """Cores to start from, if there are any and the weight is still their product."""
        cores = self._initial_cores.pop(name, None)
        if cores is None or self._fit(p, spec, cores):
            return cores
        warnings.warn(
            f"{name} was changed after its cores had been loaded; it is decomposed anew. Load cores after weights",
            stacklevel=5,
        )
        return None

    def _fit(self, p: Tensor, spec: Spec, cores: Sequence[Tensor]) -> bool:
        """Whether a weight is the product of these cores, to rounding. Of sharded weights that is taken for granted."""
        if isinstance(p, DTensor):
            return True
        with torch.no_grad(), matmul_precision():
            return _deviation(self._whole_weight(p), spec, [_working(core, p) for core in cores]) <= self._tolerance(p)

    def _set_targets(self, entries: Sequence[Entry], teachers: Sequence[list[Tensor]]) -> None:
        """Keep what the cores are compared with in the state: a resumed run has not the first cores to match gauges."""

        def targets(entry: Entry, teacher: list[Tensor]) -> dict[int, Tensor]:
            name, p, spec = entry
            assert self._alignment is not None
            return self._alignment.targets(name, _cores_of(self.state[p], spec.shape), teacher)

        with matmul_precision():
            found = one_a_thread(
                lambda given: targets(*given),
                list(zip(entries, teachers, strict=True)),
                [spec.shape.num_params for _, _, spec in entries],
                threads=threads_for(p.device for _, p, _ in entries),
            )
        for (_, p, _), kept in zip(entries, found, strict=True):
            self.state[p].update({f"target{k}": core for k, core in kept.items()}, aligned=1)

    @torch.no_grad()
    def _step_stack(self, inner: Optimizer, group: dict[str, Any], stack: Sequence[Entry]) -> None:
        """Step matrices of one shape together; each keeps a state of its own."""
        chains = [_cores_of(self.state[p], spec.shape) for _, p, spec in stack]
        dense = [as_matrix(self._whole_grad(p), spec.kind).to(chains[0][0].dtype) for _, p, spec in stack]
        cores = [_together(alike) for alike in zip(*chains, strict=True)]
        low = [self._low(core) for core in cores]
        pulled = pullback(low, self._low(_together(dense)), self._known_products(stack, chains))
        pulled = [g.to(core.dtype) for g, core in zip(pulled, cores, strict=True)]
        grads = list(zip(*(_apart(g, len(stack)) for g in pulled), strict=True))
        idle = self._idle(group, stack, dense)
        for n, (_, p, _) in enumerate(stack):
            if self.state[p].get("lr_scale") == _UNKNOWN and not idle[n]:
                self.state[p]["lr_scale"] = dense_over_cores(inner, chains[n], list(grads[n]), dense[n])
        self._constrain(stack, cores, pulled)
        moved = self._step_cores(inner, group["lr"], [self.state[p] for _, p, _ in stack], chains, grads, idle)
        changed = [entry for entry, has_moved in zip(stack, moved, strict=True) if has_moved]
        del dense, cores, low, pulled, grads
        if changed:
            self._write(changed)
            together = tuple(name for name, _, _ in changed)
            self._written.update({p: Written(p._version, together) for _, p, _ in changed})

    def _idle(self, group: Mapping[str, Any], stack: Sequence[Entry], dense: Sequence[Tensor]) -> list[bool]:
        """Which weights have to stay bit for bit if their cores do: those without a gradient or a learning rate.

        To look for a gradient is to wait for a GPU. That is not needed once a step has written these weights together,
        as it would do again: writing one whose cores have not moved changes nothing.
        """
        if dense[0].device.type != "cpu" and self._as_written(stack):
            return [False] * len(stack)
        return [zero or group["lr"] == 0 for zero in _all_zero(dense)]

    def _as_written(self, stack: Sequence[Entry]) -> bool:
        together = tuple(name for name, _, _ in stack)
        return all(
            self._written.get(p) == Written(p._version, together) and self.state[p].get("lr_scale") != _UNKNOWN
            for _, p, _ in stack
        )

    def _step_cores(
        self, inner: Optimizer, lr: float, states: Sequence[dict[str, Any]], chains: Sequence[list[Tensor]],
        grads: Sequence[Sequence[Tensor]], idle: Sequence[bool],
    ) -> list[bool]:  # fmt: skip
        """Step the cores of matrices, `idle` ones being without a gradient; which of them moved."""
        before = [[core.clone() for core in cores] if still else [] for cores, still in zip(chains, idle, strict=True)]
        inner_states: dict[Tensor, dict[str, Any]] = {}
        for state, cores, gradients in zip(states, chains, grads, strict=True):
            for k, (core, g) in enumerate(zip(cores, gradients, strict=True)):
                core.grad, inner_states[core] = g, state.get(f"inner{k}", {})
        rates = [lr * (state.get("lr_scale") or 1.0) for state in states]
        run_inner(inner, zip(chains, rates, strict=True), inner_states)
        for state, cores in zip(states, chains, strict=True):
            for k, core in enumerate(cores):
                core.grad = None
                if inner_states[core]:
                    state[f"inner{k}"] = inner_states[core]
        return [
            not still or any(not torch.equal(core, b) for core, b in zip(cores, was, strict=True))
            for still, cores, was in zip(idle, chains, before, strict=True)
        ]

    def _reconcile(self, name: str, p: Tensor, spec: Spec, state: dict[str, Any]) -> None:
        """Someone else wrote the weight since the last step: if its values changed, they win over the cores."""
        if _deviation(self._whole_weight(p), spec, _cores_of(state, spec.shape)) > self._tolerance(p):
            warnings.warn(
                f"{name} was changed outside the optimizer; its cores are decomposed anew and its moments start over. "
                "Load weights before creating the optimizer, or load the optimizer's state dict with them",
                stacklevel=5,
            )
            for key in [k for k in state if k != "lr_scale"]:
                del state[key]
        state["version"] = p._version

    def _constrain(self, stack: Sequence[Entry], cores: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Add the constraint's gradient, if these matrices have partners."""
        alignment, (name, p, spec) = self._alignment, stack[0]
        if alignment is None or name not in alignment.pairs:
            return
        sites = [k for k in range(spec.shape.sites) if f"target{k}" in self.state[p]]
        targets = {k: _together([self.state[p][f"target{k}"] for _, p, _ in stack]) for k in sites}
        loss, extra = alignment.gradients(spec.shape, cores, targets)
        norms = _squared_norm(grads), _squared_norm(extra.values()) * alignment.weight**2
        self._logs[name] = dict(zip(LOGS, (loss, *norms), strict=True))
        for k, gradient in extra.items():
            grads[k].add_(gradient, alpha=alignment.weight)

    def _log_totals(self) -> dict[str, Tensor]:
        """Over all matrices, in an order that does not depend on which was stepped first."""
        logs = [self._logs[name] for name in sorted(self._logs)]
        return {key: torch.stack([log[key].to(logs[0][key]) for log in logs]).sum() for key in LOGS} if logs else {}

    def _write(self, stack: Sequence[Entry]) -> None:
        """Contract the cores of matrices of one shape, and write their weights."""
        shape = stack[0][2].shape
        chains = [_cores_of(self.state[p], shape) for _, p, _ in stack]
        product, segments = contract_segments(
            [self._low(_together(alike)) for alike in zip(*chains, strict=True)], shape
        )
        if self._keep_products or (self._keep_products is None and chains[0][0].device.type == "cpu"):
            cores = [core for chain_ in chains for core in chain_]
            products = Products(cores, [core._version for core in cores], segments)
            self._products.update({p: products for _, p, _ in stack})
        for (_, p, spec), matrix in zip(stack, _apart(product.to(chains[0][0].dtype), len(stack)), strict=True):
            self._put(p, as_weight(matrix, spec.kind, p.shape))

    def _known_products(self, stack: Sequence[Entry], chains: Sequence[list[Tensor]]) -> Segments | None:
        """The products of the last contraction, if it was of this stack and the cores are still those.

        A version does not tell that: fused optimizers leave it as it is. So products of a stack are dropped by the step
        of any of its matrices.
        """
        found = [self._products.pop(p, None) for _, p, _ in stack]
        last, cores = found[0], [core for chain_ in chains for core in chain_]
        if last is None or any(products is not last for products in found) or len(last.cores) != len(cores):
            return None
        same = all(core is other for core, other in zip(cores, last.cores, strict=True))
        return last.segments if same and last.versions == [core._version for core in cores] else None

    def _low(self, tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if self._precision == "bf16" and tensor.dtype == torch.float32 else tensor

    def _tolerance(self, p: Tensor) -> float:
        """How far a weight may be from the product of its cores and still be taken for it."""
        return max(50 * torch.finfo(p.dtype).eps, 2 * ROUNDING[self._precision])

    def _restore_weight(self, name: str, p: Tensor, spec: Spec) -> None:
        state = self.state[p]
        state["version"] = _EXTERNAL
        with torch.no_grad(), matmul_precision():
            if _deviation(self._whole_weight(p), spec, _cores_of(state, spec.shape)) > self._tolerance(p):
                warnings.warn(
                    f"{name} did not hold the product of the loaded cores and was set to it; "
                    "load the model's weights from the same checkpoint",
                    stacklevel=4,
                )
                self._write([(name, p, spec)])

    def _check_compatible(self, state_dict: Mapping[str, Any]) -> None:
        groups = state_dict["param_groups"]
        if not state_dict["state"] and all("opdf_format" not in group for group in groups):
            return
        for saved, ours in zip(groups, self.param_groups, strict=False):
            if "opdf_format" not in saved:
                raise ValueError(
                    "the state dict was saved by an optimizer without over-parameterization; "
                    "start from the model's weights alone, or train on without over-parameterization"
                )
            if saved["opdf_format"] != FORMAT:
                raise ValueError(f"the state dict has format {saved['opdf_format']}; this version reads {FORMAT}")
            theirs = [spec and Spec(*spec) for spec in saved["opdf_specs"]]
            for name, mine, other in zip(ours["param_names"], _group_specs(ours), theirs, strict=False):
                if mine != other:
                    raise ValueError(
                        f"the state dict has {name} as {other.shape if other else 'dense'}, this run as "
                        f"{mine.shape if mine else 'dense'}; use the OverParamConfig that it was saved with"
                    )


@contextmanager
def rolled_back(optimizer: Optimizer) -> Iterator[None]:
    """Inside, steps can be tried; afterwards weights and the optimizer's state are, bit for bit, what they were.

    Gradients are the caller's. Any torch optimizer; of an over-parameterized one the cores are rolled back too.
    """
    if isinstance(optimizer, OverParameterizedOptimizer):
        optimizer.start()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    weights = [p.detach().clone() for p in params]
    known = [p._version == optimizer.state.get(p, {}).get("version") for p in params]
    state = {p: moved(values, p.device) for p, values in optimizer.state.items()}
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        with torch.no_grad():
            for p, weight, was_known in zip(params, weights, known, strict=True):
                p.copy_(weight)
                if was_known:
                    optimizer.state[p]["version"] = p._version


def _group_specs(group: Mapping[str, Any]) -> list[Spec | None]:
    return [Spec(spec[0], *map(tuple, spec[1:])) if spec else None for spec in group["opdf_specs"]]


def members(group: Mapping[str, Any]) -> Iterator[tuple[Tensor, Spec | None]]:
    return zip(group["params"], _group_specs(group), strict=True)


def _working(tensor: Tensor, p: Tensor) -> Tensor:
    return tensor.detach().to(device=p.device, dtype=_working_dtype(p), copy=True).contiguous()


def _working_dtype(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _stacks(
    entries: Iterable[Entry], aligned: Container[str], places: Mapping[str, int] | None = None
) -> Iterator[list[Entry]]:
    """Matrices to step together: of one shape, all with partners or none, as many as is faster."""
    found: dict[Any, list[Entry]] = {}
    for entry in entries:
        name, p, spec = entry
        kind = ((places or {}).get(name), name in aligned, spec.shape, _working_dtype(p), p.device)
        found.setdefault(kind, []).append(entry)
    for alike in found.values():
        _, p, spec = alike[0]
        size = max(1, STACK_ENTRIES.get(p.device.type, 0) // spec.shape.num_params)
        yield from (alike[k : k + size] for k in range(0, len(alike), size))


def _faster_beside(stacks: Sequence[Stack]) -> bool:
    """Whether to step one a thread: large ones, enough for all threads of a CPU, none to be gathered (in one order)."""
    tensors = [p for stack in stacks for _, p, _ in stack.entries]
    here = all(p.device.type == "cpu" and not isinstance(p, DTensor) for p in tensors)
    large = [stack for stack in stacks if stack.flops >= BESIDE_FLOPS]
    return here and len(large) >= torch.get_num_threads()


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as it is, several as a stack."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))


def _apart(tensor: Tensor, count: int) -> Sequence[Tensor]:
    """What `_together` has put together."""
    return [tensor] if count == 1 else tensor.unbind()


def _cores_of(state: Mapping[str, Any], shape: MPOShape) -> list[Tensor]:
    return [state[f"core{k}"] for k in range(shape.sites)]


def check_is_matrix(name: str, p: Tensor, spec: Spec) -> None:
    if tuple(p.shape) != spec.weight_shape:
        raise RuntimeError(
            f"{name} has shape {tuple(p.shape)} in the optimizer and {spec.weight_shape} in the model: its engine has "
            "flattened or partitioned it (FSDP1, DeepSpeed ZeRO). Matrices must stay whole: use DDP or FSDP2"
        )


def _deviation(weight: Tensor, spec: Spec, cores: Sequence[Tensor]) -> float:
    """Relative Frobenius distance between a weight and the product of its cores."""
    product = contract(cores)
    weight = as_matrix(weight, spec.kind).to(product.dtype)
    norm = float(product.norm())
    return float((weight - product).norm()) / norm if norm else float(weight.norm())


def _all_zero(tensors: Sequence[Tensor]) -> list[bool]:
    """Of each; waits for the device once."""
    ends = torch.stack([torch.stack(torch.aminmax(t)) for t in tensors])
    return [low == high == 0 for low, high in ends.tolist()]


def _squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum()


def moved(value: Any, device: torch.device, *, counters_too: bool = False) -> Any:
    """A copy of a state value on a device, in its own precision; step counters stay where they are unless asked."""
    if isinstance(value, Tensor):
        there = device if value.dim() or counters_too else value.device
        return value.detach().to(device=there, copy=True).contiguous()
    if isinstance(value, dict):
        return {key: moved(item, device, counters_too=counters_too) for key, item in value.items()}
    return value
