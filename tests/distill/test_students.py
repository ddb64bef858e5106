"""Students cut from teachers of every family: same function where nothing is cut, loadable by plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from families import FAMILIES, batch, build
from opdf.distill import keep_layers

WITH_DEPTH = [name for name, family in FAMILIES.items() if family.depth != "depths"]
"""Families whose depth is one number."""


def logits(model: nn.Module, family: str) -> torch.Tensor:
    return model(**batch(family, 1)).logits


@pytest.mark.parametrize("family", WITH_DEPTH)
def test_keeping_all_blocks_changes_nothing(family: str) -> None:
    teacher = build(family, 4)
    torch.testing.assert_close(logits(keep_layers(teacher, 4).eval(), family), logits(teacher, family))


@pytest.mark.parametrize("family", WITH_DEPTH)
def test_students_are_saved_and_loaded_by_plain_transformers(family: str, tmp_path: Path) -> None:
    student = keep_layers(build(family, 4), 2).eval()
    student.save_pretrained(tmp_path)
    again = FAMILIES[family].auto.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again, family), logits(student, family))


def test_a_number_keeps_the_last_of_each_group_and_a_list_keeps_itself() -> None:
    teacher = build("bert", 4)
    for layers, kept in ((2, [1, 3]), (3, [0, 1, 3]), ([0, 3], [0, 3])):
        student = keep_layers(teacher, layers)  # type: ignore[arg-type]
        for ours, theirs in zip(student.bert.encoder.layer, kept, strict=True):
            block = teacher.bert.encoder.layer[theirs]
            assert torch.equal(ours.output.dense.weight, block.output.dense.weight)


def test_random_state_and_teacher_are_left_alone() -> None:
    teacher = build("bert", 4)
    state, before = torch.random.get_rng_state(), teacher.config.num_hidden_layers
    keep_layers(teacher, 1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert teacher.config.num_hidden_layers == before


@pytest.mark.parametrize("layers", [0, 5, [], [3, 1], [0, 4], [1, 1]])
def test_impossible_layers_are_refused(layers: Any) -> None:
    with pytest.raises(ValueError, match="layers is"):
        keep_layers(build("bert", 4), layers)


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="keep_layers needs a transformers model"):
        keep_layers(nn.Linear(2, 2), 1)
    for family in ("swin", "resnet"):
        with pytest.raises(ValueError, match="stacks of blocks"):
            keep_layers(build(family), 1)
