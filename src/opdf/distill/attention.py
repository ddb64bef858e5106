"""Which kernel a training step computes attention with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import TrainingArguments

SHORT = 128
"""Tokens of a text for which plain products are faster."""


def attention_kernel(inputs: Mapping[str, Any], args: TrainingArguments) -> AbstractContextManager[None]:
    """Inside, short texts are attended to by plain products where the fused kernel is slower: on a CPU in bfloat16.

    Without dropout torch 2.13 takes its fused kernel there, whose backward pass takes 2 to 4 times that of products for
    texts of 128 and 32 tokens, and half of it for 512. Forward and backward have to run inside, because checkpointed
    blocks go forward again in the backward pass.
    """
    ids = inputs.get("input_ids")
    if args.bf16 and args.device.type == "cpu" and ids is not None and ids.shape[-1] <= SHORT:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
