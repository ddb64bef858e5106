"""The calibration examples: one pass of the teacher over them, and the residual streams that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from opdf.distill.shrink.families import Attention, Family, Head, Tower, attentions
from opdf.distill.shrink.moments import Moments
from opdf.distill.shrink.norms import has_shift

KEPT = 2**27
"""Values of the teacher's states after its branches that are kept, and not made twice: half a GB in float32."""


@dataclass(frozen=True)
class Call:
    """What an attention was called with beside the states: masks, positions."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def without(self, *names: str | None) -> Call:
        return replace(self, kwargs={k: v for k, v in self.kwargs.items() if k not in names})

    def to(self, dtype: torch.dtype) -> Call:
        """With floating-point tensors of another dtype."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return Call(*tree_map(cast, (self.args, self.kwargs)))


@dataclass
class Stream:
    """The residual streams of one tower; padding is left out.

    Attributes:
        real: for each batch `[examples, tokens]`, true where a token is not padding.
        whole: for each batch, whether no token is padding.
        teacher, student: for each batch `[real tokens, width]`.
        later: for each batch the teacher's states after each of the branches to come, where there was room for them.
        calls: for each batch, those of the teacher's attentions, by block and name.
    """

    real: list[Tensor] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    teacher: list[Tensor] = field(default_factory=list)
    student: list[Tensor] = field(default_factory=list)
    later: list[list[Tensor]] = field(default_factory=list)
    calls: list[dict[tuple[int, str], Call]] = field(default_factory=list)

    def rows(self, batch: int, states: Tensor) -> Tensor:
        """`[real tokens, width]` of `[examples, tokens, width]`."""
        return states.flatten(0, 1) if self.whole[batch] else states[self.real[batch]]

    def padded(self, batch: int, rows: Tensor) -> Tensor:
        """`[examples, tokens, width]`, zeros at padding."""
        real = self.real[batch]
        if self.whole[batch]:
            return rows.reshape(*real.shape, -1)
        states = rows.new_zeros(*real.shape, rows.shape[-1])
        states[real] = rows
        return states

    def advance(self, batch: int, output: Callable[[], Tensor]) -> None:
        """Add the next branch's output to the teacher's states of a batch; made only where the sum was not kept."""
        self.teacher[batch] = self.later[batch].pop(0) if self.later else self.teacher[batch] + output()

    def student_at(self, batch: int, tokens: Tensor) -> Tensor:
        """`[examples, width]`, the student's states of one token of each example."""
        padded = self.padded(batch, self.student[batch])
        return padded[torch.arange(len(tokens), device=tokens.device), tokens]


class _ReachedError(Exception):
    """Ends a forward pass early."""


