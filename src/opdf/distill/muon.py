"""Muon on the matrices of transformer blocks and AdamW on everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import TrainingArguments

from opdf.distill.arguments import asks_for_fsdp
from opdf.overparam import OverParamConfig, find_matrices


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon for some parameters and torch.optim.AdamW for the others.

    Muon (arXiv 2502.16982) makes the momentum of a matrix orthogonal before it steps along it. It is for the matrices
    between hidden states; embeddings, heads, norms and biases are AdamW's.

    Args:
        params: groups with a key "muon": True for Muon's, whose parameters are matrices, False for AdamW's.
        lr: learning rate of both. By default Muon's steps are scaled to the RMS of AdamW's, so that one rate serves.
        betas, eps: of AdamW.
        momentum, nesterov, ns_steps, adjust_lr_fn: of Muon.

    Raises:
        ValueError: a group of Muon's holds a parameter that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
    ) -> None:
        groups = []
        for given in params:
            group = {key: value for key, value in given.items() if key != "muon"}
            options: dict[str, Any] = {"betas": betas, "eps": eps}
            if given["muon"]:
                options = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
                options["adjust_lr_fn"] = adjust_lr_fn
            # Each of the two says which options a group of its own has.
            made = (Muon if given["muon"] else AdamW)([group], lr=lr, **options)
            groups.append(made.param_groups[0] | {"muon": given["muon"]})
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kind in (Muon, AdamW):
            inner = kind([torch.zeros(1, 1)])
            # They have no values of their own: groups and state are this optimizer's, for schedulers and checkpoints.
            inner.param_groups = [group for group in self.param_groups if group["muon"] is (kind is Muon)]
            inner.state = self.state
            inner.step()  # type: ignore[no-untyped-call]
        return loss


def check_muon(args: TrainingArguments, student: nn.Module, overparam: OverParamConfig | None) -> None:
    """Say before work starts what does not go with `optim: muon`.

    Raises:
        ValueError: the student is over-parameterized, sharded, or without blocks; or an option cannot be read.
    """
    if overparam is not None:
        raise ValueError(
            "optim is 'muon', which steps whole matrices, and overparam trains their cores; "
            "use adamw_torch, or leave overparam out"
        )
    if asks_for_fsdp(args):
        raise ValueError("optim is 'muon', which needs matrices whole, and FSDP2 shards them; use DDP, or adamw_torch")
    muon_options(args)
    muon_groups(student, [])


def muon_options(args: TrainingArguments) -> dict[str, Any]:
    """The options of `MuonWithAdamW` in the Trainer's arguments; `optim_args` has those of Muon.

    Raises:
        ValueError: `optim_args` has another option, or a value that cannot be read.
    """
    options: dict[str, Any] = {}
    for entry in (args.optim_args or "").replace(" ", "").split(","):
        name, _, text = entry.partition("=")
        if not entry:
            continue
        if name not in READERS:
            raise ValueError(f"optim_args has {name!r}; muon has {', '.join(READERS)}")
        try:
            options[name] = READERS[name](text)
        except (KeyError, ValueError) as error:
            raise ValueError(f"optim_args has {name}={text!r}, which is no value of it") from error
    betas = args.adam_beta1, args.adam_beta2
    return {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon, **options}


READERS: dict[str, Callable[[str], Any]] = {
    "momentum": float,
    "nesterov": {"true": True, "false": False}.__getitem__,
    "ns_steps": int,
    "adjust_lr_fn": {name: name for name in ("original", "match_rms_adamw")}.__getitem__,
}
"""Options of Muon that `optim_args` can have, and what reads them."""


def muon_groups(student: nn.Module, groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups with the matrices of the student's blocks in groups of their own.

    Raises:
        ValueError: the student has no transformer blocks.
    """
    names = {matrix.name for matrix in find_matrices(student, "blocks", ())}
    chosen = {p for name, p in student.named_parameters() if name in names and p.dim() == 2}
    return [
        {**group, "params": [p for p in group["params"] if (p in chosen) is muon], "muon": muon}
        for group in groups
        for muon in (True, False)
        if any((p in chosen) is muon for p in group["params"])
    ]
