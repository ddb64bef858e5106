"""What a model is and what its outputs mean: the questions that methods and trainer ask of student and teacher."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

MASKED = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
"""Classes of transformers that are masked language models."""

IN_PLACE = frozenset({
    "BartForCausalLM", "BigBirdPegasusForCausalLM", "BlenderbotForCausalLM", "BlenderbotSmallForCausalLM",
    "MBartForCausalLM", "MarianForCausalLM", "MvpForCausalLM", "PLBartForCausalLM", "PegasusForCausalLM",
    "ProphetNetForCausalLM", "TrOCRForCausalLM", "WhisperForCausalLM", "XLNetLMHeadModel",
})  # fmt: skip
"""Classes of transformers that can generate and whose own loss does not shift labels: those are given shifted, or are
of the places that a mapping names (XLNet)."""

SEVERAL = "multi_label_classification"
"""What transformers calls several labels an example."""

UNSETTLED = frozenset({"architectures", "dtype", "problem_type", "transformers_version", "use_cache"})
"""Fields of configurations that saving, a loss or gradient checkpointing sets."""

PREPARED = ("_is_accelerate_prepared", "_original_forward", "forward")
"""What accelerate sets on a model that it prepares. A model may have a `forward` of its own before."""


def classes_in(mapping: Mapping[str, Any]) -> set[str]:
    """The names of the classes in a mapping of transformers', which has one or several for a kind of model."""
    return {name for names in mapping.values() for name in ((names,) if isinstance(names, str) else names)}


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
    inner = without_adapters(unwrapped(model))
    is_known = isinstance(inner, PreTrainedModel)
    found = inspect.signature(type(inner).forward if is_known else inner.forward).parameters
    if not is_known and any(parameter.kind == parameter.VAR_KEYWORD for parameter in found.values()):
        return None
    return frozenset(found)


def without_cache(model: nn.Module) -> dict[str, bool]:
    """Options that run a decoder without its cache; none for other models.

    With a cache transformers does not see where a packed text ends, and lets the next one attend to it.
    """
    return {"use_cache": False} if "use_cache" in (inputs_of(model) or ()) else {}


def without_adapters(model: Any) -> Any:
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


def depth_of(model: nn.Module) -> int | None:
    """How many blocks a model runs, one after another; None if its configuration does not say so in one number.

    The decoder of an encoder-decoder that stands alone has the configuration of both, whose depth is the encoder's.
    """
    config = config_of(model)
    alone = not getattr(config, "is_encoder_decoder", False) and hasattr(config, "decoder_layers")
    found: int | None = getattr(config, "decoder_layers" if alone else "num_hidden_layers", None)
    return found


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
    also those that can generate (XLM, FlauBERT), unless their configuration says that they are causal. So do XLNet and
    the decoders of BART and its kin, whose labels transformers wants shifted already, and modules of other libraries:
    whoever trains one shifts its labels if need be.
    """
    inner, config = unwrapped(model), config_of(model)
    if getattr(config, "is_encoder_decoder", False) or labels_in_place(model):
        return False
    if type(without_adapters(inner)).__name__ in MASKED and not getattr(config, "causal", False):
        return False
    if hasattr(inner, "can_generate") and inner.can_generate():
        return True
    return LOSS_MAPPING.get(getattr(inner, "loss_type", None)) is ForCausalLMLoss


def labels_in_place(model: nn.Module) -> bool:
    """Whether a model of transformers can generate, and its own loss takes labels that are shifted already."""
    return any(kind.__name__ in IN_PLACE for kind in type(without_adapters(unwrapped(model))).__mro__)


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


def label_names(config: Any) -> list[str]:
    """The names of labels in a configuration, by their numbers; none if it has none."""
    known = getattr(config, "id2label", None) or {}
    return [str(known[number]) for number in sorted(known)]


def names_of_labels(model: nn.Module) -> list[str] | None:
    """The names of a model's labels by their numbers; None if it has none but those of its configuration's making."""
    names = label_names(config_of(model))
    return None if all(name.startswith("LABEL_") for name in names) else names
