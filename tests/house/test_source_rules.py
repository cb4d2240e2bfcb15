"""Rules of the source that no linter in the chain enforces, checked on every product file, and checked to bite."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/splitglm_*/__init__.py"))
FILES = sorted(file for package in PACKAGES for file in package.rglob("*.py"))
WRITTEN = [file for file in FILES if not re.search(r"_pb2(_grpc)?\.py$", file.name)]  # the rest is protoc's

UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {"torch.load", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
TORCH_FILES = {
    "glm/splitglm_glm/model.py",
    "glm/splitglm_glm/linear.py",
    "cloud/splitglm_cloud/engine/runner_torch.py",
    "cloud/splitglm_cloud/engine/paged_kv.py",
    "cloud/splitglm_cloud/engine/paged_attention.py",
}
MAX_LINES = 350
LONG_BY_DESIGN = {"glm/splitglm_glm/model.py"}  # one file on purpose: the whole model, to be read top to bottom


def broken_rules(source: str, *, may_use_torch: bool = False) -> list[str]:
    """Each breach as ``line: rule``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            modules = []
        for module in modules:
            root = module.partition(".")[0]
            if root in UNSAFE_MODULES:
                found.append(f"{node.lineno}: imports {root}")  # type: ignore[attr-defined]
            if root == "transformers" or (root == "torch" and not may_use_torch):
                found.append(f"{node.lineno}: imports {root}")  # type: ignore[attr-defined]
        if isinstance(node, ast.Assert):
            found.append(f"{node.lineno}: assert in product code; raise an error of splitglm_core.errors")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS or called in UNSAFE_ATTRIBUTES:
                found.append(f"{node.lineno}: calls {called}")
            if any(word.arg == "allow_pickle" for word in node.keywords):
                found.append(f"{node.lineno}: names allow_pickle")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{node.lineno}: except without a type")
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
            found.append(f"{node.lineno}: NotImplementedError")
    found += [
        f"{number}: unfinished work"
        for number, line in enumerate(source.splitlines(), 1)
        if re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", line)
    ]
    return found


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: str(file.relative_to(ROOT)))
def test_product_code_keeps_the_rules(file: Path) -> None:
    name = file.relative_to(ROOT).as_posix()
    source = file.read_text(encoding="utf-8")
    assert broken_rules(source, may_use_torch=name in TORCH_FILES) == []
    assert len(source.splitlines()) <= MAX_LINES or name in LONG_BY_DESIGN
    assert file.stem not in {"utils", "util", "helpers", "helper", "misc", "manager", "common"}


@pytest.mark.parametrize(
    "breach",
    [
        "import pickle",
        "from marshal import loads",
        "def f():\n    import shelve",
        "import torch",
        "from torch.nn import functional",
        "from transformers import AutoModel",
        "x = eval('1')",
        "exec(code)",
        "model = torch.load(path)",
        "a = np.load(path)",
        "a = load(path, allow_pickle=True)",
        "c = yaml.load(text)",
        "def f(x):\n    assert x > 0",
        "try:\n    f()\nexcept:\n    pass",
        "raise NotImplementedError",
        "x = 1  # TODO: finish",
    ],
)
def test_each_rule_bites(breach: str) -> None:
    assert len(broken_rules(breach)) == 1


def test_the_rules_let_ordinary_code_through() -> None:
    ordinary = "import re\nimport numpy as np\np = re.compile('a')\nmodel.eval()\nx = np.frombuffer(b'', np.uint8)\n"
    assert broken_rules(ordinary) == []


def test_every_room_is_looked_at() -> None:
    rooms = {package.name for package in PACKAGES}
    assert {"splitglm_core", "splitglm_wire", "splitglm_edge", "splitglm_cloud", "splitglm_cli"} <= rooms
    assert len(rooms) == 9
