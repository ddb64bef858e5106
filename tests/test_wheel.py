"""What a user installs: the wheel, made of the source archive as `python -m build` does, in a new environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from jobs import DIGITS

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import {what} as build; print(build(sys.argv[1]))"

pytestmark = pytest.mark.slow


def built(what: str, source: Path, folder: Path) -> Path:
    """A source archive or a wheel, made by the back end that pyproject.toml names."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD.format(what=what), str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return folder / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "tree" / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree" / name)
    archive = built("build_sdist", folder / "tree", folder / "dist")
    with tarfile.open(archive) as file:
        file.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return built("build_wheel", source, folder / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with the packages beside these tests, but not their opdf."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    # Its lines are added to the path and its own .pth files, an editable opdf among them, are not read.
    (Path(packages) / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    return folder / "bin"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_all_of_the_package(wheel: Path) -> None:
    files = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src" / "opdf").rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in files if "__pycache__" not in name} <= names
    assert {name.split("/")[0] for name in names} == {"opdf", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}


def test_an_installed_wheel_distills_and_predicts(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import opdf; print(opdf.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert run(installed / "opdf", "--version", cwd=tmp_path).startswith("opdf 0.")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(DIGITS | {"output": "out"}))
    assert "student: accuracy" in run(installed / "opdf", "distill", "config.yaml", cwd=tmp_path)
    code = "from opdf.data import load_data; print(len(load_data('nyt-pairs')[0]['train'][0]['first']))"
    assert int(run(installed / "python", "-c", code, cwd=tmp_path)) > 0
