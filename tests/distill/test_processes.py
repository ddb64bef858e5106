"""The trainer in two processes (gloo) against one, under FSDP2 and DDP, and the engines that it refuses.

accelerate takes up FSDP2 on accelerators only. Here the processes tell it that they have some, which are CPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from datasets import Dataset
from safetensors.torch import load_file
from tests.pool import Pool, pool
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.distributed.tensor import DTensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

from opdf.distill import (
    Constraint,
    DistillationArguments,
    DistillationTrainer,
    HiddenDistillation,
    LogitsDistillation,
    Theseus,
    chunks,
    keep_layers,
)
from opdf.job import DistillConfig, StudentConfig, read_config, run
from opdf.job.output import save
from opdf.overparam import OverParamConfig

FSDP2 = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}


def examples() -> Dataset:
    ids = torch.randint(0, 20, (64, 5), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids.sum(1) % 2).tolist()})


def trainer(
    folder: Path, placement: str, batch: int, *, forced: bool = False, objective: Any = None, **more: Any
) -> DistillationTrainer:
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ))  # fmt: skip
    arguments = DistillationArguments(
        str(folder), use_cpu=True, per_device_train_batch_size=batch, learning_rate=1e-2,
        lr_scheduler_type="constant", disable_tqdm=True, **({"max_steps": 5, "save_strategy": "no"} | more),
    )  # fmt: skip
    if forced:
        assert arguments.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return DistillationTrainer(
        keep_layers(teacher, 1), arguments, teacher=teacher, train_dataset=examples(), objective=objective,
        overparam=OverParamConfig(ones=1, placement=placement), constraint=Constraint(),
    )  # fmt: skip


class Projecting(LogitsDistillation):
    """With a module of its own, as hidden states of another width need."""

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"projection": torch.nn.Linear(1, 1)}


@pytest.fixture(scope="module")
def two() -> Iterator[Pool]:
    with pool(2) as processes:
        yield processes


def sharded(rank: int, folder: str) -> None:
    with pytest.raises(ValueError, match="fsdp is set, and accelerate has FSDP on accelerators only"):
        trainer(Path(folder), "replicate", 4, fsdp=True, fsdp_config=dict(FSDP2))
    with pytest.raises(ValueError, match=r"FSDP1 .* use DDP or FSDP2"):
        trainer(Path(folder), "replicate", 4, fsdp=True, fsdp_config=FSDP2 | {"version": 1}, forced=True)
    with pytest.raises(ValueError, match=r"Projecting trains modules of its own .* FSDP2 does not know"):
        trainer(Path(folder), "replicate", 4, objective=Projecting(), fsdp=True, fsdp_config=dict(FSDP2), forced=True)
    for placement in ("replicate", "owner"):
        run = trainer(Path(folder), placement, 4, fsdp=True, fsdp_config=dict(FSDP2), forced=True)
        run.train()
        names = [name for name, p in run.model.named_parameters() if isinstance(p, DTensor)]
        assert "bert.encoder.layer.0.attention.self.query.weight" in names
        weights = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in run.model.named_parameters()}
        torch.save({n: w.detach() for n, w in weights.items()}, f"{folder}/{placement}-{rank}.pt")
        full = run.accelerator.get_state_dict(run.model)
        if rank == 0:
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel()))
            save(run.model, tokenizer, Path(folder, placement), full)
    torch.distributed.barrier()


def test_two_processes_equal_one(tmp_path: Path, two: Pool) -> None:
    two.run(sharded, str(tmp_path))
    alone = trainer(tmp_path, "replicate", 8)
    before = {name: p.detach().clone() for name, p in alone.model.named_parameters()}
    alone.train()
    for placement in ("replicate", "owner"):
        first, second = (torch.load(tmp_path / f"{placement}-{rank}.pt", weights_only=True) for rank in (0, 1))
        for name, p in alone.model.named_parameters():
            torch.testing.assert_close(first[name], p.detach(), rtol=1e-3, atol=1e-5, msg=name)
            assert torch.equal(first[name], second[name])
        saved = BertForSequenceClassification.from_pretrained(tmp_path / placement)
        assert all(torch.equal(first[name], p) for name, p in saved.named_parameters())
    moved = [name for name, p in alone.model.named_parameters() if not torch.allclose(p, before[name], atol=1e-3)]
    assert "bert.encoder.layer.0.attention.self.query.weight" in moved


class Watched(DistillationTrainer):
    """Its projections have the same gradients everywhere when they are looked at for overflow."""

    def _clip_grad_norm(self, model: Any) -> Any:
        for p in self.method.modules()["projections"].parameters():
            assert p.grad is not None
            first, *others = self.accelerator.gather(p.grad[None])
            assert all(torch.equal(first, other) for other in others)
        return super()._clip_grad_norm(model)


def projected(folder: str, batch: int, seed: int = 0) -> Watched:
    """A student of another width than its teacher; `seed` is that of its projections."""
    sizes = {"vocab_size": 20, "num_attention_heads": 2, "intermediate_size": 32, "hidden_dropout_prob": 0.0}
    torch.manual_seed(0)
    teacher, student = (
        BertForSequenceClassification(
            BertConfig(hidden_size=width, num_hidden_layers=blocks, attention_probs_dropout_prob=0.0, **sizes)
        )
        for width, blocks in ((16, 2), (8, 1))
    )
    arguments = DistillationArguments(
        folder, use_cpu=True, per_device_train_batch_size=batch, gradient_accumulation_steps=2, learning_rate=1e-2,
        lr_scheduler_type="constant", disable_tqdm=True, max_steps=3, save_strategy="no",
    )  # fmt: skip
    torch.manual_seed(seed)
    return Watched(student, arguments, teacher=teacher, train_dataset=examples(), objective=HiddenDistillation())


def projecting(rank: int, folder: str) -> dict[str, Any]:
    run = projected(folder, 4, seed=rank)
    run.train()
    assert run.accelerator.ddp_handler.find_unused_parameters is False
    return run.model.state_dict() | run.method.projections.state_dict()


def test_projections_under_ddp_are_those_of_one_process(tmp_path: Path, two: Pool) -> None:
    first, second = two.run(projecting, str(tmp_path))
    alone = projected(str(tmp_path), 8)
    alone.train()
    expected = alone.model.state_dict() | alone.method.projections.state_dict()
    assert len(expected) == len(alone.model.state_dict()) + 1
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(first[name], second[name]), name


def language(folder: str, batch: int) -> DistillationTrainer:
    """A language model whose head runs in chunks, outside of what DDP has wrapped."""
    chunks.CHUNK = 120
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    student, teacher = (
        LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=tied, initializer_range=0.5, **sizes))
        for tied in (True, False)
    )
    arguments = DistillationArguments(
        folder, use_cpu=True, per_device_train_batch_size=batch, gradient_accumulation_steps=2, learning_rate=1e-2,
        lr_scheduler_type="constant", disable_tqdm=True, max_steps=3, save_strategy="no",
    )  # fmt: skip
    rows = Dataset.from_dict({name: examples()["input_ids"] for name in ("input_ids", "labels")})
    return DistillationTrainer(student, arguments, teacher=teacher, train_dataset=rows)


def speaking(rank: int, folder: str) -> dict[str, Any]:
    run = language(folder, 4)
    with warnings.catch_warnings(action="error", category=UserWarning):
        run.train()
    return dict(run.model.state_dict())


def test_chunks_of_tokens_under_ddp_are_those_of_one_process(
    tmp_path: Path, two: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", chunks.CHUNK)
    first, second = two.run(speaking, str(tmp_path))
    alone = language(str(tmp_path), 8)
    alone.train()
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(first[name], second[name]), name


class Seen(LogitsDistillation):
    """Keeps which examples it was shown, by their first tokens."""

    def losses(self, student: Any, teacher: Any, batch: Any, num_items: Any) -> Any:
        self.rows = [*getattr(self, "rows", []), *map(tuple, batch["input_ids"].tolist())]
        return super().losses(student, teacher, batch, num_items)


def epoch(rank: int, folder: str, drop: bool, method: str) -> tuple[list[Any], list[str], bool]:
    """An epoch of 13 rows in batches of 2 and 2: rows that were seen, warnings, whether DDP searches."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8)
    teacher = BertForSequenceClassification(config)
    arguments = DistillationArguments(
        folder, use_cpu=True, per_device_train_batch_size=2, num_train_epochs=1, disable_tqdm=True,
        dataloader_drop_last=drop, save_strategy="no",
    )  # fmt: skip
    objective = Seen() if method == "logits" else method
    student = keep_layers(teacher, 1)
    if method == "unused":
        objective, student.spare = "logits", torch.nn.Linear(2, 2)
    data = examples().select(range(13))
    run = DistillationTrainer(student, arguments, teacher=teacher, objective=objective, train_dataset=data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    said = [str(warning.message) for warning in caught if "once more" in str(warning.message)]
    return getattr(run.method, "rows", []), said, run.accelerator.ddp_handler.find_unused_parameters


@pytest.mark.parametrize("drop", [False, True])
def test_which_rows_are_seen_twice_is_said(tmp_path: Path, two: Pool, drop: bool) -> None:
    (first, said, _), (second, others, _) = two.run(epoch, str(tmp_path), drop, "logits")
    # The first two rows are looked at before, to see what the gradient reaches.
    first, second = first[2:], second[2:]
    assert not others
    if drop:
        assert len({*first, *second}) == len(first) + len(second) == 12
        assert not said
        return
    (line,) = said
    assert line.startswith(
        "13 training rows do not fill the batches of 2 processes: every epoch ends with the first 3 "
    )
    order = [row for pair in range(4) for part in (first, second) for row in part[2 * pair : 2 * pair + 2]]
    assert len(set(order[:13])) == 13
    assert order[13:] == order[:3]


@pytest.mark.parametrize("method", ["theseus", "unused"])
def test_ddp_searches_where_parameters_may_be_left_out(tmp_path: Path, two: Pool, method: str) -> None:
    assert [searches for _, _, searches in two.run(epoch, str(tmp_path), True, method)] == [True, True]


def replacing(rank: int, folder: str, batch: int = 4) -> dict[str, Any]:
    """Steps of two micro-batches, in which two student blocks run or not as it is written here."""
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ))  # fmt: skip
    arguments = DistillationArguments(
        folder, use_cpu=True, per_device_train_batch_size=batch, gradient_accumulation_steps=2, learning_rate=1e-2,
        lr_scheduler_type="constant", disable_tqdm=True, max_steps=4, save_strategy="no", optim="sgd",
    )  # fmt: skip
    objective, draws = Theseus(0.5), iter(["11", "00", "00", "00", "10", "01", "00", "11"])
    objective._draw = lambda: [one == "1" for one in next(draws)]  # type: ignore[method-assign]
    run = DistillationTrainer(
        keep_layers(teacher, 2), arguments, teacher=teacher, train_dataset=examples(), objective=objective
    )
    run.train()
    return dict(run.model.state_dict())


