"""Attention and feed-forward of one block: the student's matrices from the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from opdf.distill.shrink.choose import choose_groups, choose_units, retold, units_of
from opdf.distill.shrink.families import Attention, FeedForward
from opdf.distill.shrink.matrices import Matrix, Reader
from opdf.distill.shrink.moments import Moments, exact
from opdf.distill.shrink.ridge import Affine
from opdf.distill.shrink.stream import Call, Stream, input_of
from opdf.distill.shrink.truncate import truncate


class Branch(Protocol):
    """What a block adds to its stream: an output matrix, and the inner values that it reads.

    Attributes:
        teacher, student: the output matrices.
        narrower: whether the student has fewer inner values, so that `start` needs the teacher's second moments.
        reading: the student's matrices that read its states.
        unit: inner values that stay together: those of the heads that share keys and values, or a neuron's one.
    """

    teacher: Matrix
    student: Matrix
    reading: Sequence[Matrix]
    narrower: bool
    unit: int

    def teacher_inner(self, batch: int, states: Tensor) -> Tensor:
        """`[rows, inner]` of a batch, from its states `[rows, width]` after the norm."""
        ...

    def student_inner(self, batch: int, states: Tensor) -> Tensor:
        """The same of the student, whose states have its own width."""
        ...

    def start(self, reader: Reader, inner: Tensor | None, outgoing: Tensor) -> Tensor:
        """Set all of the student's matrices but the output.

        Args:
            reader: from the student's states to the teacher's.
            inner: `[inner, inner]`, second moments of the teacher's inner values, where `narrower`.
            outgoing: `[student width, inner]`, the teacher's output matrix in the student's coordinates.

        Returns:
            `[student width, student inner]`, a guess of the student's output matrix.
        """
        ...


class FeedForwardBranch:
    """Feed-forward of one block.

    Args:
        names: of its parts.
        teacher, student: the blocks.
    """

    def __init__(self, names: FeedForward, teacher: nn.Module, student: nn.Module) -> None:
        self._names, self._blocks = names, (teacher, student)
        self.teacher, self.student = (Matrix(block, names.output) for block in self._blocks)
        self.narrower = self.student.weight.shape[1] < self.teacher.weight.shape[1]
        self.unit = 1
        self.reading: Sequence[Matrix] = [Matrix(student, part) for part in (names.up, names.gate) if part is not None]

    def teacher_inner(self, batch: int, states: Tensor) -> Tensor:
        return self._inner(self._blocks[0], states)

    def student_inner(self, batch: int, states: Tensor) -> Tensor:
        return self._inner(self._blocks[1], states)

    def _inner(self, block: nn.Module, states: Tensor) -> Tensor:
        names = self._names
        up = names.up.outputs(block, states)
        activation: Callable[[Tensor], Tensor] = block.get_submodule(names.activation)
        return activation(up) if names.gate is None else activation(names.gate.outputs(block, states)) * up

    def start(self, reader: Reader, inner: Tensor | None, outgoing: Tensor) -> Tensor:
        kept = torch.arange(self.student.weight.shape[1], device=outgoing.device)
        if inner is not None:
            kept = choose_units(inner, outgoing.norm(dim=0), len(kept))
            outgoing = outgoing @ retold(inner, kept)
        for part in (self._names.up, self._names.gate):
            if part is not None:
                theirs, ours = (Matrix(block, part) for block in self._blocks)
                weight, bias = reader.read(theirs)
                ours.set(Affine(weight[kept], bias[kept]))
        return outgoing


@dataclass(frozen=True)
class HeadSizes:
    """Query heads, key-value heads and the size of each."""

    heads: int
    groups: int
    size: int


class AttentionBranch:
    """Attention of one block.

    Args:
        names: of its parts.
        teacher, student: the blocks.
        sizes: of the teacher's and the student's heads.
        stream: the states that attend; with the teacher's calls.
        block: the number of the teacher's block, whose calls are repeated.
        memory: the encoder's final states and their reader, for cross-attention.
        kept: the heads to keep, where all blocks have to keep the same.
        relative: `[distances, student width]`, the student's states of distances, where queries and keys read such.
    """

    def __init__(
        self,
        names: Attention,
        teacher: nn.Module,
        student: nn.Module,
        sizes: tuple[HeadSizes, HeadSizes],
        stream: Stream,
        block: int,
        memory: tuple[Stream, Reader] | None = None,
        kept: Tensor | None = None,
        relative: Tensor | None = None,
    ) -> None:
        self._names, self._blocks, self._sizes = names, (teacher, student), sizes
        self._stream, self._block, self._memory, self._kept = stream, block, memory, kept
        self._relative = relative
        self.teacher, self.student = (Matrix(b, names.output) for b in self._blocks)
        self.narrower = sizes[0] != sizes[1]
        self.unit = sizes[1].heads // sizes[1].groups * sizes[1].size
        self.reading: Sequence[Matrix] = [Matrix(student, part) for part in names.reads]

    def teacher_inner(self, batch: int, states: Tensor) -> Tensor:
        memory = None if self._memory is None else self._memory[0].teacher[batch]
        return self._inner(self._blocks[0], batch, states, memory, self._call(batch))

    def student_inner(self, batch: int, states: Tensor) -> Tensor:
        call = self._call(batch).to(states.dtype)
        bias = call.kwargs.get("position_bias")
        if bias is not None:  # zero in cross-attention, so that any heads will do
            kept = slice(self._sizes[1].heads) if self._kept is None else self._kept
            call = call.replaced(position_bias=bias[:, kept])
        if self._relative is not None:
            call = call.replaced(rel_embeddings=self._relative)
        memory = None if self._memory is None else self._memory[0].student[batch]
        return self._inner(self._blocks[1], batch, states, memory, call)

    def _call(self, batch: int) -> Call:
        return self._stream.calls[batch][self._block, self._names.module]

    def _inner(self, block: nn.Module, batch: int, states: Tensor, memory: Tensor | None, call: Call) -> Tensor:
        extra: dict[str, Any] = {}
        if memory is not None:
            assert self._memory is not None
            assert self._names.memory is not None
            extra[self._names.memory] = self._memory[0].padded(batch, memory)
        attention, output = (block.get_submodule(n) for n in (self._names.module, self._names.output.name))
        padded = self._stream.padded(batch, states)
        inner = input_of(output, lambda: attention(padded, *call.args, **call.kwargs, **extra))
        return self._stream.rows(batch, inner)

    def start(self, reader: Reader, inner: Tensor | None, outgoing: Tensor) -> Tensor:
        memory = reader if self._memory is None else self._memory[1]
        read = [
            _by_head(source.read(Matrix(self._blocks[0], part)), self._sizes[0].size)
            for source, part in zip((reader, memory, memory), self._names.reads, strict=True)
        ]
        if inner is None:
            query, key, value = read
        else:
            (query, key, value), outgoing = self._fewer(read, inner, outgoing, (reader.moments, memory.moments))
        scale = (self._scaling(0) / self._scaling(1)) ** 0.5
        for part, heads in zip(self._names.reads, (query * scale, key * scale, value), strict=True):
            flat = heads.flatten(0, 1)
            Matrix(self._blocks[1], part).set(Affine(flat[:, :-1], flat[:, -1]))
        for name in self._names.head_norms:
            self._blocks[1].get_submodule(name).load_state_dict(self._blocks[0].get_submodule(name).state_dict())
        return outgoing

    def _fewer(
        self, read: list[Tensor], inner: Tensor, outgoing: Tensor, moments: tuple[Moments, Moments]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Queries, keys and values of the student's heads, and its output matrix for these."""
        theirs, ours = self._sizes
        query, key, value = read
        queries, groups = choose_heads(inner, outgoing, theirs, ours, self._kept)
        own = torch.isin(queries // (theirs.heads // theirs.groups), groups)  # the others only fill groups up
        units = units_of(queries[own], theirs.size)
        told = outgoing.new_zeros(len(outgoing), ours.heads, theirs.size)
        told[:, own] = (outgoing @ retold(inner, units)).view(len(outgoing), -1, theirs.size)
        if ours.size == theirs.size:
            return (query[queries], key[groups], value[groups]), told.flatten(1)
        asks = _second_moments(query[queries], moments[0], constant=True)
        tells = _second_moments(key[groups], moments[1], constant=False)
        if self._relative is not None:
            asks += _moments_of(query[queries], self._relative)
            tells += _moments_of(key[groups], self._relative)
        left, right = truncate(asks, tells, ours.size)
        heads = inner.view(theirs.heads, theirs.size, theirs.heads, theirs.size)[queries, :, queries]
        down, up = truncate(told.movedim(1, 0).mT @ told.movedim(1, 0), heads, ours.size)
        spare = [k for k in range(theirs.heads) if k not in set(queries.tolist())]
        wide = (
            left @ query[queries],
            _filled(right @ key[groups], key[spare], theirs.size),
            _filled(up @ value[groups], value[spare], theirs.size),
        )
        return wide, torch.einsum("dhr,hsr->dhs", told, down).flatten(1)

    def _scaling(self, side: int) -> float:
        """The factor of the products of queries and keys."""
        owner: Any = self._blocks[side].get_submodule(self._names.reads[0].name.rpartition(".")[0])
        return float(getattr(owner, "scaling", self._sizes[side].size ** -0.5))


def choose_heads(
    inner: Tensor, outgoing: Tensor, theirs: HeadSizes, ours: HeadSizes, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The teacher's heads that the student keeps, in the student's order.

    Groups of key-value heads are chosen first, then query heads in these groups. If a student's group has more query
    heads than the teacher's, heads of other groups fill it up.

    Args:
        inner: `[units, units]`, second moments of what the teacher's heads gather.
        outgoing: `[student width, units]`, what reads it.
        theirs, ours: sizes.
        kept: query heads that are chosen already; every one has keys and values of its own then.

    Returns:
        Indices of query heads and of key-value heads.
    """
    if kept is not None:
        return kept, kept
    share, wanted = theirs.heads // theirs.groups, ours.heads // ours.groups
    groups = choose_groups([inner], [outgoing], share * theirs.size, ours.groups)
    chosen = []
    for group in groups.tolist():
        first = group * share
        units = slice(first * theirs.size, (first + share) * theirs.size)
        best = choose_groups([inner[units, units]], [outgoing[:, units]], theirs.size, min(share, wanted))
        chosen.append((first + best).tolist())
    others = [k for k in range(theirs.heads) if k // share not in groups.tolist()]
    for mine in chosen:
        while len(mine) < wanted:
            mine.append(others.pop(0) if others else mine[0])
    return torch.tensor(chosen, device=inner.device).flatten(), groups


def _by_head(read: Affine, size: int) -> Tensor:
    """`[heads, size, width + 1]`, the bias as the last column."""
    whole = torch.cat([read.weight, read.bias[:, None]], 1)
    return whole.view(-1, size, whole.shape[1])


def _second_moments(heads: Tensor, moments: Moments, *, constant: bool) -> Tensor:
    """`[heads, size, size]`, of what the rows of heads read.

    A key that is the same for all tokens changes no attention, so without `constant` only the variance counts.
    """
    xx, _ = moments.covariances(not constant)
    if not constant:
        return heads[..., :-1] @ xx @ heads[..., :-1].mT
    mean, _ = moments.means()
    whole = torch.cat([torch.cat([xx, mean[:, None]], 1), torch.cat([mean, mean.new_ones(1)])[None]], 0)
    return heads @ whole @ heads.mT


def _moments_of(heads: Tensor, states: Tensor) -> Tensor:
    """`[heads, size, size]`, of what the rows of heads read of some states `[rows, width]`."""
    rows = torch.nn.functional.pad(exact(states), (0, 1), value=1.0)
    return heads @ (rows.mT @ rows / len(rows)) @ heads.mT


def _filled(heads: Tensor, spare: Tensor, size: int) -> Tensor:
    """Heads whose rows after the first `size`, which are zero, are replaced by those of heads that are not kept."""
    own, added = heads[:, :size], heads[:, size:].flatten(0, 1)
    rows = spare.flatten(0, 1)[: len(added)]
    added = torch.cat([rows, added[len(rows) :]])
    return torch.cat([own, added.view(len(heads), -1, heads.shape[2])], 1)
