"""Losses on logits against torch's own, closed forms and limits."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, rel_entr, softmax
from tests.distill.small import arguments, labelled, train
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    CLIPConfig,
    CLIPForImageClassification,
    DataCollatorWithFlattening,
    ElectraConfig,
    ElectraForPreTraining,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
    XLNetConfig,
    XLNetLMHeadModel,
)
from transformers.modeling_outputs import CausalLMOutput

from opdf.distill import DistillationTrainer, EmbeddingDistillation, LogitsDistillation, Objective, chunks
from opdf.distill.losses import DIVERGENCES, soft_binary_loss, soft_loss, squared_loss
from opdf.distill.matching import check_same_outputs
from opdf.distill.models import SEVERAL


def logits(seed: int, items: int = 6, classes: int = 5) -> torch.Tensor:
    return torch.randn(items, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_loss_is_torchs_divergence(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    expected = F.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(soft_loss(student, teacher, temperature) / 6, expected * temperature**2)


def of_scipy(name: str, student: np.ndarray, teacher: np.ndarray) -> float:
    """Of probabilities `[items, classes]`, summed."""
    if name == "js":
        return float(sum(jensenshannon(p, q) ** 2 for p, q in zip(teacher, student, strict=True)))
    first, second = (teacher, student) if name == "forward" else (student, teacher)
    return float(rel_entr(first, second).sum())


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_divergences_are_scipys(name: str, temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    ours, theirs = (softmax(x.numpy() / temperature, -1) for x in (student, teacher))
    expected = of_scipy(name, ours, theirs) * temperature**2
    assert float(DIVERGENCES[name](student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(DIVERGENCES[name](student, teacher - 1e3, temperature)) == pytest.approx(expected, rel=1e-9)
    # Several labels at once are that many choices of two.
    ours, theirs = (
        np.stack([p, 1 - p], -1).reshape(-1, 2) for p in (expit(x.numpy() / temperature) for x in (student, teacher))
    )
    expected = of_scipy(name, ours, theirs) * temperature**2 / 5
    found = soft_binary_loss(student, teacher, temperature, DIVERGENCES[name])
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["forward", "js"])  # the reverse is infinite
def test_a_class_that_the_teacher_rules_out_adds_nothing(name: str) -> None:
    """A teacher's logit of -inf made the loss NaN, which was told as a training that diverged."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    teacher[:, 2] = -torch.inf
    ours, theirs = (softmax(x.detach().numpy() / 0.5, -1) for x in (student, teacher))
    expected = of_scipy(name, ours, theirs) * 0.5**2
    assert DIVERGENCES[name](student, teacher, 0.5).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: DIVERGENCES[name](x, teacher, 0.5), student)
    assert teacher[:, 2].isneginf().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_of_divergences(name: str) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    assert torch.autograd.gradcheck(lambda x: DIVERGENCES[name](x, teacher, 2.0), student)


class Says(nn.Module):
    """Always the same logits."""

    def __init__(self, said: torch.Tensor, **config: Any) -> None:
        super().__init__()
        self.said, self.config = nn.Parameter(said), SimpleNamespace(**config)

    def forward(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.said)


@pytest.mark.parametrize(
    ("problem", "shape", "labels"),
    [
        (None, (40, 5), torch.arange(40) % 5),
        (None, (8, 5, 5), torch.arange(40).reshape(8, 5) % 5),
        ("regression", (40, 1), torch.linspace(-1, 1, 40)),
        ("multi_label_classification", (40, 5), torch.arange(200).reshape(40, 5) % 2),
    ],
)
def test_losses_of_logits_in_half_precision_are_those_in_float32(problem: Any, shape: Any, labels: Any) -> None:
    said = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1)]
    weights, totals = [1.1, 0.7, 1.3, 0.9, 1.7] if problem is None and len(shape) == 2 else None, []
    for dtype in (torch.bfloat16, torch.float32):
        student = Says(said[0].to(dtype), problem_type=problem)
        objective = LogitsDistillation(alpha=0.5, class_weights=weights)
        batch = {"teacher_logits": said[1].to(dtype), "labels": labels}
        totals.append(objective.losses(student, None, batch, torch.tensor(40)).total)
    assert torch.equal(*totals)