def test_gradients_of_a_step_are_averaged_where_its_last_pass_has_none(tmp_path: Path, two: Pool) -> None:
    first, second = two.run(replacing, str(tmp_path))
    for name, value in replacing(0, str(tmp_path), 8).items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(first[name], second[name]), name


def scored_before(rank: int, folder: str) -> list[float]:
    run = trainer(Path(folder), "replicate", 4)
    Trainer(run.model, run.args, eval_dataset=examples()).evaluate()
    run.train()
    return [float(p.detach().sum()) for p in run.model.parameters()]


def test_a_student_that_was_scored_before_is_trained_by_all_together(tmp_path: Path, two: Pool) -> None:
    first, second = two.run(scored_before, str(tmp_path))
    assert first == second


def taught(rank: int, folder: str) -> list[torch.Tensor]:
    """What a teacher that LGTM trains beside its student is in the end."""
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2)
    torch.manual_seed(0)
    student, teacher = (ResNetForImageClassification(config) for _ in range(2))
    pixels = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [0, 1] * 12}).with_format("torch")
    arguments = DistillationArguments(
        folder, use_cpu=True, per_device_train_batch_size=4, disable_tqdm=True, max_steps=2, save_strategy="no",
    )  # fmt: skip
    DistillationTrainer(student, arguments, teacher=teacher, objective="lgtm", train_dataset=rows).train()
    return list(teacher.state_dict().values())


