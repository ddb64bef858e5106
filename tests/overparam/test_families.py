"""The default targets on small real models of every family: the block matrices, all of them and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertModel

from families import FAMILIES, batch, build
from opdf.data import minilm
from opdf.overparam import OverParamConfig, overparameterize

BERT_ROLES = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
              "intermediate.dense", "output.dense"}  # fmt: skip
WITH_BLOCKS = [name for name, family in FAMILIES.items() if family.matrices]


def loss_of(model: nn.Module, family: str) -> torch.Tensor:
    return model(**batch(family)).loss


ALIKE = ("roberta", "mpnet", "distilbert", "deit", "dinov2", "llama")
"""Families whose blocks are much like another's."""


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow) if f in ALIKE else f for f in WITH_BLOCKS])
def test_blocks_are_found_and_trained(family: str) -> None:
    model = build(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kind, loss = type(model), float(loss_of(model, family).detach())
    overparam = overparameterize(model, OverParamConfig(ones=2))
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=2e-3)
    assert type(model) is kind
    assert float(loss_of(model, family).detach()) == loss
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    assert len(overparam.matrices) == FAMILIES[family].matrices
    places = {(t.blocks, t.block) for t in overparam.matrices}
    roles = [{t.role for t in overparam.matrices if (t.blocks, t.block) == p} for p in places]
    assert all(r == roles[0] or family in ("t5",) for r in roles)
    unwanted = (
        "embed",
        "classifier",
        "pooler",
        "norm",
        "lm_head",
        "downsample",
        "wte",
        "shared",
        "bias",
        "pre_classifier",
    )
    assert not [t.name for t in overparam.matrices if any(u in t.name.lower() for u in unwanted)]

    for _ in range(6):
        optimizer.zero_grad()
        loss_of(model, family).backward()
        optimizer.step()
    assert float(loss_of(model, family).detach()) < loss
    assert model.state_dict().keys() == before.keys()


def test_bert_roles() -> None:
    overparam = overparameterize(build("bert"))
    assert {t.role.removesuffix(".weight") for t in overparam.matrices} == BERT_ROLES
    assert {t.block for t in overparam.matrices} == {0, 1}


def test_minilm_by_name() -> None:
    model = AutoModel.from_pretrained(minilm())
    assert isinstance(model, BertModel)
    overparam = overparameterize(model, OverParamConfig(ones=3))
    assert len(overparam.matrices) == 6 * 6
    sizes = {(t.shape.rows, t.shape.cols): str(t.shape) for t in overparam.matrices}
    assert sizes[1536, 384] == "T(48,1,1,1,32 / 24,1,1,1,16)"
    assert "while training" in overparam.summary()


def test_torchs_own_transformer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24)
    overparam = overparameterize(nn.TransformerEncoder(layer, 2))
    assert {t.role for t in overparam.matrices} == {
        "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
    }  # fmt: skip
