"""Noise is a function of its seed, in every process; its strength is what was asked for."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from opdf.data import load_data
from opdf.data.augment import OPERATIONS, AugmentedImages, ImageNoise, TextNoise

SCRIPT = """
import hashlib, numpy as np
from PIL import Image
from opdf.data import ImageNoise
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 20, 3), dtype=np.uint8))
noise = ImageNoise()
copies = [noise(image, np.random.Generator(np.random.PCG64(seed))).tobytes() for seed in range(40)]
print(hashlib.sha256(b"".join(copies)).hexdigest())
"""


def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 20, 3), dtype=np.uint8))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_image_in_another_process() -> None:
    other = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.strip()
    copies = [ImageNoise()(image(), np.random.Generator(np.random.PCG64(seed))).tobytes() for seed in range(40)]
    assert hashlib.sha256(b"".join(copies)).hexdigest() == other
    assert len(set(copies)) == 40


def test_an_image_is_the_same_on_every_machine() -> None:
    """A pinned digest: Pillow computes in integers, and a release that changed them would spoil stored outputs."""
    copies = [ImageNoise(operations=0)(image(), np.random.Generator(np.random.PCG64(s))).tobytes() for s in range(20)]
    assert (
        hashlib.sha256(b"".join(copies)).hexdigest()
        == "9d6fb99020a5624154dde2d7910da128f1623ae558ada9cb35a3b36fd527d863"
    )


@pytest.mark.parametrize("operation", range(len(OPERATIONS)))
@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_operations_keep_the_format(operation: int, strength: float) -> None:
    changed = OPERATIONS[operation](image(), strength)
    assert changed.size == (20, 28)
    assert changed.mode == "RGB"


def test_no_noise_is_the_image() -> None:
    noise = ImageNoise(crop=1, flip=0, operations=0, erase=0)
    for seed in range(5):
        cropped = np.asarray(noise(image(), np.random.default_rng(seed)))
        assert cropped.shape == (28, 20, 3)
    gray = Image.fromarray(np.zeros((8, 8), np.uint8))
    assert ImageNoise()(gray, np.random.default_rng(0)).mode == "RGB"


def test_text_noise_changes_its_share_of_words() -> None:
    text = " ".join(f"w{k}" for k in range(2000))
    noise = TextNoise(["other"], rate=0.1)
    copy = noise(text, np.random.default_rng(0)).split()
    assert noise(text, np.random.default_rng(0)).split() == copy
    assert len(copy) == pytest.approx(1800, abs=60)
    assert copy.count("other") == pytest.approx(180, abs=50)
    assert TextNoise([text], rate=0)(text, np.random.default_rng(0)) == text


def test_short_texts_survive() -> None:
    noise = TextNoise(["a b"], rate=1.0)
    assert noise("", np.random.default_rng(0)) == ""
    assert len(noise("one", np.random.default_rng(0)).split()) == 1


@pytest.mark.parametrize("options", [{"crop": 0}, {"flip": 2}, {"erase": -1}, {"operations": -1}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        ImageNoise(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate is 2"):
        TextNoise([], rate=2)


def test_augmented_images_are_others_in_every_epoch_and_the_same_everywhere() -> None:
    """Each is what the noise makes of the image with a seed of its own, also in worker processes."""
    rows = load_data("digits", train_limit=6)[0]["train"]
    augmented = AugmentedImages(rows, "image", ImageNoise(), _bytes_of, seed=3)
    seen = []
    for epoch in (0, 1):
        augmented.set_epoch(epoch)
        seen.append([augmented[k]["bytes"] for k in range(6)])
        for k in range(6):
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((3, epoch, k))))
            assert seen[-1][k] == ImageNoise()(rows[k]["image"], rng).tobytes()
    assert all(first != second for first, second in zip(*seen, strict=True))
    loader = DataLoader(augmented, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=list)
    for epoch in (0, 1):
        augmented.set_epoch(epoch)
        assert [row["bytes"] for batch in loader for row in batch] == seen[epoch]
    assert len(augmented) == 6


def _bytes_of(rows: Any) -> list[dict[str, Any]]:
    return [{"bytes": row["image"].tobytes(), "labels": row["label"]} for row in rows]
