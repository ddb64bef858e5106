"""Finding the matrices of a model, and each kind's view as rows (output features) by columns (input features)."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from opdf.overparam.shapes import MPOShape, undivided


@dataclass(frozen=True)
class Matrix:
    """One weight of a model, seen as a matrix of output by input features.

    Attributes:
        name: the parameter's name in the model.
        transposed: whether the weight's rows are input features, as in GPT-2's Conv1D.
        weight_shape: the parameter's own shape; a convolution's kernel counts as input features.
        shape: the cores that it is trained as. One core, the matrix itself, until that is planned.
        blocks: name of the list of transformer blocks that holds it, or "" outside of any.
        block: its index in that list.
        role: the rest of the name, alike in every block.
    """

    name: str
    transposed: bool
    weight_shape: tuple[int, ...]
    shape: MPOShape
    blocks: str = ""
    block: int = 0
    role: str = ""

    @property
    def module(self) -> str:
        """The name of the module that holds it."""
        return self.name.rpartition(".")[0]

    @property
    def rows(self) -> int:
        return self.shape.rows

    @property
    def cols(self) -> int:
        return self.shape.cols

    def of(self, weight: Tensor) -> Tensor:
        """The parameter or its gradient as `[rows, cols]`, a view."""
        return _as_matrix(weight, self.transposed)

    def weight(self, matrix: Tensor) -> Tensor:
        """Inverse of `of`: `[rows, cols]` in the parameter's shape."""
        return matrix.mT if self.transposed else matrix.reshape(self.weight_shape)


def _as_matrix(weight: Tensor, transposed: bool) -> Tensor:
    return weight.mT if transposed else weight.flatten(1)


def find_matrices(
    model: nn.Module, targets: str | Sequence[str], exclude: Sequence[str], *, trainable_only: bool = True
) -> list[Matrix]:
    """The matrices of `model` that `targets` names, in the model's order, tied ones once, frozen ones if asked.

    Raises:
        ValueError: nothing matches, a pattern matches nothing, an explicitly named weight is tied to one that is not a
            target (an embedding, say), or a weight is empty or holds NaN or infinity.
        TypeError: a matching weight is quantized or not floating-point, or targets are no names.
    """
    if not targets or not isinstance(targets, Sequence):
        raise TypeError(f"targets is {targets!r}; give 'blocks', 'all-linear' or a list of name patterns")
    candidates = list(_candidates(model))
    chosen = _targeted(model, targets, candidates, [m for m in candidates if not _matches_any(m, exclude)])
    if targets == "blocks" and trainable_only:
        _warn_of_experts(model, {m.blocks for m in chosen})
    _check_patterns(exclude, candidates, "exclude")
    chosen = _untie(model, chosen, explicit=not isinstance(targets, str))
    trained = [m for m in chosen if model.get_parameter(m.name).requires_grad or not trainable_only]
    if not trained:
        for matrix in chosen:
            _check_dtype(matrix.name, model.get_parameter(matrix.name))
        raise ValueError(f"targets={targets!r} with exclude={list(exclude)} leaves no trainable matrix")
    for matrix in trained:
        _check_weight(matrix.name, model.get_parameter(matrix.name))
    return trained


def _targeted(
    model: nn.Module, targets: str | Sequence[str], candidates: Sequence[Matrix], allowed: Sequence[Matrix]
) -> list[Matrix]:
    """Those of the `allowed` matrices that `targets` names. A pattern has to match one of all `candidates`."""
    if targets == "blocks":
        chosen = [m for m in allowed if m.blocks]
        if not chosen:
            whole = "" in block_lists(model) and not any(m.blocks for m in candidates)
            raise ValueError(
                f"the model is itself a list of blocks ({type(model).__name__}): give the module that holds it, or "
                if whole
                else f"targets 'blocks' found no attention blocks in {type(model).__name__}; "
                "set targets to 'all-linear' or to patterns of names, e.g. ['*.conv1', '*.conv2']"
            )
        return chosen
    if targets == "all-linear":
        return [m for m in allowed if not isinstance(model.get_submodule(m.module), nn.modules.conv._ConvNd)]
    _check_patterns(targets, candidates)
    chosen = [m for m in allowed if _matches_any(m, targets)]
    for matrix in chosen:  # also where it is frozen, as quantized weights are: its name was given
        _check_dtype(matrix.name, model.get_parameter(matrix.name))
    return chosen


def _warn_of_experts(model: nn.Module, lists: Collection[str]) -> None:
    """Warn of weights in blocks that are no matrices: one tensor of experts can hold most of a model's parameters."""
    blocks = tuple(f"{name}." for name in lists)
    tensors = [
        name
        for name, module in model.named_modules()
        if f"{name}.".startswith(blocks) and not isinstance(module, nn.modules.conv._ConvNd)
        for p in module.parameters(recurse=False)
        if p.dim() > 2 and min(p.shape) > 1
    ]
    if tensors:
        warnings.warn(
            f"{len(tensors)} weights of blocks have more than two dimensions (experts, say) and are trained as they "
            f"are, e.g. of {tensors[0]}",
            stacklevel=5,
        )


