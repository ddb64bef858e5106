"""TinyViT's fast distillation (arXiv 2207.10666): the teacher runs once, any number of students learn from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from opdf.data import ImageNoise, Prepared
from opdf.distill.losses import Batch, labels_of, task_loss
from opdf.distill.methods.logits import TaskAndLogits
from opdf.distill.models import config_of, kind_of
from opdf.distill.objective import Losses
from opdf.distill.outputs import BATCH, Noise, fingerprint, noisy, teacher_logits, weights_digest
from opdf.distill.store import LogitsStore, StoredDataset, StoreInfo
from opdf.mpo import Progress

if TYPE_CHECKING:
    from transformers import Trainer


class SparseLogitsDistillation(TaskAndLogits):
    """(1 - alpha) task + alpha distillation from a `LogitsStore`; no teacher runs.

    Probabilities of a store with noise: cross-entropy against the stored ones and an even share of the rest for all
    other classes, at temperature 1. Plain logits: as `LogitsDistillation`.

    Args:
        store: folder that `opdf cache-teacher` has written. "" keeps the outputs in the run's own folder.
        top_k: probabilities to store, at most as many as classes; 0 stores plain logits.
        epochs: epochs to store, each with new noise; more epochs of training go round them again.
        noise: whether examples are made noisy; images only, texts are stored as they are.
        temperature: for plain logits.
        alpha: weight of the distillation, from 0 to 1; the paper uses no labels.
        seed: of the noise.
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
        seed: int = 0,
    ) -> None:
        super().__init__(temperature, alpha)
        if top_k < 0 or epochs < 1:
            raise ValueError(f"top_k is {top_k} and epochs {epochs}; top_k is 0 or more, epochs 1 or more")
        if epochs > 1 and not noise:
            raise ValueError(
                f"epochs is {epochs} without noise: every epoch would hold the same; set noise, or epochs=1"
            )
        self.store, self.top_k, self.epochs, self.noise, self.seed = store, top_k, epochs, noise, seed
        if noise:
            self.tasks = ("image-classification",)

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if getattr(config_of(student), "problem_type", None) == "regression" and self.top_k:
            raise ValueError("a regression has no classes; store plain values with top_k=0")

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        ours = self.forward(student, batch).logits
        if "teacher_logits" in batch:
            return self.combine(student, ours, batch["teacher_logits"].to(ours.device), batch, num_items)
        if "teacher_probabilities" not in batch:
            raise ValueError("the batch has no stored teacher outputs; train on a StoredDataset")
        if (kind := kind_of(student, ours, batch.get("labels"))) != "classes":
            raise ValueError(f"the student's outputs are {kind}; stored probabilities are of classes")
        target = soft_labels(batch["teacher_classes"], batch["teacher_probabilities"], ours.shape[-1])
        items, labelled = num_items.expand(2)
        soft = -(target * ours.float().log_softmax(-1)).sum() / items
        if self.alpha == 1:
            return Losses(soft, {"distillation": soft.detach()})
        task = task_loss(student, ours, labels_of(batch)) / labelled
        parts = {"task": task.detach(), "distillation": soft.detach()}
        return Losses((1 - self.alpha) * task + self.alpha * soft, parts)

    def on_epoch_begin(self, trainer: Trainer) -> None:
        if isinstance(trainer.train_dataset, StoredDataset):
            trainer.train_dataset.set_epoch(int(trainer.state.epoch or 0))

    @property
    def cache(self) -> Path | None:
        return Path(self.store) if self.store else None

    def write_cache(self, data: Prepared, teacher: nn.Module, progress: Progress | None = None) -> LogitsStore:
        return self.write(Path(self.store, "logits"), data, teacher, progress)

    def check_data(self, data: Prepared, teacher: nn.Module) -> None:
        if self.store:
            LogitsStore(Path(self.store, "logits"), self._info(data, teacher))

    def prepare_data(
        self,
        data: Prepared,
        teacher: nn.Module,
        folder: Path,
        *,
        shared: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """The training rows beside the stored outputs; without a `store` they are stored in `folder` first."""
        info = self._info(data, teacher)
        if self.store:
            store = LogitsStore(Path(self.store, "logits"), info)
        else:
            digest = hashlib.sha256(repr(info).encode()).hexdigest()[:16]
            with PartialState().main_process_first():
                store = self.write(folder / f"teacher-outputs-{digest}", data, teacher, progress)
        return StoredDataset(self._examples(data), store, self._encoder(data), self._row_noise(data))

    def write(self, folder: Path, data: Prepared, teacher: nn.Module, progress: Progress | None = None) -> LogitsStore:
        """Run the teacher over what the store in `folder` does not hold yet.

        Args:
            folder: of the store, new or to be gone on with.
            data: of the run; its training rows are stored.
            teacher: fine-tuned.
            progress: called with the numbers of outputs done and in all.

        Raises:
            ValueError: the folder holds the outputs of other data, another teacher or other options.
        """
        store = LogitsStore.create(folder, self._info(data, teacher))
        examples, noise, encode = self._examples(data), self._row_noise(data), self._encoder(data)
        total = store.info.rows * store.info.epochs
        done = total - sum(len(rows) for _, _, rows in store.missing())
        for epoch, shard, rows in store.missing():
            seeds, logits = store.seeds(epoch, rows), []
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                inputs = [encode(noisy(examples[row], int(seeds[start + k]), noise)) for k, row in enumerate(some)]
                logits.append(teacher_logits(teacher, data, inputs))
                done += len(some)
                if progress is not None:
                    progress(done, total)
            store.write(epoch, shard, seeds, torch.cat(logits))
        return store

    def _info(self, data: Prepared, teacher: nn.Module) -> StoreInfo:
        """What the store of these data, this teacher and these options holds."""
        classes = data.task.num_labels
        return StoreInfo(
            rows=len(data.data["train"]),
            epochs=self.epochs,
            classes=classes,
            top_k=min(self.top_k, classes),
            data=fingerprint(self._examples(data), self._row_noise(data)),
            teacher=weights_digest(teacher),
            seed=self.seed,
        )

    def _examples(self, data: Prepared) -> Any:
        return data.raw["train"] if self.noise else data.data["train"]

    def _encoder(self, data: Prepared) -> Callable[[Any], dict[str, Any]]:
        return (lambda row: data.encode([row])[0]) if self.noise else dict

    def _row_noise(self, data: Prepared) -> Noise | None:
        if not self.noise:
            return None
        image, noise = data.task.inputs[0], ImageNoise()
        return lambda row, rng: row | {image: noise(row[image], rng)}


def soft_labels(classes: Tensor, probabilities: Tensor, count: int) -> Tensor:
    """`[batch, K]` stored classes and probabilities to `[batch, count]` that sum to 1, the rest spread evenly.

    Rounding to float16 can take the stored sum above 1; the rest is then 0 and the sum is scaled to 1.
    """
    stored = probabilities.float()
    kept = stored.sum(-1, keepdim=True)
    rest = (1 - kept).clamp(min=0) / max(1, count - classes.shape[-1])
    labels = rest.expand(-1, count).scatter(-1, classes.long(), stored)
    return labels / labels.sum(-1, keepdim=True)