def input_of(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """The first input of a module while something runs, which ends there."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_states(args, kwargs)[0])
        raise _ReachedError

    with hooked((module, keep)):
        try:
            run()
        except _ReachedError:
            return found[0]
    raise RuntimeError(f"{type(module).__name__} was not called")


def _states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states that a module was called with, and the rest."""
    if args:
        return args[0], Call(args[1:], kwargs)
    return kwargs["hidden_states"], Call((), kwargs).without("hidden_states")


@contextmanager
def hooked(*hooks: tuple[nn.Module, Callable[..., None]]) -> Iterator[None]:
    """Inside, functions are told what modules are called with."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Chosen(NamedTuple):
    """What a head reads of a batch.

    Attributes:
        states: `[examples, width]`, the teacher's.
        tokens: `[examples]`, the tokens whose final states they are; None if one of them is padding or none at all.
    """

    states: Tensor
    tokens: Tensor | None


@dataclass
class Calibration:
    """What one pass of the teacher over the calibration examples leaves.

    Attributes:
        inputs: the batches, on the teacher's device.
        streams: by tower; the teacher's first states, before the entry norm where there is one.
        states: second moments of the inputs of the teacher's norms (their outputs, if norms stand after the branches).
        chosen: for each batch, by name, what heads read that read one state an example.
        gathered: by tower, block and name, second moments of what an attention gathers, if the student has fewer heads
            or smaller ones.
    """

    inputs: list[dict[str, Tensor]]
    streams: dict[str, Stream]
    states: Moments
    chosen: list[dict[str, Chosen]]
    gathered: dict[tuple[str, int, str], Moments]


class Recorder:
    """Runs the teacher over a batch and keeps what `Calibration` says.

    Args:
        teacher: of `family`; towers, heads: its parts.
        gather: whether to keep second moments of what attention gathers.
    """

    def __init__(
        self, teacher: Any, family: Family, towers: Sequence[Tower], heads: Sequence[Head], *, gather: bool
    ) -> None:
        self._teacher, self._family, self._towers, self._heads = teacher, family, towers, heads
        self._gather = gather
        width, device = getattr(teacher.config, family.width), teacher.device
        self.result = Calibration([], {s.blocks: Stream() for s in towers}, Moments(width, 0, device), [], {})
        # What a hook of the teacher's own changes is not seen alike by those that are made again.
        self._room = -1 if any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules()) else KEPT
        self._normed: Tensor

    def run(self, inputs: dict[str, Tensor]) -> None:
        options = {"use_cache": False} if hasattr(self._teacher.config, "use_cache") else {}
        self.result.inputs.append(inputs)
        self.result.chosen.append({})
        hooks = [hook for tower in self._towers for hook in self._hooks(tower, inputs)]
        hooks += [(self._teacher.get_submodule(h.first), partial(self._choose, h.first)) for h in self._heads]
        with hooked(*hooks):
            self._teacher(**inputs, **options)

    def _hooks(self, tower: Tower, inputs: Mapping[str, Tensor]) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        base = self._teacher.base_model
        stream, blocks = self.result.streams[tower.blocks], base.get_submodule(tower.blocks)
        final = base.get_submodule(tower.final) if tower.final else None
        stream.calls.append({})
        if self._room >= 0:
            stream.later.append([])

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            states = _states(args, kwargs)[0]
            stream.real.append(real_tokens(inputs, tower.mask, states))
            stream.whole.append(bool(stream.real[-1].all()))

        def seen(norm: nn.Module, args: Any, kwargs: Any) -> None:
            states = _states(args, kwargs)[0]
            rows = stream.rows(-1, states)
            self._keep(stream, rows)
            if not self._family.pre_norm or norm is final:
                self._normed = norm.forward(states)
            found = unscaled(norm, rows) if self._family.pre_norm else stream.rows(-1, self._normed)
            self.result.states.add(found, found[:, :0])

        def call(place: tuple[int, str], _: nn.Module, args: Any, kwargs: Any) -> None:
            memory = next(a.memory for a in attentions(tower) if a.module == place[1])
            stream.calls[-1][place] = _states(args, kwargs)[1].without(memory)

        def gather(place: tuple[int, str], _: nn.Module, args: Any, kwargs: Any) -> None:
            values = stream.rows(-1, args[0])
            gathered, key = self.result.gathered, (tower.blocks, *place)
            if key not in gathered:
                gathered[key] = Moments(values.shape[1], 0, values.device)
            gathered[key].add(values, values[:, :0])

        yield (base.get_submodule(tower.entry) if tower.entry else blocks[0]), enter
        for name in (tower.entry, tower.final):
            if name:
                yield base.get_submodule(name), seen
        for k, block in enumerate(blocks):
            for branch in tower.branches:
                yield block.get_submodule(branch.norm), seen
                if isinstance(branch, Attention):
                    if self._gather:
                        yield block.get_submodule(branch.output.name), partial(gather, (k, branch.module))
                    yield block.get_submodule(branch.module), partial(call, (k, branch.module))

    def _keep(self, stream: Stream, rows: Tensor) -> None:
        """Keep what a norm reads: the first states of a tower, or those after a branch while there is room."""
        if len(stream.teacher) < len(stream.real):
            stream.teacher.append(rows)
            return
        self._room -= rows.numel()
        if self._room >= 0:
            stream.later[-1].append(rows)
        else:
            for kept in self.result.streams.values():
                kept.later.clear()

    def _choose(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        states = args[0]
        if states.dim() == 2:
            real = self.result.streams[self._towers[-1].blocks].real[-1]
            same = (self._normed == states[:, None]).all(-1) & real
            tokens = same.int().argmax(1) if same.any(1).all() else None
            self.result.chosen[-1][name] = Chosen(states, tokens)


def unscaled(norm: Any, states: Tensor) -> Tensor:
    """The states after a norm, without its scale and shift."""
    if has_shift(norm):
        return nn.functional.layer_norm(states, states.shape[-1:], eps=norm.eps)
    return states * torch.rsqrt(states.float().square().mean(-1, keepdim=True) + norm.variance_epsilon).to(states.dtype)


def real_tokens(inputs: Mapping[str, Tensor], mask: str, states: Tensor) -> Tensor:
    """`[examples, tokens]`, true where a token is no padding.

    Args:
        mask: the input that says so. A decoder without one has as many tokens as there are labels, or inputs.
        states: `[examples, tokens, width]`.
    """
    shape = states.shape[:2]
    known = inputs.get(mask)
    if known is None and mask.startswith("decoder") and "decoder_input_ids" not in inputs:
        labels = inputs.get("labels")
        known = inputs.get("attention_mask") if labels is None or labels.dim() < 2 else labels.ne(-100)
    if known is None or known.numel() != shape.numel():
        return torch.ones(shape, dtype=torch.bool, device=states.device)
    return known.bool().view(shape)  # several choices an example are examples to the model
