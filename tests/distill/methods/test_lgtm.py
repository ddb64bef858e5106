"""LGTM's influence against exact second derivatives, its steps against torch's own, its state against a killed run."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

from opdf.distill import LGTM, Constraint, DistillationArguments, DistillationTrainer
from opdf.distill.losses import distillation_loss, task_loss
from opdf.distill.methods.lgtm import _schedule, central_difference
from opdf.overparam import OverParamConfig, overparameterize, rolled_back


def bert(seed: int, labels: int = 2, layers: int = 1) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2,
                        num_labels=labels, intermediate_size=12, initializer_range=0.3, hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0)  # fmt: skip
    return BertForSequenceClassification(config)


def rows(count: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 30, (count, 6), generator=generator)
    return Dataset.from_dict({"input_ids": tokens.tolist(), "labels": (tokens[:, 0] % 2).tolist()})


def trainer(folder: Path, objective: LGTM, over: bool = False, **options: Any) -> DistillationTrainer:
    arguments = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no",
                 "disable_tqdm": True, "max_grad_norm": 0.0, "use_cpu": True} | options  # fmt: skip
    return DistillationTrainer(
        bert(1), DistillationArguments(str(folder), **arguments), teacher=bert(2, layers=2), objective=objective,
        overparam=OverParamConfig(ones=2) if over else None, train_dataset=rows(),
        constraint=Constraint(weight=0.3) if over else None,
    )  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


class Pair:
    """A student and a teacher in float64 with the pieces of the step, written out once more with autograd alone."""

    def __init__(self) -> None:
        self.student, self.teacher = bert(1).double().eval(), bert(2).double().eval()
        generator = torch.Generator().manual_seed(3)
        draw = lambda: torch.randint(1, 30, (4, 6), generator=generator)  # noqa: E731
        self.batch = {"input_ids": draw(), "labels": torch.tensor([0, 1, 1, 0])}
        self.held_out = {"input_ids": draw(), "labels": torch.tensor([1, 1, 0, 0])}
        self.objective = LGTM(temperature=2.0)
        self.objective.prepare(self.student, self.teacher)
        self.names, self.params = zip(*self.student.named_parameters(), strict=True)
        self.phi = list(self.teacher.parameters())

    def student_loss(self) -> Tensor:
        ours, theirs = (m(input_ids=self.batch["input_ids"]).logits for m in (self.student, self.teacher))
        return distillation_loss(self.student, ours, theirs, self.batch, 2.0) / 4

    def held_out_loss(self, values: list[Tensor]) -> Tensor:
        logits = functional_call(
            self.student, dict(zip(self.names, values, strict=True)), kwargs={"input_ids": self.held_out["input_ids"]}
        ).logits
        return task_loss(self.student, logits, self.held_out["labels"]) / 4

    def exact(self, rate: float) -> tuple[dict[str, Tensor], list[Tensor]]:
        """v, and d L_val(theta - rate grad) / d phi through the unrolled gradient step."""
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            grads = torch.autograd.grad(self.student_loss(), self.params, create_graph=True, allow_unused=True)
            moved = [p if g is None else p - rate * g for p, g in zip(self.params, grads, strict=True)]
            loss = self.held_out_loss(moved)
            v = torch.autograd.grad(loss, moved, retain_graph=True)
            return dict(zip(self.names, v, strict=True)), list(torch.autograd.grad(loss, self.phi))

    def influence(self, v: dict[str, Tensor], radius: float) -> list[Tensor]:
        def gradient(at: dict[str, Tensor]) -> list[Tensor]:
            loss = self.objective.coupling_loss(self.student, at, self.teacher, self.batch, torch.tensor(4))
            return list(torch.autograd.grad(loss, self.phi))

        return central_difference(gradient, dict(self.student.named_parameters()), v, radius)


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    a, b = (torch.cat([t.flatten() for t in ts]) for ts in (found, expected))
    return float((a - b).norm() / b.norm())


def test_the_influence_is_the_derivative_through_the_students_step() -> None:
    pair, rate = Pair(), 0.05
    v, exact = pair.exact(rate)
    errors = [distance([-rate * h for h in pair.influence(v, radius)], exact) for radius in (5e-3, 5e-4)]
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)  # of second order in the radius


def test_a_teacher_step_against_the_influence_lowers_the_held_out_loss_as_predicted() -> None:
    pair, rate, step = Pair(), 0.05, 1e-3
    v, exact = pair.exact(rate)
    h = pair.influence(v, 1e-3)

    def after() -> Tensor:
        grads = torch.autograd.grad(pair.student_loss(), pair.params, allow_unused=True)
        return pair.held_out_loss([p if g is None else p - rate * g for p, g in zip(pair.params, grads, strict=True)])

    before = after()
    with torch.no_grad():
        for p, g in zip(pair.phi, h, strict=True):
            p += step * rate * g  # - grad = rate h
    predicted = -step * sum(g.square().sum() for g in exact)
    assert predicted < 0
    assert float((after() - before).detach()) == pytest.approx(float(predicted), rel=0.02)


def test_the_influence_of_packed_texts_is_of_each_alone() -> None:
    """With a cache the student attended to the texts before."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    student, teacher = (
        LlamaForCausalLM(LlamaConfig(vocab_size=20, initializer_range=0.5, **sizes)).eval() for _ in range(2)
    )
    packed = DataCollatorWithFlattening()([{"input_ids": text} for text in ([3, 4, 9, 5], [8, 8, 1, 6, 2])])
    objective = LGTM()
    objective.prepare(student, teacher)
    found = objective.coupling_loss(student, dict(student.named_parameters()), teacher, packed, torch.tensor(7))
    alike = objective.losses(student, teacher.requires_grad_(False), packed, torch.tensor(7)).total
    torch.testing.assert_close(found, alike)


