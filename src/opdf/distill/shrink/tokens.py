"""Which tokens of a batch are real, and which an encoder-decoder's decoder reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from opdf.data import IGNORED


def real_tokens(inputs: Mapping[str, Tensor], mask: str, states: Tensor) -> Tensor:
    """`[examples, tokens]`, true where a token is no padding.

    Args:
        mask: the input that says so. A decoder without one has as many tokens as there are labels, or inputs.
        states: `[examples, tokens, width]`.
    """
    shape = states.shape[:2]
    known = inputs.get(mask)
    if known is None and mask.startswith("decoder"):
        known = _decoded(inputs)
    if known is None or known.numel() != shape.numel():
        return torch.ones(shape, dtype=torch.bool, device=states.device)
    return known.bool().view(shape)  # several choices an example are examples to the model


def _decoded(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """`[examples, tokens]`, true up to the last token of an example: without a mask a decoder sees all before it."""
    if _labels_are_tokens(inputs):
        known = inputs["labels"].ne(IGNORED)
    elif "decoder_input_ids" in inputs or (found := inputs.get("attention_mask")) is None:
        return None
    else:
        known = found
    return known.long().flip(1).cummax(1).values.flip(1)


def decoded_ids(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """`[examples, tokens]`, as many as an encoder-decoder's decoder reads: its own, labels, or those of the encoder."""
    if "decoder_input_ids" in inputs:
        return inputs["decoder_input_ids"]
    return inputs["labels"] if _labels_are_tokens(inputs) else inputs.get("input_ids")


def _labels_are_tokens(inputs: Mapping[str, Tensor]) -> bool:
    """Whether there are labels of which an encoder-decoder makes its decoder's inputs."""
    labels = inputs.get("labels")
    return labels is not None and labels.dim() > 1 and not labels.is_floating_point()
