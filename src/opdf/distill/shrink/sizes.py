"""The student's configuration, and what is refused of teachers and sizes before any work."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any, SupportsIndex

import torch
from torch import nn

from opdf.distill.shrink.branches import HeadSizes
from opdf.distill.shrink.families import Family, Head, Tower, family_of
from opdf.distill.shrink.norms import subtracts_mean
from opdf.distill.students import check_made, chosen_layers, follow_depth, follow_width

DROPOUT = re.compile("drop(out)?(_|$)")
"""In the name of a field that matters in training alone: hidden_dropout_prob, attn_pdrop, dropout_rate."""

WIDTHS = ("pooler_output_size", "pooler_hidden_size", "embedding_size")
"""Fields of some configurations that are usually the hidden size once more."""

LEAST = 3
"""Entries of a state after a LayerNorm that hold a number: one is 0 and two are 1 and -1."""


def check_teacher(teacher: nn.Module) -> Family:
    """The teacher's family.

    Raises:
        TypeError: it is no transformers model, or its weights are quantized.
        ValueError: its family is not supported, it has parts that are not, or weights without values, with NaN, or made
            under `torch.inference_mode()`.
    """
    family = family_of(teacher)
    if getattr(teacher.config, "quantization_config", None) is not None:
        raise TypeError("teacher is quantized; shrink needs its real weights: load it without quantization_config")
    known, base = set(_weights(teacher, family)), base_prefix(teacher)
    embeddings = tuple(f"{base}{name}." for name in family.embeddings)
    for name, parameter in teacher.named_parameters():
        owner = name.rpartition(".")[0]
        added = name.startswith(embeddings) and not isinstance(teacher.get_submodule(owner), nn.Linear)
        if owner not in known and not added:
            raise ValueError(
                f"teacher is a {type(teacher).__name__}, and shrink does not know its {owner}; give a plain model "
                "(adapters merged), or use keep_layers, which copies blocks"
            )
        if parameter.is_meta:
            raise ValueError(f"teacher's {name} is on the meta device and has no values; load the weights first")
        if not parameter.is_floating_point():
            raise TypeError(f"teacher's {name} holds {parameter.dtype}; shrink needs floating-point weights")
        if parameter.is_inference():
            raise ValueError(
                f"teacher's {name} was made under torch.inference_mode(), where nothing has a gradient; load the "
                "teacher outside of it"
            )
        if not torch.isfinite(parameter).all():
            raise ValueError(f"teacher's {name} holds NaN or infinite entries; give a teacher that works")
    _check_blocks(teacher, family)
    check_made(teacher)
    _check_outputs(teacher, family)
    return family


def _check_outputs(teacher: Any, family: Family) -> None:
    """Refuse a head that reads other states than its family's, of the model's width: several side by side, say."""
    width = getattr(teacher.config, family.width)
    states = {name: 1 for head in outputs_of(teacher, family) for name in (head.first, head.second) if name}
    states |= {head.first: head.states for head in outputs_of(teacher, family)}
    for name, count in states.items():
        reads = getattr(teacher.get_submodule(name), "in_features", None)
        if reads != count * width:
            known = family.width if count == 1 else f"{count} times {family.width}"
            raise ValueError(
                f"teacher's {name} reads {reads} values, and shrink knows layers of heads that read as many as "
                f"{known}, {count * width}; use keep_layers, which copies blocks"
            )


def _check_blocks(teacher: Any, family: Family) -> None:
    """Refuse blocks that share a module, whose states could not be told apart, read in chunks, or end in no norm."""
    first: dict[int, str] = {}
    for tower in towers_of(teacher, family):
        for name, module in teacher.base_model.get_submodule(tower.blocks).named_modules(
            prefix=tower.blocks, remove_duplicate=False
        ):
            other = first.setdefault(id(module), name)
            if other != name and next(module.parameters(), None) is not None:
                raise ValueError(
                    f"teacher's {name} is the same module as its {other}; shrink fits every block by itself: give the "
                    "second one weights of its own (copy.deepcopy)"
                )
    if getattr(teacher.config, "chunk_size_feed_forward", 0):
        raise ValueError(
            f"teacher's chunk_size_feed_forward is {teacher.config.chunk_size_feed_forward}; load it with "
            "chunk_size_feed_forward=0, which computes the same"
        )
    if hasattr(teacher, "out_features") and not getattr(teacher.config, "apply_layernorm", True):
        raise ValueError(
            f"teacher is a {type(teacher).__name__} with apply_layernorm=False, and a student is fitted up to the last "
            "norm; set teacher.config.apply_layernorm to True, and the student's to False afterwards"
        )


def _weights(teacher: Any, family: Family) -> Iterator[str]:
    """Names of the modules that are fitted, beside the embeddings."""
    base = base_prefix(teacher)
    for tower in towers_of(teacher, family):
        yield from (base + name for name in tower.weights())
        for block in range(len(teacher.base_model.get_submodule(tower.blocks))):
            for branch in tower.branches:
                yield from (f"{base}{tower.blocks}.{block}.{name}" for name in branch.weights())
    for head in outputs_of(teacher, family):
        yield from head.weights()


def base_prefix(model: Any) -> str:
    """What names inside of the base model are preceded by in the whole one."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def towers_of(model: Any, family: Family) -> list[Tower]:
    return [tower for tower in family.towers if has_part(model.base_model, tower.blocks)]


