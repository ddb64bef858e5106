"""Hidden-state distillation on real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.distill.small import arguments as small_arguments, sentences
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    XLNetConfig,
    XLNetLMHeadModel,
)

from opdf import DistillationArguments, DistillationTrainer
from opdf.distill import HiddenDistillation, TrainingDiverged, keep_layers, shrink


def bert(layers: int = 4, width: int = 16) -> BertForSequenceClassification:
    torch.manual_seed(width)
    config = BertConfig(vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
                        intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    return BertForSequenceClassification._from_config(config, attn_implementation="eager").eval()


def batch(padding: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, 19).reshape(3, 6)
    mask = torch.ones_like(ids)
    if padding:
        ids, mask = (torch.cat([t, torch.zeros(3, padding, dtype=torch.long)], 1) for t in (ids, mask))
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}


def losses(student: Any, teacher: Any, data: Any = None, **options: Any) -> tuple[HiddenDistillation, Any]:
    torch.manual_seed(0)
    objective = HiddenDistillation(**options)
    objective.prepare(student, teacher)
    return objective, objective.losses(student, teacher, data or batch(), torch.tensor(3))


def test_a_student_of_the_teachers_first_blocks_has_no_loss_on_them() -> None:
    teacher = bert()
    _, found = losses(keep_layers(teacher, [0, 1]).eval(), teacher, pairs=[(0, 0), (1, 1), (2, 2)])
    assert float(found.parts["hidden"]) == pytest.approx(0, abs=1e-10)


def test_equals_the_plain_formula() -> None:
    student, teacher = bert(2), bert(4)
    teacher.load_state_dict({k: v + 0.1 for k, v in teacher.state_dict().items()})
    _, found = losses(student, teacher)
    states = [m(**batch(), output_hidden_states=True).hidden_states for m in (student, teacher)]
    expected = sum((states[0][s] - states[1][t]).square().mean() for s, t in ((1, 2), (2, 4))) / 2
    torch.testing.assert_close(found.parts["hidden"], expected.detach())


def test_a_fitted_student_is_compared_with_the_blocks_that_it_was_fitted_to() -> None:
    """A ViT's first block has a group to itself, so that they are no groups of one size; 3 do not divide 4 either."""
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    teacher = ViTForImageClassification(ViTConfig(num_hidden_layers=4, **sizes)).eval()
    pixels = torch.randn(8, 3, 8, 8)
    for blocks, pairs in ((2, [(1, 1), (2, 4)]), (3, [(1, 1), (2, 2), (3, 4)])):
        student = shrink(teacher, [{"pixel_values": pixels}], num_hidden_layers=blocks)
        data = {"pixel_values": pixels, "labels": torch.zeros(8, dtype=torch.long)}
        ours, theirs = (m(pixels, output_hidden_states=True).hidden_states for m in (student, teacher))
        expected = sum((ours[s] - theirs[t]).square().mean() for s, t in pairs) / blocks
        objective = HiddenDistillation()
        objective.prepare(student, teacher)
        found = objective.losses(student, teacher, data, torch.tensor(8)).parts["hidden"]
        torch.testing.assert_close(found, expected.detach())


def test_padding_does_not_change_the_loss() -> None:
    student, teacher = bert(2, 8), bert(4)
    parts = [losses(student, teacher, batch(padding))[1].parts for padding in (0, 5)]
    for name in parts[0]:
        torch.testing.assert_close(parts[0][name], parts[1][name])


@pytest.mark.parametrize("normalize", [None, "cls"])
@pytest.mark.parametrize("examples", [1, 2])
def test_choices_of_an_example_count_as_one(normalize: str | None, examples: int) -> None:
    """The states of choices are texts of their own. One example's were added up, several failed."""
    student, teacher = (BertForMultipleChoice(bert(layers).config).eval() for layers in (1, 2))
    ids = torch.arange(1, 1 + examples * 12).reshape(examples, 3, 4)
    mask = (torch.arange(4) < torch.tensor([4, 3, 2])[:, None]).long().repeat(examples, 1, 1)
    data = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(examples, dtype=torch.long)}
    texts = {"input_ids": ids.flatten(0, 1), "attention_mask": mask.flatten(0, 1)}
    objective = HiddenDistillation(normalize=normalize)
    objective.prepare(student, teacher)
    found = objective.losses(student, teacher, data, torch.tensor(examples)).parts["hidden"]
    states = [m.bert(**texts, output_hidden_states=True).hidden_states[-1] for m in (student, teacher)]
    each = []
    for ours, theirs, length in zip(*states, [4, 3, 2] * examples, strict=True):
        a, b = (F.normalize(h[:1], dim=-1) if normalize else h[:length] for h in (ours, theirs))
        each.append((a - b).square().mean())
    torch.testing.assert_close(found, torch.stack(each).mean().detach())


