"""From embeddings to heads: every part of a student is fitted to what the parts before it make of the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from opdf.distill.models import has_no_head
from opdf.distill.shrink.basis import Basis
from opdf.distill.shrink.branches import AttentionBranch, Branch, FeedForwardBranch, HeadSizes
from opdf.distill.shrink.calibration import Calibration, Chosen, has_room
from opdf.distill.shrink.choose import choose_groups, choose_units, retold
from opdf.distill.shrink.families import Attention, Family, Head, Tower, attentions
from opdf.distill.shrink.matrices import Matrix, Reader
from opdf.distill.shrink.merge import Source, start_from
from opdf.distill.shrink.moments import Moments, exact
from opdf.distill.shrink.norms import fit_norm, has_shift, is_norm, plain, set_norm
from opdf.distill.shrink.report import BlockReport, ShrinkReport
from opdf.distill.shrink.ridge import STRENGTH_OF_HEADS, Affine, explained, ridge
from opdf.distill.shrink.sizes import block_groups, has_part, head_sizes
from opdf.distill.shrink.stream import Stream, input_of

Passed = dict[Any, list[tuple[int, list[Tensor]]]]
"""What branches of the teacher's blocks have read, by the branch's names: the block, and its states for each batch."""


class Fit:
    """A teacher, the student that is fitted to it, and the basis that the student lives in.

    Args:
        teacher, student: of one class, on one device.
        family: of both.
        basis: of the residual stream.
        calibration: the teacher's pass over the examples.
        report: is filled in.
    """

    def __init__(
        self, teacher: Any, student: Any, family: Family, basis: Basis, calibration: Calibration, report: ShrinkReport
    ) -> None:
        self.teacher, self.student, self.family = teacher, student, family
        self.basis, self.calibration, self.report = basis, calibration, report
        self._finals: dict[str, Reader] = {}
        self._kept: Tensor | None = None
        self._relative: Tensor | None = None

    def embeddings(self) -> None:
        """Every table times the projection."""
        skipped = {
            id(p)
            for tower in self.family.towers
            if tower.entry and has_part(self.teacher.base_model, tower.entry)
            for p in self.teacher.base_model.get_submodule(tower.entry).parameters()
        }
        for name in self.family.embeddings:
            ours = dict(self.student.base_model.get_submodule(name).named_parameters())
            for key, theirs in self.teacher.base_model.get_submodule(name).named_parameters():
                if id(theirs) not in skipped:
                    ours[key].data.copy_(_projected(theirs.detach(), self.basis.project))

    def tower(self, tower: Tower, told: Callable[[], None]) -> None:
        """All blocks of a tower, in order."""
        theirs, ours = (m.base_model.get_submodule(tower.blocks) for m in (self.teacher, self.student))
        stream = self.calibration.streams[tower.blocks]
        self._enter(tower, stream)
        self._kept, self._relative = self._shared_heads(tower), self._distances(tower)
        for index, (first, last) in enumerate(block_groups(self.family, len(ours), len(theirs))):
            passed: Passed = {names: [] for names in tower.branches}
            for block in range(first, last):
                self._advance(tower, stream, block, passed)
            kept = {}
            for names in tower.branches:
                norm = ours[index].get_submodule(names.norm)
                if self.family.pre_norm:
                    plain(norm, theirs[last].get_submodule(names.norm), self.basis.expand)
                sources = [
                    self._source(tower, names, block, index, states)
                    for block, states in passed[names]
                    if self._can_give(tower, names, block, last)
                ]
                sources.append(self._source(tower, names, last, index))
                norms = theirs[last].get_submodule(names.norm), norm
                kept[_title(names)] = self._fit(sources, norms, stream)
            self.report.blocks.append(BlockReport(tower.blocks, index, (first, last), kept))
            told()
        self._finish(tower, stream)

    def _shared_heads(self, tower: Tower) -> Tensor | None:
        """The heads that all blocks keep, because they share a table with a column for each."""
        if tower.position_bias is None:
            return None
        shared = next(a for a in attentions(tower) if tower.shares_heads(a))
        theirs = self.teacher.base_model.get_submodule(tower.blocks)
        sizes = self._sizes()
        kept = torch.arange(sizes[0].heads, device=self.basis.project.device)
        if sizes[0].heads != sizes[1].heads:
            outgoing = [self.basis.project.mT @ Matrix(block, shared.output).weight for block in theirs]
            found = [self.calibration.inner[tower.blocks, k, shared.output.name] for k in range(len(theirs))]
            inner = [moments.covariances(False)[0] for moments in found]
            kept = choose_groups(inner, outgoing, sizes[0].size, sizes[1].heads)
        table, target = (m.base_model.get_submodule(tower.position_bias).weight for m in (self.teacher, self.student))
        target.copy_(table[:, kept])
        return kept

    def _distances(self, tower: Tower) -> Tensor | None:
        """The student's states of distances, `[distances, width]`: the teacher's in the student's coordinates."""
        teacher, student = self.teacher.base_model, self.student.base_model
        if tower.relative is None or not has_part(teacher, tower.relative):
            return None
        theirs, ours = (model.get_submodule(tower.relative).weight for model in (teacher, student))
        ours.copy_(exact(theirs) @ self.basis.project)
        stream = Stream(teacher=[theirs.detach()], student=[ours.detach()], weights=[[None]])
        if tower.relative_norm and has_part(teacher, tower.relative_norm):
            norms = (model.get_submodule(tower.relative_norm) for model in (teacher, student))
            self._normalize(next(norms), next(norms), stream)
        return stream.student[0]

    def _sizes(self) -> tuple[HeadSizes, HeadSizes]:
        return head_sizes(self.teacher.config, self.family), head_sizes(self.student.config, self.family)

    def _enter(self, tower: Tower, stream: Stream) -> None:
        """The student's first states."""
        first = self.student.base_model.get_submodule(tower.entry or f"{tower.blocks}.0")
        for batch, inputs in enumerate(self.calibration.inputs):
            states = input_of(first, partial(self.student, **inputs))
            stream.student.append(stream.rows(batch, states))
        if tower.entry:
            theirs = self.teacher.base_model.get_submodule(tower.entry)
            self._normalize(nn.Identity() if self.family.pre_norm else theirs, first, stream)

    def _normalize(self, theirs: nn.Module, ours: nn.Module, stream: Stream) -> None:
        """Fit a norm that stands in the stream, and put both streams through.

        Args:
            theirs: the teacher's; an identity if its stream is through already.
            ours: the student's.
            stream: that it stands in.
        """
        moments = self._moments(*self.basis.project.shape[::-1])
        set_norm(ours, torch.ones(()))
        for batch, states in enumerate(stream.teacher):
            stream.teacher[batch] = theirs(states)
            moments.add(ours(stream.student[batch]), stream.teacher[batch], stream.weights[batch][0])
        project = self.basis.project
        fit_norm(ours, moments, torch.eye(project.shape[1]).to(project), project.mT)
        for batch, states in enumerate(stream.student):
            stream.student[batch] = ours(states)

    def _branch(self, tower: Tower, names: Any, theirs: nn.Module, ours: nn.Module, block: int) -> Branch:
        if not isinstance(names, Attention):
            return FeedForwardBranch(names, theirs, ours)
        streams = self.calibration.streams
        memory = None
        if names.memory is not None:
            assert tower.memory is not None
            memory = streams[tower.memory], self._finals[tower.memory]
        kept = self._kept if tower.shares_heads(names) else None
        own, sizes = streams[tower.blocks], self._sizes()
        return AttentionBranch(names, theirs, ours, sizes, own, block, memory, kept, self._relative)

    def _can_give(self, tower: Tower, names: Any, block: int, last: int) -> bool:
        """Whether heads or neurons of a block can stand in a branch that is made like the last one's.

        Heads cannot that come with a norm of their block's, share a table with all blocks, or see other tokens.
        """
        if not isinstance(names, Attention):
            return True
        calls = self.calibration.streams[tower.blocks].calls
        alike = all(some[block, names.module].same(some[last, names.module]) for some in calls)
        return alike and not names.head_norms and not tower.shares_heads(names)

    def _source(
        self, tower: Tower, names: Any, block: int, index: int, states: Sequence[Tensor] | None = None
    ) -> Source:
        """What a branch of the teacher's gives to the student's: a reader of its inputs from the student's states.

        Args:
            tower, names: of the branch.
            block: of the teacher; index: of the student.
            states: what the teacher's branch reads, before the norm, for each batch. Without them it reads the stream,
                and the stream is put through it.
        """
        theirs, ours = (m.base_model.get_submodule(tower.blocks) for m in (self.teacher, self.student))
        branch = self._branch(tower, names, theirs[block], ours[index], block)
        norm, own_norm = theirs[block].get_submodule(names.norm), ours[index].get_submodule(names.norm)
        before = (norm, own_norm) if self.family.pre_norm else (nn.Identity(), nn.Identity())
        stream = self.calibration.streams[tower.blocks]
        known = self.calibration.inner.get((tower.blocks, block, names.output.name))
        reads = self._moments(*self.basis.project.shape[::-1])
        own = self._moments(branch.teacher.weight.shape[1], 0) if branch.narrower and known is None else None
        for batch, some in enumerate(stream.teacher if states is None else states):
            normed = before[0](some)
            reads.add(before[1](stream.student[batch]), normed, stream.weights[batch][0])
            output = partial(_output, branch, batch, normed)
            if own is not None:
                values = branch.teacher_inner(batch, normed)
                own.add(values, weights=stream.weights[batch][1])
                output = partial(branch.teacher, values)
            if states is None:
                stream.advance(batch, output)
        inner = known or own
        covariance = None if inner is None else inner.covariances(branch.teacher.bias is not None)[0]
        outgoing = self.basis.project.mT @ branch.teacher.weight
        return Source(branch, Reader(reads, self._guess(reads, norm)), covariance, outgoing)

    def _fit(self, sources: Sequence[Source], norms: tuple[Any, Any], stream: Stream) -> float:
        """Fit one branch of a block and put the student's stream through.

        Args:
            sources: the teacher's branches that it stands for; the stream is behind the last one.
            norms: of the teacher's last block and the student's, before the branch or after it.
            stream: that the branch adds to.

        Returns:
            The share of the variance that the branch reads.
        """
        branch = sources[-1].branch
        constant = branch.student.bias is not None
        read = [norms[1](states) for states in stream.student] if self.family.pre_norm else stream.student
        guess = start_from(sources, read, [weights[0] for weights in stream.weights], constant)
        moments = self._moments(guess.shape[1], guess.shape[0])
        project = self.basis.project.to(stream.student[0])
        keep = has_room(guess.shape[1] * sum(map(len, stream.student)))
        kept: list[Tensor] = []
        for batch, states in enumerate(stream.student):
            missing = stream.teacher[batch].to(project.dtype) @ project - states
            values = branch.student_inner(batch, read[batch])
            moments.add(values, missing, stream.weights[batch][0])
            if keep:
                kept.append(values)
        branch.student.set(ridge(moments, guess, constant=constant))
        for batch, states in enumerate(stream.student):
            values = kept[batch] if keep else branch.student_inner(batch, read[batch])
            stream.student[batch] = states + branch.student(values)
        if not self.family.pre_norm:
            self._normalize(*norms, stream)
        return explained(sources[-1].reader.moments)

    def _guess(self, reads: Moments, norm: Any) -> Tensor:
        """The teacher's states from the student's, if the basis were all that is lost."""
        guess = self.basis.expand
        if not self.family.pre_norm or not is_norm(norm):
            return guess
        guess = exact(norm.weight)[:, None] * guess
        xx, xy = reads.covariances(has_shift(norm))
        told = ((guess @ xx) * guess).sum()
        return guess * ((guess.mT * xy).sum() / told) if told > 0 else guess  # a norm of scale 0 tells nothing

    def _advance(self, tower: Tower, stream: Stream, block: int, passed: Passed) -> None:
        """Put the teacher's stream through a block that has no block of the student to itself.

        Args:
            passed: what its branches read is added here.
        """
        module = self.teacher.base_model.get_submodule(tower.blocks)[block]
        for names in tower.branches:
            branch = self._branch(tower, names, module, module, block)
            before, after = module.get_submodule(names.norm), nn.Identity()
            if not self.family.pre_norm:
                before, after = after, before
            passed[names].append((block, list(stream.teacher)))
            for batch, states in enumerate(stream.teacher):
                stream.advance(batch, partial(_output, branch, batch, before(states)))
                stream.teacher[batch] = after(stream.teacher[batch])

    def _finish(self, tower: Tower, stream: Stream) -> None:
        """Fit the norm after the last block and the reader of the final states."""
        theirs, ours = (
            m.base_model.get_submodule(tower.final) if tower.final else nn.Identity()
            for m in (self.teacher, self.student)
        )
        for batch, states in enumerate(stream.teacher):
            stream.teacher[batch] = theirs(states)
        if tower.final:
            self._final_norm(tower, theirs, ours, stream)
        moments = self._moments(*self.basis.project.shape[::-1])
        for batch, states in enumerate(stream.student):
            stream.student[batch] = ours(states)
            moments.add(stream.student[batch], stream.teacher[batch])
        guess = self._guess(moments, theirs) if tower.final and not self._same_width else self.basis.expand
        self._finals[tower.blocks] = Reader(moments, guess)

    @property
    def _same_width(self) -> bool:
        """Whether the student's coordinates are the teacher's."""
        return self.basis.project.shape[0] == self.basis.project.shape[1]

    def _final_norm(self, tower: Tower, theirs: nn.Module, ours: nn.Module, stream: Stream) -> None:
        readout = self._fixed_readout()
        if readout is None or tower.blocks != list(self.calibration.streams)[-1]:
            if self._same_width:  # so that final states can be compared (`HiddenDistillation`)
                ours.load_state_dict(theirs.state_dict())
                return None
            return plain(ours, theirs, self.basis.expand)
        set_norm(ours, torch.ones(()))
        moments = self._moments(*self.basis.project.shape[::-1])
        for batch, states in enumerate(stream.student):
            moments.add(ours(states), stream.teacher[batch], stream.weights[batch][0])
        return fit_norm(ours, moments, *readout)

    def _fixed_readout(self) -> tuple[Tensor, Tensor] | None:
        """The matrices that read the final states and cannot be fitted: a tied head, or the identity for a user."""
        if has_no_head(self.teacher):
            return torch.eye(self.basis.project.shape[1]).to(self.basis.project), self.basis.project.mT
        theirs, ours = (m.get_output_embeddings() for m in (self.teacher, self.student))
        if not is_tied(self.student, ours):
            return None
        readout, target = exact(ours.weight), exact(theirs.weight)
        if getattr(self.teacher.config, "scale_decoder_outputs", False):  # T5: by the root of the width
            readout, target = readout * readout.shape[1] ** -0.5, target * target.shape[1] ** -0.5
        return readout, target

    def head(self, head: Head) -> None:
        """A head, at the tokens that it reads."""
        if head.second and not self._follows(head):
            self.head(Head(head.first, head.activation, norm=head.norm))
            return self.head(Head(head.second))
        theirs, ours = Matrix(self.teacher, head.first), Matrix(self.student, head.first)
        if is_tied(self.student, ours.module):
            return None
        first = list(self._finals.values())[-1].read(theirs)
        if head.activation is None and head.first not in self.calibration.chosen[0]:
            return ours.set(first)
        batches = range(len(self.calibration.inputs))
        read = [self._read(head.first, batch) for batch in batches]
        told = (theirs(self._chosen(head.first, batch).states) for batch in batches)
        if head.activation is None:
            return ours.set(self._refit(read, told, first.weight, ours))
        return self._two_layers(head, first, read, list(told))

    def _follows(self, head: Head) -> bool:
        """Whether a head's second layer reads what its first one gives: a class of the user's own may use the names."""
        module, activation = self.teacher.get_submodule(head.first), ACT2FN[head.activation]
        for batch in range(len(self.calibration.inputs)):
            first, second = (self._chosen(name, batch).states for name in (head.first, str(head.second)))
            given = _normed(self.teacher, head, activation(module(first)))
            if given.shape != second.shape or not torch.allclose(given, second, rtol=1e-3, atol=1e-3):
                return False
        return True

    def _chosen(self, name: str, batch: int) -> Chosen:
        """What a layer of the teacher's head reads of a batch."""
        states = list(self.calibration.streams.values())[-1].teacher[batch]
        return self.calibration.chosen[batch].get(name, Chosen(states, None))

    def _read(self, name: str, batch: int) -> Tensor:
        """What a layer of the student's head reads of a batch."""
        stream = list(self.calibration.streams.values())[-1]
        if name not in self.calibration.chosen[batch]:
            return stream.student[batch]
        if (tokens := self._chosen(name, batch).tokens) is not None:
            return stream.student_at(batch, tokens)
        run = partial(self.student, **self.calibration.inputs[batch])
        return stream.read(batch, input_of(self.student.get_submodule(name), run))

    def _two_layers(self, head: Head, first: Affine, read: list[Tensor], told: list[Tensor]) -> None:
        """A pooler or a hidden layer as wide as the model, and what reads it.

        Args:
            head: of both layers.
            first: the teacher's first layer as the student's states tell it.
            read: for each batch, what the student's first layer reads; told: what the teacher's first layer gives.
        """
        activation = ACT2FN[head.activation]
        hidden = [activation(values) for values in told]
        moments = self._moments(hidden[0].shape[1], 0)
        for values in hidden:
            moments.add(exact(values))  # units that are alike differ by less than float32's sums are off
        inner, _ = moments.covariances(True)
        ours = Matrix(self.student, head.first)
        outgoing = Matrix(self.teacher, head.second).weight if head.second else torch.eye(len(inner)).to(inner)
        kept = choose_units(inner, outgoing.norm(dim=0), len(ours.weight))
        ours.set(self._refit(read, [values[:, kept] for values in told], first.weight[kept], ours))
        if head.norm:
            norms = (m.get_submodule(head.norm) for m in (self.student, self.teacher))
            for parameter, value in zip(*(norm.parameters() for norm in norms), strict=True):
                parameter.copy_(value[kept])
        if head.second:
            theirs, second = Matrix(self.teacher, head.second), Matrix(self.student, head.second)
            units = [_normed(self.student, head, activation(ours(states))) for states in read]
            outputs = [theirs(_normed(self.teacher, head, values)) for values in hidden]
            second.set(self._refit(units, outputs, outgoing @ retold(inner, kept), second))

    def _refit(self, read: list[Tensor], told: Iterable[Tensor], guess: Tensor, matrix: Matrix) -> Affine:
        moments = self._moments(*matrix.weight.shape[::-1])
        for x, y in zip(read, told, strict=True):
            moments.add(x, y)
        return ridge(moments, guess, constant=matrix.bias is not None, strength=STRENGTH_OF_HEADS)

    def _moments(self, inputs: int, outputs: int) -> Moments:
        return Moments(inputs, outputs, self.teacher.device)


def _normed(model: Any, head: Head, values: Tensor) -> Tensor:
    """What a head's second layer reads of the values after its activation."""
    normed: Tensor = model.get_submodule(head.norm)(values) if head.norm else values
    return normed


def is_tied(model: Any, head: Any) -> bool:
    """Whether a head is the table of the input embeddings."""
    return head is not None and head.weight is getattr(model.get_input_embeddings(), "weight", None)


def _output(branch: Branch, batch: int, normed: Tensor) -> Tensor:
    """What the teacher's branch adds to its stream."""
    output: Tensor = branch.teacher(branch.teacher_inner(batch, normed))
    return output


def _title(names: Any) -> str:
    if not isinstance(names, Attention):
        return "feed-forward"
    return "attention" if names.memory is None else "cross-attention"


def _projected(table: Tensor, project: Tensor) -> Tensor:
    """An embedding table, token or convolution of patches in the student's coordinates."""
    if table.dim() == 4:
        return torch.einsum("dcij,dk->kcij", exact(table), project)
    return exact(table) @ project
