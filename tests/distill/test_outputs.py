"""Answers that a teacher gives once, before the training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import example, given, settings
from tests.distill.small import bert
from tests.spoil import Spoiling, spoilings
from torch import Tensor, nn
from transformers import default_data_collator

from jobs import full_disk
from opdf import DistillationArguments
from opdf.data import ImageNoise, Prepared, Task
from opdf.distill import BeforeTraining, Ensemble, LogitsDistillation, StorageError
from opdf.distill.outputs import BATCH, MOST_ASKED_AHEAD, kept, teacher_logits, with_answers, worth_asking_ahead


def test_every_row_gets_its_own_answer_and_the_longest_are_asked_first(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"input_ids": [[k] * (1 + k % 7) for k in range(BATCH + 40)]})
    asked: list[int] = []
    teacher = nn.Linear(1, 1)

    def answer(some: list[dict[str, Any]]) -> Tensor:
        asked.extend(len(row["input_ids"]) for row in some)
        return torch.tensor([[float(row["input_ids"][0]), 0.5] for row in some])

    for _ in range(2):  # the second time they are read
        told = with_answers(before(rows, teacher, tmp_path), "answers", answer)
    assert told["answers"][:] == [[float(k), 0.5] for k in range(len(rows))]
    assert told.remove_columns("answers")[:] == rows[:]
    assert asked == sorted(map(len, rows["input_ids"]), reverse=True)


def test_answers_are_in_the_precision_of_the_training_unless_other_runs_share_them(tmp_path: Path) -> None:
    rows, teacher, halves = Dataset.from_dict({"input_ids": [[1], [2]]}), nn.Linear(1, 1), list[bool]()

    def answer(some: list[dict[str, Any]]) -> Tensor:
        halves.append(torch.is_autocast_enabled("cpu"))
        return torch.zeros(len(some), 1)

    for bf16, shared in ((True, True), (False, False), (True, False), (True, True)):
        arguments = DistillationArguments(str(tmp_path), use_cpu=True, bf16=bf16)
        with_answers(before(rows, teacher, tmp_path, arguments=arguments, shared=shared), "answers", answer)
    assert halves == [False, True]  # the others are read: a shared answer is that of float32


def test_a_teacher_answers_in_eval_mode_and_stays_in_its_own(tmp_path: Path) -> None:
    teacher = bert(1, hidden_dropout_prob=0.5).train()
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}]
    found = teacher_logits(teacher, before(Dataset.from_list(rows), teacher, tmp_path).data, rows)
    assert teacher.training
    with torch.no_grad():
        torch.testing.assert_close(found, teacher.eval()(torch.tensor([[1, 2, 3], [4, 5, 6]])).logits)


def test_several_teachers_answer_at_the_temperature_at_which_they_are_followed(tmp_path: Path) -> None:
    ids = [[1, 2, 3], [4, 5, 6]]
    models = [bert(1, initializer_range=spread).eval() for spread in (0.5, 1.0)]
    run = before(Dataset.from_dict({"input_ids": ids}), Ensemble(models).eval(), tmp_path, shared=True)
    told = LogitsDistillation(temperature=4.0).prepare_data(run)["teacher_logits"][:]
    expected = sum((model(torch.tensor(ids)).logits.detach() / 4).softmax(-1) for model in models) / 2
    torch.testing.assert_close((torch.tensor(told) / 4).softmax(-1), expected)


VALUES = np.linspace(-3, 3, 12, dtype=np.float32).reshape(6, 2)


@settings(max_examples=60)
@given(spoiling=spoilings)
@example(spoiling=("[6,2]", "[2,6]"))
@example(spoiling=('"F32"', '"I32"'))
@example(spoiling=('"F32"', '"U32"'))
def test_a_spoiled_file_is_read_as_it_was_or_made_again(spoiling: Spoiling | tuple[str, str]) -> None:
    with TemporaryDirectory() as folder:
        kept(Path(folder), "answers", [], lambda: VALUES)
        (file,) = Path(folder).iterdir()
        if isinstance(spoiling, Spoiling):
            spoiling.apply(file)
        else:
            file.write_bytes(file.read_bytes().replace(*(text.encode() for text in spoiling)))
        found = kept(Path(folder), "answers", [], lambda: VALUES)
        assert found.dtype == VALUES.dtype
        np.testing.assert_array_equal(found, VALUES)


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    with full_disk(100), pytest.raises(StorageError, match=rf"{tmp_path}/answers-\w+.safetensors could not be written"):
        kept(tmp_path, "answers", [], lambda: VALUES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "outputs", "options", "shared", "worth"),
    [
        (100, 2, {"num_train_epochs": 2}, False, True),
        (100, 2, {"num_train_epochs": 1}, False, False),
        (100, 2, {"num_train_epochs": 1}, True, True),
        (10, 2, {"num_train_epochs": 1}, False, False),  # two steps, of 8 rows and of 2
        (100, 2, {"max_steps": 10}, False, False),  # 80 of the rows
        (100, 2, {"max_steps": 10, "gradient_accumulation_steps": 2}, False, False),  # 148
        (100, 2, {"max_steps": 11, "gradient_accumulation_steps": 2}, False, True),
        (1000, 1 + MOST_ASKED_AHEAD // 1000, {"num_train_epochs": 9}, True, False),
        (0, 2, {"num_train_epochs": 2}, False, False),
    ],
)
def test_a_teacher_answers_ahead_where_it_would_answer_again(
    rows: int, outputs: int, options: dict[str, Any], shared: bool, worth: bool, tmp_path: Path
) -> None:
    arguments = DistillationArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8, **options)
    data = Dataset.from_dict({"input_ids": [[0]] * rows})
    run = before(data, nn.Linear(1, 1), tmp_path, arguments=arguments, shared=shared)
    assert worth_asking_ahead(run, outputs) == worth
    noisy = replace(run, data=replace(run.data, noise=ImageNoise()))  # another image every time
    assert not worth_asking_ahead(noisy, outputs)
    assert not LogitsDistillation(alpha=0.0).asks_ahead(run)
    for kind in ("token-classification", "causal-lm"):  # whose answers are of every token
        assert not LogitsDistillation().asks_ahead(replace(run, data=replace(run.data, task=replace(TASK, kind=kind))))


TASK = Task("classification", ("text",), None, ("no", "yes"))


def before(rows: Dataset, teacher: nn.Module, folder: Path, **options: Any) -> BeforeTraining:
    splits = DatasetDict(train=rows)
    data = Prepared(splits, splits, TASK, None, default_data_collator)
    return BeforeTraining(data, teacher, folder, **options)
