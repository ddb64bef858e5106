"""TinyViT's fast distillation (arXiv 2207.10666): the teacher runs once, any number of students learn from disk.

A store holds, per epoch and example, the seed of the example's noise and the teacher's K largest probabilities; a
student makes the same noisy example from the same seed. Without noise there is one epoch, and plain logits are stored.

    store/meta.json                          what was stored of which data; a mismatch on reading is refused
    store/epoch-000/shard-00000.safetensors  seeds [n] int32, classes [n, K] int16 (int32), probabilities [n, K] float16

A shard is complete or absent, and carries a checksum of its tensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from opdf.distill.logits import LogitsDistillation, kind_of, task_loss
from opdf.distill.objective import Batch, Losses, config_of, forward, labels_of
from opdf.files import replacing

if TYPE_CHECKING:
    from opdf.distill.trainer import DistillationTrainer

FORMAT = 1
SHARD_ROWS = 4096

Noise = Callable[[Any, np.random.Generator], Any]


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
    """

    rows: int
    epochs: int
    classes: int
    top_k: int
    data: str
    teacher: str
    seed: int = 0
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
        return -(-self.rows // SHARD_ROWS)


class LogitsStore:
    """A folder of teacher outputs.

    Args:
        folder: of the store.
        info: what it must hold; None takes what is there.

    Raises:
        FileNotFoundError: there is no store in the folder.
        ValueError: it holds something else; the message names what differs.
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
        """A new store, or one of the same kind to go on with."""
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise FileExistsError(f"{folder} is not empty and holds no teacher's outputs; choose another folder")
            with replacing(folder / "meta.json") as scratch:
                scratch.write_text(json.dumps(dataclasses.asdict(info), indent=1))
        return cls(folder, info)

    def missing(self) -> Iterator[tuple[int, int, range]]:
        """Epoch, shard number and rows of every shard that is not there yet."""
        for epoch in range(self.info.epochs):
            for shard in range(self.info.shards):
                if not self._path(epoch, shard).is_file():
                    start = shard * SHARD_ROWS
                    yield epoch, shard, range(start, min(start + SHARD_ROWS, self.info.rows))

    def seeds(self, epoch: int, rows: range) -> np.ndarray:
        """The noise seeds of some examples in an epoch, int32; they depend on nothing else."""
        wide = [np.random.SeedSequence((self.info.seed, epoch, row)).generate_state(1)[0] >> 1 for row in rows]
        return np.asarray(wide, dtype=np.int32)

    def write(self, epoch: int, shard: int, seeds: np.ndarray, logits: Tensor) -> None:
        """Store one shard of the teacher's logits `[rows, classes]`."""
        tensors = {"seeds": torch.from_numpy(seeds), **self._kept(logits.detach().cpu())}
        path = self._path(epoch, shard)
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as scratch:
            save_file(tensors, scratch, {"sha256": _checksum(tensors)})

    def _kept(self, logits: Tensor) -> dict[str, Tensor]:
        if not self.info.top_k:
            return {"logits": logits.float().contiguous()}
        # In float32 before the softmax: in half precision it loses the tail.
        probabilities, classes = logits.float().softmax(-1).topk(self.info.top_k, dim=-1)
        kind = torch.int16 if self.info.classes <= 2**15 else torch.int32
        return {"classes": classes.to(kind), "probabilities": probabilities.half()}

    def read(self, epoch: int, row: int) -> dict[str, Tensor]:
        """What is stored of one example: "seed" and either "logits", or "classes" and "probabilities".

        Raises:
            FileNotFoundError, ValueError: the shard is missing, truncated or altered; the message names it.
        """
        shard, inside = divmod(row, SHARD_ROWS)
        path = self._path(epoch % self.info.epochs, shard)
        tensors = _verified(path, path.stat().st_mtime_ns if path.is_file() else 0)
        return {name: tensor[inside] for name, tensor in tensors.items()}

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


class StoredDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples as the student takes them, beside what the teacher said about just these.

    Args:
        examples: by row number: what `noise` and `encode` take.
        store: the teacher's outputs.
        encode: an example to model inputs with labels.
        noise: as when the store was written; None without.
    """

    def __init__(
        self, examples: Any, store: LogitsStore, encode: Callable[[Any], dict[str, Any]], noise: Noise | None = None
    ) -> None:
        self.examples, self.store, self.encode, self.noise = examples, store, encode, noise
        # Shared memory: worker processes that live through several epochs have to see it change.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        stored = self.store.read(int(self._epoch), int(row))
        example = noisy(self.examples[row], int(stored.pop("seed")), self.noise)
        return self.encode(example) | {f"teacher_{name}": value.tolist() for name, value in stored.items()}


class SparseLogitsDistillation(LogitsDistillation):
    """(1 - alpha) task + alpha distillation from a `LogitsStore`; no teacher runs.

    Probabilities of a store with noise: cross-entropy against the stored ones and an even share of the rest for all
    other classes, at temperature 1. Plain logits: as `LogitsDistillation`.

    Args:
        store: folder of the teacher's outputs, for the command line.
        top_k: probabilities to store, at most as many as classes; 0 stores plain logits.
        epochs: epochs to store, each with new noise; more epochs of training go round them again.
        noise: whether examples are made noisy (images only).
        temperature: for plain logits.
        alpha: weight of the distillation, from 0 to 1; the paper uses no labels.
    """

    columns = ("teacher_logits", "teacher_classes", "teacher_probabilities")

    def __init__(
        self,
        store: str = "",
        top_k: int = 0,
        epochs: int = 1,
        noise: bool = False,
        temperature: float = 1.0,
        alpha: float = 1.0,
    ) -> None:
        super().__init__(temperature, alpha)
        if top_k < 0 or epochs < 1:
            raise ValueError(f"top_k is {top_k} and epochs {epochs}; top_k is 0 or more, epochs 1 or more")
        if epochs > 1 and not noise:
            raise ValueError(
                f"epochs is {epochs} without noise: every epoch would hold the same; set noise, or epochs=1"
            )
        self.store, self.top_k, self.stored_epochs, self.noise = store, top_k, epochs, noise

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if getattr(config_of(student), "problem_type", None) == "regression" and self.top_k:
            raise ValueError("a regression has no classes; store plain values with top_k=0")

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        if "teacher_logits" in batch:
            return super().losses(student, None, batch, num_items)
        ours = forward(student, batch).logits
        if "teacher_probabilities" not in batch:
            raise ValueError("the batch has no stored teacher outputs; train on a StoredDataset")
        if (kind := kind_of(student, ours, batch.get("labels"))) != "classes":
            raise ValueError(f"the student's outputs are {kind}; stored probabilities are of classes")
        target = soft_labels(batch["teacher_classes"], batch["teacher_probabilities"], ours.shape[-1])
        soft = -(target * ours.float().log_softmax(-1)).sum() / num_items
        if self.alpha == 1:
            return Losses(soft, {"distillation": soft.detach()})
        task = task_loss(student, ours, labels_of(batch)) / num_items
        parts = {"task": task.detach(), "distillation": soft.detach()}
        return Losses((1 - self.alpha) * task + self.alpha * soft, parts)

    def on_epoch_begin(self, trainer: DistillationTrainer) -> None:
        if isinstance(trainer.train_dataset, StoredDataset):
            trainer.train_dataset.set_epoch(int(trainer.state.epoch or 0))


def soft_labels(classes: Tensor, probabilities: Tensor, count: int) -> Tensor:
    """`[batch, K]` stored classes and probabilities to `[batch, count]` that sum to 1, the rest spread evenly.

    Rounding to float16 can take the stored sum above 1; the rest is then 0 and the sum is scaled to 1.
    """
    stored = probabilities.float()
    kept = stored.sum(-1, keepdim=True)
    rest = (1 - kept).clamp(min=0) / max(1, count - classes.shape[-1])
    labels = rest.expand(-1, count).scatter(-1, classes.long(), stored)
    return labels / labels.sum(-1, keepdim=True)


def noisy(example: Any, seed: int, noise: Noise | None) -> Any:
    """The example that a seed makes of another."""
    return example if noise is None else noise(example, np.random.Generator(np.random.PCG64(seed)))


def fingerprint(examples: Any, noise: Noise | None = None) -> str:
    """A digest of some examples, made noisy with known seeds: it changes with the data, the noise and its libraries.

    Args:
        examples: by row number: mappings, images, texts or numbers.
        noise: as for `StoredDataset`.
    """
    digest = hashlib.sha256(f"{len(examples)}".encode())
    for row in np.linspace(0, len(examples) - 1, num=min(len(examples), 32), dtype=int):
        digest.update(_content(noisy(examples[int(row)], int(row), noise)))
    return digest.hexdigest()[:32]


def weights_digest(model: nn.Module) -> str:
    """A digest of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _content(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"".join(key.encode() + _content(value[key]) for key in sorted(value))
    if hasattr(value, "tobytes"):  # an image or an array
        return repr(getattr(value, "size", "")).encode() + value.tobytes()
    return repr(value.tolist() if isinstance(value, Tensor) else value).encode()


def _read_info(meta: Path) -> StoreInfo:
    try:
        content = json.loads(meta.read_text())
        if content.get("format") != FORMAT:
            raise ValueError(f"{meta} has format {content.get('format')}; this version reads {FORMAT}")
        return StoreInfo(**content)
    except (TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{meta} is damaged ({error}); write the store again") from error


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
    """A shard, read once for as long as it stays as it was `written`."""
    return _load_shard(path)


def _load_shard(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run opdf cache-teacher again, which goes on where it stopped")
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
    return tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
