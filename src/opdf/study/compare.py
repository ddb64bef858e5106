"""Finished runs side by side: scores, sizes, latency, cost, and how sure their differences are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opdf.data import Prepared
from opdf.job import (
    CONFIG,
    METRICS,
    STUDENT,
    TeacherConfig,
    UserError,
    begun_config,
    begun_with,
    check_student,
    going_on,
    latencies,
    load_model,
    prepare_data,
    read_metrics,
    rows_digest,
    split_inputs,
)
from opdf.study import markdown
from opdf.study.judge import POINT, Judge, answers_of, labels_of
from opdf.study.statistics import Effect, Pair, differences, effect


@dataclass(frozen=True)
class Finished:
    """A finished run, loaded.

    Attributes:
        folder: output folder of `opdf distill`.
        metrics: what its metrics.json holds.
        student: the saved student.
        prepared: the data that it was distilled with.
        answers, labels: of the test split, see `answers_of` and `labels_of`.
        split: a digest of the test split's rows.
    """

    folder: Path
    metrics: dict[str, Any]
    student: Any
    prepared: Prepared
    answers: np.ndarray
    labels: np.ndarray
    split: str


def compare(folders: Sequence[Path], *, batch: int = 32) -> list[dict[str, Any]]:
    """Finished runs side by side, as `opdf compare` shows them.

    Args:
        folders: output folders of `opdf distill`.
        batch: examples of the larger batch that latencies are measured with.

    Returns:
        A row a run: its name, metric, test scores of the teacher and of the student before and after its training, the
        validation score, a language model's agreement with its teacher, parameters, megabytes of the saved student,
        milliseconds for one example and for a batch on this machine (medians, the runs taking turns), steps and seconds
        of training, whether it was tested on the first run's examples, and "against", the difference to the first run's
        test score with its 95 % interval by test examples. "against" is null if the two have other test examples or
        their answers cannot be paired.

    Raises:
        UserError: there are fewer than two runs, one is not finished, or its data have changed.
        FileNotFoundError: a folder holds no run.
    """
    if len(folders) < 2:
        raise UserError("one run has nothing to be compared with; give two or more")
    runs = [load(folder) for folder in folders]
    times = latencies([(run.student, split_inputs(run.prepared)) for run in runs], batch)
    return [_row(run, runs[0], *seconds) for run, seconds in zip(runs, times, strict=True)]


def load(folder: Path) -> Finished:
    """A finished run with its student's answers on the test split.

    Raises:
        UserError: it is not finished, or its data have changed.
        FileNotFoundError: the folder holds no run.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no run: {CONFIG} is missing; give output folders of opdf distill")
    if not (folder / METRICS).is_file():
        raise UserError(f"{folder} is not finished; {going_on(folder)} goes on with it")
    check_student(folder)
    metrics, begun, config = read_metrics(folder), begun_with(folder), begun_config(folder)
    student = str(folder / STUDENT)
    prepared = prepare_data(config.data, TeacherConfig(model=student))
    split = rows_digest(prepared.raw["test"])
    if begun is None or split != begun.rows["test"]:
        raise UserError(
            f"the test split of {config.data.name} holds other rows than {folder} was scored on; bring the old data "
            "back, or leave this run out"
        )
    model, _ = load_model(student, prepared.task)
    labels = np.zeros(0) if prepared.task.is_unlabelled else labels_of(prepared, "test")
    return Finished(folder, metrics, model, prepared, answers_of(model, prepared, "test"), labels, split)


def against(run: Finished, first: Finished) -> Effect | None:
    """How much more a run scores than another on the same test examples; None if they cannot be compared.

    That is so if the test examples differ, or their tokens, as with another tokenizer, and without labels.
    """
    task, other = run.prepared.task, first.prepared.task
    same = (run.split, task.metric) == (first.split, other.metric) and np.array_equal(run.labels, first.labels)
    if run is first or not same or task.is_unlabelled:
        return None
    return effect([differences([Pair(run.answers, first.answers, run.labels)], Judge(task).score)])


def table(rows: Sequence[dict[str, Any]], batch: int) -> str:
    """The rows of `compare` as a Markdown table."""
    first = rows[0]["run"]
    follows = any(row["agreement"] is not None for row in rows)
    heads = ("run", "metric", "teacher", "before training", "validation", "test", f"test, minus {first}",
             *(["agreement"] if follows else []), "parameters", "MB", "ms for 1",
             f"ms for {batch}", "steps", "s of training")  # fmt: skip
    lines = []
    for row in rows:
        found = row["against"]
        difference = (
            f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]" if found else ""
        )
        lines.append((
            row["run"], row["metric"], *(_shown(row, part) for part in ("teacher", "before", "validation", "test")),
            difference, *([_percent(row["agreement"])] if follows else []), f"{row['parameters']:,}",
            f"{row['megabytes']:.3g}", f"{row['milliseconds']:.1f}", f"{row['milliseconds_batch']:.1f}",
            f"{row['steps']:,}", f"{row['train_seconds']:.0f}",
        ))  # fmt: skip
    align = ("left", "left", *["right"] * (len(heads) - 2))
    return markdown.table(lines, heads, align)


def remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader of the table has to know."""
    others = [row["run"] for row in rows if not row["same_examples"]]
    found = []
    if others:
        first, them = rows[0]["run"], " and ".join(others)
        found.append(f"Other test examples than {first}'s: {them}. Their scores cannot be compared with its.")
    if other := [row["run"] for row in rows[1:] if _of_other_tokens(row)]:
        found.append(
            f"Other tokens than {rows[0]['run']}'s, or texts that are cut elsewhere: {' and '.join(other)}. Their "
            f"{'perplexities' if rows[0]['metric'] == 'perplexity' else 'scores'} cannot be compared with its."
        )
    if sum(row["metric"] == "agreement" for row in rows) > 1:
        found.append("Agreement is with each run's own teacher: with another teacher it cannot be compared.")
    if any(row["against"] and row["metric"] == "perplexity" for row in rows):
        found.append(POINT)
    if any(row["against"] for row in rows):
        found.append("The intervals are of the test examples. With another seed the differences can move further.")
    return found


def _row(run: Finished, first: Finished, one: float, many: float) -> dict[str, Any]:
    metric, metrics, found = run.metrics["metric"], run.metrics, against(run, first)
    weights = sum(file.stat().st_size for file in (run.folder / "student").glob("*.safetensors"))
    return {
        "run": str(run.folder), "metric": metric, "teacher": metrics["teacher"]["test"][metric],
        "before": metrics["student before training"]["test"][metric],
        "validation": metrics["student"]["validation"][metric], "test": metrics["student"]["test"][metric],
        "agreement": metrics["student"]["test"].get("agreement") if metric != "agreement" else None,
        "same_examples": run.split == first.split,
        "against": None if found is None else {"mean": found.mean, "low": found.low, "high": found.high},
        "parameters": metrics["inference_params"], "megabytes": weights / 1e6, "milliseconds": 1000 * one,
        "milliseconds_batch": 1000 * many, "steps": metrics["steps"], "train_seconds": metrics["train_seconds"],
    }  # fmt: skip


def _of_other_tokens(row: dict[str, Any]) -> bool:
    """Of a row but the first: its test examples are the first's, and the tokens that are scored are not.

    Answers to a teacher alone are not paired either, and have the metric "agreement".
    """
    return row["metric"] != "agreement" and row["same_examples"] and row["against"] is None


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def _shown(row: dict[str, Any], part: str) -> str:
    """A score in percent; perplexity as it is."""
    return f"{row[part]:.2f}" if row["metric"] == "perplexity" else _percent(row[part])
