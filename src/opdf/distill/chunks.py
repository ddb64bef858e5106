"""Losses of a language model's tokens that are computed a few tokens at a time, without all logits at once.

The logits of 4,096 tokens over 150,000 words are 2.5 GB in float32, and a loss of student and teacher holds a dozen
such matrices. The inputs of the head take a thousandth of that. So the models run first, with heads that see one
position only. Then heads, loss and gradient are computed chunk by chunk, still in the forward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from opdf.distill.losses import Batch, kept_places, token_labels
from opdf.distill.models import config_of, output_head, unwrapped

CHUNK = 2**24
"""Logits of one chunk. A batch with no more of them is not divided."""

Parts = dict[str, Tensor]
Forward = Callable[[nn.Module, Batch], Any]
"""A model and a batch to the model's outputs."""


@dataclass(frozen=True)
class Tokens:
    """The inputs of a language model's head at the tokens that are learned, and the head's weights.

    Attributes:
        states: `[tokens, width]`.
        weight: `[vocabulary, width]`.
        bias: `[vocabulary]`, if there is one.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None

    def cast(self) -> Tokens:
        """The same in the dtype that autocast would compute in."""
        kind = self.weight.device.type
        if not torch.is_autocast_enabled(kind):
            return Tokens(self.states.to(self.weight.dtype), self.weight, self.bias)
        dtype = torch.get_autocast_dtype(kind)
        return Tokens(self.states.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))

    def logits(self, rows: slice) -> Tensor:
        """`[tokens, vocabulary]` of some of them."""
        return F.linear(self.states[rows], self.weight, self.bias)


class Heads:
    """Decides whether a batch is learned in chunks, and gives the tokens of its models.

    A model's logits must be what its head, a plain Linear, gives of its input: models that scale or cap them
    (Gemma 2, Cohere, Granite) are noticed at their first batch. Compiled models, those whose head FSDP2 has spread
    over processes, and encoder-decoders are not divided either.
    """

    def __init__(self) -> None:
        self._plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def divide(self, models: list[nn.Module], batch: Batch, forward: Forward) -> Tensor | None:
        """Labels `[batch, tokens]` of a batch that is to be learned in chunks; None for one that is not.

        Args:
            models: student and teachers.
            batch: of one micro-batch.
            forward: runs a model.
        """
        head = output_head(models[0])
        labels = token_labels(models[0], batch) if head is not None else None
        if head is None or labels is None or labels.numel() * len(head.weight) <= CHUNK:
            return None
        plain = [self._is_plain(model, batch, forward) for model in models]  # each says so if it is not
        return labels if all(plain) else None

    def _is_plain(self, model: nn.Module, batch: Batch, forward: Forward) -> bool:
        inner = unwrapped(model)
        plain = self._plain.get(inner)
        if plain is None or (plain and plain_head(model) is None):  # it may have been compiled since
            self._plain[inner] = plain = gives_logits(model, batch, forward)
            if not plain:
                warnings.warn(
                    f"the logits of a {type(inner).__name__} are not divided into chunks, because its head alone does "
                    "not make them (it scales or caps them, has hooks, is an encoder-decoder, compiled or spread over "
                    "processes): each batch's are held whole, so keep batches small",
                    stacklevel=2,
                )
        return plain


def plain_head(model: nn.Module) -> nn.Linear | None:
    """A language model's head, if it is a Linear that can be applied outside of the model."""
    head = output_head(model)
    if getattr(config_of(model), "is_encoder_decoder", False) or type(head) is not nn.Linear or is_hooked(head):
        return None
    return None if isinstance(head.weight, DTensor) or head.weight.is_meta or is_compiled(model) else head


def is_hooked(module: nn.Module) -> bool:
    """Whether a module does more than its class: a hook, or a forward of its own (as accelerate gives it)."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def is_compiled(model: nn.Module) -> bool:
    """Whether a model may run without the hooks that are added to it later."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


def gives_logits(model: nn.Module, batch: Batch, forward: Forward) -> bool:
    """Whether a model's logits are its head's outputs bit for bit, at the first position of a batch's examples.

    The batch is run whole: some values of it (where packed texts begin, patches of images) are not by example.
    """
    head = plain_head(model)
    if head is None:
        return False
    device = head.weight.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        outputs, seen = narrowed(model, batch, forward)
    if len(seen) != 2 or seen[0].dim() != 3:
        return False
    return torch.equal(outputs.logits.float(), seen[1].float())


