"""What is kept of a run beside its scores: the curve of its losses, and how the cores' spectra move."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback

from opdf.distill import DistillationTrainer
from opdf.mpo import contract, decompose_many, singular_values
from opdf.overparam import OverParameterization

CURVE_POINTS, SPECTRUM_POINTS, SPECTRUM_STEPS = 40, 24, 5


class Recorder(TrainerCallback):
    """Collects facts of one run.

    Args:
        spectra: also record the singular values of the first over-parameterized matrix's cores.

    Attributes:
        facts: JSON. "curve": logged losses by step; "spectra": by step one list of singular values a core, largest
            first, thinned out to 24; a core is seen as the matrix [d_left i j, d_right], the last as [d_left, i j].
            Of weights that are not finite, as a diverged run has them, there are no spectra.
    """

    def __init__(self, *, spectra: bool) -> None:
        self.facts: dict[str, Any] = {}
        self._spectra = spectra
        self._trainer: DistillationTrainer | None = None

    def attach(self, trainer: DistillationTrainer) -> None:
        self._trainer = trainer
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._trainer is not None
        over = self._trainer.overparameterization
        wanted = {1, *(round(state.max_steps * k / SPECTRUM_STEPS) for k in range(1, SPECTRUM_STEPS + 1))}
        if self._spectra and over is not None and state.global_step in wanted and finite(over):
            entry = {"step": state.global_step, "cores": spectra(over)}
            self.facts.setdefault("spectra", {"matrix": over.matrices[0].name, "steps": []})["steps"].append(entry)

    def finish(self) -> None:
        """After training, also one that diverged: the curve, and the time that matrices take, if spectra are recorded.

        That is not part of the training's: seconds to decompose all matrices and to multiply them out again (table S2
        of arXiv 2411.06448).
        """
        assert self._trainer is not None
        self.facts["curve"] = _curve(self._trainer.state.log_history)
        over = self._trainer.overparameterization
        if not self._spectra or over is None or not finite(over):
            return
        weights = [(t.of(over.model.get_parameter(t.name)), t.shape) for t in over.matrices]
        start = time.perf_counter()
        chains = decompose_many(*zip(*weights, strict=True))
        middle = time.perf_counter()
        for chain in chains:
            contract(chain)
        self.facts["decompose_seconds"] = round(middle - start, 3)
        self.facts["contract_seconds"] = round(time.perf_counter() - middle, 3)


def finite(over: OverParameterization) -> bool:
    """Whether all over-parameterized weights are finite, and with them their cores."""
    return all(bool(over.model.get_parameter(target.name).isfinite().all()) for target in over.matrices)


def spectra(over: OverParameterization) -> list[list[float]]:
    """Thinned singular values of every core of the first matrix."""
    cores = over.cores(over.matrices[0])
    matrices = [core.flatten(0, 2) for core in cores[:-1]] + [cores[-1].flatten(1)]
    return [_thinned(singular_values(matrix.cpu())) for matrix in matrices]


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
