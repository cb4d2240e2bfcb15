"""The import contracts hold, and each of them bites when a copy of the tree breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [path.parent.parent for path in sorted(ROOT.glob("*/splitglm_*/__init__.py"))]

FLOORS = "floors: imports go down only"
NO_TORCH = "the device never needs torch"
NO_IO = "wire, security, partitioner, core and the scheduler do no I/O"


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "lint-imports"
    paths = os.pathsep.join(str(tree / folder.name) for folder in FOLDERS)
    return subprocess.run(
        [str(program), "--no-cache", "--config", str(tree / "pyproject.toml")],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def test_the_contracts_hold(tree: Path) -> None:
    result = lint(tree)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("core/splitglm_core/breach.py", "import splitglm_wire", FLOORS),
        ("edge/splitglm_edge/breach.py", "import splitglm_cloud", FLOORS),
        ("cloud/splitglm_cloud/breach.py", "import splitglm_edge", FLOORS),
        ("security/splitglm_security/breach.py", "import splitglm_wire", FLOORS),
        ("glm/splitglm_glm/breach.py", "import splitglm_partitioner", FLOORS),
        ("edge/splitglm_edge/breach.py", "import splitglm_sims", FLOORS),
        ("edge/splitglm_edge/breach.py", "def later() -> None:\n    import torch", NO_TORCH),
        ("edge/splitglm_edge/breach.py", "from splitglm_glm import model", NO_TORCH),  # model.py imports torch
        ("wire/splitglm_wire/breach.py", "import transformers", NO_TORCH),
        ("partitioner/splitglm_partitioner/breach.py", "import socket", NO_IO),
        ("security/splitglm_security/breach.py", "from time import monotonic", NO_IO),
        ("wire/splitglm_wire/breach.py", "import asyncio", NO_IO),
        ("core/splitglm_core/breach.py", "import random", NO_IO),
    ],
)
def test_a_contract_bites(tree: Path, file: str, line: str, contract: str) -> None:
    folder, _, rest = file.partition("/")
    breach = tree / ("proto" if folder == "wire" else folder) / rest
    breach.write_text(f"{line}\n", encoding="utf-8")
    try:
        result = lint(tree)
    finally:
        breach.unlink()
    assert result.returncode != 0
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text]
    assert len(broken) == 1 and broken[0].startswith(contract)
    assert "breach" in result.stdout
