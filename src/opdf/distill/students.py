"""Making a student from a teacher by keeping some of its blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from opdf.overparam import block_lists, lists_beside


def keep_layers(teacher: nn.Module, layers: int | Sequence[int]) -> Any:
    """A student of the teacher's class with some of its blocks, and everything else as it is.

    Args:
        teacher: a transformers model with one list of blocks (BERT, DistilBERT, RoBERTa, ViT, DeiT, GPT-2, LLaMA, ...)
            or an encoder and a decoder (T5).
        layers: the blocks to keep, counted from 0; or how many, which keeps the last of each group of teacher blocks
            (the ones that the constraint loss pairs by default). If the first block of this architecture has not all
            that the others have (ModernBERT's has no norm), it is kept in place of the first one of these.

    Returns:
        A new model in eval mode; its configuration says the new depth, so that `save_pretrained` and
        `from_pretrained` work.

    Raises:
        TypeError: not a transformers model, or layers are no whole numbers.
        ValueError: an index is out of range, indices do not rise, the depth of this architecture is not one number, its
            blocks differ in ways that the student's configuration cannot express, or the teacher is not as its
            configuration says.
    """
    config = getattr(teacher, "config", None)
    if config is None or not hasattr(type(teacher), "_from_config"):
        raise TypeError(
            f"teacher is a {type(teacher).__name__}; keep_layers needs a transformers model, with adapters merged in"
        )
    check_made(teacher)
    towers = block_lists(teacher)
    if hasattr(config, "depths") or not towers or len(towers) > 2:
        raise ValueError(
            f"{type(teacher).__name__} has {len(towers)} lists of blocks ({', '.join(towers)}); keep_layers handles "
            "one, or an encoder and a decoder. Build the student from a smaller config instead"
        )
    config = copy.deepcopy(config)
    kept = {}
    for tower in towers:
        depth = len(list(teacher.get_submodule(tower).children()))
        kept[tower] = chosen_layers(layers, depth)
        _set_depth(config, tower, depth, kept[tower])
    first = next(teacher.parameters())
    with torch.inference_mode(False):  # weights that are made in that mode could not be trained
        student = empty_model(teacher, config, first.dtype, first.device)
    for tower, blocks in list(kept.items()):  # what of blocks stands in lists of its own, which follow the depth
        ours = lists_beside(student, tower)
        kept |= {name: blocks for name in lists_beside(teacher, tower) if name in ours}
    try:
        _check_blocks(teacher, student, kept)
    except _NoPlaceError as error:
        if isinstance(layers, Integral) and len(towers) == 1 and error.instead:
            return keep_layers(teacher, error.instead)
        raise
    take_dtypes(student, teacher)
    state = _renumbered(teacher.state_dict(), student.state_dict(), kept)
    for name in state:
        if name.endswith(READS_ALL_BLOCKS):
            by_block = state[name].reshape(1, depth, -1)
            state[name] = by_block[:, kept[towers[0]]].flatten(1)
    student.load_state_dict(state)
    if set(student.modules()) & set(teacher.modules()):  # XLM's blocks have one activation, of all models
        student = copy.deepcopy(student)
    return student.to(first.device).eval()


def check_made(teacher: Any) -> None:
    """Refuse a teacher with other parts than its configuration makes, which its student would not have.

    Dropout may differ: it is for training alone.

    Raises:
        ValueError: a module is of another class, missing or more than that, or a weight is of another shape.
    """
    made = empty_model(teacher, teacher.config, next(teacher.parameters()).dtype, torch.device("meta"))
    # A T5 whose vocabulary has grown holds one table under several names where another holds several tied ones.
    theirs, ours = (dict(model.named_modules(remove_duplicate=False)) for model in (teacher, made))
    for name in theirs | ours:
        kinds = [type(modules[name]) if name in modules else None for modules in (theirs, ours)]
        if kinds[0] is not kinds[1] and nn.Dropout not in kinds:
            is_, expected = (f"a {kind.__name__}" if kind else "missing" for kind in kinds)
            raise ValueError(
                f"teacher's {name} is {is_}, and {expected} in a model of its configuration, as the student is one; "
                "give a teacher that is as its configuration says"
            )
    shapes = {name: list(values.shape) for name, values in made.named_parameters()}
    known = {name for name, _ in made.named_parameters(remove_duplicate=False)}
    for name, values in teacher.named_parameters():
        if name not in known:
            raise ValueError(
                f"teacher's {name} is no weight of a model of its configuration; give a plain model, in which pruning "
                "and the like are final (torch.nn.utils.prune.remove)"
            )
        if name not in shapes:
            raise ValueError(
                f"teacher's {name} has values of its own, and shares them with another weight in a model of its "
                "configuration; set tie_word_embeddings to False there, or tie the teacher's too"
            )
        if list(values.shape) != shapes[name]:
            raise ValueError(
                f"teacher's {name} is of shape {list(values.shape)}, and {shapes[name]} in a model of its "
                "configuration; correct the configuration (num_labels is of heads)"
            )


def empty_model(teacher: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of the teacher's class without its values, which generates as the teacher does."""
    config = copy.deepcopy(config)
    config._attn_implementation = teacher.config._attn_implementation
    with torch.random.fork_rng(), device:
        model = type(teacher)._from_config(config, dtype=dtype)
    if getattr(teacher.base_model, "pooler", True) is None:
        model.base_model.pooler = None
    generate_alike(model, teacher)
    return model


def take_dtypes(student: nn.Module, teacher: nn.Module) -> None:
    """Give a student's weights and buffers the dtypes that the teacher's of the same names have.

    They are not all of one. Of a model that is loaded in half precision, transformers keeps some in float32: the
    frequencies of rotary positions, and a matrix of T5's feed-forward whose sums are too large for fp16.
    """
    theirs = {name: value.dtype for name, value in (*teacher.named_parameters(), *teacher.named_buffers())}
    for name, weight in student.named_parameters():
        weight.data = weight.data.to(theirs.get(name, weight.dtype))
    for name, buffer in list(student.named_buffers()):
        owner, _, key = name.rpartition(".")
        student.get_submodule(owner)._buffers[key] = buffer.to(theirs.get(name, buffer.dtype))


def generate_alike(student: Any, teacher: Any) -> None:
    """Have a student write texts as its teacher does: where they end, how the next token is drawn."""
    if getattr(teacher, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)


def chosen_layers(layers: int | Sequence[int], depth: int) -> list[int]:
    numbers = [layers] if isinstance(layers, Integral) else layers
    if not isinstance(numbers, Sequence) or any(isinstance(k, bool) or not isinstance(k, Integral) for k in numbers):
        raise TypeError(f"layers is {layers!r}; give a number of blocks, or a list of block numbers")
    chosen = [int(k) for k in numbers]
    if isinstance(layers, Integral):
        count = int(layers)
        if not 1 <= count <= depth:
            raise ValueError(f"layers is {count}; the teacher has {depth} blocks, keep 1 to {depth}")
        return [(s + 1) * depth // count - 1 for s in range(count)]
    if not chosen or any(not 0 <= k < depth for k in chosen) or chosen != sorted(set(chosen)):
        raise ValueError(f"layers is {chosen}; give rising block numbers from 0 to {depth - 1}")
    return chosen


def _set_depth(config: Any, tower: str, depth: int, kept: Sequence[int]) -> None:
    own = ("num_decoder_layers", "decoder_layers") if "decoder" in tower else ()
    attribute = next((name for name in own if hasattr(config, name)), _depth_field(config))
    if getattr(config, attribute, None) != depth:
        raise ValueError(
            f"{type(config).__name__}.{attribute} is not the {depth} blocks of {tower}; cannot change depth"
        )
    setattr(config, attribute, len(kept))
    follow_depth(config, depth, kept)
    if hasattr(config, "attention_types"):  # GPT-Neo's shorter way to write attention_layers, from which it is loaded
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    try:
        config.validate()
    except StrictDataclassError as error:
        raise ValueError(
            f"{type(config).__name__} allows no model of blocks {list(kept)} of {tower} alone "
            f"({error.__cause__ or error}); choose others"
        ) from error


def _depth_field(config: Any) -> str:
    return str(config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))


def follow_depth(config: Any, depth: int, kept: Sequence[int]) -> None:
    """Bring all fields of a configuration that have an entry for each of `depth` blocks to the blocks that are kept."""
    for name in ONE_A_BLOCK:
        value = getattr(config, name, None)
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, [value[k] for k in kept])
    stages = getattr(config, "stage_names", None)
    if stages is not None and len(stages) == depth + 1:  # of backbones: the first state, and one after each block
        after = {0: 0, **{block + 1: place + 1 for place, block in enumerate(kept)}}
        given = [after[k] for k in config.out_indices if k in after]
        config.stage_names = stages[: len(kept) + 1]
        config.set_output_features_output_indices(None, given or [len(kept)])


