"""What a class of optimizers does with cores, tried out on small ones before training begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opdf.overparam.config import OverParamConfig
from opdf.overparam.cores import working_dtype
from opdf.overparam.inner import Inner, Part
from opdf.overparam.rates import Fresh

REMEDY = "use one that steps every tensor by itself, such as torch.optim.AdamW"

TRIAL_STEPS = 8
"""Steps of a trial: more than RAdam's first five, which are plain gradient descent."""


@dataclass(frozen=True)
class Traits:
    """What a trial has shown about an optimizer.

    Attributes:
        alone: whether parts may be stepped one after another, by an instance that knows nothing but their states.
        settled: number of steps after which the form of its updates no longer changes.
    """

    alone: bool = True
    settled: int = 1


def try_out(
    cls: type[Optimizer], options: Mapping[str, Any], config: OverParamConfig, group: Mapping[str, Any], like: Tensor
) -> Traits:
    """Take a few steps on small cores, as training would.

    Args:
        cls, options: what the user chose.
        config: whether cores have rates of their own, and whether they are spread over processes.
        group: a parameter group of the user's.
        like: a parameter, for its device and dtype.

    Raises:
        TypeError: it cannot step cores, or keeps what a checkpoint cannot hold.
        ValueError: no learning rate makes its steps as long as dense ones, or it looks at all cores at once while each
            process has its own.
    """
    rates, settled = (1.0, 1.0), 1
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            together = _trial(cls, options, group, like, rates, alone=False)
        except Exception as error:  # whatever it raises, it would raise in the first step
            raise TypeError(f"{cls.__name__} cannot step cores: {_said(error)}; {REMEDY}") from error
        if config.lr_scaling == "match-dense":
            rates, settled = (1.0, 0.5), _check_rates(cls, options, group, like)
            try:
                together = _trial(cls, options, group, like, rates, alone=False)
            except Exception as error:
                raise ValueError(
                    f"lr_scaling is 'match-dense' and {cls.__name__} takes no learning rate for each weight's cores "
                    f"({_said(error)}); set lr_scaling to 'none'"
                ) from error
        try:
            alone = _trial(cls, options, group, like, rates, alone=True)
            by_itself = all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
        except Exception:  # it keeps something in itself, so that a new instance cannot go on
            by_itself = False
    if config.placement == "owner" and not by_itself:
        raise ValueError(
            f"placement is 'owner' and {cls.__name__} looks at all cores at once; set placement to 'replicate'"
        )
    return Traits(by_itself, settled)


