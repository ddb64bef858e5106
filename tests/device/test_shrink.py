"""`shrink` on a device of its own gives the CPU's student."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from families import batch, build
from opdf.distill import shrink

pytestmark = pytest.mark.device

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 1, "num_attention_heads": 1},
    "deberta-v2": {"hidden_size": 8},
    "modernbert": {"hidden_size": 8, "num_attention_heads": 1},
    "gpt2": {"n_embd": 8},
    "llama": {"hidden_size": 8, "intermediate_size": 10},
    "t5": {"d_model": 8, "num_heads": 1},
}


def same(family: str, device: torch.device) -> None:
    given = batch(family, 48)
    sizes = SIZES[family]
    there: dict[str, Tensor] = {k: v.to(device) for k, v in given.items()}
    expected = shrink(build(family), [given], **sizes)
    found = shrink(build(family).to(device), [there], **sizes)
    assert found.device == device
    with torch.no_grad():
        ours, theirs = found(**there).logits.cpu(), expected(**given).logits
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.usefixtures("train_on")
def test_the_cpus_student(family: str, device: torch.device) -> None:
    same(family, device)


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
@pytest.mark.usefixtures("train_on", "single_only")
def test_without_float64(device: torch.device, family: str) -> None:
    same(family, device)