def narrowed(model: nn.Module, batch: Batch, forward: Forward) -> tuple[Any, list[Tensor]]:
    """Outputs of a model whose head gets the first position alone, the head's whole inputs, and its outputs."""
    head, seen = plain_head(model), list[Tensor]()
    assert head is not None

    def narrow(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0])
        return (inputs[0][..., :1, :],)

    hooks = head.register_forward_pre_hook(narrow), head.register_forward_hook(lambda *given: seen.append(given[2]))
    try:
        return forward(model, batch), seen
    finally:
        for hook in hooks:
            hook.remove()


def kept_tokens(model: nn.Module, batch: Batch, labels: Tensor, forward: Forward, student: nn.Module) -> Tokens:
    """Of a student or its teacher, the tokens of a batch that the student learns."""
    states, head = narrowed(model, batch, forward)[1][0], plain_head(model)
    assert head is not None
    return Tokens(kept_places(student, states, labels), head.weight, head.bias)


def over_chunks(
    loss: Callable[[Tensor, slice], Parts], tokens: Tokens, weights: Mapping[str, float], size: int | None = None
) -> tuple[Tensor, Parts]:
    """A weighted sum of losses of tokens, and the losses, without the matrix of all logits.

    Args:
        loss: logits `[rows, vocabulary]` of some tokens and which they are, to scalars by name; they add up over
            tokens.
        tokens: of the student.
        weights: of the losses, by name.
        size: tokens at a time; by default as many as `CHUNK` allows.

    Returns:
        The sum, differentiable in `tokens`, and the detached losses.
    """
    size = size or max(1, CHUNK // len(tokens.weight))
    total, parts = _InChunks.apply(*(tokens.states, tokens.weight, tokens.bias), loss, dict(weights), size)  # type: ignore[no-untyped-call]
    return total, dict(zip(weights, parts.unbind(), strict=True))


class _InChunks(torch.autograd.Function):
    """The forward pass computes the gradient too, because a chunk's logits are needed for both and made once."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: Callable[[Tensor, slice], Parts],
        weights: dict[str, float],
        size: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        tokens = Tokens(states, weight, bias).cast()
        wanted = [x is not None and x.requires_grad for x in (states, weight, bias)]
        sums = [torch.zeros_like(x, dtype=wide) if x is not None and w else None
                for x, w in zip((states, weight, bias), wanted, strict=True)]  # fmt: skip
        parts = torch.zeros(len(weights), dtype=wide, device=weight.device)
        for start in range(0, len(states), size):
            rows = slice(start, min(start + size, len(states)))
            logits = tokens.logits(rows).to(wide).requires_grad_(any(wanted))
            with torch.enable_grad():
                found = loss(logits, rows)
                parts += torch.stack([found[name].detach() for name in weights])
                total = torch.stack([factor * found[name] for name, factor in weights.items()]).sum()
            if any(wanted):
                (gradient,) = torch.autograd.grad(total, logits)
                del logits, found, total
                _add_gradients(sums, gradient, tokens, rows)
        ctx.save_for_backward(*sums)
        ctx.dtypes = [x.dtype if x is not None else None for x in (states, weight, bias)]
        ctx.mark_non_differentiable(parts)
        factors = parts.new_tensor(list(weights.values()))
        return (factors * parts).sum(), parts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled first: a gradient scaler keeps small numbers in the range of fp16.
        found = [None if g is None else (g * gradients[0]).to(dtype)
                 for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]  # fmt: skip
        return (*found, None, None, None)


def _add_gradients(sums: list[Tensor | None], gradient: Tensor, tokens: Tokens, rows: slice) -> None:
    """Add to the gradients of states, weight and bias those of some rows, whose logits have `gradient`."""
    states, weight, bias = sums
    # In fp16, numbers that no gradient scaler has seen would be lost.
    dtype = gradient.dtype if tokens.weight.dtype == torch.float16 else tokens.weight.dtype
    with torch.autocast(gradient.device.type, enabled=False):
        narrow = gradient.to(dtype)
        if states is not None:
            states[rows] = narrow @ tokens.weight.to(dtype)
        if weight is not None:
            mine = tokens.states[rows].to(dtype)
            if dtype == weight.dtype:
                weight.addmm_(narrow.T, mine)
            else:
                weight += narrow.T @ mine
        if bias is not None:
            bias += gradient.sum(0)
