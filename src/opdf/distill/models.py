"""What a model is and what its outputs mean: the questions that methods and trainer ask of student and teacher."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Value
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from opdf.data import IGNORED, plain_name


def classes_in(mapping: Mapping[str, Any]) -> set[str]:
    """The names of the classes in a mapping of transformers', which has one or several for a kind of model."""
    return {name for names in mapping.values() for name in ((names,) if isinstance(names, str) else names)}


HEADLESS = classes_in(MODEL_MAPPING_NAMES)
"""Classes of transformers that end in hidden states."""

CLASSIFIERS = {
    *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values(),
    *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values(),
}
"""Classes of transformers with one output for an example."""

MASKED = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
"""Classes of transformers that are masked language models."""

ANSWERERS = frozenset(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values())
"""Classes of transformers that find an answer in a text, by logits of its start and of its end."""

SEVERAL = "multi_label_classification"
"""What transformers calls several labels an example."""

HALF = (torch.bfloat16, torch.float16)

MARKS = ("pad_token_id", "decoder_start_token_id")
"""Tokens that models of transformers look for in their inputs, or put into them."""

UNSETTLED = frozenset({"architectures", "dtype", "problem_type", "transformers_version", "use_cache"})
"""Fields of configurations that saving, a loss or gradient checkpointing sets."""


PREPARED = ("_is_accelerate_prepared", "_original_forward", "forward")
"""What accelerate sets on a model that it prepares. A model may have a `forward` of its own before."""


def unwrapped(model: nn.Module) -> Any:
    """A model without the wrappers of DDP and torch.compile."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif not hasattr(model, "config") and hasattr(model, "module"):
            model = model.module  # type: ignore[assignment]
        else:
            return model


def as_made(model: nn.Module) -> None:
    """Undo what a Trainer has made of a model in place: its mark as prepared, and its passes in half precision.

    accelerate prepares no model that has the mark. One that a Trainer has scored would be trained without DDP and
    torch.compile. One that was trained in half precision would be scored in it.
    """
    vars(model).pop("_is_accelerate_prepared", None)
    forward = vars(model).pop("_original_forward", None)
    if forward is not None:
        del model.forward
        if model.forward != forward:  # it was the model's own, not its class's
            model.forward = forward


@contextmanager
def unprepared(model: nn.Module) -> Iterator[None]:
    """Inside, a model is `as_made`; afterwards it is what a Trainer has made of it again."""
    made = {name: vars(model)[name] for name in PREPARED if name in vars(model)}
    as_made(model)
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        vars(model).update(made)


def config_of(model: nn.Module) -> Any:
    """The configuration of a transformers model, also inside a wrapper; None for other modules."""
    return getattr(unwrapped(model), "config", None)


def inputs_of(model: nn.Module) -> frozenset[str] | None:
    """The names of a model's inputs; None for a module, not of transformers, that takes any."""
    inner = _without_adapters(unwrapped(model))
    is_known = isinstance(inner, PreTrainedModel)
    found = inspect.signature(type(inner).forward if is_known else inner.forward).parameters
    if not is_known and any(parameter.kind == parameter.VAR_KEYWORD for parameter in found.values()):
        return None
    return frozenset(found)


def _without_adapters(model: Any) -> Any:
    """The model that peft has put adapters into, of one of its own."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unshared_inputs(models: Iterable[nn.Module]) -> frozenset[str]:
    """Inputs that some of several models have and others do not, such as a BERT's token_type_ids beside a DistilBERT.

    Labels are not among them.
    """
    names = [found for model in models if (found := inputs_of(model)) is not None]
    return frozenset().union(*names) - frozenset.intersection(*names) - {"labels"} if names else frozenset()


def configured(model: nn.Module) -> dict[str, Any] | None:
    """The configuration of a transformers model as plain values, without what training sets."""
    config = config_of(model)
    if not hasattr(config, "to_dict"):
        return None
    return {k: v for k, v in config.to_dict().items() if k not in UNSETTLED and not k.startswith("_")}


def output_head(model: nn.Module) -> Any:
    """What makes a language model's logits; None for other models."""
    return getattr(unwrapped(model), "get_output_embeddings", lambda: None)()


def is_language_model(model: nn.Module) -> bool:
    """Whether outputs are scores of the vocabulary."""
    return output_head(model) is not None


def has_no_head(model: nn.Module) -> bool:
    """Whether a transformers model ends in hidden states (AutoModel) and not in a task's outputs.

    Some with a head are their own base model; transformers calls those something For a task.
    """
    own = getattr(model, "base_model", None) is model
    return own and "For" not in type(model).__name__ and not is_language_model(model)


