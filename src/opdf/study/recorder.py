"""Records of a run beside its scores: time, losses, scores during training, and the cores' spectra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from opdf.distill import DistillationTrainer, as_made
from opdf.job import now
from opdf.mpo import contract, decompose_many, singular_values
from opdf.overparam import OverParameterization

CURVE_POINTS, SPECTRUM_POINTS, SPECTRUM_STEPS = 40, 24, 5
HALVINGS = 5
"""Number of scores during training: after 1/2, 1/4, ... of the steps."""


class Recorder(TrainerCallback):
    """Trains and records facts of the training.

    Args:
        trainer: of the run.
        spectra: also record the singular values of the first over-parameterized matrix's cores.
        score: scores a student. If given, the student is scored before and during its training.

    Attributes:
        seconds: of training, without what the recorder itself does.
    """

    def __init__(
        self, trainer: DistillationTrainer, *, spectra: bool, score: Callable[[Any], float] | None = None
    ) -> None:
        self.seconds = 0.0
        self._trainer = trainer
        self._spectra: list[dict[str, Any]] | None = [] if spectra else None
        self._score = score
        self._scores: list[dict[str, float]] = []
        self._begun = 0.0

    def train(self) -> None:
        """Train to the end.

        Raises:
            TrainingDiverged: the training diverged.
        """
        self._look(0)
        self._trainer.add_callback(self)
        self._begun = now()
        try:
            self._trainer.train()
        finally:
            self.seconds += now() - self._begun
        as_made(self._trainer.model)  # scores are those of float32

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, total = state.global_step, state.max_steps
        scored = step in {round(total / 2**k) for k in range(1, HALVINGS + 1)}
        seen = step in {1, *(round(total * k / SPECTRUM_STEPS) for k in range(1, SPECTRUM_STEPS + 1))}
        if not (scored or seen):  # then the device goes on without a pause
            return
        self.seconds += now() - self._begun
        if scored:
            self._look(step)
        if seen:
            self._see_cores(step)
        self._begun = now()

    def facts(self) -> dict[str, Any]:
        """JSON.

        "curve": logged losses by step. "scores": by step the validation score, with the seconds of training until then.
        "spectra": by step one list of singular values a core, largest first, thinned out to 24; a core is seen as
        the matrix [d_left i j, d_right], the last as [d_left, i j]; none where weights are not finite, as in a run
        that diverged. "decompose_seconds" and "contract_seconds", with spectra: of all matrices at the end of training
        (table S2 of arXiv 2411.06448).
        """
        found: dict[str, Any] = {"curve": _curve(self._trainer.state.log_history)}
        if self._scores:
            found["scores"] = self._scores
        over = self._trainer.overparameterization
        if self._spectra is not None and over is not None:
            if self._spectra:
                found["spectra"] = {"matrix": over.matrices[0].name, "steps": self._spectra}
            if finite(over):
                found.update(_times(over))
        return found

    def _look(self, step: int) -> None:
        if self._score is not None:
            with torch.random.fork_rng():  # the training goes on as without this
                score = self._score(self._trainer.model)
            self._scores.append({"step": step, "seconds": round(self.seconds, 3), "validation": round(score, 5)})

    def _see_cores(self, step: int) -> None:
        over = self._trainer.overparameterization
        if self._spectra is not None and over is not None and finite(over):
            self._spectra.append({"step": step, "cores": spectra(over)})


def finite(over: OverParameterization) -> bool:
    """Whether all over-parameterized weights are finite, and with them their cores."""
    return all(bool(over.model.get_parameter(target.name).isfinite().all()) for target in over.matrices)


def spectra(over: OverParameterization) -> list[list[float]]:
    """Thinned singular values of every core of the first matrix."""
    cores = over.cores(over.matrices[0])
    matrices = [core.flatten(0, 2) for core in cores[:-1]] + [cores[-1].flatten(1)]
    return [_thinned(singular_values(matrix.cpu())) for matrix in matrices]


def _times(over: OverParameterization) -> dict[str, float]:
    """Seconds to decompose all matrices, and to multiply them out again."""
    weights = [(t.of(over.model.get_parameter(t.name)), t.shape) for t in over.matrices]
    start = now()
    chains = decompose_many(*zip(*weights, strict=True))
    middle = now()
    for chain in chains:
        contract(chain)
    end = now()
    return {"decompose_seconds": round(middle - start, 3), "contract_seconds": round(end - middle, 3)}


def _curve(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The losses of a Trainer's log, thinned out."""
    losses = [entry for entry in history if "loss" in entry]
    every = -(-len(losses) // CURVE_POINTS) or 1
    return [
        {k: round(v, 5) for k, v in entry.items() if k == "step" or k.endswith("loss")} for entry in losses[::every]
    ]


def _thinned(values: torch.Tensor) -> list[float]:
    places = torch.linspace(0, len(values) - 1, min(len(values), SPECTRUM_POINTS)).round().long()
    return [round(float(v), 5) for v in values[places]]
