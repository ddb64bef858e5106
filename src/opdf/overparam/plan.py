"""Over-parameterizing a model: which matrices, in which shapes, with which optimizer and constraint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from opdf.overparam.alignment import Alignment
from opdf.overparam.config import Constraint, OverParamConfig
from opdf.overparam.cores import Progress, decompose, is_product, shape_of
from opdf.overparam.optimizer import OverParameterizedOptimizer
from opdf.overparam.owner import OwnerOptimizer
from opdf.overparam.pairing import pair
from opdf.overparam.select import Matrix, find_matrices, matches
from opdf.overparam.shapes import MPOShape
from opdf.overparam.trial import check_sparse, defaults, try_out


class OverParameterization:
    """A model's matrices in their over-parameterized form. The model itself stays dense and unchanged.

    Attributes:
        model: the student.
        config: what was asked for.
        matrices: the over-parameterized weights, in the model's order.
        progress: called with the numbers of matrices done and in all while the optimizer decomposes them, at its
            first step; None at first.
    """

    def __init__(self, model: nn.Module, config: OverParamConfig, matrices: Iterable[Matrix]) -> None:
        self.model = model
        self.config = config
        self.matrices = tuple(matrices)
        self.progress: Progress | None = None
        self._alignment: Alignment | None = None
        self._optimizer: OverParameterizedOptimizer | None = None
        self._initial_cores: dict[str, list[Tensor]] = {}

    @property
    def inference_params(self) -> int:
        """Parameters of the model as it is saved and served."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def train_params(self) -> int:
        """Parameters of the model while it trains: cores in place of their matrices."""
        return self.inference_params + sum(matrix.shape.added_params for matrix in self.matrices)

    def align(self, teacher: nn.Module, constraint: Constraint | None = None) -> None:
        """Pull auxiliary cores towards the teacher's (OPDF, equation 5) in every step of the optimizer made next.

            overparam.align(teacher, opdf.overparam.Constraint(weight=0.1))

        Args:
            teacher: a model with the same kind of blocks, of the student's width or wider; it is read, not changed.
            constraint: default `Constraint()`.

        Raises:
            ValueError: matrices cannot be paired, or one of the teacher's is empty or holds NaN or infinity.
            TypeError: `teacher` is no module, one of its matrices is quantized, or `constraint` is no `Constraint`.
            RuntimeError: the optimizer exists already.
        """
        if self._optimizer is not None:
            raise RuntimeError("align() was called after optimizer(); call it before")
        if not isinstance(teacher, nn.Module):
            raise TypeError(f"teacher is {teacher!r}; give a torch.nn.Module")
        constraint = Constraint() if constraint is None else constraint
        if not isinstance(constraint, Constraint):
            raise TypeError(f"constraint is {constraint!r}; give Constraint(weight=..., layer_map=..., ...)")
        partners = pair(self.model, self.matrices, teacher, constraint.layer_map)
        self._alignment = Alignment.to(teacher, partners, constraint)

    def optimizer(
        self, inner: type[Optimizer] = torch.optim.AdamW, params: Iterable[Any] | None = None, /, **options: Any
    ) -> OverParameterizedOptimizer:
        """The optimizer that trains the cores of `matrices` and all other parameters as they are.

        Args:
            inner: a class of optimizers; before any work it takes a few steps on small cores, to see that it can.
            params: parameters, named parameters or groups of either; default all that require a gradient now.
                Parameters that are not the model's (a projection of the loss, say) are stepped densely, and so are
                those that are frozen when `overparameterize` is called, once they are not.
            **options: options of `inner`: lr, betas, weight_decay, ...

        Raises:
            TypeError, ValueError: `inner` cannot step cores, does not go with the configuration, or has no such option.
        """
        if params is None:  # given by keyword; with a positional one as well, it is an option of `inner`, as of GaLore
            params = options.pop("params", None)
        check_sparse(self.model, inner, options)
        self._optimizer = self._make_optimizer(inner, params, options)
        self._initial_cores = {}  # for this optimizer alone: the weights will have moved when another is made
        return self._optimizer

    def check_optimizer(self, inner: type[Optimizer], options: Mapping[str, Any]) -> None:
        """Raise what `optimizer(inner, **options)` would raise about these two; also for a model without values."""
        check_sparse(self.model, inner, options)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        try_out(inner, options, self.config, defaults(inner, options), torch.empty(0, device=device))

    @property
    def constraint_logs(self) -> dict[str, float]:
        """The last step's constraint loss and gradient ratio, see `OverParameterizedOptimizer.constraint_logs`."""
        return self._optimizer.constraint_logs if self._optimizer else {}

    def summary(self) -> str:
        """A table of the shapes with their counts and parameters, and the totals."""
        counts = Counter(matrix.shape for matrix in self.matrices)
        lines = [f"{'matrices':>8}  {'size':<12} {'parameters':>12}  {'scale':>6}  shape"]
        for shape, count in counts.items():
            size = f"{shape.rows}x{shape.cols}"
            lines.append(f"{count:>8}  {size:<12} {shape.num_params:>12,}  {shape.scale:>5.2f}x  {shape}")
        lines.append(f"parameters: {self.train_params:,} while training, {self.inference_params:,} at inference")
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Tensor]:
        """The cores, as `{parameter name}.core{k}`; a weight without cores is decomposed on the fly."""
        return {
            f"{matrix.name}.core{k}": core.detach().clone()
            for matrix in self.matrices
            for k, core in enumerate(self.cores(matrix))
        }

    def cores(self, matrix: Matrix) -> list[Tensor]:
        """The current cores of one of `matrices`, `[d_{k-1}, i_k, j_k, d_k]`; not copied."""
        cores = self._optimizer.cores(matrix.name) if self._optimizer else self._loaded_cores(matrix)
        if cores is None:
            (cores,) = decompose([matrix.of(self.model.get_parameter(matrix.name))], [matrix.shape])
        return cores

    def _loaded_cores(self, matrix: Matrix) -> list[Tensor] | None:
        """The loaded cores of a weight that is still their product. A sharded one is taken to be."""
        cores, weight = self._initial_cores.get(matrix.name), self.model.get_parameter(matrix.name)
        if cores is None or isinstance(weight, DTensor) or is_product(matrix.of(weight), cores, self.config.precision):
            return cores
        return None

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the cores of `state_dict` and write their products into the model; moments start over.

        Raises:
            KeyError: a core is missing or belongs to no matrix.
            ValueError: the cores of a matrix have other shapes than this configuration gives.
        """
        expected = {f"{m.name}.core{k}" for m in self.matrices for k in range(m.shape.sites)}
        for problem, keys in (("misses", expected - state_dict.keys()), ("has unknown", state_dict.keys() - expected)):
            if keys:
                raise KeyError(
                    f"state_dict {problem} {len(keys)} cores, e.g. {min(keys)}; use the same OverParamConfig"
                )
        loaded = {m.name: [state_dict[f"{m.name}.core{k}"] for k in range(m.shape.sites)] for m in self.matrices}
        for matrix in self.matrices:
            if (found := shape_of(loaded[matrix.name])) != matrix.shape:
                raise ValueError(f"{matrix.name} is {found} in state_dict and {matrix.shape} here; use its config")
        self._initial_cores = {} if self._optimizer else loaded
        optimizer = self._optimizer or self._make_optimizer(torch.optim.SGD, self.model.parameters(), {"lr": 0.0})
        for name, cores in loaded.items():
            optimizer.set_cores(name, cores)

    def _make_optimizer(
        self, inner: type[Optimizer], params: Iterable[Any] | None, options: dict[str, Any]
    ) -> OverParameterizedOptimizer:
        cls = OwnerOptimizer if self.config.placement == "owner" else OverParameterizedOptimizer
        optimizer = cls(
            self._named([p for p in self.model.parameters() if p.requires_grad] if params is None else params),
            inner,
            self.matrices,
            self.config,
            alignment=self._alignment,
            initial_cores=self._initial_cores,
            options=options,
        )
        # Looked up when it is called: it may be set after the optimizer has been made.
        optimizer.progress = lambda done, total: self.progress(done, total) if self.progress else None
        return optimizer

    def _named(self, params: Iterable[Any]) -> list[Any]:
        """The same parameters or groups with every parameter as `(name, parameter)`."""
        names = {p: name for name, p in self.model.named_parameters()}
        unnamed = iter(range(10**9))

        def named(entry: Any) -> tuple[str, Tensor]:
            p = entry[1] if isinstance(entry, tuple) else entry
            return names.get(p) or f"extra.{next(unnamed)}", p

        def members(group: dict[str, Any]) -> Any:
            return [group["params"]] if isinstance(group["params"], Tensor) else group["params"]

        entries: list[Any] = list(params)
        if entries and isinstance(entries[0], dict):
            return [{**group, "params": [named(p) for p in members(group)]} for group in entries]
        return [named(entry) for entry in entries]


def overparameterize(model: nn.Module, config: OverParamConfig | None = None) -> OverParameterization:
    """Plan the over-parameterized training of a model. The model, its class and its state dict do not change.

        overparam = opdf.overparameterize(student, opdf.OverParamConfig(ones=3))
        optimizer = overparam.optimizer(torch.optim.AdamW, lr=2e-5)

    Args:
        model: any module. A tied weight is handled once. One that is no matrix elsewhere (an embedding) is left out, or
            refused if it is named.
        config: default `OverParamConfig()`.

    Raises:
        ValueError: the configuration matches nothing, explicit factors do not multiply up to a matrix's size, or a
            weight is empty or holds NaN or infinity.
        TypeError: a weight is quantized or not floating-point, `model` is no module, or `config` no `OverParamConfig`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    config = OverParamConfig() if config is None else config
    if not isinstance(config, OverParamConfig):
        raise TypeError(f"config is {config!r}; give OverParamConfig(ones=..., targets=..., ...)")
    found = find_matrices(model, config.targets, config.exclude)
    for pattern in config.shapes or {}:
        if not any(matches(matrix, pattern) for matrix in found):
            raise ValueError(f"shapes pattern {pattern!r} matches no matrix; there is e.g. {found[0].name}")
    return OverParameterization(model, config, [replace(matrix, shape=_shape(matrix, config)) for matrix in found])


def _shape(matrix: Matrix, config: OverParamConfig) -> MPOShape:
    for pattern, factors in (config.shapes or {}).items():
        if matches(matrix, pattern):
            shape = config.plan(matrix.rows, matrix.cols, factors)
            if (shape.rows, shape.cols) != (matrix.rows, matrix.cols):
                raise ValueError(
                    f"shapes[{pattern!r}] gives a {shape.rows}x{shape.cols} matrix; {matrix.name} is "
                    f"{matrix.rows}x{matrix.cols}"
                )
            return shape
    return config.plan(matrix.rows, matrix.cols)
