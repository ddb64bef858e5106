"""What over-parameterization costs, before anything runs: parameters, arithmetic, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from opdf.data import Prepared, loading
from opdf.distill import half_precision, keep_layers, product_rate
from opdf.job.checks import Fit
from opdf.job.heads import saved_class
from opdf.job.job import Job
from opdf.job.latency import blank_inputs, planned_latencies
from opdf.overparam import OverParamConfig, OverParameterization, overparameterize


@dataclass(frozen=True)
class StepCost:
    """The cost of an optimizer step on this process, and of what comes before the first one.

    Attributes:
        plain: floating-point operations of plain distillation: forward passes of the student, and of a teacher that
            answers in every step, and the student's backward pass, which is counted as two forward passes.
        extra: those of over-parameterization, the products between cores.
        asking: those of a teacher that is asked about every row before the first step.
        rate: operations a second of matrix products in the training's precision, measured on its device.
        core_rate: the same of products between cores, at most.
        megabytes: additional memory for cores, their two moments in AdamW, and a gradient, in float32.
    """

    plain: float
    extra: float
    asking: float
    rate: float
    core_rate: float
    megabytes: float

    @property
    def ratio(self) -> float:
        """The step's operations over plain distillation's."""
        return 1 + self.extra / self.plain

    def seconds(self, steps: int) -> float:
        """The least time of a training of so many steps."""
        return (self.asking + steps * self.plain) / self.rate + steps * self.extra / self.core_rate


def step_cost(job: Job, prepared: Prepared, fit: Fit) -> StepCost | None:
    """The cost of a job's step, counted on models without values; None if these cannot run."""
    arguments = job.training
    rows = prepared.data["train"]
    first = [rows[k] for k in range(min(arguments.per_device_train_batch_size, len(rows)))]
    batch = prepared.collator(first)
    # A mask changes no count, and models would read its values, which do not exist.
    batch = {name: value.to("meta") for name, value in batch.items() if name not in ("labels", "attention_mask")}
    student, teacher = (forward_operations(model, batch) for model in (fit.student, fit.teacher))
    if student is None or teacher is None:
        return None
    ahead = job.objective.asks_ahead(job.before_training(prepared, fit.teacher))
    plain = (3 * student + (0 if ahead else teacher)) * arguments.gradient_accumulation_steps
    # A method that never has its teacher in training has its answers stored, or asks for more than one a row.
    asking = teacher * len(rows) / len(first) if ahead and job.objective.needs_teacher else 0
    extra, megabytes = (extra_operations(fit.over), extra_megabytes(fit.over)) if fit.over else (0, 0)
    device = arguments.device.type
    rate = product_rate(device, half_precision(arguments) or torch.float32)
    return StepCost(plain, extra, asking, rate, max(rate, product_rate(device, torch.float32)), megabytes)


def forward_operations(model: Any, batch: dict[str, Any]) -> int | None:
    """Floating-point operations of a forward pass on the meta device; None for models that look at values."""
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**batch)
    except (RuntimeError, NotImplementedError):
        return None
    return counter.get_total_flops() or None


def extra_operations(over: OverParameterization) -> int:
    """Operations of over-parameterization in a step: three contractions of every matrix."""
    return sum(3 * matrix.shape.contract_flops for matrix in over.matrices)


def extra_megabytes(over: OverParameterization) -> float:
    """Memory for cores and two moments in float32, and for one gradient of the largest matrix."""
    sizes = [matrix.shape.num_params for matrix in over.matrices]
    return 4 * (3 * sum(sizes) + max(sizes)) / 1e6


