"""Students that start from their teacher, not trained: `shrink` beside what one would do otherwise, on real data.

The teachers are a MiniLM fine-tuned on movie snippets and a small ViT trained on Fashion-MNIST; they are kept under
`runs/benchmark-shrink`, since training them takes most of the time (about 10 minutes on 2 cores).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    get_linear_schedule_with_warmup,
    set_seed,
)

from benchmarks.measure import write
from opdf.data import encode, load_data, minilm
from opdf.distill import keep_layers, shrink
from opdf.distill.shrink.families import Attention, family_of
from opdf.distill.shrink.sizes import student_config

KEPT = Path("runs/benchmark-shrink")
Batches = list[dict[str, Tensor]]

TEXT_SIZES: tuple[dict[str, int], ...] = (
    {"hidden_size": 192},
    {"hidden_size": 96},
    {"num_hidden_layers": 3},
    {"num_hidden_layers": 3, "hidden_size": 192},
)
IMAGE_SIZES: tuple[dict[str, int], ...] = ({"hidden_size": 48}, {"hidden_size": 24}, {"hidden_size": 12})


def text(examples: int) -> tuple[Any, Batches, Batches]:
    """A fine-tuned MiniLM, calibration and test batches."""
    data, task = load_data("movie-sentiment", train_limit=4000, seed=0)
    encoded, collate = encode(data, task, AutoTokenizer.from_pretrained(minilm()), max_length=48)
    folder = KEPT / "text"
    if not folder.is_dir():
        set_seed(0)
        teacher = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
        train(teacher, encoded["train"], collate, epochs=2, rate=1e-4).save_pretrained(folder)
    teacher = AutoModelForSequenceClassification.from_pretrained(folder)
    return teacher, *_batches(encoded, collate, examples)


def images(examples: int) -> tuple[Any, Batches, Batches]:
    """A ViT of 4 blocks and width 96, calibration and test batches."""
    data, task = load_data("fashion-mnist", train_limit=6000, seed=0)
    for part, rows in (("test", 4000), ("validation", 500)):
        data[part] = data[part].select(range(rows))
    mean = [0.5] * 3
    processor = ViTImageProcessorPil(size={"height": 28, "width": 28}, image_mean=mean, image_std=mean)
    encoded, collate = encode(data, task, processor)
    folder = KEPT / "images"
    if not folder.is_dir():
        set_seed(0)
        sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
        vit = ViTForImageClassification(ViTConfig(image_size=28, patch_size=7, num_labels=10, **sizes))
        train(vit, encoded["train"], collate, epochs=8, rate=1e-3).save_pretrained(folder)
    teacher = AutoModelForImageClassification.from_pretrained(folder)
    return teacher, *_batches(encoded, collate, examples)


def train(model: Any, rows: Any, collate: Any, *, epochs: int, rate: float, batch: int = 32) -> Any:
    loader = DataLoader(
        rows,
        batch,
        shuffle=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(0),  # type: ignore[arg-type]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    steps = epochs * len(loader)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for _ in range(epochs):
        for inputs in loader:
            model(**inputs).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()


def _batches(encoded: Any, collate: Any, examples: int) -> tuple[Batches, Batches]:
    calibration = DataLoader(encoded["train"].select(range(examples)), 64, collate_fn=collate)
    without = [{k: v for k, v in batch.items() if k != "labels"} for batch in calibration]
    return without, [dict(batch) for batch in DataLoader(encoded["test"], 128, collate_fn=collate)]


@torch.no_grad()
def accuracy(model: Any, batches: Batches) -> float:
    """In percent."""
    right = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]
    return 100 * float(torch.cat(right).float().mean())


def untrained(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
    set_seed(0)
    return type(teacher)(student_config(teacher, family_of(teacher), sizes)).eval()


def by_activations(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
    """Entries of the stream and of heads that are largest in the mean over the examples (Minitron: 2407.14679)."""
    config = student_config(teacher, family_of(teacher), sizes)
    teacher = keep_layers(teacher, config.num_hidden_layers).eval()
    means: dict[nn.Module, Tensor] = {}

    def add(module: nn.Module, _: Any, output: Tensor) -> None:
        means[module] = means.get(module, torch.zeros(1)) + output.flatten(0, -2).abs().sum(0)

    for module in teacher.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(add)
    with torch.no_grad():
        for batch in batches:
            teacher(**batch)
    return cut(teacher, config, means.__getitem__)


def by_weights(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
    """Those with the largest weights."""
    config = student_config(teacher, family_of(teacher), sizes)
    teacher = keep_layers(teacher, config.num_hidden_layers)
    return cut(teacher, config, lambda module: module.weight.detach().abs().flatten(1).sum(1) if module.weight.dim() > 1
               else module.weight.detach().abs())  # fmt: skip


@torch.no_grad()
def cut(teacher: Any, config: Any, score: Callable[[Any], Tensor]) -> Any:
    """A student whose weights are rows and columns of the teacher's, a BERT's or a ViT's.

    Args:
        teacher: of the student's depth.
        config: the student's.
        score: how much each output of a Linear or LayerNorm counts, `[outputs]`.
    """
    stack = family_of(teacher).stacks[0]
    norms = [score(m) for m in teacher.modules() if isinstance(m, nn.LayerNorm)]
    width = torch.stack([n / n.norm() for n in norms]).sum(0).topk(config.hidden_size).indices.sort().values
    picks: dict[str, tuple[Tensor, Tensor]] = {}
    for k, block in enumerate(teacher.base_model.get_submodule(stack.blocks)):
        names = next(branch for branch in stack.branches if isinstance(branch, Attention))
        query, key, value = (score(block.get_submodule(part.name)) for part in names.reads)
        compared, gathered = (_largest(s, config) for s in (query * key, value))
        for part, rows in zip(names.reads, (compared, compared, gathered), strict=True):
            picks[f".{stack.blocks}.{k}.{part.name}"] = rows, width
        picks[f".{stack.blocks}.{k}.{names.output.name}"] = width, gathered
    student = type(teacher)._from_config(config).eval()
    theirs = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        pick = next((p for path, p in picks.items() if name.rpartition(".")[0].endswith(path)), None)
        weight = theirs[name]
        for dim, size in enumerate(parameter.shape):
            if size != weight.shape[dim]:
                weight = weight.index_select(dim, pick[dim] if pick else width)
        parameter.copy_(weight)
    return student


def _largest(scores: Tensor, config: Any) -> Tensor:
    """Of every head as many as fit into the student's."""
    heads = config.num_attention_heads
    best = scores.view(heads, -1).topk(config.hidden_size // heads).indices.sort().values
    return (best + torch.arange(heads)[:, None] * (len(scores) // heads)).flatten()


WAYS: dict[str, Callable[[Any, Batches, Mapping[str, int]], Any]] = {
    "shrink": lambda teacher, batches, sizes: shrink(teacher, batches, **sizes),
    "entries by activations": by_activations,
    "entries by weights": by_weights,
    "untrained": untrained,
}


def main(examples: int = 256) -> None:
    rows = []
    for task, sizes_of in ((images, IMAGE_SIZES), (text, TEXT_SIZES)):
        teacher, calibration, test = task(examples)
        whole = accuracy(teacher.eval(), test)
        for sizes in sizes_of:
            row: dict[str, Any] = {"task": task.__name__, "sizes": ", ".join(f"{k} {v}" for k, v in sizes.items())}
            row["teacher's accuracy"] = whole
            for way, make in WAYS.items():
                start = time.perf_counter()
                student = make(teacher, calibration, sizes)
                if way == "shrink":
                    row["seconds"] = time.perf_counter() - start
                row[way] = whole - accuracy(student, test)
            print(row, flush=True)
            rows.append(row)
    notes = (
        "Points of test accuracy that students are behind their teacher before any training. They were started with "
        f"{examples} unlabelled examples of the training split; one teacher each. Seconds are those of `shrink`."
    )
    write("shrink", "Students of other sizes before any training", rows, notes)
