"""`opdf distill CONFIG.yaml [--key value ...]`"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, fields

from opdf.cli.options import parse
from opdf.job import DistillConfig

DESCRIPTION = """Distill a student from a teacher.

opdf distill CONFIG.yaml reads the options below from a file; any of them can be given or overridden on the command
line, e.g. --overparam.ones 3 --training.learning_rate 1e-4 --output runs/mine. recipes/ has files to start from.
--dry-run shows what a run would do, and starts nothing.

On several devices: torchrun --nproc-per-node 4 -m opdf.cli distill CONFIG.yaml, or
accelerate launch --multi_gpu --num_processes 4 -m opdf.cli distill CONFIG.yaml, also without GPUs."""


@dataclass
class CommandConfig(DistillConfig):
    __doc__ = f"""{(DistillConfig.__doc__ or "").rstrip()}
        dry_run: print what a run would print first, and nothing else.
    """

    dry_run: bool = False


OPTIONS = CommandConfig


def main(argv: list[str]) -> None:
    options = parse(argv, CommandConfig, "opdf distill", DESCRIPTION)
    config = DistillConfig(**{item.name: getattr(options, item.name) for item in fields(DistillConfig)})
    if options.dry_run:
        show(config)
    else:
        distill(config, shlex.join(["opdf", "distill", *argv]))


def show(config: DistillConfig) -> None:
    """Print what a run would print first."""
    from opdf.job import preview

    overview = preview(config)
    print(json.dumps(overview.lines, indent=2) if config.json else overview)


def distill(config: DistillConfig, command: str) -> None:
    """Run, and print what came out."""
    from opdf.job import Stopped, is_main, leave, run

    try:
        metrics = run(config, command=command)
    except Stopped:
        leave()
        raise
    leave()
    if not is_main():
        return
    if config.json:
        print(json.dumps(metrics, indent=2))
        return
    for who in ("teacher", "student before training", "student"):
        names = [metrics["metric"], *(["agreement"] if "agreement" in metrics[who]["test"] else [])]
        shown = [
            f"{name} {', '.join(f'{part} {metrics[who][part][name]:.4f}' for part in ('validation', 'test'))}"
            for name in dict.fromkeys(names)
        ]
        print(f"{who}: {'; '.join(shown)}")
    print(
        f"parameters: {metrics['train_params']:,} while training, {metrics['inference_params']:,} at inference\n"
        f"steps: {metrics['steps']:,} in {metrics['train_seconds']} s\n"
        f"saved in {config.output}:\n"
        "student (loads with plain transformers), metrics.json, config.yaml, train.log"
    )
