"""The calibration examples: one pass of the teacher over them, and back, and the residual streams that are kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opdf.distill.losses import precise
from opdf.distill.models import has_no_head
from opdf.distill.shrink.families import Family, Head, Tower, attentions
from opdf.distill.shrink.moments import Moments
from opdf.distill.shrink.norms import is_norm, subtracts_mean
from opdf.distill.shrink.stream import Hook, Stream, hooked, states_of
from opdf.distill.shrink.tokens import real_tokens

KEPT = 2**27
"""Values of one kind that are kept, and not made twice: half a GB in float32. Second moments take three times that."""

Place = tuple[str, int, str]
"""A matrix of the teacher: its tower, block and name."""


def has_room(values: int) -> bool:
    """Whether so many values may be kept."""
    return values <= KEPT


class Chosen(NamedTuple):
    """What a layer of a head reads of a batch.

    Attributes:
        states: `[rows, width]`, the teacher's.
        tokens: `[examples]`, the tokens whose final states they are; None if they are no such states, or of padding.
    """

    states: Tensor
    tokens: Tensor | None


@dataclass
class Calibration:
    """What one pass of the teacher over the calibration examples leaves.

    Second moments count every token as much as `Stream.weights` says.

    Attributes:
        inputs: the batches, on the teacher's device.
        streams: by tower; the teacher's first states, before the entry norm where norms stand after the branches.
        states: second moments of the inputs of the teacher's norms (their outputs, if norms stand after the branches).
        gradients: second moments of the gradients of the teacher's outputs to these; of no rows for a language model
            or one without a head.
        chosen: for each batch, by name, what layers of heads read that do not read the final states of all tokens.
        inner: second moments of what output matrices read, of those that were asked for.
    """

    inputs: list[dict[str, Tensor]]
    streams: dict[str, Stream]
    states: Moments
    gradients: Moments
    chosen: list[dict[str, Chosen]]
    inner: dict[Place, Moments]


@dataclass
class _Point:
    """A norm as a batch passes it, and all that waits for the weights of the states there.

    Attributes:
        stream: whose states they are.
        states: `[examples, tokens, width]`, with a graph: what the norm reads, or gives if it stands after the branch.
        scale: `[examples, tokens, 1]` or 1: their size over that of what moments are counted of.
        found: `[real tokens, width]`, what moments are counted of.
    """

    stream: Stream
    states: Tensor
    scale: Tensor | float
    found: Tensor


class Recorder:
    """Runs the teacher over a batch, and back for its outputs' gradients, and keeps what `Calibration` says.

    Args:
        teacher: of `family`; towers, heads: its parts.
        asked: output matrices, for `Calibration.inner`.
    """

    def __init__(
        self,
        teacher: Any,
        family: Family,
        towers: Sequence[Tower],
        heads: Sequence[Head],
        asked: Collection[Place] = (),
    ) -> None:
        self._teacher, self._family, self._towers, self._heads = teacher, family, towers, heads
        self._asked = asked
        width, device = getattr(teacher.config, family.width), teacher.device
        states, gradients = (Moments(width, 0, device) for _ in range(2))
        self.result = Calibration([], {s.blocks: Stream() for s in towers}, states, gradients, [], {})
        # What a hook of the teacher's own changes is not seen alike by those that are made again.
        self._room = -1 if any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules()) else KEPT
        self._normed: Tensor
        self._points: list[_Point] = []
        self._inner: list[tuple[int, Moments, Tensor]] = []  # with the number of the point that they lead to

    def run(self, inputs: dict[str, Tensor]) -> None:
        options = {"use_cache": False} if hasattr(self._teacher.config, "use_cache") else {}
        self.result.inputs.append(inputs)
        self.result.chosen.append({})
        self._points, self._inner = [], []
        before = [hook for tower in self._towers for hook in self._before(tower, inputs)]
        names = [name for head in self._heads for name in (head.first, head.second) if name]
        before += [(self._teacher.get_submodule(name), partial(self._choose, name)) for name in names]
        after = [hook for tower in self._towers for hook in self._after(tower)]
        # With a small LLaMA there was nothing to gain by it: every token has an output that depends on it.
        goes_back = not has_no_head(self._teacher) and self._teacher.get_output_embeddings() is None
        graph = torch.enable_grad() if goes_back else nullcontext()
        with graph, _frozen(self._teacher), hooked(*before, after=after):
            outputs = self._teacher(**inputs, **options, return_dict=True)
            real = self.result.streams[self._towers[-1].blocks].real[-1]
            weights = self._weights(list(self._leads(outputs, real)))
        for point, weight in zip(self._points, weights, strict=True):
            point.stream.weights[-1].append(weight)
            self.result.states.add(point.found, weights=weight)
        for number, moments, values in self._inner:
            moments.add(values, weights=weights[number])
        self._points, self._inner = [], []

    def _leads(self, outputs: Any, real: Tensor) -> Iterator[Tensor]:
        """What to go back from. A class of the user's own may return something else than named logits."""
        rivals = getattr(self._teacher.config, "problem_type", None) != "regression"
        for name, value in outputs.items() if isinstance(outputs, Mapping) else ():
            if name.endswith("logits") and isinstance(value, Tensor) and value.requires_grad:
                yield leads(name, value, real, rivals=rivals)

    def _weights(self, given: list[Tensor]) -> list[Tensor | None]:
        """How much tokens count at every norm: as the outputs depend on them, if there are such."""
        if not given:
            return [None] * len(self._points)
        states = [point.states for point in self._points]
        total = torch.stack([some.sum() for some in given]).sum()
        slopes = torch.autograd.grad(total, states, materialize_grads=True)
        weights: list[Tensor | None] = []
        for slope, point in zip(slopes, self._points, strict=True):
            rows = point.stream.rows(-1, precise(slope) * point.scale)
            self.result.gradients.add(rows)
            weights.append(_shares(rows, point.stream.real[-1]))
        return weights

    def _before(self, tower: Tower, inputs: Mapping[str, Tensor]) -> Iterator[Hook]:
        base = self._teacher.base_model
        stream, blocks = self.result.streams[tower.blocks], base.get_submodule(tower.blocks)
        stream.calls.append({})
        stream.weights.append([])
        if self._room >= 0:
            stream.later.append([])

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            states = states_of(args, kwargs)[0]
            states.requires_grad_()  # nothing before it has a gradient
            real = real_tokens(inputs, tower.mask, states)
            stream.real.append(real)
            stream.places.append(None if real.all() else real.flatten().nonzero()[:, 0])

        def call(place: tuple[int, str], _: nn.Module, args: Any, kwargs: Any) -> None:
            memory = next(a.memory for a in attentions(tower) if a.module == place[1])
            stream.calls[-1][place] = states_of(args, kwargs)[1].without(memory).detached()

        def read(place: Place, _: nn.Module, args: Any, kwargs: Any) -> None:
            values, inner = stream.rows(-1, args[0].detach()), self.result.inner
            if place not in inner:
                inner[place] = Moments(values.shape[1], 0, values.device)
            self._inner.append((len(self._points), inner[place], values))

        yield (blocks[0] if self._family.pre_norm or tower.entry is None else base.get_submodule(tower.entry)), enter
        for k, block in enumerate(blocks):
            for attention in attentions(tower):
                yield block.get_submodule(attention.module), partial(call, (k, attention.module))
            for branch in tower.branches:
                if (place := (tower.blocks, k, branch.output.name)) in self._asked:
                    yield block.get_submodule(branch.output.name), partial(read, place)

    def _after(self, tower: Tower) -> Iterator[Hook]:
        base, stream = self._teacher.base_model, self.result.streams[tower.blocks]

        def passed(norm: nn.Module, args: Any, kwargs: Any, normed: Tensor) -> None:
            states = states_of(args, kwargs)[0]
            rows = stream.rows(-1, states.detach())
            self._keep(stream, rows)
            self._normed = normed.detach()
            if self._family.pre_norm:
                size = precise(states.detach()).square().mean(-1, keepdim=True).sqrt()
                self._points.append(_Point(stream, states, size, unscaled(norm, rows)))
            else:
                self._points.append(_Point(stream, normed, 1.0, stream.rows(-1, self._normed)))

        for name in (None if self._family.pre_norm else tower.entry, tower.final):
            if name:
                yield base.get_submodule(name), passed
        for block in base.get_submodule(tower.blocks):
            for branch in tower.branches:
                yield block.get_submodule(branch.norm), passed

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
        states, stream, tokens = args[0].detach(), self.result.streams[self._towers[-1].blocks], None
        if torch.equal(states, self._normed):
            return
        if states.dim() == 2 and states.shape[1] == self._normed.shape[2]:
            same = (self._normed == states[:, None]).all(-1) & stream.real[-1]
            tokens = same.int().argmax(1) if same.any(1).all() else None
        self.result.chosen[-1][name] = Chosen(stream.read(-1, states), tokens)


