"""Measuring contenders side by side in one process, and writing what was seen."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender: median, fastest and slowest of `repeats` runs."""

    median: float
    fastest: float
    slowest: float
    repeats: int


def alternate(contenders: Mapping[str, Callable[[], Any]], repeats: int = 7, warmup: int = 1) -> dict[str, Timing]:
    """Time contenders in turn, so that a slow minute of the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {n: Timing(statistics.median(s), min(s), max(s), repeats) for n, s in seconds.items()}


def matmul_rate(size: int = 1024, repeats: int = 7) -> float:
    """Measured float32 matrix products, in floating-point operations per second."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / alternate({"matmul": lambda: a @ b}, repeats, warmup=2)["matmul"].median


def machine() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    notes: str = "",
    *,
    assumed: Mapping[str, Any] | None = None,
) -> None:
    """Write `results/NAME.json` and `results/NAME.md`, and print the table.

    `assumed` replaces the machine for rows that were computed from assumptions, not measured on it.
    """
    RESULTS.mkdir(exist_ok=True)
    plain = [{k: asdict(v) if isinstance(v, Timing) else v for k, v in row.items()} for row in rows]
    source = {"machine": machine()} if assumed is None else {"assumed": dict(assumed)}
    (RESULTS / f"{name}.json").write_text(json.dumps(source | {"rows": plain}, indent=1) + "\n")
    columns = list(rows[0])
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    table = tabulate(cells, columns, tablefmt="github", disable_numparse=True)
    ((_, facts),) = source.items()
    origin = "Measured on" if assumed is None else "Not measured; assumed"
    said = f"{origin}: {', '.join(f'{k} {v}' for k, v in facts.items())}."
    text = "\n".join([f"# {title}", "", table, "", *([notes, ""] if notes else []), said, ""])
    (RESULTS / f"{name}.md").write_text(text)
    print(text, flush=True)


def _cell(value: Any) -> str:
    if isinstance(value, Timing):
        return f"{value.median:.3f} s"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
