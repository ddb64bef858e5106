"""DBKD, decision-based distillation (arXiv 2306.08909): the teacher is a black box that says a class and nothing else.

It is asked about noisy copies of every training example. If its decision is the arg-max of logits z plus independent
standard normal noise, it chooses class c with probability

    P_c(z) = integral phi(u) prod_{j != c} Phi(u + z_c - z_j) du

The z whose P(z) equals the counted shares are the soft targets of an ordinary logits distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import log_ndtr
from torch import Tensor, nn

from opdf.data import ImageNoise, Prepared, TextNoise
from opdf.distill.digests import fingerprint, weights_digest
from opdf.distill.losses import Batch, check_alike, count_labelled, labels_of, precise, soft_loss, task_loss
from opdf.distill.models import config_of, kind_of
from opdf.distill.objective import Losses, Objective
from opdf.distill.options import POSITIVE, number, one_of, whole
from opdf.distill.outputs import BeforeTraining, kept, teacher_logits, with_column
from opdf.mpo import Progress

SOLVERS = ("root", "iterate")
ROUNDS, TOLERANCE = 20, 1e-3
"""When the released code's iteration stops. For counts of zero the cut-off is what keeps its logits finite."""

LEAST = 0.6
"""Of a unanimous teacher's targets, what its class has at least, see `scale_for`."""

NODES = 80
"""Gauss-Hermite nodes; 64 and 80 agree to 1e-8 for logits within 3 of each other."""

Decider = Callable[[list[Any]], Sequence[int]]
"""A teacher: a list of examples to as many class numbers."""

Perturb = Callable[[Any, np.random.Generator], Any]
"""A noisy copy of an example."""


class DecisionDistillation(Objective):
    """task + alpha T^2 KL( softmax(scale z / T) || softmax(student / T) ), with z recovered from decisions.

    z is the training data's column "decision_logits". `prepare_data` makes it, or you do with `decision_logits`. The
    teacher itself is not used in training, so that none need be given.

    Args:
        temperature: T, above 0.
        alpha: weight of the second term, 0 or more.
        scale: factor of the recovered logits, for noise of another size than 1; None takes 1, and more where there are
            so many classes that the targets would become uniform, see `scale_for`.
        copies: how often `prepare_data` asks about each example, itself and noisy copies of it.
        noise: share of a text's words that are deleted, replaced and swapped each. Images have noise of their own.
        solver: how `prepare_data` makes logits of the counts, see `decision_logits`.
        seed: of the noise.
    """

    tasks = ("classification", "image-classification")
    columns = ("decision_logits",)
    needs_teacher = False
    decisions_only = True
    needs_whole_rows = True

    def __init__(
        self,
        temperature: float = 1.0,
        alpha: float = 0.7,
        scale: float | None = None,
        copies: int = 10,
        noise: float = 0.1,
        solver: str = "root",
        seed: int = 0,
    ) -> None:
        self.temperature = number("temperature", temperature, POSITIVE)
        self.alpha = number("alpha", alpha, 0)
        self.scale = None if scale is None else number("scale", scale, POSITIVE)
        self.copies = whole("copies", copies, 1)
        self.noise = number("noise", noise, 0, 1)
        self.solver = one_of("solver", solver, SOLVERS)
        self.seed = whole("seed", seed, 0)

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        config = config_of(student)
        if getattr(config, "problem_type", None) == "regression" or getattr(config, "num_labels", 2) < 2:
            raise ValueError("DBKD is for classification: a regression has no decisions to count")

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        if "decision_logits" not in batch:
            raise ValueError("the batch has no 'decision_logits'; add them to the training data with decision_logits()")
        ours = self.forward(student, batch).logits
        if (kind := kind_of(student, ours, batch.get("labels"))) != "classes":
            raise ValueError(f"DBKD is for classification, and the student's outputs are {kind}")
        items, labelled = num_items.expand(2)
        task = task_loss(student, ours, labels_of(student, batch)) / labelled
        ours = precise(ours)
        theirs = batch["decision_logits"].to(ours)
        check_alike(ours, theirs)
        scale = self.scale or scale_for(ours.shape[-1], self.copies, self.solver)
        soft = soft_loss(ours, scale * theirs, self.temperature) / items
        parts = {"task": task.detach(), "distillation": soft.detach()}
        return Losses(task + self.alpha * soft, parts)

    def count_items(self, student: nn.Module, batch: Batch) -> Tensor:
        return count_labelled(student, batch)

    def prepare_data(self, run: BeforeTraining) -> Any:
        """The training rows with a column "decision_logits"; the counts behind it are kept in the folder."""
        data, teacher = run.data, run.teacher
        raw = data.raw["train"]
        depends = [
            fingerprint(raw), weights_digest(teacher), data.max_length, self.copies, self.noise, self.seed
        ]  # fmt: skip

        def count() -> np.ndarray:
            return count_decisions(
                lambda rows: teacher_logits(teacher, data, data.encode(rows)).argmax(-1).tolist(), raw,
                data.task.num_labels, _row_noise(data, self.noise),
                copies=self.copies, seed=self.seed, progress=run.progress,
            )  # fmt: skip

        counts = kept(run.folder, "decisions", depends, count)
        found = decision_logits(counts, solver=self.solver).astype(np.float32)
        return with_column(data.data["train"], "decision_logits", found)


