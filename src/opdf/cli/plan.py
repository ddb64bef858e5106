"""`opdf plan MODEL`: what over-parameterization would do, before anything runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opdf.cli.distill import show
from opdf.cli.options import at_least_one, parse
from opdf.job import DistillConfig
from opdf.overparam import OverParamConfig

DESCRIPTION = """Show every matrix that would be over-parameterized: shape, bond dimensions, parameters, scale,
and the extra time and memory of training; and the model's size and latency, without its head. Only the model's
configuration is read; no weights are loaded.

opdf plan MODEL, a hub name, a local folder or "minilm", the embedded all-MiniLM-L6-v2.

opdf plan RUN, an output folder of opdf distill: its student, with the over-parameterization that it was trained with.

opdf plan CONFIG.yaml shows what opdf distill CONFIG.yaml would do, as its --dry-run does."""


@dataclass
class PlanConfig:
    """Options.

    Args:
        model: hub name, local folder, output folder of opdf distill, or minilm.
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


OPTIONS = PlanConfig


def main(argv: list[str]) -> None:
    if argv and argv[0].endswith((".yaml", ".yml")):
        show(parse(argv, DistillConfig, "opdf plan", DESCRIPTION))
        return
    with_run = _with_run(argv)
    config = parse(with_run, PlanConfig, "opdf plan", DESCRIPTION, positional="model")
    at_least_one(config, "layers", "batch", "tokens", "accumulation")
    from opdf.job import plan_model, quiet, tell

    with quiet():
        report = plan_model(
            config.model, config.overparam, layers=config.layers, batch=config.batch, tokens=config.tokens,
            accumulation=config.accumulation,
        )  # fmt: skip
    if with_run != argv and not any(word.startswith("--overparam") for word in with_run):
        tell(f"note: {argv[0]} was trained without over-parameterization; this is what the default would do to it")
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


def _with_run(argv: list[str]) -> list[str]:
    """The student's folder and its over-parameterization in place of an output folder of opdf distill."""
    if not argv or not (Path(argv[0]) / "config.yaml").is_file():
        return argv
    from opdf.job import find_saved, plain, read_config

    saved = find_saved(argv[0])
    overparam = plain(read_config(str(Path(argv[0]) / "config.yaml")).overparam)
    return [saved.model, *([f"--overparam={json.dumps(overparam)}"] if overparam is not None else []), *argv[1:]]


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("matrix", "row / column factors"):
        table.add_column(title, overflow="fold")
    for title in ("bond", "params", "x", "ms", "MB"):
        table.add_column(title, justify="right", overflow="fold")
    prefix = os.path.commonpath([m["name"].replace(".", "/") for m in report["matrices"]]).replace("/", ".")
    print(f"{len(report['matrices'])} matrices of {prefix or 'the model'}\n")
    for m in report["matrices"]:
        name = m["name"].removesuffix(".weight").removeprefix(f"{prefix}.")
        factors = m["shape"].removeprefix("T(").removesuffix(")")
        table.add_row(
            name, factors, str(max(m["bonds"])), f"{m['params']:,}", f"{m['scale']:.2f}",
            f"{1000 * m['extra_seconds_per_step']:.1f}", f"{m['extra_megabytes']:.0f}",
        )  # fmt: skip
    Console().print(table, highlight=False)
    print()
    for model in report["models"]:
        print(f"{model['name']:<12}{_size(model, report['batch'])}")
    if any(model["without_head"] for model in report["models"]):
        print("            without a head, which the totals below count")
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


def _size(model: dict[str, Any], batch: int) -> str:
    size = f"{model['params']:,} parameters, {model['megabytes']:,.1f} MB"
    if model["seconds_for_one"] is None:
        return size
    one, many = (1000 * model[f"seconds_for_{what}"] for what in ("one", "batch"))
    taken = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in (one, many)]  # 80 columns are enough
    return f"{size}; {taken[0]} ms for 1 example, {taken[1]} for {batch}"
