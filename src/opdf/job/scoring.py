"""Scores of a model on the validation and test splits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import DatasetDict
from torch import Tensor, nn
from transformers import Trainer

from opdf.data import Prepared, describe, longest_text, token_agreement
from opdf.distill import Batch, mean_pooled
from opdf.job.arguments import renewed, training_arguments
from opdf.job.checks import check_inputs
from opdf.job.config import DataConfig, TeacherConfig
from opdf.job.errors import UserError
from opdf.job.job import located_data
from opdf.job.models import load_model
from opdf.job.options import plain, read_config
from opdf.job.output import CONFIG
from opdf.job.prepared import prepare_data
from opdf.job.probe import linear_probe
from opdf.job.processes import tell
from opdf.job.progress import Scored, counting
from opdf.job.resume import begun_config, check_rows_of_run
from opdf.job.saved import Saved, find_saved

SCORED = ("validation", "test")
"""Splits that models are scored on."""


def evaluator(model: Any, prepared: Prepared, batch: int = 128) -> Trainer:
    """A Trainer that only scores and predicts."""
    with tempfile.TemporaryDirectory() as unused:  # the Trainer makes its output folder
        arguments = renewed(training_arguments({"per_device_eval_batch_size": batch}, Path(unused), 0), prepared.task)
        trainer = Trainer(model, arguments, **prepared.for_trainer())
    for callback in list(trainer.callback_handler.callbacks):
        trainer.remove_callback(callback)
    return trainer


def evaluate(
    name: str | Path, data: DataConfig | None = None, *, batch: int = 128, probe: bool = False
) -> dict[str, Any]:
    """Score a saved model on the validation and test splits of some data.

        evaluate("runs/mine")["test"]["accuracy"]

    Args:
        name: output folder of a run, a saved model's folder, or a hub name.
        data: the data; None takes those of the run.
        batch: examples at a time.
        probe: also train a linear classifier on the frozen features and score it on the test split.

    Returns:
        Metrics by split, with the number of examples.

    Raises:
        UserError: the model is not trained for this task, it comes without data, it or the data cannot be read, or the
            data of the run that it is from have changed.
        FileNotFoundError: there is no such folder or file.
    """
    saved = find_saved(str(name))
    if data is None:
        if saved.run is None:
            raise UserError(f"{name} comes without data; give data, or the output folder of a run")
        data = read_config(str(saved.run / CONFIG)).data
    name = saved.model
    prepared = data_to_score(data, saved)
    if probe and not prepared.task.has_classes:
        raise UserError(
            f"probe is true and {data.name} is for {prepared.task.kind}; a linear classifier needs one class an "
            "example: leave it out"
        )
    if prepared.task.is_unlabelled:
        raise UserError(f"{data.name} has no labels to score {name} against; name the label column in data.label")
    model, missing = load_model(name, prepared.task)
    if saved.run is not None:  # not before: it would warn of files that the model could not be loaded from
        check_rows_of_run(saved.run, data, prepared.raw)
    if missing:
        raise UserError(f"{name} is not trained for this task ({missing[0]} is missing); give a fine-tuned model")
    check_inputs("the model", model, prepared)
    tell_of(prepared, data.name)
    result = scores(evaluator(model, prepared, batch), prepared)
    if probe:
        result["linear probe"] = linear_probe(model, prepared.data, prepared.collator, batch=batch)
    return result


def data_to_score(data: DataConfig, saved: Saved) -> Prepared:
    """The data to score a model on.

    A file for a run's validation or test rows leaves the other splits as the run had them. Cut anew without one,
    the validation rows would be some of the run's test rows, or of its training rows where they are more.
    """
    run, teacher = saved.run, TeacherConfig(model=saved.model)
    prepared = prepare_data(data, teacher)
    if run is None:
        return prepared
    own, data = begun_config(run).data, located_data(data)
    if plain(own) == plain(data):
        return prepared
    files: dict[str, Any] = {
        part: file for part in ("validation", "test") if isinstance(file := getattr(data, part), str)
    }
    if plain(replace(own, **files)) != plain(data):
        if data.name == own.name and any(getattr(data, k) != getattr(own, k) for k in ("validation", "test", "seed")):
            tell(f"warning: {data.name} is cut otherwise than for {run}; its student may be scored on rows it has seen")
        prepared = _read_as_trained(prepared, data, saved)
        if own.max_length != data.max_length and _fills(prepared, min(own.max_length, data.max_length)):
            tell(
                f"note: data.max_length is {data.max_length} and {run} was trained with {own.max_length}; texts that "
                "are cut elsewhere score otherwise"
            )
        return prepared
    mine = prepare_data(own, teacher)
    try:
        check_rows_of_run(run, own, mine.raw)
    except UserError as error:  # the file can be scored all the same
        tell(f"warning: {error}")
    raw, encoded = (
        DatasetDict({part: (theirs if part in files else ours)[part] for part in ours})
        for ours, theirs in ((mine.raw, prepared.raw), (mine.data, prepared.data))
    )
    return replace(prepared, raw=raw, data=encoded)


def _fills(prepared: Prepared, length: int) -> bool:
    """Whether some text has so many tokens."""
    return not prepared.task.is_image and max(map(longest_text, prepared.data.values())) >= length


def _read_as_trained(prepared: Prepared, data: DataConfig, saved: Saved) -> Prepared:
    """Other data with the columns that the run was trained on, if they have these and nobody names others."""
    trained = tuple(saved.metrics.get("inputs", ()))
    columns = prepared.raw["train"].column_names
    if data.inputs is not None or trained in ((), prepared.task.inputs) or not {*trained} <= {*columns}:
        return prepared
    return prepare_data(replace(data, inputs=list(trained)), TeacherConfig(model=saved.model))


def tell_of(prepared: Prepared, name: str) -> None:
    """Say what a user should know before a score: which columns were chosen, texts that are cut, rows trained on."""
    for what, text in describe(prepared, name, where="data.").lines():
        if what in ("note", "truncated"):
            tell(f"note: {text}")


def answers(model: Any, prepared: Prepared, part: str) -> np.ndarray:
    """A model's answers for a split's examples, see `Task.answers`."""
    return prepared.task.answers(evaluator(model, prepared).predict(prepared.data[part]).predictions)


def judged(prepared: Prepared, teacher: Any) -> Prepared:
    """Unlabelled data and a language model's texts with the answers of a ready teacher; others as they are."""
    if not prepared.task.follows_teacher:
        return prepared
    return prepared.judged_by({part: answers(teacher, prepared, part) for part in ("validation", "test")})


