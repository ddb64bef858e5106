"""What opdf costs on a GPU: step time, memory, decomposition, `shrink`, and a study with several runs at once.

The models' passes are in bfloat16. Plain distillation and ours alternate in one process. `overhead / floor` is as in
`benchmarks.step`, at the rate of products measured in the same precision.

Every measurement has a toy size, which runs on a CPU: `python -m benchmarks --toy gpu-step`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

import opdf
from benchmarks import shrink_time
from benchmarks.contenders import MODELS, Batch, Step, batch, ours, parametrized, plain, rebuild, student
from benchmarks.measure import DEVICE, PRODUCT_SIZE, alternate, matmul_rate, write
from benchmarks.shrink_time import Case, minilm_cases
from opdf.job import fill, read_yaml
from opdf.mpo import decompose_many
from opdf.overparam.config import PRECISIONS
from opdf.study import StudyConfig, sweep

ONES = 3
STEP_TARGETS = {1: 1.25, 8: 1.07}
"""By accumulation, what ours over plain may be at most, for BERT-base in bf16 with L = 3."""

DECOMPOSITION_TARGET = 2.0
"""Seconds for BERT-base's matrices, at most."""

MEMORY_TARGET = 1.10
"""What ours minus plain may be at most, over the cores and their two moments in float32."""

OTHERS = {"rebuild": rebuild, "parametrize": parametrized}

STUDY = Path(__file__).parents[1] / "studies" / "gpu" / "text.yaml"


def step(toy: bool = False) -> None:
    """BERT-base, 32 texts of 128 tokens."""
    measured("BERT of width 32" if toy else "BERT-base", (2, 8) if toy else (32, 128), toy=toy)


def vit(toy: bool = False) -> None:
    """ViT-B, 32 images of 224x224 pixels."""
    measured("ViT of width 32" if toy else "ViT-B", toy=toy)


def decoder(toy: bool = False) -> None:
    """A decoder of a billion parameters, 4 texts of 1,024 tokens; L = 3 in bfloat16 only, to be done in time."""
    name = "decoder of width 32" if toy else "decoder of 1B"
    measured(name, lengths=(ONES,), precisions=("bf16",), others=False, repeats=3, toy=toy)


def measured(
    name: str,
    sizes: tuple[int | None, int | None] = (None, None),
    *,
    lengths: Sequence[int] = (1, ONES, 8),
    precisions: Sequence[str] = tuple(PRECISIONS),
    others: bool = True,
    repeats: int = 7,
    toy: bool = False,
) -> None:
    """Step time and, on a GPU, memory of one model; tables are named after it."""
    data = batch(name, *sizes, autocast=True)
    if toy:
        step_time(name, data, lengths[-2:], precisions, others=others, repeats=1, size=16)
        return
    step_time(name, data, lengths, precisions, others=others, repeats=repeats, size=PRODUCT_SIZE)
    # After the steps, so that the libraries' workspaces are there already and count for no contender.
    memory(name, data, precisions)


def step_time(
    name: str,
    data: Batch,
    lengths: Sequence[int],
    precisions: Sequence[str],
    *,
    others: bool,
    repeats: int,
    size: int,
) -> None:
    """Of plain distillation and ours; `size` is that of the products whose rate is measured."""
    rates = {precision: matmul_rate(precision, size) for precision in precisions}
    base = plain(student(name), data, ONES)
    rows: list[dict[str, Any]] = []
    for ones, precision in product(lengths, precisions):
        steps = {"plain": base, "opdf": ours(student(name), data, ones, precision)}
        if others and (ones, precision) == (ONES, "float32"):
            steps |= {
                "rebuild": rebuild(student(name), data, ones),
                "parametrize": parametrized(student(name), data, ones),
            }
        flops = sum(3 * matrix.shape.contract_flops for matrix in planned(name, ones).matrices)
        for accumulation, target in STEP_TARGETS.items():
            found = alternate({n: lambda s=s, k=accumulation: s(k) for n, s in steps.items()}, repeats, warmup=2)
            over, floor = found["opdf"].median - found["plain"].median, flops / rates[precision]
            aimed = name == "BERT-base" and ones == ONES and precision == "bf16"
            rows.append({
                "L": ones, "accumulation": accumulation, "products in": precision, "plain": found["plain"],
                "opdf": found["opdf"], "opdf / plain": found["opdf"].median / found["plain"].median,
                "target": f"at most {target}" if aimed else "", "rebuild": found.get("rebuild", ""),
                "parametrize": found.get("parametrize", ""), "TFLOP/s": rates[precision] / 1e12, "floor s": floor,
                "overhead / floor": over / floor,
            })  # fmt: skip
            write(
                f"gpu-step-{slug(name)}", f"Time of one optimizer step of distillation, {described(name, data)}", rows,
                f"Medians of {repeats} alternating runs, fused AdamW, the teacher's passes included.",
            )  # fmt: skip
        del steps
        gc.collect()