def defaults(cls: type[Optimizer], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an optimizer, with those that the user did not give.

    Raises:
        TypeError: it is no optimizer class, or one that cannot train cores whatever its options are.
        TypeError, ValueError: an option is not one of its own, or has a value that it cannot have.
    """
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise TypeError(f"inner is {cls!r}; give an optimizer class such as torch.optim.AdamW")
    own = sorted(options.keys() & {"params", "model", "optimizer_dict"})
    if own:
        raise TypeError(
            f"{cls.__name__} brings its own parameters ({own[0]!r} among its options), as GaLore, APOLLO and LOMO do. "
            f"It cannot step cores; {REMEDY}"
        )
    if hasattr(cls, "train") and hasattr(cls, "eval"):
        raise TypeError(
            f"{cls.__name__} has train() and eval(), between which it exchanges weights, as schedule-free optimizers "
            f"do. It cannot step cores, whose product is always the model's weight; {REMEDY}"
        )
    try:
        return cls([torch.zeros(2, 2)], **options).defaults
    except TypeError as error:
        if options.get("lr", 0.0) is not None:
            raise
        raise TypeError(f"lr is None and {cls.__name__} needs a number; give a learning rate") from error
    except ValueError:
        raise
    except Exception as error:
        raise TypeError(f"{cls.__name__} cannot be made from parameters alone ({_said(error)}); {REMEDY}") from error


def check_sparse(model: nn.Module, cls: type[Optimizer], options: Mapping[str, Any]) -> None:
    """Refuse an optimizer that cannot step the sparse gradients of one of a model's embeddings.

    Raises:
        TypeError: there is such an embedding.
    """
    kinds = (nn.Embedding, nn.EmbeddingBag)
    sparse = (n for n, m in model.named_modules() if isinstance(m, kinds) and m.sparse and m.weight.requires_grad)
    name = next(sparse, None)
    if name is None or not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        return
    weight = nn.Parameter(torch.zeros(4, 2))
    try:
        optimizer = cls([weight], **options)
        weight.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2), check_invariants=True)
        optimizer.step()
    except Exception as error:  # whatever it raises, it would raise in the first step
        raise TypeError(
            f"{name} has sparse gradients (sparse=True), which {cls.__name__} cannot step: {_said(error)}. Make it "
            "with sparse=False, or take torch.optim.SGD"
        ) from error


def _check_rates(cls: type[Optimizer], options: Mapping[str, Any], group: Mapping[str, Any], like: Tensor) -> int:
    """Check that `match-dense` can work with an optimizer; returns `Traits.settled`.

    Raises:
        ValueError: a step is not proportional to the learning rate, or depends on how large the weights are.
    """
    grads, values = _trial_tensors(like, 1), _trial_tensors(like, 2)
    zeros = [torch.zeros_like(g) for g in grads]

    fresh = Fresh(cls, options, group)

    def update(start: Sequence[Tensor], rate: float, steps: int) -> Tensor:
        found = fresh.updates(start, grads, rate, steps)
        return torch.cat([u.flatten() for u in found]) / rate

    settled = update(zeros, 1e-3, TRIAL_STEPS)
    for other, why in (
        (None if group.get("lr") is None else update(zeros, 2e-3, TRIAL_STEPS), "does not follow the learning rate"),
        (update(values, 1e-3, TRIAL_STEPS), "depends on how large the weights are"),
    ):
        if other is None or float((other - settled).norm()) > 0.05 * float(settled.norm()):
            raise ValueError(
                f"lr_scaling is 'match-dense' and {cls.__name__}'s step {why}, so that no rate makes cores move as far "
                "as the dense weight would; set lr_scaling to 'none'"
            )
    first = update(zeros, 1e-3, 1)
    alike = torch.nn.functional.cosine_similarity(first, settled, dim=0) > 0.99
    return 1 if alike else TRIAL_STEPS


def _trial_tensors(like: Tensor, seed: int) -> list[Tensor]:
    """Three cores of a 64 x 64 matrix, large enough for states that are packed from 4,096 entries on."""
    generator = torch.Generator().manual_seed(seed)
    device = "cpu" if like.is_meta else like.device
    shapes = ((1, 8, 8, 64), (64, 1, 1, 64), (64, 8, 8, 1))
    return [
        torch.randn(shape, generator=generator, device="cpu").to(device, working_dtype(like)) * 0.1 for shape in shapes
    ]


def _trial(
    cls: type[Optimizer],
    options: Mapping[str, Any],
    group: Mapping[str, Any],
    like: Tensor,
    rates: Sequence[float],
    *,
    alone: bool,
) -> list[Tensor]:
    """Cores after a few steps: of one optimizer on all parts, or (`alone`) of a new one for each part and step."""
    places: list[dict[str, Any]] = [{} for _ in rates]
    parts = []
    for n, (place, rate) in enumerate(zip(places, rates, strict=True)):
        tensors = _trial_tensors(like, n)
        states: list[Any] = [(place, f"inner{k}") for k in range(len(tensors))]
        parts.append(Part(n, tensors, states, place, group, rate))
    inner = Inner(cls, options)
    for step in range(TRIAL_STEPS):
        for n, part in enumerate(parts):
            # One direction in all steps, so that estimates of the distance to go grow (Prodigy). Parts differ in size,
            # so that an optimizer that looks at both estimates something else than for one.
            steady, noise = _trial_tensors(like, 10 + n), _trial_tensors(like, 20 + 2 * step + n)
            for tensor, one, other in zip(part.tensors, steady, noise, strict=True):
                tensor.grad = (one + 0.3 * other) * 10.0**-n
        for few in [[part] for part in parts] if alone else [parts]:
            inner = Inner(cls, options) if alone else inner
            inner.adopt(few)
            inner.step(few, alone=alone)
    if inner.loose:
        raise TypeError(
            f"its state holds {inner.loose[0]!r} beside those of tensors, which would be lost in checkpoints"
        )
    for place in places:
        for value in place.values():
            _check_plain(cls, value)
    return [tensor for part in parts for tensor in part.tensors]


def _said(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_plain(cls: type[Optimizer], value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _check_plain(cls, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(cls, item)
    elif type(value) not in (Tensor, torch.nn.Parameter, int, float, bool, str, type(None)):
        raise TypeError(f"its state holds a {type(value).__name__}, which checkpoints cannot hold")
