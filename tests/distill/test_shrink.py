"""Students of other sizes: teachers that were made from small models come back as these, and what is refused."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from tests.distill.small import scored_in_bf16
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from families import batch, build
from opdf import Constraint, DistillationArguments, DistillationTrainer, OverParamConfig, overparameterize
from opdf.distill import blank_student, keep_layers, shrink, shrink_report
from opdf.distill.planning import _partner
from opdf.distill.shrink import basis, calibration, has_moved, merge
from opdf.distill.shrink.basis import OUTPUTS, leading_axes
from opdf.distill.shrink.families import Attention, family_of
from opdf.distill.shrink.moments import Moments

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}), "roberta": ("roberta", {}), "xlm-roberta": ("roberta", {"model_type": "xlm-roberta"}),
    "camembert": ("roberta", {"model_type": "camembert"}),
    "electra": ("bert", {"model_type": "electra", "embedding_size": 16}),
    "mpnet": ("mpnet", {}), "distilbert": ("distilbert", {}), "deberta-v2": ("deberta-v2", {}),
    "deberta-v2-old": ("deberta-v2", {
        "norm_rel_ebd": "none", "position_biased_input": True, "pos_att_type": ["c2p"], "type_vocab_size": 2,
        "pooler_hidden_act": "tanh", "position_buckets": -1,
    }), "deberta-v2-absolute": ("deberta-v2", {"relative_attention": False}),
    "deberta-v2-sized": ("deberta-v2", {"attention_head_size": 8}),
    "modernbert": ("modernbert", {}), "modernbert-bias": ("modernbert", {
        "norm_bias": True, "mlp_bias": True, "attention_bias": True, "classifier_bias": True,
        "classifier_activation": "tanh", "classifier_pooling": "mean",
    }),
    "modernbert-shifts": ("modernbert", {"norm_bias": True}),
    "vit": ("vit", {}), "deit": ("deit", {}), "dinov2": ("dinov2", {}),
    "dinov2-registers": ("dinov2", {"model_type": "dinov2_with_registers", "num_register_tokens": 2}),
    "gpt2": ("gpt2", {"n_inner": 24}), "llama": ("llama", {"head_dim": 8}),
    "mistral": ("llama", {"model_type": "mistral", "head_dim": 8, "sliding_window": 4}),
    "qwen2": ("llama", {"model_type": "qwen2"}),
    "qwen3": ("qwen3", {}), "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}), "t5": ("t5", {}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu"}), "mt5": ("t5", {"model_type": "mt5"}),
}  # fmt: skip
ALIKE = (
    "xlm-roberta",
    "camembert",
    "deberta-v2-absolute",
    "modernbert-shifts",
    "dinov2-registers",
    "qwen3-tied",
    "mt5",
)
EACH = [pytest.param(kind, marks=pytest.mark.slow) if kind in ALIKE else kind for kind in KINDS]
"""Of those that are much like another, the tests are slow ones."""
POST_NORM = {
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "distilbert",
    "deberta-v2",
    "deberta-v2-old",
    "deberta-v2-absolute",
    "deberta-v2-sized",
}
DOUBLED = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "dim", "hidden_dim", "n_heads",
    "n_embd", "n_inner", "n_head", "d_model", "d_ff", "num_heads",
)  # fmt: skip
SIDE_BY_SIDE = {"c_attn": (3, -1), "Wqkv": (3, 0), "Wi": (2, 0)}
"""Matrices that are several: how many, and in which dimension."""
TWO_STATES = ("dinov2", "dinov2_with_registers")
"""Types whose classifier reads two states side by side."""


def small(kind: str, **options: Any) -> Any:
    """A model in float64 none of whose parameters is as it was initialized."""
    family, usual = KINDS[kind]
    return noisy(build(family, **usual, **options))


def noisy(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.double().parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise, alpha=0.2 / max(1, parameter.shape[-1] / 16) ** 0.5)
    return model.eval()


def inputs(kind: str, examples: int = 64) -> dict[str, Tensor]:
    found = batch(KINDS[kind][0], examples)
    if KINDS[kind][0] != "t5":
        del found["labels"]
    return {k: v.double() if v.is_floating_point() else v for k, v in found.items()}


def outputs(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """Logits or states, of real tokens where these are per token."""
    with torch.no_grad():
        found = model(**given)
    out: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return out[given["attention_mask"].bool()] if out.shape[:2] == given.get("attention_mask", out[0]).shape else out


def error(model: nn.Module, reference: nn.Module, given: dict[str, Tensor]) -> float:
    """Relative error of outputs; of a narrower model's states against the projected ones of its teacher."""
    ours, theirs = outputs(model, given), outputs(reference, given)
    if ours.shape != theirs.shape:
        theirs = theirs @ shrink_report(model).projection.double()
    return float((ours - theirs).norm() / theirs.norm())


def sizes_of(model: Any) -> dict[str, int]:
    config = model.config
    return {n: getattr(config, n) for n in DOUBLED if hasattr(config, n) and n not in config.attribute_map}


