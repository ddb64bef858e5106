"""Muon and AdamW as one optimizer against torch's two, stepped by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distill.small import arguments, bert, train
from torch import nn
from transformers import TrainerCallback

from opdf.distill import DistillationArguments, DistillationTrainer, HiddenDistillation
from opdf.distill.muon import MuonWithAdamW, muon_groups

MATRICES = ("query.weight", "key.weight", "value.weight", "dense.weight")


def is_muons(name: str) -> bool:
    """The matrices of the blocks; of the pooler's and the classifier's none."""
    return ".layer." in name and name.endswith(MATRICES)


def by_hand(
    student: nn.Module, rate: float, decay: float, adam: dict[str, Any], **muon: Any
) -> tuple[torch.optim.Optimizer, ...]:
    named = list(student.named_parameters())
    decayed = {n for n, p in named if p.dim() == 2}  # norms and biases are not
    rest = [(n, p) for n, p in named if not is_muons(n)]
    groups = [
        {"params": [p for n, p in rest if n in decayed], "weight_decay": decay},
        {"params": [p for n, p in rest if n not in decayed], "weight_decay": 0.0},
    ]
    chosen = [p for n, p in named if is_muons(n)]
    return (
        torch.optim.Muon(chosen, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw", **muon),
        torch.optim.AdamW(groups, lr=rate, **adam),
    )


class Gradients(TrainerCallback):
    """The gradients of every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        self.seen.append({name: p.grad.clone() for name, p in model.named_parameters()})


OPTIONS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {}),
    (
        {"optim_args": "momentum=0.9, ns_steps=3, nesterov=false",
         "adam_beta1": 0.7, "adam_beta2": 0.8, "adam_epsilon": 1e-3},
        {"momentum": 0.9, "ns_steps": 3, "nesterov": False}, {"betas": (0.7, 0.8), "eps": 1e-3},
    ),
]  # fmt: skip
"""Of a run, of torch's Muon and of torch's AdamW."""


@pytest.mark.parametrize(("schedule", "options"), [("constant", OPTIONS[0]), ("linear", OPTIONS[1])])
def test_a_run_is_that_of_the_two_optimizers_stepped_by_hand(
    tmp_path: Path, schedule: str, options: tuple[dict[str, Any], ...]
) -> None:
    given, muon, adam = options
    training = {"optim": "muon", "weight_decay": 0.1, "learning_rate": 1e-2, "lr_scheduler_type": schedule} | given
    gradients = Gradients()
    trainer, student = train(
        tmp_path, student=bert(2), objective={"alpha": 0.0}, training=training, callbacks=[gradients]
    )
    other = bert(2)
    pair = by_hand(other, 1e-2, 0.1, adam, **muon)
    assert len(gradients.seen) == 4
    for step, seen in enumerate(gradients.seen):
        for name, p in other.named_parameters():
            p.grad = seen[name]
        for optimizer in pair:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - step / 4 if schedule == "linear" else 1)
            optimizer.step()  # type: ignore[no-untyped-call]
    for (name, p), q in zip(student.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is MuonWithAdamW
    assert sum(p.numel() for g in optimizer.param_groups if g["muon"] for p in g["params"]) == 2 * 2048


def test_a_resumed_run_is_exact(tmp_path: Path) -> None:
    training = {"optim": "muon", "save_strategy": "steps", "save_steps": 2}
    runs = [
        train(tmp_path / folder, student=bert(2, 8), objective=HiddenDistillation(), training=training, resume=resume)
        for folder, resume in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-2")))
    ]
    for p, q in zip(runs[0][1].parameters(), runs[1][1].parameters(), strict=True):
        assert torch.equal(p, q)
    groups = runs[0][0].optimizer.param_groups
    projections = set(runs[0][0].method.modules()["projections"].parameters())
    assert {p for group in groups if not group["muon"] for p in group["params"]} >= projections


def test_convolutions_of_blocks_are_adamws() -> None:
    """Muon makes matrices orthogonal; over-parameterization would take these too."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.mix = nn.Linear(4, 4), nn.Conv1d(4, 4, 3)

    model = nn.ModuleDict({"blocks": nn.ModuleList([Attention()]), "head": nn.Linear(4, 4)})
    groups = muon_groups(model, [{"params": list(model.parameters())}])
    (muons,) = (group["params"] for group in groups if group["muon"])
    assert [name for name, p in model.named_parameters() if any(p is q for q in muons)] == ["blocks.0.query.weight"]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_it_is_copied_and_pickled_with_its_state() -> None:
    torch.manual_seed(0)
    p, q = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))
    optimizer = MuonWithAdamW([{"params": [p], "muon": True}, {"params": [q], "muon": False}], lr=0.1)
    p.grad, q.grad = torch.randn(4, 3), torch.randn(3)
    optimizer.step()
    again = copy.deepcopy(optimizer)
    (r, s) = (group["params"][0] for group in again.param_groups)
    r.grad, s.grad = p.grad.clone(), q.grad.clone()
    for one in (optimizer, again):
        assert one.step(lambda: 2.5) == 2.5
    assert torch.equal(p, r)
    assert torch.equal(q, s)


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        (
            {"overparam": {"ones": 1}},
            {},
            "optim is 'muon', which steps whole matrices, and overparam trains their cores",
        ),
        ({}, {"optim_args": "betas=1"}, "optim_args has 'betas'; muon has momentum, nesterov, ns_steps, adjust_lr_fn"),
        ({}, {"optim_args": "nesterov=maybe"}, "optim_args has nesterov='maybe', which is no value of it"),
        ({"model": nn.Linear(2, 2), "teacher": None, "objective": {"alpha": 0}}, {}, "no attention blocks in Linear"),
    ],
)
def test_what_muon_cannot_do_is_said_before_work_starts(
    tmp_path: Path, options: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    given = {"model": bert(2), "teacher": bert()} | options
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(given.pop("model"), arguments(tmp_path, optim="muon", **training), **given)


def test_the_arguments_can_be_written_and_read_again(tmp_path: Path) -> None:
    made = DistillationArguments(str(tmp_path), optim="muon", use_cpu=True)
    assert made.to_dict()["optim"] == "muon"
    assert '"optim": "muon"' in made.to_json_string()
    with pytest.raises(ValueError, match="muom"):
        DistillationArguments(str(tmp_path), optim="muom", use_cpu=True)
