"""The Hugging Face hub, or its cache at once if it is out of reach; its client would try for half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import datasets
from huggingface_hub import constants, get_session, is_offline_mode

PATIENCE = 5.0
"""Seconds that the hub gets for its first answer."""

_reached: set[str] = set()
"""Endpoints that answered. Those that did not are asked again: a network can come back."""


@contextmanager
def hub(name: str) -> Iterator[None]:
    """Inside, models and data come from the hub, or from its cache alone where it is out of reach.

    Raises:
        ConnectionError: it is out of reach and something of `name` is not in the cache.
    """
    problem = _out_of_reach()
    if problem is None:
        yield
        return
    libraries: tuple[Any, ...] = (constants, datasets.config)
    before = [library.HF_HUB_OFFLINE for library in libraries]
    for library in libraries:
        library.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        raise ConnectionError(
            f"{name} is not in the hub's cache, and {problem}; give a local path, or run this once where the hub can "
            "be reached, after which the cache has it"
        ) from error
    finally:
        for library, was in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = was


def _out_of_reach() -> str | None:
    """The reason not to ask the hub, or None."""
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    endpoint = constants.ENDPOINT
    if endpoint in _reached:
        return None
    problem = _asked(endpoint)
    if problem is None:
        _reached.add(endpoint)
        return None
    return f"{endpoint} cannot be reached ({problem})"


def _asked(endpoint: str) -> str | None:
    """Why the hub cannot be reached, or None. Any answer will do; a name server may not answer for long."""
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=PATIENCE)
            answers.append(None)
        except Exception as error:  # httpx's or httpx2's, as huggingface_hub's version has it
            answers.append(str(error) or type(error).__name__)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers[0] if answers else f"no answer in {PATIENCE:.0f} s"
