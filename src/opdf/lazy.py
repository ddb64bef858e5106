"""Packages whose public names are imported when they are first used: `opdf --help` need not wait for torch."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any


def import_when_used(package: str) -> None:
    """Import a package's names when they are first asked for (PEP 562).

    An `__init__.py` calls this with its `__name__`. It imports its names under `if TYPE_CHECKING:`, where type checkers
    and the documentation find them. This function reads that block too, so that every name stands in one place.
    """
    sys.modules[package].__class__ = _LazyPackage


class _LazyPackage(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in _homes(self.__name__):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        home, its_name = _homes(self.__name__)[name]
        value = getattr(import_module(home), its_name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing opdf.mpo.contract would put that file where the function `contract` belongs.
        if not (isinstance(value, ModuleType) and name in _homes(self.__name__)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_homes(self.__name__)})


@cache
def _homes(package: str) -> dict[str, tuple[str, str]]:
    """For each of a package's names, the module that it is imported from and its name there."""
    loader: Any = sys.modules[package].__spec__.loader  # type: ignore[union-attr]
    tree = ast.parse(loader.get_source(package))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {a.asname or a.name: (str(node.module), a.name) for node in imports for a in node.names}
