"""Scales and shifts of the student's norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from opdf.distill.shrink.moments import ROUNDING, Moments, exact


def subtracts_mean(norm: nn.Module) -> bool:
    """Whether a norm subtracts the mean of the entries (LayerNorm), and does not only scale (RMSNorm)."""
    return isinstance(norm, nn.LayerNorm)


def has_shift(norm: nn.Module) -> bool:
    """Whether a norm adds a shift; an RMSNorm has none, and a LayerNorm may have none."""
    return getattr(norm, "bias", None) is not None


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: ModernBERT's first block has none where the others have a norm."""
    return not isinstance(module, nn.Identity)


def set_norm(norm: Any, scale: Tensor, shift: Tensor | float = 0.0) -> None:
    """Set scale and shift, of all entries or each; a norm may have no shift."""
    with torch.no_grad():
        norm.weight.copy_(scale.expand_as(norm.weight))
        if has_shift(norm):
            norm.bias.copy_(torch.as_tensor(shift).expand_as(norm.bias))


def plain(norm: Any, teacher: Any, expand: Tensor) -> None:
    """Give a norm one scale, the mean of the teacher's, and the teacher's shift; what reads the norm is fitted to it.

    Args:
        norm: the student's, before what reads it has been fitted; teacher: the teacher's.
        expand: `[teacher width, student width]`, see `Basis`.
    """
    if not is_norm(norm):
        return
    scales = exact(teacher.weight)
    scale = scales.square().mean().sqrt()
    shift: Tensor | float = 0.0
    if has_shift(norm):  # a matrix without a bias cannot make up for it
        guess = scales[:, None] * expand
        system = guess.mT @ guess
        system.diagonal().add_(1e-12 * system.diagonal().mean() + torch.finfo(system.dtype).tiny)
        shift = scale * torch.linalg.solve(system, guess.mT @ exact(teacher.bias))
    set_norm(norm, scale, shift)


def fit_norm(norm: Any, moments: Moments, readout: Tensor, target: Tensor) -> None:
    """The scale and shift that make `readout (scale * x + shift)` closest to `target y`.

    Args:
        norm: the student's.
        moments: of x, the student's states after a norm of scale 1 and shift 0, and y, the teacher's after its norm.
        readout: `[outputs, student width]`; target: `[outputs, teacher width]`; float64.
    """
    shift = has_shift(norm)
    xx, xy = moments.covariances(shift)
    inner = readout.mT @ readout
    x, y = moments.means()
    system = inner * xx
    wanted = ((readout.mT @ target) * xy).sum(1)
    system.diagonal().add_(ROUNDING * (system.diagonal().mean() + inner.diagonal() * x.square()))
    system.diagonal().add_(torch.finfo(system.dtype).tiny)
    scale = torch.linalg.solve(system, wanted)
    if not shift:
        return set_norm(norm, scale)
    inner.diagonal().add_(1e-9 * inner.diagonal().mean())
    centre = torch.linalg.solve(inner, readout.mT @ (target @ y))
    return set_norm(norm, scale, centre - scale * x)
