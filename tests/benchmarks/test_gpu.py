"""The measurements for a GPU, at toy size on the CPU; so that minutes on a GPU are not spent on a typing error."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command, bundle, contenders, gpu, measure, node
from opdf.mpo import contract

PRECISIONS = ["float32", "tf32", "bf16"]
TINY = "BERT of width 32"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables of toy size go."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    return tmp_path / "toy"


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["rows"]
    return found


@pytest.mark.slow
def test_steps(results: Path) -> None:
    command.main(["--toy", "gpu-vit"])

    chains = {ones: [over.cores(m) for m in over.matrices] for ones in (3, 8) for over in [planned(ones)]}
    found = rows(results, "gpu-step-vit-of-width-32")
    assert [(r["L"], r["products in"], r["accumulation"]) for r in found] == [
        (ones, precision, k) for ones in (3, 8) for precision in PRECISIONS for k in (1, 8)
    ]
    for row in found:
        with FlopCounterMode(display=False) as counted:
            for chain in chains[row["L"]]:
                contract(chain)
        mine, base = row["opdf"]["median"], row["plain"]["median"]
        assert row["floor s"] * row["TFLOP/s"] * 1e12 == pytest.approx(3 * counted.get_total_flops())
        assert row["opdf / plain"] == pytest.approx(mine / base)
        assert row["overhead / floor"] == pytest.approx((mine - base) / row["floor s"])
        compared = (row["L"], row["products in"]) == (3, "float32")
        assert bool(row["rebuild"]) == bool(row["parametrize"]) == compared


def planned(ones: int) -> Any:
    return gpu.planned("ViT of width 32", ones)


def test_a_decoder(results: Path) -> None:
    command.main(["--toy", "gpu-decoder"])

    found = rows(results, "gpu-step-decoder-of-width-32")
    assert [(r["L"], r["products in"], r["accumulation"]) for r in found] == [(3, "bf16", 1), (3, "bf16", 8)]


@pytest.mark.slow
def test_decomposition_and_shrink(results: Path) -> None:
    command.main(["--toy", "gpu-decomposition", "gpu-shrink"])

    (row,) = rows(results, "gpu-decomposition")
    assert (row["matrices"], row["target"]) == (36, "at most 2.0 s")
    teachers = [row["teacher"] for row in rows(results, "gpu-shrink")]
    assert teachers == ["MiniLM", "MiniLM, a classifier", "decoder of width 32"]


@pytest.mark.slow
def test_a_profile(results: Path) -> None:
    command.main(["--toy", "gpu-profile"])

    found = rows(results, "gpu-profile")
    assert {row["kind"] for row in found} == {"torch on the host", "Python"}  # kernels are a GPU's
    assert any(row["what"] == "aten::_fused_adamw_" and row["calls a step"] >= 36 for row in found)
    assert any("pullback" in row["what"] and row["ms a step"] > 0 for row in found)


@pytest.mark.slow
def test_a_study(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command.main(["--toy", "gpu-study"])

    assert {row["variant"] for row in rows(results, "gpu-study")} == {"OPDF", "Muon"}


@pytest.mark.slow
def test_memory_beyond_plain_distillation(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    befores, peaks = iter([100, 200, 300, 400]), iter([7_100, 27_200, 17_300, 9_400])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(befores))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))

    gpu.memory(TINY, contenders.batch(TINY, 2, 4))

    over = gpu.planned(TINY)
    moments = 3 * 4 * sum(core.numel() for matrix in over.matrices for core in over.cores(matrix))
    found = rows(results.parent, "gpu-memory-bert-of-width-32")
    assert [row["products in"] for row in found] == PRECISIONS
    assert [row["(opdf - plain) / cores and moments"] for row in found] == [
        pytest.approx(more / moments) for more in (20_000, 10_000, 2_000)
    ]


def test_passes_are_in_bfloat16_only_where_that_is_asked() -> None:
    seen: list[torch.dtype] = []

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = contenders.student(TINY)(**inputs).logits
        seen.append(logits.dtype)
        return logits

    contenders.batch(TINY, 2, 4, autocast=True).loss(forward)
    contenders.batch(TINY, 2, 4).loss(forward)

    assert seen == [torch.bfloat16, torch.float32]


def test_ours_steps_in_the_precision_asked_for() -> None:
    weights = []
    for precision in ("float32", "bf16"):
        model = contenders.student(TINY).eval()
        contenders.ours(model, contenders.batch(TINY, 2, 4), 3, precision)(1)
        weights.append(model.bert.encoder.layer[0].output.dense.weight)

    # Each of the products rounds by up to 2^-8; the step itself is 1e-5.
    assert 1e-4 < torch.dist(*weights) / weights[0].norm() < 1e-2


def test_a_bundle_holds_what_its_packages_need() -> None:
    """Or the node has it; a package that another one has begun to need would be missing there."""
    brought = {canonicalize_name(name) for name in (*bundle.COMPANY, "torch")}
    bundled = {canonicalize_name(name) for name in (*bundle.WHEELS, *bundle.BUILT)}
    for name in bundled:
        for needed in map(Requirement, metadata.requires(name) or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in brought | bundled, f"{name} needs {needed}"


def test_benchmarks_import_no_more_than_a_node_has() -> None:
    """What the development environment has beside it is imported where it is used."""
    known = {"benchmarks", "opdf", *sys.stdlib_module_names}
    has = {canonicalize_name(name) for name in (*bundle.WHEELS, *bundle.COMPANY, "torch")}
    for path in Path(bundle.__file__).parent.glob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            names = [a.name for a in statement.names] if isinstance(statement, ast.Import) else []
            names += [str(statement.module)] if isinstance(statement, ast.ImportFrom) else []
            for root in {name.partition(".")[0] for name in names} - known:
                assert canonicalize_name(root) in has, f"{path.name} imports {root}"


def test_all_goes_on_after_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    words = {"good": "print('seen')", "bad": "raise SystemExit(3)", "long": "import time; time.sleep(60)", "device": ""}
    monkeypatch.setattr(node, "MEASUREMENTS", {name: ["-c", code] for name, code in words.items()})
    monkeypatch.setattr(node, "LIMIT", 2)
    monkeypatch.setattr(node, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(node, "SOURCE", tmp_path)

    assert node.measure_all([]) == 1

    told = [line.rpartition(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["good: done", "bad: exit status 3", "long: stopped after 2 s", "device: done"]
    assert (tmp_path / "logs" / "good.log").read_text() == "seen\n"


def test_a_node_knows_every_measurement() -> None:
    assert {name for name in node.MEASUREMENTS if name != "device"} == set(command.ON_GPU)


@pytest.mark.slow
def test_a_bundle_runs_in_an_empty_environment_without_a_network(tmp_path: Path) -> None:
    """The node is a new environment with PyTorch and its usual company; `unshare -n` takes the network away."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        pytest.skip("needs unshare -n")
    archive = tmp_path / "opdf-bundle.tar.xz"
    bundle.main(["--output", str(archive)])
    subprocess.run(["tar", "xf", str(archive)], cwd=tmp_path, check=True)
    node = tmp_path / "node"
    subprocess.run([sys.executable, "-m", "venv", str(node)], check=True)
    pip = [str(node / "bin/pip"), "install", "--quiet", "-c", str(bundle.ROOT / "constraints.txt")]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, *bundle.COMPANY], check=True)

    def run(*words: str) -> str:
        command = ["unshare", "-rn", str(node / "bin/python"), str(tmp_path / "opdf-bundle/run"), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "ready: torch" in run("check")
    assert "plain" in run("gpu-step", "--toy")
