"""A student on the hub: the client's own calls, answered by a server of this machine that keeps what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from jobs import digits
from opdf.cli import main
from opdf.job import run
from opdf.job.errors import UserError
from opdf.job.options import write_yaml


class Hub:
    """What a hub was asked, and the files that it has."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.is_closed = False


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    kept = Hub()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"name": "me", "type": "user", "auth": {"type": "access_token"}})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            assert self.headers["Authorization"] == "Bearer hf_mine"
            if self.path.endswith("/repos/create"):
                kept.created.append(json.loads(body))
                self.answer({"url": f"{address}/me/small-vit"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self.answer({"files": [{"path": name, **modes} for name in names]})
            elif "/commit/" not in self.path:  # the card's metadata are looked at
                self.answer({"errors": [], "warnings": []})
            elif kept.is_closed:
                self.answer({"error": "closed"}, 403)
            else:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        kept.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"commitUrl": f"{address}/me/small-vit/commit/1", "commitOid": "1", "success": True})

        def answer(self, content: Any, status: int = 200) -> None:
            kept.asked.append(f"{self.command} {self.path}")
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    yield kept
    server.shutdown()
    server.server_close()


def test_a_student_with_its_card_and_nothing_else_is_published(tmp_path: Path, hub: Hub, capsys: Any) -> None:
    """Once from the command line; a finished run can be published later, and after the hub was closed."""
    write_yaml(digits(tmp_path / "out"), tmp_path / "config.yaml")
    assert main(["distill", str(tmp_path / "config.yaml"), "--push_to_hub", "me/small-vit"]) == 0
    assert "opdf: the student is published as http" in capsys.readouterr().err
    student = tmp_path / "out" / "student"
    assert hub.files == {path.name: path.read_bytes() for path in student.iterdir()}
    assert {"README.md", "model.safetensors", "config.json"} <= hub.files.keys()
    assert hub.created[0]["name"] == "small-vit"
    assert (hub.created[0].get("private") is True) or hub.created[0].get("visibility") == "private"

    hub.files.clear()
    hub.is_closed = True
    again = [str(tmp_path / "config.yaml"), "--push_to_hub", "me/small-vit", "--resume", "true"]
    assert main(["distill", *again]) == 2
    assert f"the student is in {student} and could not be published as me/small-vit" in capsys.readouterr().err
    hub.is_closed = False
    assert main(["distill", *again]) == 0
    assert hub.files.keys() == {path.name for path in student.iterdir()}


@pytest.mark.slow
def test_without_a_name_the_hub_hears_nothing(tmp_path: Path, hub: Hub) -> None:
    run(digits(tmp_path / "out"))
    assert hub.asked == []


def test_what_cannot_be_published_is_said_before_any_work(tmp_path: Path, hub: Hub, monkeypatch: Any) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            run(digits(tmp_path / "out", push_to_hub=name))
        assert not (tmp_path / "out").exists()

    refused("a/b/c", "push_to_hub is 'a/b/c': ")
    refused("../x", "push_to_hub is '../x': ")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("me/small-vit", "push_to_hub is 'me/small-vit', and the hub does not answer: ")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused("me/small-vit", "nobody is logged in; use hf auth login, or set HF_TOKEN")
