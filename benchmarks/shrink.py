"""Students that start from their teacher, untrained: what `shrink` is worth on real data, and what matters to it.

Beside `shrink` there is what one would do otherwise: entries of the stream chosen by activations or by weights, a
library that prunes (Torch-Pruning, 2301.12900), blocks copied, no start at all. And there is `shrink` with other bases
for the stream, other numbers of examples, and in two steps.

The teachers are a MiniLM fine-tuned on movie snippets and a small ViT trained on Fashion-MNIST; they are kept under
`runs/benchmark-shrink`, since training them takes most of the time (about 10 minutes on 2 cores). Trials are appended
to results/shrink.jsonl; those that are there are not run again. Several processes can share the work:
`python -m benchmarks.shrink text entries` runs one task's and way's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from tabulate import tabulate
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

from benchmarks.measure import RESULTS, machine
from opdf.data import encode, load_data, minilm
from opdf.distill import keep_layers, shrink
from opdf.distill.shrink import calibration, merge, sizes as sizes_of_students, start
from opdf.distill.shrink.basis import Basis, leading_axes
from opdf.distill.shrink.choose import choose_units, retold
from opdf.distill.shrink.families import Attention, family_of
from opdf.distill.shrink.sizes import student_config
from opdf.distill.students import chosen_layers

KEPT = Path("runs/benchmark-shrink")
RUNS = RESULTS / "shrink.jsonl"
EXAMPLES = 512
"""What a run takes by default, `student.calibration`."""
Batches = list[dict[str, Tensor]]

Way = Callable[[Any, Batches, Mapping[str, int]], Any]
"""Makes a student of a teacher, examples and sizes."""

TEXT_SIZES: tuple[dict[str, int], ...] = (
    {"hidden_size": 192},
    {"hidden_size": 96},
    {"num_hidden_layers": 3},
    {"num_hidden_layers": 3, "hidden_size": 192},
    {"hidden_size": 192, "intermediate_size": 768},
    {"hidden_size": 96, "intermediate_size": 384},
    {"num_hidden_layers": 3, "hidden_size": 192, "intermediate_size": 768},
)
IMAGE_SIZES: tuple[dict[str, int], ...] = (
    {"hidden_size": 48},
    {"hidden_size": 24},
    {"hidden_size": 12},
    {"num_hidden_layers": 2},
    {"num_hidden_layers": 2, "hidden_size": 48},
    {"hidden_size": 48, "intermediate_size": 192},
    {"hidden_size": 24, "intermediate_size": 96},
)


class Task(NamedTuple):
    """A trained teacher, its rows by split, and what makes batches of them."""

    teacher: Any
    rows: Any
    collate: Any

    def calibration(self, examples: int) -> Batches:
        """Of the training split, without labels."""
        loader = DataLoader(self.rows["train"].select(range(examples)), 64, collate_fn=self.collate)
        return [{k: v for k, v in batch.items() if k != "labels"} for batch in loader]

    def held_out(self, split: str = "test") -> Batches:
        rows = self.rows[split]
        if "input_ids" in rows.column_names:  # texts of like length together, which saves padding
            rows = rows.select(sorted(range(len(rows)), key=[len(ids) for ids in rows["input_ids"]].__getitem__))
        return [dict(batch) for batch in DataLoader(rows, 128, collate_fn=self.collate)]


def text() -> Task:
    """MiniLM, fine-tuned on film reviews."""
    data, task = load_data("movie-sentiment", train_limit=4000, seed=0)
    encoded, collate = encode(data, task, AutoTokenizer.from_pretrained(minilm()), max_length=48)
    folder = KEPT / "text"
    if not folder.is_dir():
        set_seed(0)
        teacher = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
        train(teacher, encoded["train"], collate, epochs=2, rate=1e-4).save_pretrained(folder)
    return Task(AutoModelForSequenceClassification.from_pretrained(folder), encoded, collate)


def images() -> Task:
    """A ViT of 4 blocks and width 96."""
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
    return Task(AutoModelForImageClassification.from_pretrained(folder), encoded, collate)


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
    tower = family_of(teacher).towers[0]
    norms = [score(m) for m in teacher.modules() if isinstance(m, nn.LayerNorm)]
    width = torch.stack([n / n.norm() for n in norms]).sum(0).topk(config.hidden_size).indices.sort().values
    picks: dict[str, tuple[Tensor, Tensor]] = {}
    for k, block in enumerate(teacher.base_model.get_submodule(tower.blocks)):
        names = next(branch for branch in tower.branches if isinstance(branch, Attention))
        query, key, value = (score(block.get_submodule(part.name)) for part in names.reads)
        compared, gathered = (_largest(s, config) for s in (query * key, value))
        for part, rows in zip(names.reads, (compared, compared, gathered), strict=True):
            picks[f".{tower.blocks}.{k}.{part.name}"] = rows, width
        picks[f".{tower.blocks}.{k}.{names.output.name}"] = width, gathered
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


def pruned(importance: str) -> Way:
    """What Torch-Pruning makes of the teacher in one go, by an importance of its own; all widths are cut alike.

    "Taylor" is weights times gradients, here of the teacher's own answers to the examples; "Magnitude" is weights.
    """

    def way(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
        import torch_pruning  # which a GPU node has no need of

        config = student_config(teacher, family_of(teacher), sizes)
        model = keep_layers(teacher, config.num_hidden_layers).eval()
        tower = family_of(teacher).towers[0]
        reads = next(branch for branch in tower.branches if isinstance(branch, Attention)).reads
        blocks = list(model.base_model.get_submodule(tower.blocks))
        projections = [block.get_submodule(part.name) for block in blocks for part in reads]
        pruner = torch_pruning.pruner.BasePruner(
            model,
            {name: value[:2] for name, value in batches[0].items()},
            getattr(torch_pruning.importance, f"Group{importance}Importance")(),
            pruning_ratio=1 - config.hidden_size / teacher.config.hidden_size,
            ignored_layers=[model.classifier],
            num_heads=dict.fromkeys(projections, config.num_attention_heads),
            prune_head_dims=True,
            output_transform=lambda outputs: outputs.logits.sum(),
        )
        for batch in batches:
            logits = model(**batch).logits
            nn.functional.cross_entropy(logits, logits.argmax(-1), reduction="sum").backward()
        pruner.step()
        student = type(teacher)._from_config(config).eval()
        student.load_state_dict(model.state_dict())
        return student

    return way


def copied(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
    return keep_layers(teacher, sizes["num_hidden_layers"]).eval()


def plain_axes(moments: Tensor, width: int, *, centred: bool, gradients: Tensor | None = None) -> Basis:
    """The leading axes at random angles: not turned towards single entries."""
    basis = leading_axes(moments, width, centred=centred, gradients=gradients)
    generator = torch.Generator().manual_seed(0)
    flat = torch.ones(width, 1, dtype=torch.float64)  # a norm's mean: it stays where it is
    one, other = (
        torch.linalg.qr(torch.cat([flat, torch.randn(width, width - 1, generator=generator).double()], 1)).Q
        for _ in range(2)
    )
    return Basis(basis.project @ one @ other.mT, basis.expand @ one @ other.mT)


def entries(moments: Tensor, width: int, *, centred: bool, gradients: Tensor | None = None) -> Basis:
    """Single entries, each time the one that the chosen ones tell least of."""
    kept = choose_units(moments, torch.ones_like(moments[0]), width)
    project = torch.eye(len(moments)).to(moments)[:, kept]
    return Basis(project, retold(moments, kept))


def own_axes(teacher: Any, batches: Batches, width: int) -> tuple[float, float]:
    """Shares of the variance of the normed states that axes of all blocks keep, and every block's own; in percent.

    Own axes would need a matrix between blocks that a plain model has no place for.
    """
    tower = family_of(teacher).towers[0]
    norm = next(branch for branch in tower.branches if isinstance(branch, Attention)).norm
    moments: dict[nn.Module, Tensor] = {}

    def add(module: nn.Module, _: Any, output: Tensor) -> None:
        rows = output.flatten(0, -2).double()
        moments[module] = moments.get(module, torch.zeros(())) + rows.mT @ rows

    blocks = teacher.base_model.get_submodule(tower.blocks)
    handles = [block.get_submodule(norm).register_forward_hook(add) for block in blocks]
    with torch.no_grad():
        for batch in batches:
            teacher(**batch)
    for handle in handles:
        handle.remove()
    scaled = [m / m.trace() for m in moments.values()]
    common = torch.linalg.eigh(sum(scaled)).eigenvectors[:, -width:]
    own = sum(float(torch.linalg.eigvalsh(m)[-width:].sum()) for m in scaled)
    return tuple(100 * float(v) / len(scaled) for v in (sum((common.mT @ m @ common).trace() for m in scaled), own))


def with_basis(make: Callable[..., Basis]) -> Way:
    def way(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
        with patch.object(start, "leading_axes", make):
            return shrink(teacher, batches, **sizes)

    return way


def without_gradients(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
    """All tokens and directions count alike, however much the outputs depend on them."""
    with patch.object(calibration.Recorder, "_leads", lambda *_: ()):
        return shrink(teacher, batches, **sizes)


def of_last_blocks(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
    """With heads and neurons of the last of the blocks alone that a student's block stands for."""
    with patch.object(merge, "MOST", 1):
        return shrink(teacher, batches, **sizes)


