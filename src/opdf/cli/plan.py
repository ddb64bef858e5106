"""`opdf plan MODEL`: what over-parameterization would do, before anything runs."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

from opdf.cli.options import at_least_one, parse
from opdf.overparam import OverParamConfig, OverParameterization, overparameterize

DESCRIPTION = """Show every matrix that would be over-parameterized: shape, bond dimensions, parameters, scale,
and the extra time and memory of training. Only the model's configuration is read; no weights are loaded.

opdf plan MODEL, a hub name, a local folder or "minilm", the embedded all-MiniLM-L6-v2."""


@dataclass
class PlanConfig:
    """Options.

    Args:
        model: hub name, local folder, or minilm.
        layers: plan for a student with this many of the model's blocks, and the model as its teacher.
        overparam: over-parameterization, as in opdf distill.
        batch: examples a micro-batch.
        tokens: tokens (or patches) an example.
        accumulation: micro-batches an optimizer step.
        json: print JSON instead of a table.
    """

    model: str
    layers: int | None = None
    overparam: OverParamConfig = field(default_factory=OverParamConfig)
    batch: int = 32
    tokens: int = 128
    accumulation: int = 1
    json: bool = False


def main(argv: list[str]) -> None:
    config = parse(argv, PlanConfig, "opdf plan", DESCRIPTION, positional="model")
    at_least_one(config, "layers", "batch", "tokens", "accumulation")
    planned = overparameterize(_meta_model(config.model, config.layers), config.overparam)
    teacher = 0
    if config.layers is not None:
        teacher = _entries(overparameterize(_meta_model(config.model), OverParamConfig(ones=0)))
    report = summarize(planned, config, teacher)
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


def summarize(planned: OverParameterization, config: PlanConfig, teacher: int) -> dict[str, Any]:
    """Every matrix, the totals, and the expected cost of a step.

    The step's arithmetic is 3 contractions a matrix and optimizer step; the student's own is 6 operations per entry of
    its matrices and token, and the teacher's, which has `teacher` entries (0 where it is not known), 2. A matrix's
    memory is its cores and two moments in float32; the total has one gradient of the largest too.
    """
    rate = _matmul_rate()
    matrices = [
        {"name": t.name, "rows": t.shape.rows, "cols": t.shape.cols, "shape": str(t.shape),
         "bonds": list(t.shape.bond_dims or ()), "params": t.shape.num_params, "scale": round(t.shape.scale, 3),
         "extra_seconds_per_step": 3 * t.shape.contract_flops / rate, "extra_megabytes": 12 * t.shape.num_params / 1e6}
        for t in planned.matrices
    ]  # fmt: skip
    extra = sum(3 * t.shape.contract_flops for t in planned.matrices)
    plain = (6 * _entries(planned) + 2 * teacher) * config.batch * config.tokens * config.accumulation
    cores = sum(t.shape.num_params for t in planned.matrices)
    return {
        "matrices": matrices,
        "train_params": planned.train_params,
        "inference_params": planned.inference_params,
        "scale": planned.train_params / planned.inference_params,
        "extra_gflop_per_step": extra / 1e9,
        "extra_seconds_per_step": extra / rate,
        "expected_step_ratio": 1 + extra / plain,
        "with_teacher": teacher > 0,
        "measured_gflops": rate / 1e9,
        "extra_megabytes": 4 * (3 * cores + max(t.shape.num_params for t in planned.matrices)) / 1e6,
        "batch": config.batch, "tokens": config.tokens, "accumulation": config.accumulation,
    }  # fmt: skip


def _entries(planned: OverParameterization) -> int:
    return sum(t.shape.rows * t.shape.cols for t in planned.matrices)


def _meta_model(name: str, layers: int | None = None) -> Any:
    import torch
    from transformers import AutoConfig, AutoModel

    from opdf.job.models import loading
    from opdf.job.run import quiet

    quiet()
    with loading(name) as folder:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if layers is not None:
        config.num_hidden_layers = layers
    with torch.device("meta"):
        return AutoModel.from_config(config)


def _matmul_rate() -> float:
    """Floating-point operations per second of float32 matrix products here, measured in about 0.1 s."""
    import torch

    # A GPU would be measured waiting, with one small product at a time.
    device, size, products = ("cuda", 4096, 4) if torch.cuda.is_available() else ("cpu", 768, 1)
    a = torch.randn(size, size, device=device)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(products):
            found = a @ a
        float(found[0, 0])
        best = max(best, products * 2 * size**3 / (time.perf_counter() - start))
    return best


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title, justify in (
        ("matrix", "left"),
        ("row / column factors", "left"),
        ("bond", "right"),
        ("params", "right"),
        ("x", "right"),
        ("ms", "right"),
        ("MB", "right"),
    ):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    prefix = os.path.commonpath([m["name"].replace(".", "/") for m in report["matrices"]]).replace("/", ".")
    print(f"{len(report['matrices'])} matrices of {prefix or 'the model'}\n")
    for m in report["matrices"]:
        name = m["name"].removesuffix(".weight").removeprefix(f"{prefix}.")
        factors = m["shape"].removeprefix("T(").removesuffix(")")
        table.add_row(
            name, factors, str(max(m["bonds"])), f"{m['params']:,}", f"{m['scale']:.2f}",
            f"{1000 * m['extra_seconds_per_step']:.1f}", f"{m['extra_megabytes']:.0f}",
        )  # fmt: skip
    console = Console()
    console.print(table, highlight=False)
    teacher = "with" if report["with_teacher"] else "without"
    print(
        "\nms and MB: more an optimizer step, and held, for that matrix"
        f"\nparameters  {report['train_params']:,} while training ({report['scale']:.2f}x), "
        f"{report['inference_params']:,} at inference\n"
        f"arithmetic  {report['extra_gflop_per_step']:.1f} GFLOP more an optimizer step, "
        f"about {report['extra_seconds_per_step']:.2f} s here ({report['measured_gflops']:.0f} GFLOP/s)\n"
        f"step        about {report['expected_step_ratio']:.2f} times plain distillation's at "
        f"{report['accumulation']} x {report['batch']} x {report['tokens']} tokens,\n"
        f"            {teacher} the teacher's forward pass\n"
        f"memory      {report['extra_megabytes']:.0f} MB more with AdamW (cores and moments in float32)"
    )