@cache
def scale_for(classes: int, copies: int, solver: str = "root") -> float:
    """The factor of the logits with which a unanimous teacher's softmax has at least `LEAST` in its class; at least 1.

    For 2, 10, 52, 1,000 and 10,000 classes and ten copies it is 1, 1, 1.05, 1.46 and 1.72. Without it the class would
    have 0.94, 0.79, 0.55, 0.13 and 0.03.

    A gap D between the one class and C - 1 equal others makes it win almost surely once D is above the largest of C - 1
    normal draws, about sqrt(2 ln C). The softmax 1 / (1 + (C - 1) exp(-D)) needs a gap of ln C to say the same, which
    grows faster. So the softmax of logits in units of the noise goes to 1 / C, whatever the teacher's decisions are.

    How large the noise is in logits, decisions do not tell: logits k z and noise k give the same ones. This is the
    smallest k of at least 1 for which 1 / (1 + (C - 1) exp(-k D)) >= LEAST. It grows like sqrt(ln(C) / 2).
    """
    unanimous = np.zeros((1, classes), dtype=np.int64)
    unanimous[0, 0] = copies
    first, *_, last = decision_logits(unanimous, solver=solver)[0]
    return max(1.0, float((np.log(classes - 1) + np.log(LEAST / (1 - LEAST))) / (first - last)))


def _row_noise(data: Prepared, rate: float) -> Perturb:
    """Noise for raw rows: on their image, or on each of their texts."""
    columns = data.task.inputs
    if data.task.is_image:
        change: Perturb = ImageNoise()
    else:
        change = TextNoise([text for column in columns for text in data.raw["train"][column]], rate)
    return lambda row, rng: row | {column: change(row[column], rng) for column in columns}


