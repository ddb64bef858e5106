"""The constraint loss: auxiliary cores of the student are pulled towards the teacher's (OPDF, equation 5).

Its gradient is closed form (the teacher's cores are constants), so it is added in the optimizer's step and costs no
autograd graph.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opdf.overparam.config import Constraint
from opdf.overparam.select import Matrix
from opdf.overparam.shapes import MPOShape

LOGS = ("loss", "distillation", "constraint")
"""Of a matrix with a partner: the constraint loss, and the squared norms of the distillation's and its gradient."""


@dataclass
class Alignment:
    """What the optimizer needs to add the constraint loss.

    Attributes:
        constraint: what was asked for.
        partners: the teacher's matrices by the student's names.
        weights: the teacher's weights by the same names, read when the student's matrix is first decomposed.
    """

    constraint: Constraint
    partners: Mapping[str, Matrix]
    weights: Mapping[str, Tensor]

    @classmethod
    def to(cls, teacher: nn.Module, partners: Mapping[str, Matrix], constraint: Constraint) -> Alignment:
        weights = {name: teacher.get_parameter(matrix.name) for name, matrix in partners.items()}
        return cls(constraint, partners, weights)

    def teacher_matrix(self, name: str) -> Tensor:
        """`[rows, cols]`, the teacher's matrix as it is now, by the student matrix's name."""
        return self.partners[name].of(self.weights[name].detach())

    def mark(self, name: str) -> int:
        """A number by which it is known again what a student's matrix is pulled to."""
        partner = self.partners[name].name.replace("_orig_mod.", "")  # of a compiled teacher
        return zlib.crc32(f"{self.constraint.gauge} {partner}".encode())

    def add_gradients(
        self,
        shape: MPOShape,
        cores: Sequence[Tensor],
        theirs: Mapping[int, Tensor],
        gradients: Sequence[Tensor],
        *,
        ascending: bool = False,
    ) -> dict[str, Tensor]:
        """Add the loss's gradient for some matrices to that of the distillation, in place.

        Args:
            shape: of the student's chains.
            cores: the student's cores `[..., d_{k-1}, i_k, j_k, d_k]`, float32 or float64.
            theirs: the teacher's auxiliary cores by site, with the same leading dimensions; identities are left out.
            gradients: one for every core.
            ascending: whether the optimizer goes along gradients, and not against them (`maximize=True`).

        Returns:
            What `LOGS` names, scalars summed over the matrices; the loss is unweighted.
        """
        loss, extra = self.gradients(shape, cores, theirs)
        norms = _squared_norm(gradients), _squared_norm(extra.values()) * self.constraint.weight**2
        for k, gradient in extra.items():
            gradients[k].add_(gradient, alpha=-self.constraint.weight if ascending else self.constraint.weight)
        return dict(zip(LOGS, (loss, *norms), strict=True))

    def gradients(
        self, shape: MPOShape, cores: Sequence[Tensor], theirs: Mapping[int, Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The unweighted loss of some matrices, a scalar, and its gradient for every auxiliary core by site."""
        loss = cores[0].new_zeros(())
        gradients = {}
        for k in shape.auxiliary:
            target = theirs[k] if k in theirs else _identity(cores[k])
            difference = cores[k] - target
            entries = tuple(range(cores[k].dim() - 4, target.dim()))  # of one matrix
            factor = self._factor(shape, target, entries)
            loss += (factor * difference.square().sum(entries, keepdim=True)).sum()
            gradients[k] = difference.mul_(2 * factor)
        return loss, gradients

    def weights_of(self, shape: MPOShape, theirs: Sequence[Tensor]) -> dict[int, float]:
        """What the loss multiplies the squared distance of each auxiliary core by, for one teacher chain."""
        return {k: float(self._factor(shape, theirs[k], (0, 1, 2, 3))) for k in shape.auxiliary}

    def _factor(self, shape: MPOShape, target: Tensor, entries: tuple[int, ...]) -> Tensor | float:
        if self.constraint.normalize == "mse":
            return 1 / (math.prod(target.shape[k] for k in entries) * len(shape.auxiliary) * len(self.partners))
        norm = target.square().sum(entries, keepdim=True)
        return torch.where(norm > 0, norm, 1.0).reciprocal()


def compared_sites(shape: MPOShape) -> list[int]:
    """Auxiliary sites whose cores are not identities in a decomposition."""
    return [k for k in shape.auxiliary if k not in shape.square_sites]


def _identity(core: Tensor) -> Tensor:
    return torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)[:, None, None].expand(core.shape)


def _squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum()
