"""The Trainer's arguments for distillation, checked before anything is loaded."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.training_args import OptimizerNames

from opdf.data import LOWER_IS_BETTER
from opdf.distill.options import POSITIVE, number, whole

MUON = "muon"
"""The value of `optim` for Muon on the matrices of the blocks and AdamW on everything else."""


@dataclass
class DistillationArguments(TrainingArguments):
    """transformers.TrainingArguments with defaults for distillation.

    Weight decay (0 by default) acts on the cores of over-parameterized matrices, gradient clipping on dense gradients.
    A loss that is not finite ends the run (`TrainingDiverged`) instead of being left out of the log.

    Raises:
        TypeError: a number is something else.
        ValueError: a number is out of range, a name is unknown, or options do not go together.
    """

    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "leave losses that are not finite out of the log; waits for every micro-batch"}
    )

    # None before the list, and no text beside true: transformers' HfArgumentParser reads no other unions.
    report_to: str | None | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "tensorboard, trackio, ... or none"}
    )
    logging_steps: float = field(default=50, metadata={"help": "optimizer steps between two lines of the log"})
    learning_rate: float = field(default=5e-5, metadata={"help": "initial learning rate"})
    optim: OptimizerNames | str = field(
        default=TrainingArguments.__dataclass_fields__["optim"].default,
        metadata={"help": "an optimizer of transformers', or muon: Muon on the blocks' matrices, AdamW on the rest"},
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "resume with the callbacks' counters (early stopping's patience, say)"}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many evaluations in which metric_for_best_model was no better"}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "how much better counts as better, for early_stopping_patience"}
    )
    fsdp: bool | None = field(default=None, metadata={"help": "true for FSDP2"})  # transformers declares text

    def __post_init__(self) -> None:
        self._check_values()
        self._check_early_stopping()
        _refuse("DeepSpeed", bool(self.deepspeed) or _launched_with("DEEPSPEED"))  # before its package is looked for
        if str(self.metric_for_best_model).removeprefix("eval_") in LOWER_IS_BETTER and self.greater_is_better is None:
            self.greater_is_better: bool | None = False  # the Trainer assumes it for losses only
        wanted, self.optim = self.optim, OptimizerNames.ADAMW_TORCH if self.optim == MUON else self.optim
        super().__post_init__()
        self.optim = MUON if wanted == MUON else self.optim
        if self.lr_scheduler_type in BY_METRIC and self.greater_is_better:
            # They take a metric for a loss, and would lower the rate while it gets better.
            self.lr_scheduler_kwargs: Any = {"mode": "max"} | dict(self.lr_scheduler_kwargs or {})
        check_engine(self)
        check_loss(self)
        get_reporting_integration_callbacks(self.report_to)  # refuses names that it does not know

    def _check_values(self) -> None:
        """Refuse numbers out of their range and words that are no choice, which the Trainer lets through."""
        for names, checked, least in _RANGES:
            for name in names:
                if (value := getattr(self, name)) is not None or self.__dataclass_fields__[name].default is not None:
                    setattr(self, name, checked(name, value, least))
        if self.max_steps != -1:
            self.max_steps: int = whole("max_steps", self.max_steps, 1)
        elif not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str) and value not in (known := item.metadata.get("choices", [value])):
                raise ValueError(f"{item.name} is {value!r}; expected one of {', '.join(known)}")
        for name in ("seed", "data_seed"):
            if (getattr(self, name) or 0) >= 2**32:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be below 2**32")
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more, and below 1")

    def _check_early_stopping(self) -> None:
        if self.early_stopping_patience is None:
            if self.early_stopping_threshold:
                raise ValueError(
                    f"early_stopping_threshold is {self.early_stopping_threshold} and nothing stops early; set "
                    "early_stopping_patience"
                )
            return
        self.early_stopping_patience = whole("early_stopping_patience", self.early_stopping_patience, 1)
        if getattr(self.eval_strategy, "value", self.eval_strategy) == "no":
            raise ValueError(
                f"early_stopping_patience is {self.early_stopping_patience} and eval_strategy is no, so that nothing "
                "tells when to stop; set it to epoch or steps"
            )
        if not self.metric_for_best_model:
            self.metric_for_best_model: str | None = "loss"


_RANGES: tuple[tuple[tuple[str, ...], Callable[[str, Any, float], float], float], ...] = (
    (("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), whole, 1),
    (("eval_accumulation_steps", "torch_empty_cache_steps", "dataloader_prefetch_factor", "ddp_timeout"), whole, 1),
    (("learning_rate", "logging_steps", "save_steps", "eval_steps"), number, POSITIVE),
    (("num_train_epochs", "weight_decay", "max_grad_norm", "warmup_steps", "early_stopping_threshold"), number, 0),
    (("adam_beta1", "adam_beta2", "adam_epsilon", "eval_delay", "neftune_noise_alpha"), number, 0),
    (("label_smoothing_factor",), number, 0),
    (("dataloader_num_workers", "seed", "data_seed", "save_total_limit", "ddp_bucket_cap_mb"), whole, 0),
)
"""Arguments that the Trainer does not check, with what they are and their least value; some may be None."""


def check_engine(args: TrainingArguments, accelerator: Accelerator | None = None) -> None:
    """Refuse engines that split single matrices, and FSDP2 where accelerate would quietly take DDP instead.

    The arguments or a launcher's environment can ask for them. With several GPUs and no launcher, one GPU is used, with
    a warning.

    Raises:
        ValueError: one of these.
    """
    kind = accelerator.distributed_type if accelerator else None
    version = (args.fsdp_plugin_args or {}).get("fsdp_version")
    if accelerator and kind == DistributedType.FSDP:
        version = accelerator.state.fsdp_plugin.fsdp_version
    elif version is None and _launched_with("FSDP"):
        version = int(os.environ.get("FSDP_VERSION", 1))
    _refuse("DeepSpeed", bool(args.deepspeed) or _launched_with("DEEPSPEED"))
    _refuse("Megatron-LM", _launched_with("MEGATRON_LM"))
    _refuse("FSDP1", version == 1)
    if args.n_gpu > 1:
        # The Trainer would take torch's DataParallel: batches would grow with the number of GPUs, replicas lose hooks.
        warnings.warn(
            f"{args.n_gpu} GPUs are visible and one is used: start with torchrun --nproc-per-node {args.n_gpu} for all",
            stacklevel=3,
        )
        args._n_gpu = 1
    if accelerator and asks_for_fsdp(args) and kind != DistributedType.FSDP:
        raise ValueError(
            "fsdp is set, and accelerate has FSDP on accelerators only, with several processes: this run would be "
            f"{kind} instead. Start it with torchrun or accelerate launch on GPUs, or remove fsdp"
        )


def asks_for_fsdp(args: TrainingArguments) -> bool:
    """Whether FSDP is asked for, by the arguments or the launcher."""
    return bool(args.fsdp) or _launched_with("FSDP")


def check_loss(args: TrainingArguments, own_loss: Callable[..., Any] | None = None) -> None:
    """Refuse options of the Trainer's own loss, which distillation does not use.

    Raises:
        ValueError: `label_smoothing_factor` is set, or `own_loss`, the Trainer's `compute_loss_func`, is given.
    """
    if own_loss is not None:
        raise ValueError(
            "compute_loss_func is given, and the loss is the objective's; leave it out, or write an Objective"
        )
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor is {args.label_smoothing_factor}, and the loss is the objective's; leave it out, "
            "or write an Objective"
        )


def _refuse(engine: str, asked: bool) -> None:
    if asked:
        raise ValueError(
            f"{engine} flattens or partitions single matrices, which cores need whole; use DDP or FSDP2 "
            "(fsdp: true, fsdp_config: {version: 2})"
        )


def _launched_with(engine: str) -> bool:
    """Whether accelerate's launcher asks for an engine, as its processes read it."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def examples_per_step(args: TrainingArguments, batch_size: int | None = None) -> int:
    """Examples of an optimizer step, over all micro-batches and processes.

    Args:
        args: of the training.
        batch_size: examples of a micro-batch, where `auto_find_batch_size` has lowered those in `args`.
    """
    return int((batch_size or args.train_batch_size) * args.world_size * args.gradient_accumulation_steps)


