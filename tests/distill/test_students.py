"""Students cut from teachers of every family: same function where nothing is cut, loadable by plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import prune
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    BeitConfig,
    BeitForImageClassification,
    BertModel,
    EsmConfig,
    EsmModel,
    GenerationConfig,
    XLMConfig,
    XLMWithLMHeadModel,
)

from families import FAMILIES, IMAGE, TEXT, batch, build
from opdf.distill import keep_layers
from opdf.distill.teachers import check_apart
from opdf.overparam import block_lists

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


HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
SMALL = {k: v for k, v in TEXT.items() if not k.startswith("num_")}

ALTERNATING = {
    "smollm3": {"num_hidden_layers": 8, **HEADS},  # rotary embeddings in three blocks of four
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 3, "num_heads": 2},
    "gemma3_text": {"num_hidden_layers": 6, "head_dim": 8, "sliding_window": 3, **HEADS},
}
"""Families whose blocks are not all alike."""


@pytest.mark.parametrize("family", ALTERNATING)
@pytest.mark.parametrize("layers", [2, [0, 3]])
def test_blocks_that_differ_keep_what_is_theirs(family: str, layers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL | ALTERNATING[family])
    teacher = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(1, 60, (2, 8))
    student = keep_layers(teacher, layers).eval()
    (tower,) = block_lists(teacher)
    blocks = list(teacher.get_submodule(tower).children())
    kept = layers if isinstance(layers, list) else [len(blocks) // 2 - 1, len(blocks) - 1]
    parent, _, name = tower.rpartition(".")
    setattr(teacher.get_submodule(parent), name, nn.ModuleList(blocks[k] for k in kept))
    for module in teacher.modules():  # masks are made by kind of block, as the configuration lists them
        if hasattr(module, "config"):
            module.config = student.config
    expected = teacher(ids, use_cache=False).logits
    torch.testing.assert_close(student(ids, use_cache=False).logits, expected)
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(type(student).from_pretrained(tmp_path).eval()(ids, use_cache=False).logits, expected)


def test_parts_of_blocks_that_stand_in_lists_of_their_own_stay_with_their_blocks() -> None:
    """XLM's and FlauBERT's: the kept blocks' attention stood beside the first blocks' feed-forwards and norms."""
    teacher = XLMWithLMHeadModel(XLMConfig(vocab_size=50, emb_dim=16, n_layers=4, n_heads=2)).eval()
    student = keep_layers(teacher, [1, 3])
    for name in ("attentions", "layer_norm1", "ffns", "layer_norm2"):
        ours, theirs = (getattr(model.transformer, name) for model in (student, teacher))
        for block, kept in zip(ours, (theirs[1], theirs[3]), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(block.parameters(), kept.parameters(), strict=True))
    check_apart(student, teacher)  # all XLMs of a process have one activation


def test_what_reads_the_attention_of_all_blocks_reads_that_of_the_kept_ones() -> None:
    """ESM's head for contacts, which all of its models have; torch told of a size mismatch."""
    torch.manual_seed(0)
    config = EsmConfig(vocab_size=30, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8,
                       pad_token_id=1, mask_token_id=2, position_embedding_type="rotary")  # fmt: skip
    teacher = EsmModel._from_config(config, attn_implementation="eager").eval()
    student, tokens = keep_layers(teacher, [0, 1]), torch.arange(3, 15).reshape(2, 6)
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        teacher.contact_head.regression.weight[:, 2 * 2 :] = 0  # of the blocks that are not kept
        torch.testing.assert_close(student.predict_contacts(tokens, mask), teacher.predict_contacts(tokens, mask))
    ours, theirs = (model.contact_head.regression.weight for model in (keep_layers(teacher, [1, 3]), teacher))
    assert torch.equal(ours, theirs[:, [2, 3, 6, 7]])


def test_a_student_ends_its_texts_where_its_teacher_does(tmp_path: Path) -> None:
    """It had a generation configuration of its own, made of the model's: other ends, no settings of sampling."""
    teacher = build("llama", 2)
    teacher.generation_config = GenerationConfig(eos_token_id=[2, 7], temperature=0.6, do_sample=True)
    keep_layers(teacher, 1).save_pretrained(tmp_path)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.eos_token_id, found.temperature, found.do_sample) == ([2, 7], 0.6, True)


