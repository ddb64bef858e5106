"""What a user gives a method or the trainer, refused before any work if it is something else.

Numbers are returned as Python's own: NumPy's have no place in the JSON of a run's record.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

LARGEST = sys.float_info.max

POSITIVE = sys.float_info.min
"""As the least number: above 0."""


def number(name: str, value: Any, least: float = -LARGEST, most: float = LARGEST) -> float:
    """A finite number from `least` to `most`.

    Raises:
        TypeError: it is no number; a boolean is none.
        ValueError: it is out of range.
    """
    found = _number(name, value)
    if not least <= found <= most:
        raise ValueError(f"{name} is {value}; it must be {_range(least, most)}")
    return found


def numbers(name: str, values: Any) -> list[float]:
    """A list of numbers, of any size.

    Raises:
        TypeError: it is no list, or holds something that is no number.
    """
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is {values!r}; give a list of numbers")
    return [_number(f"{name}[{place}]", value) for place, value in enumerate(values)]


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; give a number")
    return value if isinstance(value, int | float) else float(value)


def _range(least: float, most: float) -> str:
    if most < LARGEST:
        return f"above 0 and at most {most:g}" if least == POSITIVE else f"from {least:g} to {most:g}"
    if least > -LARGEST:
        return "a finite number above 0" if least == POSITIVE else f"{least:g} or more, and finite"
    return "a finite number"


def whole(name: str, value: Any, least: float = -math.inf) -> int:
    """An integer of at least `least`.

    Raises:
        TypeError: it is no integer; a boolean is none.
        ValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; give an integer")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be {least} or more")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or False: the text "false" would count as true.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; give True or False")
    return value


def one_of(name: str, value: Any, known: Collection[str]) -> str:
    """One of a few names.

    Raises:
        ValueError: it is none of them.
    """
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    return value