def test_the_divergence_is_an_option_of_logits() -> None:
    batch = {"input_ids": torch.arange(16).reshape(4, 4), "labels": torch.tensor([0, 1, 1, 0])}
    student, teacher = bert(), bert(initializer_range=1.0).eval()
    losses = [LogitsDistillation(divergence=d).losses(student, teacher, batch, torch.tensor(4)) for d in DIVERGENCES]
    found = [float(each.parts["distillation"]) for each in losses]
    ours, theirs = (softmax(m(batch["input_ids"]).logits.detach().numpy() / 2, -1) for m in (student, teacher))
    assert found == pytest.approx([of_scipy(name, ours, theirs) for name in DIVERGENCES], rel=1e-4)
    several = Says(logits(0), problem_type="multi_label_classification"), {"teacher_logits": logits(1)}
    soft = [LogitsDistillation(2.0, 1.0, d).losses(several[0], None, several[1], torch.tensor(6)) for d in DIVERGENCES]
    expected = [soft_binary_loss(logits(0), logits(1), 2.0, loss) / 6 for loss in DIVERGENCES.values()]
    torch.testing.assert_close(torch.stack([each.total for each in soft]), torch.stack(expected))
    with pytest.raises(ValueError, match="divergence is 'backward'; expected one of forward, reverse, js"):
        LogitsDistillation(divergence="backward")
    for kind in ("regression", None):  # of one output, transformers says so only with the first loss
        with pytest.raises(ValueError, match="divergence is 'js' and a regression has no distributions; leave it out"):
            LogitsDistillation(divergence="js").prepare(*(bert(num_labels=1, problem_type=kind) for _ in range(2)))


def test_nothing_to_learn_from_an_equal_teacher() -> None:
    student = logits(0).requires_grad_()
    for loss in (*DIVERGENCES.values(), soft_binary_loss):
        value = loss(student, student.detach(), 2.0)
        assert float(value) == pytest.approx(0, abs=1e-12)
        (gradient,) = torch.autograd.grad(value, student)
        assert float(gradient.abs().max()) < 1e-12


def test_gradient_at_high_temperature_is_the_centred_difference() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    (gradient,) = torch.autograd.grad(soft_loss(student, teacher, 1e4), student)
    difference = (student - teacher).detach()
    torch.testing.assert_close(gradient, (difference - difference.mean(-1, keepdim=True)) / 5, rtol=1e-3, atol=1e-4)


def test_regression_loss() -> None:
    assert float(squared_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]))) == 5.0
    assert float(squared_loss(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]]))) == 4.5


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"alpha": -0.1}, {"alpha": 1.1}])
def test_bad_arguments(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        LogitsDistillation(**options)


def bert(**options: object) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options)  # fmt: skip
    return BertForSequenceClassification(config)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2, 1, 1])),
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        ({"num_labels": 3, "problem_type": "regression"}, torch.arange(12).reshape(4, 3)),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.eye(4, 3)),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.eye(4, 3, dtype=torch.int64)),
        ({"num_labels": 3}, torch.eye(4, 3)),  # their head says so of itself only once it has computed a loss
    ],
)
def test_task_loss_is_the_models_own(options: dict[str, object], labels: torch.Tensor) -> None:
    model = bert(**options)
    batch = {"input_ids": torch.arange(16).reshape(4, 4), "labels": labels}
    objective = LogitsDistillation(alpha=0.0)
    losses = objective.losses(model, None, batch, objective.count_items(model, batch))
    if not labels.is_floating_point() and labels.dim() == 2:  # their own loss wants these as floating point
        batch["labels"] = labels.float()
    torch.testing.assert_close(losses.total, model(**batch).loss)


