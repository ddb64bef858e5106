#!/usr/bin/env python3
"""Run opdf on a node without a network: `./run check` first, then `./run all`, `./run NAME` or `./run -- COMMAND ...`.

It makes an environment beside itself on top of the node's own Python: of the bundled wheels it installs those that
the node lacks or has too old. Nothing of the node is changed. Results lie in source/benchmarks/results; what `all`
prints on the way lies in logs/.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE, SITE, LOGS = HERE / "source", HERE / "site", HERE / "logs"

MEASUREMENTS = {
    **{
        f"gpu-{name}": ["-m", "benchmarks", f"gpu-{name}"]
        for name in ("decomposition", "profile", "step", "shrink", "vit", "decoder")
    },
    "device": ["-m", "pytest", "-q", "-m", "device"],
    "gpu-study": ["-m", "benchmarks", "gpu-study"],
}
"""What can be measured, each in under three minutes on one H100. In the order of `all`: what is short comes first."""

LIMIT = 180
"""Seconds after which `all` stops a measurement and goes on. Rows that were measured before are written."""

CHECK = """
import torch, transformers, opdf, opdf.distill
from opdf.data import load_data, minilm
from transformers import AutoModel
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = AutoModel.from_pretrained(minilm(), dtype=torch.float32).to(device)
data, task = load_data("movie-sentiment")
name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
print(f"ready: torch {torch.__version__}, transformers {transformers.__version__}, opdf {opdf.__version__}, {name}, "
      f"MiniLM on {device}, {len(data['train']):,} training texts")
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        print("names:", ", ".join(["check", "all", *MEASUREMENTS]))
        return 0
    name, *more = argv
    commands = {"check": [sys.executable, "-c", CHECK], "--": more}
    commands |= {key: [sys.executable, *words, *more] for key, words in MEASUREMENTS.items()}
    problem = None
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problem = f"Python is {sys.version.split()[0]}; run this with 3.11 to 3.13, e.g. python3.12 run check"
    elif name not in (*commands, "all"):
        problem = f"{name!r} is not known; choose from check, all, {', '.join(MEASUREMENTS)}, or -- COMMAND"
    problem = problem or make_site()
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if name == "all":
        return measure_all(more)
    return subprocess.call(commands[name], env=environment(), cwd=SOURCE)


def measure_all(more: list[str]) -> int:
    """Every measurement in turn, whatever becomes of those before it; 1 if one has failed."""
    LOGS.mkdir(exist_ok=True)
    worst = 0
    for name, words in MEASUREMENTS.items():
        command = [sys.executable, *words, *(more if name != "device" else [])]
        start = time.monotonic()
        with (LOGS / f"{name}.log").open("w") as log:
            try:
                done = subprocess.run(
                    command, env=environment(), cwd=SOURCE, stdout=log, stderr=subprocess.STDOUT, timeout=LIMIT
                )
                ended = f"exit status {done.returncode}" if done.returncode else "done"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {LIMIT} s"
        worst |= ended != "done"
        print(f"{name}: {ended}, {time.monotonic() - start:.0f} s", flush=True)
    return worst


def make_site() -> str | None:
    """Install the wheels that are needed, once; what else is missing is returned in words."""
    wanted = requirements()
    if not (SITE / ".ready").is_file():
        wheels = HERE / "wheels"
        bundled = sorted({normal(path.name.split("-")[0]) for path in wheels.glob("*.whl")})
        poor = [name for name in bundled if name not in wanted or not satisfied(wanted[name], installed(name))]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        if poor:
            command = [*pip, "--find-links", str(wheels), "--target", str(SITE), *poor]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return f"pip could not install the bundled wheels: {done.stderr.strip().splitlines()[-1]}"
        SITE.mkdir(exist_ok=True)
        (SITE / ".ready").touch()
    sys.path.insert(0, str(SITE))
    lacking = [f"{name}>={bound}" for name, bound in wanted.items() if not satisfied(bound, installed(name))]
    return f"this node lacks {', '.join(lacking)}; they are not bundled, install them there" if lacking else None


def requirements() -> dict[str, str]:
    """Lower bounds by package of what measuring needs."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["distill"]]
    return {normal(name): bound for name, _, bound in (line.partition(">=") for line in lines)}


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def satisfied(bound: str, found: str | None) -> bool:
    return found is not None and numbers(found) >= numbers(bound)


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def environment() -> dict[str, str]:
    paths = [str(SITE), str(SOURCE / "src"), str(SOURCE)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OPDF_CACHE": str(HERE / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
