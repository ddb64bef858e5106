"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def table(rows: Iterable[Sequence[Any]], heads: Sequence[str], align: Sequence[str] | None = None) -> str:
    """A table whose cells are texts as they are; a bar in one, in a variant's or a folder's name, begins no other."""
    lines = [[str(cell).replace("|", r"\|") for cell in row] for row in (heads, *rows)]
    return tabulate(lines[1:], lines[0], tablefmt="github", disable_numparse=True, colalign=align)