def test_blocks_of_kinds_that_a_configuration_cannot_say_are_refused() -> None:
    options = {"num_hidden_layers": 4, "num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 24}
    config = AutoConfig.for_model("llama4_text", interleave_moe_layer_step=2, **SMALL | HEADS | options)
    teacher = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"student block . would have is_moe_layer=.* keep blocks of the same kinds"):
        keep_layers(teacher, [1, 2, 3])


def test_blocks_that_no_configuration_allows_are_refused_and_lists_of_heads_follow() -> None:
    """`from_pretrained` refused the saved student."""
    options = SMALL | HEADS | {"num_hidden_layers": 4, "pad_token_id": 0, "eos_token_id": 1}
    teacher = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo_hybrid", **options))
    with pytest.raises(
        ValueError, match=r"allows no model of blocks \[1, 2\] of model.layers alone .*attention layer.*choose"
    ):
        keep_layers(teacher, [1, 2])
    config = AutoConfig.for_model("laguna", num_attention_heads_per_layer=[2, 2, 4, 4], **options)
    student = keep_layers(AutoModelForCausalLM.from_config(config), [1, 2])
    assert student.config.num_attention_heads_per_layer == [2, 4]


def test_blocks_that_would_be_scaled_by_another_depth_are_refused() -> None:
    options = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
    config = AutoConfig.for_model("minicpm3", **SMALL | options | {"num_attention_heads": 2, "num_hidden_layers": 4})
    teacher = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"student block 0 would have residual_scale=.*build the student from a small"):
        keep_layers(teacher, 2)


EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 8, "head_dim": 8, "num_hidden_layers": 4, **HEADS}


@pytest.mark.parametrize(
    ("family", "options", "part"),
    [
        ("modernbert", {"num_hidden_layers": 4, "num_attention_heads": 2}, "attn_norm.weight"),
        ("qwen3_moe", EXPERTS | {"num_experts": 2, "mlp_only_layers": [0]}, "mlp.experts"),
    ],
)
def test_a_first_block_that_has_less_than_the_others_is_not_copied_into(
    family: str, options: dict[str, Any], part: str
) -> None:
    """ModernBERT's first block has no norm before its attention, and those of some decoders have no experts."""
    config = AutoConfig.for_model(family, **SMALL | options)
    teacher = (AutoModel if family == "modernbert" else AutoModelForCausalLM).from_config(config)
    with pytest.raises(ValueError, match=rf"student block 0 would have no {part}.*block 1 has.*layers=\[0, 3\]"):
        keep_layers(teacher, [1, 3])
    student, (tower,) = keep_layers(teacher, 2), block_lists(teacher)
    for ours, theirs in zip(
        student.get_submodule(tower), (teacher.get_submodule(tower)[k] for k in (0, 3)), strict=True
    ):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_what_is_no_list_of_blocks_is_left_alone() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SMALL | HEADS | {"num_hidden_layers": 3, "eos_token_id": [5, 6, 7]})
    student = keep_layers(AutoModelForCausalLM.from_config(config), 2)
    assert student.config.eos_token_id == [5, 6, 7]


def test_rates_that_grow_with_the_depth_do_not_matter() -> None:
    config = BeitConfig(**IMAGE | {"num_hidden_layers": 6, "drop_path_rate": 0.1})
    student = keep_layers(BeitForImageClassification(config), 3)
    assert len(student.beit.layers) == 3


@pytest.mark.parametrize(
    ("layers", "stages"), [([1, 3], ["stage1", "stage2"]), ([0, 1], ["stage2"]), ([0, 2], ["stage2"])]
)
def test_a_backbone_of_fewer_blocks_names_its_stages_and_loads_again(
    layers: list[int], stages: list[str], tmp_path: Path
) -> None:
    """It gives the states after the blocks that are left of those that its teacher gives, or the last ones."""
    config = BeitConfig(**IMAGE | {"num_hidden_layers": 4, "out_features": ["stage2", "stage4"]})
    student = keep_layers(BeitForImageClassification(config), layers)
    student.save_pretrained(tmp_path)
    for found in (student.config, BeitForImageClassification.from_pretrained(tmp_path).config):
        assert (found.stage_names, found.out_features) == (["stem", "stage1", "stage2"], stages)