def follow_width(config: Any, old: Any, width: str, heads: str, names: Sequence[str]) -> None:
    """Bring the fields of a configuration that are its width once more, or a head's part of that, to its width.

    Args:
        config: with sizes of its own.
        old: that it was made of.
        width, heads: the fields with the width and the number of heads.
        names: of fields that follow where they are the width in `old`.
    """
    theirs, ours = getattr(old, width), getattr(config, width)
    for name in names:
        if getattr(old, name, None) == theirs:
            setattr(config, name, ours)
    if getattr(old, HEAD_SIZE, None) == theirs // getattr(old, heads):
        setattr(config, HEAD_SIZE, ours // getattr(config, heads))


HEAD_SIZE = "attention_head_size"
"""A field that some configurations of DeBERTa have: the hidden size over the number of heads."""


def fields_of_fewer(config: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's fields for an untrained student of some sizes.

    Args:
        config: the teacher's. Of its fields with an entry for each block those of fewer blocks are left.
        sizes: of the student, by the configuration's names.
    """
    found = copy.deepcopy(config)

    def sized(name: str) -> str | None:
        """Set a size; returns its field, None where it is no number."""
        own = str(config.attribute_map.get(name, name))
        theirs, ours = getattr(config, own, None), sizes.get(own, sizes.get(name, getattr(config, own, None)))
        if not (isinstance(theirs, int) and isinstance(ours, int) and ours >= 1) or isinstance(ours, bool):
            return None
        setattr(found, own, ours)
        return own

    width, heads = sized("hidden_size"), sized("num_attention_heads")
    if width and heads:
        follow_width(found, config, width, heads, ("pooler_hidden_size",))
    depth = _depth_field(config)
    theirs, ours = getattr(config, depth, None), sizes.get(depth, sizes.get("num_hidden_layers"))
    if isinstance(theirs, int) and isinstance(ours, int) and 1 <= ours < theirs:
        follow_depth(found, theirs, chosen_layers(ours, theirs))
    fields: dict[str, Any] = found.to_dict()
    return fields


ONE_A_BLOCK = (
    "layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers", "attention_window",
    "num_attention_heads_per_layer",
)  # fmt: skip
"""Fields of configurations that are lists with an entry for each block."""

READS_ALL_BLOCKS = "contact_head.regression.weight"
"""ESM's matrix that reads the attention of all heads, those of the first block first."""

PLACE = ("training", "layer_idx", "layer_id", "has_relative_attention_bias", "drop_prob", "seed")
"""What may differ between blocks that compute the same: the number of their place, rates and seeds that grow with it,
and the position bias, which T5's first block has for all."""


class _NoPlaceError(ValueError):
    """A teacher's block has parts that the student's in its place would not have.

    Attributes:
        instead: blocks of which none has such parts, one of them another; None if there are none.
    """

    def __init__(self, instead: list[int] | None, message: str) -> None:
        self.instead = instead
        super().__init__(message)


def _check_blocks(teacher: nn.Module, student: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Refuse a student whose blocks are built otherwise than the teacher's that they copy (another window, say)."""
    made = empty_model(teacher, teacher.config, next(teacher.parameters()).dtype, torch.device("meta"))
    for tower, blocks in kept.items():
        ours, theirs, fresh = (list(model.get_submodule(tower).children()) for model in (student, teacher, made))
        if len(ours) != len(blocks):
            raise ValueError(
                f"{type(teacher).__name__} made {len(ours)} blocks of {tower} where {len(blocks)} were wanted; build "
                "the student from a smaller config instead"
            )
        told = [_plain_values(block) for block in theirs]
        for position, block in enumerate(blocks):
            mine, other, usual = _plain_values(ours[position]), told[block], _plain_values(fresh[block])
            # What all of the teacher's blocks have alike may have been changed in its configuration: dropout, say.
            varying = [name for name in other if any(values.get(name) != other[name] for values in told)]
            differing = [name for name in varying if name in mine and mine[name] != other[name]]
            # Some blocks scale what they add by the depth. The depth itself may stand there too, and changes nothing.
            follow = (name for name in mine.keys() & usual if usual[name] == other[name] != len(theirs))
            differing += [name for name in follow if mine[name] != usual[name]]
            if differing:
                name = min(differing)
                raise ValueError(
                    f"student block {position} would have {name}={mine[name]!r} where the teacher's block {block} has "
                    f"{other[name]!r}; keep blocks of the same kinds in the same order, or build the student "
                    "from a smaller config"
                )
            names = [{name for name, _ in made.named_parameters()} for made in (ours[position], *theirs)]
            if lost := sorted(names[1 + block] - names[0]):
                alike = [
                    [*blocks[:position], k, *blocks[position + 1 :]]
                    for k in range(len(theirs))
                    if names[1 + k] == names[0]
                ]
                rising = next((given for given in alike if given == sorted(set(given))), None)
                raise _NoPlaceError(
                    rising,
                    f"student block {position} would have no {lost[0]}, which the teacher's block {block} has; keep "
                    f"blocks of the same kinds in the same places{f' (layers={rising})' if rising else ''}, or build "
                    "the student from a smaller config",
                )


def _plain_values(block: nn.Module) -> dict[str, Any]:
    """Numbers, truth values and texts that the modules of a block hold, by name."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in block.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and key not in PLACE
    }


def _renumbered(theirs: dict[str, Tensor], ours: dict[str, Tensor], kept: dict[str, list[int]]) -> dict[str, Tensor]:
    state = {}
    for name in ours:
        source = name
        for tower, blocks in kept.items():
            if name.startswith(f"{tower}."):
                index, _, rest = name[len(tower) + 1 :].partition(".")
                source = f"{tower}.{blocks[int(index)]}.{rest}"
                # T5's first block holds the position bias of all.
                inside = (key.removeprefix(f"{tower}.") for key in theirs if key.startswith(f"{tower}."))
                if [key for key in inside if key.partition(".")[2] == rest] == [f"0.{rest}"]:
                    source = f"{tower}.0.{rest}"
        if source not in theirs:
            raise ValueError(
                f"teacher has no {source}, and a model of its configuration has; give a teacher that is as its "
                "configuration says"
            )
        state[name] = theirs[source]
    return state