def leads(name: str, values: Tensor, real: Tensor, *, rivals: bool = True) -> Tensor:
    """How far the largest output is ahead of the next, for each example or token; one that stands alone as it is.

    Args:
        name: of the output; `start_logits` and `end_logits` are of tokens, all others of the last dimension.
        values: `[..., outputs]`, or `[examples]` of one output each.
        real: `[examples, tokens]`, true where a token is no padding.
        rivals: whether the largest output is the answer; else all are, and their norm is taken.
    """
    values = precise(values)
    if values.ndim == 1:
        return values
    if name != "logits" and values.shape == real.shape:
        values = values.masked_fill(~real, -math.inf)
    if values.shape[-1] == 1:
        lead = values[..., 0]
    elif not rivals:
        lead = values.norm(dim=-1)
    else:
        first, second = values.topk(2).values.unbind(-1)
        lead = (first - second).nan_to_num(posinf=0.0)
    return lead[real] if lead.shape == real.shape else lead


def _shares(slopes: Tensor, real: Tensor) -> Tensor:
    """How much tokens count: half alike, half as the outputs depend on them. Their mean in an example is 1.

    Args:
        slopes: `[real tokens, width]`, gradients.
        real: `[examples, tokens]`.
    """
    sizes = slopes.new_zeros(real.shape)
    sizes[real] = slopes.norm(dim=1)
    shares = sizes / sizes.sum(1, keepdim=True) * real.sum(1, keepdim=True)
    return 0.5 + 0.5 * shares[real].nan_to_num(1.0, posinf=1.0)  # no slope at all tells nothing


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, weights take no gradients."""
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_()


def unscaled(norm: Any, states: Tensor) -> Tensor:
    """The states after a norm, without its scale and shift; of mean square 1 where no norm is."""
    if subtracts_mean(norm):
        return nn.functional.layer_norm(states, states.shape[-1:], eps=norm.eps)
    epsilon = norm.variance_epsilon if is_norm(norm) else torch.finfo(torch.float32).tiny
    return states * torch.rsqrt(states.float().square().mean(-1, keepdim=True) + epsilon).to(states.dtype)
