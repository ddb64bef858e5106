"""Objects that a user may give by name, or as a mapping of their options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from opdf.distill.methods import METHODS
from opdf.distill.objective import Objective
from opdf.distill.options import one_of

Config = TypeVar("Config")


def build_objective(given: Objective | str | Mapping[str, Any] | None) -> Objective:
    """An objective from what a user calls it: its name, or a mapping with "name" and its options.

    Raises:
        ValueError: there is no method of this name.
        TypeError: it has no such option, or is something else.
    """
    if isinstance(given, Objective):
        return given
    if not (given is None or isinstance(given, str | Mapping)):
        raise TypeError(f"objective is {given!r}; give a name, a mapping with a name and options, or an Objective")
    options = dict(given) if isinstance(given, Mapping) else {"name": given or "logits"}
    name = options.pop("name", "logits")
    return made(METHODS[one_of("objective", name, METHODS)], options, f"objective {name}")


def build(kind: type[Config], given: Any, where: str) -> Config | None:
    """A configuration from a mapping of its fields.

    Raises:
        TypeError: it has no such field, or `given` is something else.
    """
    if given is None or isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"{where} is {given!r}; give {kind.__name__}(...), a mapping of its fields, or None")
    return made(kind, given, where)


def made(kind: type[Config], options: Mapping[str, Any], where: str) -> Config:
    known = inspect.signature(kind).parameters
    for name in options:
        if name not in known:
            raise TypeError(f"{where} has no option {name!r}; it has {', '.join(known)}")
    return kind(**options)
