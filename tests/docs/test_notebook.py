"""The notebook of the text tutorial is its page, and runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import script

made = script("docs/_notebook.py")


def test_the_committed_notebook_is_made_of_the_page() -> None:
    assert made.NOTEBOOK.read_text() == made.notebook(made.PAGE), "run make notebook"


def test_links_of_the_notebook_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http|#)([^)#]+)", made.NOTEBOOK.read_text())
    assert len(links) > 5
    for link in links:
        assert (made.NOTEBOOK.parent / link).exists(), link


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(made.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    said = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "distillation_loss" in said
    assert "BertForSequenceClassification" in said
    assert (tmp_path / "student" / "model.safetensors").is_file()
