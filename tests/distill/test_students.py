"""Students cut from teachers of every family: same function where nothing is cut, loadable by plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from opdf.distill import keep_layers

TEXT = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
        "max_position_embeddings": 20, "pad_token_id": 0}  # fmt: skip
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (AutoModelForSequenceClassification, TEXT),
    "roberta": (AutoModelForSequenceClassification, TEXT),
    "distilbert": (AutoModelForSequenceClassification, {
        "vocab_size": 60, "dim": 16, "hidden_dim": 24, "n_layers": 4, "n_heads": 2, "max_position_embeddings": 20}),
    "vit": (AutoModelForImageClassification, {
        "image_size": 16, "patch_size": 4, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
        "num_attention_heads": 2}),
    "gpt2": (AutoModelForCausalLM, {"vocab_size": 60, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 20}),
    "llama": (AutoModelForCausalLM, TEXT | {"num_key_value_heads": 1}),
    "qwen3": (AutoModelForCausalLM, TEXT | {"num_key_value_heads": 1, "head_dim": 8}),
    "t5": (AutoModelForSeq2SeqLM, {
        "vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 4, "num_heads": 2,
        "decoder_start_token_id": 0}),
}  # fmt: skip


def build(family: str) -> nn.Module:
    auto, options = FAMILIES[family]
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(family, **options)).eval()


def logits(model: nn.Module, family: str) -> torch.Tensor:
    if family == "vit":
        return model(pixel_values=torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)).logits
    ids = torch.arange(1, 9).reshape(1, 8)
    return model(input_ids=ids, **({"labels": ids} if family == "t5" else {})).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_blocks_changes_nothing(family: str) -> None:
    teacher = build(family)
    torch.testing.assert_close(logits(keep_layers(teacher, 4).eval(), family), logits(teacher, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_students_are_saved_and_loaded_by_plain_transformers(family: str, tmp_path: Path) -> None:
    student = keep_layers(build(family), 2).eval()
    student.save_pretrained(tmp_path)
    again = FAMILIES[family][0].from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again, family), logits(student, family))


def test_a_number_keeps_the_last_of_each_group_and_a_list_keeps_itself() -> None:
    teacher = build("bert")
    for layers, kept in ((2, [1, 3]), (3, [0, 1, 3]), ([0, 3], [0, 3])):
        student = keep_layers(teacher, layers)  # type: ignore[arg-type]
        for ours, theirs in zip(student.bert.encoder.layer, kept, strict=True):
            block = teacher.bert.encoder.layer[theirs]
            assert torch.equal(ours.output.dense.weight, block.output.dense.weight)


def test_random_state_and_teacher_are_left_alone() -> None:
    teacher = build("bert")
    state, before = torch.random.get_rng_state(), teacher.config.num_hidden_layers
    keep_layers(teacher, 1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert teacher.config.num_hidden_layers == before


@pytest.mark.parametrize("layers", [0, 5, [], [3, 1], [0, 4], [1, 1]])
def test_impossible_layers_are_refused(layers: Any) -> None:
    with pytest.raises(ValueError, match="layers is"):
        keep_layers(build("bert"), layers)


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="keep_layers needs a transformers model"):
        keep_layers(nn.Linear(2, 2), 1)
    swin = AutoModelForImageClassification.from_config(
        AutoConfig.for_model("swin", image_size=16, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 2],
                             window_size=4)
    )  # fmt: skip
    with pytest.raises(ValueError, match="stacks of blocks"):
        keep_layers(swin, 1)