def planned(name: str, ones: int = ONES) -> opdf.OverParameterization:
    return opdf.overparameterize(student(name), opdf.OverParamConfig(ones=ones))


def decomposition(toy: bool = False) -> None:
    """The matrices of a BERT-base student, on this device and on the CPU."""
    name = "BERT of width 32" if toy else "BERT-base"
    overparam = planned(name)
    shapes = [matrix.shape for matrix in overparam.matrices]
    weights = [overparam.model.get_parameter(matrix.name).detach() for matrix in overparam.matrices]
    on_cpu = [weight.cpu() for weight in weights]
    runs = {"here": lambda: decompose_many(weights, shapes), "cpu": lambda: decompose_many(on_cpu, shapes)}
    found = alternate(runs, repeats=1 if toy else 3)
    write(
        "gpu-decomposition", f"Decomposition of a {name} student's matrices, L = {ONES}",
        [{"matrices": len(weights), **found, "target": f"at most {DECOMPOSITION_TARGET} s"}],
        "After one run of each in the same process.",
    )  # fmt: skip


def shrinking(toy: bool = False) -> None:
    """`shrink` to half the width: MiniLM with texts, a decoder of a billion parameters with random tokens."""
    cases = minilm_cases(16, 24)[1:] if toy else minilm_cases(512, 192)  # few texts do not fit a wide feed-forward
    shrink_time.measured("gpu-shrink", *cases, large_decoder(toy), repeats=1 if toy else 3)


def large_decoder(toy: bool) -> Case:
    name = "decoder of width 32" if toy else "decoder of 1B"
    config = MODELS[name].config
    torch.manual_seed(0)
    tokens = torch.randint(1, config.vocab_size, (64, 32 if toy else 512))
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    halves = {size: getattr(config, size) // 2 for size in sizes}
    return name, student(name).eval(), [{"input_ids": part} for part in tokens.to(DEVICE).split(8)], halves


def study(toy: bool = False) -> None:
    """The text study, several runs side by side on the one GPU; stopped and started again it goes on where it was."""
    given = read_yaml(str(STUDY))
    if toy:
        given |= {"tasks": {"movie": given["tasks"]["movie"]}, "seeds": [0], "learning_rates": [1e-4], "workers": 1,
                  "output": given["output"] + "-toy"}  # fmt: skip
        given["common"]["data"] |= {"train_limit": 128, "max_length": 16}
        # Many CPUs multiply bf16 in software, at a hundredth of the speed.
        given["common"]["training"] |= {"max_steps": 2, "bf16": False}
        given["common"]["teacher"]["training"] |= {"max_steps": 1, "bf16": False}
    results = sweep(fill(StudyConfig, given, STUDY.name))
    rows = [{k: e[k] for k in ("setting", "variant", "verdict")} for e in results["effects"] if e["at"] == "best"]
    write("gpu-study", "The text study on one GPU", rows, f"From {STUDY.name}; opdf report makes a page of its folder.")


def peak(build: Callable[[], Step]) -> int:
    """Bytes that a contender's first two steps take on the GPU at their peak, beyond what is there already."""
    gc.collect()  # models of earlier contenders; freed during the steps, they would be taken off
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = build()
    for _ in range(2):
        step(1)
    return torch.cuda.max_memory_allocated() - before


def memory(name: str, data: Batch, precisions: Sequence[str] = tuple(PRECISIONS)) -> None:
    overparam = planned(name)
    cores = 3 * 4 * sum(matrix.shape.num_params for matrix in overparam.matrices)
    base = peak(lambda: plain(student(name), data, ONES))
    rows: list[dict[str, Any]] = []
    for precision in precisions:
        mine = peak(lambda p=precision: ours(student(name), data, ONES, p))
        rows.append({
            "products in": precision, "plain MiB": round(base / 2**20), "opdf MiB": round(mine / 2**20),
            "cores and moments MiB": round(cores / 2**20), "(opdf - plain) / cores and moments": (mine - base) / cores,
            "target": f"at most {MEMORY_TARGET}",
        })  # fmt: skip
        write(
            f"gpu-memory-{slug(name)}",
            f"Peak GPU memory allocated by torch in two steps, accumulation 1, {described(name, data)}",
            rows,
            "Without the teacher and the batch. Cores and moments: three times the cores' parameters in float32.",
        )


def slug(name: str) -> str:
    return name.replace(" ", "-").lower()


def described(name: str, data: Batch) -> str:
    shape = "x".join(map(str, next(iter(data.inputs.values())).shape))
    return f"{name} student, inputs of {shape} a micro-batch"