def count_decisions(
    teacher: Decider,
    examples: Sequence[Any],
    classes: int,
    perturb: Perturb,
    *,
    copies: int = 10,
    seed: int = 0,
    batch: int = 256,
    progress: Progress | None = None,
) -> np.ndarray:
    """How often the teacher chooses each class among noisy copies of an example, the example itself being the first.

    Args:
        teacher: a callable; a model, an ONNX session or an HTTP endpoint behind it.
        examples: whatever teacher and `perturb` take (texts, pairs of texts, images).
        classes: C.
        perturb: makes a noisy copy; its generator depends on seed, example and copy only.
        copies: N.
        seed: of the noise.
        batch: most examples to ask about at a time.
        progress: called with the numbers of examples done and in all, before each time and at the end.

    Returns:
        Counts `[examples, C]`, int64, rows summing to N.

    Raises:
        ValueError: the teacher gave another number of answers, or a class out of range; or `copies` is below 1.
    """
    copies = whole("copies", copies, 1)
    counts = np.zeros((len(examples), classes), dtype=np.int64)
    group = max(1, batch // copies)
    tell = progress or (lambda done, total: None)
    for start in range(0, len(examples), group):
        rows = range(start, min(start + group, len(examples)))
        tell(start, len(examples))
        asked = [
            examples[row] if copy == 0 else perturb(examples[row], np.random.default_rng((seed, row, copy)))
            for row in rows
            for copy in range(copies)
        ]
        answers = np.asarray(teacher(asked))
        if answers.shape != (len(asked),):
            raise ValueError(f"the teacher gave answers of shape {answers.shape} to {len(asked)} examples")
        if not ((answers >= 0) & (answers < classes)).all():
            raise ValueError(f"the teacher chose class {answers.max()} or {answers.min()}; there are {classes}, from 0")
        np.add.at(counts, (np.repeat(list(rows), copies), answers.astype(np.int64)), 1)
    tell(len(examples), len(examples))
    return counts


def decision_logits(counts: np.ndarray, *, solver: str = "root", pseudo_count: float = 0.5) -> np.ndarray:
    """Logits of mean 0 whose noisy arg-max gives these counts.

    They depend on the sorted counts only, so each pattern is solved once; classes with equal counts have equal logits.

    Args:
        counts: `[examples, C]`, from `count_decisions`.
        solver: "root" solves for probabilities (n_c + pseudo_count / C) / (N + pseudo_count), since counts of 0 have no
            finite solution: to 1e-10 of ten classes, 1e-4 of a thousand; "iterate" is the released code:
            z <- z + p - P(z) from z = p, without a pseudo-count, for 20 rounds at most.
        pseudo_count: for "root": decisions, above 0, that are added and shared by all classes. A unanimous teacher
            stays so, however many classes there are.

    Returns:
        `[examples, C]`, float64.

    Raises:
        ValueError: counts have another shape, are negative or all 0 in a row, the solver is unknown, or `pseudo_count`
            is not above 0.
    """
    one_of("solver", solver, SOLVERS)
    number("pseudo_count", pseudo_count, POSITIVE)
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] < 2 or (counts < 0).any() or (counts.sum(1) == 0).any():
        raise ValueError(f"counts of shape {counts.shape}: expected [examples, classes of 2 or more], rows not all 0")
    order = np.argsort(-counts, axis=1, kind="stable")
    patterns, which = np.unique(np.take_along_axis(counts, order, 1), axis=0, return_inverse=True)
    solved = np.stack([_solve(pattern, solver, pseudo_count) for pattern in patterns])
    logits = np.empty(counts.shape)
    np.put_along_axis(logits, order, solved[which.reshape(-1)], axis=1)
    return logits - logits.mean(1, keepdims=True)


def decision_probabilities(logits: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """P(z) of the module's head, `[C]` to `[C]`.

    Args:
        logits: z.
        sizes: how many classes have each of the logits; a probability is that of one such class. None: one each.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    z = np.asarray(logits, dtype=np.float64)
    many = np.ones(len(z)) if sizes is None else np.asarray(sizes)
    beaten = log_ndtr(z[:, None, None] - z[None, :, None] + points)
    # The product over j != c is the product over all j without the factor Phi(u) of j = c.
    log_product = (many[None, :, None] * beaten).sum(1) - log_ndtr(points)
    return (np.exp(log_product) * weights).sum(-1) / np.sqrt(2 * np.pi)


def _solve(counts: np.ndarray, solver: str, pseudo_count: float) -> np.ndarray:
    """Logits `[C]` of one pattern, found for one class of each count."""
    distinct, which, sizes = np.unique(counts, return_inverse=True, return_counts=True)
    if solver == "iterate":
        return _iterate(distinct / counts.sum(), sizes)[which]
    wanted = (distinct + pseudo_count / counts.size) / (counts.sum() + pseudo_count)
    start = np.log(wanted) / 1.7  # the logistic's scale is about 1.7 times the normal's
    found = least_squares(
        lambda z: np.append(decision_probabilities(z, sizes) / wanted - 1, sizes @ z / counts.size),
        start - start.mean(), xtol=1e-15, ftol=1e-15, gtol=1e-15,
    )  # fmt: skip
    return found.x[which]


def _iterate(wanted: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    z = wanted.copy()
    for _ in range(ROUNDS):
        error = wanted - decision_probabilities(z, sizes)
        if sizes @ np.abs(error) <= TOLERANCE:
            break
        z = z + error
    return z