def widened(model: Any) -> Any:
    """A model of the same function: every hidden unit, head and neuron stands twice and is halved where it is read."""
    config = copy.deepcopy(model.config)
    for name, size in sizes_of(model).items():
        setattr(config, name, 2 * size)
    for name in ("pooler_output_size", "pooler_hidden_size", "embedding_size"):
        setattr(config, name, 2 * getattr(config, name, model.config.hidden_size))
    wide = type(model)(config).double().eval()
    theirs = dict(wide.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            value = parameter
            for fused, (parts, dim) in SIDE_BY_SIDE.items():
                if fused in name:
                    value = torch.cat([torch.cat([part, part], dim) for part in value.chunk(parts, dim)], dim)
            if name == "classifier.weight" and model.config.model_type in TWO_STATES:
                value = torch.cat([part for state in value.chunk(2, 1) for part in (state, state)], 1) / 2
            for dim in range(value.dim()):
                if theirs[name].shape[dim] == 2 * value.shape[dim]:
                    reads = dim == (0 if type(owner).__name__ == "Conv1D" else 1) and value.dim() == 2
                    value = torch.cat([value, value], dim)
                    value = value / 2 if reads and not isinstance(owner, nn.Embedding) else value
            theirs[name].copy_(value)
        head = wide.get_output_embeddings()
        if head is not None and head.weight is wide.get_input_embeddings().weight:
            scaled = getattr(config, "scale_decoder_outputs", False)
            last = {"gpt2": "transformer.ln_f", "qwen3": "model.norm"}
            for parameter in wide.get_submodule(last.get(config.model_type, "decoder.final_layer_norm")).parameters():
                parameter.mul_(0.5**0.5 if scaled else 0.5)  # T5 divides by the root of the width
    return wide


def rotated(model: Any) -> Any:
    """A LLaMA or Qwen3 of the same function whose residual stream is turned."""
    width = model.config.hidden_size
    turn, _ = torch.linalg.qr(
        torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    )
    with torch.no_grad():
        for block in model.model.layers:
            for norm, readers, writer in (
                (
                    block.input_layernorm,
                    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                    "self_attn.o_proj",
                ),
                (block.post_attention_layernorm, ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
            ):
                for name in readers:
                    weight = block.get_submodule(name).weight
                    weight.copy_(weight * norm.weight @ turn)
                weight = block.get_submodule(writer).weight
                weight.copy_(turn.mT @ weight)
                norm.weight.fill_(1.0)
        model.lm_head.weight.copy_(model.lm_head.weight * model.model.norm.weight @ turn)
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ turn)
    return model


@pytest.mark.parametrize("kind", EACH)
def test_a_widened_teacher_comes_back_as_the_small_model(kind: str) -> None:
    model, given = small(kind), inputs(kind)
    teacher = widened(model)
    assert error(teacher, model, inputs(kind, 80)) < 1e-6  # RMSNorm computes in float32
    student = shrink(teacher, [given], **sizes_of(model))
    assert [p.shape for p in student.parameters()] == [p.shape for p in model.parameters()]
    assert error(student, model, inputs(kind, 80)) < (2e-2 if kind in POST_NORM else 1e-3)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_widened_and_rotated_teacher_comes_back(kind: str) -> None:
    model = small(kind)
    teacher = rotated(widened(model))
    assert error(teacher, model, inputs(kind, 80)) < 1e-6
    assert error(shrink(teacher, [inputs(kind)], **sizes_of(model)), model, inputs(kind, 80)) < 1e-3


@pytest.mark.parametrize("kind", EACH)
def test_the_same_sizes_give_the_teacher_back(kind: str) -> None:
    teacher = small(kind)
    assert error(shrink(teacher, [inputs(kind)]), teacher, inputs(kind, 80)) < 1e-4


@pytest.mark.parametrize("kind", ["bert", "llama", "modernbert", "gpt2", "vit"])
def test_states_of_a_student_of_the_teachers_width_are_the_teachers(kind: str) -> None:
    """The objective `hidden` compares them, also those after the last norm."""
    teacher, given = small(kind), inputs(kind, 80)
    student = shrink(teacher, [inputs(kind)])
    with torch.no_grad():
        states = (model(**given, output_hidden_states=True).hidden_states for model in (student, teacher))
    for ours, theirs in zip(*states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_head_that_is_tied_otherwise_than_its_configuration_says_comes_back_or_is_refused(kind: str) -> None:
    teacher = small(kind, tie_word_embeddings=False)
    teacher.get_output_embeddings().weight = teacher.get_input_embeddings().weight
    assert error(shrink(teacher, [inputs(kind)]), teacher, inputs(kind, 80)) < 1e-4
    teacher = small(kind, tie_word_embeddings=True)
    teacher.get_output_embeddings().weight = nn.Parameter(teacher.get_output_embeddings().weight.detach().clone())
    for made in (lambda: shrink(teacher, [inputs(kind)]), lambda: keep_layers(teacher, 2)):
        with pytest.raises(
            ValueError, match=r"lm_head.weight has values of its own.* set tie_word_embeddings to False"
        ):
            made()
    teacher.config.tie_word_embeddings = False
    assert error(shrink(teacher, [inputs(kind)]), teacher, inputs(kind, 80)) < 1e-4


def split(model: Any) -> Any:
    """A model of the same function with two blocks for each: one of attention alone, one of feed-forward alone.

    What is not used reads noise and writes nothing. Norms that stand behind a branch that writes nothing are plain.
    Where norms stand before, the first block stays whole, as `shrink` leaves it.
    """
    family = family_of(model)
    (tower,) = family.towers
    whole = int(family.pre_norm)
    options = model.config.to_dict() | {
        tower.depth: 2 * getattr(model.config, tower.depth) - whole,
        "layer_types": None,
    }
    long = type(model)(type(model.config)(**options)).double().eval()
    ours, theirs = (m.base_model.get_submodule(tower.blocks) for m in (model, long))
    long.load_state_dict({k: v for k, v in model.state_dict().items() if f"{tower.blocks}." not in k}, strict=False)
    for number, block in enumerate(theirs, whole):
        block.load_state_dict(ours[number // 2].state_dict())
        if number == whole == 1:
            continue
        unused = tower.branches[1 - number % 2]
        reads = unused.reads if isinstance(unused, Attention) else (unused.up, unused.gate)
        for part in filter(None, reads):
            block.get_submodule(part.name).weight.data.normal_(generator=torch.Generator().manual_seed(number))
        for parameter in block.get_submodule(unused.output.name).parameters():
            parameter.data.zero_()
        if not family.pre_norm and number % 2 == 0:
            plain_norm(block.get_submodule(unused.norm))
    return long


def plain_norm(norm: Any) -> None:
    norm.weight.data.fill_(1.0)
    norm.bias.data.zero_()


@pytest.mark.parametrize(
    "kind", ["bert", "distilbert", "deberta-v2", "vit", "dinov2", "gpt2", "llama", "mistral", "qwen2"]
)
def test_one_block_keeps_what_two_of_the_teachers_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of the student has the heads of one of its teacher's blocks and the neurons of the next."""
    model, given = small(kind), inputs(kind)
    tower = family_of(model).towers[0]
    if kind in POST_NORM:
        for block in model.base_model.get_submodule(tower.blocks):
            plain_norm(block.get_submodule(tower.branches[0].norm))
    teacher = split(model)
    assert error(teacher, model, inputs(kind, 80)) < 1e-6
    depth = {tower.depth: getattr(model.config, tower.depth)}
    found = error(shrink(teacher, [given], **depth), model, inputs(kind, 80))
    assert found < (0.2 if kind in POST_NORM else 1e-3)  # one norm behind both is not a norm behind each
    monkeypatch.setattr(merge, "MOST", 1)  # of the last block alone
    assert error(shrink(teacher, [given], **depth), model, inputs(kind, 80)) > 1.5 * found


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_a_head_that_reads_padding_comes_back_too(kind: str) -> None:
    """It does where texts are padded on the left and a classifier reads the first token."""
    teacher, given = small(kind), inputs(kind)
    turned = {name: values.flip(1) for name, values in given.items()}
    assert not turned["attention_mask"][:, 0].all()
    assert error(shrink(teacher, [turned]), teacher, turned) < 1e-4


@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2"])
def test_a_neuron_far_from_zero_comes_back_in_float32(kind: str) -> None:
    teacher, given = small(kind), {k: v.float() if v.is_floating_point() else v for k, v in inputs(kind).items()}
    parts = family_of(teacher).towers[0]
    with torch.no_grad():
        for block in teacher.base_model.get_submodule(parts.blocks):
            block.get_submodule(parts.branches[1].up.name).bias[3] += 1000
            down = block.get_submodule(parts.branches[1].output.name)
            down.bias.sub_((down.weight if kind == "gpt2" else down.weight.mT)[3], alpha=1000)
    teacher = teacher.float()
    student = shrink(teacher, [given])
    assert error(student, teacher, given) < 1e-4
    assert all(share > 0.9999 for block in shrink_report(student).blocks for share in block.kept.values())


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_what_is_alike_but_for_rounding_is_not_read_against_each_other(kind: str) -> None:
    """Neurons and entries of the stream, of which a student keeps more than there are different ones."""
    teacher = widened(small(kind))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in teacher.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise, alpha=1e-5)
    inner = family_of(teacher).inner
    student = shrink(teacher.float(), [inputs(kind, 128)], **{inner: getattr(teacher.config, inner) * 3 // 4})
    assert error(student, teacher, inputs(kind, 128)) < 1e-3
    largest = [max(float(p.detach().abs().max()) for p in model.parameters()) for model in (student, teacher)]
    assert largest[0] < 1.5 * largest[1]


@pytest.mark.parametrize("kind", ["bert", "vit", "llama", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_of_scale_zero_comes_back(kind: str, dtype: torch.dtype) -> None:
    """What reads it reads nothing, or the same of all tokens."""
    teacher, given = small(kind), inputs(kind)
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    tower = family_of(teacher).towers[0]
    with torch.no_grad():
        for branch in tower.branches:
            teacher.base_model.get_submodule(tower.blocks)[1].get_submodule(branch.norm).weight.zero_()
    teacher = teacher.to(dtype)
    student = shrink(teacher, [given])
    assert error(student, teacher, given) < 1e-5
    largest = [max(float(p.detach().abs().max()) for p in model.parameters()) for model in (student, teacher)]
    assert largest[0] < 3 * largest[1]


def test_a_matrix_without_a_bias_is_fitted_as_one() -> None:
    """What it leaves over has a mean, and nothing in common with what it reads but the small pull to the guess."""
    teacher, given, seen = small("llama"), inputs("llama"), dict[Any, tuple[Tensor, Tensor]]()
    student = shrink(teacher, [given], intermediate_size=10)
    real = given["attention_mask"].bool()
    for model in (teacher, student):
        model.model.layers[0].mlp.down_proj.register_forward_hook(
            lambda _, read, told, m=model: seen.update({m: (read[0][real], told[real])})
        )
        outputs(model, given)
    (read, told), wanted = seen[student], seen[teacher][1]
    assert (read.mT @ (wanted - told)).norm() < 0.01 * (read.mT @ wanted).norm()


def test_keys_that_are_zero_stay_so_in_larger_heads() -> None:
    """Two of four heads do nothing. Rows of these are for the dimensions that the others have not."""
    teacher = noisy(build("bert", hidden_size=32, num_attention_heads=4))
    with torch.no_grad():
        for block in teacher.bert.encoder.layer:
            block.attention.output.dense.weight[:, 16:] = 0
            for values in block.attention.self.key.parameters():
                values[::4] = 0
    student = shrink(teacher, [inputs("bert", 128)], num_attention_heads=2)
    assert error(student, teacher, inputs("bert", 80)) < 1e-5
    for block in student.bert.encoder.layer:
        for name in ("key", "value"):
            added = getattr(block.attention.self, name).weight.view(2, 16, 32)[:, 8:]
            assert added.norm(dim=(1, 2)).gt(0).all()  # or they would never get a gradient


CLASSES = {
    "BertModel": "bert", "BertForTokenClassification": "bert", "BertForMultipleChoice": "bert",
    "MPNetModel": "mpnet", "DebertaV2Model": "deberta-v2", "DebertaV2ForTokenClassification": "deberta-v2",
    "ModernBertModel": "modernbert", "ModernBertForTokenClassification": "modernbert", "DistilBertModel": "distilbert",
    "ViTModel": "vit", "DeiTForImageClassificationWithTeacher": "deit",
    "GPT2Model": "gpt2", "GPT2ForSequenceClassification": "gpt2", "GPT2LMHeadModel": "gpt2", "LlamaModel": "llama",
    "LlamaForSequenceClassification": "llama", "T5EncoderModel": "t5", "T5ForSequenceClassification": "t5",
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_other_heads_and_none_come_back_too(name: str) -> None:
    kind = CLASSES[name]
    config = copy.deepcopy(small(kind).config)
    config.pad_token_id = 0
    model = noisy(getattr(transformers, name)(config))
    given = inputs(kind)
    if kind == "t5":  # it reads the token that ends a text
        ends = given["attention_mask"].sum(1) - 1
        ids = given["input_ids"].clamp(min=2).scatter(1, ends[:, None], config.eos_token_id)
        given = {"input_ids": ids, "attention_mask": given["attention_mask"]}
    if name.endswith("MultipleChoice"):
        given = {k: v.view(32, 2, -1) for k, v in given.items()}
    teacher = widened(model)
    student = shrink(teacher, [given], **sizes_of(model))
    assert error(student, teacher, given) < (2e-2 if kind in POST_NORM else 1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_alike_hidden_units_of_a_head_are_not_read_against_each_other(kind: str) -> None:
    """Of two classes all can be alike. Large weights of opposite signs cancel, but not under dropout."""
    names = {"bert": ("bert.pooler.dense", "classifier"), "roberta": ("classifier.dense", "classifier.out_proj")}[kind]
    teacher = small(kind).float()
    hidden, last = (teacher.get_submodule(name) for name in names)
    for gain in (0.5, 1.0):
        with torch.no_grad():
            hidden.weight.copy_(gain * torch.linspace(0.5, 1.5, 16)[:, None] * hidden.weight[0])
            hidden.bias.fill_(1)
        student = shrink(teacher, [inputs(kind)], hidden_size=12)
        assert student.get_submodule(names[1]).weight.norm() < 2 * last.weight.norm()


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_half_precision_stays(kind: str) -> None:
    model = small(kind)
    teacher = widened(model).bfloat16()
    student = shrink(teacher, [inputs(kind)], **sizes_of(model))
    assert student.dtype == torch.bfloat16
    assert error(student.double(), model, inputs(kind)) < 3 * error(teacher.double(), model, inputs(kind))


@pytest.mark.parametrize("kind", ["llama", "modernbert", "t5"])
def test_what_transformers_keeps_in_float32_stays_in_float32(kind: str, tmp_path: Path) -> None:
    """Frequencies of rotary positions, and the matrix that sums up T5's neurons, which overflows in fp16."""
    small(kind).save_pretrained(tmp_path)
    teacher = type(small(kind)).from_pretrained(tmp_path, dtype=torch.float16)
    theirs = {name: value.dtype for name, value in (*teacher.named_parameters(), *teacher.named_buffers())}
    assert set(theirs.values()) == {torch.float16, torch.float32}
    for student in (shrink(teacher, [inputs(kind)]), keep_layers(teacher, 1)):
        for name, value in (*student.named_parameters(), *student.named_buffers()):
            assert value.dtype == theirs[name], name


ALONE: dict[str, list[dict[str, int]]] = {
    "bert": [{"hidden_size": 8}, {"intermediate_size": 10}, {"num_attention_heads": 1}, {"num_hidden_layers": 1}],
    "mpnet": [{"num_attention_heads": 1}, {"num_hidden_layers": 1}],
    "deberta-v2": [{"hidden_size": 8}, {"num_attention_heads": 1}, {"num_hidden_layers": 1}],
    "deberta-v2-sized": [{"hidden_size": 8}, {"num_attention_heads": 1}],
    "modernbert": [{"hidden_size": 8, "num_attention_heads": 1}, {"intermediate_size": 10}, {"num_hidden_layers": 1}],
    "vit": [{"hidden_size": 8}, {"intermediate_size": 10}, {"num_attention_heads": 1}, {"num_hidden_layers": 1}],
    "dinov2": [{"hidden_size": 8}, {"mlp_ratio": 1}, {"num_attention_heads": 1}, {"num_hidden_layers": 1}],
    "gpt2": [{"n_embd": 8, "n_inner": 20}, {"n_inner": 10}, {"n_head": 1}, {"n_layer": 1}],
    "llama": [{"hidden_size": 8}, {"intermediate_size": 10}, {"num_attention_heads": 2}, {"num_hidden_layers": 1},
              {"num_key_value_heads": 1}, {"num_key_value_heads": 1, "num_attention_heads": 2, "hidden_size": 10}],
    "qwen2": [{"hidden_size": 8}],
    "qwen3": [{"num_key_value_heads": 1, "num_attention_heads": 1}],
    "t5": [{"d_model": 8}, {"d_ff": 10}, {"num_heads": 1}, {"d_kv": 4}, {"num_layers": 1}, {"num_decoder_layers": 1},
           {"d_model": 8, "d_ff": 10, "num_heads": 1, "d_kv": 4, "num_layers": 1, "num_decoder_layers": 1}],
}  # fmt: skip
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(("family", "sizes"), [(f, s) for f, found in ALONE.items() for s in found], ids=str)
def test_every_size_alone_is_better_than_chance_and_loads_again(
    family: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    teacher = small(family, **(GROUPED if family in ("llama", "qwen3") else {}))
    student = shrink(teacher, [inputs(family)], **sizes)
    for name, value in sizes.items():
        assert getattr(student.config, name) == value
    student.save_pretrained(tmp_path)
    again = type(teacher).from_pretrained(tmp_path, dtype=torch.float64)
    assert error(again, student, inputs(family)) < 1e-12
    untrained = type(teacher)(student.config).double()
    assert error(student, teacher, inputs(family, 80)) < 0.8 * min(1.0, error(untrained, teacher, inputs(family, 80)))


def parts(given: dict[str, Tensor], sizes: list[int], pad: int = 0) -> list[dict[str, Tensor]]:
    """Batches of some sizes, each with some more padding than its longest text needs."""
    found = []
    for rows in zip(*(value.split(sizes) for value in given.values()), strict=True):
        part = dict(zip(given, rows, strict=True))
        if "attention_mask" in part:
            longest = int(part["attention_mask"].sum(1).max())
            part = {
                k: nn.functional.pad(v[:, :longest], (0, pad), value=7 * (k == "input_ids")) for k, v in part.items()
            }
        found.append(part)
    return found


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_size_order_and_padding_of_batches_change_nothing(family: str) -> None:
    teacher, given = small(family), inputs(family)
    sizes = {"hidden_size": 8, "intermediate_size": 12}
    once = shrink(teacher, [given], **sizes)
    again = shrink(teacher, reversed(parts(given, [1, 20, 3, 40], pad=3)), **sizes)
    assert error(again, once, given) < 1e-8


@pytest.mark.parametrize("labels", [5, 8])
def test_several_labels_of_an_example_are_none_of_its_decoders_tokens(labels: int) -> None:
    """Also where there are as many as tokens: a T5 that classifies reads its input in the decoder, padding and all."""
    config = copy.deepcopy(small("t5").config)
    config.num_labels, config.problem_type = labels, "multi_label_classification"
    teacher, given = noisy(transformers.T5ForSequenceClassification(config)), inputs("t5")
    mask = given["attention_mask"]
    ids = given["input_ids"].clamp(min=2).scatter(1, mask.sum(1)[:, None] - 1, config.eos_token_id)
    given = {"input_ids": ids * mask, "attention_mask": mask}
    labelled = given | {"labels": torch.ones(len(ids), labels, dtype=torch.float64)}
    one, other = (shrink(teacher, [some], d_model=8) for some in (given, labelled))
    assert error(other, one, given) < 1e-8


def test_a_decoder_without_a_mask_is_fitted_to_all_that_its_tokens_see() -> None:
    """Padding before an example's tokens, and labels that do not count between them, are seen; what follows is not."""
    teacher, given, config = small("t5"), inputs("t5"), copy.deepcopy(small("t5").config)
    short = (given["attention_mask"] == 0).sum(1).tolist()
    left = {name: torch.stack([*map(torch.roll, values, short)]) for name, values in given.items()}
    left["labels"][:, 5] = -100
    assert error(shrink(teacher, [left]), teacher, left) < 1e-4
    config.num_labels = 2
    teacher = noisy(transformers.T5ForSequenceClassification(config))
    ids = left["input_ids"].clamp(min=2) * left["attention_mask"]
    ids[:, -1] = config.eos_token_id
    left = {"input_ids": ids, "attention_mask": left["attention_mask"]}
    assert error(shrink(teacher, [left]), teacher, left) < 1e-4


def test_a_decoders_inputs_may_stand_beside_the_labels_that_they_are_made_of() -> None:
    """As transformers' collator gives them if it knows the model."""
    teacher, given = small("t5"), inputs("t5")
    both = given | {"decoder_input_ids": teacher.prepare_decoder_input_ids_from_labels(given["labels"])}
    once, again = (shrink(teacher, [some], d_model=8) for some in (given, both))
    assert error(again, once, given) < 1e-8


@pytest.mark.parametrize("own", [False, True])
def test_tokens_of_a_decoder_are_counted_and_not_those_of_its_encoder(own: bool) -> None:
    """Ten answers of two tokens are too few, whatever the length of the texts."""
    teacher, given = small("t5"), inputs("t5", 10)
    given["labels"] = given["labels"][:, :2].contiguous()
    if own:
        given["decoder_input_ids"] = teacher.prepare_decoder_input_ids_from_labels(given.pop("labels"))
    with pytest.raises(ValueError, match=r"batches has 20 tokens in 10 different examples, .* 24 directions \(d_ff"):
        shrink(teacher, [given])


def test_a_batch_of_padding_alone_may_come_first() -> None:
    teacher, given = small("bert"), inputs("bert")
    padding = {name: torch.zeros_like(values[:2]) for name, values in given.items()}
    first, last = (shrink(teacher, batches, hidden_size=8) for batches in ([padding, given], [given, padding]))
    assert error(first, last, given) < 1e-8


def test_heads_of_short_batches_that_see_all_tokens_change_nothing() -> None:
    """Two blocks see alike in texts no longer than the window of one of them."""
    teacher = small("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2, num_hidden_layers=3)
    given = inputs("qwen2", 96)
    short = {name: values[given["attention_mask"].sum(1) == 6][:, 4:7] for name, values in given.items()}
    first, last = (shrink(teacher, batches, num_hidden_layers=2) for batches in ([short, given], [given, short]))
    assert error(first, last, given) < 1e-8


def test_tokens_count_half_alike_and_half_as_the_outputs_depend_on_them() -> None:
    """After the last block a BERT's classifier reads the first token alone. Before it, differences tell the slopes."""
    teacher, given = small("bert"), inputs("bert", 3)
    recorder = recorded(teacher, given)
    real = given["attention_mask"].bool()
    first = real.cumsum(1)[real].eq(1)
    weights = recorder.result.streams["encoder.layer"].weights[0]
    torch.testing.assert_close(weights[-1], 0.5 + 0.5 * (first * real.sum(1)[:, None].expand_as(real)[real]).double())
    for found in weights:
        assert found.min() >= 0.5
        assert float(found.sum()) == pytest.approx(float(real.sum()))

    slopes = torch.zeros(*real.shape, teacher.config.hidden_size, dtype=torch.float64)
    for place in np.ndindex(*slopes.shape[1:]):
        ahead, behind = (margins(teacher, given, place, step) for step in (1e-5, -1e-5))
        slopes[:, *place] = (ahead - behind) / 2e-5
    sizes = slopes.norm(dim=2) * real
    wanted = 0.5 + 0.5 * sizes / sizes.sum(1, keepdim=True) * real.sum(1, keepdim=True)
    torch.testing.assert_close(weights[2], wanted[real], rtol=1e-4, atol=1e-4)


def test_tokens_before_a_norm_count_by_their_direction_alone() -> None:
    """Their size is the norm's to take away: slopes are to the states at size 1, here by autograd."""
    teacher, given, turned = small("vit"), inputs("vit", 3), list[Tensor]()
    (stream,) = recorded(teacher, given).result.streams.values()

    def turn(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        size = args[0].detach().square().mean(-1, keepdim=True).sqrt()
        turned.append((args[0].detach() / size).requires_grad_())
        return (size * turned[0], *args[1:])

    handle = teacher.base_model.get_submodule(family_of(teacher).towers[0].blocks)[1].register_forward_pre_hook(turn)
    top = teacher(**given).logits.topk(2).values
    handle.remove()
    (slopes,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), turned)
    sizes = slopes.norm(dim=2)
    wanted = 0.5 + 0.5 * sizes / sizes.mean(1, keepdim=True)
    torch.testing.assert_close(stream.weights[0][2], wanted.flatten())


@pytest.mark.parametrize("kept", [calibration.KEPT, 0])
@pytest.mark.parametrize(("kind", "sizes"), [
    ("bert", {"hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 1}),
    ("vit", {"hidden_size": 8, "intermediate_size": 10, "num_attention_heads": 1}),
])  # fmt: skip
def test_examples_that_count_twice_are_as_good_as_two_of_each(
    kind: str, sizes: dict[str, int], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "KEPT", kept)
    monkeypatch.setattr(basis, "OUTPUTS", 0.0)  # slopes have no weights
    teacher, (some, others), blocks = small(kind), parts(inputs(kind), [40, 24]), []
    for times in (1, 2):
        monkeypatch.setattr(
            calibration,
            "_shares",
            lambda rows, real, t=times: rows.new_full((len(rows),), 2 / t if len(real) == 24 else 1),
        )
        student = shrink(teacher, [some, *[others] * times], **sizes)
        blocks.append(student.base_model.get_submodule(family_of(teacher).towers[0].blocks).state_dict())
    torch.testing.assert_close(*blocks, rtol=1e-6, atol=1e-8)


def test_a_constant_of_all_keys_changes_no_student() -> None:
    """Nor any attention: a softmax does not see it. So it does not decide which directions of a head are kept."""
    teacher, students = small("bert"), []
    for constant in (0.0, 10.0):
        with torch.no_grad():
            for block in teacher.bert.encoder.layer:
                block.attention.self.key.bias.copy_(constant * torch.linspace(-1, 1, 16))
        students.append(shrink(teacher, [inputs("bert")], hidden_size=8))
    assert error(*students, inputs("bert")) < 1e-6


def recorded(teacher: Any, given: dict[str, Tensor]) -> calibration.Recorder:
    family = family_of(teacher)
    recorder = calibration.Recorder(teacher, family, family.towers, ())
    with torch.no_grad():
        recorder.run(given)
    return recorder


def margins(teacher: Any, given: dict[str, Tensor], place: tuple[int, ...], step: float) -> Tensor:
    """`[examples]`, how far the first class is ahead of the second, with one entry after the first block moved."""

    def move(_: nn.Module, __: Any, states: Tensor) -> Tensor:
        moved = states.clone()
        moved[:, *place] += step
        return moved

    handle = teacher.base_model.encoder.layer[0].output.LayerNorm.register_forward_hook(move)
    top = outputs(teacher, given).topk(2).values
    handle.remove()
    return top[:, 0] - top[:, 1]


@pytest.mark.parametrize("centred", [True, False])
def test_axes_tell_most_of_what_the_outputs_depend_on(centred: bool) -> None:
    """No other subspace of the width loses less of the stream in the metric of the gradients."""
    generator = torch.Generator().manual_seed(0)

    def moments() -> Tensor:
        values = torch.randn(40, 12, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, 12)
        values = values[:, torch.randperm(12, generator=generator)]
        return (values - values.mean(1, keepdim=True)).mT @ (values - values.mean(1, keepdim=True)) / 40

    stream, gradients = moments(), moments()
    metric = OUTPUTS * (12 - centred) * gradients / gradients.trace() + torch.eye(12)

    def lost(span: Tensor) -> float:
        told = stream @ span @ torch.linalg.pinv(span.mT @ stream @ span) @ span.mT @ stream
        return float((metric @ (stream - told)).trace())

    found = leading_axes(stream, 5, centred=centred, gradients=gradients).project
    least = lost(found)
    assert least < 0.99 * lost(leading_axes(stream, 5, centred=centred).project)
    if centred:  # the fifth is the mean, which is none of these streams' directions
        found = torch.linalg.svd(found - found.mean(0)).U[:, :4]
    for useless in (torch.zeros_like(gradients), torch.full_like(gradients, torch.inf)):
        plain, same = (leading_axes(stream, 5, centred=centred, gradients=given) for given in (None, useless))
        assert torch.equal(plain.project, same.project)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            assert lost(found + scale * torch.randn(found.shape, generator=generator, dtype=torch.float64)) > least


def test_weights_of_rows_are_as_good_as_rows_that_stand_several_times() -> None:
    x, y = torch.randn(9, 3), torch.randn(9, 2)
    times = torch.tensor([1, 2, 3] * 3)
    once, again = (Moments(3, 2, torch.device("cpu")) for _ in range(2))
    once.add(x, y, times.float())
    again.add(x.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    assert once.count == again.count == 18
    for one, other in zip(
        (*once.means(), *once.covariances(True), once.variance()),
        (*again.means(), *again.covariances(True), again.variance()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_moments_of_float32_rows_that_are_far_from_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (1000 + torch.randn(300, size, generator=generator) for size in (3, 2))
    moments = Moments(3, 2, torch.device("cpu"))
    for part in range(0, 300, 100):
        moments.add(x[part : part + 100], y[part : part + 100])
    xx, xy = moments.covariances(True)
    rows = torch.cat([x, y], 1).double()
    torch.testing.assert_close(torch.cat([xx, xy], 1), rows.T.cov(correction=0)[:3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments.covariances(False)[1], x.double().T @ y.double() / 300, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(moments.variance(), y.double().var(0, correction=0), rtol=1e-4, atol=0.0)


def test_a_teacher_keeps_its_gradients_and_frozen_weights() -> None:
    teacher = small("bert")
    frozen = teacher.base_model.embeddings.word_embeddings.weight.requires_grad_(False)
    teacher(**inputs("bert")).logits.sum().backward()
    before = {name: (p.requires_grad, copy.deepcopy(p.grad)) for name, p in teacher.named_parameters()}
    shrink(teacher, [inputs("bert")], hidden_size=8, intermediate_size=12)
    assert not frozen.requires_grad
    for name, parameter in teacher.named_parameters():
        assert parameter.requires_grad == before[name][0]
        torch.testing.assert_close(parameter.grad, before[name][1])


def test_of_several_numbers_all_count_and_not_the_lead_of_one() -> None:
    """Three outputs that are nearly the same: their lead is what they do not have in common."""
    teacher = small("bert", num_labels=3)
    with torch.no_grad():
        teacher.classifier.weight[1:] = teacher.classifier.weight[0] + 0.01 * teacher.classifier.weight[1:]
    errors = []
    for kind in ("regression", None):
        teacher.config.problem_type = kind
        student = shrink(teacher, [inputs("bert")], hidden_size=4, num_attention_heads=1, intermediate_size=12)
        errors.append(error(student, teacher, inputs("bert")))
    assert errors[0] < 0.8 * errors[1]


class Squeezed(transformers.BertForSequenceClassification):
    """Gives one number an example, as some do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits.squeeze(-1)
        return outputs


class Bare(transformers.BertForSequenceClassification):
    """Gives logits without their name."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs).logits


class Unpooled(transformers.BertForSequenceClassification):
    """Its pooler is there and is not read."""

    def forward(self, **given: Any) -> Any:
        return SequenceClassifierOutput(logits=self.classifier(self.bert(**_known(given)).last_hidden_state[:, 0]))


class Tagger(transformers.DistilBertForSequenceClassification):
    """Two layers for every token."""

    def forward(self, **given: Any) -> Any:
        states = self.distilbert(**_known(given)).last_hidden_state
        return TokenClassifierOutput(logits=self.classifier(self.pre_classifier(states).tanh()))


class Doubled(transformers.BertForSequenceClassification):
    """Reads two states side by side."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)


def _known(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(("kind", "own"), [("bert", Unpooled), ("distilbert", Tagger)])
def test_a_class_of_the_users_own_may_read_something_else(kind: str, own: Any) -> None:
    """By their names alone, its layers were fitted as those of transformers' class."""
    model, given = noisy(own(small(kind).config)), inputs(kind)
    teacher = widened(model)
    # The tagger's units are chosen by what a ReLU gives, so that some of copies are kept twice.
    assert error(shrink(teacher, [given], **sizes_of(model)), teacher, given) < 6e-2
    assert error(shrink(teacher, [given]), teacher, given) < 1e-4


def test_a_class_of_the_users_own_may_return_something_else() -> None:
    usual = small("bert", num_labels=1)
    students = []
    for kind in (type(usual), Squeezed, Bare):
        teacher = kind(usual.config).double().eval()
        teacher.load_state_dict(usual.state_dict())
        student = shrink(teacher, [inputs("bert")], hidden_size=8, intermediate_size=12)
        assert type(student) is kind
        students.append(student.state_dict())
    torch.testing.assert_close(students[0], students[1], rtol=0, atol=0)
    assert all(values.isfinite().all() for values in students[2].values())


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_student_made_in_inference_mode_can_train(family: str) -> None:
    teacher = small(family)
    with torch.inference_mode():
        student = shrink(teacher, [inputs(family)], hidden_size=8, intermediate_size=12)
        made = small(family)
    student(**inputs(family)).logits.sum().backward()
    assert error(student, shrink(teacher, [inputs(family)], hidden_size=8, intermediate_size=12), inputs(family)) == 0
    with pytest.raises(ValueError, match=r"made under torch.inference_mode\(\).*load the teacher outside"):
        shrink(made, [inputs(family)], hidden_size=8, intermediate_size=12)


def test_units_of_a_pooler_are_chosen_by_what_its_own_activation_gives() -> None:
    """A ReLU stops half of these, and a tanh would make nearly 1 of the others."""
    config = copy.deepcopy(small("vit").config)
    config.pooler_act = "relu"
    teacher, given = noisy(transformers.ViTModel(config)), inputs("vit")
    with torch.no_grad():
        teacher.pooler.dense.weight.mul_(0.1)
        teacher.pooler.dense.bias.copy_(torch.tensor([-1.0, 5.0]).repeat_interleave(8))
        student = shrink(teacher, [given], hidden_size=8)
        theirs, ours = (model(**given).pooler_output for model in (teacher, student))
    torch.testing.assert_close(ours, theirs[:, 8:], rtol=0.1, atol=0.1)


NARROW_OR_SHALLOW = {
    "bert": {"hidden_size": 8, "intermediate_size": 12},  # before the last block weights change with every branch
    "distilbert": {"dim": 8, "n_layers": 1},
    "vit": {"hidden_size": 8, "num_hidden_layers": 1}, "dinov2": {"hidden_size": 8, "num_hidden_layers": 1},
    "gpt2": {"n_embd": 8, "n_inner": 20, "n_layer": 1},
    "qwen3": {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1},
    "t5": {"d_model": 8, "d_ff": 12, "num_layers": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    "family", [f if f in ("vit", "qwen3") else pytest.param(f, marks=pytest.mark.slow) for f in NARROW_OR_SHALLOW]
)
def test_what_is_not_kept_is_made_again(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models and many examples leave no room, or room for some batches, for the states after every branch."""
    teacher, given = small(family), parts(inputs(family), [8] * 8)
    once = shrink(teacher, given, **NARROW_OR_SHALLOW[family])
    for kept in (0, 2000, 6000, 18000):
        monkeypatch.setattr(calibration, "KEPT", kept)
        assert error(shrink(teacher, given, **NARROW_OR_SHALLOW[family]), once, given[0]) < 1e-8


def test_hooks_of_the_teacher_are_seen_alike_with_and_without_kept_states(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, given = small("gpt2"), [inputs("gpt2")]
    teacher.transformer.h[1].ln_2.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
    once = shrink(teacher, given)
    monkeypatch.setattr(calibration, "KEPT", 0)
    assert error(shrink(teacher, given), once, given[0]) == 0
    assert error(once, teacher, given[0]) < 1e-4


def test_blocks_keep_their_kinds() -> None:
    teacher = small("modernbert", num_hidden_layers=4)
    assert len(set(kinds := teacher.config.layer_types)) == 2
    for depth, kept in ((2, [0, 3]), (3, [0, 1, 3])):
        student = blank_student(teacher, num_hidden_layers=depth)
        assert student.config.layer_types == [kinds[k] for k in kept]


def test_a_compiled_teacher_is_checked_as_it_is_fitted() -> None:
    compiled: Any = torch.compile(small("bert"))
    given: dict[str, Any] = {"batches": [inputs("bert")], "hidden_size": 8}
    student, blank = shrink(compiled, **given), blank_student(compiled, **given)
    assert {k: v.shape for k, v in blank.named_parameters()} == {k: v.shape for k, v in student.named_parameters()}


def test_a_size_of_numpy_is_a_number() -> None:
    assert shrink(small("bert"), [inputs("bert")], hidden_size=np.int64(8)).config.hidden_size == 8


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = small("bert").train()
    before, random = {k: v.clone() for k, v in teacher.state_dict().items()}, torch.random.get_rng_state()
    student = shrink(teacher, [inputs("bert")], hidden_size=8)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(m.training for m in teacher.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(m._forward_pre_hooks for m in (*teacher.modules(), *student.modules()))
    assert all(p.requires_grad for p in student.parameters())
    assert not student.training


def test_a_teacher_that_was_trained_in_bf16_is_read_in_its_own_precision(tmp_path: Path) -> None:
    teacher = build("bert")
    want = shrink(teacher, [inputs("bert")], hidden_size=8)
    answers = scored_in_bf16(teacher, tmp_path)(**inputs("bert")).logits
    found = shrink(teacher, [inputs("bert")], hidden_size=8)
    assert all(torch.equal(a, b) for a, b in zip(want.parameters(), found.parameters(), strict=True))
    assert torch.equal(teacher(**inputs("bert")).logits, answers)  # it is not changed


@pytest.mark.parametrize("sizes", [{"hidden_size": 8}, {"num_hidden_layers": 1}], ids=str)
def test_a_started_student_is_its_constraints_partner(sizes: dict[str, int]) -> None:
    """The teacher in the student's coordinates is the student itself, as it starts."""
    student = shrink(small("bert"), [inputs("bert")], **sizes).float()
    over = overparameterize(student, OverParamConfig(ones=1))
    over.align(copy.deepcopy(student), Constraint())
    optimizer = over.optimizer(torch.optim.SGD, lr=0.0)
    student(**inputs("bert"), labels=torch.arange(64) % 2).loss.backward()
    optimizer.step()
    assert optimizer.constraint_logs["constraint_loss"] == pytest.approx(0, abs=1e-6)


def test_the_trainer_pulls_a_started_student_to_its_start(tmp_path: Path) -> None:
    """Not to its teacher, whose matrices are of the same size here and in other coordinates."""
    teacher = small("bert").float()
    student = shrink(teacher, [inputs("bert")], num_hidden_layers=1)
    copied, loaded = copy.deepcopy(student), build("bert", 1)
    loaded.load_state_dict(student.state_dict())
    arguments = DistillationArguments(
        str(tmp_path), max_steps=1, learning_rate=1e-12, logging_steps=1, use_cpu=True, report_to="none",
        save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    rows = Dataset.from_dict({k: v.tolist() for k, v in batch("bert", 16).items()})
    options: dict[str, Any] = {"teacher": teacher, "train_dataset": rows, "overparam": {"ones": 1}}

    def loss(model: nn.Module) -> float:
        trainer = DistillationTrainer(model, arguments, constraint={}, **options)
        trainer.train()
        return float(next(e["constraint_loss"] for e in trainer.state.log_history if "constraint_loss" in e))

    assert loss(student) == pytest.approx(0, abs=1e-6)
    assert loss(copied) == pytest.approx(0, abs=1e-6)  # as `model_init` makes one for every trial
    assert loss(loaded) > 0.01  # like any other model: it follows the teacher
    with pytest.raises(ValueError, match=r"constraint.layer_map is \{0: 1\}, .* leave it out"):
        DistillationTrainer(student, arguments, constraint={"layer_map": {0: 1}}, **options)


def test_a_second_training_does_not_pull_to_the_start_and_says_so() -> None:
    student = shrink(small("bert"), [inputs("bert")], hidden_size=8)
    assert not has_moved(copy.deepcopy(student))
    assert not has_moved(copy.deepcopy(student).half())
    with torch.no_grad():
        student.bert.embeddings.word_embeddings.weight[3, 2] += 1e-3  # as a training does
    with pytest.warns(UserWarning, match="the student was changed since shrink made it, and constraint pulls it to wh"):
        _partner(student, small("bert"), Constraint())


def test_few_examples_are_warned_of_once() -> None:
    teacher = small("bert")
    few = {k: v[:6] for k, v in inputs("bert").items()}  # 42 tokens for 24 directions
    with pytest.warns(UserWarning, match="is fitted to") as told:
        shrink(teacher, [few])
    assert [str(w.message) for w in told] == [
        "the student is fitted to 42 tokens, fewer than 2 for each of its 24 directions (intermediate_size), and may "
        "know little beyond them; give more examples"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shrink(teacher, [inputs("bert")])
        blank_student(teacher, [few])  # the fit itself will say it


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "t5"])
def test_dropout_may_be_another(kind: str) -> None:
    """It changes no weight, and nothing of the teacher."""
    teacher = small(kind)
    rates = {name: 0.25 for name in teacher.config.to_dict() if "drop" in name}
    usual, student = shrink(teacher, [inputs(kind)]), shrink(teacher, [inputs(kind)], **rates)
    assert rates.items() <= student.config.to_dict().items()
    assert {m.p for m in student.modules() if isinstance(m, nn.Dropout)} <= {0.25}
    assert 0.25 not in teacher.config.to_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(usual.parameters(), student.parameters(), strict=True))


def test_the_report_says_what_is_kept() -> None:
    teacher = small("vit", num_hidden_layers=4)
    report = shrink_report(shrink(teacher, [inputs("vit")], num_hidden_layers=2, hidden_size=8))
    assert [block.teacher_blocks for block in report.blocks] == [(0, 0), (1, 3)]
    assert all(0.3 < share < 1 for block in report.blocks for share in block.kept.values())
    assert "| layers.1 | 1 to 3 " in str(report)
    blank = shrink_report(blank_student(teacher, num_hidden_layers=2, hidden_size=8))
    assert [block.teacher_blocks for block in blank.blocks] == [(0, 0), (1, 3)]
    with pytest.raises(KeyError, match="was not made by shrink"):
        shrink_report(teacher)


def test_a_copy_has_the_report_and_a_file_does_not() -> None:
    student = shrink(small("bert"), [inputs("bert")], hidden_size=8)
    assert shrink_report(copy.deepcopy(student)) is shrink_report(student)
    assert b"opdf" not in pickle.dumps(student)
    assert not any("shrink" in name for name in (*student.state_dict(), *student.config.to_dict()))


def spoiled(family: str, value: float) -> Any:
    model = small(family)
    with torch.no_grad():
        next(model.base_model.encoder.layer[1].parameters()).view(-1)[3] = value
    return model


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], type[Exception], str]] = {
    "no model": (lambda: nn.Linear(2, 2), {}, TypeError, "Linear; shrink needs a transformers model"),
    "another family": (lambda: build("swin"), {}, ValueError, "swin.*knows bert, .*with one list of them"),
    "another head": (lambda: masked_bert(), {}, ValueError, "BertForMaskedLM.*does not know its cls.predictions"),
    "a head of two states": (lambda: Doubled(small("bert").config), {}, ValueError,
                             "classifier reads 32 values.*as many as hidden_size, 16; use keep_layers"),
    "twice": (lambda: small("gpt2"), {"hidden_size": 8, "n_embd": 12}, ValueError,
              "hidden_size and n_embd are one size"),
    "larger": (lambda: small("bert"), {"hidden_size": 32}, ValueError, "hidden_size is 32; the teacher's is 16"),
    "no direction": (lambda: small("bert"), {"hidden_size": 2, "num_attention_heads": 1}, ValueError,
                     "hidden_size is 2; norms that subtract the mean.* give 3 or more"),
    "zero": (lambda: small("bert"), {"num_hidden_layers": 0}, ValueError, "num_hidden_layers is 0"),
    "no number": (lambda: small("bert"), {"hidden_size": "8"}, TypeError, "hidden_size is '8'; give a whole"),
    "no size": (lambda: small("bert"), {"hidden_act": 3}, ValueError, "hidden_act is no size of a bert; a fitted stud"),
    "dropout of everything": (lambda: small("bert"), {"hidden_dropout_prob": 1}, ValueError,
                              "hidden_dropout_prob is 1; a rate of dropout is at least 0 and less than 1"),
    "dropout in words": (lambda: small("gpt2"), {"attn_pdrop": "0.1"}, TypeError, "attn_pdrop is '0.1'; give a number"),
    "dropout of others": (lambda: small("bert"), {"attn_pdrop": 0.1}, ValueError, "attn_pdrop is no size of a bert"),
    "head size": (lambda: small("llama"), {"head_dim": 4}, ValueError, "head_dim is no size of a llama"),
    "projected embeddings": (lambda: small("deberta-v2", embedding_size=8), {"hidden_size": 8}, ValueError,
                             "does not know its deberta.embeddings.embed_proj"),
    "own keys of positions": (lambda: small("deberta-v2", share_att_key=False), {"hidden_size": 8}, ValueError,
                              "does not know its deberta.encoder.layer.0.attention.self.pos_key_proj"),
    "heads": (lambda: small("bert"), {"hidden_size": 9}, ValueError, "hidden_size 9 is not a multiple of num_att"),
    "size of heads": (lambda: small("modernbert"), {"hidden_size": 8}, ValueError, "size, 8; give num_attention_h"),
    "no size of heads": (lambda: small("modernbert"), {"hidden_size": 12}, ValueError, "a hidden_size that is a mul"),
    "groups": (lambda: small("llama", num_attention_heads=4, num_key_value_heads=2, hidden_size=24),
               {"num_attention_heads": 3}, ValueError, "num_attention_heads 3 is not a multiple of num_key"),
    "NaN": (lambda: spoiled("bert", float("nan")), {}, ValueError, "encoder.layer.1.* holds NaN"),
    "no last norm": (lambda: backbone(apply_layernorm=False), {}, ValueError,
                     "Dinov2Backbone with apply_layernorm=False.* and the student's to False afterwards"),
    "meta": (lambda: small("bert").to("meta"), {}, ValueError, "word_embeddings.weight is on the meta device"),
    "parametrized": (lambda: parametrized_bert(), {}, ValueError, "query.parametrizations.weight; give a plain"),
    "quantized": (lambda: quantized_bert(), {}, TypeError, "teacher is quantized"),
    "the same block twice": (lambda: shared_block("bert", "encoder.layer"), {}, ValueError,
                             "encoder.layer.1 is the same module as its encoder.layer.0; .*deepcopy"),
    "the same again": (lambda: shared_block("llama", "layers"), {}, ValueError, "layers.1 is the same module as its"),
    "chunks": (lambda: small("bert", chunk_size_feed_forward=2), {}, ValueError, "chunk_size_feed_forward is 2; load"),
    "no classifier": (lambda: changed("classifier", nn.Identity()), {}, ValueError,
                      "teacher's classifier is a Identity, and a Linear in a model of its configuration"),
    "more classes": (lambda: changed("classifier", nn.Linear(16, 7)), {}, ValueError,
                     r"classifier.weight is of shape \[7, 16\], and \[2, 16\] in a model of its .*num_labels"),
    "another activation": (lambda: changed("bert.encoder.layer.0.intermediate.intermediate_act_fn", nn.ReLU()), {},
                           ValueError, "intermediate_act_fn is a ReLU, and a GELUActivation in a model"),
    "another depth": (lambda: changed("bert.encoder.layer", small("bert").bert.encoder.layer[:1]), {}, ValueError,
                      "encoder.layer.1 is missing, and a BertLayer in a model"),
}  # fmt: skip


def changed(name: str, part: nn.Module) -> Any:
    """A model one part of which its configuration does not make."""
    model = small("bert")
    model.set_submodule(name, part.double())
    return model


def masked_bert() -> Any:
    return transformers.BertForMaskedLM(small("bert").config)


def parametrized_bert() -> Any:
    model = small("bert")
    nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].attention.self.query)
    return model


def quantized_bert() -> Any:
    model = small("bert")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


def shared_block(kind: str, blocks: str) -> Any:
    model = small(kind)
    found = model.base_model.get_submodule(blocks)
    found[1] = found[0]
    return model


def backbone(**options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.Dinov2Backbone(small("dinov2", **options).config).eval()


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_a_batch_is_drawn(case: str) -> None:
    make, sizes, kind, words = REFUSED[case]

    def drawn() -> Any:
        raise AssertionError("a batch was drawn")
        yield

    with pytest.raises(kind, match=words):
        shrink(make(), drawn(), **sizes)


def test_a_backbone_comes_back_also_without_its_last_norm() -> None:
    """As the refusal says."""
    teacher, inputs = backbone(), [{"pixel_values": batch("dinov2", 32)["pixel_values"]}]
    student = shrink(teacher, inputs)
    for model in (teacher, student):
        model.config.apply_layernorm = False
    ours, theirs = (model(**inputs[0]).feature_maps[-1] for model in (student, teacher))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_refused_examples() -> None:
    teacher = small("bert")
    with pytest.raises(ValueError, match="batches is empty"):
        shrink(teacher, [])
    with pytest.raises(TypeError, match="batches holds a Tensor; give mappings"):
        shrink(teacher, torch.ones(2, 3, dtype=torch.int64))
    rows = [{name: value[0] for name, value in inputs("bert").items()}]  # as a dataset holds them, not collated
    with pytest.raises(ValueError, match=r"batches holds a single row, input_ids of shape \[\d+\]; .* DataLoader\("):
        shrink(teacher, rows)
    with pytest.raises(TypeError, match=r"batches holds a list as input_ids; .* DataLoader\("):
        shrink(teacher, [{name: value.tolist() for name, value in row.items()} for row in rows])
    with pytest.raises(TypeError, match=r"batches holds input_ids of torch.float32; give whole numbers"):
        shrink(teacher, [{"input_ids": torch.ones(2, 3)}])
    with pytest.raises(ValueError, match="batches holds neither labels nor decoder_input_ids"):
        shrink(small("t5"), [{"input_ids": torch.ones(2, 3, dtype=torch.int64)}])
    for wrong in (-1, teacher.config.vocab_size):
        with pytest.raises(ValueError, match=rf"holds {wrong} among its input_ids, and the teacher knows 0 to"):
            shrink(teacher, [inputs("bert"), {"input_ids": torch.tensor([[1, wrong, 2]])}])
    with pytest.raises(TypeError, match=r"batches is a dict; put a single batch into a list"):
        shrink(teacher, inputs("bert"))
    with pytest.raises(
        ValueError,
        match=r"21 tokens in 3 different examples, and a student with 24 directions \(inter.* 4 examples .* make inter",
    ):
        shrink(teacher, parts(inputs("bert"), [3, 61])[:1])
    once = parts(inputs("bert"), [3, 61])[0]
    with pytest.raises(ValueError, match="21 tokens in 3 different examples"):
        shrink(teacher, [once, *parts(once, [1, 2], pad=3), once])
    positions = torch.arange(once["input_ids"].shape[1])[None]  # one row for all examples, before the others
    with pytest.raises(ValueError, match="21 tokens in 3 different examples"):
        shrink(teacher, [{"position_ids": positions, **once}])
    given = inputs("bert")
    with pytest.raises(ValueError, match=r"inputs_embeds, which have the teacher's width; give input_ids"):
        shrink(teacher, [{"inputs_embeds": torch.ones(64, 7, 16, dtype=torch.float64)}])
    with pytest.raises(ValueError, match=r"attention_mask of shape \[64, 1, 1, \d+\]; give one number for each"):
        shrink(teacher, [given | {"attention_mask": given["attention_mask"][:, None, None]}])
    with pytest.raises(ValueError, match="a batch without rows"):
        shrink(teacher, [given, {k: v[:0] for k, v in given.items()}])
    given = inputs("vit")
    given["pixel_values"][2] = float("inf")
    with pytest.raises(ValueError, match="states of batch 1"):
        shrink(small("vit"), [inputs("vit"), given])
