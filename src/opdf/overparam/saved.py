"""Checking and loading the state dict of an optimizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from opdf.overparam.cores import shape_of
from opdf.overparam.select import Matrix
from opdf.overparam.shapes import MPOShape

FORMAT = 2
"""Version of the state's layout, saved in every group and checked on load."""


def check(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], matrices: Mapping[str, Matrix], lr_scaling: str
) -> None:
    """Refuse a state dict that was not saved by an optimizer like this one.

    Args:
        state_dict: as it is to be loaded.
        groups: the optimizer's own.
        matrices: its weights that are trained through cores, by name.
        lr_scaling: of its `OverParamConfig`.

    Raises:
        ValueError: it has other factors, another `lr_scaling`, parameters in another order or another format version,
            or is another optimizer's.
    """
    if not state_dict["state"] and all("opdf_format" not in group for group in state_dict["param_groups"]):
        return
    known = {name for group in groups for name in group["param_names"]}
    for theirs, ours in zip(state_dict["param_groups"], groups, strict=False):
        if "opdf_format" not in theirs:
            raise ValueError(
                "the state dict was saved by an optimizer without over-parameterization; "
                "start from the model's weights alone, or train on without over-parameterization"
            )
        if theirs["opdf_format"] != FORMAT:
            raise ValueError(f"the state dict has format {theirs['opdf_format']}; this version reads {FORMAT}")
        saved = theirs.get("param_names", theirs["params"])
        for key, there, name in zip(theirs["params"], saved, ours["param_names"], strict=False):
            there = key if isinstance(key, str) else there  # torch's distributed checkpoints sort by these names
            if there != name and there in known:
                raise ValueError(
                    f"the state dict has {there} where this optimizer has {name}; give it the parameters in the order "
                    "and groups of the optimizer that was saved"
                )
            state = state_dict["state"].get(key)
            mine = matrices[name].shape if name in matrices else None
            if state and _shape_in(state) != mine and not _is_written_over(state):
                raise ValueError(
                    f"the state dict has {name} as {_shape_in(state) or 'dense'}, this run as {mine or 'dense'}; "
                    "use the OverParamConfig that it was saved with"
                )
            scaled = "match-dense" if state and "lr_scale" in state else "none"
            if state and "core0" in state and scaled != lr_scaling:
                raise ValueError(
                    f"the state dict has {name} with lr_scaling {scaled!r}, this run has {lr_scaling!r}; "
                    "use the OverParamConfig that it was saved with"
                )


def restore_precision(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> set[Tensor]:
    """Give an optimizer its saved state in the saved precision: torch has cast it to that of the parameters.

    Where theirs is finer, it stays so: a state of bf16 weights is loaded for float32 ones as torch does it.

    Returns:
        The parameters that have a state in `state_dict` and in the optimizer.
    """
    keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    theirs = {p: state_dict["state"].get(key) for p, key in zip(params, keys, strict=True)}
    held = set()
    for group in optimizer.param_groups:
        # Fused and capturable kernels read step counters on the device. Others read them where they were made.
        counters_too = bool(group.get("fused") or group.get("capturable"))
        for p in group["params"]:
            if p in optimizer.state and theirs[p]:
                optimizer.state[p] = moved(theirs[p], p.device, counters_too=counters_too, least=p.dtype)
                held.add(p)
    return held


def moved(value: Any, device: torch.device, *, counters_too: bool = False, least: torch.dtype | None = None) -> Any:
    """A copy of a state value on a device; step counters stay where they are unless asked.

    It has its own precision, or that of `least` if it is no counter and less precise.
    """
    if isinstance(value, Tensor):
        there = device if value.dim() or counters_too else value.device
        coarse = least is not None and value.is_floating_point() and value.dim() and value.itemsize < least.itemsize
        return value.detach().to(device=there, dtype=least if coarse else value.dtype, copy=True).contiguous()
    if isinstance(value, dict):
        return {key: moved(item, device, counters_too=counters_too, least=least) for key, item in value.items()}
    return value


def copied(value: Any) -> Any:
    """A copy of an option of a parameter group."""
    return copy.deepcopy(value)


def _is_written_over(state: Mapping[str, Any]) -> bool:
    """Whether a weight was trained through cores that had been dropped when the state was saved."""
    return "lr_scale" in state and "core0" not in state


def _shape_in(state: Mapping[str, Any]) -> MPOShape | None:
    sites = next(k for k in range(len(state) + 1) if f"core{k}" not in state)
    return shape_of([state[f"core{k}"] for k in range(sites)]) if sites else None
