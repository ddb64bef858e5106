"""The kernel that a step's attention is computed with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from families import build
from opdf import DistillationArguments, DistillationTrainer


@pytest.mark.parametrize(("tokens", "fused"), [(8, False), (200, True)])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_short_texts_take_plain_products_in_bfloat16(
    tokens: int, fused: bool, checkpointed: bool, tmp_path: Path
) -> None:
    """Blocks that go forward again in the backward pass take the same kernel there."""
    teacher, student = (build("bert", max_position_embeddings=256, attention_probs_dropout_prob=0) for _ in range(2))
    seen: list[bool] = []
    block = student.base_model.encoder.layer[0].attention
    block.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    rows = Dataset.from_dict({"input_ids": [[1 + k] * tokens for k in range(4)], "labels": [0, 1, 0, 1]})
    arguments = DistillationArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, bf16=True, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=checkpointed,
    )  # fmt: skip
    DistillationTrainer(student, arguments, teacher=teacher, train_dataset=rows.with_format("torch")).train()
    assert seen == [fused] * (4 if checkpointed else 2)
    assert torch.backends.cuda.flash_sdp_enabled()
