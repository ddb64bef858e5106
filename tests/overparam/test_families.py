"""The default targets on small real models of every family: the block matrices, all of them and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertModel,
)

from opdf.data import minilm
from opdf.overparam import OverParamConfig, overparameterize

TEXT = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 20, "pad_token_id": 0}  # fmt: skip
IMAGE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2}  # fmt: skip
BERT_ROLES = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
              "intermediate.dense", "output.dense"}  # fmt: skip

FAMILIES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "bert": (AutoModelForSequenceClassification, TEXT, 2 * 6),
    "roberta": (AutoModelForSequenceClassification, TEXT, 2 * 6),
    "distilbert": (AutoModelForSequenceClassification, {
        "vocab_size": 60, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 20,
    }, 2 * 6),
    "vit": (AutoModelForImageClassification, IMAGE, 2 * 6),
    "deit": (AutoModelForImageClassification, IMAGE | {"architectures": ["DeiTForImageClassification"]}, 2 * 6),
    "swin": (AutoModelForImageClassification, {
        "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4,
    }, 3 * 6),
    "gpt2": (AutoModelForCausalLM, {
        "vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20,
    }, 2 * 4),
    "llama": (AutoModelForCausalLM, TEXT | {"num_key_value_heads": 1}, 2 * 7),
    "t5": (AutoModelForSeq2SeqLM, {
        "vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "decoder_start_token_id": 0,
    }, 2 * 6 + 2 * 10),
}  # fmt: skip


def build(family: str) -> nn.Module:
    auto, options, _ = FAMILIES[family]
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(family, **options))


def loss_of(model: nn.Module, family: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if family in ("vit", "deit", "swin"):
        inputs: dict[str, Any] = {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)}
        return model(**inputs, labels=torch.tensor([0, 1, 0, 1])).loss
    ids = torch.randint(1, 60, (4, 8), generator=generator)
    labels = torch.tensor([0, 1, 0, 1]) if family in ("bert", "roberta", "distilbert") else ids
    return model(input_ids=ids, labels=labels).loss


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_found_and_trained(family: str) -> None:
    model = build(family).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kind, loss = type(model), float(loss_of(model, family).detach())
    overparam = overparameterize(model, OverParamConfig(ones=2))
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=2e-3)
    assert type(model) is kind
    assert float(loss_of(model, family).detach()) == loss
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    assert len(overparam.matrices) == FAMILIES[family][2]
    places = {(t.matrix.stack, t.matrix.block) for t in overparam.matrices}
    roles = [{t.matrix.role for t in overparam.matrices if (t.matrix.stack, t.matrix.block) == p} for p in places]
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
    assert {t.matrix.role.removesuffix(".weight") for t in overparam.matrices} == BERT_ROLES
    assert {t.matrix.block for t in overparam.matrices} == {0, 1}


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
    assert {t.matrix.role for t in overparam.matrices} == {
        "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
    }  # fmt: skip
