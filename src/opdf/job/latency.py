"""How long models take for one example and for a batch, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from opdf.data import Prepared
from opdf.distill import like, members, model_inputs
from opdf.job.models import places

Inputs = Callable[[int], dict[str, Tensor]]
"""Makes a model's inputs for a number of examples."""

BATCH = 32
"""Examples of the larger batch that a run's and a demo's latencies are measured with."""

REPEATS, PLANNED_REPEATS = 25, 5
"""How often a latency is measured."""

PATIENCE = 5.0
"""Seconds after which no further measurement of a plan's latencies begins."""

TOO_LARGE = 10**9
"""A model with this many parameters or more is not made only to be measured."""


def planned_latencies(
    models: Sequence[Any], inputs: Inputs, device: torch.device, batch: int
) -> list[tuple[float, float]] | None:
    """Seconds that models without values will take, measured on others of their sizes; None if one is too large.

    Args:
        models: on the meta device, say.
        inputs: of all of them.
        device: where they are measured.
        batch: examples of the larger batch.

    Returns:
        For each model what `latencies` gives.
    """
    if any(one.num_parameters() > TOO_LARGE for model in models for one in members(model)):
        return None
    with torch.random.fork_rng(), device:
        made = [like(model, torch.float32) for model in models]
    return latencies([(model, inputs) for model in made], batch, repeats=PLANNED_REPEATS, patience=PATIENCE)


def latencies(
    models: Sequence[tuple[Any, Inputs]], batch: int, *, repeats: int = REPEATS, patience: float = float("inf")
) -> list[tuple[float, float]]:
    """Seconds that each model takes for one example and for a batch of them: medians.

    The models take turns, so that other work on the machine affects all of them alike.

    Args:
        models: each with its inputs.
        batch: examples of the larger batch.
        repeats: times that each is measured; before them comes a turn that warms up.
        patience: seconds after which no further turn begins. The first turn always counts.
    """
    calls = [(model, _placed(model, inputs(count))) for model, inputs in models for count in (1, batch)]
    taken: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    with torch.inference_mode():
        for turn in range(repeats + 1):
            if turn > 0 and time.perf_counter() - began > patience:
                break
            for (model, inputs), times in zip(calls, taken, strict=True):
                start = now()
                model.eval()(**inputs)
                times.append(now() - start)
    medians = [statistics.median(times[1:] or times) for times in taken]
    return list(zip(medians[::2], medians[1::2], strict=True))


def now() -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def split_inputs(prepared: Prepared) -> Inputs:
    """Examples of the test split."""
    rows = prepared.data["test"]
    return lambda count: dict(prepared.collator([rows[k % len(rows)] for k in range(count)]))


def blank_inputs(model: Any, tokens: int) -> Inputs | None:
    """Texts of as many tokens, or images of the model's size, without content; None for models with other inputs."""
    config = model.config
    if model.main_input_name == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        shape = (getattr(config, "num_channels", 3), config.image_size, config.image_size)
        return lambda count: {"pixel_values": torch.zeros(count, *shape)}
    if model.main_input_name != "input_ids":
        return None
    length = min(tokens, places(model) or tokens)
    names = ("input_ids", "decoder_input_ids") if config.is_encoder_decoder else ("input_ids",)
    return lambda count: {name: torch.zeros(count, length, dtype=torch.int64) for name in names}


def _placed(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in model_inputs(model, batch).items()}
