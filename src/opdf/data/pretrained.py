"""Pretrained models by name: the embedded one, a folder, or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError

from opdf.data.hub import hub
from opdf.data.packages import minilm


@contextmanager
def loading(model: str) -> Iterator[str]:
    """Inside, a model or its tokenizer is loaded from the folder or hub name that this gives.

    Raises:
        ValueError: it cannot be; the message says why in one line.
        FileNotFoundError, ConnectionError: there is no such folder, or the embedded model cannot be fetched.
    """
    folder = local(model)
    try:
        with nullcontext() if Path(folder).is_dir() else hub(model):
            yield folder
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            reason = "it wants code of its own to be run, which opdf does not do; give one that transformers knows"
        if "backend tokenizer" in str(error):
            reason = "it has no tokenizer that can be read; save the model's beside it (tokenizer.json)"
        if isinstance(error.__cause__, RepositoryNotFoundError):
            reason += "; to one that is private or gated, log in with hf auth login or set HF_TOKEN"
        raise ValueError(f"model {model!r} cannot be loaded: {reason}") from error


def local(model: str) -> str:
    """The folder of an embedded model; other names as they are.

    Raises:
        ValueError: a folder without safetensors weights.
    """
    if not model:
        raise ValueError("the model's name is empty; give a hub name, a folder, or minilm")
    if model == "minilm":
        return str(minilm())
    folder = Path(model)
    if folder.is_file():
        raise ValueError(f"{model} is a file; give the folder of a model")
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        reason = f"it has {pickled[0]}, and pickled weights are not loaded" if pickled else "it has no weights"
        raise ValueError(f"{model} cannot be loaded: {reason}. Save the model as safetensors")
    if not folder.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise FileNotFoundError(f"model folder {model} does not exist")
    return model