def test_a_zero_direction_has_no_influence() -> None:
    pair = Pair()
    zero = {n: torch.zeros_like(p) for n, p in pair.student.named_parameters()}
    assert all(not h.any() for h in pair.influence(zero, 1e-2))


@pytest.mark.parametrize("over", [False, True])
def test_a_trial_step_leaves_no_trace(over: bool) -> None:
    model = bert(1)
    if over:
        optimizer: Any = overparameterize(model, OverParamConfig(ones=2)).optimizer(lr=1e-2, weight_decay=0.1)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    batch = {"input_ids": torch.arange(1, 13).reshape(2, 6), "labels": torch.tensor([0, 1])}

    def step(target: Any = None) -> None:
        model.zero_grad()
        model(**batch).loss.backward()
        (target or optimizer).step()

    step()
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with rolled_back(optimizer):
        step()
        tried = weights(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    after, before_ = (
        {p: {k: v for k, v in values.items() if k != "version"} for p, values in saved["state"].items()}
        for saved in (optimizer.state_dict(), state)
    )  # without torch's count of writes, which goes on
    torch.testing.assert_close(after, before_, rtol=0, atol=0)
    step()  # the real step goes where the trial went: moments, decay and all
    assert all(torch.equal(p, tried[n]) for n, p in model.named_parameters())


def test_running_statistics_of_the_student_are_of_its_own_steps(tmp_path: Path) -> None:
    """The teacher's step, with its trial on held-out examples, runs the student too."""
    counts = []
    for scale in (0.0, 0.1):
        student, teacher = (
            ResNetForImageClassification(
                ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2)
            )
            for _ in range(2)
        )
        data = {"pixel_values": torch.randn(24, 3, 8, 8).tolist(), "labels": [0, 1] * 12}
        arguments = DistillationArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=4, save_strategy="no", disable_tqdm=True,
            use_cpu=True,
        )  # fmt: skip
        DistillationTrainer(
            student, arguments, teacher=teacher, objective=LGTM(influence_scale=scale),
            train_dataset=Dataset.from_dict(data).with_format("torch"),
        ).train()  # fmt: skip
        counts += [m.num_batches_tracked for one in (student, teacher) for m in one.modules()
                   if isinstance(m, nn.BatchNorm2d)]  # fmt: skip
    assert set(map(int, counts)) == {2}


@pytest.mark.parametrize("over", [False, True])
def test_both_learn(tmp_path: Path, over: bool) -> None:
    run = trainer(tmp_path, LGTM(influence_scale=0.1), over)
    assert run.teacher is not None
    start = weights(run.model), weights(run.teacher)
    run.train()
    assert any(not torch.equal(p, start[0][n]) for n, p in run.model.named_parameters())
    assert any(not torch.equal(p, start[1][n]) for n, p in run.teacher.named_parameters())