def test_a_teacher_that_is_trained_has_the_same_statistics_everywhere(tmp_path: Path, two: Pool) -> None:
    first, second = two.run(taught, str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


SAVING = {"save_strategy": "steps", "save_steps": 2}


def part(rank: int, folder: str, placement: str, steps: int) -> None:
    """Steps of a run, from its last checkpoint if there is one."""
    more = SAVING | {"max_steps": steps, "fsdp": True, "fsdp_config": dict(FSDP2)}
    run = trainer(Path(folder), placement, 4, forced=True, **more)
    run.train(resume_from_checkpoint=any(Path(folder).glob("checkpoint-*")) or None)
    torch.distributed.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["replicate", "owner"])
def test_a_resumed_run_is_exact_and_one_process_takes_its_checkpoint(tmp_path: Path, placement: str, two: Pool) -> None:
    two.run(part, str(tmp_path / "whole"), placement, 4)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    two.run(part, str(tmp_path / "half"), placement, 4)
    whole, half = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(value, half[key]) for key, value in whole.items())
    alone = trainer(tmp_path / "whole", placement, 8, max_steps=4)
    alone.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, whole[key]) for key, value in alone.model.state_dict().items())
    further = trainer(tmp_path / "whole", placement, 8, max_steps=6)
    further.train(resume_from_checkpoint=True)  # with the optimizer's state


