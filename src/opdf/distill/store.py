"""A folder of teacher outputs, from which any number of students learn (TinyViT: arXiv 2207.10666).

A store holds, per epoch and example, the seed of the example's noise and the teacher's K largest probabilities; a
student makes the same noisy example from the same seed. Without noise there is one epoch. With K = 0 plain logits are
stored in place of classes and probabilities.

    store/meta.json                          what was stored of which data; a mismatch on reading is refused
    store/epoch-000/shard-00000.safetensors  seeds [n] int32, classes [n, K] int16 (int32), probabilities [n, K] float16

If a teacher has outputs for every token, the rows of `classes` and `probabilities` are tokens, one example after the
other, and `lengths [n] int32` says how many each example has.

A shard is complete or absent, and carries a checksum of its tensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opdf.data import EpochDataset
from opdf.distill.checkpoint import writing
from opdf.files import is_empty, replacing

FORMAT = 1
SHARD_ROWS = 4096
"""Examples of a shard."""

SHARD_TOKENS = 2**18
"""About how many tokens a shard holds, if outputs are of tokens."""

Noise = Callable[[Any, np.random.Generator], Any]
"""A noisy copy of an example."""


@dataclass(frozen=True)
class StoreInfo:
    """What a store was made of.

    Attributes:
        rows: examples.
        epochs: how often each was stored, with new noise every time; 1 without noise.
        classes: outputs of the teacher.
        top_k: probabilities kept; 0 stores plain logits.
        data: fingerprint of the examples, noise included.
        teacher: whatever names the teacher.
        seed: of the noise.
        tokens: of all examples, if outputs are of tokens; 0 if they are of examples.

    Raises:
        ValueError: a number is below 1, or `top_k` not from 0 to the number of classes.
    """

    rows: int
    epochs: int
    classes: int
    top_k: int
    data: str
    teacher: str
    seed: int = 0
    tokens: int = 0
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("rows", "epochs", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a store needs at least 1")
        if not 0 <= self.top_k <= self.classes:
            raise ValueError(f"top_k is {self.top_k}; keep 1 to {self.classes} classes, or 0 for plain logits")

    @property
    def shards(self) -> int:
        """Of one epoch."""
        return -(-self.rows // self.shard_rows)

    @property
    def shard_rows(self) -> int:
        """Examples of a shard."""
        return max(1, min(SHARD_ROWS, SHARD_TOKENS * self.rows // self.tokens)) if self.tokens else SHARD_ROWS

    @property
    def nbytes(self) -> int:
        """Bytes of a whole store, but for its files' headers."""
        entry = (4 if self.classes > 2**15 else 2) + 2  # a class and its probability
        output = self.top_k * entry if self.top_k else 4 * self.classes
        return self.epochs * ((self.tokens or self.rows) * output + self.rows * (8 if self.tokens else 4))


