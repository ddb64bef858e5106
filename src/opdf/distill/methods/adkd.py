"""AD-KD, attribution-driven distillation (arXiv 2305.10010): find the same input tokens important as the teacher.

The importance of a token is the integrated gradient of a class's log-probability with respect to the embedding output
e (hidden state 0), from a baseline of zero:

    IG_c = e * (1/m) sum_{k=1..m} d log p_c( (k/m) e ) / d( (k/m) e )
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from opdf.distill.arguments import asks_for_fsdp
from opdf.distill.losses import Batch, labels_of, precise, squared_loss, task_loss
from opdf.distill.methods.logits import TaskAndLogits
from opdf.distill.models import config_of, is_language_model, kind_of, unwrapped
from opdf.distill.objective import Losses, model_inputs
from opdf.distill.options import flag, number, whole
from opdf.distill.teachers import check_frozen

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

TWICE = ("sdpa", "eager")
"""Ways to compute attention that can be differentiated twice."""

EPSILON = 1e-12
"""Smallest norm to divide by, because a token may have no attribution at all, and a saturated example has none."""


class AttributionDistillation(TaskAndLogits):
    """(1 - alpha) task + alpha soft cross-entropy + attribution_weight * distance of the normalised token maps.

    A view is what tokens are important for. Of two classes only the gold label is one, because the other's map is the
    same (with more `steps` than one, nearly). Of more classes each is one, and their distances are summed. A
    regression's view is its squared error.

    The distance of an example is the squared difference of the maps over the number of tokens where the teacher's map
    is not zero. It is averaged over examples. The teacher is fixed, so its logits and maps are computed once.

    Args:
        temperature: T of the soft cross-entropy, which has no factor T^2 here; a regression divides both by T.
        alpha: weight of the soft cross-entropy.
        attribution_weight: weight of the attribution loss, 0 or more; the paper uses 1 to 100.
        steps: m, at least 1. The paper's 1 is gradient times input; more approaches the integral and costs as many
            forward and double backward passes.
        top_k: keep the largest entries of the teacher's attribution over the width of each token; None keeps all.
        anneal: let T fall linearly to 1 over the epochs.
    """

    tasks = ("classification", "regression")

    def __init__(
        self,
        temperature: float = 2.0,
        alpha: float = 0.9,
        attribution_weight: float = 10.0,
        steps: int = 1,
        top_k: int | None = None,
        anneal: bool = False,
    ) -> None:
        super().__init__(temperature, alpha)
        self.attribution_weight = number("attribution_weight", attribution_weight, 0)
        self.steps = whole("steps", steps, 1)
        self.top_k = None if top_k is None else whole("top_k", top_k, 1)
        self.anneal = flag("anneal", anneal)
        self._progress: Any = None
        self._known: dict[bytes, tuple[Tensor, Tensor]] = {}

    @property
    def needs_labels(self) -> bool:
        return True

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None:
            raise ValueError("AD-KD needs the teacher's gradients; pass a teacher")
        super().prepare(student, teacher)
        self._progress, self._known = None, {}  # of another run, and another teacher
        if is_language_model(student):
            raise ValueError(
                f"AD-KD is for one class or value an example, and the student is a {type(student).__name__}; use "
                "the objective 'logits'"
            )
        for who, model in (("student", student), ("teacher", teacher)):
            if not isinstance(getattr(getattr(model, "base_model", None), "embeddings", None), nn.Module):
                raise ValueError(f"the {who} {type(model).__name__} has no base_model.embeddings to attribute to")
        attention = getattr(config_of(student), "_attn_implementation", None)
        if attention not in (*TWICE, None):
            raise ValueError(
                f"the student's attn_implementation is {attention!r}, whose kernels have no second derivative; load it "
                f"with {' or '.join(map(repr, TWICE))}"
            )

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        assert teacher is not None
        labels = labels_of(student, batch)
        ours, student_maps = attribute(student, self.batch_for(student, batch), self.steps, create_graph=True)
        theirs, teacher_maps = self._teacher(teacher, self.batch_for(teacher, batch))
        items, labelled = num_items.expand(2)
        task = task_loss(student, ours, labels) / labelled
        soft = self._soft(student, ours, theirs) / items
        distance = map_distance(student_maps, teacher_maps).sum() / items
        total = (1 - self.alpha) * task + self.alpha * soft + self.attribution_weight * distance
        parts = {"task": task, "distillation": soft, "attribution": distance}
        return Losses(total, {name: part.detach() for name, part in parts.items()})

    def _soft(self, student: nn.Module, ours: Tensor, theirs: Tensor) -> Tensor:
        ours, theirs = ours / self.current_temperature, theirs / self.current_temperature
        if kind_of(student, ours) == "regression":
            return squared_loss(ours, theirs)
        return -(theirs.softmax(-1) * ours.log_softmax(-1)).sum()

    def _teacher(self, teacher: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[batch, classes]` and normalised maps `[views, batch, tokens]`, from memory where all are known."""
        check_frozen(teacher)
        keys = _keys(batch)
        if not all(key in self._known for key in keys):
            logits, maps = attribute(teacher, batch, self.steps, create_graph=False, top_k=self.top_k)
            for row, (key, real) in enumerate(zip(keys, _real(batch, maps.shape[-1]), strict=True)):
                self._known[key] = logits[row].detach().cpu(), maps[:, row, real].detach().cpu()
        known = [self._known[key] for key in keys]
        device = batch["labels"].device
        return torch.stack([logits for logits, _ in known]).to(device), self._padded(known, batch).to(device)

    @staticmethod
    def _padded(known: list[tuple[Tensor, Tensor]], batch: Batch) -> Tensor:
        """Known maps with the padding of a batch, which may be another than they were made with."""
        real = _real(batch, max(maps.shape[-1] for _, maps in known))
        padded = known[0][1].new_zeros(len(known[0][1]), *real.shape)
        for row, (_, maps) in enumerate(known):
            padded[:, row, real[row]] = maps
        return padded

    def check_arguments(self, args: TrainingArguments) -> None:
        super().check_arguments(args)
        if args.torch_compile:
            raise ValueError("AD-KD differentiates twice, which torch.compile cannot; leave torch_compile out")
        if args.gradient_checkpointing or getattr(args, "activation_checkpointing", False):
            raise ValueError(
                "AD-KD differentiates twice, and checkpointed blocks once; leave gradient_checkpointing out"
            )
        if asks_for_fsdp(args):
            raise ValueError(
                "AD-KD differentiates twice, and FSDP2 frees the gathered weights after the first time; use DDP, or a "
                "method that does not"
            )

    def on_train_begin(self, trainer: Trainer) -> None:
        self._progress = trainer.state

    @property
    def current_temperature(self) -> float:
        """T in the current epoch."""
        if not self.anneal or self._progress is None or self._progress.num_train_epochs < 2:
            return self.temperature
        last = self._progress.num_train_epochs - 1
        return self.temperature + (1 - self.temperature) * min(int(self._progress.epoch or 0), last) / last


