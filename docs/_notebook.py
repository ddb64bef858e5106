"""Makes the notebook of the text tutorial from its page: `make notebook`.

Nobody edits the notebook itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = (
    ROOT / "docs" / "tutorial-text.md",
    ROOT / "examples" / "text-tutorial.ipynb",
)


def notebook(page: Path) -> str:
    """A page as a notebook: its Python as code, what stands between as Markdown."""
    parts = re.split(r"```python\n(.*?)```\n", page.read_text(), flags=re.DOTALL)
    kinds = ("markdown", "code")
    cells = [
        cell(k, kinds[k % 2], part if k % 2 else from_examples(part))
        for k, part in enumerate(parts)
        if part.strip()
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def cell(number: int, kind: str, text: str) -> dict[str, Any]:
    source = {"source": text.strip().splitlines(keepends=True)}
    made = {"cell_type": kind, "id": f"part-{number}", "metadata": {}} | source
    return made | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def from_examples(text: str) -> str:
    """Links of a page in docs/ as they lead to the same places from examples/."""
    moved = re.sub(r"\]\((?!https?:|#|\.\./)", "](../docs/", text)
    return moved.replace("](../examples/", "](")


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(PAGE))
