"""`shrink`: a student of any size that starts from its teacher."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from opdf.distill.losses import main_input
from opdf.distill.models import unprepared, unwrapped
from opdf.distill.objective import model_inputs
from opdf.distill.precision import warn_of_slow_weights
from opdf.distill.shrink.basis import leading_axes
from opdf.distill.shrink.calibration import Place, Recorder, has_room
from opdf.distill.shrink.families import Attention, Family, FeedForward, Tower
from opdf.distill.shrink.fit import Fit
from opdf.distill.shrink.norms import subtracts_mean
from opdf.distill.shrink.report import BlockReport, ShrinkReport, keep_report
from opdf.distill.shrink.sizes import (
    block_groups,
    check_teacher,
    head_sizes,
    inner_size,
    last_blocks,
    outputs_of,
    student_config,
    towers_of,
)
from opdf.distill.shrink.stream import input_of
from opdf.distill.shrink.tokens import decoded_ids, real_tokens
from opdf.distill.students import empty_model, take_dtypes
from opdf.mpo import matmul_precision

logger = logging.getLogger(__name__)

COLLATED = "give tensors of whole batches, as DataLoader(rows, batch_size=32, collate_fn=collator) makes them"
ONE_ROW = {"input_ids": 1, "pixel_values": 3}
"""The number of dimensions that these inputs have without a batch."""
ENOUGH = 2
"""Tokens a direction. With fewer, a student does little on tokens that it was not fitted to."""


def shrink(teacher: nn.Module, batches: Iterable[Mapping[str, Tensor]], **sizes: float) -> Any:
    """A smaller student of the teacher's class that does what the teacher does, as well as its size allows.

        student = shrink(teacher, batches, num_hidden_layers=3, hidden_size=192)

    Nothing is trained. Every part of the student is fitted in closed form to the teacher's states on some examples. The
    parts are fitted in order, each on what the fitted parts before it give. A block that stands for several of the
    teacher's has heads and neurons of all of them, or of the last ones where there is no room for all. Tokens and
    directions count more if the teacher's outputs depend on them, as their gradients say. Without a head, and for a
    language model, all count alike.

    The teacher goes once over the examples, or twice if its states after every branch take more than half a GB; the
    student goes once or twice. Memory holds the residual streams of both models, and what going back over one batch
    takes: make batches smaller if that is too much.

    Args:
        teacher: a BERT (MiniLM), RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, MPNet, DistilBERT, DeBERTa v2 or v3,
            ModernBERT, ViT, DeiT, DINOv2, GPT-2, LLaMA, Mistral, Qwen2, Qwen3, T5 or mT5 of transformers, on any
            device; it is not changed.
        batches: examples as the model takes them, `{name: tensor}`; a DataLoader, say. 256 to 1,000 examples will do.
            Only an encoder-decoder uses labels: it makes its decoder's inputs from them. Sizes of batches, their order
            and their padding do not matter. Pad on the right if the model counts positions from the left (BERT, GPT-2).
        **sizes: fields of the teacher's configuration: its hidden size, feed-forward size, numbers of heads and of
            key-value heads, and of blocks. What is not named stays. The size of a head changes with the hidden size if
            it is not a field of its own. Rates of dropout, which matter in training alone, may be named too.

    Returns:
        A plain model of the teacher's class and dtype, on its device, in eval mode. `shrink_report` tells how much of
        the teacher's residual stream each of its blocks knows.

    Raises:
        TypeError: the teacher is no transformers model or is quantized, a size is no whole number, a rate no number, or
            batches are no mappings of tensors or hold tokens that are no whole numbers.
        ValueError: the teacher's family or a part of it is not supported or not as its configuration says, its blocks
            share a module, its weights or activations are NaN, on the meta device or made in inference mode; a size is
            not the family's, larger than the teacher's or does not fit the others, or a rate is not from 0 to below 1;
            batches hold nothing, a single row, embeddings, tokens that the teacher does not know, masks that are not
            one number a token, or nothing for a decoder; different examples have fewer tokens than the fits have
            unknowns.
    """
    teacher = unwrapped(teacher)
    family = check_teacher(teacher)
    config = student_config(teacher, family, sizes)
    warn_of_slow_weights(next(teacher.parameters()).device, teacher)
    inputs = _on_device(teacher, batches)
    with torch.inference_mode(False), _evaluating(teacher), torch.no_grad(), matmul_precision():
        _warn_of_few(*_check_count(teacher, family, config, inputs))
        student, report = _started(teacher, family, config, inputs)
    keep_report(student, report, teacher)
    logger.info("the student explains these shares of the variance of its teacher's residual stream:\n%s", report)
    return student


def blank_student(teacher: Any, batches: Iterable[Mapping[str, Tensor]] = (), **sizes: float) -> Any:
    """The student that `shrink` would make, without its values: all of its checks and none of its work.

    Args:
        teacher, **sizes: as for `shrink`.
        batches: as for `shrink`; without them their number is not checked.

    Returns:
        A model on the meta device.

    Raises:
        TypeError, ValueError: as `shrink`.
    """
    teacher = unwrapped(teacher)
    family = check_teacher(teacher)
    config = student_config(teacher, family, sizes)
    if batches := list(batches):
        inputs = _on_device(teacher, batches)
        with _evaluating(teacher), torch.no_grad():
            _check_count(teacher, family, config, inputs)
    student = _blank(teacher, config, torch.device("meta"))
    shape = getattr(teacher.config, family.width), getattr(config, family.width)
    blocks = [
        BlockReport(tower.blocks, index, group, {})
        for tower in towers_of(teacher, family)
        for index, group in enumerate(block_groups(family, *_depths(tower, student, teacher)))
    ]
    keep_report(student, ShrinkReport(torch.empty(shape, device="meta"), blocks), teacher)
    return student


def _started(
    teacher: Any, family: Family, config: Any, inputs: Sequence[dict[str, Tensor]]
) -> tuple[Any, ShrinkReport]:
    student = _blank(teacher, config, teacher.device)
    towers, heads = towers_of(teacher, family), outputs_of(teacher, family)
    depth = sum(len(student.base_model.get_submodule(tower.blocks)) for tower in towers)
    with tqdm(total=1 + depth, desc="starting the student", unit="block", disable=None) as bar:
        recorder = Recorder(teacher, family, towers, heads, _narrower(teacher, student, family, towers))
        for number, batch in enumerate(inputs):
            recorder.run(batch)
            states = recorder.result.states
            if states.count and not states.means()[0].isfinite().all():  # none yet if all of it is padding
                raise ValueError(f"the teacher makes NaN or infinite states of batch {number}; look at its inputs")
        bar.update()
        norm = teacher.base_model.get_submodule(towers[-1].final or towers[-1].entry)
        moments, _ = recorder.result.states.covariances(not family.pre_norm)
        slopes = recorder.result.gradients
        gradients = slopes.covariances(False)[0] if slopes.count else None
        basis = leading_axes(moments, getattr(config, family.width), centred=subtracts_mean(norm), gradients=gradients)
        report = ShrinkReport(basis.project.float().cpu())
        fit = Fit(teacher, student, family, basis, recorder.result, report)
        fit.embeddings()
        for tower in towers:
            fit.tower(tower, bar.update)
        for head in heads:
            fit.head(head)
    take_dtypes(student, teacher)
    return student, report


def _narrower(teacher: Any, student: Any, family: Family, towers: Sequence[Tower]) -> set[Place]:
    """The output matrices of which a student reads fewer values, less those that there is no room for."""
    inner, fewer = inner_size(teacher.config, family), set()
    narrow = {
        Attention: head_sizes(student.config, family) != head_sizes(teacher.config, family),
        FeedForward: inner_size(student.config, family) < inner,
    }
    for tower in towers:
        ours, theirs = _depths(tower, student, teacher)
        fitted = last_blocks(family, ours, theirs)
        for branch in tower.branches:
            read = range(theirs) if tower.shares_heads(branch) else fitted
            room = isinstance(branch, Attention) or has_room(len(fitted) * inner**2)
            if narrow[type(branch)] and room:
                fewer |= {(tower.blocks, k, branch.output.name) for k in read}
    return fewer


def _depths(tower: Tower, student: Any, teacher: Any) -> tuple[int, int]:
    ours, theirs = (len(model.base_model.get_submodule(tower.blocks)) for model in (student, teacher))
    return ours, theirs


def _on_device(teacher: Any, batches: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    inputs = []
    if isinstance(batches, Mapping):
        raise TypeError(f"batches is a {type(batches).__name__}; put a single batch into a list: [batch]")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches is {batches!r}; give a list of batches, or a DataLoader")
    for batch in batches:
        if not isinstance(batch, Mapping):
            raise TypeError(f"batches holds a {type(batch).__name__}; give mappings of names to tensors")
        given = model_inputs(teacher, batch)
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"batches holds a {type(value).__name__} as {name}; {COLLATED}")
            if value.ndim == ONE_ROW.get(name):
                raise ValueError(f"batches holds a single row, {name} of shape {list(value.shape)}; {COLLATED}")
        _check_batch(teacher, given)
        found = {k: v.clone() if v.is_inference() else v for k, v in given.items()}  # the others have no gradients
        inputs.append({k: v.to(teacher.device) for k, v in found.items()})
    if not inputs:
        raise ValueError("batches is empty; give examples as the model takes them, 256 or more")
    return inputs


def _check_batch(teacher: Any, given: Mapping[str, Tensor]) -> None:
    """Refuse inputs that the models cannot read, or whose padding cannot be told."""
    if hasattr(teacher, "prepare_decoder_input_ids_from_labels") and not given.keys() & {"decoder_input_ids", "labels"}:
        raise ValueError(
            f"batches holds neither labels nor decoder_input_ids, of which a {type(teacher).__name__} makes what its "
            "decoder reads; give labels, or decoder_input_ids"
        )
    for name, value in given.items():
        if name.endswith("inputs_embeds"):
            ids = name.replace("inputs_embeds", "input_ids")
            raise ValueError(f"batches holds {name}, which have the teacher's width; give {ids}")
        if value.ndim and not len(value):
            raise ValueError(f"batches holds a batch without rows ({name} of shape {list(value.shape)}); leave it out")
        if name.endswith("input_ids"):
            _check_ids(name, value, teacher.get_input_embeddings().num_embeddings)
        tokens = given.get(f"{name.removesuffix('attention_mask')}input_ids")
        if name.endswith("attention_mask") and tokens is not None and value.shape != tokens.shape:
            raise ValueError(
                f"batches holds {name} of shape {list(value.shape)}; give one number for each token, of shape "
                f"{list(tokens.shape)}: 1 where it is real, 0 where it is padding"
            )


def _check_ids(name: str, ids: Tensor, known: int) -> None:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"batches holds {name} of {ids.dtype}; give whole numbers, as the tokenizer makes them")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < known:
        wrong = ids[(ids < 0) | (ids >= known)][0].item()
        raise ValueError(
            f"batches holds {wrong} among its {name}, and the teacher knows 0 to {known - 1}; encode the examples with "
            "the teacher's own tokenizer"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, all modules are in eval mode, and the model computes in its own precision."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with unprepared(model):
            yield
    finally:
        for module in training:
            module.training = True


def _check_count(
    teacher: Any, family: Family, config: Any, inputs: Sequence[Mapping[str, Tensor]]
) -> tuple[int, int, str]:
    """Refuse fewer tokens than unknowns for each output of a fitted matrix.

    Returns:
        The smallest number of tokens of a tower, the number of unknowns, and the field that it comes from.
    """
    heads = head_sizes(config, family)
    sizes = {
        family.width: getattr(config, family.width),
        family.inner: inner_size(config, family),
        family.heads: heads.heads * heads.size,
    }
    field, directions = max(sizes.items(), key=lambda item: item[1])
    examples = sum(len(main_input(teacher, batch)) for batch in inputs)
    different = len({key for batch in inputs for key in _keys(teacher, batch)})
    tokens = min(sum(_count(teacher, tower, batch) for batch in inputs) for tower in towers_of(teacher, family))
    tokens, examples = math.ceil(tokens * different / examples), different  # the same one again teaches nothing
    if tokens <= directions:
        needed = math.ceil((directions + 1) * examples / max(tokens, 1))
        raise ValueError(
            f"batches has {tokens} tokens in {examples} different examples, and a student with {directions} directions "
            f"({field}) needs {directions + 1} at least: give {needed} examples like these or more, or make "
            f"{field} smaller"
        )
    return tokens, directions, field


def _keys(teacher: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[bytes]:
    """One for each example, by which it is known again in a batch of another length."""
    values, mask = main_input(teacher, inputs), inputs.get("attention_mask")
    for k, row in enumerate(values):
        real = row if mask is None or mask.shape != values.shape else row[mask[k].bool()]
        yield hashlib.sha256(real.contiguous().view(torch.uint8).cpu().numpy().tobytes()).digest()


def _warn_of_few(tokens: int, directions: int, field: str) -> None:
    if tokens < ENOUGH * directions:
        warnings.warn(
            f"the student is fitted to {tokens} tokens, fewer than {ENOUGH} for each of its {directions} directions "
            f"({field}), and may know little beyond them; give more examples",
            stacklevel=3,
        )


def _count(teacher: Any, tower: Tower, inputs: Mapping[str, Tensor]) -> int:
    first = teacher.base_model.get_submodule(tower.blocks)[0]
    if tower.mask in inputs:
        return int(inputs[tower.mask].sum())
    ids = inputs.get("input_ids") if tower.memory is None else decoded_ids(inputs)
    states = ids[..., None] if ids is not None else input_of(first, lambda: teacher(**inputs))
    return int(real_tokens(inputs, tower.mask, states).sum())


def _blank(teacher: Any, config: Any, device: torch.device) -> Any:
    """The student before it has values, in float32 at least until then."""
    return empty_model(teacher, config, torch.promote_types(teacher.dtype, torch.float32), device).eval()