def test_token_loss_is_the_models_own_and_masks_padding() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8)).eval()
    ids = torch.arange(12).reshape(2, 6)
    labels = ids.clone()
    labels[0, :3] = -100
    batch = {"input_ids": ids, "labels": labels}
    objective = LogitsDistillation(alpha=0.5)
    items = objective.count_items(model, batch)
    assert items.tolist() == [8, 8]
    assert Objective().count_items(model, batch) == 8
    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8)).eval()
    losses = objective.losses(model, teacher, batch, items)
    torch.testing.assert_close(losses.parts["task"], model(**batch).loss.detach())
    kept = labels[:, 1:] != -100
    ours, theirs = (m(input_ids=ids).logits[:, :-1][kept] for m in (model, teacher))
    torch.testing.assert_close(losses.parts["distillation"], (soft_loss(ours, theirs, 2.0) / 8).detach())


class MineForCausalLM(PreTrainedModel):
    """A decoder of a user's own that does not generate, with the loss that transformers gives a class of this name."""

    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model, self.head = LlamaModel(config), nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> CausalLMOutput:
        logits = self.head(self.model(input_ids, attention_mask).last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits)


def test_labels_of_a_decoder_of_ones_own_are_shifted_as_its_loss_does() -> None:
    """It learned to say the token that it reads."""
    torch.manual_seed(0)
    model = MineForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                        intermediate_size=8)).eval()  # fmt: skip
    ids = torch.arange(12).reshape(2, 6)
    batch = {"input_ids": ids, "labels": ids}
    objective = LogitsDistillation(alpha=0.0)
    found = objective.losses(model, None, batch, objective.count_items(model, batch)).total
    torch.testing.assert_close(found, model(**batch).loss)


def test_examples_are_counted_where_each_has_a_row() -> None:
    """The first value of a batch may be one row for all; the loss was so many times too large."""
    batch = {"position_ids": torch.arange(4)[None], "input_ids": torch.ones(3, 4, dtype=torch.int64)}
    assert LogitsDistillation(alpha=1.0).count_items(bert(), batch).tolist() == [3, 3]
    assert EmbeddingDistillation().count_items(bert().bert, batch) == 3


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["bert", "xlm"])
def test_labels_of_masked_tokens_are_not_shifted(kind: str, adapted: bool) -> None:
    """An XLM and a FlauBERT can generate too: each hidden token was learned where the one before it stands."""
    torch.manual_seed(0)
    xlm = XLMConfig(vocab_size=20, emb_dim=8, n_layers=1, n_heads=2)
    model: Any = BertForMaskedLM(bert().config) if kind == "bert" else XLMWithLMHeadModel(xlm)
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["query" if kind == "bert" else "q_lin"]))
    model.eval()
    labels = torch.full((2, 6), -100)
    labels[0, 0], labels[1, 3:5] = 7, 8  # the first token counts, which a decoder could not predict
    ids = torch.arange(12).reshape(2, 6)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    objective = LogitsDistillation(alpha=0.0)
    items = objective.count_items(model, batch)
    assert items.tolist() == [3, 3]
    torch.testing.assert_close(objective.losses(model, None, batch, items).total, model(**batch).loss)


@pytest.mark.parametrize("kind", ["bart", "xlnet"])
def test_labels_that_transformers_wants_shifted_are_not_shifted_once_more(kind: str) -> None:
    """Those of BART's decoder are, and an XLNet's are of the places that target_mapping names."""
    torch.manual_seed(0)
    ids = torch.arange(12).reshape(2, 6)
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if kind == "bart":
        model: Any = BartForCausalLM(BartConfig(vocab_size=20, d_model=8, decoder_layers=1, decoder_attention_heads=2,
                                                decoder_ffn_dim=8, max_position_embeddings=8))  # fmt: skip
    else:
        model = XLNetLMHeadModel(XLNetConfig(vocab_size=20, d_model=8, n_layer=1, n_head=2, d_inner=8))
        batch["labels"] = ids[:, -1:]  # the one that is to be found
        batch["perm_mask"] = torch.zeros(2, 6, 6)
        batch["perm_mask"][:, :, -1] = 1
        batch["target_mapping"] = F.one_hot(torch.tensor([[5], [5]]), 6).float()
    model.eval()
    objective = LogitsDistillation(alpha=0.0)
    items = objective.count_items(model, batch)
    assert items[0] == (10 if kind == "bart" else 2)
    torch.testing.assert_close(objective.losses(model, None, batch, items).total, model(**batch).loss)