def matches(matrix: Matrix, pattern: str) -> bool:
    """Whether a pattern names a matrix: its module's or parameter's full name, or the end of it after a dot."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for name in (matrix.module, matrix.name))


def _matches_any(matrix: Matrix, patterns: Sequence[str]) -> bool:
    return any(matches(matrix, pattern) for pattern in patterns)


def _check_patterns(patterns: Sequence[str], candidates: Sequence[Matrix], argument: str = "targets") -> None:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} holds {pattern!r}; give name patterns as strings")
        if not any(matches(m, pattern) for m in candidates):
            leaves = sorted({m.module.rpartition(".")[2] for m in candidates})
            close = difflib.get_close_matches(pattern.rpartition(".")[2], leaves, n=1, cutoff=0.5)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{argument} pattern {pattern!r} matches no matrix{meant or ';'} names end in: {', '.join(leaves)}"
            )


def _candidates(model: nn.Module) -> Iterator[Matrix]:
    named = [name for blocks in block_lists(model) for name in (blocks, *lists_beside(model, blocks))]
    lists = {name: list(model.get_submodule(name)._modules) for name in named}
    for module_name, module in model.named_modules():
        for parameter_name, transposed in _weights_of(module):
            weight = getattr(module, parameter_name)
            if not isinstance(weight, nn.Parameter):  # weight_norm and others compute it anew in every forward pass
                continue
            rows, cols = _as_matrix(weight, transposed).shape
            name = f"{module_name}.{parameter_name}" if module_name else parameter_name
            shape = undivided(max(rows, 1), max(cols, 1))  # an empty weight is refused later, if it is chosen
            yield Matrix(name, transposed, tuple(weight.shape), shape, *_place(name, lists))


def _weights_of(module: nn.Module) -> list[tuple[str, bool]]:
    """Names of a module's matrices, and whether they are transposed."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return [("weight", False)]
    if isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return [(name, False) for name in names if getattr(module, name) is not None]
    # transformers.pytorch_utils.Conv1D, recognised without importing transformers.
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return [("weight", True)]
    return []


def block_lists(model: nn.Module) -> list[str]:
    """Names of the lists of transformer blocks: all elements contain attention, and none a further such list.

    That takes T5's `block` and not the `layer` list inside a block, and Swin's `blocks` and not its stages.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and all(map(_has_attention, module))
    }
    return [name for name in lists if not any(other.startswith(f"{name}.") for other in lists)]


def lists_beside(model: nn.Module, blocks: str) -> list[str]:
    """Names of lists beside one of blocks that have an entry for each of them, as XLM's of feed-forwards and norms."""
    if not blocks:  # the model itself is the list
        return []
    owner, depth = blocks.rpartition(".")[0], len(list(model.get_submodule(blocks).children()))
    beside = ((f"{owner}.{name}" if owner else name, m) for name, m in model.get_submodule(owner).named_children())
    return [
        name for name, module in beside if name != blocks and isinstance(module, nn.ModuleList) and len(module) == depth
    ]


def _has_attention(module: nn.Module) -> bool:
    return any("attention" in type(m).__name__.lower() for m in module.modules())


def _place(name: str, lists: Mapping[str, Sequence[str]]) -> tuple[str, int, str]:
    for blocks, children in lists.items():
        if name.startswith(f"{blocks}."):
            block, _, role = name[len(blocks) + 1 :].partition(".")
            return blocks, children.index(block), role
    return "", 0, name


def _untie(model: nn.Module, chosen: list[Matrix], explicit: bool) -> list[Matrix]:
    names_of: dict[int, list[str]] = {}
    for module_name, module in model.named_modules():  # each once: a block that stands in several places ties nothing
        for name, parameter in module.named_parameters(module_name, recurse=False, remove_duplicate=False):
            names_of.setdefault(id(parameter), []).append(name)
    chosen_as = {m.name: m.transposed for m in chosen}
    kept: list[Matrix] = []
    seen: set[int] = set()
    for matrix in chosen:
        key = id(model.get_parameter(matrix.name))
        strangers = [n for n in names_of.get(key, []) if chosen_as.get(n) != matrix.transposed]
        if strangers and explicit:
            raise ValueError(
                f"{matrix.name} shares its tensor with {strangers[0]}, which is not a target; "
                f"add {matrix.module!r} to exclude, or untie the two"
            )
        if not strangers and key not in seen:
            seen.add(key)
            kept.append(matrix)
    return kept


def _check_dtype(name: str, weight: Tensor) -> None:
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise TypeError(
            f"{name} is {weight.dtype}; over-parameterization needs float weights: load it unquantized, or leave it "
            "out with exclude"
        )


def _check_weight(name: str, weight: Tensor) -> None:
    _check_dtype(name, weight)
    if not weight.numel():
        raise ValueError(f"{name} is empty (shape {tuple(weight.shape)}); leave it out with exclude")
    if not weight.is_meta and not torch.isfinite(weight).all():
        raise ValueError(f"{name} holds NaN or infinite entries; repair the weights before over-parameterizing")
