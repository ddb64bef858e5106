"""The cores that training starts from: one matrix has many exact chains, and gradients differ between them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from opdf.mpo import MPOShape, Progress, factorized_on
from opdf.overparam.cache import decompose_cached

NOISE = 0.1
"""Of a random start: standard deviation times the root of the bond. The largest singular value of the noise is 0.2."""


def first_cores(
    names: Sequence[str],
    matrices: Sequence[Tensor],
    shapes: Sequence[MPOShape],
    start: str,
    cache: str | Path | None,
    progress: Progress | None = None,
) -> list[list[Tensor]]:
    """Chains of `matrices` as `start` says, see `OverParamConfig`; random ones depend on torch's seed and the name."""
    gauge = "balanced" if start == "balanced" else "symmetric"
    chains = decompose_cached(cache, matrices, shapes, gauge=gauge, progress=progress)
    if start == "random":
        return [_perturbed(*given) for given in zip(names, chains, shapes, strict=True)]
    return chains


def _perturbed(name: str, cores: Sequence[Tensor], shape: MPOShape) -> list[Tensor]:
    """Noise on every square core at a 1x1 site; the first other core right of them undoes it, in float64."""
    generator = torch.Generator().manual_seed((torch.initial_seed() + zlib.crc32(name.encode())) % 2**63)
    home = cores[0].device
    result = [core.to(factorized_on(home)) for core in cores]
    added: Tensor | None = None
    for k, core in enumerate(result):
        if k in shape.square_sites:
            bond = len(core)
            noise = torch.randn(bond, bond, generator=generator, dtype=torch.float64).to(core.device)
            square = core[:, 0, 0].double() + noise * (NOISE / bond**0.5)
            result[k] = square.reshape(core.shape).to(core.dtype)
            added = square if added is None else added @ square
        elif added is not None:
            result[k] = torch.linalg.solve(added, core.double().flatten(1)).reshape(core.shape).to(core.dtype)
            added = None
    return [core.to(home) for core in result]
