"""Which package imports which: one way, through the packages' `__init__.py`, without circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
CHAIN = ("mpo", "overparam", "distill", "job", "study", "cli")
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (SOURCE / "opdf").rglob("*.py")
}


def imports(name: str) -> Iterator[tuple[str, str]]:
    """What a module imports of opdf, also in functions and for type checkers: module and name."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            yield from ((str(node.module), alias.name) for alias in node.names if str(node.module) in FILES)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in FILES)


def package(name: str) -> str:
    """mpo for opdf.mpo and opdf.mpo.shape; nothing for opdf and opdf.files."""
    path = FILES[name].relative_to(SOURCE / "opdf")
    return path.parts[0] if len(path.parts) > 1 else ""


ALL = [(name, *found) for name in FILES for found in imports(name)]


def test_imports_point_one_way() -> None:
    for name, module, _ in ALL:
        importer, imported = package(name), package(module)
        if importer == "data":
            assert imported in ("data", ""), f"{name} imports {module}"
        elif importer in CHAIN and imported in CHAIN:
            assert CHAIN.index(imported) <= CHAIN.index(importer), f"{name} imports {module}"


def test_a_package_is_imported_through_its_init() -> None:
    for name, module, what in ALL:
        if package(module) not in ("", package(name)):
            assert module == f"opdf.{package(module)}", f"{name} imports {what} of {module}"


def test_two_files_of_overparam_know_the_factorization() -> None:
    importers = {name for name, module, _ in ALL if package(name) == "overparam" and package(module) == "mpo"}
    assert importers == {"opdf.overparam.cores", "opdf.overparam.shapes"}


def test_only_its_own_tests_know_the_command_line() -> None:
    root = SOURCE.parent
    users = [path for folder in ("src", "benchmarks", "tests") for path in (root / folder).rglob("*.py")]
    own = (SOURCE / "opdf" / "cli", root / "tests" / "cli")
    name = "opdf." + "cli"
    assert not [path for path in users if name in path.read_text() and not any(map(path.is_relative_to, own))]


def test_there_is_no_circle() -> None:
    """Each name is followed to the file that it comes from: packages import their names when they are used."""
    homes = {(name, what): module for name, module, what in ALL if FILES[name].name == "__init__.py"}
    graph: dict[str, set[str]] = {}
    for name, module, what in ALL:
        while (module, what) in homes:
            module = homes[module, what]
        if FILES[name].name != "__init__.py":
            graph.setdefault(name, set()).add(module)
    TopologicalSorter(graph).prepare()