def is_causal(model: nn.Module) -> bool:
    """Whether logits at one position predict the label of the next, so that both have to be shifted.

    Decoders of transformers do, and so do classes of the user's own whose name gives them transformers' loss of one
    (MineForCausalLM). Encoder-decoders get their inputs shifted; masked language models and taggers label in place,
    also those that can generate (XLM, FlauBERT), unless their configuration says that they are causal. So do modules of
    other libraries: whoever trains one shifts its labels if need be.
    """
    inner, config = unwrapped(model), config_of(model)
    if getattr(config, "is_encoder_decoder", False):
        return False
    if type(_without_adapters(inner)).__name__ in MASKED and not getattr(config, "causal", False):
        return False
    if hasattr(inner, "can_generate") and inner.can_generate():
        return True
    return LOSS_MAPPING.get(getattr(inner, "loss_type", None)) is ForCausalLMLoss


def kind_of(model: nn.Module, logits: Tensor, labels: Tensor | None = None) -> str:
    """ "tokens", "regression", "multi-label" or "classes", as transformers' own heads decide it.

    If their configuration leaves it open, they take labels that are no integers for several labels an example. They
    write that into the configuration with their first loss, and ours may come earlier.

    Raises:
        ValueError: logits have another shape (a segmentation's), whose classes are not in the last place.
    """
    config = config_of(model)
    if logits.dim() not in (2, 3):
        raise ValueError(
            f"the outputs of a {type(unwrapped(model)).__name__} are of shape {tuple(logits.shape)}; expected "
            "[batch, classes] or [batch, tokens, classes]: return logits of such a shape, or write an Objective"
        )
    if logits.dim() == 3:
        return "tokens"
    problem = getattr(config, "problem_type", None)
    several = labels is not None and labels.is_floating_point() and logits.shape[-1] > 1
    if problem == SEVERAL or (config is not None and problem is None and several):
        return "multi-label"
    return "regression" if problem == "regression" or logits.shape[-1] == 1 else "classes"


def is_regression(model: nn.Module) -> bool:
    """Whether a configuration says so; of one output, it may do so only once a loss has been computed."""
    config = config_of(model)
    return getattr(config, "problem_type", None) == "regression" or getattr(config, "num_labels", 2) == 1


def settle_kind(student: nn.Module, teacher: nn.Module) -> None:
    """Give a student whose configuration leaves open what its outputs mean the meaning of its teacher's.

    Without labels nothing else tells, and of several numbers labels tell the wrong thing, see `kind_of`. Pipelines of
    transformers read it of a saved student.
    """
    ours, theirs = config_of(student), config_of(teacher)
    known = getattr(theirs, "problem_type", None)
    if known is not None and not has_no_head(student) and getattr(ours, "problem_type", known) is None:
        ours.problem_type = known


def output_layer(model: nn.Module) -> nn.Linear:
    """The Linear that makes a classifier's or regressor's outputs.

    Raises:
        ValueError: no Linear outside the blocks has as many outputs as the configuration has labels.
    """
    labels = config_of(model).num_labels
    base = {id(m) for m in getattr(model, "base_model", nn.Module()).modules()}
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels and id(m) not in base]
    if not found:
        raise ValueError(f"{type(model).__name__} has no Linear with {labels} outputs as its head")
    return found[-1]


def check_has_logits(who: str, model: nn.Module) -> None:
    """Refuse a model that finds answers in a text: its outputs have no field `logits`.

    Raises:
        ValueError: it does.
    """
    name = type(_without_adapters(unwrapped(model))).__name__
    if name in ANSWERERS:
        raise ValueError(
            f"the {who} is a {name}, which answers with start_logits and end_logits, and the methods here learn from "
            "logits; write an Objective that compares both (docs/own-model.md has one)"
        )