def plan_model(
    name: str, overparam: OverParamConfig, *, layers: int | None, batch: int, tokens: int, accumulation: int
) -> dict[str, Any]:
    """What over-parameterization would do to a model of which only the configuration is read, see `summarize`.

    Beside that `models`: class, parameters, megabytes of the model, or of teacher and student, without their heads if
    they have any (`without_head`), and seconds for one example and for a batch, measured here on models of their sizes;
    None for a model too large to be made for it.

    Args:
        name: hub name, local folder, or minilm.
        overparam: the over-parameterization.
        layers: blocks of the student, whose teacher is the model; None plans for the model itself.
        batch, tokens, accumulation: examples a micro-batch, tokens an example, micro-batches an optimizer step.

    Raises:
        ValueError: the model has fewer than `layers` blocks, or they are not in one list, or an encoder's and a
            decoder's.
    """
    model = _meta_model(name)
    models = {"model": model} if layers is None else {"teacher": model, "student": keep_layers(model, layers)}
    planned = overparameterize(list(models.values())[-1], overparam)
    teacher = 0 if layers is None else _entries(overparameterize(models["teacher"], OverParamConfig(ones=0)))
    report = summarize(planned, teacher=teacher, batch=batch, tokens=tokens, accumulation=accumulation)
    described = _described({name: one.base_model for name, one in models.items()}, batch, tokens)
    for size, one in zip(described, models.values(), strict=True):
        size["without_head"] = one.base_model is not one
    return report | {"models": described}


def _described(models: Mapping[str, Any], batch: int, tokens: int) -> list[dict[str, Any]]:
    seconds: Sequence[Any] = [(None, None)] * len(models)
    inputs = blank_inputs(next(iter(models.values())), tokens)
    if inputs is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        seconds = planned_latencies(list(models.values()), inputs, device, batch) or seconds
    return [
        {"name": name, "class": type(model).__name__, "params": model.num_parameters(), "megabytes": megabytes(model),
         "seconds_for_one": one, "seconds_for_batch": many}
        for (name, model), (one, many) in zip(models.items(), seconds, strict=True)
    ]  # fmt: skip


def parameters_of(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def megabytes(model: Any) -> float:
    """Of a model's parameters."""
    return float(sum(p.numel() * p.element_size() for p in model.parameters())) / 1e6


def summarize(
    planned: OverParameterization, *, teacher: int, batch: int, tokens: int, accumulation: int
) -> dict[str, Any]:
    """Every matrix, the totals, and the expected cost of a step.

    A step costs 3 contractions of every matrix. The student itself costs 6 operations for every token and entry of its
    matrices, the teacher 2 for each of its `teacher` entries (0 if unknown). A matrix's memory is its cores and two
    moments in float32; the total has one gradient of the largest too.
    """
    rate = product_rate("cuda" if torch.cuda.is_available() else "cpu", torch.float32)
    matrices = [
        {"name": t.name, "rows": t.shape.rows, "cols": t.shape.cols, "shape": str(t.shape),
         "bonds": list(t.shape.bond_dims or ()), "params": t.shape.num_params, "scale": round(t.shape.scale, 3),
         "extra_seconds_per_step": 3 * t.shape.contract_flops / rate, "extra_megabytes": 12 * t.shape.num_params / 1e6}
        for t in planned.matrices
    ]  # fmt: skip
    extra = extra_operations(planned)
    plain = (6 * _entries(planned) + 2 * teacher) * batch * tokens * accumulation
    return {
        "matrices": matrices,
        "train_params": planned.train_params,
        "inference_params": planned.inference_params,
        "scale": planned.train_params / planned.inference_params,
        "extra_gflop_per_step": extra / 1e9,
        "extra_seconds_per_step": extra / rate,
        "expected_step_ratio": 1 + extra / plain,
        "with_teacher": teacher > 0,
        "measured_gflops": rate / 1e9,
        "extra_megabytes": extra_megabytes(planned),
        "batch": batch, "tokens": tokens, "accumulation": accumulation,
    }  # fmt: skip


def _entries(planned: OverParameterization) -> int:
    return sum(t.shape.rows * t.shape.cols for t in planned.matrices)


def _meta_model(name: str) -> Any:
    """A model with the head that a run would train, as patterns of names are about its full names."""
    with loading(name) as folder:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        return saved_class(config).from_config(config)