def run_part(rank: int, config: str) -> None:
    """A run's part in one of two processes."""
    made = DistillationTrainer.__init__

    def make(self: DistillationTrainer, model: Any, args: Any, **more: Any) -> None:
        assert args.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        made(self, model, args, **more)

    with mock.patch.object(DistillationTrainer, "__init__", make):
        run(read_config(config))


VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


@pytest.mark.slow
def test_a_run_gives_what_one_process_gives(tmp_path: Path, two: Pool) -> None:
    # Adam would divide the rounding of gradients near 0 by itself.
    shared = {"use_cpu": True, "optim": "sgd", "learning_rate": 0.1, "max_steps": 6}

    def config(name: str, teacher: dict[str, Any], **changes: Any) -> str:
        content = {
            "data": {"name": "digits", "train_limit": 128}, "teacher": teacher, "student": {"layers": 1},
            "overparam": {"ones": 1, "placement": changes.pop("placement", "replicate")}, "constraint": {"weight": 1.0},
            "output": str(tmp_path / name), "training": shared | changes,
        }  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    finetuned = {"model": None, "finetune": True, "config": VIT, "training": shared}
    run(read_config(config("first", finetuned)))
    teacher = {"model": str(tmp_path / "first" / "teacher")}
    run(read_config(config("one", teacher, per_device_train_batch_size=16)))
    wrapped = {"fsdp": True, "fsdp_config": FSDP2 | {"transformer_layer_cls_to_wrap": ["ViTLayer"]}}
    expected = load_file(tmp_path / "one" / "student" / "model.safetensors")
    scores = json.loads((tmp_path / "one" / "metrics.json").read_text())["student"]["test"]
    for placement in ("replicate", "owner"):
        path = config(placement, teacher, per_device_train_batch_size=8, placement=placement, **wrapped)
        two.run(run_part, path)
        found = load_file(tmp_path / placement / "student" / "model.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert json.loads((tmp_path / placement / "metrics.json").read_text())["student"]["test"] == scores


STUDENT = BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)


def test_fsdp1_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"FSDP1 .* use DDP or FSDP2"):
        DistillationArguments(str(tmp_path), use_cpu=True, fsdp=True, fsdp_config={"version": 1})
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    arguments.fsdp_plugin_args = {"fsdp_version": 1}
    with pytest.raises(ValueError, match=r"FSDP1 .* use DDP or FSDP2"):
        DistillationTrainer(BertForSequenceClassification(STUDENT), arguments, teacher=None)


def launched(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take up the environment that accelerate's launcher makes of its flags for a process."""
    common = [
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "train.py",
    ]
    options = launch_command_parser().parse_args([*flags.split(), *common])
    options.deepspeed_fields_from_accelerate_config = ""  # set by the caller of what is called here
    made = prepare_deepspeed_cmd_env(options)[1] if options.use_deepspeed else prepare_multi_gpu_env(options)
    for variable in made.keys() - os.environ.keys():
        monkeypatch.setenv(variable, made[variable])


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--use_deepspeed --zero_stage 2", "DeepSpeed"),
        ("--use_deepspeed --zero_stage 3", "DeepSpeed"),
        ("--use_fsdp --fsdp_version 1", "FSDP1"),
        ("--use_megatron_lm", "Megatron-LM"),
    ],
)
def test_what_accelerate_launch_asks_for_is_refused(
    flags: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TrainingArguments(str(tmp_path), use_cpu=True)
    launched(flags, monkeypatch)
    with pytest.raises(ValueError, match=rf"{name} flattens or partitions .* use DDP or FSDP2"):
        DistillationArguments(str(tmp_path / "out"))
    with pytest.raises(ValueError, match=rf"{name} flattens or partitions"):
        DistillationTrainer(BertForSequenceClassification(STUDENT), plain, teacher=None)
    with pytest.raises(ValueError, match=rf"{name} flattens or partitions"):
        run(DistillConfig(student=StudentConfig(layers=1), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_fsdp2_of_accelerate_launch_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched("--use_fsdp --fsdp_version 2", monkeypatch)
    DistillationArguments(str(tmp_path))