def test_gradients_reach_every_paired_block_and_the_projections() -> None:
    student = bert(2, 8)
    objective, found = losses(student, bert(4), alpha=1.0)
    found.total.backward()
    assert all(p.grad.abs().sum() > 0 for p in objective.projections.parameters())
    for block in student.bert.encoder.layer:
        assert block.output.dense.weight.grad.abs().sum() > 0


def test_cls_normalisation_ignores_scale() -> None:
    student, teacher = bert(2), bert(4)
    _, found = losses(student, teacher, normalize="cls", pairs=[(2, 4)])
    a, b = (m(**batch(), output_hidden_states=True).hidden_states[-1][:, 0] for m in (student, teacher))
    expected = (a / a.norm(dim=-1, keepdim=True) - b / b.norm(dim=-1, keepdim=True)).square().mean()
    torch.testing.assert_close(found.parts["hidden"], expected.detach())


def test_cls_is_the_first_real_token() -> None:
    student, teacher = bert(2), bert(4)
    places = torch.arange(6).expand(3, 6)
    found = []
    for before in (0, 3):
        given = {"position_ids": places} | batch()
        labels = given.pop("labels")
        given = {name: torch.nn.functional.pad(value, (before, 0)) for name, value in given.items()}
        found.append(losses(student, teacher, given | {"labels": labels}, normalize="cls")[1].parts["hidden"])
    torch.testing.assert_close(*found)


def test_an_empty_text_has_no_distance() -> None:
    """Tokenizers without marks of their own make no token of it, and the collator pads it."""
    student, teacher, data = bert(2), bert(4), batch()
    data["attention_mask"][1] = 0
    rest = {name: value[[0, 2]] for name, value in data.items()}
    some, others = (losses(student, teacher, given)[1].parts["hidden"] for given in (data, rest))
    torch.testing.assert_close(some, others)  # both divided by the 3 examples of the step


def test_projections_begin_as_the_trainers_seed_says(tmp_path: Path) -> None:
    found = []
    for state, seed in ((1, 5), (2, 5), (2, 6)):
        student, teacher = bert(2, 8), bert()
        torch.manual_seed(state)
        arguments = DistillationArguments(str(tmp_path), seed=seed, use_cpu=True)
        trainer = DistillationTrainer(student, arguments, teacher=teacher, objective="hidden")
        found.append(next(trainer.method.modules()["projections"].parameters()))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_projections_are_clipped_along_with_the_student(tmp_path: Path) -> None:
    """A step of SGD is as long as the clipped gradient of all that it moves."""
    norms = []
    for most in (0.01, 0.0):
        student = bert(2, 8)
        training = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_steps": 1}
        arguments = small_arguments(tmp_path, max_grad_norm=most, **training)
        trainer = DistillationTrainer(student, arguments, teacher=bert(), objective="hidden", train_dataset=sentences())
        trained = [*student.parameters(), *trainer.method.modules()["projections"].parameters()]
        before = [p.detach().clone() for p in trained]
        trainer.train()
        moved = torch.stack([(p.detach() - q).norm() for p, q in zip(trained, before, strict=True)]).norm()
        norms.append(trainer.state.log_history[0]["grad_norm"])
        assert float(moved) == pytest.approx(most or norms[-1], rel=1e-3)
    assert norms[0] == pytest.approx(norms[1])