class LogitsStore:
    """A folder of teacher outputs.

    Args:
        folder: of the store.
        info: what it must hold; None takes what is there.

    Raises:
        FileNotFoundError: there is no store in the folder.
        ValueError: it holds something else, which the message names, or its meta.json is damaged.
    """

    def __init__(self, folder: str | Path, info: StoreInfo | None = None) -> None:
        self.folder = Path(folder)
        meta = self.folder / "meta.json"
        if not meta.is_file():
            raise FileNotFoundError(f"{folder} holds no teacher's outputs; write them with opdf cache-teacher")
        self.info = _read_info(meta)
        if info is not None:
            _check_same(self.folder, self.info, info)

    @classmethod
    def create(cls, folder: str | Path, info: StoreInfo) -> LogitsStore:
        """A new store, or one of the same kind to go on with.

        Raises:
            FileExistsError: the folder holds something else.
            ValueError: it holds the outputs of something else; the message names what differs.
        """
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if not is_empty(folder, "meta.json"):
                raise FileExistsError(f"{folder} is not empty and holds no teacher's outputs; choose another folder")
            with replacing(folder / "meta.json") as scratch:
                scratch.write_text(json.dumps(dataclasses.asdict(info), indent=1))
        return cls(folder, info)

    def missing(self) -> Iterator[tuple[int, int, range]]:
        """Epoch, shard number and rows of every shard that is not there yet."""
        for epoch in range(self.info.epochs):
            for shard in range(self.info.shards):
                if not self._path(epoch, shard).is_file():
                    start = shard * self.info.shard_rows
                    yield epoch, shard, range(start, min(start + self.info.shard_rows, self.info.rows))

    def seeds(self, epoch: int, rows: range) -> np.ndarray:
        """The noise seeds of some examples in an epoch, int32; they depend on nothing else."""
        wide = [np.random.SeedSequence((self.info.seed, epoch, row)).generate_state(1)[0] >> 1 for row in rows]
        return np.asarray(wide, dtype=np.int32)

    def write(self, epoch: int, shard: int, seeds: np.ndarray, outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Store one shard.

        Args:
            epoch, shard, seeds: which, and the seeds of its examples.
            outputs: what `kept` gave, one part of the examples after the other; with "lengths" `[examples]` int32 where
                they are of tokens.
        """
        joined = {name: torch.cat([some[name] for some in outputs]).cpu() for name in outputs[0]}
        tensors = {"seeds": torch.from_numpy(seeds), **joined}
        path = self._path(epoch, shard)
        path.parent.mkdir(exist_ok=True)
        with writing(str(path)), replacing(path) as scratch:
            save_file(tensors, scratch, {"sha256": _checksum(tensors)})

    def kept(self, logits: Tensor) -> dict[str, Tensor]:
        """What is stored of a teacher's logits `[examples or tokens, classes]`."""
        if not self.info.top_k:
            return {"logits": logits.float().contiguous()}
        # In float32 before the softmax: in half precision it loses the tail.
        probabilities, classes = logits.float().softmax(-1).topk(self.info.top_k, dim=-1)
        kind = torch.int16 if self.info.classes <= 2**15 else torch.int32
        return {"classes": classes.to(kind), "probabilities": probabilities.half()}

    def read(self, epoch: int, row: int) -> dict[str, Tensor]:
        """What is stored of one example: "seed" and either "logits", or "classes" and "probabilities", of each token.

        Raises:
            FileNotFoundError, ValueError: the shard is missing, truncated or altered; the message names it.
        """
        shard, inside = divmod(row, self.info.shard_rows)
        path = self._path(epoch % self.info.epochs, shard)
        tensors = _verified(path, path.stat().st_mtime_ns if path.is_file() else 0)
        if "ends" not in tensors:
            return {name: tensor[inside] for name, tensor in tensors.items()}
        end, start = (int(tensors["ends"][k]) if k >= 0 else 0 for k in (inside, inside - 1))
        found = {name: tensor[start:end] for name, tensor in tensors.items() if name not in ("seed", "ends")}
        return {"seed": tensors["seed"][inside], **found}

    def check_there(self, epochs: int) -> None:
        """Refuse to begin with a store that `read` would find incomplete later.

        Raises:
            FileNotFoundError: a shard of its first `epochs` is missing; the message names it.
        """
        for epoch, shard, _ in self.missing():
            if epoch < epochs:
                raise FileNotFoundError(_missing(self._path(epoch, shard)))

    def verify(self) -> None:
        """Read every shard.

        Raises:
            FileNotFoundError, ValueError: as `read`.
        """
        for epoch in range(self.info.epochs):
            for shard in range(self.info.shards):
                _load_shard(self._path(epoch, shard))

    @property
    def nbytes(self) -> int:
        """Size on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _path(self, epoch: int, shard: int) -> Path:
        return self.folder / f"epoch-{epoch:03d}" / f"shard-{shard:05d}.safetensors"


class StoredDataset(EpochDataset):
    """Examples as the student takes them, with the teacher's outputs for the same examples.

    Args:
        examples: by row number: what `noise` and `encode` take.
        store: the teacher's outputs.
        encode: an example to model inputs with labels.
        noise: as when the store was written; None without.

    Raises:
        ValueError: there are other examples than the store is of: rows were left out, say, and those after them would
            get the outputs of others.
    """

    def __init__(
        self, examples: Any, store: LogitsStore, encode: Callable[[Any], dict[str, Any]], noise: Noise | None = None
    ) -> None:
        super().__init__()
        if len(examples) != store.info.rows:
            raise ValueError(
                f"there are {len(examples)} examples and {store.folder} holds the outputs of {store.info.rows}; give "
                "those that it was written for, in their order"
            )
        self.examples, self.store, self.encode, self.noise = examples, store, encode, noise

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        stored = self.store.read(self.epoch, int(row))
        example = noisy(self.examples[row], int(stored.pop("seed")), self.noise)
        said = {name: value if value.dim() > 1 else value.tolist() for name, value in stored.items()}
        return self.encode(example) | {f"teacher_{name}": value for name, value in said.items()}


def noisy(example: Any, seed: int, noise: Noise | None) -> Any:
    """The example that a seed makes of another."""
    return example if noise is None else noise(example, np.random.Generator(np.random.PCG64(seed)))


def _read_info(meta: Path) -> StoreInfo:
    try:
        content = json.loads(meta.read_text())
        if content.get("format") == FORMAT:
            return StoreInfo(**content)
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{meta} is damaged ({error}); write the store again") from error
    raise ValueError(f"{meta} has format {content.get('format')}; this version reads {FORMAT}")


def _check_same(folder: Path, found: StoreInfo, wanted: StoreInfo) -> None:
    for item in dataclasses.fields(StoreInfo):
        there, here = getattr(found, item.name), getattr(wanted, item.name)
        if there != here:
            raise ValueError(
                f"the store {folder} has {item.name} {there!r}, this run {here!r}; use another folder, or the same "
                "data, teacher and options that it was written with"
            )


@lru_cache(maxsize=64)
def _verified(path: Path, written: int) -> dict[str, Tensor]:
    """A shard, read once until its file is `written` again."""
    return _load_shard(path)


def _missing(path: Path) -> str:
    return f"{path} is missing; run opdf cache-teacher again, which goes on where it stopped"


def _load_shard(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            wanted = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}); delete it and run opdf cache-teacher again"
        ) from error
    if _checksum(tensors) != wanted:
        raise ValueError(f"{path} was altered: its checksum differs; delete it and run opdf cache-teacher again")
    tensors["seed"] = tensors.pop("seeds")
    if "lengths" in tensors:
        tensors["ends"] = tensors.pop("lengths").cumsum(0)
    return tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
