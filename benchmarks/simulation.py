"""What a distillation step would cost on 1 to 1,024 GPUs: arithmetic from the rates stated here, NOT a measurement.

Compared are plain KD, replicated cores and owner-computes (`OverParamConfig.placement`), at accumulation 1, with the
same tokens on every GPU however many there are. A step is

    teacher forward, student forward and backward   their products at the rate of bfloat16
    gradients                                       DDP: all-reduce in float32 beside the backward pass
                                                    FSDP2: weights gathered for both passes, gradients reduce-scattered
    cores                                           3 contractions of every matrix, at the rate of CORE_RATES
    AdamW                                           7 float32 numbers a parameter through the GPU's memory
    exchange                                        FSDP2: gradients gathered, a matrix at a time; owner-computes: every
                                                    weight broadcast by its owner, and who moved all-reduced, in rounds

A collective is a ring: its bytes over the bandwidth of its slowest link, and one latency a hop. The passes overlap with
their own communication, nothing else does. Attention's products without weights, embeddings, activations and the
time of data are left out: they are the same for all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import opdf
from benchmarks.measure import write
from opdf.mpo import MPOShape
from opdf.overparam.owner import balance

MODEL_RATE = 0.4 * 989e12
"""Operations a second in a model's passes. H100 SXM data sheet: 989 TFLOP/s in bfloat16, dense; 0.4 of it is what
large trainings report (38 to 43 % in "The Llama 3 Herd of Models", arXiv 2407.21783, table 4)."""

CORE_RATES = {"float32": 0.75 * 67e12, "bf16": 0.6 * 989e12}
"""The same for the cores' products. Data sheet: 67 TFLOP/s in float32, 989 in bfloat16; the shares are assumed for
large square products, which these are."""

MEMORY_BANDWIDTH = 3.35e12
"""Bytes a second, H100 SXM data sheet."""

MEMORY = 80e9
ROOM = 0.7
"""Bytes of a GPU, and the share that weights, gradients and states may take; activations need the rest (assumed)."""

GPUS = (1, 2, 8, 16, 64, 256, 1024)
ONES = 3


@dataclass(frozen=True)
class Links:
    """Bytes a second that a ring carries in one direction through each GPU, and seconds a hop."""

    name: str
    within: float
    between: float
    hop: float
    node: int = 8

    def bandwidth(self, gpus: int) -> float:
        return self.within if gpus <= self.node else min(self.within, self.between)


CLUSTERS = (
    # NVLink 4: 900 GB/s a GPU in both directions together. InfiniBand NDR: 400 Gb/s a GPU; a ring of every one of the
    # 8 adapters crosses between two nodes at once, so a ring through the GPUs gets 8 times that. Hops: assumed.
    Links("NVLink, 8 x 400 Gb/s a node", within=450e9, between=8 * 400e9 / 8, hop=3e-6),
    # PCIe 4.0 x16: 32 GB/s in one direction. One Ethernet adapter of 100 Gb/s for the node. Hops: assumed.
    Links("PCIe, 1 x 100 Gb/s a node", within=32e9, between=100e9 / 8, hop=10e-6),
)


@dataclass(frozen=True)
class Job:
    """A student with a teacher of twice its blocks, and the tokens of one GPU's step."""

    name: str
    tokens: int
    params: int
    multiplied: int
    teacher_params: int
    teacher_multiplied: int
    shapes: tuple[MPOShape, ...]

    @property
    def dense(self) -> int:
        """Entries of the over-parameterized matrices."""
        return sum(s.rows * s.cols for s in self.shapes)


@dataclass(frozen=True)
class Cost:
    """Of one GPU and step: seconds of arithmetic, of communication, and in all (they overlap); bytes of memory."""

    arithmetic: float
    communication: float
    seconds: float
    memory: float

    @property
    def fits(self) -> bool:
        return self.memory <= ROOM * MEMORY


def all_reduce(size: float, gpus: int, links: Links) -> float:
    """Seconds of a ring all-reduce: reduce-scatter, then all-gather."""
    return 2 * all_gather(size, gpus, links)


def all_gather(size: float, gpus: int, links: Links) -> float:
    """Seconds to gather `size` bytes that lie in equal parts on all GPUs; a reduce-scatter takes as long."""
    return (gpus - 1) / gpus * size / links.bandwidth(gpus) + (gpus - 1) * links.hop


def broadcast(size: float, gpus: int, links: Links) -> float:
    """Seconds until all have `size` bytes of one GPU, passed on along the ring piece by piece."""
    return 0.0 if gpus == 1 else size / links.bandwidth(gpus) + (gpus - 1) * links.hop


def adamw(params: float) -> float:
    """Seconds of a step: weight, gradient and two moments are read, all but the gradient written."""
    return 7 * 4 * params / MEMORY_BANDWIDTH