def of_alike_groups(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
    """Without a block of its own for the first block, so that all groups of blocks are alike."""

    def alike(_: Any, count: int, depth: int) -> list[int]:
        return chosen_layers(count, depth)

    with ExitStack() as patched:
        for module in (sizes_of_students, start):
            patched.enter_context(patch.object(module, "last_blocks", alike))
        return shrink(teacher, batches, **sizes)


def in_two_steps(teacher: Any, batches: Batches, sizes: Mapping[str, int]) -> Any:
    """To the middle between the teacher's sizes and the student's, and from there."""
    half = {name: (getattr(teacher.config, name) + size) // 2 for name, size in sizes.items()}
    heads = teacher.config.num_attention_heads
    half |= {"hidden_size": half["hidden_size"] // heads * heads} if "hidden_size" in half else {}
    return shrink(shrink(teacher, batches, **half), batches, **sizes)


WAYS: dict[str, Way] = {
    "shrink": lambda teacher, batches, sizes: shrink(teacher, batches, **sizes),
    "entries by activations": by_activations,
    "entries by weights": by_weights,
    "Torch-Pruning, Taylor": pruned("Taylor"),
    "Torch-Pruning, magnitude": pruned("Magnitude"),
    "blocks copied": copied,
    "untrained": untrained,
    "no gradients": without_gradients,
    "plain axes": with_basis(plain_axes),
    "entries": with_basis(entries),
    "two steps": in_two_steps,
    "last blocks": of_last_blocks,
    "alike groups": of_alike_groups,
}
LIBRARY = ("Torch-Pruning, Taylor", "Torch-Pruning, magnitude")
OTHERS = ("entries by activations", "entries by weights", *LIBRARY, "blocks copied", "untrained")
PARTS = ("shrink", "no gradients", "plain axes", "entries", "two steps", "last blocks", "alike groups")
NUMBERS = (64, 128, 256, 512, 1024)


class Trial(NamedTuple):
    task: str
    sizes: Mapping[str, int]
    way: str
    examples: int = EXAMPLES

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.task, said(self.sizes), self.way, self.examples


def said(sizes: Mapping[str, int]) -> str:
    short = {"hidden_size": "width", "num_hidden_layers": "blocks", "intermediate_size": "neurons"}
    return ", ".join(f"{size} {name}" if name == "blocks" else f"{name} {size}" for name, size in
                     ((short[field], size) for field, size in sizes.items()))  # fmt: skip


def trials(task: str) -> Iterator[Trial]:
    """Of a task, what says most first."""
    alike = [given for given in SIZES[task] if NEURONS in given]
    sizes = [given for given in SIZES[task] if given not in alike]
    narrow = [given for given in sizes if WIDTH in given]
    asked = {
        "shrink": SIZES[task],
        "untrained": SIZES[task],
        "blocks copied": [given for given in sizes if given not in narrow],
    } | dict.fromkeys(LIBRARY, alike)
    for way in ("shrink", *OTHERS):
        yield from (Trial(task, given, way) for given in asked.get(way, sizes))
    yield from (Trial(task, given, way) for given in narrow for way in PARTS[1:-2])
    yield from (Trial(task, given, way) for given in sizes if DEPTH in given for way in PARTS[-2:])
    yield from (Trial(task, given, "no gradients") for given in sizes if given not in narrow)
    others = [number for number in NUMBERS if number != EXAMPLES]
    yield from (Trial(task, given, "shrink", number) for number in others for given in narrow[1:])


def done() -> dict[tuple[str, str, str, int], dict[str, Any]]:
    rows = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.is_file() else []
    return {(row["task"], row["sizes"], row["way"], row["examples"]): row for row in rows}


def measure(task: str, ways: Collection[str] = tuple(WAYS)) -> Iterator[dict[str, Any]]:
    """The trials of a task that are still missing, and what other axes for every block would keep."""
    missing = [trial for trial in trials(task) if trial.way in ways and trial.key not in done()]
    if not missing:
        return
    given = TASKS[task]()
    teacher, most, test = given.teacher, given.calibration(max(NUMBERS)), given.held_out()
    whole = accuracy(teacher.eval(), test)
    for trial in missing:
        row: dict[str, Any] = dict(zip(("task", "sizes", "way", "examples"), trial.key, strict=True))
        began = time.perf_counter(), time.process_time()
        student = WAYS[trial.way](teacher, first(most, trial.examples), trial.sizes)
        seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        row |= {"teacher": whole, "behind": whole - accuracy(student, test)}
        row |= {"seconds": round(seconds[0], 1), "cpu_seconds": round(seconds[1], 1)}
        if trial.way == "shrink" and trial.examples == EXAMPLES and [*trial.sizes] == [WIDTH]:
            row["kept"] = own_axes(teacher, first(most, EXAMPLES), trial.sizes[WIDTH])
        yield row


def first(batches: Batches, examples: int) -> Batches:
    """As many examples, of batches of 64."""
    return batches[: examples // 64]


def report(rows: Mapping[tuple[str, str, str, int], Mapping[str, Any]]) -> str:
    """Tables of points behind the teacher."""
    students = [(task, said(sizes)) for task in TASKS for sizes in SIZES[task]]

    def cells(way: str, examples: int = EXAMPLES) -> list[str]:
        return [f"{rows[*s, way, examples]['behind']:.1f}" if (*s, way, examples) in rows else "" for s in students]

    def table(heads: Mapping[str, list[str]]) -> str:
        columns = [[task for task, _ in students], [sizes for _, sizes in students], *heads.values()]
        lines = [line for line in zip(*columns, strict=True) if any(line[3:])]
        return tabulate(lines, ["task", "student", *heads], tablefmt="github", disable_numparse=True)

    kept = {f"{name}: kept": [f"{rows[*s, 'shrink', EXAMPLES]['kept'][k]:.1f} %"
            if "kept" in rows.get((*s, "shrink", EXAMPLES), {}) else "" for s in students]
            for k, name in enumerate(("axes of all blocks", "own axes of every block"))}  # fmt: skip
    parts = [
        "# Students of other sizes before any training",
        "Points of test accuracy behind the teacher; one teacher a task. Started with "
        f"{EXAMPLES} unlabelled examples of the training split where nothing else is said.",
        "## Beside what one would do otherwise",
        table({way: cells(way) for way in ("shrink", *OTHERS)}),
        "## What makes the difference",
        table({way: cells(way) for way in PARTS} | kept),
        "## Examples",
        table({str(number): cells("shrink", number) for number in NUMBERS}),
        f"Measured on: {', '.join(f'{k} {v}' for k, v in machine().items())}.",
    ]
    return "\n\n".join(parts) + "\n"


WIDTH, DEPTH, NEURONS = "hidden_size", "num_hidden_layers", "intermediate_size"
TASKS = {"images": images, "text": text}
SIZES = {"images": IMAGE_SIZES, "text": TEXT_SIZES}


def main(names: Collection[str] = ()) -> None:
    """Run the trials that are missing, of some tasks and ways or of all, and write the tables."""
    RESULTS.mkdir(exist_ok=True)
    for task in [task for task in TASKS if task in names] or TASKS:
        for row in measure(task, [way for way in WAYS if way in names] or WAYS):
            print(row, flush=True)
            with RUNS.open("a") as file:
                file.write(json.dumps(row) + "\n")
    (RESULTS / "shrink.md").write_text(report(done()))


if __name__ == "__main__":
    main(sys.argv[1:])
