"""Matrices of a model's modules, read and written as `[outputs, inputs]` in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from opdf.distill.shrink.families import Part
from opdf.distill.shrink.moments import Moments, exact
from opdf.distill.shrink.ridge import Affine, ridge


class Matrix:
    """Weight and bias of a Linear or of GPT-2's Conv1D, or an equal share of its outputs.

    A scale behind it is part of both. It is 1 once they have been set.
    """

    def __init__(self, owner: nn.Module, part: Part | str) -> None:
        part = Part(part) if isinstance(part, str) else part
        self.module: Any = owner.get_submodule(part.name)
        self._scale = next(owner.get_submodule(part.scale).parameters()) if part.scale else None
        self._transposed = isinstance(self.module, Conv1D)
        size = self._whole().shape[0] // part.of
        self._rows = slice(part.share * size, (part.share + 1) * size)

    @property
    def weight(self) -> Tensor:
        """`[outputs, inputs]`."""
        return self._scaled(exact(self._whole()[self._rows]).mT).mT

    @property
    def bias(self) -> Tensor | None:
        """`[outputs]`, None where there is none."""
        return None if self.module.bias is None else self._scaled(exact(self.module.bias[self._rows]))

    @property
    def affine(self) -> Affine:
        weight, bias = self.weight, self.bias
        return Affine(weight, weight.new_zeros(len(weight)) if bias is None else bias)

    def __call__(self, values: Tensor) -> Tensor:
        """All of the module's outputs, scaled."""
        return self._scaled(self.module(values))

    def set(self, value: Affine) -> None:
        with torch.no_grad():
            if self._scale is not None:
                self._scale.fill_(1)
            self._whole()[self._rows] = value.weight.to(self._whole())
            if self.module.bias is not None:
                self.module.bias[self._rows] = value.bias.to(self.module.bias)

    def _scaled(self, outputs: Tensor) -> Tensor:
        return outputs if self._scale is None else outputs * self._scale.detach().to(outputs)

    def _whole(self) -> Tensor:
        weight: Tensor = self.module.weight
        return weight.mT if self._transposed else weight


class Reader:
    """Predicts the teacher's states from the student's; turns matrices that read the one into those for the other.

    Args:
        moments: of the student's states and the teacher's.
        guess: `[teacher width, student width]`.
    """

    def __init__(self, moments: Moments, guess: Tensor) -> None:
        self.moments = moments
        self._guess = guess
        self._maps: dict[bool, Affine] = {}

    def read(self, matrix: Matrix) -> Affine:
        """The teacher's matrix after the best guess of the teacher's states; a bias where the matrix has one.

        A matrix may read several states side by side.
        """
        constant = matrix.bias is not None
        if constant not in self._maps:
            self._maps[constant] = ridge(self.moments, self._guess, constant=constant)
        states, (weight, bias) = self._maps[constant], matrix.affine
        weight = weight.reshape(len(weight), -1, len(states.weight))
        return Affine((weight @ states.weight).flatten(1), (weight @ states.bias).sum(1) + bias)
