"""Whether every step gives every parameter a gradient: if so, DDP need not search the graph for those without."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from opdf.distill.models import config_of

DRAWN = re.compile("moe|expert|router", re.IGNORECASE)
"""Class names of modules that run or not, depending on their inputs."""

LAYERDROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
"""Fields of configurations with the probability that a block is left out."""


def may_vary(student: nn.Module) -> bool:
    """Whether a student may run other modules in the next step."""
    config = config_of(student)
    drops = any(getattr(config, name, 0) for name in LAYERDROPS)
    return drops or any(DRAWN.search(type(module).__name__) for module in student.modules())


def all_reached(student: nn.Module, loss: Tensor) -> bool:
    """Whether the gradient of a loss reaches every parameter that is trained."""
    found, seen, ahead = set(), set(), [loss.grad_fn]
    while ahead:
        node: Any = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where a gradient is accumulated
            found.add(node.variable)
        ahead.extend(next_node for next_node, _ in node.next_functions)
    return all(p in found for p in student.parameters() if p.requires_grad)