def outputs_of(model: Any, family: Family) -> list[Head]:
    """The heads that a model has, by their full names, each matrix once."""
    found: list[Head] = []
    for head in family.outputs:
        full = replace(head, first=head.first.replace("BASE.", base_prefix(model)))
        taken = {name for other in found for name in other.weights()}
        if full.first not in taken and all(has_part(model, f"{name}.weight") for name in full.weights()):
            found.append(full)
    return found


def has_part(model: nn.Module, path: str) -> bool:
    """Whether a model has a module, or a parameter, of a name."""
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found is not None


def student_config(teacher: Any, family: Family, changes: Mapping[str, float]) -> Any:
    """The teacher's configuration with other sizes and rates of dropout.

    Raises:
        TypeError: a size is no integer, or a rate no number.
        ValueError: it is no field of this family that a fitted student may change, is larger than the teacher's, or
            does not go with the others.
    """
    old = teacher.config
    config = copy.deepcopy(old)
    for name, value in _changed(teacher, family, changes).items():
        setattr(config, name, value)
    _follow(config, teacher, family)
    _check_heads(config, family, head_sizes(old, family).size)
    last = towers_of(teacher, family)[-1]
    width = getattr(config, family.width)
    if subtracts_mean(teacher.base_model.get_submodule(last.final or str(last.entry))) and width < LEAST:
        raise ValueError(
            f"{family.width} is {width}; norms that subtract the mean leave less than {LEAST} entries no more than a "
            f"sign: give {LEAST} or more"
        )
    return config


def _changed(teacher: Any, family: Family, changes: Mapping[str, float]) -> dict[str, float]:
    """What is asked for, by the names that the configuration has for it."""
    old, names = teacher.config, size_fields(teacher, family)
    known: dict[str, str] = {}
    result: dict[str, float] = {}
    for given, value in changes.items():
        name = old.attribute_map.get(given, given)
        if (other := known.setdefault(name, given)) != given:
            raise ValueError(f"{other} and {given} are one size of a {old.model_type}; give one")
        if DROPOUT.search(name) and hasattr(old, name):
            result[name] = _rate(given, value)
        elif name in names:
            largest = getattr(old, name)
            result[name] = _size(given, value, inner_size(old, family) if largest is None else largest)
        else:
            raise ValueError(
                f"{given} is no size of a {old.model_type}; a fitted student may change {', '.join(names)} and its "
                "rates of dropout"
            )
    return result