def check_same_outputs(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student and a teacher whose outputs do not mean the same.

    Raises:
        ValueError: different numbers of labels, label names, kinds of labels, vocabularies, or special tokens that
            models look for in their inputs; or outputs without `logits`.
    """
    for who, model in (("student", student), ("teacher", teacher)):
        check_has_logits(who, model)
        if type(model).__name__ in HEADLESS:
            raise ValueError(
                f"the {who} is a {type(model).__name__}, which ends in hidden states; load it with a head for the task "
                "(AutoModelFor...), or use EmbeddingDistillation"
            )
    ours, theirs = config_of(student), config_of(teacher)
    if ours is None or theirs is None:
        return
    check_same_marks(student, teacher)
    if is_language_model(student):
        mine, other = vocabulary(ours), vocabulary(theirs)
        if mine != other:
            raise ValueError(
                f"the student's vocabulary has {mine} tokens and the teacher's {other}; "
                "token-level distillation needs the same tokenizer"
            )
        return
    if ours.num_labels != theirs.num_labels:
        raise ValueError(
            f"the student has {ours.num_labels} labels and the teacher {theirs.num_labels}; "
            "make both for the same task (num_labels=...)"
        )
    problems = [c.problem_type for c in (ours, theirs)]
    if None not in problems and problems[0] != problems[1]:
        raise ValueError(f"the student's problem_type is {problems[0]!r} and the teacher's {problems[1]!r}; set one")
    names = [names_of_labels(model) for model in (student, teacher)]
    is_number = ours.num_labels == 1 and SEVERAL not in problems  # whose name says nothing about the order
    if None not in names and names[0] != names[1] and not is_number:
        raise ValueError(f"the student's labels are {names[0]}, the teacher's {names[1]}; give both in the same order")


def vocabulary(config: Any) -> int:
    """How many tokens a language model writes. A model of two has that of the one that writes."""
    writes = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return int(writes.vocab_size)


def names_of_labels(model: nn.Module) -> list[str] | None:
    """The names of a model's labels by their numbers; None if it has none but those of its configuration's making."""
    known = getattr(config_of(model), "id2label", None) or {}
    names = [str(known[number]) for number in sorted(known)]
    return None if all(name.startswith("LABEL_") for name in names) else names


def check_names(models: Iterable[nn.Module], data: Any) -> None:
    """Refuse a column of named classes that are a model's in another order: its labels have other numbers there.

    It looks at columns `labels` and `label` of a `datasets.Dataset`. Other names than the model's tell nothing.

    Raises:
        ValueError: there is one.
    """
    headed = [model for model in models if not has_no_head(model)]
    for column in ("labels", "label") if isinstance(data, Dataset) else ():
        feature = data.features.get(column)
        classes: list[str] = getattr(getattr(feature, "feature", feature), "names", [])  # of one class, or of a list
        for model in headed if classes else ():
            ours, theirs = ([plain_name(name) for name in names] for names in (names_of_labels(model) or [], classes))
            if ours != theirs and sorted(ours) == sorted(theirs):
                raise ValueError(
                    f"train_dataset has the classes {classes} in {column!r}, and the {type(unwrapped(model)).__name__} "
                    f"{names_of_labels(model)}; number the data's as the model's (align_labels_with_mapping), or name "
                    "them so, if they are numbered so (cast_column)"
                )


def check_same_marks(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student and a teacher that look for different special tokens in their inputs.

    Raises:
        ValueError: they do.
    """
    ours, theirs = config_of(student), config_of(teacher)
    ends = ("eos_token_id",) if getattr(ours, "is_encoder_decoder", False) and not is_language_model(student) else ()
    for name in (*MARKS, *ends):
        mine, other = getattr(ours, name, None), getattr(theirs, name, None)
        if mine is not None and other is not None and mine != other:
            raise ValueError(
                f"the student's {name} is {mine} and the teacher's {other}: one of them would read the same tokens "
                "otherwise (decoders classify at the last token that is no padding, BART at the end token); give both "
                "the tokenizer's"
            )


def warn_of_rounding(who: str, trained: Iterable[Tensor]) -> None:
    """Warn that weights are trained in half precision, which they have from their file."""
    half = sorted({str(p.dtype) for p in trained if p.dtype in HALF})
    if half:
        warnings.warn(
            f"the {who}'s weights are {' and '.join(half)}: steps smaller than their rounding are lost, but not those "
            f"of cores, which are float32. Train {who}.float(), with bf16=True in the arguments to compute in half "
            "precision",
            stacklevel=4,
        )


def check_rows(data: Any) -> None:
    """Refuse training data of which the Trainer would ask for rows and get columns or splits.

    Raises:
        TypeError: they are a DataFrame, or a mapping such as a DatasetDict.
    """
    if isinstance(data, Mapping):
        raise TypeError(f"train_dataset is a {type(data).__name__}; give one of its splits, data['train'] say")
    if type(data).__name__ == "DataFrame":
        raise TypeError("train_dataset is a DataFrame; give rows: datasets.Dataset.from_pandas(frame)")


def check_labels(student: Any, data: Any) -> None:
    """Refuse classes that the student's head does not have; on a GPU, the first step would not say what was wrong.

    It looks at columns `labels` and `label` of a `datasets.Dataset`, for classifiers of transformers: integers, and
    lists of several labels.

    Raises:
        ValueError: a class is below 0, other than -100, or not below `config.num_labels`; or one of several labels is
            not from 0 to 1.
    """
    if not isinstance(data, Dataset) or type(_without_adapters(student)).__name__ not in CLASSIFIERS:
        return
    classes, problem = student.config.num_labels, student.config.problem_type
    if classes == 1 or problem == "regression":
        return
    for column in ("labels", "label"):
        feature = data.features.get(column)
        inner = getattr(feature, "feature", None)
        if isinstance(inner, Value) and (problem == SEVERAL or (problem is None and "float" in inner.dtype)):
            _check_several(data, column)
        elif problem == SEVERAL:
            continue
        elif isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype):
            values = data.select_columns([column]).with_format("numpy")[:][column]
            (outside,) = ((values != IGNORED) & ((values < 0) | (values >= classes))).nonzero()
            if len(outside):
                raise ValueError(
                    f"{len(outside)} rows of train_dataset have {column!r} outside 0 to {classes - 1}, e.g. "
                    f"{values[outside[0]]} in row {outside[0]} (from 0); the student has {classes} labels: give "
                    "it more (num_labels), or clean the data"
                )


