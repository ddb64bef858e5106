"""How long models take for one example and for a batch, on this machine."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from opdf.data import Prepared
from opdf.distill import model_inputs

REPEATS = 25
"""Times that a latency is measured."""


TOO_LARGE = 10**9
"""Parameters from which on a model is not made only to be measured."""


def planned_latencies(models: Sequence[Any], prepared: Prepared, device: torch.device, batch: int) -> Any:
    """Seconds that models without values will take, measured on others of their sizes; None for one that is too large.

    Returns:
        For each model what `latencies` gives.
    """
    if any(model.num_parameters() > TOO_LARGE for model in models):
        return None
    with torch.random.fork_rng(), device:
        made = [type(model)._from_config(copy.deepcopy(model.config), dtype=torch.float32) for model in models]
    return latencies([(model, prepared) for model in made], batch, repeats=5)


def latencies(
    models: Sequence[tuple[Any, Prepared]], batch: int, *, repeats: int = REPEATS
) -> list[tuple[float, float]]:
    """Seconds that each model takes for one test example and for a batch of them: medians.

    The models take turns, so that what else the machine does meets all of them alike.

    Args:
        models: each with the data that its examples come from.
        batch: examples of the larger batch.
        repeats: times that each is measured.
    """
    calls = [(model, _inputs(model, prepared, count)) for model, prepared in models for count in (1, batch)]
    taken: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for (model, inputs), times in zip(calls, taken, strict=True):
                start = time.perf_counter()
                model.eval()(**inputs)
                if torch.accelerator.is_available():
                    torch.accelerator.synchronize()
                if turn > 0:  # the first one warms up
                    times.append(time.perf_counter() - start)
    medians = [statistics.median(times) for times in taken]
    return list(zip(medians[::2], medians[1::2], strict=True))


def _inputs(model: Any, prepared: Prepared, count: int) -> dict[str, torch.Tensor]:
    rows = prepared.data["test"]
    batch = prepared.collator([rows[k % len(rows)] for k in range(count)])
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in model_inputs(model, batch).items()}
