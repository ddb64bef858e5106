"""Lines of a file and words of a line, cut alike wherever texts are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import IO

BLANK = " \t\r\n"
"""What separates words, cells and lines in a file. Other spaces of Unicode, U+00A0 say, belong to the words."""

CELLS = re.compile(r"(?:[ \t\n]|\r\n)+")


def lines_of(stream: IO[bytes]) -> Iterator[str]:
    """The lines of a stream of bytes in UTF-8, with their ends. Only a line feed ends a line.

    Raises:
        ValueError: a line is no UTF-8.
    """
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is no UTF-8: byte {line[error.start]:#x}; save it as UTF-8") from error


def words_of(text: str) -> list[str]:
    """The words of a text, with blanks between them."""
    inner = text.strip(BLANK)
    return CELLS.split(inner) if inner else []


def twice(names: Sequence[str]) -> str | None:
    """The first name that stands in a list more than once."""
    return next((name for name in names if names.count(name) > 1), None)
