"""`python -m benchmarks [NAME ...]`: run benchmarks and write their tables to benchmarks/results/."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import compiled, decomposition, growth, inference, memory, simulation, step, stored, together

BENCHMARKS: dict[str, Callable[[], None]] = {
    "decomposition": decomposition.main,
    "step": step.main,
    "step-large": lambda: step.main(large=True),
    "memory": memory.main,
    "inference": inference.main,
    "growth": growth.main,
    "compiled": compiled.main,
    "together": together.main,
    "stored": stored.main,
    "simulation": simulation.main,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(BENCHMARKS)}; default all")
    names = parser.parse_args().names
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"{name!r} is no benchmark; choose from {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()