def test_a_checkpoint_with_broken_projections_is_not_written(tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if trainer.state.global_step == 2:
                next(iter(trainer.method.modules()["projections"].parameters())).data[:] = torch.inf

    trainer = DistillationTrainer(
        bert(2, 8), small_arguments(tmp_path, save_strategy="steps", save_steps=1), teacher=bert(), objective="hidden",
        train_dataset=sentences(), callbacks=[Poison()],
    )  # fmt: skip
    with pytest.raises(TrainingDiverged, match="a weight is infinite or not a number in step 2"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_projections_take_states_of_any_precision(dtype: torch.dtype) -> None:
    student, teacher = bert(2, 8), bert(4)
    expected = losses(student, teacher)[1].parts["hidden"]
    found = losses(student.to(dtype), teacher)[1].parts["hidden"]
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)


def test_states_in_half_precision_are_compared_in_float32() -> None:
    student, teacher = bert(2).bfloat16(), bert(4).bfloat16()
    _, found = losses(student, teacher, pairs="last")
    ours, theirs = (m(**batch(), output_hidden_states=True).hidden_states[-1].float() for m in (student, teacher))
    torch.testing.assert_close(found.parts["hidden"], (ours - theirs).square().mean().detach())


def test_an_objective_that_is_used_again_has_no_projections_of_other_widths() -> None:
    objective = HiddenDistillation()
    for width, count in ((8, 2), (16, 0)):
        objective.prepare(bert(2, width), bert(4))
        assert len(objective.projections) == count


def test_different_patch_grids_are_refused_with_both() -> None:
    models = [
        ViTForImageClassification(
            ViTConfig(image_size=16, patch_size=p, hidden_size=8, num_hidden_layers=2, num_attention_heads=1,
                      intermediate_size=8)
        ).eval()
        for p in (4, 8)
    ]  # fmt: skip
    data = {"pixel_values": torch.randn(3, 3, 16, 16), "labels": torch.tensor([0, 1, 1])}
    with pytest.raises(ValueError, match=r"\(3, 17, 8\) and 1 of the teacher \(3, 5, 8\)"):
        losses(*models, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_weight": -1}, "hidden_weight is -1"),
        ({"pairs": "first"}, "pairs is 'first'"),
        ({"normalize": "all"}, "normalize is 'all'"),
        ({"pairs": []}, "pairs is empty"),
        ({"pairs": [(3, 1)]}, r"pairs holds \(3, 1\); the student has states 0 to 2"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses(bert(2), bert(4), **options)


def swin(width: int) -> SwinForImageClassification:
    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=width, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=2
    )
    return SwinForImageClassification(config).eval()


def test_stages_that_differ_in_width_are_paired_without_a_projection_or_at_the_last_ones() -> None:
    data = {"pixel_values": torch.randn(3, 3, 16, 16), "labels": torch.tensor([0, 1, 1])}
    _, found = losses(swin(8), swin(8), data)
    assert found.total.isfinite()
    objective, found = losses(swin(4), swin(8), data, pairs=[(2, 2), (3, 3)])
    assert found.total.isfinite()
    assert list(objective.projections) == ["2-2", "3-3"]
    with pytest.raises(ValueError, match="the student's stages differ in width, so that its state 1 cannot be"):
        losses(swin(4), swin(8), data)
    with pytest.raises(ValueError, match="the teacher's stages differ in width, so that its state 0 cannot be"):
        losses(swin(4), swin(8), data, pairs=[(3, 0)])


def test_states_of_pooled_tokens_are_refused_with_a_mask_of_all() -> None:
    config = FunnelConfig(vocab_size=30, block_sizes=[1, 1], d_model=8, n_head=2, d_head=4, d_inner=8)
    model = FunnelForSequenceClassification(config).eval()
    with pytest.raises(ValueError, match=r"of 3 tokens, and attention_mask of shape \(3, 6\) does not tell which"):
        losses(model, model, pairs="last")


def test_an_xlnet_that_is_told_what_to_find_has_other_states() -> None:
    """Two a block; states of blocks were compared with those of what is to be found."""
    model = XLNetLMHeadModel(XLNetConfig(vocab_size=50, d_model=8, n_layer=2, n_head=1, d_inner=8)).eval()
    ids = batch()["input_ids"]
    data = {"input_ids": ids, "labels": ids, "target_mapping": torch.eye(6).expand(3, 6, 6)}
    with pytest.raises(ValueError, match="two states a block; use the objective 'logits'"):
        losses(keep_layers(model, 1), model, data)


def test_a_decoder_alone_has_the_depth_of_its_own_blocks() -> None:
    """BART's configuration has the encoder's too, and the first step ended in an IndexError."""
    sizes = {"d_model": 8, "decoder_attention_heads": 1, "decoder_ffn_dim": 8, "max_position_embeddings": 8}
    teacher = BartForCausalLM(BartConfig(vocab_size=50, encoder_layers=6, decoder_layers=4, **sizes)).eval()
    ids = batch()["input_ids"]
    objective, found = losses(keep_layers(teacher, 2), teacher, {"input_ids": ids, "labels": ids}, pairs="uniform")
    assert objective._states == [(1, 2), (2, 4)]
    assert float(found.parts["hidden"]) > 0


def test_models_without_one_list_of_hidden_states_are_refused() -> None:
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="the student does not have one list of hidden states"):
        HiddenDistillation().prepare(keep_layers(model, 1), model)
    stages = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2))
    with pytest.raises(
        ValueError, match=r"the student does not have one list .* or no width\); use the objective 'logits'"
    ):
        HiddenDistillation().prepare(stages, stages)