def test_a_student_made_in_inference_mode_can_train() -> None:
    teacher = build("bert")
    with torch.inference_mode():
        student = keep_layers(teacher, 1)
    student(**batch("bert")).loss.backward()
    assert all(p.grad is not None for p in student.base_model.encoder.parameters())


def test_a_decoder_alone_of_a_family_with_encoders() -> None:
    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder")
             for name, value in (("layers", 4), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    teacher = BartForCausalLM(BartConfig(vocab_size=60, d_model=16, max_position_embeddings=20, **sizes))
    assert len(keep_layers(teacher, 2).model.decoder.layers) == 2


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


@pytest.mark.parametrize("layers", ["1", 1.0, None, True, [0, "1"], [True]])
def test_layers_that_are_no_whole_numbers_are_refused(layers: Any) -> None:
    with pytest.raises(TypeError, match=r"layers is .*; give a number of blocks, or a list of block numbers"):
        keep_layers(build("bert", 4), layers)
    assert keep_layers(build("bert", 4), np.int64(2)).config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("classifier", nn.Identity(), "classifier is a Identity, and a Linear in a model of its configuration"),
        ("classifier", nn.Linear(16, 7), r"classifier.weight is of shape \[7, 16\], and \[2, 16\].*num_labels"),
        ("bert.encoder.layer.1.intermediate.intermediate_act_fn", nn.ReLU(), "act_fn is a ReLU, and a GELUActivation"),
    ],
)
def test_parts_that_the_students_configuration_does_not_make_are_refused(
    name: str, part: nn.Module, words: str
) -> None:
    teacher = build("bert", 4)
    teacher.set_submodule(name, part)
    with pytest.raises(ValueError, match=words):
        keep_layers(teacher, 2)


def test_a_teacher_without_a_weight_of_its_configuration_is_refused() -> None:
    teacher = build("bert", 4)
    teacher.bert.encoder.layer[3].attention.self.query.bias = None
    with pytest.raises(ValueError, match=r"teacher has no bert.encoder.layer.3.attention.self.query.bias, and a mod"):
        keep_layers(teacher, 2)


def test_pruning_that_is_not_final_is_refused_and_final_pruning_stays() -> None:
    teacher = build("bert", 4)
    query = teacher.bert.encoder.layer[3].attention.self.query
    prune.l1_unstructured(query, "weight", 0.5)
    with pytest.raises(ValueError, match=r"query.weight_orig is no weight of .* final \(torch.nn.utils.prune.remove"):
        keep_layers(teacher, 2)
    prune.remove(query, "weight")
    assert torch.equal(keep_layers(teacher, 2).bert.encoder.layer[1].attention.self.query.weight, query.weight)


def test_a_teacher_without_a_pooler_has_such_a_student() -> None:
    teacher = BertModel(build("bert", 4).config, add_pooling_layer=False)
    student = keep_layers(teacher, 2)
    assert student.pooler is None
    assert all(name in teacher.state_dict() for name in student.state_dict())


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_a_vocabulary_that_has_grown_stays(family: str, tmp_path: Path) -> None:
    """A T5 holds its table under three names, and from then on as one module."""
    teacher = build(family)
    teacher.resize_token_embeddings(67)
    student = keep_layers(teacher, 2).eval()
    torch.testing.assert_close(logits(student, family), logits(teacher, family))
    student.save_pretrained(tmp_path)
    assert type(student).from_pretrained(tmp_path).get_input_embeddings().num_embeddings == 67


def test_other_models_are_refused() -> None:
    adapted = get_peft_model(build("bert"), LoraConfig(target_modules=["query"]))
    for model in (nn.Linear(2, 2), adapted):
        with pytest.raises(TypeError, match="keep_layers needs a transformers model, with adapters merged"):
            keep_layers(model, 1)
    for family in ("swin", "resnet"):
        with pytest.raises(ValueError, match="lists of blocks"):
            keep_layers(build(family), 1)
