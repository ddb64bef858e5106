"""Students of other sizes: teachers that were made from small models come back as these, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM

from families import batch, build
from opdf.distill import shrink, shrink_report

KNOWN = ["bert", "roberta", "distilbert", "vit", "deit", "gpt2", "llama", "qwen3", "t5"]
POST_NORM = {"bert", "roberta", "distilbert"}
OPTIONS: dict[str, dict[str, Any]] = {"llama": {"head_dim": 8}}
DOUBLED = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "dim": 32, "hidden_dim": 48, "n_heads": 4, "n_embd": 32, "n_inner": 48, "n_head": 4,
    "d_model": 32, "d_ff": 48, "num_heads": 4,
}  # fmt: skip


def small(family: str, **options: Any) -> Any:
    """A model in float64 none of whose parameters is as it was initialized."""
    if family == "gpt2":
        options = {"n_inner": 24, **options}
    model: Any = build(family, **OPTIONS.get(family, {}), **options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise, alpha=0.2 / max(1, parameter.shape[-1] / 16) ** 0.5)
    return model


def sizes_of(model: Any) -> dict[str, int]:
    config = model.config
    return {
        name: getattr(config, name) for name in DOUBLED if hasattr(config, name) and name not in config.attribute_map
    }


def inputs(family: str, examples: int = 64) -> dict[str, Tensor]:
    found = batch(family, examples)
    if family != "t5":
        del found["labels"]
    return {k: v.double() if v.is_floating_point() else v for k, v in found.items()}


def logits(model: nn.Module, family: str, given: dict[str, Tensor]) -> Tensor:
    """Of real tokens."""
    with torch.no_grad():
        out: Tensor = model(**given).logits
    return out[given["attention_mask"].bool()] if out.dim() == 3 else out


def error(model: nn.Module, reference: nn.Module, family: str) -> float:
    given = inputs(family, 80)
    ours, theirs = logits(model, family, given), logits(reference, family, given)
    return float((ours - theirs).norm() / theirs.norm())


def widened(model: Any, family: str, **options: Any) -> Any:
    """A model of the same function: every hidden unit, head and neuron stands twice and is halved where it is read."""
    sizes = {name: DOUBLED[name] for name in sizes_of(model)}
    wide: Any = build(family, **OPTIONS.get(family, {}), **sizes, **options).double()
    theirs = dict(wide.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            value = parameter
            if "c_attn" in name:  # queries, keys and values side by side
                value = torch.cat([torch.cat([part, part], -1) for part in value.chunk(3, -1)], -1)
            for dim in range(value.dim()):
                if theirs[name].shape[dim] == 2 * value.shape[dim]:
                    reads = dim == (0 if type(owner).__name__ == "Conv1D" else 1) and value.dim() == 2
                    value = torch.cat([value, value], dim)
                    value = value / 2 if reads and not isinstance(owner, nn.Embedding) else value
            theirs[name].copy_(value)
        head = wide.get_output_embeddings()
        if head is not None and head.weight is wide.get_input_embeddings().weight:
            last = (
                wide.decoder.final_layer_norm
                if family == "t5"
                else wide.base_model.get_submodule({"gpt2": "ln_f"}.get(family, "norm"))
            )
            for parameter in last.parameters():
                parameter.mul_(0.5 if family != "t5" else 0.5**0.5)
    return wide


@pytest.mark.parametrize("family", KNOWN)
def test_a_widened_teacher_comes_back_as_the_small_model(family: str) -> None:
    model = small(family)
    teacher = widened(model, family)
    assert error(teacher, model, family) < 1e-6  # RMSNorm computes in float32
    sizes = {
        k: getattr(model.config, k) for k in DOUBLED if hasattr(model.config, k) and k not in model.config.attribute_map
    }
    student = shrink(teacher, [inputs(family)], **sizes)
    assert [p.shape for p in student.parameters()] == [p.shape for p in model.parameters()]
    assert error(student, model, family) < (2e-2 if family in POST_NORM else 1e-3)


@pytest.mark.parametrize("family", KNOWN)
def test_the_same_sizes_give_the_teacher_back(family: str) -> None:
    teacher = small(family)
    assert error(shrink(teacher, [inputs(family)]), teacher, family) < 1e-4


ALONE: dict[str, list[dict[str, int]]] = {
    "bert": [{"hidden_size": 8}, {"intermediate_size": 10}, {"num_attention_heads": 1}, {"num_hidden_layers": 1}],
    "vit": [{"hidden_size": 8}, {"intermediate_size": 10}, {"num_attention_heads": 1}, {"num_hidden_layers": 1}],
    "gpt2": [{"n_embd": 8, "n_inner": 20}, {"n_inner": 10}, {"n_head": 1}, {"n_layer": 1}],
    "llama": [{"hidden_size": 8}, {"intermediate_size": 10}, {"num_attention_heads": 2}, {"num_hidden_layers": 1},
              {"num_key_value_heads": 1}, {"num_key_value_heads": 1, "num_attention_heads": 2, "hidden_size": 10}],
    "qwen3": [{"num_key_value_heads": 1, "num_attention_heads": 1}],
    "t5": [{"d_model": 8}, {"d_ff": 10}, {"num_heads": 1}, {"d_kv": 4}, {"num_layers": 1}, {"num_decoder_layers": 1},
           {"d_model": 8, "d_ff": 10, "num_heads": 1, "d_kv": 4, "num_layers": 1, "num_decoder_layers": 1}],
}  # fmt: skip
GROUPS = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2},
}


@pytest.mark.parametrize(("family", "sizes"), [(f, s) for f, found in ALONE.items() for s in found], ids=str)
def test_every_size_alone_is_better_than_chance_and_loads_again(
    family: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    teacher = small(family, **GROUPS.get(family, {}))
    student = shrink(teacher, [inputs(family)], **sizes)
    for name, value in sizes.items():
        assert getattr(student.config, name) == value
    student.save_pretrained(tmp_path)
    again = type(teacher).from_pretrained(tmp_path, dtype=torch.float64)
    assert error(again, student, family) < 1e-12
    untrained = type(teacher)(student.config).double()
    assert error(student, teacher, family) < 0.8 * min(1.0, error(untrained, teacher, family))


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
    assert error(again, once, family) < 1e-8


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


def test_a_base_model_tells_its_teachers_projected_states() -> None:
    teacher = small("bert").bert
    given = inputs("bert")
    student = shrink(teacher, [given], hidden_size=14)
    projection = shrink_report(student).projection.double()
    real = given["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = (m(**given).last_hidden_state[real] for m in (student, teacher))
    assert (ours - theirs @ projection).norm() < 0.2 * (theirs @ projection).norm()


def test_the_report_says_what_is_kept() -> None:
    teacher = small("vit", num_hidden_layers=4)
    report = shrink_report(shrink(teacher, [inputs("vit")], num_hidden_layers=2, hidden_size=8))
    assert [block.teacher_blocks for block in report.blocks] == [(0, 1), (2, 3)]
    assert all(0.3 < share < 1 for block in report.blocks for share in block.kept.values())
    assert "| layers.1 | 2 to 3 " in str(report)
    with pytest.raises(KeyError, match="was not made by shrink"):
        shrink_report(teacher)


def spoiled(family: str, value: float) -> Any:
    model = small(family)
    with torch.no_grad():
        next(model.base_model.encoder.layer[1].parameters()).view(-1)[3] = value
    return model


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], type[Exception], str]] = {
    "no model": (lambda: nn.Linear(2, 2), {}, TypeError, "Linear; shrink needs a transformers model"),
    "another family": (lambda: build("swin"), {}, ValueError, "swin.*knows bert, .*keep_layers"),
    "another head": (lambda: masked_bert(), {}, ValueError, "BertForMaskedLM.*does not know its cls.predictions"),
    "larger": (lambda: small("bert"), {"hidden_size": 32}, ValueError, "hidden_size is 32; the teacher's is 16"),
    "zero": (lambda: small("bert"), {"num_hidden_layers": 0}, ValueError, "num_hidden_layers is 0"),
    "no number": (lambda: small("bert"), {"hidden_size": "8"}, TypeError, "hidden_size is '8'; give a whole"),
    "no size": (lambda: small("bert"), {"hidden_act": 3}, ValueError, "hidden_act is no size of a bert; its sizes are"),
    "head size": (lambda: small("llama"), {"head_dim": 4}, ValueError, "head_dim is no size of a llama"),
    "heads": (lambda: small("bert"), {"hidden_size": 9}, ValueError, "hidden_size 9 is not a multiple of num_att"),
    "groups": (lambda: small("llama", num_attention_heads=4, num_key_value_heads=2, hidden_size=24),
               {"num_attention_heads": 3}, ValueError, "num_attention_heads 3 is not a multiple of num_key"),
    "NaN": (lambda: spoiled("bert", float("nan")), {}, ValueError, "encoder.layer.1.* holds NaN"),
    "meta": (lambda: small("bert").to("meta"), {}, ValueError, "word_embeddings.weight is on the meta device"),
    "quantized": (lambda: quantized_bert(), {}, TypeError, "teacher is quantized"),
}  # fmt: skip


def masked_bert() -> Any:
    return BertForMaskedLM(small("bert").config)


def quantized_bert() -> Any:
    model = small("bert")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_a_batch_is_drawn(case: str) -> None:
    make, sizes, kind, words = REFUSED[case]

    def drawn() -> Any:
        raise AssertionError("a batch was drawn")
        yield

    with pytest.raises(kind, match=words):
        shrink(make(), drawn(), **sizes)


def test_refused_examples() -> None:
    teacher = small("bert")
    with pytest.raises(ValueError, match="batches is empty"):
        shrink(teacher, [])
    with pytest.raises(
        ValueError, match=r"21 tokens in 3 examples, and a student with 24 directions \(inter.* 4 examples"
    ):
        shrink(teacher, parts(inputs("bert"), [3, 61])[:1])
    given = inputs("vit")
    given["pixel_values"][2] = float("inf")
    with pytest.raises(ValueError, match="states of batch 1"):
        shrink(small("vit"), [inputs("vit"), given])
