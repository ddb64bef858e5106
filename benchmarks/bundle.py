"""`python -m benchmarks.bundle`: all that a GPU node without a network needs to measure opdf, as one archive.

    opdf-bundle/run            makes an environment on the node's own Python and runs what it is told
                source/        the repository as committed
                wheels/        packages that such a node may lack or have too old
                cache/         the embedded data and MiniLM

The node brings Python 3.11 to 3.13, PyTorch and its usual company (NumPy, pandas, pyarrow, SciPy, scikit-learn).
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from opdf.data.embedded import SOURCES, snippets
from opdf.data.packages import fashion_mnist, minilm, mnist_5k

ROOT = Path(__file__).parents[1]
BUILT = ("seqeval",)
"""Packages without a wheel of their own, which are Python alone."""

COMPANY = (
    "anyio", "click", "filelock", "fsspec", "h11", "hf-xet", "hypothesis", "idna", "jinja2", "markupsafe",
    "matplotlib", "numpy", "packaging", "pandas", "pillow", "psutil", "pyarrow", "pytest", "pytest-timeout", "pyyaml",
    "regex", "requests", "rich", "scikit-learn", "scipy", "tensorboard", "tqdm", "typer", "typing-extensions",
)  # fmt: skip
"""What the node brings beside PyTorch."""

LIMIT = 60_000_000
"""Bytes of the archive, at most."""

PYTHONS = ("3.11", "3.12", "3.13")
WHEELS = (
    "accelerate", "datasets", "dill", "docstring-parser", "httpcore2", "httpx2", "huggingface-hub", "jsonargparse",
    "multiprocess", "safetensors", "shtab", "tabulate", "tokenizers", "transformers", "truststore", "xxhash",
)  # fmt: skip
"""What is bundled at the version that is installed here; PyTorch and its company are the node's."""

IMAGES = 15_000
"""Training images of Fashion-MNIST that fit; the test images are all there."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bundle", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "opdf-bundle.tar.xz", help="the archive")
    output = parser.parse_args(arguments).output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        bundle = Path(scratch) / "opdf-bundle"
        write_source(bundle / "source")
        write_wheels(bundle / "wheels")
        write_cache(bundle / "cache")
        shutil.copy2(ROOT / "benchmarks" / "node.py", bundle / "run")
        (bundle / "run").chmod(0o755)
        archive = Path(scratch) / output.name
        with tarfile.open(archive, "w:xz") as file:
            file.add(bundle, "opdf-bundle")
        if (size := archive.stat().st_size) > LIMIT:
            raise SystemExit(f"error: the bundle has {size:,} bytes, more than {LIMIT:,}; lower IMAGES or trim WHEELS")
        archive.replace(output)
    print(f"{output}: {size / 1e6:.1f} MB. On the node: tar xf {output.name}; opdf-bundle/run check")


def write_source(folder: Path) -> None:
    """The files that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def write_wheels(folder: Path) -> None:
    """Wheels for 64-bit Linux on x86, of the versions that are installed here."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    platform = [
        "--only-binary=:all:", "--implementation", "cp",
        *(f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)), "--platform=manylinux2014_x86_64",
    ]  # fmt: skip
    pinned = [f"{name}=={version(name)}" for name in WHEELS]
    for python in PYTHONS:  # what is for all of them is fetched once
        subprocess.run([*download, *platform, "--python-version", python, "--dest", str(folder), *pinned], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*build, "--wheel-dir", str(folder), *(f"{n}=={version(n)}" for n in BUILT)], check=True)
    for wheel in folder.glob("*.whl"):
        store_plainly(wheel)


def store_plainly(wheel: Path) -> None:
    """Undo a wheel's own compression: the archive's is better, and cannot work on what is compressed already."""
    with zipfile.ZipFile(wheel) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as file:
        for name, content in contents.items():
            file.writestr(name, content)


def write_cache(folder: Path) -> None:
    """What `opdf.data` looks for in `$OPDF_CACHE`."""
    (folder / "fashion-mnist").mkdir(parents=True)
    shutil.copy2(mnist_5k(), folder / "mnist_5k.csv.gz")
    for file in fashion_mnist().glob("*.gz"):
        write_idx(file, folder / "fashion-mnist" / file.name, IMAGES)
    write_minilm(minilm(), folder / "all-MiniLM-L6-v2")


def write_idx(source: Path, target: Path, count: int) -> None:
    """The first `count` entries of one of Fashion-MNIST's files (all of a shorter one)."""
    content = gzip.decompress(source.read_bytes())
    dimensions = content[3]
    sizes = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    entry = 1
    for size in sizes[1:]:
        entry *= size
    kept = min(count, sizes[0])
    start = 4 + 4 * dimensions
    header = content[:4] + struct.pack(f">{dimensions}I", kept, *sizes[1:])
    target.write_bytes(gzip.compress(header + content[start : start + kept * entry], compresslevel=0, mtime=0))


def write_minilm(source: Path, target: Path) -> None:
    """MiniLM in half precision, with zeros for tokens that no embedded text has: they take no room in an archive."""
    target.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy2(source / name, target / name)
    weights = load_file(source / "model.safetensors")
    table = weights["embeddings.word_embeddings.weight"]
    used = torch.zeros(len(table), dtype=torch.bool)
    used[used_tokens(source)] = True
    table[~used] = 0
    halved = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    save_file(halved, target / "model.safetensors", {"format": "pt"})


def used_tokens(model: Path) -> list[int]:
    """Numbers of the tokens that the embedded texts, and texts made of them by noise, consist of."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [text for source in SOURCES for text in snippets(source)[0]]
    found = {token for ids in tokenizer(texts)["input_ids"] for token in ids}
    return sorted(found | set(tokenizer.all_special_ids))


if __name__ == "__main__":
    main()
