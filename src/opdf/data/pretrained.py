"""Pretrained models by name: the embedded one, a folder, or the hub."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from opdf.data.hub import hub
from opdf.data.packages import minilm

MAPPINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
"""Files of a model that hold JSON objects; others may hold lists."""

PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json")
"""Those of a tokenizer, and of what reads images."""


@contextmanager
def loading(model: str, *, processor: bool = False) -> Iterator[str]:
    """Inside, a model is loaded from the folder or hub name that this gives; or a `processor`, which wants no weights.

    Raises:
        ValueError: it cannot be; the message says why in one line.
        FileNotFoundError, ConnectionError: there is no such folder, or the embedded model cannot be fetched.
    """
    folder = local(model, processor=processor)
    try:
        with nullcontext() if Path(folder).is_dir() else hub(model):
            yield folder
    except (OSError, ValueError, RuntimeError, SafetensorError, TypeError, LookupError, AttributeError) as error:
        damage = damaged_file(Path(folder))
        if isinstance(error, TypeError | LookupError | AttributeError) and damage is None:
            raise
        reason = damage or next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            reason = "it wants code of its own to be run, which opdf does not do; give one that transformers knows"
        if "backend tokenizer" in str(error):
            reason = "it has no tokenizer that can be read; save the model's beside it (tokenizer.json)"
        if isinstance(error.__cause__, RepositoryNotFoundError):
            reason += "; to one that is private or gated, log in with hf auth login or set HF_TOKEN"
        raise ValueError(f"model {model!r} cannot be loaded: {reason}{_meant(Path(model))}") from error


def damaged_file(folder: Path) -> str | None:
    """What is wrong with a file of a model, with its name: cut weights or broken JSON; None if nothing is."""
    for path in sorted(folder.glob("*")):
        try:
            if path.suffix == ".safetensors":
                safe_open(path, "pt")
            elif path.suffix == ".json":
                content = json.loads(path.read_text(encoding="utf-8"))
                if path.name in MAPPINGS and not isinstance(content, dict):
                    raise TypeError("it holds no mapping")
        except (SafetensorError, ValueError, TypeError, RecursionError) as error:
            return f"{path} is damaged ({error})"
    return None


def local(model: str, *, processor: bool = False) -> str:
    """The folder of an embedded model; other names as they are.

    Raises:
        ValueError: a folder without safetensors weights, or, where a `processor` is enough (a tokenizer, or what reads
            images), without either.
    """
    if not model:
        raise ValueError("the model's name is empty; give a hub name, a folder, or minilm")
    if model == "minilm":
        return str(minilm())
    folder = Path(model)
    if folder.is_file():
        raise ValueError(f"{model} is a file; give the folder of a model")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{model} holds adapters; merge them into their model (merge_and_unload), and save and name that"
        )
    alone = processor and any((folder / name).is_file() for name in PROCESSORS)
    if folder.is_dir() and not alone and not list(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        reason = f"it has {pickled[0]}, and pickled weights are not loaded" if pickled else "it has no weights"
        inner = sorted({path.parent for path in folder.glob("*/*.safetensors")})  # of a run, say
        named = f"Name {' or '.join(map(str, inner[:2]))}, which has some"
        raise ValueError(f"{model} cannot be loaded: {reason}. {named if inner else 'Save the model as safetensors'}")
    if not folder.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise FileNotFoundError(f"model folder {model} does not exist{_meant(folder)}")
    if not folder.exists() and "/" in model and (meant := _meant(folder)):
        # The hub would be asked for it, and could have a model of that name.
        raise FileNotFoundError(f"model folder {model} does not exist{meant}")
    return model


def _meant(folder: Path) -> str:
    """The end of a message about a folder that does not exist: one beside it with nearly the same name."""
    if folder.exists() or not folder.parent.is_dir():
        return ""
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    close = difflib.get_close_matches(folder.name, beside, n=1, cutoff=0.8)
    return f"; did you mean {folder.parent / close[0]}?" if close else ""
