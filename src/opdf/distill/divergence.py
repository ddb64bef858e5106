"""Whether a training diverges, found without waiting for the device in every step."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from opdf.overparam import whole

HOPELESS_SCALE = 2.0**-20
"""A gradient scaler starts at 2^16 and halves at each overflow. Below this it has seen no finite gradient for long."""


class TrainingDiverged(ArithmeticError):  # noqa: N818
    """The loss or its gradient is no longer a finite number.

    Attributes:
        step: the first optimizer step in which it was not.
        checkpoint: the newest whole checkpoint, written before; None if there is none.
    """

    def __init__(self, what: str, step: int, checkpoint: Path | None) -> None:
        self.step, self.checkpoint = step, checkpoint
        saved = f"the last checkpoint before it is {checkpoint}" if checkpoint else "no checkpoint was written before"
        super().__init__(
            f"training diverged: {what} in step {step}; {saved}. Resuming would repeat it: start anew with a lower "
            "learning_rate, more warmup_steps, a max_grad_norm of 1, or bf16 instead of fp16; and look at the data "
            "and for classes that a model rules out by logits of -inf"
        )


class Divergence:
    """Remembers the first step with a value that is not finite, on the device."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def forget(self) -> None:
        """Begin a new training."""
        self._first = None

    def watch(self, value: Tensor, step: int, accelerator: Accelerator) -> None:
        """Look at a value of a step. A gradient scaler meets infinite ones as a matter of course and skips the step."""
        if accelerator.scaler is not None:
            return
        found = torch.where(whole(value).isfinite(), torch.inf, float(step))
        self._first = found if self._first is None else torch.minimum(self._first, found)

    def found(self, step: int, accelerator: Accelerator) -> tuple[str, int] | None:
        """What diverged on any process since the last call, and in which step. `step` is the one that training is at.

        It waits for the device, and every process has to call it.
        """
        scaler = accelerator.scaler
        if scaler is not None and scaler.get_scale() < HOPELESS_SCALE:
            return "the gradient scaler finds no scale without overflow", step
        if self._first is None:
            return None
        first = -float(accelerator.gather(-self._first.reshape(1)).max())
        self._first = None
        return None if first == torch.inf else ("the loss or its gradient is infinite or not a number", int(first))