_SEVERAL_LABELS = (
    f"with several labels each is 0 or 1, and {IGNORED} does not mean none: leave those rows out, or set 0; numbers to "
    "come near want problem_type='regression'"
)


def _check_several(data: Dataset, column: str) -> None:
    rows = data.select_columns([column]).with_format("numpy")[:][column]
    wrong = [row.tolist() for row in rows if ((row < 0) | (row > 1)).any()]
    if wrong:
        raise ValueError(
            f"{len(wrong)} rows of train_dataset have {column!r} outside 0 to 1, e.g. {wrong[0]}; {_SEVERAL_LABELS}"
        )


def check_batch(student: nn.Module, batch: Any, step: int) -> None:
    """Refuse a batch that cannot be learned from; the model's own error would not say why.

    Args:
        student: whose classes labels are of.
        batch: as the collator made it.
        step: for the message.

    Raises:
        ValueError: it has no tensors or no rows, or a label is no class of the student's.
    """
    tensors = [value for value in batch.values() if isinstance(value, Tensor)] if isinstance(batch, Mapping) else []
    if isinstance(batch, Mapping) and not any(tensor.numel() for tensor in tensors):
        raise ValueError(
            f"a batch of step {step} is empty; the data collator, or the batch sampler, makes batches without rows"
        )
    labels, config = (batch.get("labels") if tensors else None), config_of(student)
    if type(_without_adapters(unwrapped(student))).__name__ not in CLASSIFIERS or labels is None:
        return
    classes, problem = config.num_labels, config.problem_type
    floats = problem is None and classes > 1 and labels.is_floating_point()
    if (problem == SEVERAL or floats) and labels.dim() == 2:
        (outside,) = ((labels < 0) | (labels > 1)).any(1).nonzero(as_tuple=True)
        if len(outside):
            raise ValueError(
                f"example {int(outside[0])} (from 0) of a batch of step {step} has the labels "
                f"{labels[outside[0]].tolist()}; {_SEVERAL_LABELS}"
            )
    if classes == 1 or problem not in (None, "single_label_classification"):
        return
    if labels.dim() == 2 and labels.shape[1] > 1 and not labels.is_floating_point():
        raise ValueError(
            f"labels are {labels.shape[1]} integers an example, and the student takes one class for each; give floats, "
            f"or a student with problem_type={SEVERAL!r}, for several labels"
        )
    if labels.dim() == 2 and not labels.is_floating_point():
        raise ValueError(
            f"labels have the shape {list(labels.shape)}, and the student takes one class for each example; flatten "
            "them in the data collator: labels.view(-1)"
        )
    if labels.dim() != 1:
        return
    if labels.is_floating_point():
        raise ValueError(
            f"labels are {str(labels.dtype).removeprefix('torch.')} numbers, one an example, and the student has "
            f"{classes} classes; give class numbers as integers, or a student with num_labels=1 for a regression"
        )
    (outside,) = ((labels != IGNORED) & ((labels < 0) | (labels >= classes))).nonzero(as_tuple=True)
    if len(outside):
        raise ValueError(
            f"example {int(outside[0])} (from 0) of a batch of step {step} has the label {int(labels[outside[0]])}; "
            f"the student has {classes} classes, from 0: give it more (num_labels), or clean the data"
        )
