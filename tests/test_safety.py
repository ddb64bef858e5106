"""No code of others is run: no eval, no pickle, no shell. Ruff's S rules hold most of it; the rest is held here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.load", "marshal.loads", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "pickle.load", "pickle.loads", "pickle.Unpickler", "shelve.open",
    "joblib.load", "dill.load", "dill.loads", "builtins.eval", "builtins.exec", "torch.hub.load", "torch.jit.load",
}  # fmt: skip
MUST_SAY = {"torch.load": ("weights_only", True)}
MUST_NOT_SAY = {
    "trust_remote_code": True,
    "allow_pickle": True,
    "shell": True,
    "weights_only": False,
    "use_safetensors": False,
}
SHELLS = ("subprocess.", "Popen")  # elsewhere `shell` may be the name of one


def problems(source: str) -> Iterator[str]:
    """Calls in a source text that could run what others wrote."""
    tree = ast.parse(source)
    imported = _imported(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = ast.unparse(node.func).partition(".")
        name = f"{imported.get(first, first)}{dot}{rest}".removeprefix("transformers.")
        said = {word.arg: word.value.value if isinstance(word.value, ast.Constant) else ... for word in node.keywords}
        if name in FORBIDDEN:
            yield f"line {node.lineno}: {name}"
        for key, value in MUST_NOT_SAY.items():
            if key == "shell" and not name.startswith(SHELLS):
                continue
            if key in said and said[key] in (value, ...):
                yield f"line {node.lineno}: {name}({key}={said[key]})"
        if name in MUST_SAY and said.get(MUST_SAY[name][0]) is not MUST_SAY[name][1]:
            yield f"line {node.lineno}: {name} without {MUST_SAY[name][0]}"
        if name.endswith(".from_pretrained") and name.startswith("Auto") and "trust_remote_code" not in said:
            yield f"line {node.lineno}: {name} without trust_remote_code=False"


def _imported(tree: ast.AST) -> dict[str, str]:
    """What names that were imported stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {word.asname: word.name for word in node.names if word.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {word.asname or word.name: f"{node.module}.{word.name}" for word in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_sources(path: Path) -> None:
    assert not list(problems(path.read_text()))


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')", "exec(text)", "os.system('ls')", "pickle.load(f)", "yaml.load(f, Loader=L)", "torch.load(p)",
        "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(n)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "m.from_pretrained(n, trust_remote_code=flag)", "m.from_pretrained(n, use_safetensors=False)",
        "from pickle import loads\nloads(b)", "import subprocess as s\ns.run(c, shell=True)", "builtins.eval(t)",
        "from torch import load\nload(p)", "from transformers import AutoModel as A\nA.from_pretrained(n)",
        "torch.hub.load(r, m)", "from torch import jit\njit.load(p)",
    ],
)  # fmt: skip
def test_the_check_finds_what_it_looks_for(line: str) -> None:
    assert list(problems(line))


@pytest.mark.parametrize("line", ["torch.load(p, weights_only=True)", "model.eval()", "re.compile('a')", "np.load(p)"])
def test_the_check_leaves_the_rest_alone(line: str) -> None:
    assert not list(problems(line))


def test_ruffs_security_rules_are_on(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import pickle, subprocess, yaml\nexec('a')\npickle.loads(b'')\neval('b')\n"
                                     "subprocess.run('ls', shell=True)\nyaml.load('a')\n")  # fmt: skip
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "ruff", "check", "--config", str(root / "pyproject.toml"), "--output-format",
               "concise", str(tmp_path / "bad.py")]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for rule in ("S102", "S301", "S307", "S602", "S506"):
        assert rule in found