def step(job: Job, placement: str | None, gpus: int, links: Links, *, sharded: bool, core_rate: float) -> Cost:
    """A step with `placement` of the cores (None: plain KD), under DDP or `sharded` by FSDP2."""
    shard = gpus if sharded else 1
    forward = 2 * job.multiplied * job.tokens / MODEL_RATE
    teacher = 2 * job.teacher_multiplied * job.tokens / MODEL_RATE
    gathered = all_gather(2 * job.params, gpus, links) if sharded else 0.0
    returned = (all_gather if sharded else all_reduce)(4 * job.params, gpus, links)
    passes = teacher + max(forward, gathered) + max(2 * forward, gathered + returned)

    plain = job.params - (job.dense if placement else 0)
    shapes: tuple[MPOShape, ...] = ()
    exchange = 0.0
    sizes = [4 * s.rows * s.cols for s in job.shapes]
    if placement == "replicate":
        shapes = job.shapes
    elif placement == "owner":
        shapes = dearest(job.shapes, gpus)
        exchange += sum(broadcast(size, gpus, links) for size in sizes) + len(shapes) * all_reduce(0, gpus, links)
    if placement and sharded:
        exchange += sum(all_gather(size, gpus, links) for size in sizes)
    cores = sum(s.num_params for s in shapes)
    update = sum(3 * s.contract_flops for s in shapes) / core_rate + adamw(cores) + adamw(plain / shard)

    largest = max((s.num_params + s.rows * s.cols for s in shapes), default=0)
    memory = (8 * job.params + 8 * plain) / shard + 12 * cores + 4 * largest + 2 * job.teacher_params
    return Cost(teacher + 3 * forward + update, 2 * gathered + returned + exchange, passes + update + exchange, memory)


@cache
def dearest(shapes: tuple[MPOShape, ...], gpus: int) -> tuple[MPOShape, ...]:
    """The matrices of the GPU that has most to do, as owner-computes deals them out."""
    costs = [s.contract_flops + s.num_params for s in shapes]
    owners = balance(costs, gpus)
    loads = [0.0] * gpus
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return tuple(s for s, owner in zip(shapes, owners, strict=True) if owner == loads.index(max(loads)))


def job(name: str, make: Callable[[int], nn.Module], blocks: int, tokens: int) -> Job:
    """Counted on models without weights."""
    with torch.device("meta"):
        student, teacher = make(blocks), make(2 * blocks)
    counts = [
        (sum(p.numel() for p in m.parameters()),
         sum(x.weight.numel() for x in m.modules() if isinstance(x, nn.Linear)))
        for m in (student, teacher)
    ]  # fmt: skip
    matrices = opdf.overparameterize(student, opdf.OverParamConfig(ones=ONES)).matrices
    return Job(name, tokens, *counts[0], *counts[1], tuple(t.shape for t in matrices))


def jobs() -> Iterator[Job]:
    large = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    yield job("BERT-base, 6 blocks", lambda n: BertForSequenceClassification(BertConfig(num_hidden_layers=n)), 6, 4096)
    yield job("ViT-L", lambda n: ViTForImageClassification(ViTConfig(num_hidden_layers=n, **large)), 24, 64 * 197)
    yield job("7B decoder", lambda n: LlamaForCausalLM(LlamaConfig(num_hidden_layers=n)), 32, 8192)


def compare(job: Job, links: Links, gpus: int) -> dict[str, Any]:
    """One row: the three ways under the wrapper that plain KD fits with, DDP if it can be had, and the one to take."""
    float32 = CORE_RATES["float32"]
    sharded = not step(job, None, gpus, links, sharded=False, core_rate=float32).fits
    costs = {
        (placement, precision): step(job, placement, gpus, links, sharded=sharded, core_rate=rate)
        for placement in (None, "replicate", "owner")
        for precision, rate in CORE_RATES.items()
    }
    fitting = [p for p in ("replicate", "owner") if costs[p, "float32"].fits]
    row: dict[str, Any] = {"student": job.name, "links": links.name, "GPUs": gpus}
    row |= {"wrapper": "FSDP2" if sharded else "DDP", "plain ms": 1e3 * costs[None, "float32"].seconds}
    for precision in CORE_RATES:
        for placement in ("replicate", "owner"):
            row[f"{placement} {precision}"] = costs[placement, precision].seconds / costs[None, precision].seconds
    for placement in (None, "replicate", "owner"):
        row[f"{placement or 'plain'} GB"] = costs[placement, "float32"].memory / 1e9
    owner = costs["owner", "float32"]
    row["communication / arithmetic"] = owner.communication / owner.arithmetic
    row["choose"] = min(fitting, key=lambda p: costs[p, "float32"].seconds) if fitting else "none fits"
    return row


def dominated(rows: list[dict[str, Any]]) -> str:
    """From how many GPUs on communication takes longer than arithmetic, for every student and cluster."""
    lines = []
    for name, links in dict.fromkeys((row["student"], row["links"]) for row in rows):
        mine = [row for row in rows if (row["student"], row["links"]) == (name, links)]
        first = next((row["GPUs"] for row in mine if row["communication / arithmetic"] > 1), None)
        lines.append(f"- {name}; {links}: {f'from {first} GPUs on' if first else 'not up to 1,024 GPUs'}.")
    return "\n".join(lines)


def main() -> None:
    rows = [compare(job, links, gpus) for job in jobs() for links in CLUSTERS for gpus in GPUS]
    notes = (
        f"L = {ONES}. Columns named after a placement and the precision of the cores' products are step times over "
        "plain KD's. GB are weights, gradients, moments, cores and the teacher of one GPU, without activations. "
        f"To choose is the faster placement, products in float32, that fits into {ROOM:.0%} of {MEMORY / 1e9:.0f} GB."
        "\n\n"
        "Owner-computes takes longer to communicate than to compute:\n\n" + dominated(rows)
    )
    assumed: dict[str, Any] = {"model TFLOP/s": MODEL_RATE / 1e12}
    assumed |= {f"core TFLOP/s in {precision}": rate / 1e12 for precision, rate in CORE_RATES.items()}
    assumed |= {"memory GB/s": MEMORY_BANDWIDTH / 1e9}
    for links in CLUSTERS:
        assumed |= {f"GB/s over {links.name}": [links.within / 1e9, links.between / 1e9]}
    write("simulation", "Simulated steps on many GPUs (arithmetic, not a measurement)", rows, notes, assumed=assumed)