def test_labels_of_other_libraries_modules_are_not_shifted() -> None:
    class Tagger(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=F.one_hot(input_ids % 3, 3).float())

    labels = torch.tensor([[0, 1, 2, -100]])
    batch = {"input_ids": torch.tensor([[0, 1, 2, 2]]), "labels": labels}
    objective = LogitsDistillation(alpha=0.0)
    items = objective.count_items(Tagger(), batch)
    assert items.tolist() == [3, 3]
    expected = F.cross_entropy(torch.eye(3), torch.arange(3))
    torch.testing.assert_close(objective.losses(Tagger(), None, batch, items).total, expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_several_labels_and_numbers_are_not_taken_for_shares_of_classes(alpha: float) -> None:
    """A module without a configuration learned them with a softmax over all outputs, of numbers without end."""

    class Scorer(nn.Linear):
        def forward(self, values: torch.Tensor) -> SimpleNamespace:  # type: ignore[override]
            return SimpleNamespace(logits=super().forward(values))

    torch.manual_seed(0)
    student, teacher, objective = Scorer(4, 3), Scorer(4, 3).eval(), LogitsDistillation(alpha=alpha)
    batch = {"values": torch.randn(2, 4), "labels": torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])}
    ours, theirs = (model(batch["values"]).logits for model in (student, teacher))
    expected = soft_loss(ours, theirs, 2.0) / 2 if alpha else F.cross_entropy(ours, batch["labels"])
    torch.testing.assert_close(objective.losses(student, teacher, batch, torch.tensor(2)).total, expected)
    for labels in ([1.0, 0.0, 1.0], [3.0, -1.0, 2.0], [0.5, -0.5, 0.0]):
        batch["labels"][1] = torch.tensor(labels)
        with pytest.raises(ValueError, match=r"labels \[.*\], which are no shares of classes.*whose problem_type"):
            objective.losses(student, teacher, batch, torch.tensor(2))


def test_classifiers_that_are_their_own_base_model_have_a_head() -> None:
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    model = CLIPForImageClassification(CLIPConfig(vision_config=vision, num_labels=3)).eval()
    LogitsDistillation().prepare(model, model)
    with pytest.raises(ValueError, match="the teacher is a BertModel, which ends in hidden states"):
        LogitsDistillation().prepare(bert(), bert().bert)


def test_an_encoder_decoder_without_labels_learns_at_its_decoders_tokens() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    student, teacher = T5ForConditionalGeneration(config).eval(), T5ForConditionalGeneration(config).eval()
    batch = {"input_ids": torch.arange(12).reshape(2, 6), "decoder_input_ids": torch.tensor([[0, 3, 4], [0, 5, 6]]),
             "decoder_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}  # fmt: skip
    objective = LogitsDistillation(alpha=1.0)
    items = objective.count_items(student, batch)
    assert items.tolist() == [5, 5]
    kept = batch["decoder_attention_mask"].bool()
    ours, theirs = (model(**batch).logits[kept] for model in (student, teacher))
    total = objective.losses(student, teacher, batch, items).total
    torch.testing.assert_close(total, soft_loss(ours, theirs, 2.0) / 5)


def test_missing_labels_need_alpha_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"input_ids": torch.arange(16).reshape(4, 4)}
    with pytest.raises(ValueError, match="set alpha to 1"):
        LogitsDistillation().losses(bert(), bert().eval(), batch, torch.tensor(4))
    monkeypatch.setattr(chunks, "CHUNK", 40)
    student, teacher = (BertForMaskedLM(bert().config).eval() for _ in range(2))
    with pytest.raises(ValueError, match="set alpha to 1"):
        LogitsDistillation().losses(student, teacher, batch, torch.tensor(16))
    assert LogitsDistillation(alpha=1.0).losses(bert(), bert().eval(), batch, torch.tensor(4)).parts.keys() == {
        "distillation"
    }


