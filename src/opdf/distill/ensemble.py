"""Several teachers as one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from opdf.distill.losses import count_labelled, labels_of, precise, task_loss
from opdf.distill.models import kind_of, without_cache
from opdf.distill.options import numbers


class Ensemble(nn.Module):
    """Several teachers, whose distributions are averaged (arXiv 1503.02531, section 1; arXiv 1612.01474).

        teacher = Ensemble([first, second], weights=[2, 1])

    A student learns the same from the mean of p_1, p_2, ... as from all of them at once: sum_i w_i KL(p_i || q) and
    KL(sum_i w_i p_i || q) differ by a constant, whatever the student's q is. Outputs of a regression are averaged as
    they are; with several labels, each label's probability is averaged.

    Args:
        models: of transformers, for one task, with the same labels or the same vocabulary.
        weights: above 0, one for each; they need not sum to 1. None gives all the same.

    Attributes:
        weights: float32 `[models]`, of sum 1.
        temperature: at which distributions are averaged, float32, where nothing else is said.

    Raises:
        TypeError: the models are no list, or the weights no list of numbers.
        ValueError: there are no models, the number of weights is another, or a weight is not above 0.
    """

    weights: Tensor
    temperature: Tensor

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not isinstance(models, Sequence | nn.ModuleList):
            raise TypeError(f"models is a {type(models).__name__}; give a list of models")
        given = check_weights([1.0] * len(models) if weights is None else weights, len(models))
        self.models = nn.ModuleList(models)
        # In float32, which every device has.
        self.register_buffer("weights", torch.tensor([weight / sum(given) for weight in given], dtype=torch.float32))
        self.register_buffer("temperature", torch.ones((), dtype=torch.float32))

    @property
    def config(self) -> Any:
        """The first model's: all have the same labels or vocabulary."""
        return self.models[0].config

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> SequenceClassifierOutput:
        """Logits of the mean, and with labels its loss."""
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
                 "pixel_values": pixel_values} | others  # fmt: skip
        inputs = {name: value for name, value in named.items() if value is not None}
        needs_labels = getattr(self.config, "is_encoder_decoder", False)  # which makes its decoder's inputs from them
        given = inputs | {"labels": labels} if needs_labels and labels is not None else inputs
        logits = self.mean([model(**(without_cache(model) | given)).logits for model in self.models], labels)
        loss = None
        if labels is not None:
            batch = inputs | {"labels": labels}
            labelled = count_labelled(self.models[0], batch)[1].clamp(min=1)
            loss = task_loss(self.models[0], logits, labels_of(self.models[0], batch)) / labelled
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def mean(self, logits: Sequence[Tensor], labels: Tensor | None = None, temperature: float | None = None) -> Tensor:
        """Logits that give the weighted mean of several distributions, each `[..., classes]`.

        Args:
            logits: of each model.
            labels: tell what logits mean where `problem_type` of the models is None, see `kind_of`.
            temperature: at which they are averaged; None takes the attribute.
        """
        found = torch.stack([precise(some).to(logits[0].device) for some in logits])
        weights = self.weights.to(found).reshape(-1, *[1] * (found.dim() - 1))
        kind = kind_of(self.models[0], logits[0], labels)
        if kind == "regression":
            return (weights * found).sum(0)
        at: Any = self.temperature.to(found) if temperature is None else temperature
        if kind == "multi-label":
            yes, no = (torch.logsumexp(F.logsigmoid(sign * found / at) + weights.log(), 0) for sign in (1, -1))
            return at * (yes - no)
        return at * torch.logsumexp((found / at).log_softmax(-1) + weights.log(), 0)


def check_weights(weights: Sequence[float], models: int, where: str = "") -> list[float]:
    """Weights that fit several teachers.

    Raises:
        TypeError: they are no list of numbers.
        ValueError: there are no models, the number of weights is another, or a weight is not above 0.
    """
    if not models:
        raise ValueError(f"{where}models is empty; give one teacher or more")
    found = numbers(f"{where}weights", weights)
    if len(found) != models or not all(0 < weight < math.inf for weight in found):
        raise ValueError(f"{where}weights is {found}; give {models} numbers above 0, one for each teacher")
    return found


def members(teacher: nn.Module) -> list[Any]:
    """The models of an ensemble; of another teacher itself alone."""
    return list(teacher.models) if isinstance(teacher, Ensemble) else [teacher]


def soften(teacher: nn.Module | None, temperature: float) -> None:
    """Have several teachers averaged at the temperature at which a student follows them."""
    if isinstance(teacher, Ensemble):
        teacher.temperature.fill_(temperature)


@contextmanager
def softened(teacher: nn.Module, temperature: float) -> Iterator[None]:
    """Inside, several teachers are averaged at a temperature."""
    was = float(teacher.temperature) if isinstance(teacher, Ensemble) else 1.0
    soften(teacher, temperature)
    try:
        yield
    finally:
        soften(teacher, was)


def like(model: Any, dtype: torch.dtype | None = None) -> Any:
    """A new model of the same configuration, on the current default device."""
    if isinstance(model, Ensemble):
        return Ensemble([like(one, dtype) for one in model.models])  # weights are values, not configuration
    return type(model)._from_config(copy.deepcopy(model.config), dtype=dtype or model.dtype)