def scores(trainer: Trainer, prepared: Prepared) -> dict[str, Any]:
    """Metrics on validation and test, with the number of examples."""
    with counting("scoring") as progress:
        scored = Scored(progress, sum(len(prepared.data[part]) for part in SCORED))
        trainer.add_callback(scored)
        try:
            return _scores(trainer, prepared, scored)
        finally:
            trainer.remove_callback(scored)


def _scores(trainer: Trainer, prepared: Prepared, scored: Scored) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in SCORED:
        scored.begin(len(prepared.data[part]))
        if prepared.task.kind == "similarity":
            cosines = pair_cosines(embedder(trainer.model), prepared.data[part], prepared.collator)
            result[part] = similarity_metrics(prepared, part, cosines)
            continue
        said = prepared.said.get(part)
        if said is None:
            metrics = trainer.evaluate(prepared.data[part], metric_key_prefix=part)
        else:
            found = trainer.predict(prepared.data[part], metric_key_prefix=part)
            metrics = found.metrics or {}
        result[part] = {name: metrics[f"{part}_{name}"] for name in prepared.task.metric_names}
        if said is not None:
            mine = prepared.task.answers(found.predictions)
            result[part]["agreement"] = token_agreement(mine, said, np.asarray(found.label_ids))
        result[part]["examples"] = len(prepared.data[part])
    return result


def similarity_metrics(prepared: Prepared, part: str, cosines: Tensor) -> dict[str, Any]:
    labels = np.asarray(prepared.raw[part][prepared.task.label])
    return {**prepared.task.metrics(cosines.numpy(), labels), "examples": len(labels)}


def embedder(model: nn.Module) -> Callable[[Batch], Tensor]:
    """Batches of a model without a head to embeddings on the CPU."""

    def embed(batch: Batch) -> Tensor:
        device, was = next(model.parameters()).device, model.training
        inputs = {name: value.to(device) for name, value in batch.items()}
        with torch.no_grad():
            output = model.eval()(**inputs)
        model.train(was)
        return mean_pooled(output.last_hidden_state, inputs.get("attention_mask")).cpu()

    return embed


def pair_cosines(
    embed: Callable[[Batch], Tensor], rows: Sequence[Any], collate: Callable[[list[Any]], Batch], batch: int = 128
) -> Tensor:
    """Cosines `[pairs]` of the embeddings of pairs of texts.

    Args:
        embed: a batch to embeddings `[batch, width]`; see `embedder`.
        rows: encoded texts; 2k and 2k + 1 are pair k.
        collate: makes a batch of rows.
        batch: rows at a time.
    """
    starts = range(0, len(rows), batch)
    vectors = torch.cat([embed(collate([rows[k] for k in range(s, min(s + batch, len(rows)))])) for s in starts])
    return F.cosine_similarity(vectors[::2], vectors[1::2])
