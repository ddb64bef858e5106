"""TinyViT's fast distillation (arXiv 2207.10666): the teacher runs once, any number of students learn from disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from opdf.data import ImageNoise, Prepared, count_tokens
from opdf.distill.arguments import planned_passes
from opdf.distill.chunks import Heads, kept_tokens
from opdf.distill.digests import fingerprint, weights_digest
from opdf.distill.ensemble import members, softened
from opdf.distill.losses import Batch, kept_places, labels_of, task_loss, token_labels
from opdf.distill.matching import check_same_outputs
from opdf.distill.methods.logits import TaskAndLogits
from opdf.distill.models import config_of, kind_of
from opdf.distill.objective import Losses, Objective
from opdf.distill.options import flag, whole
from opdf.distill.outputs import BATCH, TEXTS, BeforeTraining, teacher_logits, token_logits
from opdf.distill.store import LogitsStore, Noise, StoredDataset, StoreInfo, noisy
from opdf.mpo import Progress


class SparseLogitsDistillation(TaskAndLogits):
    """(1 - alpha) task + alpha distillation from a `LogitsStore`; no teacher runs.

    Stored probabilities are learned by cross-entropy at temperature 1, of a tagger and a language model at every token.
    For an example the classes that are not stored share the rest evenly, as in the paper. For a token they are one
    class together: an even share of a large vocabulary would make a student's text far less likely than its teacher's.
    Plain logits are learned as by `LogitsDistillation`.

    Args:
        store: folder that `opdf cache-teacher` has written. "" keeps the outputs in the run's own folder.
        top_k: probabilities to store, at most as many as classes; 0 stores plain logits, which a language model has too
            many of.
        epochs: epochs to store, each with new noise; longer training repeats them.
        noise: whether examples are made noisy; images only, texts are stored as they are.
        temperature: for plain logits.
        alpha: weight of the distillation, from 0 to 1; the paper uses no labels.
        seed: of the noise.
    """

    tasks = (*Objective.tasks, "token-classification", "causal-lm")
    needs_whole_rows = True
    columns = ("teacher_logits", "teacher_classes", "teacher_probabilities")
    needs_teacher = False
    several_teachers = True

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
        self.store = store
        self.top_k = whole("top_k", top_k, 0)
        self.epochs = whole("epochs", epochs, 1)
        self.noise = flag("noise", noise)
        self.seed = whole("seed", seed, 0)
        if epochs > 1 and not noise:
            raise ValueError(
                f"epochs is {epochs} without noise: every epoch would hold the same; set noise, or epochs to 1"
            )
        self._heads = Heads()
        if noise:
            self.tasks = ("image-classification",)

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if getattr(config_of(student), "problem_type", None) == "regression" and self.top_k:
            raise ValueError("a regression has no classes; store plain values with top_k 0")
        for one in members(teacher) if teacher is not None else ():
            check_same_outputs(student, one)

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        if "teacher_probabilities" in batch and batch["teacher_probabilities"].dim() == 3:
            return self._of_tokens(student, batch, num_items)
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
        task = task_loss(student, ours, labels_of(student, batch)) / labelled
        parts = {"task": task.detach(), "distillation": soft.detach()}
        return Losses((1 - self.alpha) * task + self.alpha * soft, parts)

    def _of_tokens(self, student: nn.Module, batch: Batch, num_items: Tensor) -> Losses:
        """The same with outputs for every token."""
        divided = self._heads.divide([student], batch, self.forward)
        labels = token_labels(student, batch) if divided is None else divided
        if labels is None:
            raise ValueError("the stored probabilities are of tokens, and the student's outputs are not")
        classes, probabilities = (
            kept_places(student, batch[f"teacher_{name}"], labels) for name in ("classes", "probabilities")
        )

        def soft(logits: Tensor, rows: slice) -> Tensor:
            return loss_of_stored(logits, classes[rows], probabilities[rows])

        if divided is None:
            return self.combine_tokens(student, self.forward(student, batch).logits, soft, labels, batch, num_items)
        ours = kept_tokens(student, batch, labels, self.forward, student)
        return self.combine_tokens(student, ours, soft, labels, batch, num_items)

    @property
    def cache(self) -> Path | None:
        return Path(self.store) if self.store else None

    def write_cache(self, data: Prepared, teacher: nn.Module, progress: Progress | None = None) -> LogitsStore:
        return self.write(Path(self.store, "logits"), data, teacher, progress)

    def check_data(self, data: Prepared, teacher: nn.Module) -> None:
        if self.store:
            LogitsStore(Path(self.store, "logits"), self._info(data, teacher))
        else:
            self.store_info(data, teacher)

    def prepare_data(self, run: BeforeTraining) -> Any:
        """The training rows beside the stored outputs; without a `store` they are stored in the folder first.

        Raises:
            FileNotFoundError, ValueError: the store is none, is of something else, or lacks what the training reads.
        """
        data = run.data
        info = self._info(data, run.teacher)
        if self.store:
            store = LogitsStore(Path(self.store, "logits"), info)
            passes = planned_passes(run.arguments, info.rows) if run.arguments is not None else info.epochs
            store.check_there(ceil(passes))
        else:
            digest = hashlib.sha256(repr(info).encode()).hexdigest()[:16]
            with PartialState().main_process_first():
                store = self.write(run.folder / f"teacher-outputs-{digest}", data, run.teacher, run.progress)
        return StoredDataset(self._examples(data), store, self._encoder(data), self._row_noise(data))

    def write(self, folder: Path, data: Prepared, teacher: nn.Module, progress: Progress | None = None) -> LogitsStore:
        """Run the teacher over what the store in `folder` does not hold yet.

        Args:
            folder: of the store, new or begun.
            data: of the run; its training rows are stored.
            teacher: fine-tuned.
            progress: called with the numbers of outputs done and in all.

        Raises:
            ValueError: the folder holds the outputs of other data, another teacher or other options.
        """
        store = LogitsStore.create(folder, self._info(data, teacher))
        say = self._said_of_tokens if store.info.tokens else self._said_of_examples
        examples, noise, encode = self._examples(data), self._row_noise(data), self._encoder(data)
        total = store.info.rows * store.info.epochs
        done = total - sum(len(rows) for _, _, rows in store.missing())
        for epoch, shard, rows in store.missing():
            seeds, outputs = store.seeds(epoch, rows), []
            size = TEXTS if store.info.tokens else BATCH
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                inputs = [encode(noisy(examples[row], int(seeds[start + k]), noise)) for k, row in enumerate(some)]
                with softened(teacher, self._stored_temperature):
                    outputs += say(store, teacher, data, inputs)
                done += len(some)
                if progress is not None:
                    progress(done, total)
            store.write(epoch, shard, seeds, outputs)
        return store

    def _said_of_examples(
        self, store: LogitsStore, teacher: nn.Module, data: Prepared, inputs: list[dict[str, Any]]
    ) -> list[dict[str, Tensor]]:
        return [store.kept(teacher_logits(teacher, data, inputs))]

    def _said_of_tokens(
        self, store: LogitsStore, teacher: nn.Module, data: Prepared, inputs: list[dict[str, Any]]
    ) -> list[dict[str, Tensor]]:
        """Text by text, because a batch's logits in float32 take several times the memory of the teacher's own."""
        return [
            store.kept(logits) | {"lengths": torch.tensor([len(logits)], dtype=torch.int32)}
            for logits in token_logits(teacher, data, inputs)
        ]

    def store_info(self, data: Prepared, teacher: nn.Module) -> StoreInfo:
        """What a store holds, without the digests of data and teacher, for which all of them must be read.

        Raises:
            ValueError: plain logits are to be stored of every token of a language model.
        """
        kind, rows = data.task.kind, data.data["train"]
        classes = config_of(teacher).vocab_size if kind == "causal-lm" else data.task.num_labels
        if kind == "causal-lm" and not self.top_k:
            raise ValueError(
                f"top_k is 0, which stores plain logits: {classes:,} numbers a token; set top_k (objective.options on "
                "the command line), e.g. to 32"
            )
        return StoreInfo(
            rows=len(rows),
            epochs=self.epochs,
            classes=classes,
            top_k=min(self.top_k, classes),
            data="",
            teacher="",
            seed=self.seed,
            tokens=count_tokens(rows) if kind in ("causal-lm", "token-classification") else 0,
        )

    def _info(self, data: Prepared, teacher: nn.Module) -> StoreInfo:
        """What the store of these data, this teacher and these options holds."""
        examples, noise = self._examples(data), self._row_noise(data)
        with softened(teacher, self._stored_temperature):
            digest = weights_digest(teacher)
        found = fingerprint(examples, noise)
        if self.noise:  # the images are as they were before this has prepared them for the teacher
            made = {k: v for k, v in data.processor.to_dict().items() if k != "image_processor_type"}  # by packages
            said = json.dumps(made, sort_keys=True, default=str)
            found = hashlib.sha256(f"{found} {said}".encode()).hexdigest()[:32]
        return replace(self.store_info(data, teacher), data=found, teacher=digest)

    @property
    def _stored_temperature(self) -> float:
        """At which several teachers are averaged: probabilities are learned at 1."""
        return 1.0 if self.top_k else self.temperature

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


def loss_of_stored(logits: Tensor, classes: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy of the stored classes and of all others as one class, summed over tokens.

    It says nothing of how the others share their probability, so that a student that agrees with its teacher has no
    gradient.

    Args:
        logits: of the student `[tokens, count]`.
        classes, probabilities: stored of the teacher `[tokens, K]`; rounding can take their sum above 1, see
            `soft_labels`.
    """
    stored, classes = probabilities.float(), classes.long()
    total, kept = logits.logsumexp(-1, keepdim=True), stored.sum(-1, keepdim=True)
    if classes.shape[-1] == logits.shape[-1]:
        return -(stored / kept * (logits.gather(-1, classes) - total)).sum()
    stored = stored / kept.clamp(min=1)
    others = logits.scatter(-1, classes, -torch.inf).logsumexp(-1, keepdim=True)
    rest = 1 - stored.sum(-1, keepdim=True)
    return -(stored * (logits.gather(-1, classes) - total)).sum() - (rest * (others - total)).sum()
