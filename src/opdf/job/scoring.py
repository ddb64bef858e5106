"""Scores of a model on the validation and test splits."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from opdf.distill.embedding import embedder, pair_cosines
from opdf.job.arguments import training_arguments
from opdf.job.prepared import Prepared


def evaluator(model: Any, prepared: Prepared, batch: int = 128) -> Trainer:
    """A Trainer that only scores and predicts."""
    with tempfile.TemporaryDirectory() as unused:  # the Trainer makes its output folder
        arguments = training_arguments({"per_device_eval_batch_size": batch}, Path(unused), 0)
        trainer = Trainer(
            model, arguments, data_collator=prepared.collator, compute_metrics=prepared.task.compute_metrics()
        )
    for callback in list(trainer.callback_handler.callbacks):
        trainer.remove_callback(callback)
    return trainer


def answers(model: Any, prepared: Prepared, part: str) -> np.ndarray:
    """What a model says to a split's examples: class numbers or values `[examples]`."""
    return prepared.task.answers(evaluator(model, prepared).predict(prepared.data[part]).predictions)


def scores(trainer: Trainer, prepared: Prepared) -> dict[str, Any]:
    """Metrics on validation and test, with the number of examples."""
    result: dict[str, Any] = {}
    for part in ("validation", "test"):
        if prepared.task.kind == "similarity":
            cosines = pair_cosines(embedder(trainer.model), prepared.data[part], prepared.collator)
            result[part] = similarity_metrics(prepared, part, cosines)
            continue
        metrics = trainer.evaluate(prepared.data[part], metric_key_prefix=part)
        names = ("accuracy", "f1", "matthews", "pearson", "spearman", "pearson_spearman")
        result[part] = {n: metrics[f"{part}_{n}"] for n in names if f"{part}_{n}" in metrics}
        result[part]["examples"] = len(prepared.data[part])
    return result


def similarity_metrics(prepared: Prepared, part: str, cosines: torch.Tensor) -> dict[str, Any]:
    labels = np.asarray(prepared.raw[part][prepared.task.label])
    return {**prepared.task.metrics(cosines.numpy(), labels), "examples": len(labels)}
