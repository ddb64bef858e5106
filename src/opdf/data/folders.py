"""Folders of images."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import PIL.Image
import pyarrow as pa
from datasets import Dataset, DatasetDict, Image

from opdf.data.read import READERS, kept, read_file, rows_of

PICTURES = {end for end, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folders that are splits, not classes, if one of them is called train; in capitals too."""

METADATA = ("metadata.csv", "metadata.jsonl")
"""Files in a folder of images with a column `file_name`, as datasets has them."""


def read_folder(folder: Path) -> DatasetDict:
    """Images with the name of their subfolder as label, in one split, or in a split for each of its folders.

    Images may lie deeper in a class's folder. A folder without subfolders has no labels, or those of `metadata.csv` or
    `metadata.jsonl`, whose column `file_name` says which image a row is about.

    Raises:
        ValueError: there are no images, or some lie beside the folders of the classes or splits.
    """
    _check_folder(folder)
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    splits = {child: SPLITS[child.name.lower()] for child in inside if child.name.lower() in SPLITS}
    others = [child.name for child in inside if child not in splits and _has_images(child)]
    found = sorted({*splits.values()})
    if "train" not in found or (others and len(found) < 2):
        return DatasetDict(train=_images(folder))
    names = ", ".join(child.name for child in splits)
    if others:
        raise ValueError(
            f"folder {folder} has the splits {names}, and beside them {', '.join(others)}; move what is no split away"
        )
    if len(found) < len(splits):
        raise ValueError(f"folder {folder} has {names}; keep one folder for each of {', '.join(found)}")
    parts = {part: _images(child) for child, part in splits.items()}
    return DatasetDict({name: parts[name] for name in ("train", "validation", "test") if name in parts})


def _has_images(folder: Path) -> bool:
    shown = (p for p in below(folder) if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return any(path.suffix.lower() in PICTURES for path in shown)


def _check_folder(folder: Path) -> None:
    """Refuse a folder of other data than images, and say what to do with them."""
    refuse_saved(folder)
    names = {path.name for path in folder.iterdir()}
    tables = tables_of(folder.iterdir())
    if tables and not any((folder / name).is_dir() or Path(name).suffix.lower() in PICTURES for name in names):
        raise ValueError(
            f"folder {folder} has no images; of its files name one as the data, such as {tables[0]}, and "
            "others as its validation and test"
        )


def refuse_saved(folder: Path) -> None:
    """Refuse a folder that datasets' save_to_disk has written.

    Raises:
        ValueError: it is one.
    """
    names = {path.name for path in folder.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        raise ValueError(
            f"folder {folder} was written by save_to_disk; write each split into a file, with "
            "load_from_disk(...).to_parquet(...), and name the files"
        )


def tables_of(paths: Iterable[Path]) -> list[Path]:
    """The data files among some paths, those of training first."""
    found = [path for path in paths if path.suffix.lower() in READERS and path.name not in METADATA]
    return sorted(found, key=lambda path: ("train" not in path.name.lower(), path))


def _images(folder: Path) -> Dataset:
    table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if table is not None:
        return _described_images(folder, table)
    beside = pictures(folder, folder.iterdir())
    inside = {child.name: pictures(child, below(child)) for child in sorted(folder.iterdir()) if child.is_dir()}
    classes = {name: paths for name, paths in inside.items() if paths and not name.startswith(".")}
    if beside and classes:
        raise ValueError(
            f"folder {folder} has {len(beside)} images, such as {beside[0].name}, beside its subfolders; move them "
            "into the subfolder of their class"
        )
    paths = beside or [path for some in classes.values() for path in some]
    if not paths:
        tables = tables_of(below(folder))
        other = f", or the name of a file, such as {tables[0]}" if tables else ""
        raise ValueError(f"folder {folder} has no images; expected one subfolder of them for each class{other}")
    columns = {"image": [str(path) for path in paths]}
    if classes:
        columns["label"] = [name for name, some in classes.items() for _ in some]
    # The labels belong to the key: the same images have others where a folder above them is named.
    return _kept_images(paths, lambda: Dataset.from_dict(columns).cast_column("image", Image()), columns.get("label"))


def _described_images(folder: Path, table: Path) -> Dataset:
    rows = read_file(table)
    if "file_name" not in rows.column_names:
        raise ValueError(f"{table} has no column 'file_name'; it says which image a row is about")
    paths = [folder / str(name) for name in rows["file_name"]]
    for k, path in enumerate(paths):
        if not path.is_file():
            raise ValueError(f"{table} names {path.name} in {rows_of(table, [k])}, and {path} does not exist")
    named = {os.path.abspath(path) for path in paths}
    unnamed = [path for path in pictures(folder, below(folder)) if str(path) not in named]
    if unnamed:
        warnings.warn(f"left out, as {table} does not name them: {len(unnamed)} images ({unnamed[0]})", stacklevel=2)
    images = pa.chunked_array([pa.array([str(path) for path in paths])])
    with_images = rows.data.table.drop_columns("file_name").append_column("image", images)
    return _kept_images([table, *paths], lambda: Dataset(with_images).cast_column("image", Image()))


def below(folder: Path) -> Iterator[Path]:
    """All that a folder holds at any depth, behind links too. What may not be looked into is left out.

    A folder that several links lead to is looked into once, so that a link back to a folder above has an end.
    """
    waiting, seen = [folder], set[Path]()
    while waiting:
        place = waiting.pop()
        if (real := place.resolve()) in seen:
            continue
        seen.add(real)
        with suppress(PermissionError):
            for path in sorted(place.iterdir()):
                yield path
                if path.is_dir():
                    waiting.append(path)


def pictures(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Absolute paths of the images among some paths in a folder, none of them hidden, in the order of their names.

    Files that are no images are left out with a warning.

    Raises:
        ValueError: one is a link that leads nowhere.
    """
    files = (path for path in paths if not path.is_dir())
    shown = sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    found = [path for path in shown if path.suffix.lower() in PICTURES]
    lost = next((path for path in found if not path.exists()), None)
    if lost is not None:
        raise ValueError(f"{lost} is a link that leads nowhere; bring back the image, or remove the link")
    others = [path for path in shown if path.suffix.lower() not in PICTURES and path.name not in METADATA]
    if others:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in others}))
        count = f"{len(others)} file{'s' if len(others) > 1 else ''} ({kinds})"
        warnings.warn(f"left out of {folder}, as no images that can be read: {count}", stacklevel=2)
    return [Path(os.path.abspath(path)) for path in found]


def _kept_images(paths: Sequence[Path], make: Callable[[], Dataset], labels: Sequence[str] | None = None) -> Dataset:
    """A table of images, kept as long as none of the files and labels changes."""
    states = [(str(path), (state := path.stat()).st_mtime_ns, state.st_size) for path in paths]
    return kept(hashlib.sha256(repr((states, labels)).encode()).hexdigest(), make)
