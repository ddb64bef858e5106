"""The hub out of reach or silent: real ports, and an error within seconds. cli/test_models.py has one that answers."""

from __future__ import annotations

import socket
import time

import datasets
import pytest
from huggingface_hub import constants

from opdf.data import hub as module, load_data
from opdf.data.hub import hub


@pytest.fixture(autouse=True)
def nothing_reached_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_reached", set())


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_nobody_listens(closed: None) -> None:
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"nobody/nothing is not in the hub's cache, and .* \(.*refused\); give"):
        load_data("nobody/nothing")
    assert time.monotonic() - start < 3
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


def test_the_cache_is_used_without_asking_again(closed: None) -> None:
    with hub("a/b"):
        assert constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE


def test_somebody_listens_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=r"cannot be reached \((no answer in|timed out)"):
            load_data("nobody/nothing")
        assert time.monotonic() - start < 3


def test_offline_by_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_asked", pytest.fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="cache, and HF_HUB_OFFLINE is set; give a local path"):
        load_data("nobody/nothing")


def test_errors_that_have_nothing_to_do_with_it_pass(closed: None) -> None:
    with pytest.raises(ValueError, match="mine"), hub("a/b"):
        raise ValueError("mine")
