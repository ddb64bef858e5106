"""The hook of the documentation site: links that leave docs/ lead somewhere on the site too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[2]
HOOK = ROOT / "docs" / "_links.py"


def site(folder: Path, **pages: str) -> Path:
    """A site of these pages, built as `make docs` builds ours: warnings are errors."""
    (folder / "docs").mkdir()
    for name, text in pages.items():
        (folder / "docs" / f"{name}.md").write_text(text)
    (folder / "mkdocs.yml").write_text(
        f"site_name: x\nstrict: true\ntheme: mkdocs\nplugins: []\nhooks: [{json.dumps(str(HOOK))}]\n"
    )
    build(load_config(str(folder / "mkdocs.yml")))
    return folder / "site"


def links(page: Path) -> dict[str, str]:
    return {text: target for target, text in re.findall(r'<a href="([^"]+)">([^<]+)</a>', page.read_text())}


def test_linked_files_are_published_and_found_from_their_page(tmp_path: Path) -> None:
    found = site(
        tmp_path,
        index="[table](../benchmarks/results/step.md) [program](../examples/peft_lora.py) [page](other.md#part)",
        other="## Part\n\n[the table](../benchmarks/results/step.md)",
    )
    for page in (found / "index.html", found / "other" / "index.html"):
        targets = [t for t in links(page).values() if not t.startswith(("http", "#"))]
        assert all((page.parent / t.partition("#")[0]).exists() for t in targets)
    assert links(found / "index.html")["table"] == "benchmarks/results/step/"
    assert links(found / "other" / "index.html")["the table"] == "../benchmarks/results/step/"
    assert links(found / "index.html")["program"] == "examples/peft_lora.py"
    assert (found / "examples" / "peft_lora.py").read_bytes() == (ROOT / "examples" / "peft_lora.py").read_bytes()
    assert (found / "CHANGELOG" / "index.html").is_file()
    assert not (found / "examples" / "trl_sft.py").exists()  # nobody links it


def test_a_folder_has_no_page_and_becomes_its_name(tmp_path: Path) -> None:
    page = site(tmp_path, index="[examples/](../examples) and [these](../recipes)") / "index.html"
    assert "<code>examples</code> and these (<code>recipes</code>)" in page.read_text()


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    with pytest.raises(Abort):
        site(tmp_path, index="[gone](../benchmarks/results/gone.md)")