def test_without_influence_the_teacher_takes_a_plain_step(tmp_path: Path) -> None:
    objective = LGTM(influence_scale=0.0, teacher_learning_rate=1e-3)
    run = trainer(tmp_path, objective, max_steps=1, lr_scheduler_type="constant")
    seen: list[Any] = []
    original = objective.before_forward
    objective.before_forward = lambda t, b, n: (seen.extend(b), original(t, b, n))  # type: ignore[assignment,func-returns-value]
    teacher, student = copy.deepcopy(run.teacher), copy.deepcopy(run.model)
    assert isinstance(teacher, nn.Module)
    run.train()
    optimizer = torch.optim.AdamW(teacher.requires_grad_(True).parameters(), lr=1e-3, weight_decay=0.0)
    batch = {k: v for k, v in seen[0].items() if k != "labels"}
    ours, theirs = student(**batch).logits.detach(), teacher(**batch).logits
    loss = 0.6 * nn.functional.cross_entropy(theirs, seen[0]["labels"])
    loss = loss + 0.4 * nn.functional.kl_div(
        theirs.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    loss.backward()
    optimizer.step()
    for (name, p), q in zip(run.teacher.named_parameters(), teacher.parameters(), strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7, msg=name)  # a decay of 0.01 would be 3e-6


def test_a_step_of_the_teacher_is_along_its_loss_less_the_influence(tmp_path: Path) -> None:
    """All of it by autograd through the student's trial step, clipped and half way through the schedule."""
    objective = LGTM(2.0, alpha=0.7, teacher_alpha=0.3, held_out=4, radius=1e-3, influence_scale=5.0)
    run = trainer(tmp_path, objective, optim="sgd", learning_rate=0.5, max_grad_norm=0.1)
    assert run.teacher is not None
    student, teacher = run.model.double(), run.teacher.double()
    run.create_optimizer_and_scheduler(4)
    objective.on_train_begin(run)
    for _ in range(2):
        run.lr_scheduler.step()
    batch = {"input_ids": torch.arange(1, 25).reshape(4, 6), "labels": torch.tensor([0, 1, -100, 0])}
    taken: list[Tensor] = []
    objective._optimizer.register_step_pre_hook(lambda *_: taken.extend(p.grad for p in teacher.parameters()))
    parts = [{name: values[rows] for name, values in batch.items()} for rows in (slice(1), slice(1, 4))]
    objective.before_forward(run, parts, torch.tensor([4, 3]))

    def softly(ours: Tensor, theirs: Tensor) -> Tensor:
        logs = (ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1)
        return 4 * nn.functional.kl_div(*logs, log_target=True, reduction="batchmean")

    def losses(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        ours = functional_call(student, weights, kwargs={"input_ids": batch["input_ids"]}).logits
        theirs = functional_call(teacher, phi, kwargs={"input_ids": batch["input_ids"]}).logits
        tasks = [nn.functional.cross_entropy(logits, batch["labels"]) for logits in (ours, theirs)]
        return 0.3 * tasks[0] + 0.7 * softly(ours, theirs), 0.7 * tasks[1] + 0.3 * softly(theirs, ours.detach())

    copied = trainer(tmp_path, LGTM()).teacher  # as it was before the step
    assert copied is not None
    phi = {name: p.detach().double().requires_grad_() for name, p in copied.named_parameters()}
    theta = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        ours, own = losses(theta)
        slopes = torch.autograd.grad(ours, list(theta.values()), create_graph=True)
        norm = torch.cat([slope.detach().flatten() for slope in slopes]).norm()
        assert norm > 0.1  # so that it is clipped
        held = objective._held_out_batches(run)[0]
        tried = {
            name: (p - 0.25 * slope * 0.1 / norm).detach().requires_grad_()
            for (name, p), slope in zip(theta.items(), slopes, strict=True)
        }
        logits = functional_call(student, tried, kwargs={"input_ids": held["input_ids"]}).logits
        direction = torch.autograd.grad(nn.functional.cross_entropy(logits, held["labels"]), list(tried.values()))
        coupled = sum((slope * v).sum() for slope, v in zip(slopes, direction, strict=True))
        own_slopes = torch.autograd.grad(own, list(phi.values()), retain_graph=True)
        influence = torch.autograd.grad(coupled, list(phi.values()))
    expected = [g - 5 * h for g, h in zip(own_slopes, influence, strict=True)]
    assert distance([5 * h for h in influence], list(own_slopes)) > 0.1
    assert distance(taken, expected) < 1e-5
    assert objective._optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * objective.teacher_learning_rate)
    assert all(p.grad is None for p in student.parameters())  # the student's own step comes after it


def test_held_out_examples_come_in_turn_and_each_round_in_another_order() -> None:
    objective, seen = LGTM(), list[list[int]]()
    objective._held_out = Dataset.from_dict({"row": list(range(10))})
    run = SimpleNamespace(
        args=SimpleNamespace(gradient_accumulation_steps=2, process_index=0), _train_batch_size=2,
        accelerator=SimpleNamespace(num_processes=1), _prepare_inputs=lambda rows: rows,
        data_collator=lambda rows: [row["row"] for row in rows],
    )  # fmt: skip
    for objective.step in range(4):
        batches = objective._held_out_batches(run)
        assert list(map(len, batches)) == [2, 2]
        seen.append([row for rows in batches for row in rows])
    rounds = seen[0] + seen[1], seen[2] + seen[3]
    assert all(len(set(rows)) == 8 for rows in rounds)
    assert rounds[0] != rounds[1]


def test_the_teachers_rate_follows_schedules_that_wait_for_evaluations() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    shares = []
    for loss in (1.0, 2.0, 3.0):
        scheduler.step(loss)
        shares.append(_schedule(SimpleNamespace(optimizer=optimizer, lr_scheduler=scheduler)))
    assert shares == [1.0, 0.5, 0.25]


def test_an_objective_that_is_used_again_trains_the_next_teacher(tmp_path: Path) -> None:
    objective = LGTM(influence_scale=0.1)
    for folder in ("one", "two"):
        run = trainer(tmp_path / folder, objective, max_steps=1)
        assert run.teacher is not None
        start = weights(run.teacher)
        run.train()
        assert any(not torch.equal(p, start[n]) for n, p in run.teacher.named_parameters())


def test_a_resumed_run_goes_on_with_its_teacher(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", LGTM(influence_scale=0.1), True, save_strategy="steps", save_steps=2)
    whole.train()
    again = trainer(tmp_path / "again", LGTM(influence_scale=0.1), True)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in ((whole.model, again.model), (whole.teacher, again.teacher)):
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):  # type: ignore[union-attr]
            assert torch.equal(p, q), name


def test_the_split_of_a_step_into_micro_batches_does_not_matter(tmp_path: Path) -> None:
    split = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    runs = [trainer(tmp_path, LGTM(influence_scale=0.1, held_out=8), **options) for options in ({}, split)]
    for run in runs:
        run.train()
    for one, other in ((runs[0].model, runs[1].model), (runs[0].teacher, runs[1].teacher)):
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):  # type: ignore[union-attr]
            if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which Adam scales up
                torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5, msg=name)


