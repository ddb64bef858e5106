"""The slow, obviously right engine: cores are parameters, every weight is rebuilt from them in each forward pass.

It shares no code with the product beyond the starting cores: the contraction is an einsum over all digits, gradients
come from autograd, and the optimizer is torch's own on the cores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from opdf.mpo import decompose
from opdf.overparam import OverParameterization


def rebuild(cores: list[Tensor]) -> Tensor:
    """W[i_1..i_n, j_1..j_n] = sum over bonds of the product of the cores, by one einsum."""
    n = len(cores)
    bonds, rows, cols = range(n + 1), range(n + 1, 2 * n + 1), range(2 * n + 1, 3 * n + 1)
    operands: list[Any] = []
    for k, core in enumerate(cores):
        operands += [core, [bonds[k], rows[k], cols[k], bonds[k + 1]]]
    full = torch.einsum(*operands, [*rows, *cols])
    size = 1
    for core in cores:
        size *= core.shape[1]
    return full.reshape(size, -1)


class RebuildInForward:
    """Trains `model` with the cores of `overparam`'s matrices as parameters."""

    def __init__(self, model: nn.Module, overparam: OverParameterization) -> None:
        self.model = model
        self.transposed = {t.name: t.transposed for t in overparam.matrices}
        self.cores: dict[str, list[Tensor]] = {}
        for target in overparam.matrices:
            weight = model.get_parameter(target.name).detach()
            matrix = weight.T if target.transposed else weight.reshape(target.shape.rows, -1)
            self.cores[target.name] = [c.requires_grad_() for c in decompose(matrix, target.shape)]
        self.rest = {n: p for n, p in model.named_parameters() if n not in self.cores}

    def weights(self) -> dict[str, Tensor]:
        result = {}
        for name, cores in self.cores.items():
            matrix = rebuild(cores)
            shape = self.model.get_parameter(name).shape
            result[name] = matrix.T if self.transposed[name] else matrix.reshape(shape)
        return result

    def __call__(self, *args: Tensor, **kwargs: Any) -> Any:
        return functional_call(self.model, self.weights(), args, kwargs)

    def optimizer(self, inner: type[torch.optim.Optimizer], lr: float, **options: Any) -> torch.optim.Optimizer:
        """The user's optimizer: one group of the remaining parameters, then one of each weight's cores."""
        groups: list[dict[str, Any]] = [{"params": list(self.rest.values())}]
        return inner([*groups, *({"params": cores} for cores in self.cores.values())], lr=lr, **options)