def planned_steps(args: TrainingArguments, rows: int) -> int:
    """Optimizer steps of a training on so many rows."""
    return int(args.max_steps) if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch(args, rows))


def planned_passes(args: TrainingArguments, rows: int) -> float:
    """How often a training sees each of so many rows."""
    return planned_steps(args, rows) / max(steps_per_epoch(args, rows), 1)


def steps_per_epoch(args: TrainingArguments, rows: int) -> int:
    """Optimizer steps in which a training sees so many rows once; the last one may have fewer examples."""
    batch = args.train_batch_size * args.world_size
    batches = rows // batch if args.dataloader_drop_last else math.ceil(rows / batch)
    return math.ceil(batches / args.gradient_accumulation_steps)


def deciding(args: TrainingArguments, batch_size: int) -> dict[str, Any]:
    """The arguments that decide a run's result, as plain values by name.

    Args:
        args: of the run.
        batch_size: examples of a micro-batch, fewer than in `args` where `auto_find_batch_size` has lowered them.
    """
    kept = {name: value for name, value in args.to_dict().items() if not may_change(name, args)}
    return kept | {"examples_per_step": examples_per_step(args, batch_size)}


def may_change(name: str, args: TrainingArguments) -> bool:
    """Whether a run that goes on may have another value of an argument."""
    return name in FREE or (name in SCHEDULES and not chooses_by_evaluation(args))


def chooses_by_evaluation(args: TrainingArguments) -> bool:
    """Whether the result depends on the steps at which the student is evaluated and saved."""
    stops = getattr(args, "early_stopping_patience", None) is not None
    return stops or bool(args.load_best_model_at_end) or args.lr_scheduler_type in BY_METRIC


BY_METRIC = ("reduce_lr_on_plateau", "greedy")
"""Schedules of the rate that follow `metric_for_best_model`."""

SCHEDULES = frozenset({"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps"})

FREE = frozenset({
    # the length, which is compared once the number of steps is known
    "max_steps", "num_train_epochs",
    # how the examples of a step are split
    "per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size",
    # what is written
    "output_dir", "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter",
    "log_on_each_node", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen",
    "save_total_limit", "save_only_model", "save_on_each_node", "enable_jit_checkpoint", "push_to_hub", "hub_token",
    "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    # how evaluation is done
    "per_device_eval_batch_size", "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object",
    "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics",
    # the machine, its memory and its processes
    "use_cpu", "local_rank", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "torch_empty_cache_steps",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
    "ddp_timeout", "fsdp", "fsdp_config", "full_determinism", "debug", "skip_memory_metrics",
    # what a resumed run is told
    "resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint", "do_train", "do_eval",
    "do_predict",
})  # fmt: skip
"""Arguments that a resumed run may change; also `SCHEDULES`, where nothing is chosen by evaluation."""