def test_held_out_examples_are_not_trained_on(tmp_path: Path) -> None:
    objective = LGTM(held_out=6)
    run = trainer(tmp_path, objective)
    kept = {tuple(r) for r in run.train_dataset["input_ids"]}
    assert objective._held_out is not None
    held = {tuple(r) for r in objective._held_out["input_ids"]}
    assert len(held) == 6
    assert len(kept) == 18
    assert not kept & held


@pytest.mark.parametrize("frozen", ["bert.encoder", ""])
def test_what_is_frozen_of_a_teacher_stays(tmp_path: Path, frozen: str) -> None:
    """All of one that is frozen whole is trained. With `model_init` a teacher is prepared twice."""
    teacher = bert(2, layers=2)
    for name, p in teacher.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    before = weights(teacher)
    arguments = DistillationArguments(str(tmp_path), max_steps=2, save_strategy="no", use_cpu=True, disable_tqdm=True)
    objective = LGTM(teacher_learning_rate=1e-2)
    DistillationTrainer(
        args=arguments, model_init=lambda: bert(1), teacher=teacher, objective=objective, train_dataset=rows()
    ).train()
    moved = {name for name, p in teacher.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert bool(frozen) != any(name.startswith("bert.encoder") for name in moved)


def test_heads_can_start_at_zero() -> None:
    student, teacher = bert(1), bert(2)
    LGTM(zero_heads=True).prepare(student, teacher)
    for model in (student, teacher):
        assert not model.classifier.weight.any()
        assert model.bert.encoder.layer[0].output.dense.weight.any()


@pytest.mark.parametrize(
    "options", [{"teacher_alpha": 2}, {"teacher_learning_rate": 0}, {"radius": 0}, {"held_out": 0}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        LGTM(**options)


def test_what_lgtm_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass a teacher"):
        LGTM().prepare(bert(1), None)
    with pytest.raises(ValueError, match="which is 24 of 24"):
        trainer(tmp_path, LGTM(held_out=24))
    with pytest.raises(ValueError, match="FSDP2 computes with copies of its own; use DDP"):
        trainer(tmp_path, LGTM(), fsdp=True, fsdp_config={"version": 2})
    with pytest.raises(TypeError, match=r"holds out rows of a datasets\.Dataset"):
        LGTM().training_data([1, 2, 3])
