"""Noisy copies of texts and images. All randomness is the generator's: the same seed gives the same copy everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Generator = np.random.Generator

MAGNITUDE, LARGEST = 9, 10
"""RandAugment's strength on its scale, as in TinyViT's recipe (m9)."""


def as_rgb(image: Any) -> Any:
    """A Pillow image in three colours of 8 bits; what is transparent in it has the colour that it has beneath.

    Raises:
        ValueError: it has values that 8 bits cannot hold, which Pillow would cut off.
    """
    if image.mode == "I;16B":  # as many TIFF files; Pillow has no extrema of these
        image = image.convert("I")
    if image.mode.startswith(("I", "F")):
        low, high = image.getextrema()
        if image.mode == "F" or low < 0 or high > 255:
            raise ValueError(
                f"its values, from {low:g} to {high:g} (mode {image.mode}), do not fit into 8 bits; save it with "
                "values from 0 to 255"
            )
    return image.convert("RGB")


class TextNoise:
    """Easy data augmentation (arXiv 1901.11196) without a thesaurus: words are deleted, swapped and replaced.

    Args:
        texts: where replacement words come from, by frequency.
        rate: share of the words that each of the three operations touches.
    """

    def __init__(self, texts: Sequence[str], rate: float = 0.1) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is {rate}; it is a share of the words, from 0 to 1")
        self.vocabulary = [word for text in texts for word in text.split()]
        self.rate = rate

    def __call__(self, text: str, rng: Generator) -> str:
        words = text.split()
        if not words:
            return text
        kept = [word for word in words if rng.random() >= self.rate] or [words[int(rng.integers(len(words)))]]
        for place in range(len(kept)):
            if self.vocabulary and rng.random() < self.rate:
                kept[place] = self.vocabulary[int(rng.integers(len(self.vocabulary)))]
        for _ in range(rng.binomial(len(kept), self.rate)):
            a, b = rng.integers(len(kept), size=2)
            kept[a], kept[b] = kept[b], kept[a]
        return " ".join(kept)


class ImageNoise:
    """Random resized crop, flip, RandAugment (arXiv 1909.13719) and random erasing, in Pillow's integer arithmetic.

    Args:
        crop: smallest share of the area that is kept; 1 keeps the whole image.
        flip: probability of a horizontal flip.
        operations: RandAugment operations an image.
        erase: probability of filling a rectangle with noise.
    """

    def __init__(self, crop: float = 0.5, flip: float = 0.5, operations: int = 2, erase: float = 0.25) -> None:
        if not 0 < crop <= 1:
            raise ValueError(f"crop is {crop}; it is the smallest share of the area to keep, above 0 and at most 1")
        for name, value in (("flip", flip), ("erase", erase)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a probability, from 0 to 1")
        if operations < 0:
            raise ValueError(f"operations is {operations}; it must be 0 or more")
        self.crop, self.flip, self.operations, self.erase = crop, flip, operations, erase

    def __call__(self, image: Image.Image, rng: Generator) -> Image.Image:
        image = _resized_crop(as_rgb(image), self.crop, rng)
        if rng.random() < self.flip:
            image = ImageOps.mirror(image)
        for _ in range(self.operations):
            operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
            strength = float(np.clip(rng.normal(MAGNITUDE, 0.5), 0, LARGEST)) / LARGEST
            image = operation(image, strength if rng.random() < 0.5 else -strength)
        return _erased(image, rng) if rng.random() < self.erase else image


class EpochDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples that are others in every epoch; `DistillationTrainer` says which epoch it is."""

    def __init__(self) -> None:
        # Shared memory: worker processes that live through several epochs have to see it change.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)


class AugmentedImages(EpochDataset):
    """Images with new noise in every epoch, which depends on the seed, the epoch and the row alone.

    Args:
        rows: by row number: mappings with an image.
        column: of the image.
        noise: makes a noisy copy of one.
        encode: rows to model inputs with labels.
        seed: of the noise.
    """

    def __init__(
        self,
        rows: Any,
        column: str,
        noise: ImageNoise,
        encode: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.rows, self.column, self.noise, self.encode, self.seed = rows, column, noise, encode, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        example = self.rows[int(row)]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, self.epoch, int(row)))))
        return self.encode([example | {self.column: self.noise(example[self.column], rng)}])[0]


def _resized_crop(image: Image.Image, smallest: float, rng: Generator) -> Image.Image:
    width, height = image.size
    area, ratio = rng.uniform(smallest, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w = min(width, max(1, round(width * np.sqrt(area * ratio))))
    h = min(height, max(1, round(height * np.sqrt(area / ratio))))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def _erased(image: Image.Image, rng: Generator) -> Image.Image:
    pixels = np.array(image)
    height, width, _ = pixels.shape
    area, ratio = rng.uniform(0.02, 1 / 3), np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
    h = min(height, max(1, round(height * np.sqrt(area * ratio))))
    w = min(width, max(1, round(width * np.sqrt(area / ratio))))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    pixels[top : top + h, left : left + w] = rng.integers(0, 256, size=(h, w, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f))


# Strengths are from -1 to 1; operations without a direction use their size.
OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, s: ImageOps.autocontrast(image),
    lambda image, s: ImageOps.equalize(image),
    lambda image, s: ImageOps.invert(image),
    lambda image, s: image.rotate(30 * s),
    lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    lambda image, s: ImageOps.solarize(image, 256 - round(256 * abs(s))),
    lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    lambda image, s: _affine(1, 0.3 * s, 0, 0, 1, 0)(image),
    lambda image, s: _affine(1, 0, 0, 0.3 * s, 1, 0)(image),
    lambda image, s: _affine(1, 0, 0.45 * s * image.size[0], 0, 1, 0)(image),
    lambda image, s: _affine(1, 0, 0, 0, 1, 0.45 * s * image.size[1])(image),
)
