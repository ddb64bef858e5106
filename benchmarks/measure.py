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

from opdf.mpo import matmul_precision

RESULTS = Path(__file__).parent / "results"

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where models and their data are made."""

PRODUCT_SIZE, PRODUCTS = (4096, 8) if DEVICE.type == "cuda" else (1024, 1)
"""Of `matmul_rate`: a GPU reaches its rate with large products only, and several of them for every wait."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender: median, fastest and slowest of `repeats` runs."""

    median: float
    fastest: float
    slowest: float
    repeats: int


def synchronize() -> None:
    """Wait until a GPU has done what it was asked for: without it a timer sees the asking only."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def alternate(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int = 7,
    warmup: int = 1,
    wait: Callable[[], None] = synchronize,
) -> dict[str, Timing]:
    """Time contenders in turn, so that a slow minute of the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, run in contenders.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {n: Timing(statistics.median(s), min(s), max(s), repeats) for n, s in seconds.items()}


def matmul_rate(precision: str = "float32", size: int = PRODUCT_SIZE, repeats: int = 7) -> float:
    """Measured matrix products in one of `OverParamConfig`'s precisions, in floating-point operations per second."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(PRODUCTS):
            a @ b

    with matmul_precision("tf32" if precision == "tf32" else "ieee"):
        seconds = alternate({"matmul": multiply}, repeats, warmup=2)["matmul"].median
    return PRODUCTS * 2 * size**3 / seconds


def machine() -> dict[str, Any]:
    gpu = {"gpu": torch.cuda.get_device_name()} if DEVICE.type == "cuda" else {}
    return gpu | {
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
        return f"{value.median:.3f} s" if value.median >= 0.1 else f"{1e3 * value.median:.3g} ms"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
