"""Models by name, folder or configuration, and their checks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.utils import cached_file

from opdf.data import Task, loading
from opdf.distill import has_no_head, labels_in_place
from opdf.files import digest_of
from opdf.job.errors import UserError
from opdf.job.heads import auto_class, check_head, has_other_head, head_of, note_head
from opdf.job.options import suggest
from opdf.job.processors import settle_padding

DTYPE = torch.float32
"""The dtype of all weights, whatever a file holds. training.bf16 and fp16 compute in half precision from them."""

READ = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken")
"""Endings of the files that a model or its tokenizer is read from."""


def files_of(name: str) -> dict[str, str]:
    """Digests of the files that a model and its tokenizer or image processor are read from, by their names.

    For a model on the hub the name of its snapshot, because snapshots do not change.

    Raises:
        ValueError: the model cannot be found.
    """
    with loading(name, processor=True) as place:  # beside teacher.config there may be no weights
        folder = Path(place)
        if not folder.is_dir():
            return {"revision": Path(str(cached_file(place, "config.json"))).parent.name}
    return file_digests(folder)


def file_digests(folder: Path) -> dict[str, str]:
    """Digests of the files that a model in a folder is read from, by their names."""
    read = sorted(path for path in folder.iterdir() if path.suffix in READ and path.is_file())
    return {path.name: digest_of(path) for path in read}


def load_config(name: str) -> Any:
    """A model's configuration.

    Raises:
        ValueError: it cannot be read, or its weights are quantized.
    """
    with loading(name) as folder:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        how = quantized.get("quant_method", "") if isinstance(quantized, dict) else ""
        raise UserError(f"model {name!r} is quantized ({how or 'quantization_config'}); give the unquantized one")
    return config


def load_model(name: str, task: Task, *, new_head: bool = False) -> tuple[Any, list[str]]:
    """A pretrained model with a head for the task, and the names of weights that its checkpoint lacks.

    With `new_head`, for a model that will be trained, a head of another size makes place for a new one.
    """
    auto, config = auto_class(task), load_config(name)
    check_kind(f"model {name!r}", type(config), task)
    replaced = new_head and has_other_head(config, task)
    if replaced:
        note_head(name, len(config.id2label), task.num_labels)
    else:
        check_head(name, config, task, trained=new_head)
    with loading(name) as folder, torch.device("cpu"):  # values are read, whatever surrounds this
        model, info = auto.from_pretrained(
            folder, dtype=DTYPE, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            ignore_mismatched_sizes=replaced, **head_of(task),
        )  # fmt: skip
    resized = [key for key, *_ in info["mismatched_keys"]]
    within = next((key for key in resized if key.startswith(f"{model.base_model_prefix}.")), None)
    if within:
        raise UserError(f"model {name!r} is damaged: {within} has another size than its config.json says")
    broken = next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if broken:
        raise UserError(f"model {name!r} is broken: {broken} holds NaN or infinite entries")
    check_causal(f"model {name!r}", model, task)
    if task.kind != "causal-lm":
        settle_padding(name, model)
    return model, sorted([*info["missing_keys"], *resized])


def load_saved(name: str) -> Any:
    """A saved model by the class that its configuration names, in eval mode and float32.

    Raises:
        UserError: it cannot be read, is no transformers class, lacks weights, or reads neither texts alone nor images
            alone.
    """
    config = load_config(name)
    kind = (config.architectures or ["none"])[0]
    if not hasattr(transformers, kind):
        raise UserError(f"{name} is saved from class {kind}, which transformers does not have")
    cls = getattr(transformers, kind)
    check_reads(name, cls, config)
    with loading(name) as folder:
        model, info = cls.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype=DTYPE, output_loading_info=True
        )
    missing = sorted(info["missing_keys"])
    if missing and not has_no_head(model):  # which may lack a pooler that nothing reads
        raise UserError(f"{name} has no weights for {missing[0]} of its {kind}; save the whole model")
    return model.eval()


def places(model: Any) -> int | None:
    """Tokens of a text that a model has places for; None without an end.

    RoBERTa and its kin keep the first of them for padding: of 514 they use 512.
    """
    most: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, table in model.named_modules():
        held = isinstance(table, nn.Embedding) and table.num_embeddings == most and table.padding_idx is not None
        if held and name.endswith("position_embeddings"):
            return int(table.num_embeddings - table.padding_idx - 1)
    return None if most == -1 else most  # XLNet's word for no end


def check_tokens(who: str, model: Any, tokenizer: Any) -> None:
    """Refuse a model that knows fewer tokens than its tokenizer makes, such as one that was given more.

    Raises:
        UserError: it does; a student reads those of its teacher.
    """
    tokens = getattr(model.config, "vocab_size", None)
    if tokens is None or len(tokenizer) <= tokens:
        return
    if who == "the student":
        raise UserError(
            f"{who} knows {tokens} tokens and the teacher's tokenizer has {len(tokenizer)}; both read the same tokens, "
            "so give a student of the teacher's vocabulary"
        )
    raise UserError(
        f"{who} knows {tokens} tokens and its tokenizer has {len(tokenizer)}; make its embeddings as many "
        "(resize_token_embeddings) and save it again"
    )


def check_reads(name: str, cls: Any, config: Any) -> None:
    """Refuse a model of other inputs than texts alone or images alone.

    Raises:
        UserError: it is one, of sounds or of texts with images, say.
    """
    main = cls.main_input_name
    if main == "pixel_values" or (main == "input_ids" and hasattr(config, "vocab_size")):
        return
    reads = "input_ids and has no vocab_size, as models of texts with images" if main == "input_ids" else main
    raise UserError(
        f"{name} is a {cls.__name__}, which reads {reads}; give a model of texts (input_ids) or images (pixel_values)"
    )


@contextmanager
def reading_images(who: str, shape: Sequence[int]) -> Iterator[None]:
    """Inside, a model is given images of a shape.

    Raises:
        UserError: it is made for others, and says so in its own words, which name no remedy.
    """
    try:
        yield
    except ValueError as error:
        remedy = (
            "Give a model of that size (image_size in its configuration), or set size in the preprocessor_config.json "
            "of the model that the images are prepared for"
        )
        if "channel" in str(error):
            remedy = f"Images are read in three colours, grey ones too; give a model of num_channels {shape[0]}"
        raise UserError(
            f"{who} cannot read images of shape {list(shape)}, as the image processor makes them: {error} {remedy}"
        ) from error


def check_kind(who: str, config: type, task: Task) -> None:
    """Refuse a kind of model that transformers does not have for a task.

    Args:
        who: the model, for the message.
        config: the class of its configuration.
        task: of the data.

    Raises:
        UserError: it is one, of images for a task of texts, say.
    """
    if config not in auto_class(task)._model_mapping:
        data = "images" if task.is_image else "texts"
        raise UserError(
            f"{who} is a {config.model_type}, and transformers has none for {task.kind} of {data}; give another kind"  # type: ignore[attr-defined]
        )


def check_causal(who: str, model: Any, task: Task) -> None:
    """Refuse a model that sees the tokens that it has to predict: BERT as transformers loads it, say.

    Raises:
        UserError: the outputs at the first of some tokens change with the last; or the model takes labels that are
            shifted already, and a run's are the tokens themselves.
    """
    if task.kind != "causal-lm":
        return
    if labels_in_place(model):
        raise UserError(
            f"{who} is a {type(model).__name__}, whose labels have to be shifted before, and a run's are the tokens "
            "themselves; give another decoder (GPT-2, LLaMA, Qwen3, ...), or train it with DistillationTrainer"
        )
    if model.device.type == "meta":
        return
    was = model.training
    with torch.no_grad(), model.device:  # whatever surrounds this: tokens without values would give any logits
        texts = torch.arange(5).repeat(2, 1) % model.config.vocab_size
        texts[1, -1] = 0
        one, other = model.eval()(input_ids=texts).logits[:, 0]
    model.train(was)
    if (one - other).abs().max() > 1e-5 * one.abs().max():  # more than rounding
        raise UserError(
            f"{who} is a {type(model).__name__} that sees the tokens which it has to predict; give a decoder (GPT-2, "
            "LLaMA, Qwen3, ...), or set is_decoder: true in its config"
        )


DECIDED = ("transformers_version", "architectures", "id2label", "label2id", "problem_type", "num_labels")
"""Fields of a configuration that follow from the task."""


def from_config(fields: dict[str, Any], task: Task) -> Any:
    fields = copy.deepcopy(fields)
    kind = fields.pop("model_type")
    check_kind("the model of the config", CONFIG_MAPPING[kind], task)
    try:
        config = AutoConfig.for_model(kind, **fields, **head_of(task))
        if isinstance(known := auto_class(task)._model_mapping[type(config)], tuple):  # DeiT: it asks which of these
            config.architectures = [known[0].__name__]
        model = auto_class(task).from_config(config, dtype=DTYPE)
    except (StrictDataclassError, RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"no {kind} can be built from the model's config: {' '.join(str(error).split())}") from error
    check_causal(f"the {kind}", model, task)
    return model


def check_fields(where: str, kind: Any, fields: dict[str, Any]) -> None:
    """Refuse fields that a model's configuration does not have, or that the user cannot set."""
    if kind is None:
        raise UserError(f"{where} has no model_type; add one, e.g. model_type: vit")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"{where}: model_type is {kind!r}, which transformers {transformers.__version__} does not have")
    other_names = CONFIG_MAPPING[kind].attribute_map
    known, given = {*CONFIG_MAPPING[kind]().to_dict(), *other_names}, dict[str, str]()
    for key in fields:
        if key in DECIDED:
            raise UserError(f"{where}: {key} follows from the data; remove it")
        if key in ("dtype", "torch_dtype"):
            raise UserError(f"{where}: {key} is float32 for all models; set training.bf16 or training.fp16 instead")
        if key not in known:
            raise UserError(f"{where} has no field {key!r} for a {kind}{suggest(str(key), known)}")
        if (other := given.setdefault(other_names.get(key, key), key)) != key:
            raise UserError(f"{where} has {other} and {key}, which are one field of a {kind}; give one")
