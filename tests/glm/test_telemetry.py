"""Loading the product reports to nobody: ONNX Runtime's own telemetry is off before it can begin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def traces_of(program: str, folder: Path) -> list[Path]:
    """Files that a fresh interpreter leaves in its temporary, cache and home folders."""
    folder.mkdir()
    names = ("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= dict.fromkeys(names, str(folder)) | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "module", ["splitglm_glm.runtime", "splitglm_glm.stack", "splitglm_edge", "splitglm_cloud.server"]
)
def test_loading_the_product_starts_no_telemetry(module: str, tmp_path: Path) -> None:
    """Telemetry keeps an identifier of the machine; without it there is no file."""
    assert traces_of(f"import {module}", tmp_path / "ours") == []


def test_without_the_switch_there_would_be_a_trace(tmp_path: Path) -> None:
    """The test above proves something only where a bare import leaves its file."""
    if not traces_of("import onnxruntime", tmp_path / "bare"):
        pytest.skip("this build of ONNX Runtime has no telemetry")


def test_the_product_imports_onnx_runtime_in_one_place() -> None:
    importing = re.compile(r"^\s*(import onnxruntime|from onnxruntime)\b", re.MULTILINE)
    files = [file for room in ROOT.glob("*/splitglm_*") for file in room.rglob("*.py")]
    found = [file.name for file in files if importing.search(file.read_text(encoding="utf-8"))]
    assert found == ["onnx_runtime.py"]
