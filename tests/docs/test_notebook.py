"""The notebook of the text tutorial is its page, and runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()


def test_the_committed_notebook_is_made_of_the_page() -> None:
    assert script.NOTEBOOK.read_text() == script.notebook(script.PAGE), "run make notebook"


def test_links_of_the_notebook_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http|#)([^)#]+)", script.NOTEBOOK.read_text())
    assert len(links) > 5
    for link in links:
        assert (script.NOTEBOOK.parent / link).exists(), link


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(script.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    said = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "distillation_loss" in said
    assert "BertForSequenceClassification" in said
    assert (tmp_path / "student" / "model.safetensors").is_file()
