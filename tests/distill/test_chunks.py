"""Losses by chunks against the same losses of whole logits by autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from opdf.distill import DistillationArguments, DistillationTrainer, LogitsDistillation, chunks
from opdf.distill.chunks import Tokens, over_chunks
from opdf.distill.losses import DIVERGENCES

SIZES: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 50,
}  # fmt: skip


def llama(seed: int = 0, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SIZES | {"initializer_range": 0.5} | options)))


def texts(rows: int = 3) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 50, (rows, 7), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[0, :4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("size", [1, 3, 20])
def test_value_and_gradients_are_those_of_whole_logits(divergence: str, size: int) -> None:
    """Hidden states, head's weight, which an embedding shares, and its bias; in float64."""
    states, weight, bias = random(11, 4, seed=0), random(30, 4, seed=1), random(30, seed=2)
    teacher, labels = random(11, 30, seed=4), torch.arange(11) * 2
    ids = torch.arange(11)
    found = []
    for whole in (True, False):
        leaves = [x.clone().requires_grad_() for x in (states, weight, bias)]
        tied = leaves[0] + leaves[1][ids]  # an embedding in front

        def loss(logits: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
            return {
                "task": F.cross_entropy(logits, labels[rows], reduction="sum") / 11,
                "distillation": DIVERGENCES[divergence](logits, teacher[rows], 2.0) / 11,
            }

        if whole:
            parts = loss(F.linear(tied, *leaves[1:]), slice(None))
            total = 0.3 * parts["task"] + 0.7 * parts["distillation"]
        else:
            total, parts = over_chunks(loss, Tokens(tied, *leaves[1:]), {"task": 0.3, "distillation": 0.7}, size)
        gradients = torch.autograd.grad(3 * total, leaves)
        found.append([total, parts["task"], parts["distillation"], *gradients])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", [[0], [1], [2], [0, 2]], ids=["states", "weight", "bias", "states and bias"])
def test_what_is_frozen_keeps_no_gradient_from_the_rest(trained: list[int]) -> None:
    """A student of which only the head is trained, or all but its head."""
    leaves = [random(*shape, seed=k).requires_grad_(k in trained) for k, shape in enumerate([(7, 4), (9, 4), (9,)])]
    labels = torch.arange(7)

    def loss(logits: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
        return {"task": F.cross_entropy(logits, labels[rows], reduction="sum")}

    total, _ = over_chunks(loss, Tokens(*leaves), {"task": 1.0}, 3)
    wanted = [leaves[k] for k in trained]
    expected = torch.autograd.grad(loss(F.linear(*leaves), slice(None))["task"], wanted)
    torch.testing.assert_close(torch.autograd.grad(total, wanted), expected, rtol=1e-12, atol=1e-12)


def model_of(kind: str, seed: int) -> Any:
    torch.manual_seed(seed)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2))
    if kind == "masked":
        return BertForMaskedLM(BertConfig(**SIZES))
    return llama(seed, tie_word_embeddings=kind == "tied")


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "masked"])
def test_models_learn_the_same_in_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, items = texts(), torch.tensor(20)
    found = []
    for size in (2**24, 120):
        monkeypatch.setattr(chunks, "CHUNK", size)
        student, teacher = model_of(kind, 0).double().eval(), model_of(kind, 1).double().eval()
        objective = LogitsDistillation(alpha=0.6, divergence="reverse")
        losses = objective.losses(student, teacher, batch, items)
        losses.total.backward()
        gradients = {name: p.grad for name, p in student.named_parameters()}
        found.append((losses.total, losses.parts, gradients))
        assert teacher.get_output_embeddings().weight.grad is None
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of 1e-9 would be 0 in fp16; a gradient scaler multiplies it before anyone can see."""
    monkeypatch.setattr(chunks, "CHUNK", 120)
    gradients = []
    for half in (False, True):
        student, teacher = llama(0), llama(1).eval()
        with torch.autocast("cpu", dtype=dtype, enabled=half):
            loss = LogitsDistillation().losses(student, teacher, texts(), torch.tensor(2 * 10**7)).total
        (loss * 2.0**16).backward()
        gradients.append([student.lm_head.weight.grad, student.model.embed_tokens.weight.grad])
    for exact, found in zip(*gradients, strict=True):
        assert float((exact - found).norm() / exact.norm()) < 0.05


def test_products_of_chunks_are_in_autocasts_precision() -> None:
    leaves = [random(*shape, seed=k).float() for k, shape in enumerate([(7, 4), (9, 4), (9,)])]
    with torch.autocast("cpu", torch.bfloat16):
        tokens = Tokens(*leaves).cast()
    assert all(x is not None and x.dtype == torch.bfloat16 for x in (tokens.states, tokens.weight, tokens.bias))


def test_small_gradients_of_fp16_are_scaled_before_they_are_rounded() -> None:
    """As where the head's inputs are fp16, of a model whose last layer is a Linear."""
    leaves = [random(*shape, seed=k).half().requires_grad_() for k, shape in enumerate([(7, 4), (9, 4), (9,)])]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    labels = torch.arange(7)

    def loss(logits: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
        return {"task": F.cross_entropy(logits, labels[rows], reduction="sum") / 1e9}

    total, _ = over_chunks(loss, Tokens(*leaves), {"task": 1.0}, 3)
    expected = torch.autograd.grad(loss(F.linear(*exact), slice(None))["task"] * 2.0**16, exact)
    for ours, theirs in zip(torch.autograd.grad(total * 2.0**16, leaves), expected, strict=True):
        assert ours.dtype == torch.float16
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01


@pytest.mark.parametrize("way", ["weights", "forward"])
def test_a_loss_in_half_precision_is_that_of_whole_logits(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in bf16; or a model that accelerate has prepared, whose head gets bf16 and has float32 weights."""
    models = [model_of("masked", seed).eval() for seed in (0, 1)]
    for model in models:
        for weight in model.parameters():  # far apart, so that a target's rounding shows
            weight.data.mul_(8)
        if way == "weights":
            model.bfloat16()
        else:
            model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    found = []
    for size in (2**24, 120):
        monkeypatch.setattr(chunks, "CHUNK", size)
        losses = LogitsDistillation(alpha=0.6, divergence="reverse").losses(*models, texts(), torch.tensor(20))
        found.append(torch.stack([losses.parts["task"], losses.parts["distillation"]]))
    torch.testing.assert_close(*found, rtol=1e-5 if way == "weights" else 1e-2, atol=0)


def test_what_is_summed_of_halves_is_summed_in_float32() -> None:
    """One token of a bf16 model at a time; sums in bf16 would lose what is small beside them."""
    halves = [random(*shape, seed=k).bfloat16() for k, shape in enumerate([(300, 4), (30, 4), (30,)])]
    labels = torch.arange(300) % 30

    def loss(logits: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
        assert logits.dtype != torch.bfloat16
        return {"task": F.cross_entropy(logits, labels[rows], reduction="sum")}

    leaves = [x.requires_grad_() for x in halves]
    total, _ = over_chunks(loss, Tokens(*leaves), {"task": 1.0}, 1)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = loss(F.linear(*exact), slice(None))["task"]
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
    found = torch.autograd.grad(total, leaves), torch.autograd.grad(expected, exact)
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours - theirs).norm() / theirs.norm()) < 2.0**-8


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_model_that_caps_its_logits_is_not_divided_and_says_so_once(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 120)
    capped = Gemma2ForCausalLM(Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=4, final_logit_softcapping=0.1))
    student, teacher = (capped.eval(), llama(1).eval())[:: 1 if who == "student" else -1]
    objective = LogitsDistillation()
    with pytest.warns(
        UserWarning, match="Gemma2ForCausalLM are not divided into chunks, because its head alone"
    ) as seen:
        found = [objective.losses(student, teacher, texts(), torch.tensor(20)).total for _ in range(2)]
    assert len(seen) == 1
    monkeypatch.setattr(chunks, "CHUNK", 2**24)
    assert found[1] == LogitsDistillation().losses(student, teacher, texts(), torch.tensor(20)).total


def test_logits_of_a_whole_batch_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head is given one position of each of the 3 texts, and then 2 tokens at a time."""
    monkeypatch.setattr(chunks, "CHUNK", 120)
    made, linear = [], F.linear

    def watched(*given: torch.Tensor) -> torch.Tensor:
        out = linear(*given)
        made.extend([out.shape[:-1].numel()] if out.shape[-1] == 50 else [])
        return out

    monkeypatch.setattr(F, "linear", watched)
    LogitsDistillation().losses(llama(0), llama(1).eval(), texts(), torch.tensor(20))
    assert max(made) == 3


def test_looking_at_the_head_leaves_random_numbers_and_hooks_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 120)
    student = llama(0, attention_dropout=0.5).train()
    objective, before = LogitsDistillation(alpha=0), torch.get_rng_state()
    first = objective.losses(student, None, texts(), torch.tensor(20)).total
    torch.set_rng_state(before)
    assert objective.losses(student, None, texts(), torch.tensor(20)).total == first
    assert student(**texts()).logits.shape == (3, 7, 50)


def test_a_training_in_chunks_ends_where_one_of_whole_logits_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Dataset.from_list([{name: value.tolist() for name, value in zip(texts(8), row, strict=True)}
                              for row in zip(*texts(8).values(), strict=True)])  # fmt: skip
    ends = []
    for size in (2**24, 120):
        monkeypatch.setattr(chunks, "CHUNK", size)
        student = llama(0)
        arguments = DistillationArguments(
            str(tmp_path), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True,
            save_strategy="no", disable_tqdm=True, learning_rate=0.01,
        )  # fmt: skip
        DistillationTrainer(student, arguments, teacher=llama(1), train_dataset=rows, overparam={"ones": 1}).train()
        ends.append(student.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", [pytest.param("in place", marks=pytest.mark.slow), "wrapped"])
def test_a_compiled_student_is_not_divided(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that was compiled with the narrow head would be used for all that comes after."""
    monkeypatch.setattr(chunks, "CHUNK", 120)
    student, objective = llama(0), LogitsDistillation(alpha=0)
    before = objective.losses(student, None, texts(), torch.tensor(20)).total
    compiled: Any = torch.compile(student, backend="eager") if way == "wrapped" else student
    if way == "in place":
        student.compile(backend="eager")
    with pytest.warns(UserWarning, match="LlamaForCausalLM are not divided into chunks"):
        whole = objective.losses(compiled, None, texts(), torch.tensor(20)).total
    torch.testing.assert_close(whole, before)


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "forward"])
def test_a_head_that_is_more_than_a_linear_is_not_divided(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what was added to it would be passed over, silently; also where it is added after the first batch."""
    student, objective = llama(0), LogitsDistillation(alpha=0)
    monkeypatch.setattr(chunks, "CHUNK", 120)
    objective.losses(student, None, texts(), torch.tensor(20))
    head = student.lm_head
    if kind == "hook":
        head.register_forward_hook(lambda module, inputs, output: 3 * output)
    elif kind == "pre-hook":
        head.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
    else:
        plain = head.forward
        head.forward = lambda states: 3 * plain(states)
    with pytest.warns(UserWarning, match="not divided into chunks"):
        found = objective.losses(student, None, texts(), torch.tensor(20)).total
    labels = texts()["labels"][:, 1:].flatten()
    expected = F.cross_entropy(student(texts()["input_ids"]).logits[:, :-1].flatten(0, 1), labels, reduction="sum") / 20
    torch.testing.assert_close(found, expected)