def attribute(
    model: nn.Module, batch: Batch, steps: int, *, create_graph: bool, top_k: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and every view's token map, scaled to norm 1 over an example's real tokens.

    Args:
        model: a classifier or regressor with `base_model.embeddings`; the maps of a student keep their graph.
        batch: inputs with "labels"; padding gets 0.
        steps: m of the integral.
        create_graph: keep second derivatives (for the student).
        top_k: entries of the width to keep per token.

    Returns:
        Logits `[batch, classes]` and maps `[views, batch, tokens]`.
    """
    gradients, embedding, logits = integrated_gradients(model, batch, steps, create_graph=create_graph)
    mask = batch.get("attention_mask", torch.ones(embedding.shape[:2], device=embedding.device)).bool()
    embedding = precise(embedding)
    maps = torch.stack([_normalised(gradient * embedding, mask, top_k) for gradient in gradients])
    return logits, maps


def integrated_gradients(
    model: nn.Module, batch: Batch, steps: int, *, create_graph: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Mean gradients of every view along the path from 0 to e, e itself, and the logits at e."""
    sums: list[Tensor] = []
    for k in range(1, steps + 1):
        # Fused attention kernels cannot be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _scaled(model, k / steps, create_graph) as seen:
            logits = precise(model(**model_inputs(model, batch)).logits)
            embedding, point = seen
            views = _views(model, logits, batch["labels"])
            found = [_gradients(view, logits, point, create_graph=create_graph) for view in views]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return [total / steps for total in sums], embedding, logits


def _gradients(view: Tensor, logits: Tensor, point: Tensor, *, create_graph: bool) -> Tensor:
    """`[batch, tokens, width]`, of each example's view `[batch]`, in float32 at least.

    They go through the model at size 1, because a sure model's are as small as its doubt: half precision loses those.
    """
    (slopes,) = torch.autograd.grad(view.sum(), logits, retain_graph=True)
    sizes = _power_of_two(slopes.abs().amax(-1))
    (found,) = torch.autograd.grad(view, point, 1 / sizes, create_graph=create_graph, retain_graph=True)
    return precise(found) * sizes[:, None, None]


def _power_of_two(sizes: Tensor) -> Tensor:
    """A power of two near each size, by which to divide without rounding; 1 for 0."""
    return torch.ldexp(torch.ones_like(sizes), torch.frexp(sizes).exponent.clamp(min=-125))


def map_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """`[batch]`: squared difference of maps `[views, batch, tokens]` per entry of the teacher's, views summed.

    A map of zeros, where the teacher is too sure to have an attribution, tells nothing: its distance is 0.
    """
    counts = theirs.ne(0).sum(-1)
    return ((theirs - ours).square().sum(-1) / counts.clamp(min=1) * counts.ne(0)).sum(0)


def _views(model: nn.Module, logits: Tensor, labels: Tensor) -> list[Tensor]:
    """`[batch]` for each view."""
    kind = kind_of(model, logits, labels)
    if kind not in ("classes", "regression"):
        raise ValueError(f"AD-KD is for one class or value an example, and the model's outputs are {kind}")
    if kind == "regression":
        return [(logits - labels.reshape(logits.shape)).square().sum(-1)]
    scores = _log_probabilities(logits)
    if logits.shape[-1] == 2:
        return [scores.gather(-1, labels.clamp(min=0)[:, None])[:, 0]]  # both classes have the same map
    return list(scores.unbind(-1))


def _log_probabilities(logits: Tensor) -> Tensor:
    """`[batch, classes]`, by each class's odds: slopes of `log_softmax` lose their digits where a probability is 1."""
    own = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    others = logits[:, None].masked_fill(own, -torch.inf).logsumexp(-1)
    return F.logsigmoid(logits - others)


def _normalised(attribution: Tensor, mask: Tensor, top_k: int | None) -> Tensor:
    """`[batch, tokens, width]` -> `[batch, tokens]`; zeros of an example without any attribution."""
    if top_k is not None and top_k < attribution.shape[-1]:
        attribution = attribution.abs().topk(top_k, dim=-1).values
    largest = attribution.detach().abs().amax((1, 2))
    mask = mask & largest.ne(0)[:, None]
    squares = (attribution / _power_of_two(largest)[:, None, None]).square().sum(-1)  # of small numbers they would be 0
    # Norms of exactly zero (padding) have no derivative: they are replaced before the root and masked after it.
    norms = torch.where(mask, squares, 1.0).clamp(min=EPSILON**2).sqrt() * mask
    return norms / norms.square().sum(-1, keepdim=True).clamp(min=EPSILON**2).sqrt()


@contextmanager
def _scaled(model: nn.Module, scale: float, create_graph: bool) -> Iterator[list[Tensor]]:
    """Inside, the embedding output e is replaced by scale * e; yields e and the tensor to differentiate by."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        embedding = output if create_graph else output.detach()
        point = (scale * embedding) if embedding.requires_grad else (scale * embedding).requires_grad_()
        seen[:] = [embedding, point]
        return point

    handle = unwrapped(model).base_model.embeddings.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _real(batch: Batch, tokens: int) -> Tensor:
    """`[batch, tokens]` bool on the CPU: which tokens are no padding; all `tokens` where there is no mask."""
    mask = batch.get("attention_mask")
    return torch.ones(len(batch["labels"]), tokens, dtype=torch.bool) if mask is None else mask.bool().cpu()


def _keys(batch: Batch) -> list[bytes]:
    """A digest of every example's inputs and label, without its padding."""
    here = {name: batch[name].detach().cpu() for name in sorted(batch)}  # once, not by row: each copy waits
    mask = here.get("attention_mask")
    keys = []
    for row in range(len(here["labels"])):
        digest = hashlib.sha256()
        for name, values in here.items():
            value = values[row]
            if mask is not None and name != "labels" and value.shape[:1] == mask.shape[1:]:
                value = value[mask[row].bool()]
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        keys.append(digest.digest())
    return keys
