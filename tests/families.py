"""Small random models of every family that is supported, and a batch for each."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

TEXT = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 20, "pad_token_id": 0}  # fmt: skip
IMAGE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2}  # fmt: skip


class Family(NamedTuple):
    """How to build a model: its kind of task, configuration, the field that says its depth, matrices in its blocks."""

    auto: Any
    options: dict[str, Any]
    depth: str
    matrices: int


FAMILIES = {
    "bert": Family(AutoModelForSequenceClassification, TEXT, "num_hidden_layers", 2 * 6),
    "roberta": Family(AutoModelForSequenceClassification, TEXT, "num_hidden_layers", 2 * 6),
    "mpnet": Family(AutoModelForSequenceClassification, TEXT, "num_hidden_layers", 2 * 6),
    "modernbert": Family(AutoModelForSequenceClassification, TEXT | {
        "local_attention": 4, **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
    }, "num_hidden_layers", 2 * 4),
    "deberta-v2": Family(AutoModelForSequenceClassification, TEXT | {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 4,
        "norm_rel_ebd": "layer_norm", "position_biased_input": False,
    }, "num_hidden_layers", 2 * 6),
    "distilbert": Family(AutoModelForSequenceClassification, {
        "vocab_size": 60, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 20,
    }, "n_layers", 2 * 6),
    "vit": Family(AutoModelForImageClassification, IMAGE, "num_hidden_layers", 2 * 6),
    "deit": Family(AutoModelForImageClassification, IMAGE | {"architectures": ["DeiTForImageClassification"]},
                   "num_hidden_layers", 2 * 6),
    "dinov2": Family(AutoModelForImageClassification, {
        "image_size": 16, "patch_size": 4, "hidden_size": 16, "mlp_ratio": 2, "num_hidden_layers": 2,
        "num_attention_heads": 2, "layerscale_value": 0.5,
    }, "num_hidden_layers", 2 * 6),
    "swin": Family(AutoModelForImageClassification, {
        "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4,
    }, "depths", 3 * 6),
    "resnet": Family(AutoModelForImageClassification, {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic",
    }, "depths", 0),
    "gpt2": Family(AutoModelForCausalLM, {
        "vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20,
    }, "n_layer", 2 * 4),
    "llama": Family(AutoModelForCausalLM, TEXT | {"num_key_value_heads": 1}, "num_hidden_layers", 2 * 7),
    "qwen3": Family(AutoModelForCausalLM, TEXT | {"num_key_value_heads": 1, "head_dim": 8}, "num_hidden_layers", 2 * 7),
    "t5": Family(AutoModelForSeq2SeqLM, {
        "vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "decoder_start_token_id": 0,
    }, "num_layers", 2 * 6 + 2 * 10),
}  # fmt: skip


def build(family: str, depth: Any = None, model_type: str | None = None, **options: Any) -> nn.Module:
    """A model in eval mode, the same one at every call; of another type, with its family's fields, if one is named."""
    auto, fields, name, _ = FAMILIES[family]
    torch.manual_seed(0)
    changed = fields | ({} if depth is None else {name: depth}) | options
    return auto.from_config(AutoConfig.for_model(model_type or family, **changed)).eval()


def batch(family: str, examples: int = 4) -> dict[str, Tensor]:
    """Inputs and labels; texts of different lengths, padded with labels of -100 where these are per token."""
    generator = torch.Generator().manual_seed(0)
    auto = FAMILIES[family].auto
    classes = torch.arange(examples) % 2
    if auto is AutoModelForImageClassification:
        return {"pixel_values": torch.randn(examples, 3, 16, 16, generator=generator), "labels": classes}
    ids = torch.randint(1, 60, (examples, 8), generator=generator)
    mask = (torch.arange(8) < 8 - torch.arange(examples)[:, None] % 3).long()
    labels = classes if auto is AutoModelForSequenceClassification else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
