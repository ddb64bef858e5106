"""What the pages of the site promise by their form."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from opdf.data import embedded_names
from opdf.data.read import READERS
from opdf.data.task import KINDS
from opdf.distill import METHODS
from opdf.job import DataConfig, ObjectiveConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "api").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_fits_into_its_block_on_a_screen_of_1280_pixels(page: Path) -> None:
    """A block holds 90 characters there, measured in chromium."""
    text = page.read_text()
    fenced = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    indented = [line[4:] for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines() if line[:4] == "    "]
    long = [line for line in fenced + indented if len(line) > 90]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_the_reference_lists_every_public_name_and_describes_it_where_it_is_defined(page: Path) -> None:
    text = page.read_text()
    package = text.partition("\n")[0].removeprefix("# ")
    module = importlib.import_module(package)
    listed = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    assert set(module.__all__) <= set(re.findall(r"\[`(\w+)`\]", " ".join(listed)))
    own = {name for name in module.__all__ if package != "opdf" and not defined_elsewhere(module, name)}
    described = re.findall(rf"^::: {re.escape(package)}\.(?:\w+\.)?(\w+)$", text, re.MULTILINE)
    assert sorted(described) == sorted(own)


def test_the_table_of_tasks_has_the_methods_of_each() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (`.*`) \|$", section("configuration.md", "Which tasks"), re.MULTILINE)
    told = {task: set(re.findall(r"`([\w-]+)`", methods)) for task, methods in rows}
    assert told == {task: {name for name, method in METHODS.items() if task in method.tasks} for task in KINDS}


def test_help_and_pages_name_every_method_format_and_data_set() -> None:
    methods, data = ((ROOT / "docs" / page).read_text() for page in ("methods.md", "data.md"))
    for name in METHODS:
        assert name in str(ObjectiveConfig.__doc__)
        assert methods.count(f"\n| `{name}` | ") == 2
    for ending in READERS:
        assert ending[1:] in str(DataConfig.__doc__)
        assert re.search(rf"a file: .*\b{ending[1:]}\b", data)
    assert {name for name in embedded_names() if f"`{name}`" not in data} == set()


def test_movements_and_decay_are_those_that_the_benchmark_found() -> None:
    """Over all matrices: one alone says little of others."""
    lines = (ROOT / "benchmarks" / "results" / "rate.md").read_text().splitlines()
    names, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|"))
    found = [dict(zip(names, row, strict=True)) for row in rows if row[2] == "as it comes"]
    assert {(row["optimizer"], row["L"]) for row in found} >= {("AdamW", ones) for ones in "0138"}

    def span(columns: list[str], *rows: dict[str, str]) -> list[float]:
        ranges = [re.findall(r"[\d.]+", row[column])[1:] for row in rows for column in columns]
        return [min(float(low) for low, _ in ranges), max(float(high) for _, high in ranges)]

    text = section("optimizer.md", "The learning rate of the cores")
    for row in found:
        steps = [name for name in names if name.startswith("step")][row["optimizer"] == "RAdam" :]  # begins as SGD
        ends, fixed = (
            "{:.2f} to {:.2f}".format(*span(steps, row)),
            "{:.1f} to {:.1f}".format(*span(["at the dense rate"], row)),
        )
        mean = f"{float(row['mean']):.2f}"
        begins, ends_ = f"| {row['optimizer']} | {row['L']} | {mean} | {ends}", f"| {fixed} |"
        assert any(line.startswith(begins) and line.endswith(ends_) for line in text.splitlines()), (begins, ends_)
    decay = "{:.1f} to {:.1f}".format(
        *span(["decay over dense decay"], *(row for row in found if row["optimizer"] == "AdamW"))
    )
    assert f"Weight decay with AdamW moved it {decay} times as far as on the dense weight" in " ".join(text.split())


def section(page: str, title: str) -> str:
    return (ROOT / "docs" / page).read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def defined_elsewhere(module: ModuleType, name: str) -> bool:
    home = getattr(getattr(module, name), "__module__", "")
    return home.startswith("opdf.") and not home.startswith(f"{module.__name__}.")
