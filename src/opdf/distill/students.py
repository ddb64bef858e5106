"""Making a student from a teacher by keeping some of its blocks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opdf.distill.objective import config_of
from opdf.overparam.select import block_stacks


def keep_layers(teacher: nn.Module, layers: int | Sequence[int]) -> Any:
    """A student of the teacher's class with some of its blocks, and everything else as it is.

    Args:
        teacher: a transformers model with one stack of blocks (BERT, DistilBERT, RoBERTa, ViT, DeiT, GPT-2, LLaMA, ...)
            or an encoder and a decoder (T5).
        layers: the blocks to keep, counted from 0; or how many, which keeps the last of each group of teacher blocks
            (the ones that the constraint loss pairs by default).

    Returns:
        A new model; its configuration says the new depth, so that `save_pretrained` and `from_pretrained` work.

    Raises:
        TypeError: not a transformers model.
        ValueError: an index is out of range, or the depth of this architecture is not one number.
    """
    config = getattr(teacher, "config", None)
    if config is None or not hasattr(teacher, "_from_config"):
        raise TypeError(f"teacher is a {type(teacher).__name__}; keep_layers needs a transformers model")
    stacks = block_stacks(teacher)
    if hasattr(config, "depths") or not stacks or len(stacks) > 2:
        raise ValueError(
            f"{type(teacher).__name__} has {len(stacks)} stacks of blocks ({', '.join(stacks)}); keep_layers handles "
            "one stack, or an encoder and a decoder. Build the student from a smaller config instead"
        )
    config = copy.deepcopy(config)
    kept = {}
    for stack in stacks:
        depth = len(list(teacher.get_submodule(stack).children()))
        kept[stack] = _chosen(layers, depth)
        _set_depth(config, stack, depth, kept[stack])
    with torch.random.fork_rng(), next(teacher.parameters()).device:
        make: Any = type(teacher)
        student = make._from_config(config, dtype=next(teacher.parameters()).dtype)
    student.load_state_dict(_renumbered(teacher.state_dict(), student.state_dict(), kept))
    return student.to(next(teacher.parameters()).device)


def output_layer(model: nn.Module) -> nn.Linear:
    """The Linear that makes a classifier's or regressor's outputs.

    Raises:
        ValueError: no Linear outside the blocks has as many outputs as the configuration has labels.
    """
    labels = config_of(model).num_labels
    base = {id(m) for m in getattr(model, "base_model", nn.Module()).modules()}
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels and id(m) not in base]
    if not found:
        raise ValueError(f"{type(model).__name__} has no Linear with {labels} outputs as its head")
    return found[-1]


def _chosen(layers: int | Sequence[int], depth: int) -> list[int]:
    if isinstance(layers, int):
        if not 1 <= layers <= depth:
            raise ValueError(f"layers is {layers}; the teacher has {depth} blocks, keep 1 to {depth}")
        return [(s + 1) * depth // layers - 1 for s in range(layers)]
    chosen = list(layers)
    if not chosen or any(not 0 <= k < depth for k in chosen) or chosen != sorted(set(chosen)):
        raise ValueError(f"layers is {chosen}; give rising block numbers from 0 to {depth - 1}")
    return chosen


def _set_depth(config: Any, stack: str, depth: int, kept: Sequence[int]) -> None:
    attribute = "num_decoder_layers" if "decoder" in stack and hasattr(config, "num_decoder_layers") else ""
    attribute = attribute or config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if getattr(config, attribute, None) != depth:
        raise ValueError(
            f"{type(config).__name__}.{attribute} is not the {depth} blocks of {stack}; cannot change depth"
        )
    setattr(config, attribute, len(kept))
    types = getattr(config, "layer_types", None)
    if isinstance(types, list) and len(types) == depth:
        config.layer_types = [types[k] for k in kept]


def _renumbered(theirs: dict[str, Tensor], ours: dict[str, Tensor], kept: dict[str, list[int]]) -> dict[str, Tensor]:
    state = {}
    for name in ours:
        source = name
        for stack, blocks in kept.items():
            if name.startswith(f"{stack}."):
                index, _, rest = name[len(stack) + 1 :].partition(".")
                source = f"{stack}.{blocks[int(index)]}.{rest}"
                # T5's first block holds the position bias of all.
                source = source if source in theirs else f"{stack}.0.{rest}"
        state[name] = theirs[source]
    return state
