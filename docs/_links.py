"""Links from pages to the rest of the repository work on the site too.

Pages are written to be read in the repository, where `../benchmarks/results/step.md`
leads somewhere. A file that is linked so is published with the pages, under its path in
the repository. A folder has no page and becomes its name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = ("CHANGELOG.md",)  # in the navigation
LINK = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to."""
    linked = {
        path
        for file in files.documentation_pages()
        for _, path in LINK.findall(file.content_string)
    }
    for path in sorted(linked | set(ALWAYS)):
        if (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of the pages that are in docs/ itself."""
    if page.file.generated_by is not None or "/" in page.file.src_uri:
        return markdown

    def on_the_site(link: re.Match[str]) -> str:
        text, path = link.groups()
        if (ROOT / path).is_dir():
            return (
                f"`{path}`"
                if text.rstrip("/") == path.rstrip("/")
                else f"{text} (`{path}`)"
            )
        return f"[{text}]({path})"  # what leads nowhere is mkdocs' to report

    return LINK.sub(on_the_site, markdown)
