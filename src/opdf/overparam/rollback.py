"""Steps that are taken back, of any torch optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from opdf.overparam import saved
from opdf.overparam.optimizer import OverParameterizedOptimizer


@contextmanager
def rolled_back(optimizer: Optimizer) -> Iterator[None]:
    """Try steps inside; afterwards weights and the optimizer's state are restored, bit for bit.

    It works with any torch optimizer. The cores of an over-parameterized one are restored too; gradients are not.
    """
    ours = optimizer if isinstance(optimizer, OverParameterizedOptimizer) else None
    before = dict(optimizer.state)
    if ours:
        ours.make_cores()
    # Of weights that hold other values for now, an average say. Their cores are for those that come back.
    dropped = {p: state for p, state in before.items() if "core0" in state and optimizer.state[p] is not state}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    weights = [p.detach().clone() for p in params]
    state = {p: saved.moved(values, p.device) for p, values in optimizer.state.items()}
    groups = [{k: saved.copied(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, options in zip(optimizer.param_groups, groups, strict=True):
            held = group["params"]
            group.clear()
            group.update(options, params=held)
        with torch.no_grad():
            for p, weight in zip(params, weights, strict=True):
                p.copy_(weight)
        if ours:
            ours.begin_anew(dropped)
