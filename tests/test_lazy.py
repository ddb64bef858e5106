"""Packages that import their names when they are used: what a user, a type checker and the interpreter see of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PACKAGES = ("opdf", "opdf.mpo", "opdf.overparam", "opdf.distill", "opdf.data", "opdf.job", "opdf.study")


def seen(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there(name: str) -> None:
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert not isinstance(getattr(package, public), ModuleType), public
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_importing_the_packages_imports_neither_torch_nor_transformers() -> None:
    imports = "; ".join(f"import {name}" for name in PACKAGES)
    assert (
        seen(f"{imports}\nimport sys\nprint(*{{'torch', 'transformers', 'numpy', 'datasets'}} & sys.modules.keys())")
        == ""
    )


@pytest.mark.parametrize("first", ["name", "file"])
def test_a_function_is_not_hidden_by_the_file_of_its_name(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As opdf.mpo.contract, opdf.job.run."""
    name = f"lazy_{first}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "contract.py").write_text("def contract(): ...")
    (tmp_path / name / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\nfrom opdf.lazy import import_when_used\n"
        f"if TYPE_CHECKING:\n    from {name}.contract import contract\nimport_when_used(__name__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    if first == "file":
        importlib.import_module(f"{name}.contract")
    package = importlib.import_module(name)
    for _ in range(2):
        assert callable(package.contract)
        importlib.import_module(f"{name}.contract")