@pytest.mark.parametrize("chunk", [2**24, 40])
def test_outputs_of_other_tokens_than_have_labels_are_refused(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was an IndexError about a mask. Tokens of a prompt that is tuned stand before those of the text."""
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    config = LlamaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    plain = LlamaForCausalLM(config).eval()
    prompted = get_peft_model(
        LlamaForCausalLM(config), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    ids = torch.arange(12).reshape(2, 6)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    for student, teacher in ((prompted, plain), (plain, prompted)):
        with pytest.raises(ValueError, match="outputs are of 9 tokens and the labels of 6"):
            LogitsDistillation().losses(student, teacher, batch, torch.tensor(10))


def test_a_columns_one_number_is_not_taken_for_all_classes() -> None:
    batch = {"input_ids": torch.arange(16).reshape(4, 4), "teacher_logits": torch.randn(4, 1)}
    with pytest.raises(ValueError, match=r"are of shape \(4, 2\) and the teacher's \(4, 1\)"):
        LogitsDistillation(alpha=1.0).losses(bert(), None, batch, torch.tensor(4))


def test_a_teacher_is_not_asked_where_the_data_bring_its_logits() -> None:
    """This one is in training mode, and would be refused."""
    batch = {"input_ids": torch.arange(16).reshape(4, 4), "teacher_logits": torch.randn(4, 2)}
    objective = LogitsDistillation(alpha=1.0)
    assert torch.equal(*(objective.losses(bert(), teacher, batch, torch.tensor(4)).total for teacher in (None, bert())))


def test_classes_in_another_place_than_the_last_are_refused() -> None:
    """As a segmentation has them; the loss would be over the width of an image."""
    pixels = nn.Conv2d(3, 2, 1)
    pixels.forward = lambda pixel_values: SimpleNamespace(logits=nn.Conv2d.forward(pixels, pixel_values))  # type: ignore[method-assign]
    batch = {"pixel_values": torch.randn(4, 3, 5, 5)}
    with pytest.raises(ValueError, match=r"a Conv2d are of shape \(4, 2, 5, 5\); expected \[batch, cl"):
        LogitsDistillation(alpha=1.0).losses(pixels, pixels.eval(), batch, torch.tensor(4))


def test_a_number_a_token_is_not_taken_for_classes() -> None:
    """A student of ELECTRA's detector learned which tokens of a text were put in rather than others of it."""
    sizes = {"embedding_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    detector = ElectraForPreTraining(ElectraConfig(vocab_size=20, num_hidden_layers=1, **sizes))
    for alpha, teacher in ((0.0, None), (1.0, copy.deepcopy(detector))):
        with pytest.raises(ValueError, match=r"the student is a ElectraForPreTraining, .* one number a token"):
            LogitsDistillation(alpha=alpha).prepare(detector, teacher)


def test_outputs_that_mean_different_things_are_refused() -> None:
    names = [{"id2label": dict(enumerate(n))} for n in (["bad", "good"], ["good", "bad"])]
    with pytest.raises(ValueError, match="give both in the same order"):
        check_same_outputs(bert(**names[0]), bert(**names[1]))
    backwards = {"id2label": {1: "bad", 0: "good"}}  # in the order of the names above, with other numbers
    with pytest.raises(ValueError, match="give both in the same order"):
        check_same_outputs(bert(**names[0]), bert(**backwards))
    small, large = (GPT2LMHeadModel(GPT2Config(vocab_size=v, n_embd=8, n_layer=1, n_head=1)) for v in (20, 21))
    with pytest.raises(ValueError, match="20 tokens and the teacher's 21"):
        check_same_outputs(small, large)


def test_a_number_may_have_any_name() -> None:
    score, grade = {"id2label": {0: "score"}}, {"id2label": {0: "grade"}}
    check_same_outputs(bert(**score), bert(problem_type="regression", **grade))
    with pytest.raises(ValueError, match="give both in the same order"):
        check_same_outputs(*(bert(problem_type=SEVERAL, **name) for name in (score, grade)))


@pytest.mark.parametrize("chunk", [2**24, 40])
def test_a_language_model_of_two_learns_from_its_like(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary stands in the configuration of the part that writes: it was an AttributeError."""
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}

    def translator(words: int) -> EncoderDecoderModel:
        both = [BertConfig(vocab_size=v, **sizes, **more) for v, more in ((20, {}), (words, {"is_decoder": True}))]
        both[1].add_cross_attention = True
        config = EncoderDecoderConfig.from_encoder_decoder_configs(*both)
        config.decoder_start_token_id, config.pad_token_id = 1, 0
        return EncoderDecoderModel(config).eval()

    student, teacher = translator(20), translator(20)
    labels = torch.tensor([[3, 4, -100], [5, 6, 7]])
    batch = {"input_ids": torch.arange(12).reshape(2, 6), "labels": labels}
    objective = LogitsDistillation(alpha=0.5)
    objective.prepare(student, teacher)
    items = objective.count_items(student, batch)
    losses = objective.losses(student, teacher, batch, items)
    ours, theirs = (model(**batch).logits[labels != -100] for model in (student, teacher))
    expected = (F.cross_entropy(ours, labels[labels != -100]) + soft_loss(ours, theirs, 2.0) / 5) / 2
    torch.testing.assert_close(losses.total, expected)
    with pytest.raises(ValueError, match="20 tokens and the teacher's 21"):
        objective.prepare(student, translator(21))


def gpt2(pad: int | None) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, pad_token_id=pad, initializer_range=0.5)
    return GPT2ForSequenceClassification(config).eval()


def test_decoders_that_look_for_other_padding_are_refused() -> None:
    """Of the same weights, they say different things of texts that are padded."""
    ids = torch.tensor([[3, 4, 0, 0], [3, 7, 5, 0]])
    answers = [gpt2(pad)(input_ids=ids, attention_mask=(ids != 0).long()).logits for pad in (0, 7)]
    assert not torch.allclose(*answers)
    with pytest.raises(ValueError, match="the student's pad_token_id is 0 and the teacher's 7"):
        check_same_outputs(gpt2(0), gpt2(7))
    check_same_outputs(gpt2(0), gpt2(0))
    t5 = [
        T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1,
                                            decoder_start_token_id=start))
        for start in (0, 1)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="the student's decoder_start_token_id is 0 and the teacher's 1"):
        check_same_outputs(*t5)


def test_a_tokenizer_that_gives_its_padding_to_the_student_alone_is_noticed(tmp_path: Path) -> None:
    """`Trainer.train` does, where there is a `processing_class`."""
    words = Tokenizer(WordLevel({f"w{k}": k for k in range(20)}, unk_token="w1"))
    data = Dataset.from_dict({"input_ids": [[3, 4], [3, 7, 5, 6]] * 4, "labels": [0, 1] * 4})
    for pad, teacher in (("w7", gpt2(7)), ("w0", gpt2(7))):
        trainer = DistillationTrainer(
            gpt2(7), arguments(tmp_path, max_steps=1), teacher=teacher, train_dataset=data,
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad),
        )  # fmt: skip
        if pad == "w7":
            trainer.train()
            continue
        with pytest.raises(ValueError, match="the student's pad_token_id is 0 and the teacher's 7"):
            trainer.train()


def llamas() -> list[Any]:
    """Two of one size."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                         initializer_range=0.5)  # fmt: skip
    return [LlamaForCausalLM(config).eval() for _ in range(2)]


@pytest.mark.parametrize("chunk", [2**24, 40])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_text_is_learned_alike_wherever_its_padding_stands(
    labelled: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    student, teacher = llamas()
    objective = LogitsDistillation(alpha=0.5 if labelled else 1.0)
    losses = []
    for left in (0, 2, 3):
        text, pad = torch.tensor([[3, 4, 9, 5]]), torch.zeros(1, 3, dtype=torch.long)
        ids = torch.cat([pad[:, :left], text, pad[:, left:]], 1)
        batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        if labelled:
            batch["labels"] = ids.masked_fill(ids == 0, -100)
        items = objective.count_items(student, batch)
        assert items.tolist() == [3, 3]
        losses.append(objective.losses(student, teacher, batch, items).total)
    if labelled:
        own = student(input_ids=text, labels=text).loss
        torch.testing.assert_close(LogitsDistillation(alpha=0.0).losses(student, None, batch, items).total, own)
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


def test_a_mask_of_pairs_of_tokens_says_nothing_of_padding() -> None:
    """A decoder may be given one `[batch, 1, tokens, tokens]`."""
    (student, _), ids = llamas(), torch.arange(12).reshape(2, 6)
    pairs = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6)
    batch, objective = {"input_ids": ids, "attention_mask": pairs, "labels": ids}, LogitsDistillation(alpha=0.0)
    found = objective.losses(student, None, batch, objective.count_items(student, batch)).total
    torch.testing.assert_close(found, student(**batch).loss)


@pytest.mark.parametrize("chunk", [2**24, 40])
def test_packed_texts_are_learned_as_single_ones(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher with a cache attended to the texts before; what tells kernels where texts end is no tensor by row."""
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    student, teacher = llamas()
    texts = [[3, 4, 9, 5], [7, 2], [8, 8, 1, 6, 2]]
    packed = DataCollatorWithFlattening(return_flash_attn_kwargs=True)([{"input_ids": text} for text in texts])
    single = [{name: torch.tensor([text]) for name in ("input_ids", "labels")} for text in texts]
    objective, items = LogitsDistillation(alpha=0.5), torch.tensor([8, 8])
    assert torch.equal(objective.count_items(student, packed), items)
    found = objective.losses(student, teacher, packed, items).total
    torch.testing.assert_close(found, sum(objective.losses(student, teacher, one, items).total for one in single))


def bart(end: int) -> BartForSequenceClassification:
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder")
             for what, size in (("layers", 1), ("attention_heads", 1), ("ffn_dim", 8))}  # fmt: skip
    config = BartConfig(vocab_size=20, d_model=8, max_position_embeddings=8, eos_token_id=end, init_std=0.5, **sizes)
    return BartForSequenceClassification(config).eval()


def test_classifiers_that_look_for_another_end_are_refused() -> None:
    ids = torch.tensor([[3, 7, 5, 2], [3, 4, 7, 2]])
    answers = [bart(end)(input_ids=ids).logits for end in (2, 7)]
    assert not torch.allclose(*answers)
    with pytest.raises(ValueError, match="the student's eos_token_id is 2 and the teacher's 7"):
        check_same_outputs(bart(2), bart(7))
    check_same_outputs(bart(2), bart(2))
    ends = [GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, eos_token_id=k)) for k in (2, 7)]
    check_same_outputs(*ends)  # who writes ends there, and reads none


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("multi_label_classification", soft_binary_loss),
        ("regression", lambda ours, theirs, _: squared_loss(ours, theirs)),
    ],
)
def test_a_teacher_tells_a_student_what_outputs_mean(tmp_path: Path, kind: str, loss: Any) -> None:
    """Without labels, a student whose configuration left it open took several labels, and numbers, for classes."""
    teacher, student = bert(num_labels=3, problem_type=kind).eval(), bert(num_labels=3)
    ids = torch.randint(1, 20, (8, 4), generator=torch.Generator().manual_seed(0))
    ours, theirs = (model.eval()(input_ids=ids).logits.detach() for model in (student, teacher))
    trainer, _ = train(
        tmp_path, student=student, teacher=teacher, objective={"alpha": 1.0}, training={"max_steps": 1},
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
    )  # fmt: skip
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss(ours, theirs, 2.0)) / 8, rel=1e-5)
    assert student.config.problem_type == kind


def test_one_label_and_several_are_not_the_same() -> None:
    kinds = [bert(num_labels=3, problem_type=f"{kind}_label_classification") for kind in ("single", "multi")]
    with pytest.raises(ValueError, match="problem_type is 'single_label_classification' and the teacher's 'multi_"):
        check_same_outputs(*kinds)


@pytest.mark.parametrize("labelled", [0, 2, 8])
def test_with_alpha_zero_examples_without_a_label_are_passed_over_as_transformers_does(labelled: int) -> None:
    model = bert(num_labels=3)
    labels = torch.tensor([-100] * (8 - labelled) + [0, 1, 2, 0, 1, 2, 0, 1][:labelled])
    batch = {"input_ids": torch.arange(16).reshape(8, 2), "labels": labels}
    objective = LogitsDistillation(alpha=0.0)
    items = objective.count_items(model, batch)
    assert items.tolist() == [8, labelled]
    teacher = bert(num_labels=3)  # is not asked: in training mode it would be refused
    (ours,) = torch.autograd.grad(
        objective.losses(model, teacher, batch, items.clamp(min=1)).total, model.classifier.weight
    )
    if labelled:
        (theirs,) = torch.autograd.grad(model(**batch).loss, model.classifier.weight)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    else:
        assert not ours.any()


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, -100, 1]), torch.tensor([1, 1, 0, 0])])
def test_class_weights_are_torchs_and_a_mean_over_the_labelled_examples(labels: torch.Tensor) -> None:
    """Loss and gradient, with another split into micro-batches, too; a weight of 2 counts an example twice."""
    weights = [2.0, 0.5]
    student, objective = bert(), LogitsDistillation(alpha=0, class_weights=weights)
    objective.prepare(student, None)
    batch = {"input_ids": torch.arange(12).reshape(4, 3), "labels": labels}
    items = objective.count_items(student, batch)
    loss = sum(
        objective.losses(student, None, {k: v[rows] for k, v in batch.items()}, items).total
        for rows in (slice(0, 1), slice(1, 4))
    )
    out = student(input_ids=batch["input_ids"]).logits.double()
    each = -out.log_softmax(-1)[torch.arange(4), labels.clamp(min=0)]
    own = torch.tensor(weights, dtype=torch.float64)[labels.clamp(min=0)] * (labels >= 0)
    expected = (own * each).sum() / (labels >= 0).sum()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    parameters = list(student.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "alpha", "student", "message"),
    [
        ([1.0, 2.0, 3.0], 0.5, lambda: bert(), "class_weights has 3 numbers and the student 2 classes"),
        ([1.0], 0.5, lambda: bert(num_labels=1), "are for one class an example or word; leave them out"),
        ([1.0, 2.0], 0.5, lambda: bert(problem_type="multi_label_classification"), "are for one class an example"),
        ([1.0, 2.0], 0.5, lambda: BertForMaskedLM(bert().config), "are for one class an example or word"),
        ([1.0, 2.0], 1.0, lambda: bert(), "which alpha=1 does not use"),
    ],
)
def test_class_weights_that_mean_nothing(weights: list[float], alpha: float, student: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogitsDistillation(alpha=alpha, class_weights=weights).prepare(student(), student())


def test_class_weights_of_words_are_torchs_and_a_mean_over_the_labelled_words() -> None:
    weights, labels = [2.0, 0.5], torch.tensor([[0, 1, -100], [1, 1, -100], [0, -100, -100]])
    student = BertForTokenClassification(bert().config)
    objective = LogitsDistillation(alpha=0, class_weights=weights)
    objective.prepare(student, None)
    batch = {"input_ids": torch.arange(9).reshape(3, 3), "labels": labels}
    found = objective.losses(student, None, batch, objective.count_items(student, batch)).total
    said = student(input_ids=batch["input_ids"]).logits.flatten(0, 1)
    expected = F.cross_entropy(said, labels.flatten(), torch.tensor(weights), reduction="sum") / 5
    torch.testing.assert_close(found, expected)


def test_class_weights_are_refused_where_labels_turn_out_to_be_several(tmp_path: Path) -> None:
    """A configuration may leave it open; then the first labels tell."""
    data = labelled("labels", [[1.0, 0.0], [0.0, 1.0]] * 4)
    with pytest.raises(ValueError, match=r"class_weights are for one class .* the outputs are multi-label"):
        train(tmp_path, objective=LogitsDistillation(class_weights=[9.0, 1.0]), train_dataset=data)


def test_a_regression_has_no_missing_labels() -> None:
    model = bert(num_labels=1)
    batch = {"input_ids": torch.arange(4).reshape(2, 2), "labels": torch.tensor([-100, 3])}
    assert LogitsDistillation().count_items(model, batch).tolist() == [2, 2]