def last_blocks(family: Family, count: int, depth: int) -> list[int]:
    """For each of a student's blocks the last of the teacher's that it stands for.

    Groups have the same number of blocks, as nearly as can be. Where norms stand before the branches, the first block
    has one to itself. With half of the blocks seven small ViTs then had half to a quarter of the squared error, and two
    LLaMAs 7 and 12 % more perplexity than their teachers instead of 102 and 40 %. A MiniLM, whose norms stand behind,
    was nearer without it.
    """
    if family.pre_norm and count > 1:
        return [0, *(1 + k for k in chosen_layers(count - 1, depth - 1))]
    return chosen_layers(count, depth)


def block_groups(family: Family, count: int, depth: int) -> list[tuple[int, int]]:
    """For each of a student's blocks the first and the last of the teacher's that it stands for."""
    last = last_blocks(family, count, depth)
    return list(zip([0, *(k + 1 for k in last[:-1])], last, strict=True))


def _follow(config: Any, teacher: Any, family: Family) -> None:
    """Bring the fields that go with a size to what was asked for: a value for each block, the width's other names."""
    old = teacher.config
    for tower in towers_of(teacher, family):
        depth = getattr(old, tower.depth)
        kept = last_blocks(family, getattr(config, tower.depth), depth)
        follow_depth(config, depth, kept)
    follow_width(config, old, family.width, family.heads, WIDTHS)
    size = head_sizes(old, family).size
    if family.rotary and family.head and head_sizes(config, family).size != size:
        setattr(config, family.head, size)  # the teacher's configuration left it to the width


def _size(name: str, value: Any, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is {value!r}; give a whole number")
    size = operator.index(value)  # of NumPy, say
    if not 1 <= size <= largest:
        raise ValueError(f"{name} is {size}; the teacher's is {largest}, and a student's is 1 to that")
    return size


def _rate(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; give a number from 0 to 1, as a rate of dropout")
    rate = float(value)
    if not 0 <= rate < 1:
        raise ValueError(f"{name} is {value}; a rate of dropout is at least 0 and less than 1")
    return rate


def size_fields(teacher: Any, family: Family) -> list[str]:
    """Fields of the configuration that can be made smaller."""
    depths = [tower.depth for tower in towers_of(teacher, family)]
    sizes = [family.width, family.inner, family.heads, family.groups, None if family.rotary else family.head]
    return [name for name in (*depths, *sizes) if name]


def depth_fields(teacher: Any) -> list[str]:
    """Fields of the configuration that say how many blocks there are, one a tower.

    Raises:
        TypeError, ValueError: as `shrink`.
    """
    return [tower.depth for tower in towers_of(teacher, family_of(teacher))]


def inner_size(config: Any, family: Family) -> int:
    """The feed-forward size; four times the width where the configuration leaves it open (GPT-2)."""
    inner, width = getattr(config, family.inner), getattr(config, family.width)
    return int(inner * width if family.inner_times_width else inner or 4 * width)


def head_sizes(config: Any, family: Family) -> HeadSizes:
    heads = getattr(config, family.heads)
    groups = getattr(config, family.groups) if family.groups else heads
    size = getattr(config, family.head, None) if family.head else None
    return HeadSizes(heads, groups, size or getattr(config, family.width) // heads)


def _check_heads(config: Any, family: Family, theirs: int) -> None:
    """Refuse numbers of heads that do not divide, and heads of another size than the teacher's that may not have it."""
    width, heads = getattr(config, family.width), getattr(config, family.heads)
    groups = getattr(config, family.groups) if family.groups else heads
    if (family.head is None or family.rotary) and width % heads:
        raise ValueError(f"{family.width} {width} is not a multiple of {family.heads} {heads}; change one of them")
    if heads % groups:
        raise ValueError(f"{family.heads} {heads} is not a multiple of {family.groups} {groups}; change one of them")
    ours = head_sizes(config, family).size
    if family.rotary and ours != theirs:
        remedy = f"a {family.width} that is a multiple of it" if width % theirs else f"{family.heads} {width // theirs}"
        raise ValueError(
            f"{family.width} {width} with {family.heads} {heads} makes heads of {ours}, and rotary positions fix the "
            f"teacher's size, {theirs}; give {remedy}"
        )
